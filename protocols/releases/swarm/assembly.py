"""Puts a chunk together from its pieces.

The pieces of a chunk come from one neighbour, its *owner*, for as long as that one answers, so that it is known who
forged a chunk that turns out wrong. When its owner fails, another neighbour goes on with it.

An owner that sends a piece now and then answers, and would keep a chunk for as long as it likes. So a chunk *trickles*
when its owner was waited for longer than ``TRICKLE_NS`` and gave less than ``LEAST_BYTES_PER_S``. Only time counts in
which a piece was asked of it: a node with a small budget of bytes asks seldom.
"""

from typing import Final

from protocols.base.ids import NodeId
from protocols.base.limits import PIECE_BYTES, SECOND

LEAST_BYTES_PER_S: Final = PIECE_BYTES // 8
"""A neighbour that gives way to readings on a full channel sends a piece in eight seconds."""
TRICKLE_NS: Final = 30 * SECOND


class Assembly:
    """A chunk some of whose pieces have come."""

    __slots__ = ("_counted_ns", "_given_bytes", "_pieces", "_waited_ns", "asked", "digest", "owner", "priority",
                 "size_bytes", "sources")  # fmt: skip

    def __init__(self, digest: bytes, size_bytes: int, priority: int, owner: NodeId) -> None:
        self.digest, self.size_bytes, self.priority = digest, size_bytes, priority
        self.owner: NodeId | None = owner
        """The neighbour that is asked for its pieces; None: nobody is."""
        self.asked: dict[int, dict[NodeId, int]] = {}
        """The neighbours that are asked for a piece, by offset, and since when."""
        self.sources: dict[NodeId, None] = {}
        """The neighbours that pieces came from."""
        self._pieces: dict[int, bytes] = {}
        self._given_bytes = self._waited_ns = self._counted_ns = 0  # of the owner, and until when that was counted

    def go_on_with(self, node: NodeId) -> None:
        """Have another neighbour as the owner."""
        self.owner = node
        self._given_bytes = self._waited_ns = self._counted_ns = 0

    def piece_bytes(self, offset: int) -> int:
        """The size of the piece that begins there."""
        return min(PIECE_BYTES, self.size_bytes - offset)

    def unasked(self) -> int | None:
        """The offset of the first piece that is neither here nor asked for; None when there is none."""
        for offset in range(0, self.size_bytes, PIECE_BYTES):
            if offset not in self._pieces and not self.asked.get(offset):
                return offset
        return None

    def lacks(self, offset: int) -> bool:
        """Whether the piece that begins there has not come."""
        return offset not in self._pieces

    def add(self, offset: int, data: bytes, source: NodeId) -> bool:
        """Take a piece that was asked for. Returns whether the chunk is whole now."""
        self._pieces[offset] = data
        self.sources[source] = None
        self.asked.pop(offset, None)
        return len(self._pieces) * PIECE_BYTES >= self.size_bytes

    def came(self, size_bytes: int, asked_ns: int, now: int) -> None:
        """Note that the owner has sent a piece, for which it was asked then."""
        self._waited_ns += now - max(asked_ns, self._counted_ns)
        self._given_bytes += size_bytes
        self._counted_ns = now

    def trickles(self, now: int) -> bool:
        """Whether its owner gives too little of it; see the module."""
        asked = [askers[self.owner] for askers in self.asked.values() if self.owner in askers]
        waited_ns = self._waited_ns + now - max(min(asked, default=now), self._counted_ns)
        return waited_ns >= TRICKLE_NS and self._given_bytes * SECOND < LEAST_BYTES_PER_S * waited_ns

    def joined(self) -> bytes:
        """The bytes of the whole chunk."""
        return b"".join(self._pieces[offset] for offset in sorted(self._pieces))
