"""Sequences against a plain evaluator."""

from typing import Any

import pytest
from hypothesis import given

from protocols.base.limits import SECOND
from protocols.records.patterns.nearness import Nearness
from protocols.records.patterns.sequence import SequenceRule
from protocols.records.windows.rule import by_key
from protocols.wire.readings import EventTime
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
    place,
    reading,
    run,
    streams,
)
from tests.tools.strategies import MODEST


def rule(nearness: Nearness, **options: Any) -> SequenceRule:
    return SequenceRule("s", ME, FIRST, THEN, nearness, OUTPUT, **options)


@MODEST
@given(streams(), NEARNESSES)
def test_sequences_are_those_of_the_plain_evaluator(stream: list[Came], nearness: Nearness) -> None:
    """Late, doubled and disordered readings are what radios make of a stream."""
    subject = rule(nearness, partition=by_key)
    derived = [one for one, _ in run(subject, stream)]
    for key in KEYS:
        found = [(named(d.value["first"]), named(d.value["then"])) for d in derived if d.key == f"veh/me/p/{key}"]
        assert found == evaluator.sequences(of_key(stream, key), nearness, is_first, is_then)
    assert subject.counters().get("derived", 0) == len(derived)
    assert all_counted(subject, stream)


def test_sequence_names_both_readings_and_covers_their_context() -> None:
    """Whoever gets the derived reading must find those that it follows from."""
    first = reading(0, 0, where=place(0), lineage=("x",), quality=0.5)
    then = reading(1_000, 1, KEYS[1], "b", 7, 200, place(100, 5.0), ("y",))
    ((derived, at_ns),) = run(rule(Nearness(2 * SECOND)), [came(first), came(then)])
    assert at_ns == then.when.utc_ns
    assert derived.value == {
        "first": {"key": KEYS[0], "origin": "a", "sequence": 1, "utc_ns": UTC_NS, "value": 0},
        "then": {"key": KEYS[1], "origin": "b", "sequence": 7, "utc_ns": UTC_NS + SECOND, "value": 1},
    }
    assert derived.when == EventTime(UTC_NS + 600_000_000, 600_000_000)
    assert derived.where.longitude_deg == pytest.approx(place(50).longitude_deg)
    assert derived.where.accuracy_m == pytest.approx(55, abs=0.1)
    assert (derived.how.lineage, derived.how.quality, derived.how.sensor) == (("x", "y"), 0.5, "rule s")
    assert (derived.key, derived.how.unit) == ("veh/me/p/all", "1")


@pytest.mark.parametrize(
    ("then_ms", "certain", "expected"),
    [
        (500, False, 1),
        (500, True, 0),
        (600, True, 0),
        (601, True, 1),
        (0, False, 0),
        (-100, False, 0),
        (1_701, True, 0),
    ],
)
def test_order_is_by_the_middle_unless_it_is_to_be_certain(then_ms: int, certain: bool, expected: int) -> None:
    """Clocks that are wrong by 300 ms can't tell what came first within 600 ms."""
    stream = [came(reading(0, 0, uncertainty_ms=300)), came(reading(then_ms, 1, sequence=2, uncertainty_ms=300))]
    assert len(run(rule(Nearness(2 * SECOND, certain=certain)), stream)) == expected


@pytest.mark.parametrize(
    ("east_m", "certain", "expected"), [(149, False, 1), (151, False, 0), (149, True, 0), (139, True, 1)]
)
def test_radii_count_only_when_it_is_to_be_certain(east_m: float, certain: bool, expected: int) -> None:
    stream = [came(reading(0, 0, where=place(0, 5.0))), came(reading(100, 1, sequence=2, where=place(east_m, 5.0)))]
    assert len(run(rule(Nearness(SECOND, within_m=150.0, certain=certain)), stream)) == expected


def test_reading_takes_part_in_one_sequence_whatever_part_it_plays() -> None:
    """A value that is both must not end one sequence and begin another."""
    stream = [came(reading(number * 100, 2, sequence=number)) for number in range(6)]
    derived = [one for one, _ in run(rule(Nearness(10 * SECOND)), stream)]
    assert [(d.value["first"]["sequence"], d.value["then"]["sequence"]) for d in derived] == [(0, 1), (2, 3), (4, 5)]
