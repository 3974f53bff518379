"""Files as chunks: what a description says of a file, and the chunks that travel.

A file is cut into chunks of one size. The index of a file is a chunk too: the SHA-256 digests of the others, one after
the other. Its own digest is the name of the content on the wire.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocols.base.errors import ReleaseInvalid
from protocols.base.limits import MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_CONTENT_BYTES
from protocols.releases.catalogue import Content

SMALLEST_CHUNK_BYTES: Final = 64 * 1024
"""Small chunks can be fetched from more neighbours at once, and little is lost when one is bad."""


def chunk_bytes_of(size_bytes: int) -> int:
    """The size of the chunks of a file: 64 KiB, or as much more as it takes to have at most ``MAX_CHUNKS`` of them.

    :raises ReleaseInvalid: the file is too large, or empty.
    """
    if not 0 < size_bytes <= MAX_CONTENT_BYTES:
        raise ReleaseInvalid(f"a file of {size_bytes} bytes can't be released: 1 to {MAX_CONTENT_BYTES} can travel")
    size = SMALLEST_CHUNK_BYTES
    while size < MAX_CHUNK_BYTES and size_bytes > size * MAX_CHUNKS:
        size *= 2
    return size


def chunk_file(path: Path, keep: Callable[[bytes], object]) -> Content:
    """Cut a file into chunks. ``keep`` is given each of them, and the index last.

    :raises ReleaseInvalid: the file is too large or empty, or can't be read.
    """
    try:
        size_bytes = path.stat().st_size
        return _chunked(_blocks(path, chunk_bytes_of(size_bytes)), size_bytes, keep)
    except OSError as error:
        raise ReleaseInvalid(f"{path} can't be read ({error.strerror}): check that it is a file of yours") from error


def chunk_data(data: bytes, keep: Callable[[bytes], object]) -> Content:
    """Cut bytes into chunks, as :func:`chunk_file` does. :raises ReleaseInvalid: they are too many, or none."""
    size = chunk_bytes_of(len(data))
    return _chunked((data[at : at + size] for at in range(0, len(data), size)), len(data), keep)


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block


def _chunked(blocks: Iterator[bytes], size_bytes: int, keep: Callable[[bytes], object]) -> Content:
    whole, index, read_bytes = hashlib.sha256(), bytearray(), 0
    for block in blocks:
        read_bytes += len(block)
        whole.update(block)
        index += hashlib.sha256(block).digest()
        keep(block)
    if read_bytes != size_bytes:
        raise ReleaseInvalid(f"a file of {size_bytes} bytes had {read_bytes} when it was read: publish it again")
    keep(bytes(index))
    return Content(
        sha256=whole.hexdigest(),
        size_bytes=size_bytes,
        chunk_bytes=chunk_bytes_of(size_bytes),
        index=hashlib.sha256(index).hexdigest(),
    )
