"""Fields of a message, as protobuf puts them into bytes: a tag, and a value whose length the tag's wire type tells.

Only what a node needs without parsing: where the fields of a message begin and end, and how a long one is put before
bytes that are not copied. Groups, an old form of nesting, are refused. What enters is untrusted: only
:class:`BadRequest` leaves.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from meshnode.http.guard import BadRequest

_LENGTH: Final = 2
"""The wire type of what has a length: text, bytes, a message, packed numbers."""


class Field(NamedTuple):
    """Where one field is."""

    number: int
    has_length: bool
    begin: int
    """Where its tag begins …"""
    start: int
    """… its value …"""
    stop: int
    """… and the next field."""


def untrusted_fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """Each field between ``at`` and ``end``, in order. :raises BadRequest: there is something else."""
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        start = at
        match tag & 7:
            case 0:
                at = _varint(data, at, end)[1]
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size_bytes, start = _varint(data, at, end)
                at = start + size_bytes
            case _:
                raise _no_message(begin)
        if at > end:
            raise _no_message(begin)
        yield Field(tag >> 3, tag & 7 == _LENGTH, begin, start, at)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _no_message(at)


def _no_message(at: int) -> BadRequest:
    return BadRequest(f"the message is not a ModelInferRequest: byte {at} is not what should be there")


def field_head(number: int, size_bytes: int) -> bytes:
    """What stands before so many bytes of a field that has a length."""
    return _written_varint(number << 3 | _LENGTH) + _written_varint(size_bytes)


def _written_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
