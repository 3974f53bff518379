"""What is kept of the readings of one group: counts, extremes, the sum and a histogram.

All of it is the same for the same readings in any order and in any split: counts and extremes are by nature, the sum
is exact, an integer divided by a power of two, and for the histogram see :mod:`cloud_relay.aggregates.histogram`. So a
group is equal, bit for bit, to what is computed from its records anew, and two groups can be merged.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cloud_relay.aggregates.histogram import (
    FINEST_LEVEL,
    Bins,
    add_to_bins,
    merge_bins,
    number_at,
    relative_error,
)
from cloud_relay.aggregates.measuring import Measured, Number, Unmeasured

_PERCENTILE_UNITS: Final = 100_000
"""Percentiles are in thousandths of a percent."""
COUNTS: Final = ("records", "numbers", "nans", "infinities", "missing", "others")
EXTREMES: Final = ("min", "mean", "max", "sum")


class GroupSummary:
    """Of one group."""

    __slots__ = ("bins", "counts", "exponent", "greatest", "is_sorted", "least", "level", "numbers", "numerator")

    def __init__(self) -> None:
        self.numbers = 0
        self.counts = [0] * len(Unmeasured)
        """Of readings without a number, by the value of :class:`~cloud_relay.aggregates.measuring.Unmeasured`."""
        self.least: Number | None = None
        self.greatest: Number | None = None
        self.numerator = self.exponent = 0
        """The sum is the numerator, divided by two to the power of the exponent."""
        self.bins: Bins = {}
        self.level = FINEST_LEVEL
        """That of the bins."""
        self.is_sorted = True
        """Whether the bins are in order. To sort them again would cost more than all else if a group is large."""

    @property
    def records(self) -> int:
        """How many readings there were."""
        return self.numbers + sum(self.counts)

    def add(self, readings: Sequence[Measured]) -> None:
        """Add readings."""
        numbers: list[Number] = []
        for reading in readings:
            if isinstance(reading, Unmeasured):
                self.counts[reading.value] += 1
            else:
                numbers.append(reading)
        if not numbers:
            return
        self.numbers += len(numbers)
        self._extend(min(numbers), max(numbers))
        numerator, exponent = self.numerator, self.exponent
        for number in numbers:
            top, bottom = number.as_integer_ratio()  # the bottom is a power of two
            shift = bottom.bit_length() - 1
            if shift > exponent:
                numerator <<= shift - exponent
                exponent = shift
            numerator += top << (exponent - shift)
        self.numerator, self.exponent = numerator, exponent
        before = (len(self.bins), self.level)
        self.level = add_to_bins(self.bins, self.level, numbers)
        self.is_sorted = self.is_sorted and (len(self.bins), self.level) == before

    def merge(self, other: "GroupSummary") -> None:
        """Add all that another one has."""
        self.numbers += other.numbers
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        if other.least is not None and other.greatest is not None:
            self._extend(other.least, other.greatest)
        exponent = max(self.exponent, other.exponent)
        self.numerator = (self.numerator << (exponent - self.exponent)) + (
            other.numerator << (exponent - other.exponent)
        )
        self.exponent = exponent
        self.is_sorted = False
        self.level = merge_bins(self.bins, self.level, other.bins, other.level)

    def told(self, percentiles: Sequence[float]) -> dict[str, Any]:
        """What people are told: counts, then ``min``, ``mean``, ``max``, ``sum`` and ``p50`` …, each None when there is
        no number, and ``percentile_error``, the relative error of the percentiles at most. Mean and sum are correctly
        rounded. A percentile is the number of the nearest rank, within that error."""
        told: dict[str, Any] = {
            "records": self.records,
            "numbers": self.numbers,
            **dict(zip(COUNTS[2:], self.counts, strict=True)),
        }
        names = [percentile_name(share) for share in percentiles]
        if self.least is None or self.greatest is None:
            return told | dict.fromkeys((*EXTREMES, *names, "percentile_error"))
        told |= {
            "min": self.least,
            "mean": self.numerator / (self.numbers << self.exponent),
            "max": self.greatest,
            "sum": self._sum(),
        }
        for share, name in zip(percentiles, names, strict=True):
            rank = max(1, -(-round(share * 1_000) * self.numbers // _PERCENTILE_UNITS))
            told[name] = min(max(number_at(self.bins, self.level, rank), self.least), self.greatest)
        return told | {"percentile_error": relative_error(self.level)}

    def encoded(self) -> bytes:
        """The summary as bytes, which are equal for equal summaries."""
        zeros = min(self.exponent, (self.numerator & -self.numerator).bit_length() - 1) if self.numerator else 0
        numerator, exponent = self.numerator >> zeros, self.exponent - zeros if self.numerator else 0
        return msgspec.msgpack.encode(
            (
                self.numbers,
                self.counts,
                self.least,
                self.greatest,
                numerator.to_bytes(numerator.bit_length() // 8 + 1, "big", signed=True),
                exponent,
                self.level,
                self.bins if self.is_sorted else dict(sorted(self.bins.items())),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "GroupSummary":
        """The summary in bytes of :meth:`encoded`. :raises msgspec.DecodeError: these are none."""
        found = cls()
        (
            found.numbers, found.counts, found.least, found.greatest, numerator, found.exponent, found.level,
            found.bins,
        ) = _decoder.decode(data)  # fmt: skip
        found.numerator = int.from_bytes(numerator, "big", signed=True)
        found.is_sorted = True
        return found

    def _extend(self, least: Number, greatest: Number) -> None:
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)

    def _sum(self) -> float | None:
        """None: it is beyond what a float holds."""
        try:
            return self.numerator / (1 << self.exponent)
        except OverflowError:
            return None


def percentile_name(share: float) -> str:
    """As in ``p50`` and ``p99.9``."""
    return f"p{share:g}"


_decoder: Final = msgspec.msgpack.Decoder(
    tuple[int, list[int], int | float | None, int | float | None, bytes, int, int, dict[int, int]]
)
