"""Counts and latencies by labels, from any thread.

Invariant: labels have bounded values. The first ``MAX_SERIES`` combinations of one family get a series of their own and
the rest share one whose labels are all ``other``, for ever, so that no counter ever decreases.
"""

import bisect
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from cloud_relay.metrics.families import PREFIX, Labels

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of the buckets: from a page out of memory to a disk that is as good as full."""
MAX_SERIES: Final = 128
OTHER: Final = "other"


class LabelledHistogram:
    """One family of histograms."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        """``name`` without the prefix and with the unit."""
        self._name, self._text, self._labels = name, text, labels
        self._lock = threading.Lock()
        self._series: dict[Labels, tuple[list[int], list[float]]] = {}
        """Counts of the buckets, and the sum in seconds."""

    def observe(self, took_s: float, *labels: str) -> None:
        """Count something that took so long."""
        with self._lock:
            if labels not in self._series and len(self._series) >= MAX_SERIES:
                labels = (OTHER,) * len(self._labels)
            counts, total_s = self._series.setdefault(labels, ([0] * (len(BOUNDS_S) + 1), [0.0]))
            counts[bisect.bisect_left(BOUNDS_S, took_s)] += 1
            total_s[0] += took_s

    def collect(self) -> "Iterable[Metric]":
        """The family."""
        from prometheus_client.core import HistogramMetricFamily  # imported at the first scrape

        family = HistogramMetricFamily(f"{PREFIX}{self._name}", self._text, labels=self._labels)
        with self._lock:
            series = [(labels, list(counts), total_s[0]) for labels, (counts, total_s) in self._series.items()]
        for labels, counts, total_s in sorted(series):
            reached, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
                reached += count
                buckets.append((bound, float(reached)))
            family.add_metric(labels, buckets, total_s)
        yield family
