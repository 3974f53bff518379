"""Journals of real nodes become the figures that the simulator has, by the same definitions."""

from random import Random

import pytest

from sims.emulator.observation import Line, Observation
from sims.media.media import Media
from sims.results.recorder import Recording
from sims.results.result import Result
from sims.roads.mobility import places
from sims.scenario.file import Fault, Fixed, Group, Radio, Scenario, Traffic
from tests.tools.result_fixture import MS_NS

SECOND_NS = 1_000 * MS_NS
KEY = "veh/car-0/hazard"


def pair(*faults: Fault) -> Scenario:
    """Two cars side by side for 10 s. Only the first one publishes: five hazards a second."""
    groups = (Group("car", 1, Fixed(((0.0, 0.0),))), Group("ear", 1, Fixed(((20.0, 0.0),))))
    return Scenario(
        "pair", "Two cars", 10.0, groups, radio=Radio("ideal", range_m=100.0), faults=faults,
        traffic=(Traffic("car", "hazard", 5.0, priority=7, lifespan_ms=400, to=("ear",)),),
    )  # fmt: skip


def observed(scenario: Scenario, *lines: Line) -> Result:
    """The result of these lines, which may be in any order, with both nodes started at 0."""
    recording = Recording(scenario)
    where = places(scenario, Random("places"))
    observation = Observation(scenario, scenario.faults, recording, where, Media(scenario, where, Random("links")))
    observation.subscribed("ear-0", frozenset({"veh/*/hazard"}))
    started = [(0, name, ["started", 0, 1, 0]) for name in scenario.names]
    observation.replay(sorted([*started, *lines], key=lambda line: line[0]), 10 * SECOND_NS)
    return recording.result("emulator", 1, 10.0, 10.0, faults=scenario.faults)


def published(*sequences: int) -> list[Line]:
    """Number n is published n times 200 ms after the start."""
    return [(n * 200 * MS_NS, "car-0", ["published", 0, KEY, n, 1, 0]) for n in sequences]


def delivered(took_ms: int, *sequences: int) -> list[Line]:
    """Each comes this much later."""
    return [(n * 200 * MS_NS + took_ms * MS_NS, "ear-0", ["delivered", 0, "car-0", KEY, n]) for n in sequences]


def test_readings_of_journals_are_offered_useful_and_missed_as_in_the_simulator() -> None:
    """Figures of both harnesses stand side by side in a comparison."""
    result = observed(pair(), *published(*range(1, 50)), *delivered(30, *range(1, 21)), *delivered(500, *range(21, 31)))
    assert (result.offered_per_s, result.useful_per_s) == (4.9, 2.0)
    assert (result.urgent_wanted, result.urgent_missed) == (48, 28), "the last one may still come in time"
    assert result.urgent.count == 30
    assert result.urgent.quantiles["p50"] == pytest.approx(30, rel=0.04)


def test_age_of_a_pair_in_the_emulator_counts_also_before_anything_came() -> None:
    """As in the simulator: who hears nothing has the oldest picture."""
    ages = observed(pair(), *published(*range(1, 49))).age
    assert ages.count == 10, "only the listener's, once a second"
    assert 9_000 < ages.quantiles["max"] < 10_000
    heard = observed(pair(), *published(*range(1, 49)), *delivered(30, *range(1, 49))).age
    assert heard.count == 10
    assert 30 <= heard.quantiles["p50"] <= heard.quantiles["max"] <= 230


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault("crash", 3.0, 0.0, ("ear-0",)), 3),
        (Fault("crash", 3.0, 0.0, ("car-0",)), 3),
        (Fault("partition", 3.0, 4.0, ("ear-0",), ("car-0",)), 6),
        (Fault("one-way-loss", 3.0, 4.0, ("ear-0",), ("car-0",), share=0.5), 6),
    ],
    ids=["listener crashes", "publisher crashes", "partition", "loss"],
)  # fmt: skip
def test_pair_that_is_down_or_cut_has_no_age_and_is_offered_nothing(fault: Fault, seconds: int) -> None:
    """A fault is not a channel that is too full."""
    last = 15 if fault.nodes == ("car-0",) else 49
    result = observed(pair(fault), *published(*range(1, last)))
    assert result.age.count == seconds
    assert result.offered_per_s == pytest.approx(1.4 if fault.kind == "crash" else 2.8, abs=0.11)
    assert result.age.quantiles["max"] <= 3_000


def test_node_that_starts_again_counts_from_then() -> None:
    """It has forgotten what it knew, and nobody can be blamed for that."""
    crash = Fault("crash", 3.0, 2.0, ("ear-0",))
    again = (5 * SECOND_NS, "ear-0", ["started", 0, 2, 0])
    result = observed(pair(crash), *published(*range(1, 49)), *delivered(30, *range(1, 14)), again)
    assert result.age.count == 3 + 5
    assert 4_000 < result.age.quantiles["max"] < 5_000
