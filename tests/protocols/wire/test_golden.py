"""Golden bytes: the wire of version 1, one file a frame, judged by our codec and by an independent MessagePack.

A change that makes a file differ breaks every node on the road. New minor versions add files, they never edit one.
``python -m tests.protocols.wire.test_golden`` writes the files that are missing.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from msgspec import Raw, Struct

from protocols.base.errors import RemoteProtocolError
from protocols.records.carrying.sealed import encode_relay_key, encode_reply
from protocols.wire.asking.frames import AskedBox, RecordsAsked, RecordsTold, ToldRecord
from protocols.wire.carrying.contents import RelayKey, SignedReply
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
from protocols.wire.codec import KNOWN_NUMBERS, decode_untrusted_node_frame, decode_untrusted_relay_frame, encode_frame
from protocols.wire.entries import encode_address, encode_entry, encode_fingerprints, entry_statement
from protocols.wire.frame import Frame, number_of
from protocols.wire.gossip import Carried, Entry, GossipDigest, GossipEntries, GossipHave, GossipPull, InboxAddress
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
from protocols.wire.multicast.frames import Heard, SenderKey
from protocols.wire.parcels import encode_alone, encode_reading, encode_signed, reading_statement
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings, SignedReadings, Want
from protocols.wire.receipts import encode_receipt, receipt_statement, record_leaf
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

FOLDER = Path(__file__).parents[2] / "golden" / "v1"
DIGEST = "5f" * 32
WHERE = Position(48.7665, 11.4258, 2.5, 374.0, 271.5)
WHEN = EventTime(1_700_000_000_123_456_789, 10_000_000)
BRAKE = Reading(
    "veh/veh-1/brake", "veh-1", 4_294_967_297, True, WHERE, WHEN, Provenance("imu", "1", 0.9, "cal-7", ("imu/raw",)),
    7, 2_000, 1,
)  # fmt: skip
SPEED = Reading("veh/veh-1/speed", "veh-1", 2, 13.9, Position(-33.5, 151.0, 5.0), WHEN, Provenance("wheel", "m/s"))
MIXED = Reading(
    "rsu/rsu-1/scene", "rsu-1", 3,
    {"count": 2, "below": -5, "labels": ["car", "bus"], "raw": b"\x00\xff", "none": None,
     "box": Tensor("u2", (2, 2), memoryview(b"\x01\x00\x02\x00\x03\x00\x04\x00"))},
    WHERE, WHEN, Provenance("camera", "1"),
)  # fmt: skip
IMAGE = NamedTensor("image", Tensor("f4", (1, 2), memoryview(b"\x00\x00\x80?\x00\x00\x00@")))

ENTRY = Entry(
    "veh-1", "address", 1_700_000_000 << 20, 86_400,
    encode_address(InboxAddress("vehicle", 7447, ("192.0.2.7",), ("plate",))), b"(certificate)", b"(signature)",
)  # fmt: skip
FINGERPRINTS = encode_fingerprints([0x0123456789ABCDEF, 0x5F])

BRAKE_RECORD = Record(6, "brakes", Raw(encode_reading(BRAKE)))
RECEIPT = Receipt(
    "demo", "veh-1", 1_700_000_000, bytes(range(32)), hashlib.sha256(b"\0" + record_leaf(BRAKE_RECORD)).digest(), 6, 6,
    1, bytes(range(8)), b"(signature)",
)  # fmt: skip

KEY_ENTRY = Entry(
    "relay-1", "relay-key", 1_700_000_000 << 20, 604_800, encode_relay_key(RelayKey(1, bytes(range(32)), zstd=True)),
    b"(certificate)", b"(signature)",
)  # fmt: skip
REPLY = SignedReply(
    "demo", "relay-1", "veh-1", bytes(range(16)), encode_frame(Acknowledgement((6, 7))), b"(certificate)",
    b"(signature)",
)  # fmt: skip

FRAMES: dict[str, Frame] = {
    "01-hello": Hello(1, 0, "veh-1", 1_700_000_000, 7447, "realtime", ("192.0.2.7", "2001:db8::7")),
    "02-heartbeat": Heartbeat(17, 5_000_000_000, 16, 4_750_000_000, 1_500_000, ("rsu-2",), True),
    "03-goodbye": Goodbye(1_700_000_000, "stopped"),
    "04-refusal": Refusal("version", "it speaks version 2.0, this node 1.0"),
    "05-interest": Interest(3, (Want("veh/*/brake", 0, False, True, 1), Want("**", 100_000, True, False, 0))),
    "05-interest-every": Interest(3, (Want("veh/*/brake", 0, False, True, 1, True), Want("**", 100_000, True, False))),
    "06-readings": Readings((BRAKE, SPEED, MIXED)),
    "07-offers": Offers(9, (Offer("plate", DIGEST, 48_000, 2),)),
    "07-offers-load": Offers(9, (Offer("plate", DIGEST, 48_000, 2, 61_000),), 96_000, 2),
    "07-offers-runs": Offers(9, (Offer("plate", DIGEST, 48_000, 2, 61_000),), 96_000, 2, 8),
    "08-infer-request": InferRequest(42, "plate", DIGEST, 250_000, (IMAGE,), ("boxes",)),
    "09-infer-answer": InferAnswer(42, "done", (IMAGE,), 1_200, 47_000, ""),
    "09-infer-answer-load": InferAnswer(42, "done", (IMAGE,), 1_200, 47_000, "", 96_000),
    "10-infer-cancel": InferCancel(42),
    "11-gossip-digest": GossipDigest(0x0123456789ABCDB0, 2, encode_fingerprints([*range(63), 0x0123456789ABCDEF])),
    "12-gossip-have": GossipHave(1 << 63 | 1 << 31, FINGERPRINTS),
    "13-gossip-pull": GossipPull(FINGERPRINTS),
    "14-gossip-entries": GossipEntries((Carried(1_500, encode_entry(ENTRY)),)),
    "15-signed-readings": SignedReadings(1, bytes(range(8)), b"(signature)", memoryview(encode_alone(BRAKE))),
    "16-signature": Signature(
        DIGEST, (TensorKind("image", "f4", (1, 3, -1, -1), ("", "", "height", "width")),), (TensorKind("n", "i8", ()),)
    ),
    "17-stage-asked": StageAsked(DIGEST, "plate", DIGEST[::-1], 1_700_000),
    "18-stage-wanted": StageWanted(DIGEST, 131_072),
    "19-stage-chunk": StageChunk(DIGEST, 131_072, b"(part of a stage)"),
    "20-stage-state": StageState(DIGEST, "ready", "", 9_500),
    "21-content-wanted": ContentWanted((bytes(range(32)),)),
    "22-content-have": ContentHave(bytes(range(32)), 8, b"\x81"),
    "23-chunk-wanted": ChunkWanted(bytes(range(32)), 16_384),
    "24-chunk-piece": ChunkPiece(bytes(range(32)), 16_384, b"(piece of a chunk)"),
    "25-chunk-refused": ChunkRefused(bytes(range(32)), "forbidden"),
    "26-chunks-coming": ChunksComing((bytes(range(32)),)),
    "27-carrier-offer": CarrierOffer(bytes(range(8)), 16_777_216),
    "28-sealed-batch": SealedBatch(bytes(range(8)), b"(sealed)"),
    "29-sealed-state": SealedState(bytes(range(16)), "taken"),
    "30-relay-reply": RelayReply(bytes(range(16)), encode_reply(REPLY)),
    "31-sender-key": SenderKey(bytes(range(8)), bytes(range(16)), b"(point of P-256)", 41, 7),
    "32-heard": Heard(bytes(range(8)), True, 7, (5, 6)),
    "64-batch": Batch(1, 0, "veh-1", 1_700_000_000, 8, (BRAKE_RECORD,), (Fate(1, 5, "expired"),)),
    "64-batch-receipt": Batch(
        1, 7, "veh-1", 1_700_000_000, 8, (BRAKE_RECORD,), (Fate(1, 5, "expired"),), RECEIPT, b"(certificate)"
    ),
    "65-acknowledgement": Acknowledgement((6, 7), (RefusedRecord(8, "no such key"),)),
    "66-relay-refusal": RelayRefusal("storage", "the relay's disk does not take records now"),
    "67-releases-asked": ReleasesAsked(41, 20_000),
    "68-releases-told": ReleasesTold(ReleaseNews(1, 42, bytes(range(32)), bytes(range(32, 64)), 4_300)),
    "69-relay-chunk-wanted": RelayChunkWanted(bytes(range(32))),
    "70-relay-chunk": RelayChunk(bytes(range(32)), b"(chunk)"),
    "71-relay-key-asked": RelayKeyAsked(),
    "72-relay-key-told": RelayKeyTold(1_500, encode_entry(KEY_ENTRY)),
    "73-carried-batch": CarriedBatch("veh-1", bytes(range(8)), b"(sealed)"),
    "74-carried-reply": CarriedReply(encode_reply(REPLY)),
    "75-packed-batch": PackedBatch(b"(packed)"),
    "76-records-asked": RecordsAsked(
        "rsu/*/hazard", True, 1_700_000_000_000_000_000, 600_000, AskedBox(48.5, 11.25, 48.75, 11.5), 20, ""
    ),
    "77-records-told": RecordsTold(
        1_700_000_000_500_000_000, (ToldRecord("veh-1", "brakes", BRAKE_RECORD.reading),), "1700000000000000000.6.veh-1"
    ),
    "78-offers-asked": OffersAsked(True),
    "79-offers-told": OffersTold(
        "relay-1",
        Offers(7, (Offer("plate", DIGEST, 42_000, 2, 55_000),), 84_000, 2),
        (
            Signature(
                DIGEST,
                (TensorKind("image", "f4", (-1, 3, 640, 640), ("batch", "", "", "")),),
                (TensorKind("boxes", "f4", (-1, 6)),),
            ),
        ),
    ),
}

EARLIER = frozenset({"05-interest", "07-offers", "07-offers-load", "09-infer-answer", "64-batch"})
"""Frames of an earlier minor version, to which fields were appended since: they are understood, and not written."""
WRITTEN = [name for name in FRAMES if name not in EARLIER]


def stored(name: str) -> bytes:
    """The bytes of a golden file; what follows ``#`` describes them."""
    lines = (FOLDER / f"{name}.hex").read_text("utf-8").splitlines()
    return bytes.fromhex("".join(line.partition("#")[0] for line in lines))


def decode(name: str, data: bytes) -> Frame:
    """By the decoder of its side."""
    if int(name[:2]) < 64:
        return decode_untrusted_node_frame(data)
    return decode_untrusted_relay_frame(data)


def plain(value: Any) -> Any:
    """A struct as the arrays that MessagePack knows, for comparison with an independent decoder."""
    if isinstance(value, Tensor):
        return [value.dtype, list(value.shape), bytes(value.data)]
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, Raw):
        return independent(bytes(value))
    if hasattr(value, "__struct_fields__"):
        tag = value.__struct_config__.tag
        fields = [plain(getattr(value, name)) for name in value.__struct_fields__]
        return fields if tag is None else [tag, *fields]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def independent(data: bytes) -> Any:
    """As any MessagePack library reads it; extension 1 holds an array."""
    return msgpack.unpackb(data, ext_hook=lambda code, inner: independent(inner) if code == 1 else (code, inner))


def test_golden_files_are_one_per_frame_type() -> None:
    """A type without golden bytes could change unnoticed."""
    assert {path.stem for path in FOLDER.glob("*.hex")} == set(FRAMES)
    assert {int(name[:2]) for name in FRAMES} == KNOWN_NUMBERS


@pytest.mark.parametrize("name", WRITTEN)
def test_golden_frame_is_encoded_to_the_stored_bytes(name: str) -> None:
    """Nodes of this version speak to those that were built last year."""
    assert encode_frame(FRAMES[name]).hex() == stored(name).hex()


@pytest.mark.parametrize("name", FRAMES)
def test_golden_frame_is_decoded_to_the_described_fields(name: str) -> None:
    """And understand them."""
    assert decode(name, stored(name)) == FRAMES[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_golden_frame_is_read_by_an_independent_messagepack(name: str) -> None:
    """A second implementation starts from the specification, not from our library."""
    read = independent(stored(name))
    assert read == plain(FRAMES[name])
    assert read[0] == int(name[:2])


@pytest.mark.parametrize("name", FRAMES)
def test_golden_frame_cut_at_every_byte_is_malformed(name: str) -> None:
    """A truncated frame says nothing, and says so by the one error."""
    whole = stored(name)
    for length in range(len(whole)):
        with pytest.raises(RemoteProtocolError) as caught:
            decode(name, whole[:length])
        assert type(caught.value) is RemoteProtocolError


@pytest.mark.parametrize("name", FRAMES)
def test_golden_frame_with_every_byte_replaced_never_raises_anything_else(name: str) -> None:
    """Every position, a few telling values: headers of the largest claims, ends of ranges."""
    whole = bytearray(stored(name))
    for at, good in enumerate(whole):
        for bad in (0x00, 0x7F, 0x80, 0xC1, 0xC6, 0xC9, 0xDB, 0xDD, 0xDF, 0xFF, good ^ 0x01):
            whole[at] = bad
            try:
                decode(name, bytes(whole))
            except RemoteProtocolError:
                continue
        whole[at] = good


class _WantOf12(Struct, frozen=True, array_like=True):
    """A want as version 1.2 knew it."""

    expression: str
    min_interval_us: int = 0
    conflate: bool = False
    history: bool = True
    hops: int = 0


class _InterestOf12(Struct, frozen=True, array_like=True, tag=5):
    version: int
    wants: tuple[_WantOf12, ...]


def test_want_of_every_reading_is_understood_without_it_by_version_1_2() -> None:
    """A node that was built last year sends the newest of a key where its lane can't keep up, and nothing breaks."""
    frame = msgspec.msgpack.decode(stored("05-interest-every"), type=_InterestOf12)
    assert frame == _InterestOf12(3, (_WantOf12("veh/*/brake", hops=1), _WantOf12("**", 100_000, True, False)))


def test_golden_signed_readings_are_put_together_to_the_same_bytes() -> None:
    """The encoder of the hot path must give what the codec gives."""
    frame = FRAMES["15-signed-readings"]
    assert isinstance(frame, SignedReadings)
    assert encode_signed(frame.hops, frame.certificate, frame.signature, frame.parcel) == stored("15-signed-readings")


WIRE_PAGE = Path(__file__).parents[3] / "docs" / "reference" / "wire.md"


def shown(first: str) -> bytes:
    """The bytes of the example on the page whose first line starts so; texts stand in quotes, remarks after a gap."""
    page = WIRE_PAGE.read_text("utf-8")
    block = page[page.index("```\n" + first) + 4 :].partition("```")[0]
    data = b""
    for line in block.splitlines():
        if set(line) & set("│└"):
            break
        for quoted, digits in re.findall(r'"([^"]*)"|([0-9a-f]+)', re.split(r"\s{3,}", line.strip())[0]):
            data += quoted.encode() if quoted else bytes.fromhex(digits)
    return data


def test_wire_page_shows_the_golden_bytes() -> None:
    """Whoever implements the page would otherwise implement its mistakes."""
    assert shown("98 01 01 00") == stored("01-hello")
    assert shown("98 02 11") == stored("02-heartbeat")
    assert shown("92 06 91") == encode_frame(Readings((BRAKE,)))
    assert shown("95 0f 01") == stored("15-signed-readings")
    beginning = shown("6d 65 73 68 6e 6f 64 65 20 72 65 61")
    assert reading_statement(encode_alone(BRAKE)).startswith(beginning)
    assert shown("c7 11 01") in stored("06-readings")
    assert shown("9a a4") == encode_receipt(RECEIPT)
    assert shown("6d 65 73 68 6e 6f 64 65 20 72 65 63 65") == receipt_statement(RECEIPT)
    assert shown("97 a5") == encode_entry(ENTRY)
    assert shown("6d 65 73 68 6e 6f 64 65 20 65") == entry_statement(ENTRY)


def test_wire_page_lists_every_frame_by_its_number() -> None:
    """The table of frames is what a second implementation goes through."""
    page = WIRE_PAGE.read_text("utf-8")
    for kind in {type(frame) for frame in FRAMES.values()}:
        number, name = number_of(kind), kind.__name__
        assert f"\n| {number} | [{name}](#{name.lower()}-{number}) |" in page
        assert f"\n### {name} ({number})\n" in page


def test_wire_page_names_every_field_of_every_frame() -> None:
    """A field that the page forgets can't be implemented."""
    page = WIRE_PAGE.read_text("utf-8")
    for kind in (
        *map(type, FRAMES.values()),
        Reading,
        Position,
        EventTime,
        Provenance,
        Tensor,
        Want,
        Offer,
        Record,
        Fate,
        Entry,
        InboxAddress,
        Carried,
    ):
        assert [field for field in kind.__struct_fields__ if f"`{field}`" not in page] == [], kind.__name__
    for kind in map(type, FRAMES.values()):
        assert f"### {kind.__name__} ({kind.__struct_config__.tag})" in page


def _described(name: str, frame: Frame) -> str:
    data = encode_frame(frame).hex()
    fields = [f"#   {field} = {plain(getattr(frame, field))!r}" for field in frame.__struct_fields__]
    lines = [data[at : at + 64] for at in range(0, len(data), 64)]
    return "\n".join([f"# {type(frame).__name__}, type {int(name[:2])}", *fields, *lines, ""])


if __name__ == "__main__":
    for file_name, file_frame in FRAMES.items():
        file = FOLDER / f"{file_name}.hex"
        if not file.exists():
            file.write_text(_described(file_name, file_frame), "utf-8")
