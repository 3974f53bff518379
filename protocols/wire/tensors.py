"""Arrays on the wire."""

from math import prod
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Text


class Tensor(Struct, frozen=True, array_like=True, gc=False):
    """An array on the wire: element type, shape, raw little-endian bytes in C order.

    NumPy takes it without a copy through ``__array_interface__``: ``numpy.asarray(tensor)``.
    """

    dtype: Literal["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    """Kind and bytes per element, as in NumPy's type strings."""
    shape: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    data: memoryview
    """After decoding a view into the frame, which it keeps alive."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        size_bytes = prod(self.shape) * int(self.dtype[1])
        if size_bytes != len(self.data):  # NumPy would read past the end
            raise ValueError(f"{self.dtype} {list(self.shape)} takes {size_bytes} bytes, not {len(self.data)}")
        order = "|" if self.dtype[1:] == "1" else "<"
        return {"version": 3, "shape": self.shape, "typestr": order + self.dtype, "data": self.data}


class NamedTensor(Struct, frozen=True, array_like=True, gc=False):
    """An input or output of a model."""

    name: Text
    tensor: Tensor
