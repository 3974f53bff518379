"""The cuts of a model, with their tensors, their share of the run time and the weights before them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final

import onnx_ir as ir

from meshnode.models.cutting.description import Cut, CutDescription, CutTensor
from meshnode.models.cutting.inside.exact import ExactGraph, exact_graph
from meshnode.models.cutting.inside.graphs import ModelGraph, bound_shapes
from meshnode.models.cutting.inside.samples import Arrays, as_tensors, run_for, samples
from meshnode.models.cutting.inside.sweep import Place, constant_steps, places
from meshnode.models.cutting.inside.tensors import GraphTensors
from meshnode.models.cutting.inside.timing import MARK, node_times, run_us
from meshnode.models.model import LoadedModel, ModelSpec, load_model, read_model

MAX_CUT_TENSORS: Final = 3
"""More of them hardly ever make a cut that is worth its bytes."""
_QUANTISING: Final = ("QuantizeLinear", "DynamicQuantizeLinear")


def describe(spec: ModelSpec, folder: Path, graph: Path) -> CutDescription:
    """Find the cuts of a model, and write the graph that stages are made of to ``graph``. ``folder``: for what is
    needed meanwhile.

    :raises ModelInvalid: the model can't be loaded, leaves sizes open, is too large, or fails on all samples.
    """
    whole = load_model(spec)
    shapes = bound_shapes(whole)
    tried = samples(whole, shapes)
    exact = exact_graph(whole, read_model(spec), shapes, tried)
    found, fed = exact.graph, as_tensors(whole, tried[0])
    tensors = GraphTensors(found, exact.bound)
    for name, array in fed.items():
        tensors.learn(name, array)
    all_places = list(places(found.steps, found.inputs, MAX_CUT_TENSORS))
    kept = [place for place in all_places[:-1] if not exact.flaw and all(map(tensors.can_travel, place.live))]
    _learn_unknown(found, tensors, [*(name for place in kept for name in place.live), *found.outputs], fed)
    graph.write_bytes(found.content())  # with the types that the run told
    shares = _shares(spec, found, fed, folder)
    weights = list(accumulate(sum(map(found.weight_bytes, place.weights)) for place in all_places))
    before = {place.at: total for place, total in zip(all_places, weights, strict=True)}
    cuts = [_cut(place, tensors, shares[place.at], before[place.at]) for place in kept]
    cuts = [cut for cut, is_worse in zip(cuts, _worse_than_quantised(found, cuts), strict=True) if not is_worse]
    return CutDescription(
        whole.digest,
        tuple(tensors.tensor(name) for name in found.inputs),
        tuple(tensors.tensor(name) for name in found.outputs),
        tuple(cuts), len(found.nodes), run_us(whole, tried[0]), weights[-1], _notes(whole, shapes, exact, cuts),
    )  # fmt: skip


def _cut(place: Place, tensors: GraphTensors, share: float, weight_bytes: int) -> Cut:
    carried = tuple(map(tensors.tensor, place.live))
    return Cut(place.at, carried, place.inputs, sum(each.size_bytes for each in carried), share, weight_bytes)


def _learn_unknown(graph: ModelGraph, tensors: GraphTensors, names: Sequence[str], fed: Arrays) -> None:
    """Run the graph once for the tensors whose type or sizes nothing tells."""
    if not (unknown := tensors.unknown(names)):
        return
    proto = ir.to_proto(graph.model)
    given = {output.name for output in proto.graph.output}
    for name in unknown:
        if name not in given:
            proto.graph.output.add(name=name)
    for name, (array, always) in run_for(proto.SerializeToString(), fed, unknown).items():
        tensors.learn(name, array, always)


def _shares(spec: ModelSpec, graph: ModelGraph, fed: Arrays, folder: Path) -> list[float]:
    """The part of the run time that the first ``k`` nodes take, for each ``k``."""
    proto = ir.to_proto(graph.model)
    for at, node in enumerate(proto.graph.node):
        node.name = f"{MARK}{at}"
    times = node_times(spec, proto.SerializeToString(), fed, folder)
    sums = list(accumulate((times.get(at, 0.0) for at in range(len(graph.nodes))), initial=0.0))
    return [
        round(before / sums[-1], 4) if sums[-1] else at / max(1, len(graph.nodes)) for at, before in enumerate(sums)
    ]


def _worse_than_quantised(graph: ModelGraph, cuts: Sequence[Cut]) -> list[bool]:
    """For each cut whether its neighbour carries the same values quantised, in fewer bytes.

    ONNX Runtime's higher levels compute ``DequantizeLinear``, an operator and ``QuantizeLinear`` as one. A cut between
    them would keep it from that and change results.
    """
    is_constant = constant_steps(graph.steps, graph.inputs)
    behind = _next_of(graph, is_constant)
    answers = []
    for number, cut in enumerate(cuts):
        last, following = graph.nodes[cut.at - 1], behind[cut.at]
        answers.append(
            (number > 0 and last.op_type == "DequantizeLinear" and _is_better(cuts[number - 1], cut, last.inputs))
            or (number + 1 < len(cuts) and following is not None and following.op_type in _QUANTISING
                and _is_better(cuts[number + 1], cut, following.outputs))
        )  # fmt: skip
    return answers


def _next_of(graph: ModelGraph, is_constant: Sequence[bool]) -> list[ir.Node | None]:
    """For each place the first node behind it that is not constant."""
    found: list[ir.Node | None] = [None]
    for node, constant in zip(reversed(graph.nodes), reversed(is_constant), strict=True):
        found.append(found[-1] if constant else node)
    return found[::-1]


def _is_better(other: Cut, cut: Cut, values: Iterable[ir.Value | None]) -> bool:
    names = {value.name for value in values if value is not None}
    return other.size_bytes < cut.size_bytes and any(each.name in names for each in other.tensors)


def _notes(
    model: LoadedModel, shapes: Mapping[str, tuple[int, ...]], exact: ExactGraph, cuts: Sequence[Cut]
) -> tuple[str, ...]:
    graph, notes = exact.graph, list(model.notes)
    for accepted in model.accepted:
        if None in accepted.tensor.shape:
            taken = CutTensor(accepted.tensor.name, accepted.tensor.dtype, shapes[accepted.tensor.name], 0)
            notes.append(f"Its input {accepted.tensor} is taken as {taken}: stages take this shape only.")
    if exact.flaw:
        notes.append(f"It has no cuts and runs whole: {exact.flaw}.")
    elif not cuts and len(graph.nodes) < 2:
        kind = graph.nodes[0].op_type if graph.nodes else "no"
        notes.append(f"It has no cuts and runs whole: it is a single {kind} node.")
    elif not cuts:
        notes.append(
            f"It has no cuts and runs whole: wherever its {len(graph.nodes)} nodes are parted, more than "
            f"{MAX_CUT_TENSORS} tensors are needed later, or some that can't travel."
        )
    return tuple(notes)
