"""Joins against a plain evaluator."""

from typing import Any

import pytest
from hypothesis import given

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.records.curation import ReadingDerived
from protocols.records.deriving.sources import ExpressionFailed, Source
from protocols.records.patterns.join import JoinRule
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import by_key
from protocols.wire.readings import EventTime, Reading
from tests.protocols.records.patterns import evaluator
from tests.protocols.records.patterns.evaluator import Came
from tests.protocols.records.patterns.streams import (
    FIRST,
    KEYS,
    ME,
    NEARNESSES,
    OUTPUT,
    THEN,
    UTC_NS,
    all_counted,
    came,
    is_first,
    is_then,
    named,
    of_key,
    reading,
    run,
    streams,
)
from tests.tools.strategies import MODEST


def rule(nearness: Nearness, **options: Any) -> JoinRule:
    return JoinRule("j", ME, FIRST, THEN, nearness, OUTPUT, **options)


@MODEST
@given(streams(), NEARNESSES)
def test_joins_are_those_of_the_plain_evaluator(stream: list[Came], nearness: Nearness) -> None:
    """Each is derived at its time, to the nanosecond, whatever came late, doubled or out of order."""
    subject = rule(nearness, partition=by_key)
    derived = run(subject, stream)
    for key in KEYS:
        found = sorted(
            (named(one.value["left"]), named(one.value["right"]), at_ns)
            for one, at_ns in derived if one.key == f"veh/me/p/{key}"
        )  # fmt: skip
        assert found == evaluator.joins(of_key(stream, key), nearness, is_first, is_then)
    counts = subject.counters()
    assert len(derived) + counts.get("unmatched", 0) == sum(is_first(one) for one in taken(stream, nearness))
    assert all_counted(subject, stream)


def taken(stream: list[Came], nearness: Nearness) -> list[Reading]:
    return [one.reading for one in evaluator.admitted(stream, nearness)]


def test_join_waits_for_a_nearer_reading_unless_none_can_be_nearer() -> None:
    """Who asks for the nearest must not get the first to come."""
    nearness = Nearness(SECOND, 500 * MS)
    late = [
        came(reading(0, 0)),
        came(reading(900, 1, sequence=2)),
        came(reading(-100, 1, sequence=3), 1_399),
        came(reading(200, 1, sequence=4), 1_450),
    ]
    ((one, at_ns),) = run(rule(nearness), late)
    assert (one.value["right"]["sequence"], at_ns) == (3, UTC_NS + 1_500 * MS)
    exact = [came(reading(0, 0)), came(reading(-10, 1, sequence=2), 5), came(reading(0, 1, sequence=3), 100)]
    for stream in (exact, exact[::-1]):
        in_order = [came(found.reading, 100) for found in stream]
        ((one, at_ns),) = run(rule(nearness), in_order)
        assert (one.value["right"]["sequence"], at_ns) == (3, UTC_NS + 100 * MS)


def test_reading_that_comes_when_a_join_is_due_is_too_late_for_it() -> None:
    """Also when the timer comes after it."""
    subject = rule(Nearness(SECOND, 0))
    stream = [came(reading(0, 0)), came(reading(500, 1, sequence=2)), came(reading(200, 1, sequence=3), 1_000)]
    derived = [
        found for one in stream
        for found in subject.receive(one.reading, False, MonotonicNs(one.utc_ns - UTC_NS), UtcNs(one.utc_ns))
    ]  # fmt: skip
    assert [one.value["right"]["sequence"] for one in derived if isinstance(one, ReadingDerived)] == [2]


def test_function_over_both_readings_gives_the_value() -> None:
    """It sees what the sources take as value, and the context of both."""

    def slip(left: Reading, right: Reading) -> Any:
        if not right.value:
            raise ExpressionFailed("division by zero")
        return {"ratio": left.value / right.value, "apart_ns": right.when.utc_ns - left.when.utc_ns}

    wheel = Source("veh/*/wheel", "any", value=lambda one: one.value["speed"])
    gnss = Source("veh/*/gnss", "any")
    subject = JoinRule("j", ME, wheel, gnss, Nearness(SECOND), OUTPUT, slip)
    stream = [
        came(reading(0, {"speed": 12.0}, "veh/a/wheel", uncertainty_ms=10)),
        came(reading(100, 10.0, "veh/a/gnss", sequence=2, uncertainty_ms=20, quality=0.25)),
        came(reading(9_000, {"speed": 12.0}, "veh/a/wheel", sequence=3)),
        came(reading(9_100, 0.0, "veh/a/gnss", sequence=4)),
    ]
    ((derived, _),) = run(subject, stream)
    assert derived.value == {"ratio": 1.2, "apart_ns": 100 * MS}
    assert derived.when == EventTime(UTC_NS + 55 * MS, 65 * MS)
    assert derived.how.quality == 0.25
    assert subject.counters() == {"taken": 4, "failed": 1, "derived": 1}


@pytest.mark.parametrize(("right_ms", "certain", "expected"), [(1_000, False, 1), (1_000, True, 0), (800, True, 1)])
def test_join_that_is_to_be_certain_needs_both_intervals_within_its_time(
    right_ms: int, certain: bool, expected: int
) -> None:
    stream = [came(reading(0, 0, uncertainty_ms=100)), came(reading(right_ms, 1, sequence=2, uncertainty_ms=100))]
    assert len(run(rule(Nearness(SECOND, certain=certain)), stream)) == expected
