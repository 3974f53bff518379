"""Types and sizes of the tensors of a graph, as far as they are known or a run tells them."""

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir

from meshnode.models.cutting.description import CutTensor
from meshnode.models.cutting.inside.graphs import ModelGraph
from protocols.base.limits import MAX_TENSOR_DIMENSIONS, MAX_TEXT_CHARS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORT: Final = {
    ir.DataType.BOOL: "b1", ir.DataType.INT8: "i1", ir.DataType.INT16: "i2", ir.DataType.INT32: "i4",
    ir.DataType.INT64: "i8", ir.DataType.UINT8: "u1", ir.DataType.UINT16: "u2", ir.DataType.UINT32: "u4",
    ir.DataType.UINT64: "u8", ir.DataType.FLOAT16: "f2", ir.DataType.FLOAT: "f4", ir.DataType.DOUBLE: "f8",
}  # fmt: skip
"""The types that can travel, by their numbers in ONNX."""


class GraphTensors:
    """What is known of the tensors of one graph."""

    def __init__(self, graph: ModelGraph, bound: ModelGraph) -> None:
        """``bound``: the same graph, or one that knows more sizes."""
        self._graph, self._bound = graph, bound
        self._measured: dict[str, CutTensor] = {}

    def can_travel(self, name: str) -> bool:
        """Whether a tensor can be a boundary: sequences and texts can't, nor can a name that is too long."""
        value = self._graph.values[name]
        is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
        known = value.dtype is None or value.dtype in _SHORT
        few = value.shape is None or len(value.shape) <= MAX_TENSOR_DIMENSIONS
        return is_tensor and known and few and len(name) <= MAX_TEXT_CHARS

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those whose type or sizes are not known without a run, each once."""
        return [name for name in dict.fromkeys(names) if self._known(name) is None]

    def learn(self, name: str, array: "NDArray[Any]", always: tuple[int, ...] | None = None) -> None:
        """Take type and sizes of a tensor from what a run gave, and write into the graph what it does not tell.
        ``always``: the shape that the tensor always has; None: values decide on it."""
        value, dtype = self._graph.values[name], array.dtype.str[1:]
        self._measured[name] = _tensor(name, dtype, array.shape)
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        if always is not None and self._graph is self._bound:
            value.shape = ir.Shape(always)

    def tensor(self, name: str) -> CutTensor:
        """A tensor that is known by now."""
        found = self._known(name)
        assert found is not None, name
        return found

    def _known(self, name: str) -> CutTensor | None:
        if name in self._measured:
            return self._measured[name]
        for value in (self._graph.values[name], self._bound.values.get(name)):
            if value is None or value.dtype is None or value.shape is None:
                continue
            if all(isinstance(size, int) for size in value.shape):
                return _tensor(name, _SHORT[value.dtype], tuple(int(size) for size in value.shape))  # type: ignore[arg-type]
        return None


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> CutTensor:
    return CutTensor(name, dtype, shape, prod(shape) * int(dtype[1:]))
