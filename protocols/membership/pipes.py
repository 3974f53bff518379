"""The pipes that neighbours have opened into the inbox of a node."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import PeerIdentity
from protocols.membership.events import ClosePipe
from protocols.membership.neighbour import Neighbour

MAX_PIPES_PER_NEIGHBOUR: Final = 8
"""Pipes of one identity into our inbox: two lanes, and old connections that nobody has closed yet. The oldest goes."""


class AdmittedPipe:
    """One pipe, of an identity that was checked."""

    __slots__ = ("closing", "hello_ns", "host", "identity", "lane", "opened_ns", "spoken")

    def __init__(self, identity: PeerIdentity, host: str, now: int) -> None:
        self.identity, self.host, self.opened_ns = identity, host, now
        self.spoken = False
        """It said Hello, and its frames count."""
        self.closing = False
        """It is to be closed, and its frames do not count any more."""
        self.lane, self.hello_ns = "", now
        """The lane that its Hello named, and when that came."""


class AdmittedPipes:
    """All pipes of one node, by the number that the driver gave them."""

    def __init__(self) -> None:
        self.of_number: dict[int, AdmittedPipe] = {}
        self.neighbour_of: dict[int, Neighbour] = {}
        """The neighbours whose pipes have said Hello."""
        self.opened_in_all = 0
        self.effects: list[ClosePipe] = []
        """The pipes to close, decided since the list was cleared."""

    def opened(self, pipe: int, identity: PeerIdentity, host: str, now: int) -> None:
        """A pipe was admitted; the oldest of too many pipes of its identity is closed."""
        self.opened_in_all += 1
        self.of_number[pipe] = AdmittedPipe(identity, host, now)
        same = [n for n, known in self.of_number.items() if known.identity.node == identity.node and not known.closing]
        if len(same) > MAX_PIPES_PER_NEIGHBOUR:
            self.close(same[0])

    def spoke(self, pipe: int, neighbour: Neighbour, lane: str, now: int) -> None:
        """A pipe said Hello for that lane of ``neighbour``."""
        known = self.of_number[pipe]
        known.spoken, known.lane, known.hello_ns = True, lane, now
        self.neighbour_of[pipe] = neighbour

    def replaced(self, inbound: set[int], now: int) -> list[int]:
        """Those of a neighbour's pipes after which it opened another for the same lane, ``REPLACED_PIPE_NS`` ago or
        earlier. A node has one of each, and hangs up at once when it has dialled twice. So the end of the older one
        did not reach us: its computer has another address now."""
        later: dict[str, int] = {}  # when the next Hello for a lane came
        replaced = []
        pipes = [(self.of_number[pipe].hello_ns, pipe) for pipe in inbound if pipe in self.of_number]
        for hello_ns, pipe in sorted(pipes, reverse=True):
            lane = self.of_number[pipe].lane
            if now - later.get(lane, now) >= limits.REPLACED_PIPE_NS:
                replaced.append(pipe)
            later[lane] = hello_ns
        return replaced

    def close(self, pipe: int) -> None:
        """Have a pipe closed. Frames that still come from it do not count."""
        known = self.of_number.get(pipe)
        if known is not None:
            known.spoken, known.closing = False, True
            self.neighbour_of.pop(pipe, None)
        self.effects.append(ClosePipe(pipe))

    def closed(self, pipe: int) -> AdmittedPipe | None:
        """A pipe is gone. Returns what was known of it."""
        self.neighbour_of.pop(pipe, None)
        return self.of_number.pop(pipe, None)

    def mute(self, now: int) -> list[int]:
        """The pipes that should have said Hello by now."""
        if len(self.of_number) == len(self.neighbour_of):  # all of them have
            return []
        return [
            pipe for pipe, known in self.of_number.items()
            if not known.spoken and not known.closing and now - known.opened_ns >= limits.HELLO_TIMEOUT_NS
        ]  # fmt: skip
