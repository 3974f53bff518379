"""The frames between a node and the relay: records go up, and what became of them comes down."""

from operator import lt
from typing import Annotated, Final, Literal

from msgspec import Meta, Raw, Struct

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.wire.fields import Count, Id, Text, check_untrusted_id
from protocols.wire.frame import Frame


class Record(Struct, frozen=True, array_like=True, gc=False):
    """A curated reading on its way to the relay. ``(origin node, sequence)`` identifies it for ever."""

    sequence: Annotated[int, Meta(ge=1)]
    """The curating node counts its records without gaps: 1, 2, 3, …"""
    rule: Text
    """The curation rule that chose it."""
    reading: Raw
    """A reading, encoded. An outbox keeps it in these bytes, they travel as they are, and the store of the relay keeps
    them too, so nothing on the way encodes it again."""


class Fate(Struct, frozen=True, array_like=True, gc=False):
    """What became of the records ``first`` to ``last`` that will never be delivered."""

    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    state: Literal["expired", "evicted", "refused"]


class Receipt(Struct, frozen=True, array_like=True, gc=False):
    """What a node signs for the records of a batch, so that each of them can be proved alone.

    The signature covers all other fields, see :func:`protocols.wire.receipts.receipt_statement`. So a receipt has
    exactly these fields: another statement needs another prefix.
    """

    mesh: Id
    node: Id
    """The node that made the records, and this."""
    incarnation: Count
    policy: Annotated[bytes, Meta(max_length=limits.MAX_POLICY_BYTES)]
    """The digest of the egress policy that these records passed; empty: none is claimed."""
    root: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """Of the hash tree over the records, see :mod:`protocols.records.receipts.tree`."""
    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    """The lowest and the highest sequence among the records."""
    records: Annotated[int, Meta(ge=1, le=limits.MAX_BATCH_RECORDS)]
    """How many there are."""
    certificate: Annotated[bytes, Meta(min_length=limits.CERTIFICATE_ID_BYTES, max_length=limits.CERTIFICATE_ID_BYTES)]
    """The id of the certificate whose key made the signature."""
    signature: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_SIGNATURE_BYTES)]


class Batch(Frame, frozen=True, array_like=True, gc=False, tag=64):
    """From node to relay: records in order of sequence, and the fates of those that are missing."""

    major: Count
    minor: Count
    node: Id
    incarnation: Count
    next_sequence: Annotated[int, Meta(ge=1)]
    """The sequence that the next record will get. It tells the relay how many records it has yet to see."""
    records: Annotated[tuple[Record, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()
    fates: Annotated[tuple[Fate, ...], Meta(max_length=limits.MAX_FATES_PER_BATCH)] = ()
    """In order, and no two of them about one record."""
    receipt: Receipt | None = None
    """None: the batch has no records, or an older node sent it."""
    certificate: Annotated[bytes, Meta(max_length=limits.MAX_CERTIFICATE_BYTES)] = b""
    """The certificate that the receipt names, in DER; empty: the relay is thought to know it."""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when ``node`` is not an id, records or fates are not in order of sequence, or
        two of them are about one."""
        check_untrusted_id(self.node)
        sequences = [record.sequence for record in self.records]
        if not all(map(lt, sequences, sequences[1:])):
            raise RemoteProtocolError("the records are not in order of sequence")
        last = 0
        for fate in self.fates:
            if fate.last < fate.first or fate.first <= last:
                raise RemoteProtocolError(f"the fate of {fate.first} to {fate.last} comes after one up to {last}")
            last = fate.last


class PackedBatch(Frame, frozen=True, array_like=True, gc=False, tag=75):
    """From node to relay: a :class:`Batch`, compressed with Zstandard. A relay that does not take it refuses it as
    ``malformed``, and gets the batch as it is."""

    data: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_EXCHANGE_BYTES)]
    """The frame of the batch, as one frame of Zstandard that says how large its content is."""


class RefusedRecord(Struct, frozen=True, array_like=True, gc=False):
    """A record that the relay will never take."""

    sequence: Count
    reason: Text


class Acknowledgement(Frame, frozen=True, array_like=True, gc=False, tag=65):
    """From relay to node, sent after the batch is on disk."""

    stored: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)]
    """The sequences that are in the store now, including those that were there before."""
    refused: Annotated[tuple[RefusedRecord, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()


class RelayRefusal(Frame, frozen=True, array_like=True, gc=False, tag=66):
    """From relay to node: nothing of the batch was taken."""

    code: Text
    """``version``, ``identity``, ``malformed``, ``storage`` (try again later), ``receipt``, ``certificate`` (send it
    along), ``access``, ``busy`` (ask again later) or a newer word."""
    detail: Text = ""


RelayFrame = Batch | Acknowledgement | RelayRefusal

FRAMES: Final[tuple[type[Frame], ...]] = (Batch, Acknowledgement, RelayRefusal, PackedBatch)
