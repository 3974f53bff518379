"""Shared memory through which the tensors of a slot travel.

A segment is an anonymous file (``memfd_create``): it has no name that could be left behind in ``/dev/shm``, and is gone
with the last process that maps it. The node makes it and seals its size, because a process that shortened it would
have the node die by SIGBUS. So a segment never grows: a larger one takes its place.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.worker.messages import PlacedTensor
from protocols.base.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SEGMENT_BYTES: Final = 1 << 30
"""What the inputs and outputs of one run may take together. A frame between nodes carries 16 MiB."""
SMALLEST_BYTES: Final = 1 << 20
KEPT_BYTES: Final = 32 << 20
"""A larger segment is given back after the run that needed it. This one is enough for a full frame each way."""
_ALIGNED_TO: Final = 64
"""Operators may load tensors by aligned instructions; a cache line is enough for all."""


class Segment:
    """One piece of shared memory, mapped into this process."""

    def __init__(self, descriptor: int) -> None:
        """Map the segment behind ``descriptor``, and take over the descriptor."""
        self.size_bytes = os.fstat(descriptor).st_size
        self.descriptor: int | None = descriptor
        self._memory = mmap.mmap(descriptor, self.size_bytes)

    @classmethod
    def make(cls, size_bytes: int) -> "Segment":
        """A new segment of at least that size. :raises InferenceError: it would be larger than ``MAX_SEGMENT_BYTES``,
        or there is no memory."""
        if size_bytes > MAX_SEGMENT_BYTES:
            raise InferenceError(
                f"inputs and outputs of a run take {size_bytes} bytes together: at most {MAX_SEGMENT_BYTES} go to a "
                "worker process; split the batch"
            )
        rounded = max(SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length())
        try:
            descriptor = os.memfd_create("meshnode-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, rounded)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                return cls(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise InferenceError(f"no shared memory of {rounded} bytes for tensors ({error.strerror})") from error

    def close_descriptor(self) -> None:
        """The other process has it, or this one won't hand it on. The memory stays mapped while arrays view it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def put(self, arrays: "Iterable[tuple[str, NDArray[Any]]]", start: int) -> tuple[PlacedTensor, ...]:
        """Copy arrays into the segment, the first at ``start`` or behind it. They must fit, see :func:`size_of`."""
        placed = []
        for name, array in arrays:
            start = _aligned(start)
            self.view(tensor := PlacedTensor(name, array.dtype.str[1:], array.shape, start))[...] = array
            placed.append(tensor)
            start += array.nbytes
        return tuple(placed)

    def view(self, placed: PlacedTensor) -> "NDArray[Any]":
        """The tensor as an array on the shared memory.

        :raises ValueError: it reaches beyond the segment.
        """
        import numpy as np

        return np.ndarray(placed.shape, placed.dtype, self._memory, placed.offset)


def size_of(arrays: "Sequence[tuple[str, NDArray[Any]]]", start: int = 0) -> int:
    """Where arrays end that are put into a segment from ``start`` on, in bytes."""
    for _, array in arrays:
        start = _aligned(start) + prod(array.shape) * array.itemsize
    return _aligned(start)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED_TO) * _ALIGNED_TO
