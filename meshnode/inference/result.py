"""The result of an inference, the same for a node in this process and for one that an application is connected to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocols.base.ids import NodeId
from protocols.inference.events import PartReport, RunReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PARTS_TOLD: Final = 64
"""Of one answer. A batch may have a thousand shards."""


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


def parts_text(parts: Sequence[PartReport]) -> str:
    """The first ``MAX_PARTS_TOLD`` parts as JSON, for protocols whose parameters may only be texts, numbers and bools;
    empty when the request was not divided."""
    if not parts:
        return ""
    return json.dumps([
        {
            "kind": part.kind, "index": part.index, "node": part.node, "took_ms": _ms(part.took_ns / 1e6),
            "queued_ms": _ms(part.queued_us / 1e3), "compute_ms": _ms(part.compute_us / 1e3),
            "input_bytes": part.input_bytes, "output_bytes": part.output_bytes, "replays": part.replays,
            "size": part.size,
        }
        for part in parts[:MAX_PARTS_TOLD]
    ])  # fmt: skip


def _ms(value: float) -> float:
    return round(value, 3)
