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


def _steps() -> bytes:
    """The size of a whole element by its first byte, where that says it and it has no others in it; 0 elsewhere."""
    steps = bytearray(256)
    for head in range(256):
        if head < 0x80 or head >= 0xE0 or head in (0x80, 0x90):
            steps[head] = 1
        elif 0xA0 <= head < 0xC0:
            steps[head] = 1 + (head & 0x1F)
        else:
            steps[head] = _WIDTHS.get(head, 0)
    return bytes(steps)


_STEPS: Final = _steps()


def has_too_many_elements(
    data: bytes | bytearray | memoryview, max_elements: int | None = None, max_text_bytes: int = limits.MAX_FRAME_BYTES
) -> bool:
    """Whether MessagePack has more than ``max_elements`` elements (None: ``MAX_ELEMENTS``), or a longer text than
    ``max_text_bytes``, found without making any of them. Data that claims more elements than it has may count as
    either; the decoder finds what is malformed."""
    most = limits.MAX_ELEMENTS if max_elements is None else max_elements
    at, left, elements, end = 0, 1, 1, len(data)
    steps, texts = _STEPS, end - 5 > max_text_bytes
    if end <= most and not texts:
        return False
    while left and at < end:
        head = data[at]
        left -= 1
        if step := steps[head]:  # nearly all elements are of these
            at += step
            continue
        inner = 0
        if head == 0xD9 and not texts:  # a text of up to 255 bytes: 64 readings may have a thousand
            at += 2 + (data[at + 1] if at + 1 < end else 0)
            continue
        if head < 0xA0:
            inner = (head & 0x0F) * (2 if head < 0x90 else 1)
            at += 1
        elif head in _LENGTHS:
            size, more = _LENGTHS[head]
            length = int.from_bytes(data[at + 1 : at + 1 + size], "big")
            if head >= 0xD9 and length > max_text_bytes:
                return True
            at += 1 + size + more + length
        elif head in _COUNTS:
            size, each = _COUNTS[head]
            inner = each * int.from_bytes(data[at + 1 : at + 1 + size], "big")
            at += 1 + size
        else:
            return False
        if inner:
            left += inner
            elements += inner
            if elements > most:
                return True
        if elements - left + end - at <= most and not texts:  # each of the others takes a byte at least
            return False
    return elements > most


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
