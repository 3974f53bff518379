"""The bytes of readings: of one alone, of several in a frame, and of frames made once for all neighbours.

These are the encoders of the hot path. They put a ``Readings`` frame together from pieces that are encoded once.
"""

from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError, ValueUnsupported
from protocols.wire.codec import bounded, decode_untrusted, encode
from protocols.wire.encoding.messagepack import has_too_many_elements
from protocols.wire.encoding.values import (
    COMPOSITE,
    TENSOR_EXTENSION,
    check_untrusted_value,
    decode_untrusted_extension,
)
from protocols.wire.frame import number_of
from protocols.wire.readings import Reading, Readings, SignedReadings, travelling_reading
from protocols.wire.records import Record
from protocols.wire.tensors import Tensor, tensor_of

_READINGS_NUMBER: Final = number_of(Readings)
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_NATIVE: Final = _PLAIN | {bytearray, memoryview, list, tuple, dict}
"""Types that MessagePack has a form for."""
_ALONE: Final = bytes((0x92, _READINGS_NUMBER, 0x91))
_SIGNED_NUMBER: Final = number_of(SignedReadings)
_STATEMENT_DOMAIN: Final = b"meshnode reading 1\0"
_FIXED_EXTENSIONS: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
_reading_decoder = msgspec.msgpack.Decoder(Reading, ext_hook=decode_untrusted_extension)
_parcel_decoder = msgspec.msgpack.Decoder(Readings, ext_hook=decode_untrusted_extension)
_signed_decoder = msgspec.msgpack.Decoder(SignedReadings)


def encode_reading(reading: Reading) -> bytes:
    """Encode one reading as it stands inside a frame or a record.

    :raises ValueUnsupported: when its value can't travel or is too large.
    """
    return _encode_reading(reading, b"")


def encode_alone(reading: Reading) -> bytes:
    """Encode the ``Readings`` frame of one reading, once for all neighbours; see :func:`frame_of_alone`.

    :raises ValueUnsupported: when its value can't travel or is too large.
    """
    return _encode_reading(reading, _ALONE)


def encode_together(readings: list[Reading]) -> bytes:
    """Encode the ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` readings of plain values.

    :raises ValueUnsupported: when a value can't travel.
    """
    return bounded(encode(Readings(tuple(readings))))


def _encode_reading(reading: Reading, head: bytes) -> bytes:
    value = reading.value
    kind = type(value)
    if kind in _PLAIN:
        return bounded(head + encode(reading))
    if kind is Tensor:
        return bounded(_encode_tensor_reading(reading, value, head))
    if kind not in _NATIVE and _has_buffer(value):
        return bounded(_encode_tensor_reading(reading, tensor_of(value), head))
    data = bounded(head + encode(travelling_reading(reading)))
    if len(data) > limits.MAX_ELEMENTS and kind in COMPOSITE and has_too_many_elements(data):
        raise ValueUnsupported(
            f"the value has more than {limits.MAX_ELEMENTS} elements: publish large data as an array or as bytes"
        )
    return data


def _encode_tensor_reading(reading: Reading, tensor: Tensor, head: bytes) -> bytes:
    """Put the reading together from pieces, so that the elements are copied once. The encoder would copy them three
    times, into buffers that grow, which takes 1.1 ms for 1 MB instead of 0.03 ms."""
    before = encode((reading.key, reading.origin, reading.sequence))
    shape = encode((tensor.dtype, tensor.shape))
    after = encode((reading.where, reading.when, reading.how, reading.priority, reading.lifespan_ms, reading.hops))
    size_bytes = len(tensor.data)
    elements = b"\xc4" + size_bytes.to_bytes(1) if size_bytes < 1 << 8 else _head(0xC5, size_bytes)
    payload_bytes = len(shape) + len(elements) + size_bytes
    if payload_bytes in _FIXED_EXTENSIONS:
        extension = bytes((_FIXED_EXTENSIONS[payload_bytes], TENSOR_EXTENSION))
    elif payload_bytes < 1 << 8:
        extension = bytes((0xC7, payload_bytes, TENSOR_EXTENSION))
    else:
        extension = _head(0xC8, payload_bytes) + bytes((TENSOR_EXTENSION,))
    # The first byte of each array is cut off: their elements are parts of an array of ten and of one of three.
    return b"".join((head, b"\x9a", before[1:], extension, b"\x93", shape[1:], elements, tensor.data, after[1:]))


def _head(code: int, length: int) -> bytes:
    """The head of an element whose length takes 16 bits (``code``) or 32 bits (the next code)."""
    return bytes((code,)) + length.to_bytes(2) if length < 1 << 16 else bytes((code + 1,)) + length.to_bytes(4)


def _has_buffer(value: object) -> bool:
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    except (ValueError, BufferError):  # it has a buffer that can't travel; tensor_of() says why
        return True
    return True


def frame_of_encoded_readings(encoded: list[bytes]) -> bytes:
    """The ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` results of :func:`encode_reading`."""
    count = len(encoded)
    head = (
        bytes((0x92, _READINGS_NUMBER, 0x90 | count)) if count < 16 else bytes((0x92, _READINGS_NUMBER, 0xDC, 0, count))
    )
    return head + (encoded[0] if count == 1 else b"".join(encoded))


def frame_of_alone(alone: list[bytes]) -> bytes:
    """The ``Readings`` frame of 1 to ``MAX_READINGS_PER_FRAME`` results of :func:`encode_alone`. For one result it is
    that result itself, without a copy."""
    return alone[0] if len(alone) == 1 else frame_of_encoded_readings([frame[len(_ALONE) :] for frame in alone])


def reading_in_alone(alone: bytes) -> bytes:
    """The result of :func:`encode_reading` for the reading of a result of :func:`encode_alone`."""
    return alone[len(_ALONE) :]


def can_be_joined(frame: bytes) -> bool:
    """Whether :func:`frame_of_alone` can put a frame that waits for a lane together with others."""
    return frame[1] == _READINGS_NUMBER


def readings_in_own_frame(frame: bytes) -> int:
    """How many readings a frame of :func:`frame_of_encoded_readings` or :func:`encode_signed` holds; 1 for a frame of
    another type."""
    if frame[1:2] == _SIGNED_NUMBER.to_bytes(1):
        frame = bytes(_signed_decoder.decode(frame).parcel[:5])
    if frame[:2] != bytes((0x92, _READINGS_NUMBER)):
        return 1
    return frame[2] & 0x0F if frame[2] < 0xA0 else int.from_bytes(frame[3:5], "big")


def encode_signed(hops: int, certificate: bytes, signature: bytes, parcel: bytes | memoryview) -> bytes:
    """Encode a ``SignedReadings`` frame; ``parcel`` is a result of :func:`encode_alone` or :func:`encode_together`.

    :raises ValueUnsupported: when it is too large.
    """
    size_bytes = len(parcel)
    head = b"\xc4" + size_bytes.to_bytes(1) if size_bytes < 1 << 8 else _head(0xC5, size_bytes)
    before = bytes((0x95, _SIGNED_NUMBER, hops, 0xC4, len(certificate)))
    return bounded(b"".join((before, certificate, b"\xc4", len(signature).to_bytes(1), signature, head, parcel)))


def reading_statement(parcel: bytes | memoryview) -> bytes:
    """The bytes that the signature of a parcel covers. Their prefix makes sure that no signature made for anything
    else can pass for one. The parcel is never encoded again on its way, so it needs no canonical form.

    :raises ValueUnsupported: when it is larger than ``MAX_SIGNED_PARCEL_BYTES``.
    """
    check_signable(parcel)
    return b"".join((_STATEMENT_DOMAIN, parcel))


def check_signable(parcel: bytes | memoryview) -> None:
    """Check that a parcel is small enough to be passed on.

    :raises ValueUnsupported: when it is larger than ``MAX_SIGNED_PARCEL_BYTES``.
    """
    if len(parcel) > limits.MAX_SIGNED_PARCEL_BYTES:
        raise ValueUnsupported(
            f"{len(parcel)} bytes are too large to be passed on, and {limits.MAX_SIGNED_PARCEL_BYTES} are allowed: "
            "split or shrink the value, or publish it without hops"
        )


def decode_untrusted_parcel(signed: SignedReadings) -> tuple[Reading, ...]:
    """The readings in a signed parcel, oldest first, with the hops that are left. They are of one origin and key.
    Tensors in them look into the parcel. The signature is not checked here.

    :raises RemoteProtocolError: when the parcel is not such a frame of readings.
    """
    parcel = signed.parcel
    if len(parcel) > limits.MAX_SIGNED_PARCEL_BYTES:
        raise RemoteProtocolError(f"a signed parcel of {len(parcel)} bytes is too large")
    if len(parcel) > limits.MAX_ELEMENTS and has_too_many_elements(parcel):
        raise RemoteProtocolError(f"a signed parcel has more than {limits.MAX_ELEMENTS} elements")
    frame = decode_untrusted(_parcel_decoder, parcel)
    frame.check_untrusted()
    readings = frame.readings
    if not readings:
        raise RemoteProtocolError("a signed parcel has no readings")
    first, before = readings[0], -1
    for reading in readings:
        if reading.origin != first.origin or reading.key != first.key or reading.sequence <= before:
            raise RemoteProtocolError("the readings of a signed parcel are not of one stream in its order")
        if reading.hops < signed.hops:
            raise RemoteProtocolError(f"a reading that may cross {reading.hops} hops has {signed.hops} left")
        before = reading.sequence
    if all(reading.hops == signed.hops for reading in readings):
        return readings
    return tuple([msgspec.structs.replace(reading, hops=signed.hops) for reading in readings])


def decode_alone(frame: bytes) -> Reading:
    """The reading in a result of :func:`encode_alone`. Its tensors look into the frame."""
    return decode_untrusted_reading(memoryview(frame)[len(_ALONE) :])


def decode_untrusted_reading(data: bytes | memoryview) -> Reading:
    """Parse one encoded reading. :raises RemoteProtocolError: for anything that is not one."""
    reading = decode_untrusted(_reading_decoder, data)
    check_untrusted_value(reading.value)
    return reading


def decode_untrusted_record(record: Record) -> Reading:
    """Parse the reading of a record. Its value is not looked into: a store refuses what it can't hold. A large record
    has at most as many elements as a frame between nodes.

    Tensors in the result look into the frame that the record came in.

    :raises RemoteProtocolError: when it is not a reading.
    """
    return decode_untrusted(_reading_decoder, memoryview(record.reading), bounded_elements=True)
