"""Applying a delta: the new file out of the old one, within bounds of memory that hold for any delta."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import msgspec

from meshnode.models.deltas.blocks import read_untrusted
from meshnode.models.deltas.form import (
    BLOCK_BYTES,
    ITEM_BYTES,
    MAX_HEAD_BYTES,
    MAX_WINDOW_BYTES,
    DeltaSegment,
    TensorDelta,
    check_base,
    zstandard,
)
from protocols.base.errors import ModelInvalid

_heads: Final = msgspec.msgpack.Decoder(TensorDelta)


def apply_delta(method: str, base: bytes, delta: bytes, limit: int) -> bytes:
    """The file that a delta makes of ``base``. ``limit``: how large it may be; that many bytes are taken at most, and a
    few megabytes beside them.

    :raises ModelInvalid: the delta is for another base, is damaged, or would make a larger file.
    """
    library = zstandard()
    try:
        match method:
            case "tensors":
                return _tensors(library, base, delta, limit)
            case "zstd":
                return _patched(library, base, delta, limit)
            case _:
                raise ModelInvalid(f"a delta of the method {method[:40]!r} can't be applied: update this node")
    except (library.ZstdError, msgspec.DecodeError, ValueError, MemoryError) as error:
        raise ModelInvalid(f"a delta is damaged: {str(error)[:200]}: fetch the whole file") from error


def _patched(library: Any, base: bytes, delta: bytes, limit: int) -> bytes:
    check_base(base, delta[:32])
    frame = delta[32:]
    told = library.get_frame_parameters(frame)
    if not 0 < told.content_size <= limit:  # also when the frame does not tell, which is a huge number
        raise ModelInvalid(f"a delta makes a file of {told.content_size} bytes, and at most {limit} are wanted")
    source = library.ZstdCompressionDict(base, dict_type=library.DICT_TYPE_RAWCONTENT)
    window = 1 << max(10, (len(base) + limit).bit_length())
    # With its size in the frame, the output is the window: no other memory is taken for it.
    made: bytes = library.ZstdDecompressor(dict_data=source, max_window_size=min(window, 1 << 31)).decompress(frame)
    return made


def _tensors(library: Any, base: bytes, delta: bytes, limit: int) -> bytes:
    import numpy as np

    with library.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(delta) as stream:
        head = _heads.decode(_exactly(stream, _head_bytes(stream)))
        if head.size_bytes > limit:
            raise ModelInvalid(f"a delta makes a file of {head.size_bytes} bytes, and at most {limit} are wanted")
        check_base(base, head.base)
        _check_segments(head, len(base))
        old = np.frombuffer(base, np.uint8)
        made = np.empty(head.size_bytes, np.uint8)
        at = 0
        for segment in head.segments:
            _copy(stream, made[at : segment.at])
            for begin, end in blocks_of(segment):
                difference = read_untrusted(partial(_exactly, stream), end - begin, segment.item_bytes)
                before = old[segment.base_at + begin : segment.base_at + end]
                np.bitwise_xor(difference, before, out=made[segment.at + begin : segment.at + end])
            at = segment.at + segment.size_bytes
        _copy(stream, made[at:])
        if stream.read(1):
            raise ModelInvalid("a delta goes on behind the end of its file: fetch the whole file")
    return made.tobytes()


def blocks_of(segment: DeltaSegment) -> Iterator[tuple[int, int]]:
    """Where the blocks of a segment begin and end in it."""
    for begin in range(0, segment.size_bytes, BLOCK_BYTES):
        yield begin, min(begin + BLOCK_BYTES, segment.size_bytes)


def _head_bytes(stream: Any) -> int:
    size = int.from_bytes(_exactly(stream, 4), "little")
    if size > MAX_HEAD_BYTES:
        raise ModelInvalid(f"a delta has a head of {size} bytes: at most {MAX_HEAD_BYTES} are read")
    return size


def _check_segments(head: TensorDelta, base_bytes: int) -> None:
    at = 0
    for segment in head.segments:
        if segment.at < at or segment.at + segment.size_bytes > head.size_bytes:
            raise ModelInvalid("a delta has segments that overlap, or reach beyond its file: fetch the whole file")
        if segment.base_at + segment.size_bytes > base_bytes:
            raise ModelInvalid("a delta reaches beyond the end of its base: fetch the whole file")
        if segment.item_bytes not in ITEM_BYTES or segment.size_bytes % segment.item_bytes:
            raise ModelInvalid(f"a delta has elements of {segment.item_bytes} bytes: fetch the whole file")
        at = segment.at + segment.size_bytes


def _copy(stream: Any, out: Any) -> None:
    for begin in range(0, len(out), BLOCK_BYTES):
        part = out[begin : begin + BLOCK_BYTES]
        part[:] = memoryview(_exactly(stream, len(part)))


def _exactly(stream: Any, size: int) -> bytes:
    data: bytes = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise ModelInvalid("a delta is cut off: fetch the whole file")
        data += more
    return data
