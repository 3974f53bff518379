"""When readings are near enough to one another, in time and in space.

Each reading says when it was sensed, and how far its clock may be wrong; and where, and within which radius. By default
a rule goes by the middles: of two readings, the one with the later middle came later, whether their intervals overlap
or not; equal middles have no order; and the distance is that of the two positions, whatever their radii.

With ``certain``, a condition must hold wherever in their intervals the true times are. The second of two readings
begins after the first one ends, so their intervals don't overlap; what must be within a span is so from the beginning
of the earliest interval to the end of the latest; and a distance counts with both radii added. A radius is that of the
68 % circle, so a distance is not as certain as a time.
"""

import math
from dataclasses import dataclass
from typing import Final

from protocols.base.errors import BoundExceeded
from protocols.base.limits import SECOND
from protocols.records.deriving.places import distance_m
from protocols.records.windows.kinds import MAX_SPAN_NS, is_from_future
from protocols.wire.readings import Reading

_MIN_SPAN_NS: Final = SECOND // 100
_MAX_LATE_NS: Final = 3_600 * SECOND
_MAX_WITHIN_M: Final = 20_100_000.0
"""No two places on Earth are farther from one another."""


@dataclass(frozen=True, slots=True)
class Nearness:
    """See the module.

    :raises BoundExceeded: when one of them is out of range.
    """

    span_ns: int
    """The longest time between readings that belong together."""
    late_ns: int = SECOND
    """A reading that comes later than ``span_ns`` and this after it was sensed is late, and is left out."""
    within_m: float | None = None
    """The largest distance between readings that belong together; None: any."""
    certain: bool = False
    """Whether it must hold for whatever the true times are."""

    def __post_init__(self) -> None:
        if not _MIN_SPAN_NS <= self.span_ns <= MAX_SPAN_NS:
            raise BoundExceeded(
                f"the span is {self.span_ns / SECOND:g} s: use {_MIN_SPAN_NS / SECOND:g} s to "
                f"{MAX_SPAN_NS / SECOND:g} s"
            )
        if not 0 <= self.late_ns <= _MAX_LATE_NS:
            raise BoundExceeded(f"late is {self.late_ns / SECOND:g} s: use 0 s to {_MAX_LATE_NS / SECOND:g} s")
        if self.within_m is not None and not 0 < self.within_m <= _MAX_WITHIN_M:  # NaN is refused too
            raise BoundExceeded(f"within_m is {self.within_m:g}: use more than 0 and at most {_MAX_WITHIN_M:g}")

    @property
    def kept_ns(self) -> int:
        """How long after it was sensed a reading may still be needed: others may have been sensed a span later, and
        come a span and ``late_ns`` after that."""
        return 2 * self.span_ns + self.late_ns

    def fault(self, reading: Reading, utc_now: int) -> str:
        """Why a reading that comes now is left out: ``late`` or ``future``; empty when it is not."""
        when = reading.when
        if is_from_future(when, utc_now):
            return "future"
        return "late" if when.utc_ns + self.span_ns + self.late_ns <= utc_now else ""

    def is_near(self, one: Reading, other: Reading) -> bool:
        """Whether two readings, in whatever order, are near enough to one another."""
        a, b = one.when, other.when
        if self.certain:
            first_ns = min(a.utc_ns - a.uncertainty_ns, b.utc_ns - b.uncertainty_ns)
            last_ns = max(a.utc_ns + a.uncertainty_ns, b.utc_ns + b.uncertainty_ns)
            if last_ns - first_ns > self.span_ns:
                return False
        elif abs(a.utc_ns - b.utc_ns) > self.span_ns:
            return False
        if self.within_m is None:
            return True
        radii_m = one.where.accuracy_m + other.where.accuracy_m if self.certain else 0.0
        apart_m = distance_m(one.where, other.where) + radii_m
        return math.isfinite(apart_m) and apart_m <= self.within_m

    def follows(self, first: Reading, then: Reading) -> bool:
        """Whether ``then`` comes after ``first`` and near enough to it."""
        wrong_ns = first.when.uncertainty_ns + then.when.uncertainty_ns if self.certain else 0
        return first.when.utc_ns + wrong_ns < then.when.utc_ns and self.is_near(first, then)
