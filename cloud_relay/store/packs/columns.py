"""Columns of numbers as bytes, and blocks of bytes compressed with Zstandard.

Integers are kept as differences, and the bytes of all numbers lie apart by their rank, because the upper ones hardly
differ. Each block has Zstandard's checksum, so one that was changed on the disk is refused and never believed.
"""

from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols.base.errors import StorageError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LEVEL: Final = 6
"""Of compression. 9 takes twice the time for 1 % less."""
_MAX_EXPANDED_BYTES: Final = 256 * 1024 * 1024
"""No block is larger. A damaged head of a frame could ask for any size."""


def integers_packed(values: Integers) -> bytes:
    """The bytes of integers. Their differences wrap at 64 bits, and wrap back."""
    return _apart(np.diff(values, prepend=np.int64(0)))


def integers_unpacked(data: bytes) -> Integers:
    """The integers of :func:`integers_packed`."""
    return np.cumsum(_together(data).view("<i8"), dtype=np.int64)


def floats_packed(values: Floats) -> bytes:
    """The bytes of numbers, each bit of them kept."""
    return _apart(values)


def floats_unpacked(data: bytes) -> Floats:
    """The numbers of :func:`floats_packed`."""
    return _together(data).view("<f8")


def short_columns_unpacked(integers: list[bytes], floats: list[bytes]) -> tuple[list[Integers], list[Floats]]:
    """Columns of :func:`integers_packed` and :func:`floats_packed`, all of one length. Of a few hundred numbers each,
    all at once take a third of the time.

    :raises ValueError: they have no such length.
    """
    together = _short_together(integers).view("<i8")
    return list(np.cumsum(together, axis=1, dtype=np.int64)), list(_short_together(floats).view("<f8"))


def _short_together(columns: list[bytes]) -> NDArray[np.uint8]:
    ranks = np.frombuffer(b"".join(columns), np.uint8).reshape(len(columns), 8, -1)
    return np.ascontiguousarray(ranks.transpose(0, 2, 1)).reshape(len(columns), -1)


def _apart(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, 8).T.tobytes()


def _together(data: bytes) -> NDArray[np.uint8]:
    ranks = np.frombuffer(data, np.uint8).reshape(8, -1)
    together = np.empty((ranks.shape[1], 8), np.uint8)
    for rank, of_rank in enumerate(ranks):  # one rank after the other is faster than NumPy's copy of all of them
        together[:, rank] = of_rank
    return together.reshape(-1)


def compressed(data: bytes) -> bytes:
    """A block. :raises StorageError: zstandard is missing."""
    made: bytes = zstandard().ZstdCompressor(LEVEL, write_checksum=True).compress(data)
    return made


def expanded(data: bytes) -> bytes:
    """The bytes of a block. :raises ValueError: it was changed. :raises StorageError: zstandard is missing."""
    library = zstandard()
    try:
        if not 0 <= library.frame_content_size(data) <= _MAX_EXPANDED_BYTES:
            raise ValueError("it does not say how large it is")
        content: bytes = library.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except (library.ZstdError, MemoryError) as error:
        raise ValueError(str(error)) from error
    return content


def zstandard() -> ModuleType:
    """The library. :raises StorageError: it is missing."""
    try:
        import zstandard as library
    except ImportError as error:
        raise StorageError("packed records need zstandard: run pip install 'meshnode[packing]'") from error
    return library
