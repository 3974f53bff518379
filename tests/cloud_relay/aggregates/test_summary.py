"""What is kept of a group is the same for the same readings in any order and in any split."""

import json
import math
import struct
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.aggregates.histogram import MAX_BINS, add_to_bins, merge_bins, number_at, relative_error
from cloud_relay.aggregates.measuring import Measured, Unmeasured, measured
from cloud_relay.aggregates.summary import GroupSummary
from protocols.wire.parcels import encode_reading
from tests.tools.relay_fixture import reading

FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
LARGE = st.integers(2**53, 2**62 - 1).flatmap(lambda half: st.sampled_from([2 * half + 1, -2 * half - 1]))
"""Integers that no float is equal to."""
READINGS: st.SearchStrategy[Measured] = FLOATS | LARGE | st.sampled_from(Unmeasured)


def of(readings: list[Measured]) -> GroupSummary:
    summary = GroupSummary()
    summary.add(readings)
    return summary


@given(st.lists(READINGS, max_size=60), st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=4))
def test_any_order_and_any_split_give_the_same_bytes(readings: list[Measured], random: Random, cuts: list[int]) -> None:
    """A record that comes a day late must not change a number by coming late."""
    whole = of(readings).encoded()
    random.shuffle(readings)
    pieces = [readings[first:last] for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    added, merged = GroupSummary(), GroupSummary()
    for piece in pieces:
        added.add(piece)
        added = GroupSummary.decode(added.encoded())
        merged.merge(of(piece))
    assert added.encoded() == whole == merged.encoded()


@given(st.lists(FLOATS | LARGE, min_size=1, max_size=50), st.sampled_from([0, 1, 33.3, 50, 90, 99, 99.9, 100]))
def test_numbers_are_exact_and_percentiles_within_the_error_that_is_told(
    numbers: list[float | int], share: float
) -> None:
    """Who decides by a percentile must know how far it may be off."""
    told = of(list(numbers)).told([share])
    exact = sum(map(Fraction, numbers), Fraction(0))
    assert (told["min"], told["max"]) == (min(numbers), max(numbers))
    assert told["mean"] == float(exact / len(numbers))
    try:
        assert told["sum"] == float(exact)
    except OverflowError:
        assert told["sum"] is None
    nearest = float(sorted(numbers)[max(1, math.ceil(Fraction(str(share)) * len(numbers) / 100)) - 1])
    if abs(nearest) > 1e-305:
        assert abs(Fraction(told[f"p{share:g}"]) - Fraction(nearest)) <= (
            Fraction(told["percentile_error"]) * abs(Fraction(nearest))
        )
    else:
        assert abs(told[f"p{share:g}"]) < 1e-305


def test_histogram_of_all_kinds_of_numbers_stays_small_and_says_how_coarse_it_is() -> None:
    """A node that sends random bits must not make a group of megabytes, nor one whose percentiles depend on luck."""
    random = Random(1)
    numbers: list[float] = []
    while len(numbers) < 20_000:
        (number,) = struct.unpack("<d", random.randbytes(8))
        if math.isfinite(number):
            numbers.append(number)
    bins: dict[int, int] = {}
    level = add_to_bins(bins, 6, numbers)
    assert len(bins) <= MAX_BINS
    assert level == -2
    assert relative_error(level) == 7.5
    backwards: dict[int, int] = {}
    other: dict[int, int] = {}
    reached = add_to_bins(backwards, 6, numbers[:9:-1])
    assert merge_bins(other, add_to_bins(other, 6, numbers[:10]), backwards, reached) == level
    assert other == bins
    summary = of([*numbers])
    assert len(summary.encoded()) < 12_000
    for rank in (1, 10_000, 20_000):
        assert abs(number_at(bins, level, rank) - sorted(numbers)[rank - 1]) <= 7.5 * abs(sorted(numbers)[rank - 1])


def test_speeds_of_a_day_are_told_to_less_than_one_percent() -> None:
    """The usual case: the finest level is enough."""
    told = of([number / 100 for number in range(-500, 6_000)]).told([50, 99.9])
    assert told["percentile_error"] == 2**-7
    assert told["p50"] == pytest.approx(27.49, rel=2**-7)
    assert of([0.0, 0.0, 7.0]).told([50])["p50"] == 0.0
    assert of([7.3]).told([50])["p50"] == 7.3, "it is never outside the extremes"


def test_group_without_numbers_tells_counts_and_nothing_else() -> None:
    """A mean of nothing is not 0."""
    told = of([Unmeasured.NAN, Unmeasured.INFINITE, Unmeasured.MISSING, Unmeasured.OTHER, Unmeasured.OTHER]).told([50])
    assert told == {
        "records": 5, "numbers": 0, "nans": 1, "infinities": 1, "missing": 1, "others": 2, "min": None, "mean": None,
        "max": None, "sum": None, "p50": None, "percentile_error": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "field", "found"),
    [
        (1.5, "", 1.5), (7, "", 7.0), (-0.0, "", 0.0), (1e308, "", 1e308), (5e-324, "", 5e-324),
        (2**64 - 1, "", 2**64 - 1), (-(2**63), "", -(2.0**63)), (2**53 + 1, "", 2**53 + 1),
        (math.nan, "", Unmeasured.NAN), (-math.inf, "", Unmeasured.INFINITE), (True, "", Unmeasured.OTHER),
        ("7", "", Unmeasured.OTHER), ([1.0], "", Unmeasured.OTHER), ({"a": [1, {"b": 2}]}, "a.1.b", 2.0),
        ({"a": [1]}, "a.1", Unmeasured.MISSING), ({"a": [1]}, "a.x", Unmeasured.MISSING),
        ({"a": [1]}, "a.-1", Unmeasured.MISSING), ({"a": None}, "a", Unmeasured.OTHER),
        ({"a": math.nan}, "a", Unmeasured.NAN), ({"a": False}, "a", Unmeasured.OTHER), (3.0, "a", Unmeasured.MISSING),
        ({"": 3}, "", Unmeasured.OTHER), ({"0": 3}, "0", 3.0),
    ],
)  # fmt: skip
def test_number_of_a_reading_is_found_or_it_is_said_why_there_is_none(value: Any, field: str, found: Measured) -> None:
    """One NaN would spoil a mean, and a truth value is no 1."""
    encoded = encode_reading(reading(1, value=value))
    as_json = (
        "null" if isinstance(value, float) and not math.isfinite(value) else json.dumps(value).replace("NaN", "null")
    )
    got = measured(as_json, encoded, tuple(field.split(".")) if field else ())
    assert (got, type(got)) == (found, type(found))
    assert not (isinstance(got, float) and math.copysign(1, got) < 0 and got == 0)
