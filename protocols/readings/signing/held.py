"""The signed parcels that a node holds, so that last values can be passed on with their authors' signatures."""

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.shares import SharedRows
from protocols.wire.readings import Reading

_ROW_BYTES = 512
"""What a parcel takes in memory beside its own bytes: a signature, names, and places in dicts."""


class Signed:
    """A parcel of one stream, and its signature."""

    __slots__ = ("certificate", "parcel", "proven", "sequence", "signature", "source")

    def __init__(
        self, sequence: int, certificate: bytes, signature: bytes, parcel: bytes | memoryview, source: NodeId,
        proven: bool,
    ) -> None:  # fmt: skip
        self.sequence = sequence
        """The sequence of the newest reading in it."""
        self.certificate, self.signature, self.parcel = certificate, signature, parcel
        self.source = source
        """The neighbour that sent it; this node for its own."""
        self.proven = proven
        """Whether the signature is known to be good. A direct neighbour's readings are not checked before they have to
        be passed on."""

    @property
    def weight_bytes(self) -> int:
        """What it takes in memory."""
        return len(self.parcel) + _ROW_BYTES


class SignedParcels:
    """One parcel for each stream. They take at most ``max_bytes``; when they would take more, the oldest parcel of the
    neighbour that fills most of the table gives way."""

    def __init__(self, max_bytes: int = limits.MAX_SIGNED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parcels: dict[tuple[str, str], Signed] = {}
        self._rows: SharedRows[NodeId, tuple[str, str]] = SharedRows()
        self.evicted = 0

    @property
    def held_bytes(self) -> int:
        """What all parcels take in memory."""
        return self._rows.shares.total

    def keep(self, reading: Reading, signed: Signed) -> None:
        """Keep the parcel whose newest reading is ``reading`` in place of an older one of its stream."""
        stream = (reading.origin, reading.key)
        self._parcels[stream] = signed
        self._rows.add(signed.source, stream, signed.weight_bytes)
        while self.held_bytes > self._max_bytes:
            gone = self._rows.next_to_go()
            self._rows.remove(gone)
            del self._parcels[gone]
            self.evicted += 1

    def of(self, reading: Reading) -> Signed | None:
        """The parcel whose newest reading is ``reading``; None when it is not held."""
        signed = self._parcels.get((reading.origin, reading.key))
        return signed if signed is not None and signed.sequence == reading.sequence else None
