"""Bounds of single fields and of large frames: what is refused, on which side, and as what."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import InvalidName, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import Role, parse_untrusted_spiffe, spiffe_uri
from protocols.wire.codec import decode_untrusted_node_frame, decode_untrusted_relay_frame, encode_frame
from protocols.wire.encoding.messagepack import has_too_many_elements
from protocols.wire.encoding.values import listed, plain
from protocols.wire.entries import (
    InboxAddress,
    decode_untrusted_address,
    decode_untrusted_entry,
    encode_address,
    encode_entry,
)
from protocols.wire.gossip import Entry, GossipDigest, GossipHave, GossipPull
from protocols.wire.membership import Goodbye
from protocols.wire.parcels import (
    decode_untrusted_parcel,
    decode_untrusted_reading,
    decode_untrusted_record,
    encode_alone,
    encode_reading,
    frame_of_alone,
    reading_in_alone,
)
from protocols.wire.readings import Reading, SignedReadings
from protocols.wire.records import Batch, Fate, Record
from tests.tools.strategies import MESH, MODEST, READINGS, identity, reading

MANY = [0] * (limits.MAX_ELEMENTS + 1)
LARGE = bytes(limits.LARGE_FRAME_BYTES)


# --- large frames --------------------------------------------------------------------------------------------------
def test_large_frame_of_a_newer_minor_is_unknown_and_not_malformed() -> None:
    """A malformed frame ends the pipe; a neighbour with a newer version must be able to send what we don't know."""
    with pytest.raises(UnknownFrame):
        decode_untrusted_node_frame(msgpack.packb([90, LARGE]))
    with pytest.raises(UnknownFrame):
        decode_untrusted_node_frame(msgpack.packb([200, LARGE]))


@pytest.mark.parametrize(
    "head", [b"\xdd\x00\x00\x00\x02\x06", b"\x92\xa1x", b"\x82\x06", b"\xc4\x01", b"\x92\xcd\x00\x06"]
)
def test_large_frame_whose_number_can_not_be_read_at_once_is_malformed(head: bytes) -> None:
    """How many elements it may have depends on its type; a strange form of the head must not be a way around that."""
    with pytest.raises(RemoteProtocolError, match="short array") as caught:
        decode_untrusted_node_frame(head + msgpack.packb(LARGE))
    assert type(caught.value) is RemoteProtocolError


def test_large_frame_of_membership_with_a_long_text_is_refused_before_it_is_decoded() -> None:
    """These frames are small in every honest node, and a text of 16 MB is checked letter by letter."""
    with pytest.raises(RemoteProtocolError, match="too long a text"):
        decode_untrusted_node_frame(encode_frame(Goodbye(1, "x" * limits.LARGE_FRAME_BYTES)))
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_untrusted_node_frame(msgpack.packb([6, []])[:-1] + b"\xc1" + LARGE)


def test_value_of_too_many_elements_is_refused_at_its_source_and_by_everybody_else() -> None:
    """Half a megabyte of zeros holds up every node for as long as 16 MB of pixels do."""
    for value in (MANY, {str(number): 0 for number in range(limits.MAX_ELEMENTS // 2 + 1)}):
        with pytest.raises(ValueUnsupported, match="array or as bytes"):
            encode_reading(reading(value=value))
        raw = msgspec.msgpack.encode(reading(value=value))
        parcel = memoryview(b"\x92\x06\x91" + raw)
        with pytest.raises(RemoteProtocolError, match="elements"):
            decode_untrusted_parcel(SignedReadings(0, bytes(8), b"", parcel))
        with pytest.raises(RemoteProtocolError, match="elements"):
            decode_untrusted_record(Record(1, "rule", msgspec.Raw(raw)))
    fits = reading(value=MANY[:-100])
    assert decode_untrusted_reading(encode_reading(fits)) == fits


def test_elements_are_counted_only_while_there_may_be_too_many() -> None:
    """Each takes a byte at least. Counting 16,384 empty maps took 2 ms of the 7 ms that they kept other readings
    waiting. What is not looked at shows by a claim of too many in it, which only the decoder refuses."""
    most, claim = limits.MAX_ELEMENTS, b"\xdd\xff\xff\xff\xff"
    large = b"\xc6" + (1 << 20).to_bytes(4) + bytes(1 << 20)
    assert not has_too_many_elements(claim + bytes(most - 5))
    assert has_too_many_elements(claim + bytes(most))
    assert not has_too_many_elements(b"\x92" + large + claim + bytes(most - 20))
    assert has_too_many_elements(b"\x92" + claim + large)


def test_texts_of_every_length_are_counted_as_one_element() -> None:
    """Short ones have a way of their own, because a frame of readings may have a thousand."""
    for size in (0, 1, 31, 32, 200, 255, 256, 65_535, 65_536):
        texts = msgpack.packb(["a" * size] * 3 + [bytes(1 << 17)])
        assert has_too_many_elements(texts, 4)
        assert not has_too_many_elements(texts, 5)


# --- readings ------------------------------------------------------------------------------------------------------
def test_array_whose_elements_can_not_travel_says_why() -> None:
    """Its memory can't even be looked at, and "not a value" would help nobody."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueUnsupported, match=r"datetime64|dtype|elements"):
        encode_reading(reading(value=numpy.array(["2026-01-01"], "datetime64[s]")))


@MODEST
@given(READINGS)
def test_reading_for_the_disk_is_cut_out_of_its_frame_without_a_change(one: Reading) -> None:
    """It is encoded once for neighbours and once for the outbox, and a record must be the reading itself."""
    alone = encode_alone(one)
    assert reading_in_alone(alone) == encode_reading(one)
    assert frame_of_alone([alone]) == alone


def test_numpy_scalars_become_plain_numbers_and_arrays_stay() -> None:
    """A sensor driver that computes with NumPy publishes numbers that everybody can read."""
    numpy = pytest.importorskip("numpy")
    for scalar, expected in ((numpy.float32(0.5), 0.5), (numpy.int8(-3), -3), (numpy.bool_(True), True)):
        assert plain(scalar) == expected
        assert type(plain(scalar)) is type(expected)
    array, moment = numpy.array(7), numpy.datetime64("2026-01-01")
    assert plain(array) is array
    assert plain(moment) is moment
    assert plain("text") == "text"
    assert listed(numpy.array([1.5, 2.5])) == listed((numpy.float64(1.5), 2.5)) == [1.5, 2.5]
    assert [type(value) for value in listed(numpy.array([1, 2]))] == [int, int]


# --- gossip --------------------------------------------------------------------------------------------------------
def test_entry_of_an_unprintable_kind_is_refused() -> None:
    """Kinds are shown to people, and an escape sequence in one would rewrite their terminal."""
    entry = Entry("a", "address\x1b[2J", 1, 60, b"", b"", b"")
    with pytest.raises(RemoteProtocolError, match="printable"):
        decode_untrusted_entry(encode_entry(entry))
    assert decode_untrusted_entry(encode_entry(replace(entry, kind="address"))).kind == "address"


def test_address_comes_back_and_anything_else_is_refused() -> None:
    """Its body is signed by its author, who may still be hostile or newer."""
    address = InboxAddress("rsu", 7000, ("192.0.2.1", "2001:db8::1"))
    assert decode_untrusted_address(encode_address(address)) == address
    for body in (b"", b"\xc0", msgpack.packb(["rsu", 70_000, []]), msgpack.packb(["rsu", 1, "::1"])):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted_address(body)


@pytest.mark.parametrize(
    "frame",
    [GossipDigest(1, 1, bytes(8)), GossipHave(0, bytes(9)), GossipPull(bytes(7)), GossipHave(1, bytes(1))],
    ids=["some buckets", "half a fingerprint", "pull", "list"],
)
def test_fingerprints_that_do_not_come_out_even_are_malformed(frame: GossipDigest | GossipHave | GossipPull) -> None:
    """Gossip looks at buckets by their number, without another check."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_node_frame(encode_frame(frame))


# --- records -------------------------------------------------------------------------------------------------------
def test_batch_whose_records_or_fates_are_in_disorder_is_refused() -> None:
    """The relay merges them in one pass; a disorder kept it from everybody else for minutes."""
    raw = msgspec.Raw(encode_reading(reading()))
    records = tuple(Record(sequence, "rule", raw) for sequence in (1, 2))
    fates = (Fate(3, 4, "expired"), Fate(5, 5, "evicted"))
    good = Batch(1, 0, "a", 1, 9, records, fates)
    assert decode_untrusted_relay_frame(encode_frame(good)) == good
    for bad in (
        replace(good, records=records[::-1]), replace(good, records=records[:1] * 2),
        replace(good, fates=fates[::-1]), replace(good, fates=(Fate(4, 3, "expired"),)),
        replace(good, fates=(fates[0], fates[0])), replace(good, node="a/b"),
    ):  # fmt: skip
        with pytest.raises(RemoteProtocolError):
            decode_untrusted_relay_frame(encode_frame(bad))


# --- names ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("spiffe://sim/pilot/a", "unknown role"),
        ("https://sim/vehicle/a", "of the form"),
        ("spiffe://sim/vehicle/a/b", "of the form"),
        ("spiffe://sim/vehicle/A", "node"),
        ("", "of the form"),
    ],
)
def test_identity_that_nobody_can_have_is_refused_with_the_reason(uri: str, match: str) -> None:
    """Certificates come from strangers, and an id with a wildcard would match every rule of access."""
    with pytest.raises(InvalidName, match=match):
        parse_untrusted_spiffe(uri)
    me = identity("a", Role.RSU)
    assert parse_untrusted_spiffe(spiffe_uri(MESH, Role.RSU, me.node)) == (MESH, Role.RSU, "a")
