"""What runs of models have cost lately: the median, which others are told, and the spread.

Methods may be called from any thread. At most ``MAX_OFFERS`` models are kept; the one that was new first gives way.
"""

import threading
from collections import OrderedDict, deque
from statistics import median
from typing import Final

from protocols.base.ids import ModelDigest
from protocols.base.limits import MAX_OFFERS

MEDIAN_WINDOW: Final = 31
"""The number of runs whose median is the model's cost. It is odd, and short enough to follow a throttled processor
within seconds."""
SPREAD_WINDOW: Final = 100
"""The number of runs whose spread is told. Five of them may take longer than the 95th percentile."""


class RunCosts:
    """The compute times of the last runs, by digest of the model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times_us: OrderedDict[ModelDigest, deque[int]] = OrderedDict()
        self._known_us: dict[ModelDigest, tuple[int, int]] = {}
        """Median and 95th percentile, of those that have had no run since they were asked for."""

    def record(self, digest: ModelDigest, compute_ns: int) -> None:
        """A run of that model took so long."""
        with self._lock:
            if digest not in self._times_us and len(self._times_us) >= MAX_OFFERS:
                self._known_us.pop(self._times_us.popitem(last=False)[0], None)
            self._times_us.setdefault(digest, deque(maxlen=SPREAD_WINDOW)).append(max(1, compute_ns // 1_000))
            self._known_us.pop(digest, None)

    def median_us(self, digest: ModelDigest) -> int | None:
        """The median of the last ``MEDIAN_WINDOW`` runs in microseconds; None before the first."""
        known = self._known(digest)
        return known[0] if known is not None else None

    def p95_us(self, digest: ModelDigest) -> int | None:
        """The 95th percentile of the last ``SPREAD_WINDOW`` runs in microseconds, by nearest rank: the largest of fewer
        than twenty. None before the first."""
        known = self._known(digest)
        return known[1] if known is not None else None

    def _known(self, digest: ModelDigest) -> tuple[int, int] | None:
        with self._lock:
            known, times = self._known_us.get(digest), self._times_us.get(digest)
            if known is None and times is not None:
                last, ordered = list(times)[-MEDIAN_WINDOW:], sorted(times)
                known = self._known_us[digest] = int(median(last)), ordered[-(-95 * len(ordered) // 100) - 1]
            return known
