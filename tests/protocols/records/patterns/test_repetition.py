"""Repetitions against a plain evaluator."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import SECOND
from protocols.records.deriving.sources import Source
from protocols.records.patterns.nearness import Nearness
from protocols.records.patterns.repetition import RepetitionRule
from protocols.records.windows.rule import by_key
from tests.protocols.records.patterns import evaluator
from tests.protocols.records.patterns.evaluator import Came
from tests.protocols.records.patterns.streams import (
    KEYS,
    ME,
    NEARNESSES,
    OUTPUT,
    UTC_NS,
    all_counted,
    came,
    named,
    of_key,
    place,
    reading,
    run,
    streams,
)
from tests.tools.strategies import MODEST

BRAKES = Source("veh/**", "any")


def rule(nearness: Nearness, times: int, **options: Any) -> RepetitionRule:
    return RepetitionRule("r", ME, BRAKES, times, nearness, OUTPUT, **options)


@MODEST
@given(streams(), NEARNESSES, st.integers(2, 4), st.booleans())
def test_repetitions_are_those_of_the_plain_evaluator(
    stream: list[Came], nearness: Nearness, times: int, are_distinct: bool
) -> None:
    """The evaluator tries all combinations of all readings."""
    subject = rule(nearness, times, distinct_origins=are_distinct, partition=by_key)
    derived = [one for one, _ in run(subject, stream)]
    for key in KEYS:
        found = [tuple(sorted(map(named, one.value["readings"]))) for one in derived if one.key == f"veh/me/p/{key}"]
        expected = evaluator.repetitions(of_key(stream, key), nearness, times, are_distinct)
        assert found == [tuple(sorted(group)) for group in expected]
    assert all_counted(subject, stream)


def test_two_vehicles_near_one_another_that_brake_within_three_seconds() -> None:
    """The published example: not one vehicle twice, not two that are apart in space or time, and each braking once."""
    subject = rule(Nearness(3 * SECOND, within_m=150.0), 2, distinct_origins=True)
    stream = [
        came(reading(0, -6.0, "veh/a/acc", "a", 1, where=place(0))),
        came(reading(500, -6.0, "veh/a/acc", "a", 2, where=place(5))),
        came(reading(600, -6.0, "veh/b/acc", "b", 1, where=place(400))),
        came(reading(1_000, -7.0, "veh/c/acc", "c", 1, where=place(120))),
        came(reading(1_100, -8.0, "veh/d/acc", "d", 1, where=place(130))),
        came(reading(9_000, -8.0, "veh/e/acc", "e", 1, where=place(130))),
    ]
    derived = [one for one, _ in run(subject, stream)]
    assert [[one["origin"] for one in d.value["readings"]] for d in derived] == [["a", "c"], ["a", "d"]]
    assert [[one["sequence"] for one in d.value["readings"]] for d in derived] == [[1, 1], [2, 1]]
    assert derived[0].where.longitude_deg == pytest.approx(place(60).longitude_deg)
    assert derived[0].value["count"] == 2


def test_search_that_would_take_for_ever_is_given_up_and_counted() -> None:
    """Nodes that stand badly give a search 12 to the power of 13 ways to end in vain."""
    subject = rule(Nearness(60 * SECOND, within_m=100.0), 16, distinct_origins=True, max_held=256)
    crowd = [reading(at, origin=f"n{at % 13}", sequence=at, where=place(60)) for at in range(12 * 13)]
    apart = [reading(1_000, origin="east", where=place(120)), reading(1_001, origin="west", where=place(0))]
    last = reading(500, origin="last", where=place(60))
    assert run(subject, [came(one, 2_000) for one in (*crowd, *apart, last)]) == []
    assert subject.counters() == {"taken": 12 * 13 + 3, "gave_up": 1}
    subject.receive(reading(500, origin="east", sequence=2, where=place(60)), False, MonotonicNs(0), UtcNs(UTC_NS))
    assert subject.counters()["taken"] == 12 * 13 + 4, "it goes on"
