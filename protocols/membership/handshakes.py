"""How many dials of one node may wait for an answer at once.

A handshake takes eight flights, five kilobytes in all. When many vehicles meet at once on one radio channel, and each
dials all others together, handshakes fill the channel for seconds: readings and hazards wait behind them, and the
handshakes run into their time-outs and begin again. So a node begins with few. Each handshake that was quick lets one
more be under way, and one that was slow halves their number. When few are left it is crowded, and the limit is one of
dials a second, so that thirty vehicles that meet take a third of their channel for it.

Dials that nobody answers say nothing, because most often there is nobody, and stop counting after a while. Otherwise a
stranger's adverts would keep real nodes waiting. Dials to peers that said Hello have a limit of their own, which mere
hints can't use up.
"""

from collections import deque
from typing import Final

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER

MOST: Final = 64
"""Dials without an answer: each takes a socket and, if the server is silent, lasts until its time-out."""
FIRST: Final = 4
_QUICK_NS: Final = 300 * MS
"""A handshake over a free link takes 20 ms, and over the Internet four round trips. One that takes longer has waited
for a channel or a processor. A dial without an answer counts for so long."""


class Handshakes:
    """The limit of one node. All instants are monotonic nanoseconds."""

    __slots__ = ("_begun", "_cut_ns", "limit")

    def __init__(self) -> None:
        self.limit = FIRST
        """How many dials may wait for an answer, or begin in a second when it is crowded."""
        self._cut_ns = -NEVER
        self._begun: tuple[deque[int], deque[int]] = (deque(maxlen=FIRST), deque(maxlen=FIRST))
        """When the last dials began: all, and those to peers that said Hello."""

    def began(self, proven: bool, now: int) -> None:
        """Note that a dial begins; ``proven``: to a peer that said Hello."""
        self._begun[0].append(now)
        if proven:
            self._begun[1].append(now)

    def answered(self, began_ns: int, now: int) -> None:
        """Note that a dial which began at ``began_ns`` was answered."""
        if now - began_ns <= _QUICK_NS:
            self.limit = min(self.limit + 1, MOST)
        elif began_ns >= self._cut_ns:  # those that began before are late for the same reason
            self.limit, self._cut_ns = max(self.limit // 2, 1), now

    def room_at(self, proven: bool, waiting: list[int], due_ns: int) -> int:
        """From when on a dial that is due at ``due_ns`` may begin, if none is answered before. ``waiting``: when those
        that wait for an answer began, in that order; for a ``proven`` dial, those to peers that said Hello."""
        if len(waiting) >= MOST:
            return NEVER
        for began, counted_ns in ((waiting, _QUICK_NS), (self._begun[proven], SECOND if self.limit < FIRST else 0)):
            if len(began) >= self.limit:
                due_ns = max(due_ns, began[-self.limit] + counted_ns)
        return due_ns
