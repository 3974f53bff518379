"""What the head bytes of MessagePack say, found without decoding the rest."""

from typing import Final

from protocols.base import limits

_WIDTHS: Final = {
    0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,
}  # fmt: skip
"""The size in bytes of a whole element by its first byte, for elements of fixed size."""
_LENGTHS: Final = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0),
            0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
"""For binary, extensions and strings: bytes of the length, and bytes of the type that follows it."""
_COUNTS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""For arrays and maps: bytes of the count, and elements for each item."""


def has_too_many_elements(data: bytes | bytearray | memoryview) -> bool:
    """Whether MessagePack has more than ``MAX_ELEMENTS`` elements, found without making any of them. False for
    malformed data, which the decoder finds."""
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


def untrusted_frame_number(data: bytes | bytearray | memoryview) -> int | None:
    """The number of a frame whose head is well formed: a fixarray or array 16 and a positive fixint or uint 8."""
    if not data:
        return None
    at = 1 if 0x91 <= data[0] <= 0x9F else 3 if data[0] == 0xDC else 0
    if not at or len(data) <= at:
        return None
    if data[at] < 0x80:
        return data[at]
    return data[at + 1] if data[at] == 0xCC and len(data) > at + 1 else None
