"""The graph whose parts give the bits of the whole model.

A model with open sizes is simplified for fixed ones, if it then still gives the same bits. Sometimes it does not: with
sizes known, ONNX Runtime makes a ``Gemm`` of ``MatMul`` and ``Add``, which rounds in another way. Then the graph is the
one with open sizes, as ONNX Runtime knows it in the whole model. What it computes of sizes alone is computed once, and
becomes constants that ONNX Runtime must not look at when it optimises: initializers that are inputs too. It takes those
for values that may be given anew. The files of the stages then leave sizes open, and still compute for those of the
description alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
import onnx_ir as ir
from onnx import numpy_helper

from meshnode.models.cutting.inside.graphs import OVERRIDABLE_SINCE, ModelGraph, simplified
from meshnode.models.cutting.inside.samples import Arrays, as_tensors, run_for
from meshnode.models.cutting.inside.sweep import constant_steps
from meshnode.models.model import LoadedModel, ModelContent, session_options

_OF_SIZES: Final = ("Shape", "Size")


@dataclass(frozen=True, slots=True)
class ExactGraph:
    """A graph, and what is known of its shapes."""

    graph: ModelGraph
    bound: ModelGraph
    """The graph for fixed sizes, which tells shapes."""
    flaw: str = ""
    """Why no part of it may be used, in words that follow a colon. Empty: it gives the bits of the whole."""


def exact_graph(
    whole: LoadedModel, read: ModelContent, shapes: Mapping[str, tuple[int, ...]], tried: Sequence[Arrays]
) -> ExactGraph:
    """The graph for a model and the shapes of its inputs. ``tried``: samples on which it is compared with the whole.

    :raises ModelInvalid: ONNX Runtime can't load the model.
    """
    inputs, outputs = ([each.name for each in of] for of in (whole.inputs, whole.outputs))
    bound = ModelGraph(simplified(whole.spec, read, shapes), inputs, outputs, infer=True)
    if _gives_same_bits(whole, bound.content(), tried):
        return ExactGraph(bound, bound)
    if not _repeats_itself(whole, tried[0]):
        return ExactGraph(bound, bound, "its answers to the same inputs differ each time")
    unbound = ModelGraph(simplified(whole.spec, read, {}), inputs, outputs, infer=True)
    content = _with_sizes(unbound, bound, as_tensors(whole, tried[0]))
    is_exact = _gives_same_bits(whole, content, tried)
    flaw = "" if is_exact else "its answers differ in the last digits once it is simplified"
    return ExactGraph(ModelGraph(content, inputs, outputs), bound, flaw)


def _repeats_itself(whole: LoadedModel, arrays: Arrays) -> bool:
    once, again = whole.run(arrays), whole.run(arrays)
    return all(one.tobytes() == other.tobytes() for (_, one), (_, other) in zip(once, again, strict=True))


def _gives_same_bits(whole: LoadedModel, content: bytes, tried: Sequence[Arrays]) -> bool:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, session_options(whole.spec, {}), providers=["CPUExecutionProvider"])
    for arrays in tried:
        expected = whole.run(arrays)
        given = session.run([name for name, _ in expected], as_tensors(whole, arrays))
        if any(one.tobytes() != other.tobytes() for one, (_, other) in zip(given, expected, strict=True)):
            return False
    return True


def _with_sizes(graph: ModelGraph, bound: ModelGraph, fed: Arrays) -> bytes:
    """The graph with what it computes of sizes as constants. ``bound``: where these nodes are gone, since ONNX Runtime
    has computed them."""
    computed = {name for step in bound.steps for name in step.gives}
    told = {
        at for at, node in enumerate(graph.nodes)
        if node.op_type in _OF_SIZES and not node.domain and computed.isdisjoint(graph.steps[at].gives)
    }  # fmt: skip
    always = constant_steps(graph.steps, graph.inputs)
    of_sizes = constant_steps(graph.steps, graph.inputs, told)
    gone = [at for at in range(len(graph.steps)) if of_sizes[at] and not always[at]]
    given = {name for at in gone for name in graph.steps[at].gives}
    used = {name for at, step in enumerate(graph.steps) if not of_sizes[at] for name in step.takes}
    needed = [name for name in given if name in used or name in graph.outputs]
    proto = ir.to_proto(graph.model)
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in needed if name not in outputs)
    values = run_for(proto.SerializeToString(), fed, needed) if needed else {}
    proto = ir.to_proto(graph.model)
    if proto.ir_version < OVERRIDABLE_SINCE:
        _list_no_weights(proto)
    for at in reversed(gone):
        del proto.graph.node[at]
    for name in needed:
        tensor = numpy_helper.from_array(values[name][0], name)
        proto.graph.initializer.append(tensor)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    content = proto.SerializeToString(deterministic=True)
    assert isinstance(content, bytes)
    return content


def _list_no_weights(proto: onnx.ModelProto) -> None:
    """Make an old model a newer one, in which weights that are listed as inputs could be given anew."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    for at in reversed(range(len(proto.graph.input))):
        if proto.graph.input[at].name in weights:
            del proto.graph.input[at]
    proto.ir_version = OVERRIDABLE_SINCE
