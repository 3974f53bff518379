"""Slow, plain evaluators of patterns, which judge the fast ones: they keep all readings for ever, forget nothing, and
look at each of them for everything.

``Came`` says when a reading came. Which roles it plays is given by two predicates of its value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from protocols.records.patterns.nearness import Nearness
from protocols.wire.readings import Position, Reading

FUTURE_NS = 2_000_000_000
Role = Callable[[Reading], bool]
Id = tuple[str, str, int]


@dataclass(frozen=True)
class Came:
    """A reading, and when it came."""

    reading: Reading
    utc_ns: int


def id_of(reading: Reading) -> Id:
    """What identifies a reading for ever."""
    return reading.origin, reading.key, reading.sequence


def admitted(came: Sequence[Came], nearness: Nearness) -> list[Came]:
    """Without those that came before, are late, or claim to be from the future."""
    kept: dict[Id, Came] = {}
    for one in came:
        kept.setdefault(id_of(one.reading), one)
    return [
        one for one in kept.values()
        if one.utc_ns < one.reading.when.utc_ns + nearness.span_ns + nearness.late_ns
        and one.reading.when.utc_ns <= one.utc_ns + FUTURE_NS + min(FUTURE_NS, one.reading.when.uncertainty_ns)
    ]  # fmt: skip


def order(reading: Reading) -> tuple[int, Id]:
    """By time, and those of one moment by what identifies them."""
    return reading.when.utc_ns, id_of(reading)


def bounds(reading: Reading) -> tuple[int, int]:
    """When it was sensed at the earliest and at the latest."""
    return reading.when.utc_ns - reading.when.uncertainty_ns, reading.when.utc_ns + reading.when.uncertainty_ns


def apart_m(one: Position, other: Position) -> float:
    """The length of the arc between two positions, by the straight line through the sphere."""

    def point(where: Position) -> tuple[float, float, float]:
        north, east = math.radians(where.latitude_deg), math.radians(where.longitude_deg)
        return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)

    return 2 * 6_371_008.8 * math.asin(math.dist(point(one), point(other)) / 2)


def are_near(readings: Sequence[Reading], nearness: Nearness) -> bool:
    """Whether all of them are near one another."""
    starts, ends = zip(*map(bounds, readings), strict=True)
    times = [reading.when.utc_ns for reading in readings]
    length_ns = max(ends) - min(starts) if nearness.certain else max(times) - min(times)
    if length_ns > nearness.span_ns:
        return False
    if nearness.within_m is None:
        return True
    for one, other in combinations(readings, 2):
        radii_m = one.where.accuracy_m + other.where.accuracy_m if nearness.certain else 0.0
        if apart_m(one.where, other.where) + radii_m > nearness.within_m:
            return False
    return True


def is_later(first: Reading, then: Reading, nearness: Nearness) -> bool:
    """Whether one came after the other."""
    if nearness.certain:
        return bounds(first)[1] < bounds(then)[0]
    return first.when.utc_ns < then.when.utc_ns


def sequences(came: Sequence[Came], nearness: Nearness, is_first: Role, is_then: Role) -> list[tuple[Id, Id]]:
    """Each first and then, in the order in which they are found."""
    found: list[tuple[Id, Id]] = []
    before: list[Reading] = []
    for one in admitted(came, nearness):
        new = one.reading
        used = {identity for pair in found for identity in pair}
        free = sorted((reading for reading in before if id_of(reading) not in used), key=order)
        pairs = [(old, new) for old in reversed(free) if is_first(old) and is_then(new)]
        pairs += [(new, old) for old in free if is_first(new) and is_then(old)]
        for first, then in pairs:
            if is_later(first, then, nearness) and are_near((first, then), nearness):
                found.append((id_of(first), id_of(then)))
                break
        before.append(new)
    return found


def repetitions(came: Sequence[Came], nearness: Nearness, times: int, are_distinct: bool) -> list[tuple[Id, ...]]:
    """The readings of each repetition, in the order in which they are found."""
    found: list[tuple[Id, ...]] = []
    before: list[Reading] = []
    for one in admitted(came, nearness):
        used = {identity for group in found for identity in group}
        free = sorted((reading for reading in before if id_of(reading) not in used), key=order)
        for others in combinations(free, times - 1):
            group = (*others, one.reading)
            if are_distinct and len({reading.origin for reading in group}) < times:
                continue
            if are_near(group, nearness):
                found.append(tuple(id_of(reading) for reading in sorted(group, key=order)))
                break
        before.append(one.reading)
    return found


def absences(came: Sequence[Came], nearness: Nearness, is_first: Role, is_then: Role) -> list[tuple[Id, int]]:
    """Each reading that was not followed by another one, and when that was known."""
    found: list[tuple[Id, int]] = []
    everything = admitted(came, nearness)
    for one in everything:
        first = one.reading
        if not is_first(first) or (nearness.certain and first.when.uncertainty_ns > nearness.span_ns):
            continue
        known_ns = first.when.utc_ns + nearness.span_ns + nearness.late_ns
        if not any(
            is_then(other.reading) and other is not one and other.utc_ns < known_ns
            and may_answer(first, other, nearness)
            for other in everything
        ):  # fmt: skip
            found.append((id_of(first), known_ns))
    return sorted(found)


def may_answer(first: Reading, came_then: Came, nearness: Nearness) -> bool:
    """Whether a reading was sensed in the span after ``first``, or may have been if that is to be certain."""
    then = came_then.reading
    if nearness.certain:
        start_ns, end_ns = bounds(then)
        end_ns = min(end_ns, came_then.utc_ns + FUTURE_NS)
        return end_ns >= bounds(first)[0] and start_ns <= bounds(first)[1] + nearness.span_ns
    return 0 < then.when.utc_ns - first.when.utc_ns <= nearness.span_ns


def joins(came: Sequence[Came], nearness: Nearness, is_left: Role, is_right: Role) -> list[tuple[Id, Id, int]]:
    """Each left reading with its right one, and when that was known."""
    found: list[tuple[Id, Id, int]] = []
    everything = admitted(came, nearness)
    for one in everything:
        left = one.reading
        if not is_left(left):
            continue
        known_ns = left.when.utc_ns + nearness.span_ns + nearness.late_ns
        rights = [
            other for other in everything
            if is_right(other.reading) and other is not one and other.utc_ns < known_ns
            and are_near((left, other.reading), nearness)
        ]  # fmt: skip
        exact = [max(one.utc_ns, other.utc_ns) for other in rights if other.reading.when.utc_ns == left.when.utc_ns]
        if exact:
            known_ns = min(exact)
            rights = [other for other in rights if other.utc_ns <= known_ns]
        if rights:
            right = min(
                rights, key=lambda other: (abs(other.reading.when.utc_ns - left.when.utc_ns), order(other.reading))
            )
            found.append((id_of(left), id_of(right.reading), known_ns))
    return sorted(found)
