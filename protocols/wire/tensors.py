"""Arrays on the wire."""

from math import prod
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError, ValueUnsupported
from protocols.wire.fields import Count, Text

_DTYPES: Final = {
    "?": "b1", "b": "i1", "B": "u1", "h": "i2", "H": "u2", "i": "i4", "I": "u4", "q": "i8", "Q": "u8",
    "l": "i8", "L": "u8", "e": "f2", "f": "f4", "d": "f8",
}  # fmt: skip
"""Element types by format character of the buffer protocol (``struct`` module). All supported platforms are LP64 and
little-endian."""


class Tensor(Struct, frozen=True, array_like=True, gc=False):
    """An array on the wire: its element type, its shape, and its raw little-endian bytes in C order.

    NumPy takes it without a copy through ``__array_interface__``: ``numpy.asarray(tensor)``.
    """

    dtype: Literal["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    """Kind and bytes per element, as in NumPy's type strings."""
    shape: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_TENSOR_DIMENSIONS)]
    data: memoryview
    """After decoding it is a view into the frame, which it keeps alive."""

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


def check_untrusted_tensor(tensor: Tensor) -> None:
    """:raises RemoteProtocolError: when shape and data do not fit each other, or no frame can carry the shape."""
    if prod(size for size in tensor.shape if size) > limits.MAX_FRAME_BYTES:  # NumPy refuses it even when it is empty
        raise RemoteProtocolError(f"a tensor has the shape {list(tensor.shape)}, more than any frame can carry")
    size_bytes = prod(tensor.shape) * int(tensor.dtype[1])
    if size_bytes != len(tensor.data):
        raise RemoteProtocolError(
            f"a tensor of {tensor.dtype} {list(tensor.shape)} has {len(tensor.data)} bytes instead of {size_bytes}"
        )


def tensor_of(array: Any) -> Tensor:
    """Describe anything with the buffer protocol (a NumPy array, ``array.array``, bytes) as a tensor, without a copy
    when it is contiguous.

    :raises ValueUnsupported: for object arrays, other byte orders or other element types.
    """
    try:
        view = memoryview(array)
    except (TypeError, ValueError, BufferError) as error:
        raise ValueUnsupported(f"a value of type {type(array).__name__} can't travel: {error}") from error
    dtype = _DTYPES.get(view.format.lstrip("<@="))
    if dtype is None or view.format.startswith((">", "!")):
        raise ValueUnsupported(
            f"elements of format {view.format!r} can't travel: convert to one of b1 i1…i8 u1…u8 f2 f4 f8"
        )
    if view.ndim > limits.MAX_TENSOR_DIMENSIONS:
        raise ValueUnsupported(
            f"a tensor of {view.ndim} dimensions can't travel: use at most {limits.MAX_TENSOR_DIMENSIONS}"
        )
    shape = tuple(view.shape or ())
    if not view.c_contiguous or 0 in shape:
        return Tensor(dtype, shape, memoryview(view.tobytes()))  # type: ignore[arg-type]
    return Tensor(dtype, shape, view.cast("B") if view.ndim else memoryview(view.tobytes()))  # type: ignore[arg-type]
