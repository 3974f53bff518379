"""Metrics in the form that Prometheus reads: names, families, and bucketed latencies."""

import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values of the labels, and a number."""


class LatencyHistogram:
    """Bucketed latencies."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Count one latency."""
        self._counts[bisect.bisect_left(LATENCY_BUCKETS_S, took_s)] += 1
        self._sum_s += took_s

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """((upper bound, count up to it) pairs, sum in seconds)."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum_s


def gauge(name: str, text: str, samples: Samples, *labels: str) -> "GaugeMetricFamily":
    """A family of numbers that go up and down; ``name`` without the prefix ``meshnode_``."""
    # Imported at the first scrape: a node that nobody watches doesn't pay for it.
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"meshnode_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def counter(name: str, text: str, samples: Samples, *labels: str) -> "CounterMetricFamily":
    """A family of numbers that only grow; ``name`` as for :func:`gauge`."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"meshnode_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
