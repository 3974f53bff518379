"""Absences against a plain evaluator."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.records.deriving.sources import Source
from protocols.records.patterns.absence import AbsenceRule
from protocols.records.patterns.answers import AnsweredTimes
from protocols.records.patterns.nearness import Nearness
from protocols.records.windows.rule import by_key, by_origin
from protocols.wire.readings import EventTime
from tests.protocols.records.patterns import evaluator
from tests.protocols.records.patterns.evaluator import Came
from tests.protocols.records.patterns.streams import (
    BOOT_NS,
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
    place,
    reading,
    run,
    streams,
)
from tests.tools.strategies import MODEST


def rule(nearness: Nearness, **options: Any) -> AbsenceRule:
    return AbsenceRule("a", ME, FIRST, THEN, nearness, OUTPUT, **options)


@MODEST
@given(streams(), NEARNESSES)
def test_absences_are_those_of_the_plain_evaluator(stream: list[Came], drawn: Nearness) -> None:
    """Each is derived at its time, to the nanosecond, whatever came late, doubled or out of order."""
    nearness = Nearness(drawn.span_ns, drawn.late_ns, certain=drawn.certain)
    subject = rule(nearness, partition=by_key)
    derived = run(subject, stream)
    for key in KEYS:
        found = sorted((named(one.value["after"]), at_ns) for one, at_ns in derived if one.key == f"veh/me/p/{key}")
        assert found == evaluator.absences(of_key(stream, key), nearness, is_first, is_then)
    assert all_counted(subject, stream)


def test_absence_is_derived_when_its_time_has_come_and_not_before() -> None:
    """An answer on its way must have its time to come."""
    subject = rule(Nearness(2 * SECOND, 500 * MS))
    first = reading(0, 0, "veh/b/x", "b", 3, 100, place(70), ("x",), 0.5)
    assert list(subject.receive(first, False, MonotonicNs(BOOT_NS), UtcNs(UTC_NS))) == []
    due_ns = BOOT_NS + 2_500 * MS
    assert subject.next_timer_at() == due_ns
    assert list(subject.handle_timer(MonotonicNs(due_ns - 1))) == []
    (derived,) = subject.handle_timer(MonotonicNs(due_ns))
    assert derived.value == {
        "after": {"key": "veh/b/x", "origin": "b", "sequence": 3, "utc_ns": UTC_NS, "value": 0},
        "until_ns": UTC_NS + 2 * SECOND,
    }
    assert derived.when == EventTime(UTC_NS + 2 * SECOND, 100 * MS)
    assert (derived.where, derived.how.lineage, derived.how.quality) == (place(70), ("x",), 0.5)
    assert subject.next_timer_at() == NEVER


@pytest.mark.parametrize(
    ("sensed_ms", "came_ms", "expected"),
    [(1_000, 1_000, 0), (2_000, 2_000, 0), (2_001, 2_001, 1), (1_000, 2_499, 0), (1_000, 2_500, 1), (0, 100, 1)],
)
def test_answer_counts_by_when_it_was_sensed_as_long_as_it_comes_in_time(
    sensed_ms: int, came_ms: int, expected: int
) -> None:
    stream = [came(reading(0, 0)), came(reading(sensed_ms, 1, sequence=2), came_ms)]
    assert len(run(rule(Nearness(2 * SECOND, 500 * MS)), stream)) == expected
    stream = [stream[1], came(reading(0, 0), came_ms)]  # the first comes after what follows it
    if came_ms < 2_500:
        assert len(run(rule(Nearness(2 * SECOND, 500 * MS)), stream)) == expected


@pytest.mark.parametrize(
    ("then_ms", "certain", "expected"),
    [(-500, False, 1), (-500, True, 0), (-601, True, 1), (2_500, False, 1), (2_500, True, 0), (2_601, True, 1)],
)
def test_absence_that_is_to_be_certain_needs_that_nothing_can_have_come(
    then_ms: int, certain: bool, expected: int
) -> None:
    """By the middles, what may have come in time did not."""
    stream = [came(reading(then_ms, 1, uncertainty_ms=300)), came(reading(0, 0, sequence=2, uncertainty_ms=300))]
    for one in (stream, stream[::-1]):
        in_order = [Came(found.reading, UTC_NS + 1_900 * MS) for found in one]
        assert len(run(rule(Nearness(2 * SECOND, certain=certain)), in_order)) == expected


def test_answer_that_comes_when_an_absence_is_due_is_too_late_for_it() -> None:
    """Also when the timer comes after it."""
    subject = rule(Nearness(SECOND, 0))
    assert not subject.receive(reading(0, 0), False, MonotonicNs(0), UtcNs(UTC_NS))
    late = reading(500, 1, sequence=2)
    assert len(subject.receive(late, False, MonotonicNs(SECOND), UtcNs(UTC_NS + SECOND))) == 1


@MODEST
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12))
def test_answered_times_are_those_of_all_spans_together(spans: list[tuple[int, int]]) -> None:
    """Whatever touches becomes one, in whatever order it comes."""
    answered, expected = AnsweredTimes(100), set[int]()
    for first, length in spans:
        answered.add("p", first, first + length, 1_000 + first + length, "a")
        expected |= set(range(first, first + length + 1))
    assert [at for at in range(80) if answered.hold("p", at, at)] == sorted(expected)
    assert len(answered) == sum(at - 1 not in expected for at in expected)
    for at in range(80):
        for _ in range(3):  # a few at a time
            answered.forget_due(1_000 + at)
        assert all(answered.hold("p", one, one) for one in expected if one > at)


def test_one_source_for_both_derives_that_something_fell_silent() -> None:
    """A heartbeat that stops, of one of two nodes, is derived once."""
    beats = Source("veh/*/x", "any")
    subject = AbsenceRule("a", ME, beats, beats, Nearness(3 * SECOND), OUTPUT, by_origin)
    stream = [came(reading(number * 1_000, origin="a", sequence=number)) for number in range(20)]
    stream += [came(reading(number * 1_000, origin="b", sequence=number)) for number in range(5)]
    stream.sort(key=lambda one: one.utc_ns)
    derived = run(subject, stream)
    assert [(one.key, (at_ns - UTC_NS) // SECOND) for one, at_ns in derived] == [
        ("veh/me/p/b", 8), ("veh/me/p/a", 23),
    ]  # fmt: skip
    assert len(subject._answered) == 1, "a stream that goes on is one span, and one that ended is forgotten"


def test_reading_that_knows_nothing_of_its_time_does_not_answer_what_is_sensed_after_it_came() -> None:
    """One lie must not silence an alarm for ever."""
    liar = reading(0, 1, origin="liar", uncertainty_ms=10**9)
    stream = [came(liar), came(reading(2_001, 0, sequence=2)), came(reading(9_000, 0, sequence=3))]
    derived = run(rule(Nearness(SECOND, certain=True)), stream)
    assert [one.value["after"]["sequence"] for one, _ in derived] == [2, 3]


def test_many_absences_that_are_due_together_are_derived_in_slices() -> None:
    """Nobody waits for a hundred thousand of them."""
    subject = rule(Nearness(SECOND), partition=by_origin)
    for number in range(300):
        subject.receive(reading(0, 0, origin=f"n{number}"), False, MonotonicNs(0), UtcNs(UTC_NS))
    sizes = []
    while subject.next_timer_at() < NEVER:
        sizes.append(len(subject.handle_timer(MonotonicNs(3 * SECOND))))
    assert sizes == [128, 128, 44]
