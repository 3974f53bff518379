"""A medium for sparse contacts: nodes that have met reach each other, and nobody else.

It implements :class:`~sims.media.contract.Links`. Who meets whom is said by the one who uses it. A meeting ends when
its members meet others or nobody. Nothing is lost by chance, and everything takes one delay.
"""

from collections.abc import Iterable

from sims.media.wires import HANDSHAKE_TRIPS


class Meetings:
    """Nodes by meeting."""

    def __init__(self, nodes: int, delay_ns: int) -> None:
        self._delay_ns = delay_ns
        self._meeting_of: list[int | None] = [None] * nodes
        self._members: dict[int, list[int]] = {}
        self._next = 0

    def meet(self, nodes: Iterable[int]) -> None:
        """These nodes leave the meetings that they are in, and meet each other."""
        members = sorted(nodes)
        self.part(members)
        self._members[self._next] = members
        for node in members:
            self._meeting_of[node] = self._next
        self._next += 1

    def part(self, nodes: Iterable[int]) -> None:
        """These nodes leave the meetings that they are in."""
        for node in nodes:
            meeting = self._meeting_of[node]
            if meeting is not None:
                self._meeting_of[node] = None
                self._members[meeting].remove(node)
                if not self._members[meeting]:
                    del self._members[meeting]

    def _reach(self, sender: int, receiver: int) -> bool:
        meeting = self._meeting_of[sender]
        return meeting is not None and meeting == self._meeting_of[receiver]

    def moved(self, now_ns: int) -> list[int]:
        """An empty list, because discovery is by hand."""
        return []

    def neighbours(self, node: int) -> list[int]:
        """The others of its meeting."""
        meeting = self._meeting_of[node]
        return [] if meeting is None else [other for other in self._members[meeting] if other != node]

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """A datagram arrives at the others of the meeting."""
        return now_ns + self._delay_ns, self.neighbours(sender)

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A datagram takes as long as a frame."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A frame takes as long as bytes on a stream."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`~sims.media.contract.Links`."""
        return now_ns + self._delay_ns if self._reach(sender, receiver) else None

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """When a stream is open; None to a node of another meeting."""
        return now_ns + HANDSHAKE_TRIPS * self._delay_ns if self._reach(sender, receiver) else None

    def busy_share(self, node: int, now_ns: int) -> float:
        """Always 0, because nothing is shared."""
        return 0.0
