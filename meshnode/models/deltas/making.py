"""Making a delta: the differences of tensors where the files are ONNX, or what Zstandard finds in the base.

What is returned was applied and gave the new file, byte for byte.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec

from meshnode.models.deltas.applying import apply_delta, blocks_of
from meshnode.models.deltas.blocks import written
from meshnode.models.deltas.form import (
    MAX_SEGMENTS,
    MAX_WINDOW_BYTES,
    DeltaSegment,
    Method,
    TensorDelta,
    zstandard,
)
from meshnode.models.deltas.tensors import StoredTensor, stored_tensors

GOOD_ENOUGH: Final = 0.1
"""A delta of tensors below this share of the file is taken without trying the other method, which takes seconds."""
_LEVEL: Final = 9
_LONG: Final = 24
"""With tables of the usual size Zstandard forgets the base: 53 % instead of 4.6 % for 5 % of changed weights."""


def make_delta(base: bytes, new: bytes) -> tuple[Method, bytes]:
    """The method and the bytes of the smallest delta that makes ``new`` out of ``base``. It may be larger than ``new``.

    :raises ModelInvalid: the library for it is not installed.
    """
    made = _of_tensors(base, new)
    if made is not None and len(made) <= GOOD_ENOUGH * len(new):
        return "tensors", made
    patch = _patch(base, new)
    return ("tensors", made) if made is not None and len(made) < len(patch) else ("zstd", patch)


def _patch(base: bytes, new: bytes) -> bytes:
    library = zstandard()
    window_log = min(31, max(10, (len(base) + len(new)).bit_length()))
    params = library.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=window_log, hash_log=_LONG, chain_log=_LONG, write_checksum=True, write_content_size=True
    )
    source = library.ZstdCompressionDict(base, dict_type=library.DICT_TYPE_RAWCONTENT)
    frame: bytes = library.ZstdCompressor(dict_data=source, compression_params=params).compress(new)
    return hashlib.sha256(base).digest() + frame


def _of_tensors(base: bytes, new: bytes) -> bytes | None:
    """The delta of tensors; None: there are none in common."""
    import numpy as np

    segments = tuple(_segments(stored_tensors(base), stored_tensors(new), len(base), len(new)))
    if not segments or len(segments) > MAX_SEGMENTS:
        return None
    library = zstandard()
    params = library.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=MAX_WINDOW_BYTES.bit_length() - 1, write_checksum=True
    )
    head = msgspec.msgpack.encode(TensorDelta(hashlib.sha256(base).digest(), len(new), segments))
    compressor = library.ZstdCompressor(compression_params=params).compressobj()
    parts: list[bytes] = [compressor.compress(len(head).to_bytes(4, "little") + head)]
    old, fresh, at = np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8), 0
    for segment in segments:
        parts.append(compressor.compress(new[at : segment.at]))
        for begin, end in blocks_of(segment):
            difference = np.bitwise_xor(
                fresh[segment.at + begin : segment.at + end], old[segment.base_at + begin : segment.base_at + end]
            )
            parts.append(compressor.compress(written(difference, segment.item_bytes)))
        at = segment.at + segment.size_bytes
    parts += (compressor.compress(new[at:]), compressor.flush())
    made = b"".join(parts)
    return made if apply_delta("tensors", base, made, len(new)) == new else None


def _segments(
    before: list[StoredTensor], now: list[StoredTensor], base_bytes: int, new_bytes: int
) -> Iterator[DeltaSegment]:
    """What of the new file can be told as a difference, in order: tensors of one name, type and shape, and what is
    between two of them where there is as much between their like in the base."""
    if not now and base_bytes == new_bytes:  # weights in a file of their own
        whole = base_bytes - base_bytes % 4
        if whole:
            yield DeltaSegment(0, 0, whole, 4)
        return
    known = {(tensor.name, tensor.kind): tensor for tensor in reversed(before)}
    at = base_at = 0
    for tensor in now:
        like = known.get((tensor.name, tensor.kind))
        if like is None or tensor.at < at:
            continue
        if (gap := tensor.at - at) and gap == like.at - base_at:
            yield DeltaSegment(at, base_at, gap, 1)
        yield DeltaSegment(tensor.at, like.at, tensor.size_bytes, tensor.item_bytes)
        at, base_at = tensor.at + tensor.size_bytes, like.at + like.size_bytes
    if at and (rest := new_bytes - at) and rest == base_bytes - base_at:
        yield DeltaSegment(at, base_at, rest, 1)
