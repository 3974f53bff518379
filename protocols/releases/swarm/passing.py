"""Chunks that a neighbour gives too slowly, and that another holder is asked for in its place.

Whoever is slow is not to blame: its link may be, or it has many to give to. So it is passed over for that chunk alone
and for a while (``Supplier.passed``), and what it has given is used. A chunk that has to come whole from one neighbour,
or that only the relay holds beside, begins anew. So each chunk is passed on a few times at most: where all links are
slow, it would never be complete otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from protocols.base.ids import NodeId
from protocols.releases.swarm.assembly import Assembly
from protocols.releases.swarm.supplier import Supplier

MAX_PASSED: Final = 3
"""So many times a chunk is passed on."""
_MAX_CHUNKS: Final = 256


class PassedOn:
    """How often chunks were passed on."""

    def __init__(self) -> None:
        self._times: dict[bytes, int] = {}
        self.has_relay = False
        """Whether the relay can be asked for chunks that no other neighbour holds."""

    def slow(
        self, assemblies: Mapping[bytes, Assembly], suppliers: Mapping[NodeId, Supplier],
        holds: Callable[[Supplier, bytes, int], bool], now: int,
    ) -> Iterator[tuple[Assembly, NodeId, bool]]:  # fmt: skip
        """The chunks to pass on now, with their owners, and whether another neighbour holds them."""
        for assembly in [each for each in assemblies.values() if each.owner is not None and each.trickles(now)]:
            owner, digest = assembly.owner, assembly.digest
            is_near = any(
                node != owner and not each.is_silent and holds(each, digest, now) for node, each in suppliers.items()
            )
            times = self._times.get(digest, 0)
            if owner is not None and times < MAX_PASSED and (is_near or self.has_relay):
                self._times[digest] = times + 1
                yield assembly, owner, is_near
        while len(self._times) > _MAX_CHUNKS:
            del self._times[next(iter(self._times))]

    def forget(self, digest: bytes) -> None:
        """A chunk is here."""
        self._times.pop(digest, None)
