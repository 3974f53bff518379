"""Whose chunks are not believed: neighbours that forged some, and bundles that nobody has in the size that was said."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId

MAX_FORGERS: Final = 256
"""Neighbours remembered as forgers, so that one is not asked again because it connects again …"""
FORGER_NS: Final = 3_600 * limits.SECOND
"""… for an hour: a disk that gives wrong bytes may have been replaced since."""
MAX_DOUBTS: Final = 4
"""So many times bytes may come that are not those of a bundle in one size before another size has its turn."""
DOUBT_NS: Final = 60 * limits.SECOND
"""A neighbour whose bytes were not those of a bundle is not asked for it in that size for so long."""
_MAX_DOUBTED: Final = 256


def as_bundle(digest: bytes, size_bytes: int) -> bytes:
    """What a neighbour is not asked for when its bytes were not a bundle of that digest and size. It is asked for the
    bundle in another size, and for a chunk of that digest whose size something signed tells."""
    return digest + b"?" + size_bytes.to_bytes(4, "little")


class Forgers:
    """Neighbours that are not asked for a while."""

    def __init__(self) -> None:
        self._until_ns: dict[NodeId, int] = {}

    def __contains__(self, node: NodeId) -> bool:
        return node in self._until_ns

    def add(self, node: NodeId, now: int) -> int:
        """Ask a neighbour no more. Returns until when."""
        self._until_ns[node] = now + FORGER_NS
        while len(self._until_ns) > MAX_FORGERS:
            del self._until_ns[next(iter(self._until_ns))]
        return now + FORGER_NS

    def forgiven(self, now: int) -> list[NodeId]:
        """Those whose time is over, once."""
        over = [node for node, until_ns in self._until_ns.items() if until_ns <= now]
        for node in over:
            del self._until_ns[node]
        return over

    def ends(self) -> list[int]:
        """When the time of each is over."""
        return list(self._until_ns.values())


class DoubtedBundles:
    """Bundles, whose size is hearsay, as long as what comes does not fit."""

    def __init__(self) -> None:
        self._counts: dict[tuple[bytes, int], int] = {}
        self.misfits: list[tuple[bytes, int]] = []
        """Bundles that neighbours do not have in the size that was said, and that size, until somebody takes them."""

    def add(self, digest: bytes, size_bytes: int, is_last: bool) -> None:
        """What a neighbour sent does not fit. ``is_last``: it came so from all neighbours that have the bundle."""
        claim = digest, size_bytes
        count = self._counts.pop(claim, 0) + 1
        if is_last or count >= MAX_DOUBTS:
            self.misfits.append(claim)
            return
        self._counts[claim] = count
        while len(self._counts) > _MAX_DOUBTED:
            del self._counts[next(iter(self._counts))]

    def take(self) -> list[tuple[bytes, int]]:
        """Take :attr:`misfits`."""
        misfits, self.misfits = self.misfits, []
        return misfits
