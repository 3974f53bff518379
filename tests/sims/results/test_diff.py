"""``meshsim diff``: what got worse is found, noise is not, and what can't be compared is said to be so."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Done

from sims.cli.main import main as meshsim
from sims.errors import ResultError
from sims.results.diff import GROUPS, Trend, compare, parse_tolerances
from sims.results.result import CheckTally, Result
from sims.results.saved import encode
from tests.tools.result_fixture import result_of


def run(seed: int = 1, slower: float = 1.0, broken: int = 0) -> Result:
    """A small run."""
    result = result_of(36, 60, seed=seed, slower=slower, broken=broken)
    result.urgent, result.urgent_wanted, result.urgent_missed = deepcopy(result.latency), 400, 0
    result.offered_per_s, result.useful_per_s = 1_000.0, 990.0
    return result


def worse(before: Result, after: Result, *tolerances: str) -> list[str]:
    """What got worse."""
    changes = compare(before, after, parse_tolerances(tolerances))
    return [change.what for change in changes if change.verdict is Trend.WORSE]


def diff(folder: Path, before: Result, after: Result, *options: str) -> Done:
    """The command on two saved results."""
    (folder / "a.json").write_bytes(encode(before))
    (folder / "b.json").write_bytes(encode(after))
    return CliRunner().invoke(meshsim, ["diff", str(folder / "a.json"), str(folder / "b.json"), *options])


def test_diff_of_a_result_with_itself_finds_nothing(tmp_path: Path) -> None:
    """The comparison of CI that is green when nothing changed."""
    done = diff(tmp_path, run(), run())
    assert done.exit_code == 0, done.output
    assert done.output.startswith("none of ")


def test_diff_of_another_seed_is_no_regression() -> None:
    """Chance is not a regression."""
    assert worse(run(1), run(2), "dissemination=0.6") == []


def test_diff_of_a_slower_run_names_every_time_that_grew(tmp_path: Path) -> None:
    """Latency is what the whole thing is about."""
    found = worse(run(), run(slower=1.5))
    assert {"latency p50", "latency p99", "age p50", "discovery p95", "inference p50"} <= set(found)
    assert any(what.endswith("t90") for what in found)
    done = diff(tmp_path, run(), run(slower=1.5))
    assert done.exit_code == 1
    assert "WORSE  latency p50: " in done.output


def test_diff_within_the_tolerance_passes_and_beyond_it_fails() -> None:
    """A person decides what is noise."""
    assert worse(run(), run(slower=1.2), "0.5") == []
    assert "latency p50" in worse(run(), run(slower=1.2), "0.5", "latency=0.1")
    assert "age p50" not in worse(run(), run(slower=1.2), "0.5", "latency=0.1")


def test_diff_of_a_faster_run_is_no_regression(tmp_path: Path) -> None:
    """Better is told, and passes."""
    done = diff(tmp_path, run(slower=1.5), run())
    assert done.exit_code == 0
    assert "better latency p50" in done.output


def test_diff_finds_a_check_that_fails_now(tmp_path: Path) -> None:
    """One broken promise of five hundred outweighs any figure."""
    done = diff(tmp_path, run(), run(broken=1))
    assert done.exit_code == 1
    assert "WORSE  check one_answer_per_request: kept 500 times → 1 of 500 failed" in done.output


def test_diff_finds_a_check_that_is_no_longer_judged() -> None:
    """A check that was switched off must not look green."""
    after = run()
    after.checks["membership_converges"] = CheckTally()
    assert worse(run(), after) == ["check membership_converges"]
    del after.checks["membership_converges"]
    assert worse(run(), after) == ["check membership_converges"]


def test_diff_of_a_check_that_fails_as_before_is_told_but_passes() -> None:
    """What was broken already is not the fault of this change; nor is it green."""
    changes = compare(run(broken=2), run(broken=2), parse_tolerances(()))
    assert [change.verdict for change in changes if change.what == "check one_answer_per_request"] == [Trend.NOTE]
    assert worse(run(broken=2), run(broken=3)) == ["check one_answer_per_request"]
    assert worse(run(broken=3), run(broken=2)) == []


def _lose(result: Result) -> None:
    result.distances.delivered = [count * 8 // 10 for count in result.distances.delivered]


def _miss(result: Result) -> None:
    result.urgent_missed = 20


def _late(result: Result) -> None:
    result.urgent.quantiles["p99"] *= 2


def _starve(result: Result) -> None:
    result.useful_per_s = 500.0


def _forget(result: Result) -> None:
    result.distances.known = [count // 2 for count in result.distances.known]


def _never(result: Result) -> None:
    result.dissemination[0].t100_s = None


def _mute(result: Result) -> None:
    result.latency.count, result.latency.quantiles = 0, {}


def _crowd(result: Result) -> None:
    result.load = [share * 2 for share in result.load]


def _drop(result: Result) -> None:
    result.drops["queue_full"] = result.latency.count


def _fail(result: Result) -> None:
    result.inference_by["failed: deadline"] = 1_000


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_lose, "readings that did not come"), (_forget, "neighbours in range not known"), (_mute, "latency"),
        (_never, "entry rsu-0 t100"), (_crowd, "mean channel load"), (_drop, "readings dropped"),
        (_fail, "inferences that failed"), (_miss, "urgent readings that did not come in time"),
        (_late, "urgent p99"), (_starve, "readings offered that were not useful"),
    ],
)  # fmt: skip
def test_diff_finds_each_kind_of_regression(spoil: Callable[[Result], None], what: str) -> None:
    """Each figure that is judged has to be able to fail."""
    after = run()
    spoil(after)
    assert worse(run(), after) == [what]


def test_diff_tells_what_did_not_occur_again() -> None:
    """A fault that no longer happens is no longer tested."""
    after = run()
    del after.sometimes["crash"]
    changes = compare(run(), after, parse_tolerances(()))
    assert any(change.what == "did not occur again: crash" for change in changes)


def test_diff_as_json_is_for_programs(tmp_path: Path) -> None:
    """A dashboard reads it."""
    done = diff(tmp_path, run(), run(slower=2), "--json")
    told = json.loads(done.output)
    assert done.exit_code == 1
    assert told["worse"] == sum(change["verdict"] == "worse" for change in told["changes"]) > 0


# --- what can't be compared ------------------------------------------------------------------------------------------
def test_diff_refuses_a_run_that_is_not_valid(tmp_path: Path) -> None:
    """An emulation that came too late says nothing about the code."""
    after = run()
    after.valid, after.why_invalid = False, "the wire was late"
    done = diff(tmp_path, run(), after)
    assert done.exit_code == 2
    assert "the wire was late" in done.output


def test_diff_refuses_other_scenarios_unless_asked(tmp_path: Path) -> None:
    """A highway is not slower than a platoon, it is longer."""
    after = run()
    after.scenario = "highway"
    done = diff(tmp_path, run(), after)
    assert done.exit_code == 2
    assert "--across-scenarios" in done.output
    assert diff(tmp_path, run(), after, "--across-scenarios").exit_code == 0


def test_diff_of_a_missing_or_broken_file_ends_with_status_two(tmp_path: Path) -> None:
    """CI must not take a lost file for a pass, nor for a regression."""
    good = tmp_path / "good.json"
    good.write_bytes(encode(run()))
    cut = tmp_path / "cut.json"
    cut.write_bytes(good.read_bytes()[:1000])
    for other in (cut, tmp_path / "none.json"):
        done = CliRunner().invoke(meshsim, ["diff", str(good), str(other)])
        assert done.exit_code == 2
        assert other.name in done.output


@pytest.mark.parametrize("text", ["much", "latency=", "speed=0.1", "-0.1", "nan", "latency=1e9"])
def test_tolerance_that_makes_no_sense_is_named(text: str) -> None:
    """A slip of the pen must not switch the judging off."""
    with pytest.raises(ResultError, match=r"--tolerance"):
        parse_tolerances([text])


def test_tolerances_later_ones_win() -> None:
    """A general one first, then the exceptions."""
    found = parse_tolerances(["0.3", "age=0.5", "latency=0.1", "age=0.6"])
    assert (found["latency"], found["age"], found["load"]) == (0.1, 0.6, 0.3)
    assert set(found) == set(GROUPS)
