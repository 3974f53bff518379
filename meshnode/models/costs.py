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

    def record(self, digest: ModelDigest, compute_ns: int) -> None:
        """A run of that model took so long."""
        with self._lock:
            if digest not in self._times_us and len(self._times_us) >= MAX_OFFERS:
                self._times_us.popitem(last=False)
            self._times_us.setdefault(digest, deque(maxlen=SPREAD_WINDOW)).append(max(1, compute_ns // 1_000))

    def median_us(self, digest: ModelDigest) -> int | None:
        """The median of the last ``MEDIAN_WINDOW`` runs in microseconds; None before the first."""
        times = self._last(digest)
        return int(median(times[-MEDIAN_WINDOW:])) if times else None

    def p95_us(self, digest: ModelDigest) -> int | None:
        """The 95th percentile of the last ``SPREAD_WINDOW`` runs in microseconds, by nearest rank: the largest of fewer
        than twenty. None before the first."""
        times = sorted(self._last(digest))
        return times[-(-95 * len(times) // 100) - 1] if times else None

    def _last(self, digest: ModelDigest) -> list[int]:
        with self._lock:
            return list(self._times_us.get(digest, ()))
