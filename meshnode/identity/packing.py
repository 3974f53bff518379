"""Makes what goes to the relay smaller, with Zstandard, where the library is installed.

Invariant: unpacking costs at most ``MAX_UNPACKED_BYTES`` of memory, whatever was packed.
"""

from types import ModuleType
from typing import Final

from protocols.base.errors import RemoteProtocolError
from protocols.base.limits import MAX_EXCHANGE_BYTES

MAX_UNPACKED_BYTES: Final = MAX_EXCHANGE_BYTES + 8 * 1024
"""The largest content: a batch and its certificate."""
_LEVEL: Final = 3
_MAX_WINDOW_BYTES: Final = 1 << 21


def can_pack() -> bool:
    """Whether the library Zstandard is installed."""
    return _zstandard() is not None


def packed(content: bytes) -> bytes | None:
    """Content that became smaller; None: it would not, or the library is not installed."""
    library = _zstandard()
    if library is None:
        return None
    smaller: bytes = library.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(content)
    return smaller if len(smaller) < len(content) else None


def unpacked_untrusted(content: bytes) -> bytes:
    """What was packed. :raises RemoteProtocolError: it is not well packed or too large, or the library is missing."""
    library = _zstandard()
    if library is None:
        raise RemoteProtocolError("it is compressed, and zstandard is not installed here")
    try:
        told = library.get_frame_parameters(content).content_size
        if told > MAX_UNPACKED_BYTES:  # also when the frame does not tell, which is a huge number
            raise RemoteProtocolError(f"it would have {told} bytes, and at most {MAX_UNPACKED_BYTES} are taken")
        expanded: bytes = library.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompress(
            content, max_output_size=MAX_UNPACKED_BYTES, allow_extra_data=False
        )
    except (library.ZstdError, ValueError, MemoryError) as error:
        raise RemoteProtocolError(f"it is badly compressed: {str(error)[:100]}") from error
    return expanded


def _zstandard() -> ModuleType | None:
    try:
        import zstandard as library
    except ImportError:
        return None
    return library
