"""Requests for several runs of one model, one after the other.

An input that is given several times, as tensors of one name, asks for as many runs: the first run takes the first of
these tensors, the second run the second one. What is given once goes to every run. The answer has the outputs of the
first run, then those of the second one, and so on. A run is the same as that of a request of its own, so its outputs
have the same bits.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from protocols.base.errors import InputInvalid
from protocols.wire.tensors import NamedTensor, Tensor


def runs_in(inputs: Sequence[NamedTensor]) -> int:
    """For how many runs these inputs ask."""
    names = [named.name for named in inputs]
    if len(set(names)) == len(names):
        return 1
    return max(Counter(names).values())


def inputs_of_each(inputs: Iterable[NamedTensor]) -> list[dict[str, Tensor]]:
    """The inputs of each run, by name.

    :raises InputInvalid: one input is given twice and another one three times.
    """
    given: dict[str, list[Tensor]] = {}
    for named in inputs:
        given.setdefault(named.name, []).append(named.tensor)
    runs = max(map(len, given.values()), default=1)
    for name, tensors in given.items():
        if len(tensors) not in (1, runs):
            raise InputInvalid(
                f"input {name[:80]!r} is given {len(tensors)} times, and another one {runs} times: give one tensor of "
                "each for every run"
            )
    return [{name: tensors[run % len(tensors)] for name, tensors in given.items()} for run in range(runs)]


def outputs_of_each(outputs: Sequence[NamedTensor], runs: int) -> list[Sequence[NamedTensor]]:
    """The outputs of each run. If so many runs can't have given them, some have none."""
    each = len(outputs) // runs if len(outputs) % runs == 0 else 0
    return [outputs[run * each : (run + 1) * each] for run in range(runs)]
