"""Hypothesis strategies for everything that travels on the wire, and small builders that many tests share.

Runs repeat: examples are derived from the test's name unless ``MESH_EXPLORE`` is set, which searches anew each time.
"""

import os
from collections.abc import Iterable
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from msgspec import Raw, Struct

from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.engine import Engine
from protocols.machine import Machine
from protocols.settings import NodeSettings
from protocols.wire.asking.frames import AskedBox, RecordsAsked, RecordsTold, ToldRecord
from protocols.wire.carrying.frames import (
    CarriedBatch,
    CarriedReply,
    CarrierOffer,
    RelayKeyAsked,
    RelayKeyTold,
    RelayReply,
    SealedBatch,
    SealedState,
)
from protocols.wire.entries import encode_fingerprints
from protocols.wire.gossip import Carried, GossipDigest, GossipEntries, GossipHave, GossipPull
from protocols.wire.inference import (
    InferAnswer,
    InferCancel,
    InferRequest,
    Offer,
    Offers,
    OffersAsked,
    OffersTold,
    Signature,
    StageAsked,
    StageChunk,
    StageState,
    StageWanted,
    TensorKind,
)
from protocols.wire.membership import Goodbye, Heartbeat, Hello, Refusal
from protocols.wire.multicast.datagrams import MAX_COUNTER
from protocols.wire.multicast.frames import Heard, SenderKey
from protocols.wire.parcels import encode_alone, encode_reading
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings, SignedReadings, Want
from protocols.wire.records import (
    Acknowledgement,
    Batch,
    Fate,
    PackedBatch,
    Receipt,
    Record,
    RefusedRecord,
    RelayRefusal,
)
from protocols.wire.releases import (
    ChunkPiece,
    ChunkRefused,
    ChunksComing,
    ChunkWanted,
    ContentHave,
    ContentWanted,
    RelayChunk,
    RelayChunkWanted,
    ReleaseNews,
    ReleasesAsked,
    ReleasesTold,
)
from protocols.wire.tensors import NamedTensor, Tensor

EXPLORE = "MESH_EXPLORE" in os.environ
MODEST = settings(max_examples=60, derandomize=not EXPLORE)
THOROUGH = settings(max_examples=200, derandomize=not EXPLORE)

U64 = st.integers(0, 2**64 - 1)
POSITIVE = st.integers(1, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
SHA256 = st.binary(min_size=32, max_size=32)
_KEY_IDS = st.binary(min_size=8, max_size=8)
_SEALED_IDS = st.binary(min_size=16, max_size=16)
_OFFSETS = st.integers(0, 262_143)
CHUNKS = st.sampled_from(["a", "b", "veh", "é", "x y"])
KEYS = st.lists(CHUNKS, min_size=1, max_size=5).map("/".join)
EXPRESSIONS = st.lists(st.one_of(CHUNKS, st.sampled_from(["*", "**"])), min_size=1, max_size=6).map("/".join)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor whose bytes fit its shape; dimensions of 0 and no dimension at all included."""
    dtype = draw(st.sampled_from(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    size_bytes = int(dtype[1])
    for dimension in shape:
        size_bytes *= dimension
    return Tensor(dtype, tuple(shape), memoryview(draw(st.binary(min_size=size_bytes, max_size=size_bytes))))  # type: ignore[arg-type]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), TEXT, st.binary(max_size=20)
)
VALUES = st.recursive(
    SCALARS | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
POSITIONS = st.builds(
    Position,
    st.floats(-90, 90),
    st.floats(-180, 180),
    st.floats(0, 1e6),
    st.none() | st.floats(-1e6, 1e9),
    st.none() | st.floats(0, 359.9),
)
PROVENANCES = st.builds(
    Provenance, TEXT, TEXT, st.floats(0, 1), TEXT, st.lists(TEXT, max_size=limits.MAX_LINEAGE).map(tuple)
)
READINGS = st.builds(
    Reading,
    KEYS,
    IDS,
    U64,
    VALUES,
    POSITIONS,
    st.builds(EventTime, U64, U64),
    PROVENANCES,
    st.integers(0, 7),
    st.integers(0, limits.MAX_LIFESPAN_MS),
    st.integers(0, limits.MAX_HOPS),
)
NAMED_TENSORS = st.lists(st.builds(NamedTensor, TEXT, tensors()), max_size=2).map(tuple)
_KINDS_OF_TENSORS = st.lists(
    st.builds(
        TensorKind, TEXT, st.sampled_from(["f4", "u1", "i8"]), st.lists(st.integers(-1, 2**40), max_size=8).map(tuple),
        st.lists(TEXT, max_size=2).map(tuple),
    ),
    max_size=3,
).map(tuple)  # fmt: skip
_NAMES = st.lists(TEXT, max_size=3).map(tuple)
_WANTS = st.builds(Want, EXPRESSIONS, U64, st.booleans(), st.booleans(), st.integers(0, limits.MAX_HOPS), st.booleans())

_FINGERPRINTS = st.lists(U64, max_size=32).map(encode_fingerprints)

_DATAGRAM_KEY_IDS = st.binary(min_size=limits.DATAGRAM_KEY_ID_BYTES, max_size=limits.DATAGRAM_KEY_ID_BYTES)

NODE_FRAMES: dict[type[Struct], st.SearchStrategy[Struct]] = {
    Hello: st.builds(Hello, U64, U64, IDS, U64, st.integers(0, 65_535), st.sampled_from(["realtime", "bulk"]), _NAMES),
    Heartbeat: st.builds(Heartbeat, U64, U64, U64, U64, U64, st.lists(IDS, max_size=8).map(tuple), st.booleans()),
    Goodbye: st.builds(Goodbye, U64, TEXT),
    Refusal: st.builds(Refusal, TEXT, TEXT),
    Interest: st.builds(Interest, U64, st.lists(_WANTS, max_size=4).map(tuple)),
    Readings: st.builds(Readings, st.lists(READINGS, max_size=3).map(tuple)),
    SignedReadings: st.builds(
        SignedReadings,
        st.integers(0, limits.MAX_HOPS),
        st.binary(min_size=limits.CERTIFICATE_ID_BYTES, max_size=limits.CERTIFICATE_ID_BYTES),
        st.binary(max_size=limits.MAX_SIGNATURE_BYTES),
        READINGS.map(encode_alone).map(memoryview),
    ),
    Offers: st.builds(
        Offers, U64, st.lists(st.builds(Offer, TEXT, DIGESTS, U64, U64, U64), max_size=3).map(tuple), U64, U64
    ),
    InferRequest: st.builds(InferRequest, U64, TEXT, DIGESTS, U64, NAMED_TENSORS, _NAMES),
    InferAnswer: st.builds(
        InferAnswer,
        U64,
        st.sampled_from(["done", "busy", "unknown", "invalid", "late", "failed"]),
        NAMED_TENSORS,
        U64,
        U64,
        TEXT,
        st.none() | U64,
    ),
    InferCancel: st.builds(InferCancel, U64),
    Signature: st.builds(Signature, DIGESTS, _KINDS_OF_TENSORS, _KINDS_OF_TENSORS),
    StageAsked: st.builds(StageAsked, DIGESTS, TEXT, DIGESTS, POSITIVE),
    StageWanted: st.builds(StageWanted, DIGESTS, U64),
    StageChunk: st.builds(StageChunk, DIGESTS, U64, st.binary(min_size=1, max_size=1024)),
    StageState: st.builds(
        StageState, DIGESTS, st.sampled_from(["ready", "busy", "refused", "failed", "dropped"]), TEXT, U64
    ),
    GossipDigest: st.builds(GossipDigest, U64, U64, st.one_of(st.just(b""), st.binary(min_size=512, max_size=512))),
    GossipHave: st.builds(GossipHave, U64, _FINGERPRINTS),
    GossipPull: st.builds(GossipPull, _FINGERPRINTS),
    GossipEntries: st.builds(
        GossipEntries,
        st.lists(st.builds(Carried, U64, st.binary(min_size=1, max_size=1024)), max_size=3).map(tuple),
    ),
    ContentWanted: st.builds(ContentWanted, st.lists(SHA256, max_size=3).map(tuple)),
    ContentHave: st.builds(ContentHave, SHA256, st.integers(0, 8_191), st.binary(max_size=1024)),
    ChunkWanted: st.builds(ChunkWanted, SHA256, _OFFSETS),
    ChunkPiece: st.builds(ChunkPiece, SHA256, _OFFSETS, st.binary(min_size=1, max_size=1024)),
    ChunkRefused: st.builds(ChunkRefused, SHA256, st.sampled_from(["unknown", "busy", "forbidden"])),
    ChunksComing: st.builds(ChunksComing, st.lists(SHA256, max_size=3).map(tuple)),
    CarrierOffer: st.builds(CarrierOffer, st.binary(max_size=8), U64),
    SealedBatch: st.builds(SealedBatch, _KEY_IDS, st.binary(min_size=1, max_size=64)),
    SealedState: st.builds(SealedState, _SEALED_IDS, TEXT),
    RelayReply: st.builds(RelayReply, _SEALED_IDS, st.binary(min_size=1, max_size=64)),
    SenderKey: st.builds(
        SenderKey,
        _DATAGRAM_KEY_IDS,
        st.binary(min_size=16, max_size=16),
        st.binary(max_size=65),
        st.integers(0, MAX_COUNTER),
        U64,
    ),
    Heard: st.builds(Heard, _DATAGRAM_KEY_IDS, st.booleans(), U64, st.lists(U64, max_size=16).map(tuple)),
}


@st.composite
def _fates(draw: st.DrawFn) -> tuple[Fate, ...]:
    """Up to three fates, in order and disjoint."""
    ends = sorted(draw(st.sets(POSITIVE, max_size=6)))
    states = st.sampled_from(["expired", "evicted", "refused"])
    return tuple(Fate(*range_, draw(states)) for range_ in zip(ends[::2], ends[1::2], strict=False))  # type: ignore[arg-type]


_RECEIPTS = st.builds(
    Receipt, IDS, IDS, U64, st.just(b"") | SHA256, SHA256,
    POSITIVE, POSITIVE, st.integers(1, limits.MAX_BATCH_RECORDS),
    st.binary(min_size=limits.CERTIFICATE_ID_BYTES, max_size=limits.CERTIFICATE_ID_BYTES),
    st.binary(min_size=1, max_size=limits.MAX_SIGNATURE_BYTES),
)  # fmt: skip
_RECORDS = st.builds(Record, POSITIVE, TEXT, READINGS.map(encode_reading).map(Raw))


RELAY_FRAMES: dict[type[Struct], st.SearchStrategy[Struct]] = {
    Batch: st.builds(
        Batch,
        U64,
        U64,
        IDS,
        U64,
        POSITIVE,
        st.lists(_RECORDS, max_size=2, unique_by=lambda record: record.sequence).map(
            lambda records: tuple(sorted(records, key=lambda record: record.sequence))
        ),
        _fates(),
        st.none() | _RECEIPTS,
        st.binary(max_size=limits.MAX_CERTIFICATE_BYTES),
    ),
    Acknowledgement: st.builds(
        Acknowledgement,
        st.lists(U64, max_size=5).map(tuple),
        st.lists(st.builds(RefusedRecord, U64, TEXT), max_size=3).map(tuple),
    ),
    RelayRefusal: st.builds(RelayRefusal, TEXT, TEXT),
    ReleasesAsked: st.builds(ReleasesAsked, U64, st.integers(0, 60_000)),
    ReleasesTold: st.builds(
        ReleasesTold,
        st.none() | st.builds(ReleaseNews, U64, U64, SHA256, SHA256, st.integers(1, limits.MAX_CHUNK_BYTES)),
    ),
    RelayChunkWanted: st.builds(RelayChunkWanted, SHA256),
    RelayChunk: st.builds(RelayChunk, SHA256, st.binary(max_size=1024), TEXT),
    RelayKeyAsked: st.builds(RelayKeyAsked),
    RelayKeyTold: st.builds(RelayKeyTold, U64, st.binary(min_size=1, max_size=64)),
    CarriedBatch: st.builds(CarriedBatch, IDS, _KEY_IDS, st.binary(min_size=1, max_size=64)),
    CarriedReply: st.builds(CarriedReply, st.binary(min_size=1, max_size=64)),
    PackedBatch: st.builds(PackedBatch, st.binary(min_size=1, max_size=64)),
    RecordsAsked: st.builds(
        RecordsAsked,
        st.text(min_size=1, max_size=20),
        st.booleans(),
        U64,
        U64,
        st.none() | st.builds(AskedBox, *[st.floats(-90, 90)] * 4),
        st.integers(1, limits.MAX_TOLD_RECORDS),
        TEXT,
    ),
    RecordsTold: st.builds(
        RecordsTold,
        U64,
        st.lists(st.builds(ToldRecord, IDS, TEXT, _RECORDS.map(lambda record: record.reading)), max_size=2).map(tuple),
        TEXT,
    ),
    OffersAsked: st.builds(OffersAsked, st.booleans()),
}
for _frame in (InferRequest, InferAnswer, InferCancel):
    RELAY_FRAMES[_frame] = NODE_FRAMES[_frame]
RELAY_FRAMES[OffersTold] = st.builds(
    OffersTold, IDS, NODE_FRAMES[Offers], st.lists(NODE_FRAMES[Signature], max_size=2).map(tuple)
)

# --- builders ------------------------------------------------------------------------------------------------------
MESH = MeshName("sim")
HERE = Position(48.77, 11.42, 1.0)
NOW_UTC_NS = 1_700_000_000 * limits.SECOND
WHEN = EventTime(NOW_UTC_NS, limits.MS)
HOW = Provenance("test", "1")


def reading(key: str = "veh/a/x", origin: str = "a", sequence: int = 1, value: object = 1, **more: object) -> Reading:
    """A reading with a plain context."""
    fields: dict[str, object] = {"where": HERE, "when": WHEN, "how": HOW, **more}
    return Reading(key, origin, sequence, value, **fields)  # type: ignore[arg-type]


def identity(node: str, role: Role = Role.VEHICLE, mesh: MeshName = MESH) -> PeerIdentity:
    """The identity that a certificate names."""
    return PeerIdentity(mesh, role, NodeId(node))


def engine(
    node: str = "me", role: Role = Role.VEHICLE, machines: Iterable[Machine] = (), **more: object
) -> Engine:  # fmt: skip
    """An engine that the test drives."""
    settings = NodeSettings(MESH, NodeId(node), role, Incarnation(1_000), 7000, **more)  # type: ignore[arg-type]
    return Engine(settings, Random(1), machines=machines)
