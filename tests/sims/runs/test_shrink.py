"""Saved runs: a run comes back from its file as it was, repeats to its digest, and shrinks to what makes it fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from sims.errors import ReplayError
from sims.results.result import RESULT_VERSION, CheckTally, Result
from sims.runs import bundle
from sims.runs.bundle import SavedRun, load, save, taped, with_result
from sims.runs.shrink import described, minimised, only, shrink
from sims.runs.versions import versions
from sims.scenario.file import (
    Checks,
    Cut,
    Fault,
    Fixed,
    Group,
    Inference,
    RandomFaults,
    Scenario,
    Spread,
    Traffic,
    check,
)


def crossing(faults: tuple[Fault, ...] = (), random_faults: RandomFaults | None = None) -> Scenario:
    """Two groups of cars and an RSU."""
    return Scenario(
        "crossing", "For tests.", 60.0,
        (
            Group("car", 4, Fixed(tuple((10.0 * number, 0.0) for number in range(4)))),
            Group("rsu", 2, Fixed(((0.0, 50.0), (0.0, 90.0))), role="rsu"),
        ),
        traffic=(Traffic("car"), Traffic("rsu", topic="hazard", to=("car",))),
        gossip=(Spread(1.0, "rsu-1"), Spread(2.0, "car-3")),
        faults=faults, random_faults=random_faults, checks=Checks(settle_s=10.0),
    )  # fmt: skip


def result(run: SavedRun, broken: bool, digest: str = "d") -> Result:
    """Of a run that was only pretended."""
    checks = {"kept": CheckTally(1, 0), "promise": CheckTally(1, int(broken))}
    scenario = run.scenario
    return Result(
        RESULT_VERSION, "simulator", scenario.name, run.seed, len(scenario.names), scenario.duration_s, 0.0, digest,
        checks=checks,
    )  # fmt: skip


def failing_when(fails: Callable[[Scenario], bool]) -> Callable[[SavedRun], Result]:
    """A run in which ``promise`` fails under a condition."""
    return lambda run: result(run, fails(run.scenario))


# --- delta debugging -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("culprits", [(), (0,), (13,), (2, 17), (0, 1, 19), (3, 4, 5, 6), tuple(range(20))])
def test_minimised_finds_exactly_the_culprits(culprits: tuple[int, ...]) -> None:
    """Whatever is left is needed: leaving out any one of it makes the failure go away."""
    asked = []

    def fails(items: tuple[int, ...]) -> bool:
        asked.append(items)
        return set(culprits) <= set(items)

    assert minimised(range(20), fails) == culprits
    assert tuple(range(20)) not in asked
    assert len(asked) <= 20 * 20


def test_minimised_without_items_asks_nothing() -> None:
    """There is nothing to leave out."""
    assert minimised((), lambda _: pytest.fail("asked")) == ()


# --- leaving out nodes ---------------------------------------------------------------------------------------------
def test_only_some_nodes_keeps_their_places_and_victims_under_new_numbers() -> None:
    """Otherwise a smaller run would be about somebody else."""
    faults = (
        Fault("crash", 5.0, 1.0, ("car-3", "car-0")),
        Fault("partition", 6.0, 1.0, ("car-1",), ("car-2", "rsu-1")),
        Fault("clog", 7.0, 1.0, ("rsu-0",), ("car-3",)),
    )
    small = only(crossing(faults), ["car-1", "car-3", "rsu-1"])
    assert small.names == ["car-0", "car-1", "rsu-0"]
    assert [group.mobility.points for group in small.groups if isinstance(group.mobility, Fixed)] == [
        ((10.0, 0.0), (30.0, 0.0)), ((0.0, 90.0),),
    ]  # fmt: skip
    assert small.faults == (
        Fault("crash", 5.0, 1.0, ("car-1",)), Fault("partition", 6.0, 1.0, ("car-0",), ("rsu-0",)),
    )  # fmt: skip
    assert [entry.author for entry in small.gossip] == ["rsu-0", "car-1"]


def test_only_one_group_drops_what_the_other_was_for() -> None:
    """A scenario that names a group that nobody is in can't be used."""
    small = only(crossing(), ["rsu-0", "rsu-1"])
    assert [group.name for group in small.groups] == ["rsu"]
    assert small.traffic == ()


# --- shrinking -----------------------------------------------------------------------------------------------------
def noisy() -> SavedRun:
    """Twelve faults; it fails when rsu-1 is down while car-2 is cut off."""
    random_faults = RandomFaults(("partition", "slow-node", "clog"), until_s=40.0, most=10)
    noise = bundle.plan(crossing(random_faults=random_faults), 5)
    faults = (
        *noise,
        Fault("crash", 20.0, 8.0, ("car-0", "rsu-1")),
        Fault("partition", 22.0, 4.0, ("car-2", "car-1"), ("car-0", "car-3", "rsu-0", "rsu-1")),
    )
    return taped(crossing(tuple(sorted(faults, key=lambda fault: fault.at_s))), 5)


def crash_and_cut(scenario: Scenario) -> bool:
    """A car is cut off while an RSU is down, in a run long enough to notice."""
    down = [f for f in scenario.faults if f.kind == "crash" and any(name.startswith("rsu") for name in f.nodes)]
    cut = [f for f in scenario.faults if f.kind == "partition" and any(name.startswith("car") for name in f.nodes)]
    return any(
        c.at_s <= p.at_s < c.at_s + c.for_s and scenario.duration_s >= p.at_s + p.for_s + 10 for c in down for p in cut
    )


def test_shrink_leaves_the_two_faults_the_two_nodes_and_the_time_that_it_takes() -> None:
    """What remains is what a person has to think about."""
    told: list[str] = []
    before = noisy()
    assert len(before.scenario.faults) > 3
    done = shrink(before, run=failing_when(crash_and_cut), told=told.append)
    small = done.run.scenario
    assert done.check == "promise"
    assert sorted(fault.kind for fault in small.faults) == ["crash", "partition"]
    assert len(small.names) <= 3
    assert small.duration_s < 20
    assert not done.exhausted
    assert crash_and_cut(small)
    assert done.run.broken == ("promise",)
    assert told[-1].endswith(described(small))


def test_shrink_result_can_be_saved_and_is_a_scenario_that_checks(tmp_path: Path) -> None:
    """It goes into the repository as a named scenario."""
    done = shrink(noisy(), run=failing_when(crash_and_cut))
    save(tmp_path / "small.json", done.run)
    assert load(tmp_path / "small.json").scenario.faults == done.run.scenario.faults


def test_shrink_of_a_run_that_keeps_its_promises_refuses() -> None:
    """Nothing to look for."""
    with pytest.raises(ReplayError, match="no check fails"):
        shrink(noisy(), run=failing_when(lambda _: False))
    with pytest.raises(ReplayError, match=r"'kept' fails.*failing are promise"):
        shrink(noisy(), "kept", run=failing_when(lambda _: True))


def test_shrink_stops_at_its_bound_with_the_smallest_so_far() -> None:
    """A run may take minutes."""
    done = shrink(noisy(), run=failing_when(crash_and_cut), max_runs=3)
    assert (done.runs, done.exhausted) == (3, True)
    assert crash_and_cut(done.run.scenario)


def test_shrink_of_what_fails_always_ends_with_one_node_and_no_fault() -> None:
    """The smallest case of all."""
    done = shrink(noisy(), run=failing_when(lambda _: True))
    assert done.run.scenario.faults == ()
    assert len(done.run.scenario.names) == 1
    assert done.run.scenario.duration_s <= 11


def test_shrink_without_the_model_that_was_cut_leaves_nobody_to_accept_its_stages() -> None:
    """Such a scenario would be refused, and the needless model stay."""
    scenario = crossing()
    hosts = tuple(replace(group, accept_stages=group.name == "rsu") for group in scenario.groups)
    cut = Inference("car", cuts=(Cut(0.5, 9),))
    run = taped(replace(scenario, groups=hosts, inference=(cut, Inference("rsu"))), 1)
    done = shrink(run, run=failing_when(lambda smaller: len(smaller.names) > 1))
    assert done.run.scenario.inference == ()
    assert not any(group.accept_stages for group in done.run.scenario.groups)
    check(done.run.scenario)


# --- files ---------------------------------------------------------------------------------------------------------
def test_saved_run_comes_back_whole_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    """The tape stands in it, not the random faults: a changed way of drawing must not change an old run."""
    run = taped(crossing(random_faults=RandomFaults(("crash", "clog"), until_s=40.0)), 9, frozenset({"b", "a"}))
    run = with_result(run, result(run, True))
    assert run.scenario.random_faults is None
    assert run.scenario.faults
    save(tmp_path / "deep" / "case.json", run)
    save(tmp_path, run)
    for path in (tmp_path / "deep" / "case.json", tmp_path):
        back = load(path)
        assert (back.seed, back.bugs, back.digest, back.broken) == (9, ("a", "b"), "d", ("promise",))
        assert back.versions == versions()
        assert taped(back.scenario, 9).scenario.faults == run.scenario.faults


@pytest.mark.parametrize("spoil", [
    lambda text: text[: len(text) // 2], lambda _: "[]", lambda _: "", lambda text: text.replace('"car"', '"Car"'),
    lambda text: text.replace('"version": 1', '"version": 7'), lambda text: text.replace('"crash"', '"crush"'),
])  # fmt: skip
def test_saved_run_that_is_spoilt_is_refused_by_name(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    """Files get cut off, edited, and mixed up."""
    file = tmp_path / "case.json"
    save(file, taped(crossing((Fault("crash", 5.0, 1.0, ("car-0",)),)), 1))
    file.write_text(spoil(file.read_text()))
    with pytest.raises(ReplayError, match=r"case\.json"):
        load(file)


def test_saved_run_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    """No traceback for a person."""
    with pytest.raises(ReplayError, match=r"gone\.json"):
        load(tmp_path / "gone.json")


def test_replay_to_another_digest_says_which_version_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Most often somebody has changed the code since."""
    run = taped(crossing(), 1)
    monkeypatch.setattr(bundle, "play", lambda run: result(run, False, "other"))
    file = tmp_path / "case.json"
    save(file, with_result(run, result(run, False, "one")))
    with pytest.raises(ReplayError, match="all versions are the same"):
        bundle.replay(load(file))
    data = json.loads(file.read_text())
    data["versions"]["code"] = "0123456789ab"
    file.write_text(json.dumps(data))
    with pytest.raises(ReplayError, match="code was 0123456789ab, is "):
        bundle.replay(load(file))
    monkeypatch.setattr(bundle, "play", lambda run: result(run, False, "one"))
    assert bundle.replay(load(file)).digest == "one"
