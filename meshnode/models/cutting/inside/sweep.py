"""The search for cuts: one pass over the nodes of a graph, in time proportional to its nodes and edges.

The pass keeps the set of *live* tensors: those that were computed at or before a node and are used after it. Where
few are live, the graph can be cut.

- Inputs of the model are not counted, because whoever has the model computed keeps them. The pass tells which of them
  are used later.
- Outputs of the model are not counted either unless later nodes use them: the stage that computes them hands them out.
- *Constant* nodes compute of weights and constants alone. What they compute is no boundary, because each stage that
  needs it computes it itself. A node that draws random numbers is not constant.
- What the bodies of ``If``, ``Loop`` and ``Scan`` use of the graph around them counts as used by the node.

This module knows nothing of ONNX: :mod:`.graphs` tells it what the nodes are.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GraphStep:
    """A node of a graph: the names of the tensors that it takes and gives, each name once."""

    takes: tuple[str, ...]
    """Tensors that other nodes compute, inputs of the model and weights, those that its bodies capture among them."""
    gives: tuple[str, ...]
    draws: bool = False
    """Whether it gives other values each time."""


@dataclass(frozen=True, slots=True)
class Place:
    """The state behind one node."""

    at: int
    """How many nodes, constant ones included, are before it."""
    live: tuple[str, ...]
    """In the order in which they were computed."""
    inputs: tuple[str, ...]
    """Inputs of the model that later nodes use, in their order."""
    weights: tuple[str, ...]
    """The weights that nodes use which are not used before the last place that was told."""


def places(steps: Sequence[GraphStep], inputs: Sequence[str], most: int) -> Iterator[Place]:
    """All places with 1 to ``most`` live tensors, in order, and at last the end of the graph with none.

    ``steps``: in an order in which each node stands behind those whose tensors it takes. ``inputs``: of the model.
    """
    producer = {name: at for at, step in enumerate(steps) for name in step.gives}
    is_constant = constant_steps(steps, inputs)
    last_use: dict[str, int] = {}
    for at, step in enumerate(steps):
        if not is_constant[at]:
            last_use.update(dict.fromkeys(step.takes, at))
    ending: list[list[str]] = [[] for _ in steps]
    for name, at in last_use.items():
        ending[at].append(name)
    live: dict[str, None] = {}
    later_inputs = {name: None for name in inputs if name in last_use}
    found, told = dict[str, None](), set[str]()
    reached = [False] * len(steps)
    for at, step in enumerate(steps):
        if is_constant[at]:
            continue
        _collect_weights(at, steps, producer, is_constant, reached, later_inputs, found)
        live.update(dict.fromkeys(name for name in step.gives if name in last_use))
        for name in ending[at]:
            live.pop(name, None)
            later_inputs.pop(name, None)
        if 1 <= len(live) <= most:
            yield Place(at + 1, tuple(live), tuple(later_inputs), _untold(found, told))
    yield Place(len(steps), (), (), _untold(found, told))


def constant_steps(
    steps: Sequence[GraphStep], inputs: Sequence[str], told: Collection[int] = frozenset()
) -> list[bool]:
    """For each node whether it computes of weights and constants alone. ``told``: nodes that do, whatever they take."""
    varying = set(inputs)
    answers = []
    for at, step in enumerate(steps):
        is_constant = at in told or (not step.draws and varying.isdisjoint(step.takes))
        if not is_constant:
            varying.update(step.gives)
        answers.append(is_constant)
    return answers


def _untold(found: dict[str, None], told: set[str]) -> tuple[str, ...]:
    fresh = tuple(name for name in found if name not in told)
    told.update(fresh)
    found.clear()
    return fresh


def _collect_weights(
    at: int, steps: Sequence[GraphStep], producer: dict[str, int], is_constant: Sequence[bool], reached: list[bool],
    inputs: dict[str, None], found: dict[str, None],
) -> None:  # fmt: skip
    """Add to ``found`` the weights that a node uses by itself or by constant nodes that nobody has reached before."""
    waiting = [at]
    while waiting:
        for name in steps[waiting.pop()].takes:
            source = producer.get(name)
            if source is None:
                if name not in inputs:
                    found[name] = None
            elif is_constant[source] and not reached[source]:
                reached[source] = True
                waiting.append(source)
