"""A bounded histogram of times. It has sixteen bins an octave, so that a quantile is right within 3 %, whatever the
times are.

The bins are those of HdrHistogram (Gil Tene): a value keeps its five highest bits.
"""

from typing import Final

from sims.results.result import Distribution

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
_MAX_BITS: Final = 60
_MAX_SHIFT: Final = _MAX_BITS - 5
_BINS: Final = (_MAX_SHIFT + 2) << 4


def _upper_ns(index: int) -> int:
    """The first value beyond a bin."""
    if index < 32:
        return index + 1
    return ((index & 15) + 17) << ((index >> 4) - 1)


class Histogram:
    """A histogram of nanoseconds. A negative time counts as zero."""

    __slots__ = ("counts", "max_ns", "total_ns")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * _BINS
        self.total_ns = 0
        self.max_ns = 0

    def add(self, value_ns: int) -> None:
        """Count one value. This is hot, so it allocates nothing."""
        if value_ns > self.max_ns:
            self.max_ns = value_ns
        elif value_ns < 0:
            value_ns = 0
        self.total_ns += value_ns
        shift = value_ns.bit_length() - 5
        if shift < 0:
            shift = 0
        elif shift > _MAX_SHIFT:  # 36 years: in the last bin
            shift, value_ns = _MAX_SHIFT, (1 << _MAX_BITS) - 1
        self.counts[(shift << 4) + (value_ns >> shift)] += 1

    def add_all(self, values_ns: list[int]) -> None:
        """Count many values, none of them negative."""
        counts, total_ns, max_ns = self.counts, self.total_ns, self.max_ns
        for value_ns in values_ns:
            total_ns += value_ns
            if value_ns > max_ns:  # noqa: PLR1730  max() takes three times as long
                max_ns = value_ns
            shift = max(value_ns.bit_length() - 5, 0)
            index = (shift << 4) + (value_ns >> shift) if shift <= _MAX_SHIFT else _BINS - 1
            counts[index] = counts[index] + 1  # compiled, += would take a detour through objects
        self.total_ns, self.max_ns = total_ns, max_ns

    def spread(self, unit: str) -> Distribution:
        """The distribution as a result keeps it, in ``unit``: ``s`` or ``ms``."""
        count = sum(self.counts)
        if not count:
            return Distribution(unit)
        scale = 1e-9 if unit == "s" else 1e-6
        first = next(index for index, number in enumerate(self.counts) if number)
        last = next(index for index in range(_BINS - 1, -1, -1) if self.counts[index])
        edges = [0.0 if first == 0 else _upper_ns(first - 1) * scale]
        edges += [_upper_ns(index) * scale for index in range(first, last + 1)]
        quantiles = {name: self._quantile_ns(share, count) * scale for name, share in _QUANTILES}
        quantiles["max"] = self.max_ns * scale
        counts = [0, *self.counts[first : last + 1]]
        return Distribution(unit, count, self.total_ns / count * scale, quantiles, edges, counts)

    def _quantile_ns(self, share: float, count: int) -> float:
        """A quantile. It is linear within its bin, and never beyond the largest value."""
        wanted, before = share * count, 0
        for index, number in enumerate(self.counts):
            if number and before + number >= wanted:
                lower = _upper_ns(index - 1) if index else 0
                width = _upper_ns(index) - lower
                return min(lower + width * (wanted - before) / number, float(self.max_ns))
            before += number
        return float(self.max_ns)
