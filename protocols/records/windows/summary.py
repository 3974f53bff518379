"""What the readings of one window come to.

Count, least, greatest, sum, mean, first and last are exact. Percentiles and the number of distinct values are exact up
to ``EXACT`` readings or values, and come from a sketch of stated error beyond; :class:`Sketches` makes these. A
percentile is the smallest value that at least that share of the readings does not exceed (the nearest-rank method).

The context of a summary covers its readings. The position is the middle of the rectangle that holds them, with the
radius to its corner and the largest radius of a reading as accuracy. Quality is that of the worst reading. The lineage
is that of this node's own readings alone: a rule is not shown what has its own name in its lineage, and a neighbour,
which may claim any lineage, could silence rules with it.
"""

import math
import re
from array import array
from collections.abc import Sequence
from typing import Any, Final, Protocol

from msgspec import msgpack

from protocols.base.errors import LocalProtocolError, ValueUnsupported
from protocols.base.limits import MAX_LINEAGE, MAX_TEXT_CHARS
from protocols.records.deriving.places import enclosing_circle
from protocols.wire.encoding.values import travelling_value
from protocols.wire.readings import Position, Reading

EXACT: Final = 1_024
"""How many values are kept as they are before a sketch takes their place."""
_PERCENTILE: Final = re.compile(r"p(\d{1,2}(\.\d{1,3})?)")
_PLAIN: Final = frozenset({"count", "min", "max", "sum", "mean", "first", "last", "distinct"})
_NUMERIC: Final = frozenset({"min", "max", "sum", "mean"})
_WHOLE: Final = 100_000
_MOST: Final = 1e100
"""A larger number would make sums infinite, which no frame carries."""
_WIDEST_M: Final = 1e7
_SHORT: Final = frozenset({int, float, bool, type(None)})


class PercentileSketch(Protocol):
    """A sketch of the distribution of numbers."""

    def update(self, value: float) -> None:
        """Take one number."""

    def merge(self, other: "PercentileSketch") -> None:
        """Take all numbers of another sketch of the same maker."""

    def saved(self) -> bytes:
        """It as bytes, out of which :meth:`Sketches.percentiles` makes it again."""

    def percentile(self, share: float) -> float:
        """The number that ``share`` (0 to 1) of all numbers don't exceed, about."""


class DistinctSketch(Protocol):
    """A sketch of the number of distinct values."""

    def update(self, digest: int) -> None:
        """Take one value, by its digest."""

    def merge(self, other: "DistinctSketch") -> None:
        """Take all values of another sketch of the same maker."""

    def saved(self) -> bytes:
        """It as bytes, out of which :meth:`Sketches.distinct` makes it again."""

    def estimate(self) -> float:
        """How many distinct values it has taken, about."""


class Sketches(Protocol):
    """Makes sketches."""

    def percentiles(self, saved: bytes | None = None) -> PercentileSketch:
        """An empty sketch, or one that was saved. :raises ValueError: the bytes are none."""

    def distinct(self, saved: bytes | None = None) -> DistinctSketch:
        """As :meth:`percentiles`."""

    def digest(self, encoded: bytes) -> int:
        """A digest of 63 bits, by which equal values are known."""


class Functions:
    """What is computed of each window.

    :raises LocalProtocolError: when one of them is not known, or there is none.
    """

    def __init__(self, names: Sequence[str], sketches: Sketches) -> None:
        self.names, self.sketches = tuple(dict.fromkeys(names)), sketches
        if not self.names:
            raise LocalProtocolError("nothing is computed: name at least one function, such as 'count'")
        self.shares: dict[str, int] = {}
        """Of each percentile, in thousandths of a percent: a share such as 0.55 is no number of the computer."""
        for name in self.names:
            if name in _PLAIN:
                continue
            found = _PERCENTILE.fullmatch(name)
            if found is None:
                known = ", ".join(sorted(_PLAIN))
                raise LocalProtocolError(f"{name!r} is not a function: use {known}, or a percentile such as p95")
            self.shares[name] = round(float(found.group(1)) * 1_000)
        self.is_numeric = bool(self.shares) or not _NUMERIC.isdisjoint(self.names)
        self.distinct = "distinct" in self.names
        self.keeps_value = not {"first", "last"}.isdisjoint(self.names)
        """Whether single values are kept: numbers, truth values, nothing, and short texts."""

    @property
    def max_bytes(self) -> int:
        """The most memory that one summary takes."""
        return 1_200 + 2_000 * self.keeps_value + 20_000 * bool(self.shares) + 130_000 * self.distinct


class Summary:
    """What the readings taken so far come to. It takes no more memory than :attr:`Functions.max_bytes`."""

    __slots__ = (
        "accuracy_m", "count", "digests", "east_deg", "first", "first_ns", "greatest", "last", "last_ns", "least",
        "lineage", "north_deg", "quality", "rest", "sketched_digests", "sketched_numbers", "south_deg", "total",
        "uncertainty_ns", "values", "west_deg",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count, self.total, self.rest = 0, 0.0, 0.0
        self.least, self.greatest = math.inf, -math.inf
        self.first: Any = None
        self.last: Any = None
        self.first_ns = self.last_ns = 0
        """When the earliest and the latest reading was sensed."""
        self.values: array[float] | None = None
        self.sketched_numbers: PercentileSketch | None = None
        self.digests: set[int] | None = None
        self.sketched_digests: DistinctSketch | None = None
        self.south_deg = self.west_deg = math.inf
        self.north_deg = self.east_deg = -math.inf
        self.accuracy_m, self.quality, self.uncertainty_ns = 0.0, 1.0, 0
        self.lineage: tuple[str, ...] = ()

    def take(self, reading: Reading, value: Any, functions: Functions, is_own: bool) -> bool:
        """Take a reading, of which ``value`` counts. False: ``value`` is not what the functions need, or its lineage
        has no place, and it is left out."""
        if functions.is_numeric and (type(value) not in (int, float) or not -_MOST <= value <= _MOST):
            return False
        if (functions.keeps_value or functions.distinct) and not (
            type(value) in _SHORT or (type(value) is str and len(value) <= MAX_TEXT_CHARS)
        ):
            return False
        lineage = _joined(self.lineage, reading.how.lineage if is_own else ())
        if len(lineage) >= MAX_LINEAGE:
            return False
        self.lineage = lineage
        utc_ns = reading.when.utc_ns
        if not self.count or utc_ns < self.first_ns:
            self.first_ns, self.first = utc_ns, value if functions.keeps_value else None
        if not self.count or utc_ns >= self.last_ns:
            self.last_ns, self.last = utc_ns, value if functions.keeps_value else None
        self.count += 1
        if functions.is_numeric:
            self._take_number(float(value), functions)
        if functions.distinct:
            self._take_digests((functions.sketches.digest(_encoded(value)),), functions)
        where = reading.where
        self._cover(where.latitude_deg, where.longitude_deg, where.latitude_deg, where.longitude_deg)
        self.accuracy_m = max(self.accuracy_m, min(where.accuracy_m, _WIDEST_M))
        self.quality = min(self.quality, reading.how.quality)
        self.uncertainty_ns = max(self.uncertainty_ns, reading.when.uncertainty_ns)
        return True

    def merge(self, other: "Summary", functions: Functions) -> None:
        """Take everything that another summary has taken."""
        if not other.count:
            return
        if not self.count or other.first_ns < self.first_ns:
            self.first_ns, self.first = other.first_ns, other.first
        if not self.count or other.last_ns >= self.last_ns:
            self.last_ns, self.last = other.last_ns, other.last
        self.count += other.count
        self._add(other.total)
        self.rest += other.rest
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        if functions.shares:
            self._merge_numbers(other, functions)
        if functions.distinct:
            if other.sketched_digests is not None:
                self._sketch_digests(functions).merge(other.sketched_digests)
            self._take_digests(other.digests or (), functions)
        self._cover(other.south_deg, other.west_deg, other.north_deg, other.east_deg)
        self.accuracy_m = max(self.accuracy_m, other.accuracy_m)
        self.quality = min(self.quality, other.quality)
        self.uncertainty_ns = max(self.uncertainty_ns, other.uncertainty_ns)
        self.lineage = _joined(self.lineage, other.lineage)[: MAX_LINEAGE - 1]

    def results(self, functions: Functions) -> dict[str, Any]:
        """What the functions come to. There is at least one reading."""
        results: dict[str, Any] = {}
        for name in functions.names:
            match name:
                case "count":
                    results[name] = self.count
                case "min":
                    results[name] = self.least
                case "max":
                    results[name] = self.greatest
                case "sum":
                    results[name] = self.total + self.rest
                case "mean":
                    mean = (self.total + self.rest) / self.count
                    results[name] = min(max(mean, self.least), self.greatest)
                case "first":
                    results[name] = self.first
                case "last":
                    results[name] = self.last
                case "distinct":
                    results[name] = self._distinct()
                case _:
                    results[name] = self._percentile(functions.shares[name])
        return results

    @property
    def where(self) -> Position:
        """A circle that holds all positions. Readings on both sides of the date line make it too large."""
        return enclosing_circle(self.south_deg, self.west_deg, self.north_deg, self.east_deg, self.accuracy_m)

    # --- numbers -----------------------------------------------------------------------------------------------------
    def _add(self, value: float) -> None:
        """Add to the sum, and what the sum has no digits for to the rest (Neumaier's summation)."""
        total = self.total + value
        if abs(self.total) >= abs(value):
            self.rest += (self.total - total) + value
        else:
            self.rest += (value - total) + self.total
        self.total = total

    def _take_number(self, value: float, functions: Functions) -> None:
        self._add(value)
        self.least = min(self.least, value)
        self.greatest = max(self.greatest, value)
        if functions.shares:
            if self.sketched_numbers is not None:
                self.sketched_numbers.update(value)
                return
            if self.values is None:
                self.values = array("d")
            self.values.append(value)
            if len(self.values) > EXACT:
                self._sketch_numbers(functions)

    def _merge_numbers(self, other: "Summary", functions: Functions) -> None:
        if self.values is None:
            self.values = array("d")
        if other.sketched_numbers is not None:
            self._sketch_numbers(functions).merge(other.sketched_numbers)
        elif self.sketched_numbers is not None:
            for value in other.values or ():
                self.sketched_numbers.update(value)
        else:
            self.values.extend(other.values or ())
            if len(self.values) > EXACT:
                self._sketch_numbers(functions)

    def _sketch_numbers(self, functions: Functions) -> PercentileSketch:
        sketch = self.sketched_numbers
        if sketch is None:
            sketch = self.sketched_numbers = functions.sketches.percentiles()
            for value in self.values or ():
                sketch.update(value)
            self.values = array("d")
        return sketch

    def _percentile(self, share: int) -> float:
        if self.sketched_numbers is not None:
            return self.sketched_numbers.percentile(share / _WHOLE)
        assert self.values, "there is at least one reading"
        return sorted(self.values)[max(0, -(-share * len(self.values) // _WHOLE) - 1)]

    # --- distinct values ---------------------------------------------------------------------------------------------
    def _take_digests(self, digests: Sequence[int] | set[int], functions: Functions) -> None:
        if self.sketched_digests is not None:
            for digest in digests:
                self.sketched_digests.update(digest)
            return
        if self.digests is None:
            self.digests = set()
        self.digests.update(digests)
        if len(self.digests) > EXACT:
            self._sketch_digests(functions)

    def _sketch_digests(self, functions: Functions) -> DistinctSketch:
        sketch = self.sketched_digests
        if sketch is None:
            sketch = self.sketched_digests = functions.sketches.distinct()
            for digest in self.digests or ():
                sketch.update(digest)
            self.digests = set()
        return sketch

    def _distinct(self) -> int:
        if self.sketched_digests is not None:
            return round(self.sketched_digests.estimate())
        return len(self.digests or ())

    # --- context -----------------------------------------------------------------------------------------------------
    def _cover(self, south_deg: float, west_deg: float, north_deg: float, east_deg: float) -> None:
        self.south_deg, self.west_deg = min(self.south_deg, south_deg), min(self.west_deg, west_deg)
        self.north_deg, self.east_deg = max(self.north_deg, north_deg), max(self.east_deg, east_deg)


def _encoded(value: Any) -> bytes:
    """The bytes by which equal values are known: 1 and 1.0 differ, as on the wire."""
    try:
        return msgpack.encode(travelling_value(value), order="deterministic")
    except (ValueUnsupported, TypeError, OverflowError):
        return repr(value).encode()


def _joined(lineage: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Both, each name once."""
    if not more or more == lineage:
        return lineage
    return tuple(dict.fromkeys((*lineage, *more)))
