"""Rules in simulation: they are those of real nodes, and a run fails when a change breaks what is expected of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from sims.cli.main import main
from sims.errors import EmulatorError, ScenarioError
from sims.report.render import render
from sims.results import saved
from sims.results.result import Result
from sims.runs import bundle
from sims.runs.run import Run, simulate
from sims.runs.shrink import only
from sims.scenario.file import (
    SHIPPED,
    Cellular,
    Checks,
    Curation,
    ExpectedRecords,
    Fault,
    Fixed,
    Group,
    Hole,
    Radio,
    Scenario,
    Traffic,
    Waypoints,
    check,
    dumps,
    load,
    loads,
    rules_path,
)

SPEEDS = """
[[rule]]
name = "speeds"
keys = "veh/*/speed"
source = "any"
unit = "m/s"
by = "origin"
window = { size_s = 5 }
compute = ["count", "mean", "max"]
output = { key = "rsu/{node}/speeds/{partition}", unit = "m/s" }
"""
DRIVING = Waypoints(((0.0, 0.0, 0.0), (20.0, 200.0, 0.0), (25.0, 200.0, 0.0)))
"""At 10 m/s for twenty seconds, then it stands."""


def scenario_in(folder: Path, rules: str = SPEEDS, **changed: Any) -> Scenario:
    """One car, and a unit that runs ``rules`` from a file in ``folder``."""
    (folder / "rules.toml").write_text(rules)
    scenario = Scenario(
        "rules", "One car and a unit with rules.", 25.0,
        (Group("car", 1, DRIVING), Group("rsu", 1, Fixed(((100.0, 10.0),)), role="rsu", device="rsu", relay=True)),
        radio=Radio("ideal", range_m=500.0),
        traffic=(Traffic("car", "speed", rate_hz=4.0, value="speed", to=("car",)),),
        curation=Curation(rules=("rules.toml",), own_readings=False), checks=Checks(settle_s=5.0), folder=str(folder),
    )  # fmt: skip
    return replace(scenario, **changed)


def expecting(scenario: Scenario, **wanted: Any) -> Scenario:
    """The scenario with one expectation of the rule ``speeds``."""
    return replace(scenario, curation=replace(scenario.curation, expected=(ExpectedRecords("speeds", **wanted),)))


def details(result: Result) -> str:
    """What the check of expected records said."""
    return "\n".join(result.checks["expected_records"].details)


# --- rules run -----------------------------------------------------------------------------------------------------
def test_rule_summarises_readings_of_a_neighbour_and_the_relay_gets_them(tmp_path: Path) -> None:
    """Windows of five seconds, of which the first and the last are not whole."""
    wanted = {"count": (1.0, 20.0), "mean": (10.0, 10.0), "max": (10.0, 10.0)}
    result = simulate(expecting(scenario_in(tmp_path), at_least=4, at_most=4, nodes=("rsu-0",), value=wanted), 1)
    assert result.broken == []
    assert result.checks["expected_records"].passed == 1
    speeds = result.rules["speeds"]
    assert speeds.records == result.counters["records_at_relay"] == 4
    assert speeds.size_bytes > 4 * 100
    assert speeds.readings["taken"] > 75
    assert speeds.readings["derived"] == 4
    assert list(result.rules) == ["speeds"]


def test_rule_takes_a_reading_when_it_comes_and_not_when_somebody_looks(tmp_path: Path) -> None:
    """A rule that answers each reading at once is heard by others within milliseconds."""
    answer = """
    [[rule]]
    name = "answer"
    keys = "veh/*/speed"
    source = "any"
    output = { key = "rsu/{node}/answer", priority = 6, record = false }
    """
    listening = scenario_in(tmp_path, answer + SPEEDS.replace("veh/*/speed", "rsu/*/answer"))
    run = Run(replace(listening, groups=(
        listening.groups[0], replace(listening.groups[1], count=2, mobility=Fixed(((100.0, 10.0), (100.0, 20.0)))),
    )), 1)  # fmt: skip
    result = run.go()
    assert result.broken == []
    assert result.rules["answer"].readings["derived"] > 150
    assert result.rules["speeds"].readings["taken"] > 300  # those of the other unit, and its own
    answers = [message for message in result.messages if message.key.endswith("answer")]
    assert answers
    took = [at_s - message.published_s for message in answers for _, at_s in message.arrivals]
    assert max(took) < 0.05


def test_each_group_runs_its_own_rules_and_those_of_curation_otherwise(tmp_path: Path) -> None:
    """Vehicles and roadside units may not publish the same keys."""
    (tmp_path / "car.toml").write_text(SPEEDS.replace("rsu/", "veh/").replace('"speeds"', '"mine"'))
    scenario = scenario_in(tmp_path)
    car, rsu = scenario.groups
    scenario = replace(scenario, groups=(replace(car, relay=True, rules=("car.toml",)), rsu))
    result = simulate(scenario, 1)
    assert {name: rule.records for name, rule in result.rules.items()} == {"mine": 4, "speeds": 4}


def test_rules_of_each_life_have_seen_nothing(tmp_path: Path) -> None:
    """Windows that a real node saves over a restart begin anew: the readings of one are lost, or it comes in parts."""
    crash = Fault("crash", 12.0, 1.0, ("rsu",))
    result = simulate(expecting(scenario_in(tmp_path, faults=(crash,)), at_least=4, at_most=4), 1)
    whole = simulate(scenario_in(tmp_path), 1)
    assert result.broken == []
    assert result.rules["speeds"].readings["taken"] < whole.rules["speeds"].readings["taken"] - 3


def test_own_readings_become_records_beside_those_of_rules_unless_it_says_otherwise(tmp_path: Path) -> None:
    """Rules may add to what is recorded, or replace it."""
    scenario = scenario_in(tmp_path, traffic=(Traffic("car", "speed", value="speed"), Traffic("rsu", "signal", 2.0)))
    both = simulate(replace(scenario, curation=Curation(rules=("rules.toml",))), 1)
    assert both.rules["all"].records > 20
    assert both.rules["speeds"].records == 4


def test_derived_reading_that_may_not_be_published_is_counted(tmp_path: Path) -> None:
    """A unit must not speak as a vehicle."""
    result = simulate(scenario_in(tmp_path, SPEEDS.replace("rsu/{node}", "veh/{node}")), 1)
    assert result.counters["records_not_derived"] == 4
    assert result.counters["records_made"] == 0


def test_acceleration_is_the_change_of_the_speed_in_the_last_second(tmp_path: Path) -> None:
    """A car that stands from one instant to the next has lost 10 m/s in it."""
    rules = SPEEDS.replace('speed"', 'acceleration"').replace("m/s", "m/s2").replace('"max"', '"min"')
    traffic = (Traffic("car", "acceleration", rate_hz=4.0, value="acceleration"),)
    scenario = scenario_in(tmp_path, rules.replace("size_s = 5", "size_s = 25"), traffic=traffic, duration_s=28.0)
    result = simulate(expecting(scenario, value={"min": (-10.0, -10.0)}), 1)
    assert result.broken == []


# --- one seed, one history -----------------------------------------------------------------------------------------
@pytest.mark.processes
def test_run_with_rules_is_the_same_in_other_processes_and_whoever_judges() -> None:
    """Otherwise a gate would fail by chance."""
    run = bundle.taped(load("hotspots"), 3)
    digests = bundle.digests_under_hash_seeds(run)
    assert {*digests, bundle.play(run).digest} == {digests[0]}
    unjudged = replace(run.scenario, checks=Checks(("sometimes",), settle_s=5.0))
    assert simulate(unjudged, 3).digest == digests[0]


def test_saved_run_carries_its_rules(tmp_path: Path) -> None:
    """Whoever gets the folder can repeat the run, whatever becomes of the files it was made from."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    scenario = scenario_in(here)
    (here / "sub" / "rules.toml").write_text(SPEEDS.replace('"speeds"', '"other"').replace("/speeds/", "/other/"))
    scenario = replace(scenario, curation=replace(scenario.curation, rules=("rules.toml", "sub/rules.toml")))
    run = bundle.taped(scenario, 1)
    run = bundle.with_result(run, bundle.play(run))
    bundle.save(there / "run.json", run)
    (here / "rules.toml").write_text(SPEEDS.replace("size_s = 5", "size_s = 2"))
    loaded = bundle.load(there)
    assert loaded.scenario.curation.rules == ("run.rules/rules.toml", "run.rules/2-rules.toml")
    assert bundle.replay(loaded).rules["other"].records == 4
    bundle.save(there / "run.json", loaded)  # over itself
    assert bundle.load(there).scenario == loaded.scenario


def test_fewer_nodes_leave_what_is_expected_of_those_that_are_left(tmp_path: Path) -> None:
    """A run that fails is made smaller; what nobody is left to make can't be expected of it."""
    scenario = scenario_in(tmp_path)
    expected = (ExpectedRecords("speeds", nodes=("rsu-0", "rsu")), ExpectedRecords("speeds", 2))
    scenario = replace(scenario, curation=replace(scenario.curation, expected=expected))
    assert only(scenario, ("rsu-0",)).curation == scenario.curation
    alone = only(scenario, ("car-0",))
    assert (alone.curation.rules, alone.curation.expected) == ((), ())
    check(alone)


def test_result_and_report_say_what_each_rule_came_to(tmp_path: Path) -> None:
    """Somebody who did not see the run looks there."""
    result = simulate(expecting(scenario_in(tmp_path)), 1)
    saved.save(tmp_path / "out", result, render(result))
    assert saved.load(tmp_path / "out").rules == result.rules
    size_bytes = result.rules["speeds"].size_bytes
    assert f'"rules":[["speeds",4,{size_bytes}]]' in (tmp_path / "out" / "report.html").read_text("utf-8")


# --- expected records ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"at_least": 5}, "the relay has 4 records by rule 'speeds', where at least 5 were expected"),
        ({"at_least": 0, "at_most": 3}, "the relay has 4 records by rule 'speeds', where 0 to 3 were expected"),
        ({"value": {"mean": (11.0, 12.0)}}, "its value has 10 at 'mean', where 11 to 12 was expected"),
        ({"value": {"p95": (0.0, 1.0)}}, "has no number at 'p95', where 0 to 1 was expected"),
        ({"value": (0.0, 1.0)}, "has no number, where 0 to 1 was expected"),
    ],
)
def test_records_that_are_not_as_expected_fail_the_run_and_are_named(
    wanted: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Whoever changed the rule has to see what it does now."""
    result = simulate(expecting(scenario_in(tmp_path), **wanted), 1)
    assert result.broken == ["expected_records"]
    assert words in details(result)


def test_records_that_never_reached_the_relay_are_not_as_expected(tmp_path: Path) -> None:
    """What counts is what the relay has at the end."""
    scenario = scenario_in(tmp_path, cellular=Cellular(holes=(Hole(100.0, 10.0, 50.0),)))
    result = simulate(expecting(scenario), 1)
    assert result.broken == ["expected_records"]
    assert "the relay has 0 records" in details(result)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("value <= -9.0", "the relay has 0 records of rsu by rule 'hotspot', where 2 were expected"),
        ("value <= -1.0", "its value has -1.3 at 'readings.1.value.min', where -9 to -4 was expected"),
    ],
)
def test_hotspots_fails_when_the_threshold_of_its_rule_is_changed(changed: str, words: str, tmp_path: Path) -> None:
    """Its rules are copied beside it, as somebody would who changes them."""
    text = (SHIPPED / "hotspots.toml").read_text()
    (tmp_path / "hotspots.toml").write_text(text)
    (tmp_path / "rules").mkdir()
    braking = (SHIPPED / "rules/braking.toml").read_text()
    assert "value <= -4.0" in braking
    (tmp_path / "rules/braking.toml").write_text(braking)
    kept = CliRunner().invoke(main, ["run", str(tmp_path / "hotspots.toml")])
    assert kept.exit_code == 0
    assert "rule hotspot: 2 records at the relay" in kept.stdout
    (tmp_path / "rules/braking.toml").write_text(braking.replace("value <= -4.0", changed))
    broken = CliRunner().invoke(main, ["run", str(tmp_path / "hotspots.toml"), "--json"])
    assert broken.exit_code == 1
    told = json.loads(broken.stdout)["checks"]["expected_records"]
    assert told["failed"] >= 1
    assert words in " ".join(told["details"])


def test_records_of_rules_have_one_known_fate_each_after_a_long_outage() -> None:
    """The scenario ``outage`` made 60 times as short: no relay for 24 minutes, full disks, a kill, small outboxes."""
    scale = 60
    day = load("outage")
    assert day.curation is not None
    short = replace(
        day, duration_s=day.duration_s / scale,
        curation=replace(
            day.curation, lifespan_s=day.curation.lifespan_s / scale, max_records=day.curation.max_records // scale,
            interval_s=day.curation.interval_s / 2, expected=(),
        ),
        faults=tuple(replace(fault, at_s=fault.at_s / scale, for_s=fault.for_s / scale) for fault in day.faults),
        checks=replace(day.checks, settle_s=5.0),
    )  # fmt: skip
    result = simulate(short, 1)
    assert result.broken == []
    fates = {
        name: result.counters[f"records_{name}"] for name in ("delivered", "expired", "evicted", "refused", "waiting")
    }
    assert result.counters["records_made"] == sum(fates.values())
    assert min(fates["delivered"], fates["expired"], fates["evicted"], result.counters["records_not_written"]) > 0
    assert result.counters["records_at_relay"] == fates["delivered"]
    assert result.checks["record_in_one_state"].passed > 0


# --- what can't be used --------------------------------------------------------------------------------------------
def test_check_says_of_a_broken_rule_what_a_node_says(tmp_path: Path) -> None:
    """With line and column, before anything runs."""
    (tmp_path / "one.toml").write_text(dumps(replace(scenario_in(tmp_path), folder="")))
    good = CliRunner().invoke(main, ["check", str(tmp_path / "one.toml"), "hotspots"])
    assert good.exit_code == 0
    assert "rules: 2 nodes, 25 s: it can be run\n" in good.stdout
    assert f"  {tmp_path / 'rules.toml'}: 1 rule, at most " in good.stdout
    (tmp_path / "rules.toml").write_text(SPEEDS.replace('by = "origin"', 'by = "origine"'))
    for command in ("check", "run"):
        bad = CliRunner().invoke(main, [command, str(tmp_path / "one.toml")])
        assert bad.exit_code == 2
        assert f"{tmp_path / 'rules.toml'}" in bad.stderr
        assert "line 7, column 7: undeclared reference to 'origine'" in bad.stderr


def test_expectation_of_an_unknown_rule_names_the_nearest(tmp_path: Path) -> None:
    """A record that nobody can make is no bad record."""
    scenario = scenario_in(tmp_path)
    scenario = replace(scenario, curation=replace(scenario.curation, expected=(ExpectedRecords("speedz"),)))
    with pytest.raises(ScenarioError, match=r"expected\[0\]\.rule is 'speedz', .* did you mean 'speeds'\?"):
        Run(scenario, 1)
    with pytest.raises(ScenarioError, match=r"a rule of group 'rsu' is called 'all'"):
        Run(scenario_in(tmp_path, SPEEDS.replace('"speeds"', '"all"'), curation=Curation(rules=("rules.toml",))), 1)


@pytest.mark.parametrize(
    ("curation", "words"),
    [
        ({"rules": ["none.toml"]}, "there is no file of rules 'none.toml' in "),
        ({"expected": [{"rule": "a", "nodes": ["car"]}]}, "nodes has 'car', no node or group that makes records"),
        ({"expected": [{"rule": "a", "at_most": 0}]}, "at_most is 0, less than at_least = 1: set at_least too"),
        ({"expected": [{"rule": "a", "at_least": 0}]}, "at_least is 0, and nothing else is asked"),
        ({"expected": [{"rule": "a", "value": {"mean": [2, 1]}}]}, "value.mean is [2.0, 1.0]: give the least number"),
        ({"expected": [{"rule": "a", "value": {"mean": [1, 2, 3]}}]}, "curation.expected[0].value"),
        ({"expected": [{"rule": "a", "atleast": 1}]}, "did you mean 'at_least'?"),
    ],
)
def test_curation_that_can_not_be_is_refused(curation: dict[str, Any], words: str, tmp_path: Path) -> None:
    """An expectation that can't fail, or can't be met, is a slip."""
    data = json.loads(dumps(scenario_in(tmp_path))) | {"curation": curation}
    with pytest.raises(ScenarioError) as caught:
        loads(json.dumps(data))
    assert words in str(caught.value)


def test_rules_that_nobody_would_run_are_refused(tmp_path: Path) -> None:
    """Only nodes that make records run rules."""
    scenario = scenario_in(tmp_path)
    car, rsu = scenario.groups
    for groups, words in (
        ((replace(car, rules=("rules.toml",)), rsu), "groups[0].rules: only nodes that make records run rules"),
        ((car, replace(rsu, relay=False)), "curation.rules: no group has relay = true"),
        ((car, replace(rsu, rules=())), "curation.rules: every group with relay = true has rules of its own"),
    ):
        with pytest.raises(ScenarioError) as caught:
            loads(dumps(replace(scenario, groups=groups)))
        assert words in str(caught.value)


def test_emulation_refuses_what_it_would_leave_out(tmp_path: Path) -> None:
    """A gate that judges nothing would always be green."""
    from sims.emulator.run import _checked

    with pytest.raises(EmulatorError, match="hotspots has rules, expected records or own_readings = false"):
        _checked(load("hotspots"), 1)
    plain = scenario_in(tmp_path, curation=Curation())
    with pytest.raises(EmulatorError, match=r"has value = 'speed' in traffic\[0\]"):
        _checked(plain, 1)


def test_rules_that_ship_are_found_from_everywhere(tmp_path: Path) -> None:
    """And a file of the same name beside the scenario wins."""
    scenario = scenario_in(tmp_path)
    assert rules_path(scenario, "rules/braking.toml") == SHIPPED / "rules/braking.toml"
    assert rules_path(scenario, "rules.toml") == tmp_path / "rules.toml"
