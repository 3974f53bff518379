"""MessagePack bytes to and from the structs in ``messages``.

Untrusted bytes enter through the functions named ``decode_untrusted_…``; they raise :class:`RemoteProtocolError`
and nothing else. The encoders raise :class:`ValueUnsupported` for values that the wire can't carry.

A tensor inside a reading's value is MessagePack extension 1 whose payload is the array ``[dtype, shape, data]``.
Invariant: what one side encodes the other decodes, and a decoded reading can be encoded again to be passed on: lists
and dicts in values are at most ``MAX_VALUE_DEPTH`` deep, and keys are text.
"""

from math import prod
from struct import pack, unpack
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from protocols.base import limits
from protocols.base.errors import InvalidName, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import NodeId, node_id
from protocols.wire.gossip import Entry, GossipDigest, GossipHave, GossipPull, InboxAddress
from protocols.wire.inference import InferAnswer, InferRequest
from protocols.wire.membership import MAJOR, Heartbeat, Hello
from protocols.wire.readings import Reading, Readings
from protocols.wire.records import Batch, Record, RelayFrame
from protocols.wire.registry import NodeFrame
from protocols.wire.tensors import Tensor

_T = TypeVar("_T")

TENSOR_EXTENSION: Final = 1
_ENTRY_DOMAIN: Final = b"meshnode entry 1\0"
MAX_VALUE_DEPTH: Final = 32
"""Lists and dicts inside one another in a value. Whoever passes it on, stores it or shows it recurses as deep."""
_READINGS_TAG: Final = 6
_HELLO_TAG: Final = 1
_HEARTBEAT_TAG: Final = 2
KNOWN_TYPES: Final = frozenset((*range(1, 15), 64, 65, 66))
_COMPOSITE: Final = frozenset((list, tuple, dict, Tensor))
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_NATIVE: Final = _PLAIN | {bytearray, memoryview, list, tuple, dict}
"""What MessagePack has a form for by itself."""
_READINGS: Final = Readings  # compiled code finds these at once
_HEARTBEAT: Final = Heartbeat
_ALONE: Final = bytes((0x92, _READINGS_TAG, 0x91))
_FIXED_EXTENSIONS: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}

_DTYPES: Final = {
    "?": "b1", "b": "i1", "B": "u1", "h": "i2", "H": "u2", "i": "i4", "I": "u4", "q": "i8", "Q": "u8",
    "l": "i8", "L": "u8", "e": "f2", "f": "f4", "d": "f8",
}  # fmt: skip
"""Buffer-protocol format characters (``struct`` module) on the platforms in question, all LP64 and little-endian."""


def tensor_of(array: Any) -> Tensor:
    """Describe anything with the buffer protocol (a NumPy array, ``array.array``, bytes) as a tensor, without a copy
    when it is contiguous.

    :raises ValueUnsupported: for object arrays, other byte orders or other element types.
    """
    try:
        view = memoryview(array)
    except (TypeError, ValueError, BufferError) as error:
        raise ValueUnsupported(f"a value of type {type(array).__name__} can't travel: {error}") from error
    dtype = _DTYPES.get(view.format.lstrip("<@="))
    if dtype is None or view.format.startswith((">", "!")):
        raise ValueUnsupported(
            f"elements of format {view.format!r} can't travel: convert to one of b1 i1…i8 u1…u8 f2 f4 f8"
        )
    if view.ndim > limits.MAX_TENSOR_DIMENSIONS:
        raise ValueUnsupported(
            f"a tensor of {view.ndim} dimensions can't travel: use at most {limits.MAX_TENSOR_DIMENSIONS}"
        )
    shape = tuple(view.shape or ())
    if not view.c_contiguous or 0 in shape:
        return Tensor(dtype, shape, memoryview(view.tobytes()))  # type: ignore[arg-type]
    return Tensor(dtype, shape, view.cast("B") if view.ndim else memoryview(view.tobytes()))  # type: ignore[arg-type]


def _encode_other(value: Any) -> Any:
    return msgspec.msgpack.Ext(TENSOR_EXTENSION, _encoder.encode(tensor_of(value)))


def _decode_extension(code: int, data: memoryview) -> Any:
    if code != TENSOR_EXTENSION:
        raise ValueError(f"unknown MessagePack extension {code}")
    tensor = _tensor_decoder.decode(data)
    _check_untrusted_tensor(tensor)
    return tensor


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_tensor_decoder = msgspec.msgpack.Decoder(Tensor)
_node_decoder: Final[msgspec.msgpack.Decoder[NodeFrame]] = msgspec.msgpack.Decoder(
    NodeFrame, ext_hook=_decode_extension
)
_relay_decoder: msgspec.msgpack.Decoder[RelayFrame] = msgspec.msgpack.Decoder(RelayFrame, ext_hook=_decode_extension)
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_address_decoder = msgspec.msgpack.Decoder(InboxAddress)
_reading_decoder = msgspec.msgpack.Decoder(Reading, ext_hook=_decode_extension)


# --- encoding ------------------------------------------------------------------------------------------------------
def encode_frame(frame: NodeFrame | RelayFrame) -> bytes:
    """One frame as bytes.

    :raises ValueUnsupported: when a value in it can't travel, or the frame is larger than ``MAX_FRAME_BYTES``.
    """
    if type(frame) is Readings:
        frame = Readings(tuple(_travelling_reading(reading) for reading in frame.readings))
    elif type(frame) is Batch:
        frame = replace(frame, records=tuple(_travelling_record(record) for record in frame.records))
    return _bounded(_encode(frame))


def encode_reading(reading: Reading) -> bytes:
    """One reading as it stands inside a frame or a record.

    :raises ValueUnsupported: when its value can't travel or is too large.
    """
    return _encode_reading(reading, b"")


def encode_alone(reading: Reading) -> bytes:
    """The ``Readings`` frame of one reading, made once for all neighbours; see :func:`frame_of_alone`.

    :raises ValueUnsupported: when its value can't travel or is too large.
    """
    return _encode_reading(reading, _ALONE)


def encode_together(readings: list[Reading]) -> bytes:
    """The ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` readings of plain values.

    :raises ValueUnsupported: when a value can't travel.
    """
    return _bounded(_encode(Readings(tuple(readings))))


def _encode_reading(reading: Reading, head: bytes) -> bytes:
    value = reading.value
    kind = type(value)
    if kind in _PLAIN:
        return _bounded(head + _encode(reading))
    if kind is Tensor:
        return _bounded(_encode_tensor_reading(reading, value, head))
    if kind not in _NATIVE and _has_buffer(value):
        return _bounded(_encode_tensor_reading(reading, tensor_of(value), head))
    data = _bounded(head + _encode(_travelling_reading(reading)))
    if len(data) > limits.LARGE_FRAME_BYTES and kind in _COMPOSITE and _has_too_many_elements(data):
        raise ValueUnsupported(
            f"the value has more than {limits.MAX_ELEMENTS} elements: publish large data as an array or as bytes"
        )
    return data


def _encode_tensor_reading(reading: Reading, tensor: Tensor, head: bytes) -> bytes:
    """Put together from pieces, so that the elements are copied once. The encoder would copy them three times, into
    buffers that grow: measured, 1.1 ms for 1 MB instead of 0.03 ms."""
    before = _encode((reading.key, reading.origin, reading.sequence))
    shape = _encode((tensor.dtype, tensor.shape))
    after = _encode((reading.where, reading.when, reading.how, reading.priority, reading.lifespan_ms, reading.hops))
    size_bytes = len(tensor.data)
    elements = b"\xc4" + size_bytes.to_bytes(1) if size_bytes < 1 << 8 else _head(0xC5, size_bytes)
    payload_bytes = len(shape) + len(elements) + size_bytes
    if payload_bytes in _FIXED_EXTENSIONS:
        extension = bytes((_FIXED_EXTENSIONS[payload_bytes], TENSOR_EXTENSION))
    elif payload_bytes < 1 << 8:
        extension = bytes((0xC7, payload_bytes, TENSOR_EXTENSION))
    else:
        extension = _head(0xC8, payload_bytes) + bytes((TENSOR_EXTENSION,))
    # the arrays of three, of two and of six are parts of one of ten and of one of three
    return b"".join((head, b"\x9a", before[1:], extension, b"\x93", shape[1:], elements, tensor.data, after[1:]))


def _head(code: int, length: int) -> bytes:
    """Of a length that takes 16 bits (``code``) or 32 (the next)."""
    return bytes((code,)) + length.to_bytes(2) if length < 1 << 16 else bytes((code + 1,)) + length.to_bytes(4)


def _has_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    except (ValueError, BufferError):  # it has one that can't travel: tensor_of says why
        return True
    return True


def frame_of_encoded_readings(encoded: list[bytes]) -> bytes:
    """The ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` results of :func:`encode_reading`."""
    count = len(encoded)
    head = bytes((0x92, _READINGS_TAG, 0x90 | count)) if count < 16 else bytes((0x92, _READINGS_TAG, 0xDC, 0, count))
    return head + (encoded[0] if count == 1 else b"".join(encoded))


def encode_entry(entry: Entry) -> bytes:
    """An entry as it travels and is fingerprinted.

    :raises ValueUnsupported: when it is larger than ``MAX_ENTRY_BYTES``.
    """
    data = _encode(entry)
    if len(data) > limits.MAX_ENTRY_BYTES:
        raise ValueUnsupported(
            f"the entry {entry.kind!r} takes {len(data)} bytes with its certificate and signature, and "
            f"{limits.MAX_ENTRY_BYTES} are allowed: shorten its body of {len(entry.body)}"
        )
    return data


def entry_statement(entry: Entry) -> bytes:
    """What the signature of an entry covers. It begins so that no signature made for anything else, such as a TLS
    handshake with the same key, can pass for one."""
    return _ENTRY_DOMAIN + _encode((entry.author, entry.kind, entry.version, entry.lifetime_s, entry.body))


def encode_address(address: InboxAddress) -> bytes:
    """The body of an entry of kind ``address``."""
    return _encode(address)


def encode_fingerprints(fingerprints: list[int]) -> bytes:
    """Unsigned 64-bit numbers as a frame of gossip has them."""
    return pack(f"<{len(fingerprints)}Q", *fingerprints)


def frame_of_alone(alone: list[bytes]) -> bytes:
    """The ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` results of :func:`encode_alone`: for one that itself,
    without a copy."""
    return alone[0] if len(alone) == 1 else frame_of_encoded_readings([frame[len(_ALONE) :] for frame in alone])


def decode_alone(frame: bytes) -> Reading:
    """The reading of a result of :func:`encode_alone`, whose data its tensors look into."""
    return decode_untrusted_reading(memoryview(frame)[len(_ALONE) :])


def _travelling_reading(reading: Reading) -> Reading:
    if type(reading.value) in _COMPOSITE:
        return replace(reading, value=_travelling(reading.value, MAX_VALUE_DEPTH))
    return reading


def _travelling_record(record: Record) -> Record:
    if type(record.reading) is not Reading:  # msgspec.Raw: a reading that was encoded before, as an outbox keeps it
        return record
    return replace(record, reading=_travelling_reading(record.reading))


def _travelling(value: Any, depth: int) -> Any:
    """A composite value as the encoder needs it: tensors, at any depth, as extensions, which tells them from lists."""
    if type(value) is Tensor:
        return msgspec.msgpack.Ext(TENSOR_EXTENSION, _encoder.encode(value))
    if depth == 0:
        raise ValueUnsupported(f"the value is nested deeper than {MAX_VALUE_DEPTH}: flatten it")
    if type(value) is dict:
        for key in value:
            if not isinstance(key, str):
                raise ValueUnsupported(f"the dict key {str(key)[:80]!r} is not text: keys of values must be")
        return {key: _travelling(item, depth - 1) if type(item) in _COMPOSITE else item for key, item in value.items()}
    return [_travelling(item, depth - 1) if type(item) in _COMPOSITE else item for item in value]


def _encode(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise ValueUnsupported(
            f"the value can't travel: {error}. Use None, bool, int below 2^64, float, text, bytes, lists, "
            "dicts with text keys, or arrays"
        ) from error


def encode_heartbeat(
    sequence: int, sent_ns: int, echo_sequence: int, echo_sent_ns: int, echo_held_ns: int, suspects: tuple[NodeId, ...],
    answer: bool,
) -> bytes:  # fmt: skip
    """A :class:`Heartbeat` as :func:`encode_frame` gives it, without the structure: nothing else is sent as often to
    neighbours that want no readings."""
    return _encode((_HEARTBEAT_TAG, sequence, sent_ns, echo_sequence, echo_sent_ns, echo_held_ns, suspects, answer))


def readings_in_own_frame(frame: bytes) -> int:
    """How many readings a frame of :func:`frame_of_encoded_readings` holds; 1 for a frame of another type."""
    if frame[:2] != bytes((0x92, _READINGS_TAG)):
        return 1
    return frame[2] & 0x0F if frame[2] < 0xA0 else int.from_bytes(frame[3:5], "big")


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.MAX_FRAME_BYTES - 16:
        raise ValueUnsupported(
            f"{len(data)} bytes are too large for a frame of {limits.MAX_FRAME_BYTES}: split or shrink it"
        )
    return data


# --- decoding ------------------------------------------------------------------------------------------------------
def decode_untrusted_node_frame(data: bytes | bytearray) -> NodeFrame:
    """Parse a frame from a neighbour.

    Tensors in the result look into ``data`` and keep it alive.

    :raises UnknownFrame: for a type of a newer minor version.
    :raises RemoteProtocolError: for anything else that is not a frame.
    """
    if len(data) > limits.LARGE_FRAME_BYTES and _has_too_many_elements(data):
        raise RemoteProtocolError(f"a frame has more than {limits.MAX_ELEMENTS} elements")
    frame = _decode_untrusted(_node_decoder, data)
    if type(frame) is _READINGS:
        for reading in frame.readings:
            if type(reading.value) in _COMPOSITE:
                _check_untrusted_value(reading.value)
    elif type(frame) is _HEARTBEAT:  # the other frequent kind, with nothing more to check
        pass
    elif type(frame) is Hello:
        _check_untrusted_id(frame.node)
    elif type(frame) is InferRequest:
        for named in frame.inputs:
            _check_untrusted_tensor(named.tensor)
    elif type(frame) is InferAnswer:
        for named in frame.outputs:
            _check_untrusted_tensor(named.tensor)
    elif type(frame) is GossipHave or type(frame) is GossipPull:
        if len(frame.fingerprints) % 8:
            raise RemoteProtocolError(f"{len(frame.fingerprints)} bytes are no whole number of fingerprints")
    elif type(frame) is GossipDigest and len(frame.buckets) not in (0, 8 * limits.ENTRY_BUCKETS):
        raise RemoteProtocolError(f"{len(frame.buckets)} bytes are not the {limits.ENTRY_BUCKETS} buckets of a digest")
    return frame


def decode_fingerprints(data: bytes) -> tuple[int, ...]:
    """What :func:`encode_fingerprints` made, in frames that were decoded."""
    return unpack(f"<{len(data) // 8}Q", data)


def decode_untrusted_entry(data: bytes) -> Entry:
    """Parse an entry; its signature is for others to check. :raises RemoteProtocolError: for anything that is none."""
    entry = _decode_untrusted(_entry_decoder, data)
    _check_untrusted_id(entry.author)
    if not entry.kind.isprintable():
        raise RemoteProtocolError("the kind of an entry is not printable")
    return entry


def decode_untrusted_address(body: bytes) -> InboxAddress:
    """Parse the body of an entry of kind ``address``. :raises RemoteProtocolError: for anything that is none."""
    return _decode_untrusted(_address_decoder, body)


def decode_untrusted_relay_frame(data: bytes) -> RelayFrame:
    """Parse a frame between node and relay.

    The values of records are not looked into: the store refuses a record that it can't hold, and takes the others.

    :raises RemoteProtocolError: for anything that is not such a frame.
    """
    frame = _decode_untrusted(_relay_decoder, data)
    if type(frame) is Batch:
        _check_untrusted_id(frame.node)
        if any(fate.last < fate.first for fate in frame.fates):
            raise RemoteProtocolError("a fate ends before it begins")
    return frame


def decode_untrusted_reading(data: bytes | memoryview) -> Reading:
    """Parse one encoded reading. :raises RemoteProtocolError: for anything that is not one."""
    reading = _decode_untrusted(_reading_decoder, data)
    _check_untrusted_value(reading.value)
    return reading


def untrusted_other_major(data: bytes | bytearray) -> int | None:
    """The major version of a ``Hello`` of another one than ours, whose rest may be anything; None for all else."""
    if len(data) > 2 and 0x91 <= data[0] <= 0x9F and data[1] == _HELLO_TAG and data[2] < 0x80 and data[2] != MAJOR:
        return data[2]
    return None


def _decode_untrusted(decoder: msgspec.msgpack.Decoder[_T], data: bytes | bytearray | memoryview) -> _T:
    if len(data) > limits.MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame of {len(data)} bytes is larger than {limits.MAX_FRAME_BYTES}")
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise RemoteProtocolError("a frame is nested too deeply") from error
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        frame_type = _untrusted_frame_type(data)
        if frame_type is not None and frame_type not in KNOWN_TYPES:
            raise UnknownFrame(frame_type) from error
        raise RemoteProtocolError(f"a frame is malformed: {str(error)[:200]}") from error


def _untrusted_frame_type(data: bytes | bytearray | memoryview) -> int | None:
    """The type of a frame whose head is well formed: a fixarray or array 16 and a positive fixint or uint 8."""
    if not data:
        return None
    at = 1 if 0x91 <= data[0] <= 0x9F else 3 if data[0] == 0xDC else 0
    if not at or len(data) <= at:
        return None
    if data[at] < 0x80:
        return data[at]
    return data[at + 1] if data[at] == 0xCC and len(data) > at + 1 else None


_WIDTHS: Final = {
    0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,
}  # fmt: skip
"""Bytes of a whole element by its first byte, where that says it."""
_LENGTHS: Final = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0),
            0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
"""Binary, extensions and strings: bytes of the length, and of the type that follows it."""
_COUNTS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Arrays and maps: bytes of the count, and elements for each."""


def _has_too_many_elements(data: bytes | bytearray) -> bool:
    """Whether MessagePack has more than ``MAX_ELEMENTS`` elements, found without making any of them. Malformed data has
    not: that is found by the decoder."""
    at, left, elements, end = 0, 1, 0, len(data)
    while left and at < end:
        left -= 1
        elements += 1
        if elements > limits.MAX_ELEMENTS:
            return True
        head = data[at]
        if head < 0x80 or head >= 0xE0:
            at += 1
        elif head < 0xA0:
            left += (head & 0x0F) * (2 if head < 0x90 else 1)
            at += 1
        elif head < 0xC0:
            at += 1 + (head & 0x1F)
        elif head in _WIDTHS:
            at += _WIDTHS[head]
        elif head in _LENGTHS:
            size, more = _LENGTHS[head]
            at += 1 + size + more + int.from_bytes(data[at + 1 : at + 1 + size], "big")
        elif head in _COUNTS:
            size, each = _COUNTS[head]
            left += each * int.from_bytes(data[at + 1 : at + 1 + size], "big")
            at += 1 + size
        else:
            return False
    return False


def _check_untrusted_value(value: Any) -> None:
    """Tensors were checked where they were decoded; of the rest only lists and dicts can be out of bounds."""
    level = [value] if type(value) in (list, dict) else []
    for _ in range(MAX_VALUE_DEPTH):
        if not level:
            return
        below: list[Any] = []
        for container in level:
            items = container
            if type(container) is dict:
                if not all(type(key) is str for key in container):
                    raise RemoteProtocolError("a value has a dict whose keys are not all text")
                items = container.values()
            below.extend(item for item in items if type(item) in (list, dict))
        level = below
    if level:
        raise RemoteProtocolError(f"a value is nested deeper than {MAX_VALUE_DEPTH}")


def _check_untrusted_id(text: str) -> None:
    try:
        node_id(text)
    except InvalidName as error:
        raise RemoteProtocolError(str(error)) from error


def _check_untrusted_tensor(tensor: Tensor) -> None:
    if prod(size for size in tensor.shape if size) > limits.MAX_FRAME_BYTES:  # NumPy refuses it even when it is empty
        raise RemoteProtocolError(f"a tensor has the shape {list(tensor.shape)}, more than any frame can carry")
    size_bytes = prod(tensor.shape) * int(tensor.dtype[1])
    if size_bytes != len(tensor.data):
        raise RemoteProtocolError(
            f"a tensor of {tensor.dtype} {list(tensor.shape)} has {len(tensor.data)} bytes instead of {size_bytes}"
        )
