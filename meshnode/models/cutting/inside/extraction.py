"""Stages cut out of a graph, as ONNX files of the same bytes wherever they are made.

A stage takes what its nodes use of earlier nodes and of the inputs of the model. It gives what later nodes use, and
those outputs of the model that it computes. ``onnx.utils.Extractor`` is not used: it dropped nodes whose results only
the bodies of ``If`` and ``Loop`` use, and gave invalid models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from meshnode.models.cutting.inside.graphs import ModelGraph
from meshnode.models.cutting.inside.narrowing import round_outputs, rounded_names, widen_inputs
from meshnode.models.cutting.inside.sweep import constant_steps
from meshnode.models.manifest import BoundaryForm
from meshnode.models.model import MAX_MODEL_BYTES
from protocols.base.errors import ModelInvalid


@dataclass(frozen=True, slots=True)
class Boundary:
    """The names of the tensors that a stage takes and gives."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]


def boundaries(graph: ModelGraph, ends: Sequence[int]) -> list[Boundary]:
    """What each stage takes and gives. ``ends``: how many nodes of the graph are before the end of each stage; the last
    one is the number of its nodes."""
    is_constant = constant_steps(graph.steps, graph.inputs)
    stage_of_node = [number for number, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
                     for _ in range(first, last)]  # fmt: skip
    stage_of = {
        name: stage_of_node[at] for at, step in enumerate(graph.steps) if not is_constant[at] for name in step.gives
    }
    takes: list[dict[str, None]] = [{} for _ in ends]
    gives: list[dict[str, None]] = [{} for _ in ends]
    for name in graph.outputs:
        gives[stage_of.get(name, len(ends) - 1)][name] = None
    crossing = set[str]()
    for at, step in enumerate(graph.steps):
        stage = stage_of_node[at]
        if is_constant[at]:
            continue
        for name in step.takes:
            if name in graph.inputs:
                takes[stage][name] = None
            elif stage_of.get(name, stage) != stage:
                takes[stage][name] = None
                crossing.add(name)
    for name in graph.outputs:
        if name in graph.inputs:
            takes[-1][name] = None
    for name in stage_of:
        if name in crossing:
            gives[stage_of[name]][name] = None
    return [Boundary(tuple(taken), tuple(given)) for taken, given in zip(takes, gives, strict=True)]


def extracted(graph: ModelGraph, boundary: Boundary, form: BoundaryForm = "raw") -> bytes:
    """The ONNX file of a stage, weights included. ``form``: how tensors travel from stage to stage.

    :raises ModelInvalid: the stage gives nothing, can't be cut out, is too large, or has operators that are too old
        for ``form``.
    """
    if not boundary.gives:
        raise ModelInvalid("a stage between two cuts computes nothing that is used later: leave out one of the cuts")
    try:
        stage = ir.convenience.extract(graph.graph, boundary.takes, boundary.gives)
    except ValueError as error:
        raise ModelInvalid(f"a stage can't be cut out: {error}") from error
    names = rounded_names(graph, form)
    round_outputs(stage, names, form)
    widen_inputs(stage, names, form)
    weights = sorted(stage.initializers.values(), key=lambda value: str(value.name))
    stage.initializers.clear()
    stage.initializers.update((str(value.name), value) for value in weights)
    stage.inputs.extend(value for value in weights if value.name in graph.overridable)
    stage.name = "stage"
    model = ir.Model(stage, ir_version=graph.model.ir_version, producer_name="meshnode",
                     functions=list(graph.model.functions.values()))  # fmt: skip
    try:
        content = ir.to_proto(model).SerializeToString(deterministic=True)
    except ValueError as error:  # protobuf's own, for messages that are too large
        raise ModelInvalid(f"a stage takes more than {MAX_MODEL_BYTES} bytes: cut it into smaller ones") from error
    assert isinstance(content, bytes)
    return content
