"""The graph that is cut: the model as ONNX Runtime simplifies it for fixed shapes, in portable operators.

- Open sizes of inputs are bound first, so that what the model computes of shapes becomes constants. Otherwise those
  computations reach across every cut.
- It is saved at the level ``ORT_ENABLE_BASIC``, also for models that run at a higher one: what higher levels write
  is for one kind of processor. A model that runs without optimisation is not optimised here either.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from meshnode.models.cutting.inside.sweep import GraphStep
from meshnode.models.model import LoadedModel, ModelContent, ModelSpec, explained, session_options
from protocols.base.errors import ModelInvalid
from protocols.inference.signature import TensorSignature

OVERRIDABLE_SINCE: Final = 4
"""The version of ONNX's files from which on a weight that is an input too may be given anew."""
_DRAWING: Final = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
                             "Bernoulli"})  # fmt: skip


def bound_shapes(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each input for which the model is cut: that of ``warm_up``, or of its picture, or else its own with
    an open first size taken as 1. An input that may have any shape is left out.

    :raises ModelInvalid: other sizes are open.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for accepted in model.accepted:
        tensor, given = accepted.tensor, model.spec.warm_up.get(accepted.tensor.name)
        if given is None and accepted.steps is not None:
            given = accepted.steps.shape
        if given is None and tensor.has_any_shape:
            continue
        sizes = given if given is not None else (*_leading(tensor), *tensor.shape[1:])
        if None in sizes:
            example = ",".join("?" if size is None else str(size) for size in sizes)
            raise ModelInvalid(
                f"model {model.name!r} leaves sizes of its input {tensor} open, and it is cut for fixed ones: give its "
                f"shape ('warm_up' in a configuration, --warm-up {tensor.name}={example} with numbers for '?' on the "
                "command line)"
            )
        shapes[tensor.name] = tuple(size for size in sizes if size is not None)
    return shapes


def _leading(tensor: TensorSignature) -> tuple[int | None, ...]:
    return tuple(1 if size is None else size for size in tensor.shape[:1])


def simplified(spec: ModelSpec, read: ModelContent, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The simplified graph of a model as an ONNX file, weights included.

    :raises ModelInvalid: ONNX Runtime can't load the model.
    """
    import onnxruntime

    proto = onnx.load_model_from_string(read.content)
    for value in proto.graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            dimensions = value.type.tensor_type.shape.dim
            del dimensions[:]
            for size in shapes[value.name]:
                dimensions.add(dim_value=size)
    options = session_options(spec, read.weights)
    if spec.optimisation != "disabled":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # ONNX Runtime writes to files only. One in memory is never short of room on a disk.
    with open(os.memfd_create("graph"), "rb") as file:
        options.optimized_model_filepath = f"/proc/self/fd/{file.fileno()}"
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception
            raise explained(spec, error) from error
        return file.read()


class ModelGraph:
    """A simplified graph, its nodes in an order in which they can be computed."""

    def __init__(self, content: bytes, inputs: Sequence[str], outputs: Sequence[str], *, infer: bool = False) -> None:
        """``inputs``: of the model. ``outputs``: those of its outputs that can travel. ``infer``: find out types and
        shapes. ONNX does so by the values of all weights, :attr:`overridable` ones too, so it is done once at first."""
        self.model = ir.from_proto(onnx.load_model_from_string(content))
        self.graph = self.model.graph
        self.graph.sort()
        self.overridable = set[str]()
        """Weights that are inputs too. ONNX Runtime does not take them for constants when it optimises."""
        for at in reversed(range(len(self.graph.inputs))):
            value = self.graph.inputs[at]
            if value.name in inputs:
                continue
            if value.is_initializer() and (self.model.ir_version or 0) >= OVERRIDABLE_SINCE:
                self.overridable.add(str(value.name))
            else:
                del self.graph.inputs[at]  # old files list weights, and nobody gives those
        if infer:
            ShapeInferencePass(check_type=False, strict_mode=False)(self.model)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.nodes = list(self.graph)
        self.steps = [self._step(node) for node in self.nodes]
        self.values = {value.name: value for node in self.nodes for value in node.outputs if value.name}
        for values in (self.graph.inputs, self.graph.initializers.values()):
            self.values.update((value.name, value) for value in values if value.name)

    def content(self) -> bytes:
        """The graph as an ONNX file, the same for the same graph."""
        content = ir.to_proto(self.model).SerializeToString(deterministic=True)
        assert isinstance(content, bytes)
        return content

    def weight_bytes(self, name: str) -> int:
        """The size of a weight."""
        value = self.graph.initializers.get(name)
        tensor = value.const_value if value is not None else None
        return tensor.nbytes if tensor is not None else 0

    def _step(self, node: ir.Node) -> GraphStep:
        takes = dict.fromkeys(self._used(node))
        gives = tuple(value.name for value in node.outputs if value.name)
        draws = any(each.op_type in _DRAWING for each in (node, *_inner_nodes(node)))
        return GraphStep(tuple(takes), gives, draws)

    def _used(self, node: ir.Node) -> Iterator[str]:
        """What a node takes of this graph, by itself and in its bodies at any depth."""
        values = [node.inputs, *(each.inputs for each in _inner_nodes(node)), *(body.outputs for body in _bodies(node))]
        for value in (value for group in values for value in group):
            if value is not None and value.name and value.graph is self.graph:
                yield value.name


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node, at any depth."""
    waiting = [node]
    while waiting:
        for attribute in waiting.pop().attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                bodies = [attribute.as_graph()]
            elif attribute.type == ir.AttributeType.GRAPHS:
                bodies = list(attribute.as_graphs())
            else:
                continue
            for body in bodies:
                yield body
                waiting.extend(body)


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for body in _bodies(node):
        yield from body
