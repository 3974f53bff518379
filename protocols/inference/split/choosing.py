"""Whether a request should run as a pipeline or whole."""

from collections.abc import Sequence
from math import isqrt

from protocols.base.ids import NodeId
from protocols.inference.asking import Asking
from protocols.inference.costs import Demand
from protocols.inference.placement import GAIN_NS, GAIN_SHARE, Candidate
from protocols.inference.requests import OwnRequest
from protocols.inference.signature import TensorSignature
from protocols.inference.split.events import SplitModel
from protocols.inference.split.pipelines import StagedPlan
from protocols.wire.tensors import NamedTensor, Tensor


def fits(model: SplitModel, inputs: Sequence[NamedTensor]) -> bool:
    """Whether inputs have the types and sizes for which the model was cut. With others it runs whole."""
    kinds = {each.name: each for each in model.signature.inputs}
    return all(named.name in kinds and _is_of(named.tensor, kinds[named.name]) for named in inputs)


def _is_of(tensor: Tensor, kind: TensorSignature) -> bool:
    if tensor.dtype != kind.dtype or len(tensor.shape) != len(kind.shape):
        return False
    return all(size in (None, given) for size, given in zip(kind.shape, tensor.shape, strict=True))


def is_faster(
    asking: Asking, staged: StagedPlan, inputs: Sequence[NamedTensor], budget_ns: int, now: int
) -> bool:  # fmt: skip
    """Whether the pipeline clearly beats the whole model wherever that may run, or nobody can run the whole in time.

    Means add up. Stages are late independently of one another, so the distances of their 95th percentiles from their
    means add up as variances do: to the root of the sum of their squares.
    """
    size_bytes = sum(len(named.tensor.data) for named in inputs)
    whole = best(asking, staged.model, Demand(staged.digest, size_bytes), None, budget_ns, now)
    expected_ns, squares = 0, 0
    for planned in staged.stages:
        demand = Demand(planned.stage.digest, planned.input_bytes)
        stage = best(asking, planned.name, demand, planned.node, budget_ns, now)
        if stage is None:
            return False
        expected_ns += stage.expected_ns
        squares += (stage.p95_ns - stage.expected_ns) ** 2
    if whole is None:
        return True
    gain_ns = max(GAIN_NS, whole.p95_ns // GAIN_SHARE)
    return expected_ns + isqrt(squares) + gain_ns <= whole.p95_ns and expected_ns <= whole.expected_ns


def best(
    asking: Asking, name: str, demand: Demand, node: NodeId | None, budget_ns: int, now: int
) -> Candidate | None:  # fmt: skip
    """The node that is named if it can, or else whoever comes first; None: nobody can do it in time."""
    request = OwnRequest(0, name, demand.digest, (), (), now, budget_ns, False, node)
    ordered = asking.candidates.ordered(request, name, demand, True, now)
    return ordered[0] if ordered else None
