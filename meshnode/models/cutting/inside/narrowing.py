"""Tensors between stages in fewer bytes: a stage rounds what it gives, and the next one widens what it takes.

Nodes for that are added to the files of the stages, so nothing else has to know of it:

- ``f16``: ``Cast`` to half precision and back.
- ``u8``: ``DynamicQuantizeLinear`` and ``DequantizeLinear``. The scale and the zero point come from the values of each
  run and travel beside them, so no range has to be known beforehand.

Only 32-bit floating-point tensors that are no outputs of the model are rounded. How much the outputs change is measured
when the stages are made (:mod:`~.equality`), because nothing else tells it.
"""

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from meshnode.models.cutting.inside.graphs import ModelGraph
from meshnode.models.manifest import BoundaryForm
from protocols.base.errors import ModelInvalid

_QUANTISES_SINCE: Final = 11
"""The version of ONNX's operators that has ``DynamicQuantizeLinear``."""
_WIDE: Final = "::f4"
"""Ends the name of a tensor inside a stage, whose own name is that of the rounded one."""
_SCALE: Final = "::scale"
_ZERO: Final = "::zero"


def rounded_names(graph: ModelGraph, form: BoundaryForm) -> frozenset[str]:
    """The names of the tensors that are rounded wherever the model is cut.

    :raises ModelInvalid: the operators of the model are too old for that form.
    """
    if form == "raw":
        return frozenset()
    version = graph.graph.opset_imports.get("", 0)
    if form == "u8" and version < _QUANTISES_SINCE:
        raise ModelInvalid(
            f"boundaries of a model with version {version} of ONNX's operators can't be 'u8', which needs "
            f"{_QUANTISES_SINCE}: say boundary = 'f16' in its manifest, or 'raw'"
        )
    return frozenset(
        name for name, value in graph.values.items()
        if value.dtype == ir.DataType.FLOAT and name not in graph.outputs and name not in graph.inputs
    )  # fmt: skip


def round_outputs(stage: ir.Graph, names: frozenset[str], form: BoundaryForm) -> None:
    """Have a stage give those of its outputs that are in ``names`` rounded."""
    outputs: list[ir.Value] = []
    for value in stage.outputs:
        name = str(value.name)
        if name not in names:
            outputs.append(value)
            continue
        value.name = name + _WIDE
        node = _rounding(value, name, form)
        stage.append(node)
        outputs += node.outputs
    stage.outputs[:] = outputs


def widen_inputs(stage: ir.Graph, names: frozenset[str], form: BoundaryForm) -> None:
    """Have a stage take those of its inputs that are in ``names`` rounded."""
    first = next(iter(stage), None)
    inputs: list[ir.Value] = []
    for value in stage.inputs:
        name = str(value.name)
        if name not in names or first is None:
            inputs.append(value)
            continue
        taken = list(_rounded(name, value.shape, form))
        wide = ir.Value(name=name + _WIDE, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
        ir.convenience.replace_all_uses_with(value, wide, replace_graph_outputs=True)
        stage.insert_before(first, _widening(taken, wide, form))
        inputs += taken
    stage.inputs[:] = inputs


def _rounded(name: str, shape: ir.Shape | None, form: BoundaryForm) -> Iterator[ir.Value]:
    """What travels for a tensor."""
    if form == "f16":
        yield ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=shape)
        return
    yield ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=shape)
    yield ir.Value(name=name + _SCALE, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(()))
    yield ir.Value(name=name + _ZERO, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(()))


def _rounding(value: ir.Value, name: str, form: BoundaryForm) -> ir.Node:
    given = list(_rounded(name, value.shape, form))
    if form == "f16":
        return ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT16.value)], outputs=given)
    return ir.Node("", "DynamicQuantizeLinear", [value], outputs=given)


def _widening(taken: list[ir.Value], wide: ir.Value, form: BoundaryForm) -> ir.Node:
    if form == "f16":
        return ir.Node("", "Cast", taken, [ir.AttrInt64("to", ir.DataType.FLOAT.value)], outputs=[wide])
    return ir.Node("", "DequantizeLinear", taken, outputs=[wide])
