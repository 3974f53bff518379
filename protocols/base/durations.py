"""The recent durations of one thing: their mean, their 95th percentile, and the shortest of them.

A window of the last ``WINDOW`` durations counts, so that a throttled processor is seen within seconds. What is older
than ``MEMORY_NS`` says nothing about now: once the newest is that old, the thing counts as never measured.

The 95th percentile is the nearest rank: the smallest duration that at least 95 of 100 do not exceed. Of fewer than
twenty durations that is the longest, which is what one should count with while little is known.
"""

from bisect import bisect_left, insort
from collections import deque
from math import ceil, sqrt
from typing import Final

from protocols.base import limits

WINDOW: Final = 100
"""Durations that count. With fewer, one stall of a neighbour in 33 would reach the 95th percentile now and then."""
MEMORY_NS: Final = 60 * limits.SECOND
"""How long a measurement counts. A neighbour that was slow for a moment is tried again after this."""
FRESH_NS: Final = limits.SECOND
"""How long the shortest one rules out that the next is shorter. After that, one may try whether that has changed."""
MAX_DURATION_NS: Final = limits.MAX_BUDGET_MS * limits.MS
"""Claims of neighbours go up to 2^64 µs; nothing that takes longer than the largest budget is told apart."""


class Durations:
    """See the module. Durations and instants are nanoseconds."""

    __slots__ = ("_at_ns", "_order", "_sorted", "_sum")

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        self._sum = self._at_ns = 0

    def add(self, duration_ns: int, now: int) -> None:
        """Take one more duration; the oldest gives way to it."""
        if now - self._at_ns >= MEMORY_NS:
            self._order.clear()
            self._sorted.clear()
            self._sum = 0
        elif len(self._order) >= WINDOW:
            oldest = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest
        duration_ns = min(max(duration_ns, 0), MAX_DURATION_NS)
        self._order.append(duration_ns)
        insort(self._sorted, duration_ns)
        self._sum += duration_ns
        self._at_ns = now

    def known(self, now: int) -> bool:
        """Whether something was measured that still counts."""
        return bool(self._order) and now - self._at_ns < MEMORY_NS

    def is_fresh(self, now: int) -> bool:
        """Whether the newest was measured within ``FRESH_NS``."""
        return bool(self._order) and now - self._at_ns < FRESH_NS

    @property
    def mean_ns(self) -> int:
        """The mean; 0 before the first."""
        return self._sum // len(self._order) if self._order else 0

    @property
    def p95_ns(self) -> int:
        """The 95th percentile; 0 before the first."""
        return self._sorted[(95 * len(self._sorted) + 99) // 100 - 1] if self._sorted else 0

    @property
    def late_ns(self) -> int:
        """The least that the 95th percentile of all durations, of which these are a sample, may be with a confidence of
        95 %; 0 before the first. In a small sample a few stalls reach its own 95th percentile, and not this."""
        count = len(self._sorted)
        if not count:
            return 0
        rank = 0.95 * count - 1.645 * sqrt(0.05 * 0.95 * count)  # the normal approximation of the binomial
        return self._sorted[max(ceil(rank), 1) - 1]

    @property
    def shortest_ns(self) -> int:
        """The shortest; 0 before the first."""
        return self._sorted[0] if self._sorted else 0
