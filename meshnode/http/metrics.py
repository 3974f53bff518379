"""What a node tells Prometheus.

Counters are read when they are asked for; only latencies are collected meanwhile. Invariant: label values that others
choose (ids of peers) are bounded: the first ``MAX_LABELS`` get a series of their own and the rest share ``other``, for
good, so that no counter ever falls.
"""

import bisect
import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from meshnode.records.section import RelaySection
from protocols.base.limits import SECOND
from protocols.inference.events import Answered
from protocols.machine import Event
from protocols.membership.neighbour import State

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from meshnode.node import Node

MAX_LABELS: Final = 64
LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_GAUGES: Final = ("_waiting", "_pending", "_pending_bytes", "_untold_fates", "_lanes", "_held")
"""Endings of the names in ``Node.statistics`` that go up and down."""


class _Histogram:
    """Bucketed latencies."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float) -> None:
        self._counts[bisect.bisect_left(LATENCY_BUCKETS_S, took_s)] += 1
        self._sum_s += took_s

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """((upper bound, count up to it) pairs, sum in seconds)."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum_s


class _Labels:
    """The values of one label, bounded."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def bounded(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= MAX_LABELS:
                return "other"
            self._seen.add(value)
        return value


class Metrics:
    """Collects and prints the metrics of one node. Any thread."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._lock = threading.Lock()
        self._peers, self._reasons, self._strangers = _Labels(), _Labels(), _Labels()
        self._latencies = {"here": _Histogram(), "neighbour": _Histogram(), "failed": _Histogram()}
        self._failures: dict[str, int] = {}
        node.on_event(self._note)

    def _note(self, event: Event) -> None:
        if not isinstance(event, Answered):
            return
        winner = event.winner
        where = "failed" if winner is None else "here" if winner.node == self._node.id else "neighbour"
        with self._lock:
            self._latencies[where].observe(event.took_ns / SECOND)
            if winner is None:
                self._failures[event.failure] = self._failures.get(event.failure, 0) + 1

    def exposition(self) -> tuple[bytes, str]:
        """The page, and its media type."""
        # Imported at the first scrape: a node that nobody watches doesn't pay for it.
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> "Iterable[Metric]":
        """Called by the registry."""
        node = self._node
        yield _gauge("info", "Who this node is; always 1.", [((node.id, node.role.value, node.mesh), 1.0)],
                     "id", "role", "mesh")  # fmt: skip
        yield _gauge("certificate_ends_timestamp_seconds", "When the certificate ends, seconds since 1970.",
                     [((), node.certificate_ends.timestamp())])  # fmt: skip
        if node.config.given(RelaySection) is not None:
            connected = node.uplink_state.partition(" ")[0] == "connected"
            yield _gauge("relay_connected", "Whether the relay answers.", [((), float(connected))])
        for name, value in sorted(node.statistics().items()):
            text = re.sub(r"\W", "_", name)
            if text.endswith(_GAUGES):
                yield _gauge(text, f"See {name!r} in the reference.", [((), float(value))])
            elif text != "drops":  # it is the sum of the series below
                yield _counter(text, f"See {name!r} in the reference.", [((), float(value))])
        with self._lock:
            yield from self._collect_failures()
            yield from self._collect_drops()
            yield from self._collect_peers()
            yield from self._collect_inference()

    def _collect_drops(self) -> "Iterable[Metric]":
        sums: dict[tuple[str, ...], float] = {}
        for (peer, _, reason), count in self._node.drops():
            labels = (self._peers.bounded(peer or "self"), self._reasons.bounded(reason))
            sums[labels] = sums.get(labels, 0.0) + count
        yield _counter("drops", "Readings and frames dropped.", sorted(sums.items()), "peer", "reason")

    def _collect_failures(self) -> "Iterable[Metric]":
        # A gauge: the node forgets the oldest of them, and with it its count.
        sums: dict[tuple[str, ...], float] = {}
        for failed in self._node.link_failures():
            labels = (self._strangers.bounded(failed.peer), failed.kind)
            sums[labels] = sums.get(labels, 0.0) + failed.count
        yield _gauge("link_failures", "Links that did not come about, of those remembered.", sorted(sums.items()),
                     "peer", "kind")  # fmt: skip

    def _collect_peers(self) -> "Iterable[Metric]":
        peers = self._node.peers()
        states = [((state.value,), float(sum(peer.state is state for peer in peers))) for state in State]
        yield _gauge("neighbours", "Neighbours by state.", states, "state")
        # A gauge may stop: only those who are there, and no more than the bound on neighbours.
        present = [peer for peer in peers if peer.state in (State.ALIVE, State.SUSPECT)]
        measured = [((peer.node,), peer.round_trip_ns / SECOND) for peer in present if peer.round_trip_ns]
        yield _gauge("neighbour_round_trip_seconds", "Round trip of a heartbeat.", measured, "peer")
        paced = [((peer.node,), peer.throughput_bytes_per_s) for peer in present if peer.throughput_bytes_per_s]
        yield _gauge("neighbour_throughput_bytes_per_second", "Of the link, as the planner reckons.", paced, "peer")
        for name, what in (("waiting_readings", "Readings"), ("waiting_bytes", "Bytes")):
            values = [((peer.node,), float(getattr(peer, name))) for peer in present]
            yield _gauge(f"neighbour_{name}", f"{what} queued for a neighbour.", values, "peer")

    def _collect_inference(self) -> "Iterable[Metric]":
        from prometheus_client.core import HistogramMetricFamily

        latencies = HistogramMetricFamily(
            "meshnode_inference_latency_seconds",
            "From the request to its end, for own requests, by who computed.",
            labels=["where"],
        )
        for where, histogram in self._latencies.items():
            buckets, sum_s = histogram.cumulative()
            latencies.add_metric([where], buckets, sum_s)
        yield latencies
        failures = [((kind,), float(count)) for kind, count in sorted(self._failures.items())]
        yield _counter("inference_failures", "Own requests without an answer, by kind.", failures, "kind")


def _gauge(name: str, text: str, samples: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"meshnode_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, samples: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"meshnode_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
