"""Bytes from strangers: what the codec gives back, and that it never does anything else than refuse."""

import array
import contextlib
import math
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import NodeId
from protocols.wire import codec, registry
from protocols.wire.codec import (
    decode_untrusted_node_frame,
    decode_untrusted_relay_frame,
    encode_frame,
    encode_heartbeat,
    untrusted_other_major,
)
from protocols.wire.encoding.values import MAX_VALUE_DEPTH
from protocols.wire.membership import Heartbeat, Hello
from protocols.wire.parcels import (
    decode_untrusted_reading,
    decode_untrusted_record,
    encode_reading,
    frame_of_encoded_readings,
)
from protocols.wire.readings import Position, Reading, Readings
from protocols.wire.records import Batch, Record
from protocols.wire.tensors import Tensor, tensor_of
from tests.tools.strategies import MODEST, NODE_FRAMES, READINGS, RELAY_FRAMES, THOROUGH, reading

pack = msgspec.msgpack.encode


def raw_reading(value: bytes, where: object = (1.0, 2.0, 3.0), key: object = "veh/a/x", origin: object = "a") -> bytes:
    """A reading with any bytes as its value."""
    return b"\x97" + pack(key) + pack(origin) + b"\x01" + value + pack(where) + b"\x92\x01\x01" + b"\x92\xa1s\xa1m"


def raw_frame(*readings: bytes) -> bytes:
    """A Readings frame."""
    return b"\x92\x06" + bytes([0x90 + len(readings)]) + b"".join(readings)


# --- there and back ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", NODE_FRAMES, ids=lambda kind: kind.__name__)
def test_node_frame_of_every_type_comes_back_equal(kind: type[Struct]) -> None:
    """The wire loses nothing, for every type and its corners."""

    @MODEST
    @given(NODE_FRAMES[kind])
    def there_and_back(frame: Any) -> None:
        assert decode_untrusted_node_frame(encode_frame(frame)) == frame

    there_and_back()


@pytest.mark.parametrize("kind", RELAY_FRAMES, ids=lambda kind: kind.__name__)
def test_relay_frame_of_every_type_comes_back_equal(kind: type[Struct]) -> None:
    """A record reaches the relay as it was curated, tensors inside lists included."""

    @MODEST
    @given(RELAY_FRAMES[kind])
    def there_and_back(frame: Any) -> None:
        assert decode_untrusted_relay_frame(encode_frame(frame)) == frame

    there_and_back()


def test_strategies_cover_every_frame_of_the_unions() -> None:
    """A frame added later must not escape these tests."""
    assert set(NODE_FRAMES) == set(registry.NODE_FRAMES)
    assert set(RELAY_FRAMES) == set(registry.RELAY_FRAMES)
    assert {kind.__struct_config__.tag for kind in (*NODE_FRAMES, *RELAY_FRAMES)} == codec.KNOWN_NUMBERS


@MODEST
@given(st.lists(READINGS, min_size=1, max_size=20))
def test_readings_encoded_one_by_one_are_the_frame_of_all(many: list[Reading]) -> None:
    """The publisher's shortcut, one encoding for all neighbours, must give the very same bytes."""
    assert frame_of_encoded_readings([encode_reading(one) for one in many]) == encode_frame(Readings(tuple(many)))


def test_readings_frame_of_the_largest_count_is_decoded() -> None:
    """Above 15 the array header changes its form."""
    for count in (1, 15, 16, limits.MAX_READINGS_PER_FRAME):
        frame = frame_of_encoded_readings([encode_reading(reading())] * count)
        assert decode_untrusted_node_frame(frame) == Readings((reading(),) * count)


@MODEST
@given(READINGS)
def test_reading_passed_on_is_the_same_bytes(one: Reading) -> None:
    """What a node decodes it must be able to encode again, or forwarding would change or kill it."""
    data = encode_reading(one)
    assert encode_reading(decode_untrusted_reading(data)) == data


def test_tensor_inside_a_list_stays_a_tensor_when_passed_on() -> None:
    """It once came out as a list of dtype, shape and data after one hop."""
    value = {"images": [tensor_of(array.array("f", [1.0, 2.0]))]}
    once = decode_untrusted_reading(encode_reading(reading(value=value)))
    twice = decode_untrusted_reading(encode_reading(once))
    assert type(twice.value["images"][0]) is Tensor
    assert twice == once


# --- strangers -----------------------------------------------------------------------------------------------------
@THOROUGH
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decoded_never_anything_else(data: bytes) -> None:
    """One other exception on the receiving thread would stop a node."""
    for decode in (decode_untrusted_node_frame, decode_untrusted_relay_frame, decode_untrusted_reading):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


@pytest.mark.parametrize("kind", NODE_FRAMES, ids=lambda kind: kind.__name__)
def test_frame_with_one_byte_changed_is_refused_or_decoded(kind: type[Struct]) -> None:
    """Nearly valid bytes reach deeper than random ones."""

    @MODEST
    @given(NODE_FRAMES[kind], st.data())
    def flip(frame: Any, data: st.DataObject) -> None:
        good = bytearray(encode_frame(frame))
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(RemoteProtocolError):
            decode_untrusted_node_frame(bytes(good))

    flip()


@pytest.mark.parametrize("frame_type", [0, 15, 63, 64, 95, 127, 128, 255])
def test_frame_of_unknown_type_is_named_or_refused(frame_type: int) -> None:
    """A newer minor version adds types; its frames are skipped, not its link closed. Relay types are no such thing."""
    data = b"\x92" + pack(frame_type) + b"\x01"
    if frame_type in codec.KNOWN_NUMBERS:
        with pytest.raises(RemoteProtocolError, match="malformed"):
            decode_untrusted_node_frame(data)
    else:
        with pytest.raises(UnknownFrame) as caught:
            decode_untrusted_node_frame(data)
        assert caught.value.frame_type == frame_type


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\x91", b"\xdc\x00", b"\x92\xcc", b"\x92\xcd\x01\x00\x01", b"\xc0", b"\x80"]
)
def test_frame_without_a_type_is_malformed(data: bytes) -> None:
    """Nothing there to skip by."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode_untrusted_node_frame(data)
    assert type(caught.value) is RemoteProtocolError


def test_unknown_type_in_a_long_array_is_named() -> None:
    """A newer frame may have more than fifteen fields."""
    with pytest.raises(UnknownFrame):
        decode_untrusted_node_frame(b"\xdc\x00\x10\x3e" + b"\x01" * 15)


@pytest.mark.parametrize("kind", [*NODE_FRAMES, *RELAY_FRAMES], ids=lambda kind: kind.__name__)
def test_extra_trailing_fields_are_accepted(kind: type[Struct]) -> None:
    """A newer minor version appends fields."""
    decode = decode_untrusted_node_frame if kind in NODE_FRAMES else decode_untrusted_relay_frame

    @MODEST
    @given({**NODE_FRAMES, **RELAY_FRAMES}[kind])
    def longer(frame: Any) -> None:
        array_of_fields = msgspec.msgpack.decode(
            encode_frame(frame), ext_hook=lambda code, data: msgspec.msgpack.Ext(code, bytes(data))
        )
        assert decode(pack([*array_of_fields, {"newer": [1, 2]}, "more"])) == frame

    longer()


def test_trailing_bytes_after_a_frame_are_malformed() -> None:
    """Two readings of one stream of bytes would let two implementations disagree about what was said."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_node_frame(encode_frame(Heartbeat(1, 2, 0, 0, 0)) + b"\x00")


@pytest.mark.parametrize(
    ("data", "major"),
    [
        (b"\x92\x01\x02", 2),
        (b"\x92\x01\x00", 0),
        (b"\x98\x01\x7f" + b"\xc1" * 5, 127),
        (b"\x92\x01\x01", None),
        (b"\x92\x02\x02", None),
        (b"\x92\x01", None),
        (b"\x92\x01\xcc\x02", None),
        (b"", None),
    ],
)
def test_hello_of_another_major_is_recognised_whatever_follows(data: bytes, major: int | None) -> None:
    """The rest of another major version may not parse; the refusal must still say "version"."""
    assert untrusted_other_major(data) == major


# --- odd values ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bad",
    [
        raw_reading(b"\x01", where=(math.nan, 0.0, 0.0)),
        raw_reading(b"\x01", where=(0.0, math.nan, 0.0)),
        raw_reading(b"\x01", where=(0.0, 0.0, math.nan)),
        raw_reading(b"\x01", where=(0.0, 0.0, -1.0)),
        raw_reading(b"\x01", where=(0.0, 0.0, 1.0, math.nan)),
        raw_reading(b"\x01", where=(0.0, 0.0, 1.0, math.inf)),
        raw_reading(b"\x01", where=(0.0, 0.0, 1.0, None, math.nan)),
        raw_reading(b"\x01", where=(0.0, 0.0, 1.0, None, 360.0)),
        raw_reading(b"\x01", where=(90.1, 0.0, 0.0)),
        raw_reading(b"\x01", key=""),
        raw_reading(b"\x01", key="k" * 201),
        raw_reading(b"\x01", origin=""),
        raw_reading(b"\x81\x01\x01"),
        raw_reading(b"\x81\x91\x01\x01"),
        raw_reading(b"\x91\x81\x01\x01"),
        raw_reading(b"\x81\x80\x01"),
        raw_reading(b"\xd4\x05\x00"),
        raw_reading(b"\xa1\xff"),
        raw_reading(b"\xc7\x0c\xff" + b"\xff" * 12),
        raw_reading(pack(msgspec.msgpack.Ext(1, pack(["u8", [2**63] * 8, b""])))),
        raw_reading(pack(msgspec.msgpack.Ext(1, pack(["u1", [3], b"ab"])))),
        raw_reading(pack(msgspec.msgpack.Ext(1, pack(["u1", [-1], b""])))),
        raw_reading(pack(msgspec.msgpack.Ext(1, pack(["u1", [1] * 9, b"a"])))),
        raw_reading(pack(msgspec.msgpack.Ext(1, b""))),
    ],
)
def test_reading_with_an_odd_value_is_refused(bad: bytes) -> None:
    """Each of these would crash or mislead somebody further on: a map, a database, a neighbour's encoder."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_node_frame(raw_frame(bad))
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_reading(bad)


def test_frame_of_strange_ids_and_digests_is_refused() -> None:
    """A ``$`` in a pattern lets a newline through; an id that is no DNS label has no certificate."""
    for data in (
        pack([7, 1, [["m", "a" * 64 + "\n", 1]]]),
        pack([7, 1, [["m", "A" * 64, 1]]]),
        pack([1, 1, 0, "Not-An-Id", 1, 1, "realtime"]),
        pack([1, 1, 0, "a", 1, 65_536, "realtime"]),
        pack([1, 1, 0, "a", 1, 1, "express"]),
        pack([2, -1, 0, 0, 0, 0]),
        pack([8, 1, "m", "a" * 64, 1, [["x", ["u1", [2], b"a"]]]]),
        pack([9, 1, "done", [["x", ["u1", [2], b"a"]]]]),
    ):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted_node_frame(data)
    for data in (
        pack([64, 1, 0, "Not", 1, 1]),
        pack([64, 1, 0, "a", 1, 1, [], [[5, 4, "expired"]]]),
        pack([64, 1, 0, "a", 1, 0]),
    ):
        with pytest.raises(RemoteProtocolError):
            decode_untrusted_relay_frame(data)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k"])
def test_value_nested_to_the_bound_passes_and_one_deeper_does_not(opening: bytes) -> None:
    """A node that can decode it must be able to pass it on, print it and store it."""
    at_bound = raw_reading(opening * MAX_VALUE_DEPTH + b"\x01")
    assert encode_reading(decode_untrusted_reading(at_bound))
    with pytest.raises(RemoteProtocolError, match="nested"):
        decode_untrusted_reading(raw_reading(opening * (MAX_VALUE_DEPTH + 1) + b"\x01"))
    with pytest.raises(RemoteProtocolError, match="nested"):
        decode_untrusted_node_frame(raw_frame(raw_reading(opening * (MAX_VALUE_DEPTH + 1) + b"\x01")))


@pytest.mark.parametrize(
    "data",
    [
        raw_frame(raw_reading(b"\x91" * 200_000 + b"\x01")),
        raw_frame(raw_reading(b"\x81" * 200_000 + b"\x01")),
        b"\x93\x0a\x01" + b"\x91" * 200_000,
        b"\x92\x0b" + b"\x91" * 200_000,
        raw_frame(raw_reading(pack(msgspec.msgpack.Ext(1, b"\x91" * 200_000)))),
    ],
    ids=["value", "keys", "extra field", "unknown frame", "extension"],
)
def test_frame_nested_without_end_is_refused(data: bytes) -> None:
    """A decoder that recurses on the C stack would take the process with it."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_node_frame(data)


@pytest.mark.processes
def test_frame_that_claims_huge_lengths_takes_no_memory() -> None:
    """A header of five bytes can claim 4 billion elements; in a process of its own, since a bad one dies of it."""
    script = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.base.errors import RemoteProtocolError
head, tail = b"\\x92\\x06\\x91\\x97\\xa7veh/a/x\\xa1a\\x01", b""
lengths = (b"\\xff\\xff\\xff\\xff", b"\\x7f\\xff\\xff\\xff", b"\\x10\\x00\\x00\\x00")
for claim in lengths:
    for kind in (b"\\xdd", b"\\xdf", b"\\xdb", b"\\xc6", b"\\xc9"):
        for before in (head, b"\\x92\\x06", b"\\x93\\x07\\x01", b""):
            data = before + kind + claim
            try:
                decode_untrusted_node_frame(data)
            except RemoteProtocolError:
                continue
            raise SystemExit(f"taken: {data!r}")
for nested in (b"\\xdc\\xff\\xff" * 1000, b"\\xdd\\x00\\xff\\xff\\xff" * 1000):
    try:
        decode_untrusted_node_frame(head + nested)
    except RemoteProtocolError:
        continue
    raise SystemExit("taken")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_frame_above_the_bound_is_refused_before_it_is_read() -> None:
    """The link engine has the same bound; two locks are better than one."""
    with pytest.raises(RemoteProtocolError, match="larger"):
        decode_untrusted_node_frame(bytes(limits.MAX_FRAME_BYTES + 1))


# --- encoding ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, object(), {1: 2}, {"a": {b"k": 1}}, "\ud800", 1j, [object()], bytes(limits.MAX_FRAME_BYTES)],
    ids=["above", "below", "object", "int key", "bytes key", "surrogate", "complex", "in list", "large"],
)
def test_value_that_cannot_travel_is_refused_at_its_source(value: object) -> None:
    """The publisher learns it, and no neighbour hangs up because of it."""
    with pytest.raises(ValueUnsupported):
        encode_reading(reading(value=value))


def test_value_nested_too_deeply_is_refused_at_its_source() -> None:
    """Neighbours would refuse it as malformed."""
    value: Any = 1
    for _ in range(MAX_VALUE_DEPTH):
        value = [value]
    assert decode_untrusted_reading(encode_reading(reading(value=value))).value == value
    for too_deep in ([value], {"k": value}, (value,)):
        with pytest.raises(ValueUnsupported, match="nested"):
            encode_reading(reading(value=too_deep))


def test_tensor_of_arrays_keeps_type_shape_and_bytes() -> None:
    """NumPy's exotic layouts, read back by NumPy."""
    numpy = pytest.importorskip("numpy")
    plain = numpy.arange(12, dtype="<i4").reshape(3, 4)
    for given_array in (
        plain,
        plain.T,
        plain[::2],
        plain[:0],
        numpy.float32(3.5),
        numpy.array(True),
        plain.astype("f2"),
    ):
        tensor = tensor_of(given_array)
        sent = decode_untrusted_reading(encode_reading(reading(value=given_array))).value
        assert sent == tensor
        assert numpy.array_equal(numpy.asarray(sent), numpy.asarray(given_array))
        assert numpy.asarray(sent).dtype == numpy.asarray(given_array).dtype
    for strange in (
        plain.astype(">i4"),
        numpy.array([object()]),
        numpy.zeros((1,) * 9),
        numpy.array(["a"]),
        plain.astype("c8"),
    ):
        with pytest.raises(ValueUnsupported):
            tensor_of(strange)


def test_tensor_of_contiguous_memory_is_a_view() -> None:
    """A megabyte must not be copied to be described."""
    data = bytearray(b"abcd")
    tensor = tensor_of(data)
    data[0] = ord("z")
    assert bytes(tensor.data) == b"zbcd"


def test_position_at_the_bounds_passes() -> None:
    """The poles, the date line, and no idea of the accuracy."""
    for where in (Position(90, 180, 0), Position(-90.0, -180.0, math.inf, -1e6, 359.999)):
        assert decode_untrusted_reading(encode_reading(reading(where=where))).where == where


def test_hello_of_a_newer_minor_is_taken() -> None:
    """Minors may differ."""
    data = pack([1, 1, 7, "a", 1, 1, "realtime", [], "new"])
    assert decode_untrusted_node_frame(data) == Hello(1, 7, "a", 1, 1, "realtime")


def test_record_of_an_encoded_reading_travels_as_it_was() -> None:
    """An outbox keeps encoded readings and puts them into batches without decoding them."""
    one = reading(value=[tensor_of(b"abc")])
    batch = Batch(1, 0, "a", 1, 2, (Record(1, "rule", msgspec.Raw(encode_reading(one))),))
    decoded = decode_untrusted_relay_frame(encode_frame(batch))
    assert type(decoded) is Batch
    assert decode_untrusted_record(decoded.records[0]) == one


@MODEST
@given(RELAY_FRAMES[Batch], st.data())
def test_record_with_one_byte_changed_is_refused_or_decoded(frame: Batch, data: st.DataObject) -> None:
    """The relay decodes each reading by itself, and another exception there would stop a batch for ever."""
    good = bytearray(encode_frame(frame))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decoded = decode_untrusted_relay_frame(bytes(good))
        assert type(decoded) is Batch
        for record in decoded.records:
            decode_untrusted_record(record)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
def test_record_nested_without_end_is_malformed(opening: bytes) -> None:
    """Its reading is skipped before it is decoded, and neither may exhaust the stack."""
    head = encode_frame(Batch(1, 0, "a", 1, 2, (Record(1, "r", msgspec.Raw(b"\xc0")),))).removesuffix(b"\xc0\x90")
    for depth in (40, 100_000):
        data = head + opening * depth + b"\xc0\x90"
        with pytest.raises(RemoteProtocolError):
            decode_untrusted_record(decode_untrusted_relay_frame(data).records[0])  # type: ignore[union-attr]


def test_tensor_that_is_a_lie_is_not_read_past_its_end() -> None:
    """NumPy trusts the array interface; a shape larger than the bytes would read foreign memory."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises((ValueError, ValueUnsupported)):
        numpy.asarray(Tensor("u8", (1_000,), memoryview(b"abc")))


@MODEST
@given(
    st.tuples(*[st.integers(0, (1 << 64) - 1)] * 5),
    st.lists(st.sampled_from([NodeId("veh-1"), NodeId("x"), NodeId("r" * 40)]), max_size=8),
    st.booleans(),
)
def test_encode_heartbeat_gives_the_bytes_of_its_structure(
    numbers: tuple[int, int, int, int, int], suspects: list[NodeId], answer: bool
) -> None:
    """There are two ways to encode one, and on the wire they must not differ."""
    names = tuple(suspects)
    assert encode_heartbeat(*numbers, names, answer) == encode_frame(Heartbeat(*numbers, names, answer))
