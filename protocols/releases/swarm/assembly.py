"""Puts a chunk together from its pieces.

The pieces of a chunk come from one neighbour, its *owner*, for as long as that one answers, so that it is known who
forged a chunk that turns out wrong. When its owner fails, another neighbour goes on with it.
"""

from protocols.base.ids import NodeId
from protocols.base.limits import PIECE_BYTES


class Assembly:
    """A chunk some of whose pieces have come."""

    __slots__ = ("_pieces", "asked", "digest", "owner", "priority", "size_bytes", "sources")

    def __init__(self, digest: bytes, size_bytes: int, priority: int, owner: NodeId) -> None:
        self.digest, self.size_bytes, self.priority = digest, size_bytes, priority
        self.owner: NodeId | None = owner
        """The neighbour that is asked for its pieces; None: nobody is."""
        self.asked: dict[int, dict[NodeId, int]] = {}
        """The neighbours that are asked for a piece, by offset, and since when."""
        self.sources: dict[NodeId, None] = {}
        """The neighbours that pieces came from."""
        self._pieces: dict[int, bytes] = {}

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

    def joined(self) -> bytes:
        """The bytes of the whole chunk."""
        return b"".join(self._pieces[offset] for offset in sorted(self._pieces))
