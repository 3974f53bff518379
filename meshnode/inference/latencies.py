"""How long own requests and their parts took and why requests failed, for Prometheus."""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from meshnode.http.exposition import LatencyHistogram, counter
from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.inference.events import Answered
from protocols.inference.relay import where_ran

if TYPE_CHECKING:
    from prometheus_client.core import Metric


MAX_DIVIDED: Final = 64
"""Models whose parts have series of their own; the rest share ``other``, since applications may name any model."""


class Latencies:
    """Collected while a server of metrics runs. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies = {where: LatencyHistogram() for where in ("here", "neighbour", "relay", "failed")}
        self._failures: dict[str, int] = {}
        self._parts: dict[tuple[str, str], LatencyHistogram] = {}
        """By model and kind of part."""

    def note(self, event: Answered, here: NodeId) -> None:
        """Count the end of a request of the node ``here``."""
        winner = event.winner
        where = "failed" if winner is None else where_ran(winner.node, here)
        with self._lock:
            self._latencies[where].observe(event.took_ns / SECOND)
            if winner is None:
                self._failures[event.failure] = self._failures.get(event.failure, 0) + 1
            for part in event.parts:
                self._part(event.model, part.kind).observe(part.took_ns / SECOND)

    def _part(self, model: str, kind: str) -> LatencyHistogram:
        if (model, kind) not in self._parts and len(self._parts) >= MAX_DIVIDED:
            model = "other"
        return self._parts.setdefault((model, kind), LatencyHistogram())

    def metrics(self) -> "Iterable[Metric]":
        """All that was counted."""
        from prometheus_client.core import HistogramMetricFamily

        latencies = HistogramMetricFamily(
            "meshnode_inference_latency_seconds",
            "Time from an own request to its end, by the node that computed.",
            labels=["where"],
        )
        parts = HistogramMetricFamily(
            "meshnode_inference_part_latency_seconds",
            "Time of one part of a divided request, from its start to its result.",
            labels=["model", "kind"],
        )
        with self._lock:
            for where, histogram in self._latencies.items():
                buckets, sum_s = histogram.cumulative()
                latencies.add_metric([where], buckets, sum_s)
            failures = [((kind,), float(count)) for kind, count in sorted(self._failures.items())]
            for (model, kind), histogram in sorted(self._parts.items(), key=lambda item: item[0]):
                buckets, sum_s = histogram.cumulative()
                parts.add_metric([model, kind], buckets, sum_s)
        failed = counter("inference_failures", "Own requests without an answer, by kind.", failures, "kind")
        return latencies, parts, failed
