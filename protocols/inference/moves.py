"""Requests that need another run, because one of their runs is dead, could not be sent, or is late.

A neighbour that leaves with 256 requests of this node would otherwise hold the engine's lock while all of them go to
other nodes. So they go in slices, and others get the lock between two of them.
"""

from collections import deque
from typing import Final, Literal, NamedTuple

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.inference.requests import OwnRequest, OwnRun

MOVES_AT_ONCE: Final = 16
"""Requests in one slice. Each takes 0.1 ms with 60 neighbours, and 256 at once took 23 ms …"""
MOVED_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""… or 180 ms with inputs of a megabyte, which are encoded again. A slice ends when it has moved so many bytes …"""
MOVE_PAUSE_NS: Final = 1 * limits.MS
"""… and the next one follows after this."""


class Move(NamedTuple):
    """One request, and the run that it can't wait for."""

    request: OwnRequest
    run: OwnRun
    outcome: Literal["dead", "failed", "late"]
    """A late run goes on beside the next one."""
    detail: str = ""


class Moves:
    """The requests that wait for their slice."""

    def __init__(self) -> None:
        self._waiting: deque[Move] = deque()
        self._slice_ns = self._moved = self._moved_bytes = 0
        self.due_ns = NEVER
        """When the next slice may begin."""

    def add(self, move: Move) -> None:
        """Let a request wait for the next slice."""
        self._waiting.append(move)

    def take(self, now: int) -> Move | None:
        """The next request of the slice at ``now``; None when that is at its end."""
        if now != self._slice_ns:
            self._slice_ns, self._moved, self._moved_bytes = now, 0, 0
        if not self._waiting:
            self.due_ns = NEVER
            return None
        if self._moved >= MOVES_AT_ONCE or self._moved_bytes >= MOVED_BYTES_AT_ONCE:
            self.due_ns = now + MOVE_PAUSE_NS
            return None
        move = self._waiting.popleft()
        self._moved += 1
        self._moved_bytes += move.request.size_bytes
        return move
