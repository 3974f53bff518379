"""The result of an inference, the same for a node in this process and for one that an application is connected to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocols.base.ids import NodeId
from protocols.inference.events import PartReport, RunReport

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Outputs, and who computed them for how long."""

    outputs: "dict[str, NDArray[Any]]"
    ran_on: NodeId
    took_ms: float
    """From the call to the answer."""
    compute_ms: float
    """The model's own time."""
    queued_ms: float
    """The time that it waited for a worker of the node that computed it."""
    attempts: tuple[RunReport, ...]
    """Every run that was started, losers and failures included."""
    model: str = ""
    """The model that ran: the one that was asked for, or the smaller one that the configuration lets take its place."""
    parts: tuple[PartReport, ...] = ()
    """Who computed which stage or shard, when the request was divided. ``ran_on`` is then the node of the last one,
    and the times are sums over all of them."""
