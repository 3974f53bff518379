"""The form of a delta, and what it may cost to apply one.

``zstd``: the SHA-256 of the base, then a Zstandard frame that has the base as its dictionary.

``tensors``: one Zstandard frame with a window of at most ``MAX_WINDOW_BYTES``. In it are the size of the head as four
bytes, the least one first, the head as MessagePack (:class:`TensorDelta`), and the bytes of the file from its beginning
to its end. Where a segment covers the file, there is the exclusive or of new and old bytes, in blocks of
``BLOCK_BYTES`` as :mod:`~.blocks` writes them. Bytes that no segment covers are there as they are.

A delta is described by signed metadata, but whoever applies it bounds memory and output all the same.
"""

import hashlib
from types import ModuleType
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from protocols.base.errors import ModelInvalid
from protocols.base.limits import MAX_CONTENT_BYTES

Method = Literal["tensors", "zstd"]
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
BLOCK_BYTES: Final = 8 * 1024 * 1024
"""Zstandard has one table of frequencies for each 128 KiB. In larger blocks more bytes of one kind come in a row."""
MAX_HEAD_BYTES: Final = 4 * 1024 * 1024
MAX_SEGMENTS: Final = 65_536
ITEM_BYTES: Final = (1, 2, 4, 8)

_Place = Annotated[int, Meta(ge=0, le=MAX_CONTENT_BYTES)]


class DeltaSegment(Struct, frozen=True, array_like=True, gc=False):
    """A part of the new file that is told as its difference to a part of the base."""

    at: _Place
    """In the new file; after the end of the segment before."""
    base_at: _Place
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_CONTENT_BYTES)]
    item_bytes: int
    """Bytes of an element, of which the size is a multiple: 1, 2, 4 or 8."""


class TensorDelta(Struct, frozen=True, array_like=True, gc=False):
    """The head of a delta of tensors."""

    base: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """SHA-256 of the base."""
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_CONTENT_BYTES)]
    """Of the new file."""
    segments: Annotated[tuple[DeltaSegment, ...], Meta(max_length=MAX_SEGMENTS)]


def zstandard() -> ModuleType:
    """The library. :raises ModelInvalid: it is not installed."""
    try:
        import zstandard as library
    except ImportError as error:
        raise ModelInvalid("deltas need the library zstandard: install meshnode[releases]") from error
    return library


def check_base(base: bytes, digest: bytes) -> None:
    """:raises ModelInvalid: a delta is not for this base."""
    if (have := hashlib.sha256(base).digest()) != digest:
        raise ModelInvalid(
            f"a delta is for the file {digest.hex()[:12]} and not for {have.hex()[:12]}: fetch the whole file"
        )
