"""The frozen structs of the wire. A frame is a MessagePack array ``[type, field, field, …]``.

Evolution: a newer minor version may append fields with defaults and add frame types; a receiver skips what it does
not know. Anything else is a new major version. Types 1 to 63 travel between nodes, 64 to 95 between node and relay.
``docs/reference/wire.md`` describes every field for a second implementation.

Decoding checks types and the bounds written here; what the types can't say is checked in ``codec``.
"""

from math import prod
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from protocols.base import limits

MAJOR = 1
"""Versions that differ here refuse one another."""
MINOR = 1
"""0 knew no gossip."""

Text = Annotated[str, Meta(max_length=limits.MAX_TEXT_CHARS)]
Key = Annotated[str, Meta(min_length=1, max_length=limits.MAX_KEY_BYTES)]
Id = Annotated[str, Meta(min_length=1, max_length=63)]
Count = Annotated[int, Meta(ge=0)]
U16 = Annotated[int, Meta(ge=0, le=65_535)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


# --- readings ------------------------------------------------------------------------------------------------------
class Position(Struct, frozen=True, array_like=True, gc=False):
    """Where: WGS 84."""

    latitude_deg: Latitude
    longitude_deg: Longitude
    accuracy_m: NonNegative
    """Radius of the 68 % circle."""
    altitude_m: Annotated[float, Meta(ge=-1e6, le=1e9)] | None = None
    """Above the ellipsoid."""
    heading_deg: Annotated[float, Meta(ge=0, lt=360)] | None = None
    """Clockwise from true north."""


class EventTime(Struct, frozen=True, array_like=True, gc=False):
    """When: the instant of sensing, not of sending."""

    utc_ns: Count
    uncertainty_ns: Count
    """Half width of the interval that holds the true time."""


class Provenance(Struct, frozen=True, array_like=True, gc=False):
    """How: what sensed it and how good it is."""

    sensor: Text
    unit: Text
    """UCUM symbol such as ``m/s``; ``1`` for a bare number."""
    quality: Share = 1.0
    calibration: Text = ""
    """Identifier of the calibration in force; empty when there is none."""
    lineage: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_LINEAGE)] = ()
    """What it was derived from, nearest step first."""


class Reading(Struct, frozen=True, array_like=True, gc=False):
    """One value with its context. ``(origin, key, sequence)`` names it for ever."""

    key: Key
    origin: Id
    sequence: Count
    """Grows within ``(origin, key)``, over restarts too."""
    value: Any
    """``None``, bool, int, float, str, bytes, list, dict with text keys, or :class:`Tensor`."""
    where: Position
    when: EventTime
    how: Provenance
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    """7 is the most urgent."""
    lifespan_ms: Annotated[int, Meta(ge=0, le=limits.MAX_LIFESPAN_MS)] = 0
    """Worthless this long after ``when``; 0: never."""
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    """How many more neighbours may pass it on."""


class Tensor(Struct, frozen=True, array_like=True, gc=False):
    """An array on the wire: element type, shape, raw little-endian bytes in C order.

    NumPy takes it without a copy through ``__array_interface__``: ``numpy.asarray(tensor)``.
    """

    dtype: Literal["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    """Kind and bytes per element, as in NumPy's type strings."""
    shape: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    data: memoryview
    """After decoding a view into the frame, which it keeps alive."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        size_bytes = prod(self.shape) * int(self.dtype[1])
        if size_bytes != len(self.data):  # NumPy would read past the end
            raise ValueError(f"{self.dtype} {list(self.shape)} takes {size_bytes} bytes, not {len(self.data)}")
        order = "|" if self.dtype[1:] == "1" else "<"
        return {"version": 3, "shape": self.shape, "typestr": order + self.dtype, "data": self.data}


class NamedTensor(Struct, frozen=True, array_like=True, gc=False):
    """An input or output of a model."""

    name: Text
    tensor: Tensor


# --- between nodes -------------------------------------------------------------------------------------------------
class Offer(Struct, frozen=True, array_like=True, gc=False):
    """A model that the sender computes for others, and what that costs there."""

    model: Text
    digest: Digest
    compute_us: Count
    """Median time of one run on the sender, without waiting."""
    waiting: Count = 0
    """Runs queued or under way."""


class Hello(Struct, frozen=True, array_like=True, gc=False, tag=1):
    """First frame of every pipe: who speaks, in which version, and where to dial back."""

    major: Count
    minor: Count
    node: Id
    incarnation: Count
    inbox_port: U16
    lane: Literal["realtime", "bulk"]
    addresses: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_ADVERT_ADDRESSES)] = ()


class Heartbeat(Struct, frozen=True, array_like=True, gc=False, tag=2):
    """Proof of life in one direction, and by its echo of the other."""

    sequence: Count
    sent_ns: Count
    """The sender's monotonic clock; only the sender reads it, from the echo."""
    echo_sequence: Count
    """Newest heartbeat heard from the receiver; 0: none, so that an asymmetric link shows."""
    echo_sent_ns: Count
    echo_held_ns: Count
    """How long the echoed heartbeat lay here."""
    suspects: Annotated[tuple[Id, ...], Meta(max_length=limits.MAX_SUSPECTS_PER_HEARTBEAT)] = ()
    answer: bool = False
    """Send one back at once: the receiver is under suspicion and may refute it."""


class Goodbye(Struct, frozen=True, array_like=True, gc=False, tag=3):
    """The sender leaves on purpose."""

    incarnation: Count
    reason: Text = ""


class Refusal(Struct, frozen=True, array_like=True, gc=False, tag=4):
    """The sender won't talk to the receiver, and why; the receiver should not redial in a loop."""

    code: Text
    """``version``, ``identity``, ``duplicate``, ``full`` or a newer word."""
    detail: Text = ""


class Want(Struct, frozen=True, array_like=True, gc=False):
    """One subscription, as a publisher sees it."""

    expression: Key
    min_interval_us: Count = 0
    """At most one reading of a key in this time; 0: all."""
    conflate: bool = False
    """Of readings that wait, only the newest of a key is wanted."""
    history: bool = True
    """Send the last known values of matching keys first."""
    hops: Annotated[int, Meta(ge=0, le=limits.MAX_HOPS)] = 0
    """How much further the receiver may ask on the sender's behalf."""


class Interest(Struct, frozen=True, array_like=True, gc=False, tag=5):
    """Everything the sender wants; replaces what it said before."""

    version: Count
    wants: Annotated[tuple[Want, ...], Meta(max_length=limits.MAX_SUBSCRIPTIONS)]


class Readings(Struct, frozen=True, array_like=True, gc=False, tag=6):
    """One or more readings, oldest first."""

    readings: Annotated[tuple[Reading, ...], Meta(max_length=limits.MAX_READINGS_PER_FRAME)]


class Offers(Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Everything the sender computes for others; replaces what it said before."""

    version: Count
    offers: Annotated[tuple[Offer, ...], Meta(max_length=limits.MAX_OFFERS)]


class InferRequest(Struct, frozen=True, array_like=True, gc=False, tag=8):
    """Compute this for me."""

    request: Count
    """Unique in one incarnation of the sender."""
    model: Text
    digest: Digest
    budget_us: Count
    """What is left of the deadline; a duration, so that no clocks need to agree."""
    inputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)]
    outputs: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    """Names wanted; none: all."""


class InferAnswer(Struct, frozen=True, array_like=True, gc=False, tag=9):
    """The result, or why there is none."""

    request: Count
    status: Literal["done", "busy", "unknown", "invalid", "late", "failed"]
    outputs: Annotated[tuple[NamedTensor, ...], Meta(max_length=limits.MAX_TENSORS)] = ()
    queued_us: Count = 0
    compute_us: Count = 0
    detail: Text = ""


class InferCancel(Struct, frozen=True, array_like=True, gc=False, tag=10):
    """The answer is no longer wanted."""

    request: Count


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """What a node has to say to everybody, signed by it. Travels as the bytes of its MessagePack array, never encoded
    anew on the way, so that its fingerprint is the same everywhere."""

    author: Id
    kind: Annotated[str, Meta(min_length=1, max_length=limits.MAX_KIND_CHARS)]
    """``address``, or a word of a newer version, which is passed on all the same."""
    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    """Grows with each entry of ``(author, kind)``, over restarts too."""
    lifetime_s: Annotated[int, Meta(ge=1, le=limits.MAX_ENTRY_LIFETIME_S)]
    """Forgotten this long after it was signed."""
    body: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]
    credential: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]
    """The author's certificate, DER."""
    signature: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]


class Address(Struct, frozen=True, array_like=True, gc=False):
    """The body of an entry of kind ``address``: where the author's inbox is."""

    role: Text
    port: U16
    hosts: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_ADVERT_ADDRESSES)]
    capabilities: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_OFFERS)] = ()
    """Names of models that it computes for others, as many as fit."""


class Carried(Struct, frozen=True, array_like=True, gc=False):
    """An entry under way."""

    age_ms: Count
    """Since it was signed, as far as the sender knows: no clocks need to agree."""
    entry: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_ENTRY_BYTES)]
    """The bytes of an :class:`Entry`."""


Fingerprints = Annotated[bytes, Meta(max_length=8 * limits.MAX_FINGERPRINTS_PER_FRAME)]
"""Eight bytes each, little-endian."""


class GossipDigest(Struct, frozen=True, array_like=True, gc=False, tag=11):
    """What the sender holds, in short: a beacon, or with ``buckets`` the start of a comparison."""

    root: Count
    """Exclusive or of the fingerprints of all entries."""
    entries: Count
    buckets: Annotated[bytes, Meta(max_length=8 * limits.ENTRY_BUCKETS)] = b""
    """The same for each bucket; empty in a beacon."""


class GossipHave(Struct, frozen=True, array_like=True, gc=False, tag=12):
    """Fingerprints of entries that the sender holds: news, or all that it has in some buckets."""

    covered: Count
    """Bit *n*: bucket *n* is listed in full. 0: news."""
    fingerprints: Fingerprints


class GossipPull(Struct, frozen=True, array_like=True, gc=False, tag=13):
    """Give me these."""

    fingerprints: Annotated[bytes, Meta(max_length=8 * limits.MAX_PULL)]


class GossipEntries(Struct, frozen=True, array_like=True, gc=False, tag=14):
    """Entries that were asked for, or are new from the sender itself."""

    entries: Annotated[tuple[Carried, ...], Meta(max_length=limits.MAX_ENTRIES_PER_FRAME)]


GossipFrame = GossipDigest | GossipHave | GossipPull | GossipEntries
NodeFrame = (
    Hello
    | Heartbeat
    | Goodbye
    | Refusal
    | Interest
    | Readings
    | Offers
    | InferRequest
    | InferAnswer
    | InferCancel
    | GossipDigest
    | GossipHave
    | GossipPull
    | GossipEntries
)


# --- between node and relay ----------------------------------------------------------------------------------------
class Record(Struct, frozen=True, array_like=True, gc=False):
    """A curated reading on its way to the relay. ``(origin node, sequence)`` names it for ever."""

    sequence: Annotated[int, Meta(ge=1)]
    """Given by the curating node, without gaps: 1, 2, 3, …"""
    rule: Text
    """The curation rule that chose it."""
    reading: Reading


class Fate(Struct, frozen=True, array_like=True, gc=False):
    """What became of the records ``first`` to ``last`` that will never be delivered."""

    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    state: Literal["expired", "evicted", "refused"]


class Batch(Struct, frozen=True, array_like=True, gc=False, tag=64):
    """Node to relay: records in order of sequence, and the fates of those that are missing."""

    major: Count
    minor: Count
    node: Id
    incarnation: Count
    next_sequence: Annotated[int, Meta(ge=1)]
    """The sequence that the next record will get: the relay can tell how many it has yet to see."""
    records: Annotated[tuple[Record, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()
    fates: Annotated[tuple[Fate, ...], Meta(max_length=limits.MAX_FATES_PER_BATCH)] = ()


class RefusedRecord(Struct, frozen=True, array_like=True, gc=False):
    """A record that the relay will never take."""

    sequence: Count
    reason: Text


class Acknowledgement(Struct, frozen=True, array_like=True, gc=False, tag=65):
    """Relay to node, sent after the batch is on disk."""

    stored: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)]
    """Sequences now in the store, those among them that already were included."""
    refused: Annotated[tuple[RefusedRecord, ...], Meta(max_length=limits.MAX_BATCH_RECORDS)] = ()


class RelayRefusal(Struct, frozen=True, array_like=True, gc=False, tag=66):
    """Relay to node: nothing of the batch was taken."""

    code: Text
    """``version``, ``identity``, ``malformed``, ``storage`` (try again later) or a newer word."""
    detail: Text = ""


RelayFrame = Batch | Acknowledgement | RelayRefusal
