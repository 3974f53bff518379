"""Whose chunks are not believed: neighbours that forged some, and bundles that nobody has in the size that was said."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId

MAX_FORGERS: Final = 256
"""Neighbours remembered as forgers, so that one is not asked again because it connects again …"""
FORGER_NS: Final = 3_600 * limits.SECOND
"""… for an hour: a disk that gives wrong bytes may have been replaced since."""
MAX_DOUBTS: Final = 4
"""So many times bytes may come that are not those of a bundle before others have their turn."""
_MAX_DOUBTED: Final = 256


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
        self._counts: dict[bytes, int] = {}
        self.misfits: list[tuple[bytes, int]] = []
        """Bundles that several neighbours do not have in the size that was said, and that size, until somebody takes
        them."""

    def add(self, digest: bytes, size_bytes: int) -> None:
        """What a neighbour sent does not fit."""
        count = self._counts.pop(digest, 0) + 1
        if count >= MAX_DOUBTS:
            self.misfits.append((digest, size_bytes))
            return
        self._counts[digest] = count
        while len(self._counts) > _MAX_DOUBTED:
            del self._counts[next(iter(self._counts))]

    def take(self) -> list[tuple[bytes, int]]:
        """Take :attr:`misfits`."""
        misfits, self.misfits = self.misfits, []
        return misfits
