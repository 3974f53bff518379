"""What is offered, what is useful, what becomes of urgent readings, and how old the newest are."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import sims.results.goodput
from sims.cli.main import main as meshsim
from sims.results.goodput import Goodput, sample_ns
from sims.results.recorder import SECOND_NS, Recording
from sims.results.result import Result
from sims.results.saved import encode, load
from sims.runs.run import simulate
from sims.scenario.file import Fault, Fixed, Group, Scenario, Traffic, dumps
from tests.tools.result_fixture import MS_NS

CAR_0, CAR_1, CAR_2 = "veh/car-0/position", "veh/car-1/position", "veh/car-2/position"
HAZARD = "veh/car-0/hazard"


def three(**more: Any) -> Scenario:
    """Three cars of which the last one starts after 2 s, and a unit that wants only hazards; 12 s."""
    groups = (
        Group("car", 3, Fixed(((0.0, 0.0), (20.0, 0.0), (40.0, 0.0))), stagger_s=1.0),
        Group("rsu", 1, Fixed(((20.0, 20.0),)), role="rsu"),
    )
    traffic = (
        Traffic("car", to=("car",), lifespan_ms=500),
        Traffic("car", "hazard", 0.1, priority=6, lifespan_ms=1_000),
    )
    return Scenario("three", "Three cars", 12.0, groups, traffic=traffic, **more)


def told(goodput: Goodput, scenario: Scenario, end_s: float = 12.0) -> Result:
    """A result with the figures so far."""
    result = Recording(scenario).result("simulator", 1, end_s, 1.0)
    goodput.fill(result, int(end_s * SECOND_NS))
    return result


# --- offered and useful ----------------------------------------------------------------------------------------------
def test_reading_is_offered_to_each_subscriber_near_once_all_nodes_have_started() -> None:
    """What is asked of a channel before everybody is there says nothing about how it copes with all of them."""
    goodput = Goodput(three())
    goodput.published(SECOND_NS, CAR_0, 1, [1, 3])
    goodput.published(2 * SECOND_NS, CAR_0, 2, [1, 2, 3])
    goodput.published(3 * SECOND_NS, CAR_1, 3, [0])
    goodput.published(3 * SECOND_NS, HAZARD, 4, [1, 3])
    goodput.published(3 * SECOND_NS, "veh/car-0/unknown", 4, [1, 3])
    result = told(goodput, three())
    assert result.offered_per_s == pytest.approx((2 + 1 + 2) / 10)
    assert result.useful_per_s == 0


def test_reading_is_useful_once_and_within_its_lifespan() -> None:
    """A channel that is busy with what is old, or there already, must not look as if it worked."""
    goodput = Goodput(three())
    heard = goodput.heard(1, CAR_0)
    heard.came(2 * SECOND_NS - MS_NS, 1, 2 * SECOND_NS - 2 * MS_NS)  # before all have started
    heard.came(3 * SECOND_NS + 500 * MS_NS, 2, 3 * SECOND_NS)
    heard.came(3 * SECOND_NS + 510 * MS_NS, 2, 3 * SECOND_NS)
    heard.came(4 * SECOND_NS + 501 * MS_NS, 3, 4 * SECOND_NS)
    heard.came(5 * SECOND_NS, 2, 3 * SECOND_NS)
    goodput.heard(2, CAR_0).came(3 * SECOND_NS + MS_NS, 2, 3 * SECOND_NS)
    assert told(goodput, three()).useful_per_s == pytest.approx(2 / 10)
    assert heard.newest_ns == 4 * SECOND_NS


def test_span_is_the_whole_run_when_nodes_would_start_after_it() -> None:
    """A division by nothing, or by less, would end the run in a trace of calls."""
    late = Scenario("late", "Late", 3.0, (Group("car", 2, Fixed(((0.0, 0.0), (9.0, 0.0))), start_s=5.0),))
    goodput = Goodput(late)
    assert goodput.begin_ns == 0
    assert told(goodput, late, 0.0).offered_per_s is None
    assert told(goodput, late, 3.0).offered_per_s == 0


def test_simulator_counts_as_offered_and_useful_what_was_published_and_delivered() -> None:
    """With two nodes that start together, each reading is wanted once."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0))))
    result = simulate(Scenario("two", "Two", 10.0, (group,), traffic=(Traffic("car"),)), 1)
    assert result.counters["published"] > 180
    assert result.offered_per_s == pytest.approx(result.counters["published"] / 10)
    assert result.useful_per_s == pytest.approx(result.counters["delivered"] / 10)
    assert 19 < (result.useful_per_s or 0) <= (result.offered_per_s or 0)
    assert (result.urgent.count, result.urgent_wanted) == (0, 0)


def test_simulator_does_not_call_useful_what_comes_after_its_lifespan() -> None:
    """A clogged link delivers all of it, and none of it helps."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0))))
    clog = Fault("clog", 4.0, 0.0, ("car-0",), delay_ms=400.0)
    traffic = (Traffic("car", lifespan_ms=200, rate_hz=5.0),)
    result = simulate(Scenario("two", "Two", 12.0, (group,), traffic=traffic, faults=(clog,)), 1)
    assert 9 < (result.offered_per_s or 0) <= 10
    assert 5.5 < (result.useful_per_s or 0) < 8


# --- urgent readings -------------------------------------------------------------------------------------------------
def test_urgent_reading_that_does_not_come_in_time_is_missed_there() -> None:
    """One vehicle that never hears of the hazard is the one that drives into it."""
    scenario = three()
    goodput = Goodput(scenario)
    by_car, by_rsu = goodput.heard(1, HAZARD), goodput.heard(3, HAZARD)
    goodput.published(3 * SECOND_NS, HAZARD, 1, [1, 2, 3])
    by_car.came(3 * SECOND_NS + 20 * MS_NS, 1, 3 * SECOND_NS)
    by_rsu.came(4 * SECOND_NS + MS_NS, 1, 3 * SECOND_NS)  # too late
    goodput.published(7 * SECOND_NS, HAZARD, 2, [1, 3])
    by_car.came(7 * SECOND_NS + 30 * MS_NS, 2, 7 * SECOND_NS)
    by_rsu.came(7 * SECOND_NS + 40 * MS_NS, 2, 7 * SECOND_NS)
    result = told(goodput, scenario)
    assert (result.urgent_wanted, result.urgent_missed) == (5, 2)
    assert result.urgent.count == 4
    assert result.urgent.quantiles["p50"] == pytest.approx(30, rel=0.04)
    assert result.urgent.quantiles["p99"] == pytest.approx(1_001, rel=0.04)


def test_urgent_reading_that_may_still_come_is_not_judged_at_the_end() -> None:
    """Each run would otherwise miss the last ones."""
    scenario = three()
    goodput = Goodput(scenario)
    goodput.published(11 * SECOND_NS + 500 * MS_NS, HAZARD, 1, [1, 3])
    goodput.heard(3, HAZARD).came(11 * SECOND_NS + 510 * MS_NS, 1, 11 * SECOND_NS + 500 * MS_NS)
    result = told(goodput, scenario)
    assert (result.urgent_wanted, result.urgent_missed) == (1, 0)
    assert told(goodput, scenario, 13.0).urgent_missed == 1


def test_only_readings_of_priority_six_and_seven_are_urgent() -> None:
    """The others have room for all the delay that there is."""
    goodput = Goodput(three())
    goodput.published(3 * SECOND_NS, CAR_0, 1, [1, 2])
    goodput.heard(1, CAR_0).came(3 * SECOND_NS + MS_NS, 1, 3 * SECOND_NS)
    result = told(goodput, three())
    assert (result.urgent.count, result.urgent_wanted, result.urgent_missed) == (0, 0, 0)


def test_urgent_readings_beyond_the_bound_are_named_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is urgent, memory does not grow with it."""
    monkeypatch.setattr(sims.results.goodput, "MAX_OPEN", 3)
    goodput = Goodput(three())
    for number in range(5):
        goodput.published(3 * SECOND_NS, HAZARD, number, [1])
    assert goodput.left_out() == ["urgent readings: 2 more were under way than the 3 that are followed"]
    goodput.published(7 * SECOND_NS, HAZARD, 9, [1])
    result = told(goodput, three())
    assert (result.urgent_wanted, result.urgent_missed) == (4, 4)


def test_simulator_measures_urgent_readings_by_themselves() -> None:
    """In the crowd of positions nobody would see the one hazard that is late."""
    result = simulate(three(), 1)
    assert result.urgent_missed == 0
    assert result.urgent_wanted == result.urgent.count == 3 * 3
    assert 0 < result.urgent.quantiles["p50"] < 50
    assert result.latency.count > 10 * result.urgent.count


# --- age -------------------------------------------------------------------------------------------------------------
def test_age_of_a_pair_that_has_heard_nothing_counts_from_when_both_were_there() -> None:
    """Neighbours that starve would otherwise be the only ones that no figure shows."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0))), stagger_s=2.0)
    clogs = tuple(Fault("clog", 0.0, 0.0, (name,), delay_ms=60_000.0) for name in ("car-0", "car-1"))
    result = simulate(Scenario("mute", "Mute", 12.0, (group,), traffic=(Traffic("car"),), faults=clogs), 1)
    assert result.counters["delivered"] == 0
    assert result.age.count == 2 * 10
    assert 9_000 < result.age.quantiles["max"] < 10_000
    assert 4_000 < result.age.quantiles["p50"] < 6_000


def test_age_counts_ordered_pairs_of_which_one_wants_what_the_other_publishes() -> None:
    """A unit that publishes nothing has no age, and one that wants nothing sees none."""
    ages = simulate(three(), 1).age
    cars = 6 * 10 + 2  # all three since 2 s, two of them since 1 s
    units = 3 * 10 + 2 + 1  # hazards
    assert cars + units - 4 <= ages.count <= cars + units + 4
    goodput = Goodput(three())
    pairs = {(one, other) for one in range(4) for other in range(4) if one != other and goodput.expects(one, other)}
    assert pairs == {(one, other) for one in range(4) for other in range(3) if one != other}


def test_age_after_a_partition_counts_from_its_end() -> None:
    """What was heard before it says how long the partition was, which is known."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0))))
    cut = Fault("partition", 3.0, 10.0, ("car-0",))
    result = simulate(Scenario("cut", "Cut", 30.0, (group,), traffic=(Traffic("car"),), faults=(cut,)), 1)
    assert 2 * 18 <= result.age.count <= 2 * 21, "not during the partition"
    assert result.age.quantiles["max"] < 8_000


def test_samples_of_ages_are_one_a_second_at_all_parts_of_it() -> None:
    """Looking at whole seconds would always see the same part of a period."""
    instants_ns = [sample_ns(number) for number in range(1, 101)]
    assert [instant_ns // SECOND_NS for instant_ns in instants_ns] == list(range(100))
    parts = sorted(instant_ns % SECOND_NS for instant_ns in instants_ns)
    gaps = [after - before for before, after in pairwise(parts)]
    assert max(gaps) < SECOND_NS // 40


# --- saved, and printed ----------------------------------------------------------------------------------------------
def test_figures_are_saved_and_printed(tmp_path: Path) -> None:
    """A program reads them from either."""
    file = tmp_path / "three.json"
    file.write_text(dumps(three()))
    done = CliRunner().invoke(meshsim, ["run", str(file), "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    printed, saved = json.loads(done.stdout), load(tmp_path / "out")
    assert printed["offered_per_s"] == saved.offered_per_s
    assert printed["useful_per_s"] == saved.useful_per_s
    assert printed["urgent"]["p99"] == saved.urgent.quantiles["p99"]
    assert (printed["urgent_wanted"], printed["urgent_missed"]) == (saved.urgent_wanted, saved.urgent_missed) == (9, 0)
    assert "count" in (tmp_path / "out" / "urgent_histogram.csv").read_text()


def test_result_that_was_saved_without_the_figures_still_loads(tmp_path: Path) -> None:
    """Results are kept for comparison with later versions."""
    parts = msgspec.json.decode(encode(told(Goodput(three()), three())))
    for name in ("offered_per_s", "useful_per_s", "urgent", "urgent_wanted", "urgent_missed"):
        del parts[name]
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(parts))
    result = load(tmp_path)
    assert result.offered_per_s is result.useful_per_s is None
    assert result.urgent.count == result.urgent_wanted == 0
