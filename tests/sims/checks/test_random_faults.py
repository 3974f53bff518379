"""Histories of six nodes, each with faults of its own: every promise holds, and everything did happen.

`make test` runs eighty of them, and ``MESH_SEEDS=1000 make test ARGS='-k random_faults'`` a thousand.
"""

import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from sims.checks.contract import known_checks
from sims.cli.replay import replay as replay_command
from sims.cli.replay import shrink as shrink_command
from sims.runs import bundle
from sims.runs.bundle import digests_under_hash_seeds, load, save, taped, with_result
from sims.runs.run import simulate
from sims.scenario.file import load as load_scenario
from sims.world.faults import plan

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]  # half a minute on two idle cores
SEEDS = int(os.environ.get("MESH_SEEDS", "80"))
WORKERS = 2


class Outcome(NamedTuple):
    """Of one seed; small, because it crosses a process."""

    seed: int
    failures: list[str]
    judged: Counter[str]
    sometimes: Counter[str]


def outcome(seed: int) -> Outcome:
    """One history."""
    result = simulate(load_scenario("partition-heal"), seed)
    return Outcome(
        seed,
        [f"{name}: {result.checks[name].details[0]}" for name in result.broken],
        Counter({name: check.passed for name, check in result.checks.items()}),
        Counter(result.sometimes),
    )


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Of all seeds."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        return pool.map(outcome, range(SEEDS), chunksize=10)


def test_random_faults_of_many_seeds_keep_every_promise(outcomes: list[Outcome]) -> None:
    """Replay a failure by `meshsim run partition-heal --seed N`, and make it small by `meshsim shrink`."""
    assert [(outcome.seed, outcome.failures) for outcome in outcomes if outcome.failures] == []


def test_random_faults_judged_every_pair_at_the_end_of_every_seed(outcomes: list[Outcome]) -> None:
    """A fault that is never undone would keep liveness from being judged, and look like success."""
    assert {outcome.judged["membership_converges"] for outcome in outcomes} == {6 * 5}


def test_random_faults_judged_every_check_many_times(outcomes: list[Outcome]) -> None:
    """A check that never judges is always green. No model here is private, no records are expected, and there are no
    releases: test_split_models.py, test_sim_rules.py and test_sim_releases.py in tests/sims/world have them, and
    test_checks.py beside this file has a bad release."""
    judged: Counter[str] = Counter()
    for outcome in outcomes:
        judged.update(outcome.judged)  # a sum would leave out what is 0
    assert set(judged) == {name for name in known_checks() if name != "sometimes"}
    assert {name for name, count in judged.items() if count < SEEDS} == {
        "private_inputs_stay", "kept_chunks_are_genuine", "forbidden_nodes_get_nothing",
        "bad_release_stays_with_canaries", "expected_records",
    }  # fmt: skip


def test_random_faults_saw_every_fault_and_every_way_out_of_one(outcomes: list[Outcome]) -> None:
    """What never happened in the batch was never tested."""
    seen = sum((outcome.sometimes for outcome in outcomes), Counter())
    random_faults = load_scenario("partition-heal").random_faults
    assert random_faults is not None
    wanted = {*random_faults.kinds, "restart", "restart without disk", "death", "refutation", "fallback", "failover"}
    assert wanted - set(seen) == set()


# --- from a failing seed to the smallest case ----------------------------------------------------------------------
BUG = "the-dead-are-not-dialled"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved run of the random faults in which a planted bug breaks a promise."""
    scenario = load_scenario("partition-heal")
    for seed in range(SEEDS):
        run = taped(scenario, seed, frozenset({BUG}))
        result = simulate(scenario, seed, bugs=frozenset({BUG}))
        if len(run.scenario.faults) > 3 and "membership_converges" in result.broken:
            file = tmp_path_factory.mktemp("runs") / "failing.json"
            save(file, with_result(run, result))
            return file
    raise AssertionError("no seed shows the bug")


def test_saved_seed_has_the_digest_of_the_random_faults_it_was_drawn_from(failing: Path) -> None:
    """The tape in the place of the random faults changes nothing."""
    run = load(failing)
    assert run.scenario.random_faults is None
    assert run.scenario.faults == plan(load_scenario("partition-heal"), run.seed)
    assert bundle.replay(run).digest == run.digest


def test_replay_says_what_failed_and_exits_with_one(failing: Path) -> None:
    """For people who got the file from somebody else."""
    shown = CliRunner().invoke(replay_command, [str(failing)])
    assert shown.exit_code == 1
    assert "FAILED membership_converges" in shown.stdout
    assert f"digest {load(failing).digest}, as saved" in shown.stdout
    assert "is in reach of" in shown.stderr


def test_replay_of_another_history_exits_with_three(failing: Path, tmp_path: Path) -> None:
    """What is not the same run must not look like one."""
    file = tmp_path / "other.json"
    save(file, replace(load(failing), digest="0" * 64))
    shown = CliRunner().invoke(replay_command, [str(file)])
    assert shown.exit_code == 3
    assert "another history" in shown.stderr


def test_shrink_finds_the_one_fault_and_few_nodes(failing: Path) -> None:
    """Two nodes that lost each other for long enough, or four for a shorter while: that is all it takes."""
    shown = CliRunner().invoke(shrink_command, [str(failing), "--check", "membership_converges"])
    assert shown.exit_code == 0
    assert "membership_converges fails in 1 fault, " in shown.stdout
    small = load(failing.with_name("failing.small.json"))
    assert 2 <= len(small.scenario.names) <= 4
    assert len(small.scenario.faults) == 1
    assert small.scenario.duration_s < load(failing).scenario.duration_s
    assert "membership_converges" in bundle.replay(small).broken


def test_shrink_of_a_run_that_is_well_says_so(failing: Path, tmp_path: Path) -> None:
    """Without its bug the run fails no more."""
    file = tmp_path / "well.json"
    save(file, replace(load(failing), bugs=()))
    shown = CliRunner().invoke(shrink_command, [str(file)])
    assert shown.exit_code == 3
    assert "nothing to shrink" in shown.stderr


# --- one seed, one history -----------------------------------------------------------------------------------------
def test_digest_is_the_same_in_two_processes_with_different_hash_seeds() -> None:
    """Everything on: faults, gossip, inference, hops, moving clocks."""
    run = taped(load_scenario("partition-heal"), 11)
    digests = digests_under_hash_seeds(run)
    assert len(digests) == 2
    assert len({*digests, bundle.play(run).digest}) == 1
