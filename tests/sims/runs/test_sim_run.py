"""Whole runs: from a scenario to a result, by command, and to the same digest wherever and whenever.

``python -m tests.sims.runs.test_sim_run`` writes the golden digests anew, after a change of the protocol or of a model
that was meant. A change that was not meant must not change them.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

import sims.cli.main
from benchmarks.simulator import Size, measure, missed
from meshnode.sumo.geodesy import Plane
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.membership.events import NeighbourDead, NeighbourSuspected
from sims.runs.bundle import load as load_run
from sims.runs.bundle import replay
from sims.runs.run import Run, simulate
from sims.scenario.file import (
    Fault,
    Fixed,
    Group,
    Inference,
    Radio,
    Scenario,
    Spread,
    Traffic,
    Waypoints,
    load,
)
from sims.virtual.driver import SimDriver
from tests.tools.eventually import eventually

GOLDEN = Path(__file__).parents[2] / "golden" / "simulator.json"
GOLDEN_RUNS = (("pair", 1), ("partition-heal", 7), ("byzantine", 3))
ROOT = Path(__file__).resolve().parents[3]
SECOND = limits.SECOND


def meshsim(*arguments: str) -> Result:
    """``meshsim`` in this process."""
    return CliRunner().invoke(sims.cli.main.main, list(arguments))


def two(duration_s: float = 10.0, **more: Any) -> Scenario:
    """Two nodes 20 m apart that publish."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0))))
    return Scenario("two", "Two nodes", duration_s, (group,), traffic=(Traffic("car"),), **more)


def digests(runs: tuple[tuple[str, int], ...], hash_seed: int) -> dict[str, str]:
    """In a process of its own."""
    code = (
        "import json, sys\nfrom sims.runs.run import simulate\nfrom sims.scenario.file import load\n"
        "print(json.dumps({f'{n} {s}': simulate(load(n), s).digest for n, s in json.loads(sys.argv[1])}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(runs)], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)}, timeout=120,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


# --- one seed, one history -------------------------------------------------------------------------------------------
@pytest.mark.processes
@pytest.mark.parametrize("hash_seed", [1, 4_242])
def test_runs_have_the_golden_digests_under_any_hash_seed(hash_seed: int) -> None:
    """A seed that does not replay finds bugs that nobody can find again. Meant to change? See the module."""
    assert digests(GOLDEN_RUNS, hash_seed) == json.loads(GOLDEN.read_text())


@pytest.mark.processes
def test_models_that_are_split_have_one_digest_under_any_hash_seed() -> None:
    """Plans, stages and their owners are kept in tables of many kinds."""
    assert digests((("split", 1),), 1) == digests((("split", 1),), 4_242)


def test_digest_does_not_depend_on_the_checks() -> None:
    """A check decides nothing and changes nothing."""
    scenario = load("partition-heal")
    fewer = Scenario(**{
        **{name: getattr(scenario, name) for name in scenario.__struct_fields__},
        "checks": type(scenario.checks)(("queues_within_bounds",), scenario.checks.settle_s),
    })  # fmt: skip
    assert simulate(fewer, 5).digest == simulate(scenario, 5).digest


# --- what happens in a run -------------------------------------------------------------------------------------------
def test_nodes_that_come_into_range_late_meet() -> None:
    """A vehicle drives up half a minute after both have announced themselves, and away again."""
    way = Waypoints(((0.0, 2_000.0, 0.0), (30.0, 100.0, 0.0), (45.0, 100.0, 0.0), (60.0, 3_000.0, 0.0)))
    groups = (Group("rsu", 1, Fixed(((0.0, 0.0),)), role="rsu"), Group("car", 1, way))
    result = simulate(Scenario("late", "A visit", 60.0, groups, traffic=(Traffic("car"),)), 1)
    assert result.discovery.count >= 2
    assert result.discovery.quantiles["max"] < 8
    assert 100 < result.counters["delivered"] < 400
    assert result.sometimes["death"] >= 1
    assert not result.broken


def test_who_is_near_follows_movers_and_faults_and_stays_the_same_list_for_others() -> None:
    """What is kept about pairs must not go stale, and is what makes a city of parked cars cheap."""
    groups = (
        Group("parked", 4, Fixed(((0.0, 0.0), (50.0, 0.0), (600.0, 0.0), (2_000.0, 0.0)))),
        Group("car", 1, Waypoints(((0.0, 0.0, 9.0), (2.0, 0.0, 9.0), (62.0, 600.0, 9.0)))),
    )
    faults = (Fault("partition", at_s=64.0, for_s=20.0, nodes=("parked-2",)),)
    air = Radio("ideal", range_m=100.0)
    run = Run(Scenario("drive", "By", 70.0, groups, radio=air, traffic=(Traffic("car"),), faults=faults), 1)
    world, alone = run.world, run.world.near(3)
    seen, changes = world.near(0), 0
    for second in range(1, 64):
        run.advance(second * SECOND)
        changes += world.near(0) is not seen
        seen = world.near(0)
        x_m = world.places.xs_m[4]
        assert (4 in seen) == (0 in world.near(4)) == ((0, 4) in world.near_since_ns)
        assert (4 in seen) == (x_m < 100.0) or 99.0 < x_m < 107.0, "a step of 5 m, and two ticks"
        assert world.near(3) is alone
    assert changes == 1
    assert world.near(2) == [4]
    run.advance(66 * SECOND)
    assert world.near(2) == world.near(4) == []


def test_readings_say_where_their_origin_is_now() -> None:
    """Places of who stands are not worked out anew; whoever drives off must not seem parked."""
    way = Waypoints(((0.0, 0.0, 0.0), (3.0, 0.0, 0.0), (6.0, 60.0, 0.0)))
    groups = (Group("rsu", 1, Fixed(((0.0, 5.0),)), role="rsu"), Group("car", 1, way))
    run = Run(Scenario("off", "Off", 8.0, groups, traffic=(Traffic("car"),)), 1)
    said: list[tuple[int, float]] = []
    run.world.on_deliveries = lambda node, arrivals: said.extend(
        (at_ns, plane.metres(issue.reading.where.latitude_deg, issue.reading.where.longitude_deg)[0])
        for at_ns, issue in arrivals
    )
    plane = Plane(*run.scenario.origin)
    run.go()
    assert len(said) > 50
    for at_ns, x_m in said:
        real_m = 20.0 * min(max(at_ns / SECOND - 3.0, 0.0), 3.0)
        assert real_m - 5.0 < x_m <= real_m + 0.1, "of the last 200 ms"


def test_slow_node_has_its_models_run_by_a_fast_neighbour() -> None:
    """The cost of a device decides who computes."""
    groups = (
        Group("board", 1, Fixed(((0.0, 0.0),)), device="single-board"),
        Group("server", 1, Fixed(((20.0, 0.0),)), role="rsu", device="server"),
    )
    asked = (Inference("board", rate_hz=2.0, input_bytes=1_000, compute_ms=100.0, deadline_ms=2_000),)
    result = simulate(Scenario("help", "Help", 30.0, groups, inference=asked), 1)
    assert result.inference_by["server"] > result.inference_by.get("here", 0)
    assert result.checks["answer_is_right"].passed == result.inference.count
    assert result.inference.quantiles["p50"] < 200  # alone it takes 400 ms
    assert not result.broken


def test_crashed_node_without_disk_comes_back_and_all_is_well() -> None:
    """Its incarnation is then the clock's; entries come back from its neighbour."""
    faults = (Fault("crash", at_s=5.0, for_s=3.0, nodes=("car-0",), keep_disk=False),)
    result = simulate(two(30.0, faults=faults, gossip=(Spread(2.0, "car-1"),)), 1)
    assert result.sometimes["crash"] == 1
    assert result.sometimes["restart without disk"] == 1
    assert not result.broken
    assert result.checks["membership_converges"].passed == 2
    assert result.checks["newest_entry_everywhere"].passed >= 2


def test_slowed_node_reads_late() -> None:
    """A processor that is 200 times as slow: 4 ms a frame instead of 20 µs."""
    fault = (Fault("slow-node", at_s=0.0, nodes=("car-0", "car-1"), factor=200.0),)
    slow, usual = simulate(two(faults=fault), 1), simulate(two(), 1)
    assert slow.latency.quantiles["p90"] > usual.latency.quantiles["p90"] + 1
    assert slow.digest != usual.digest


def test_reading_takes_airtime_latency_and_processors() -> None:
    """2 ms and up to 1 ms of the radio, some 0.3 ms of airtime, 40 µs of processors, rounded up to a tick."""
    result = simulate(two(), 1)
    assert 2.3 < result.latency.quantiles["p50"] < 3.6
    assert result.counters["delivered"] >= 0.95 * result.counters["published"]


def test_nodes_out_of_reach_never_meet() -> None:
    """The radio ends somewhere."""
    group = Group("car", 2, Fixed(((0.0, 0.0), (5_000.0, 0.0))))
    result = simulate(Scenario("far", "Far", 20.0, (group,), radio=Radio(), traffic=(Traffic("car"),)), 1)
    assert (result.discovery.count, result.counters["delivered"]) == (0, 0)


# --- by command ------------------------------------------------------------------------------------------------------
def test_json_holds_what_a_program_needs() -> None:
    """The names that CI scripts read."""
    done = meshsim("run", "pair", "--seed", "3", "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["nodes"], report["virtual_s"], report["seed"]) == (0, 2, 10.0, 3)
    assert len(report["digest"]) == 64
    assert report["wall_s"] > 0
    assert report["checks"]["readings_flow"]["passed"] == 2
    assert all(check["failed"] == 0 for check in report["checks"].values())


def test_run_for_people_says_what_was_kept() -> None:
    """One line a check, and the digest to compare by."""
    done = meshsim("run", "pair")
    assert done.exit_code == 0
    assert "pair: 2 nodes, 10 s of virtual time" in done.stdout
    assert "kept   membership_converges: 2 of 2" in done.stdout
    assert "digest " in done.stdout


def test_run_with_a_broken_promise_exits_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that can't fail proves nothing."""
    monkeypatch.setattr(
        sims.cli.main, "Run", lambda scenario, seed: Run(scenario, seed, frozenset({"frames-before-hello"}))
    )
    done = meshsim("run", "byzantine", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["checks"]["no_frame_from_unverified"]["failed"] > 0


def test_saved_run_replays_to_the_same_digest(tmp_path: Path) -> None:
    """Scenario, seed and tape are all there is to a run."""
    done = meshsim("run", "partition-heal", "--seed", "12", "--json", "--out", str(tmp_path))
    assert done.exit_code == 0
    assert {"result.json", "run.json", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert replay(load_run(tmp_path)).digest == json.loads(done.stdout)["digest"]


@pytest.mark.processes
def test_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    """Ctrl-C after a minute of waiting must not throw the minute away."""
    scenario = tmp_path / "long.json"
    scenario.write_text(json.dumps({
        "name": "long", "description": "Hours", "duration_s": 80_000, "traffic": [{"group": "car"}],
        "groups": [{"name": "car", "count": 2, "mobility": {"kind": "fixed", "points": [[0, 0], [20, 0]]}}],
    }))  # fmt: skip
    out = tmp_path / "out"
    terminal, theirs = pty.openpty()  # it shows how far it is to terminals only
    process = subprocess.Popen(
        [sys.executable, "-c", "from sims.cli.main import main; main()", "run", str(scenario), "--json", "--out",
        str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def is_under_way() -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            shown += os.read(terminal, 65_536)
        return re.search(rb"\d\d of 80000 s", shown) is not None

    eventually(is_under_way, lambda: f"some seconds have passed: {shown!r}", 60.0)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == sims.cli.main.INTERRUPTED, shown
    report = json.loads(stdout)
    assert not report["valid"]
    assert "interrupted" in report["why_invalid"]
    assert report["counters"]["delivered"] > 0
    assert (out / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("run", "pear"), "pear"), (("run", "pair", "--seed", "-1"), "-1"), (("run", "/nowhere.toml"), "/nowhere.toml")],
)
def test_run_that_is_impossible_says_why(arguments: tuple[str, ...], says: str) -> None:
    """No traceback for a person."""
    done = meshsim(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_scenarios_lists_what_ships() -> None:
    """Nobody has to look into the package."""
    done = meshsim("scenarios")
    assert done.exit_code == 0
    assert "intersection " in done.stdout


def test_benchmark_measures_and_holds_to_its_bars() -> None:
    """A bar that can't be missed is none."""
    figures = measure(Size("pair", 4.0, 0.0, 1.0))
    assert (figures.nodes, figures.degree, figures.broken) == (2, 1.0, ())
    assert figures.steady_factor > 0
    # the memory is the most that this process ever had, and other tests have run in it
    assert missed(Size("pair", 4.0, figures.steady_factor, figures.gib), figures) == []
    assert len(missed(Size("pair", 4.0, 1e9, 0.0), figures)) == 2


@pytest.mark.parametrize("name", ["byzantine", "partition-heal", "intersection", "rsu-backbone"])
def test_nothing_follows_late_from_frames_that_wake_nobody(name: str) -> None:
    """Receivers look at most frames only when something depends on them: one that made them act would act too late."""
    run = Run(replace(load(name), duration_s=8.0), 5)
    run.go()
    assert run.world.driver.pipes.frames > 300
    assert run.world.driver.pipes.late == 0


def test_accusation_on_its_way_when_its_receiver_begins_to_suspect_is_not_late() -> None:
    """It was sent as a frame that wakes nobody, and brings the end of the suspected node nearer all the same."""
    for seed in range(4):
        driver = SimDriver(seed, delay_ns=200 * limits.MS)
        for name in ("gone", "left", "right"):
            driver.add(name).attentive = False
        driver.meet()
        driver.run_for(5 * limits.SECOND)
        driver.cut_one_way("gone", "left")
        driver.run_for(100 * limits.MS)
        driver.cut_one_way("gone", "right")
        driver.run_for(8 * limits.SECOND)
        assert driver.pipes.late == 0
        assert {type(event) for _, event in driver.nodes[NodeId("right")].events} >= {NeighbourSuspected, NeighbourDead}


def test_digest_does_not_depend_on_when_somebody_looked() -> None:
    """A progress bar, or a benchmark that halves a run, must not seem to change it."""
    scenario = replace(load("partition-heal"), duration_s=6.0)
    whole, looked_at = Run(scenario, 5), Run(scenario, 5)
    for until_ms in (70, 71, 1_303, 2_000, 4_990):
        looked_at.advance(until_ms * limits.MS)
        looked_at.world.driver.settle()
        looked_at.world.driver.digest()
    assert whole.go().digest == looked_at.go().digest


def test_channel_load_is_a_mean_over_time_whatever_the_phase_of_its_sources() -> None:
    """One look a second at sources with a period of one second would always see, or always miss, the same of them."""
    loads = []
    for seed in range(6):
        result = simulate(replace(two(12.0), traffic=(Traffic("car", rate_hz=1.0),)), seed)
        loads.append(sum(result.load[4:11]) / 7)
    assert min(loads) > 0
    assert max(loads) < 1.5 * min(loads)


def test_ages_of_readings_are_those_of_all_instants_of_a_period() -> None:
    """Looked at in step with their source they would all have one age, and nobody would know that it is the best."""
    result = simulate(replace(two(40.0), traffic=(Traffic("car", rate_hz=2.0),)), 1)
    quantiles = result.age.quantiles
    assert 200 < quantiles["p50"] < 320
    assert 420 < quantiles["p90"] < 520


def test_value_that_is_set_takes_the_place_of_the_scenarios() -> None:
    """The command has to run what was asked for, and name a value that can't be."""
    shown = json.loads(meshsim("run", "jam", "--set", "duration_s=2", "--set", "groups.car.count=3", "--json").stdout)
    assert (shown["virtual_s"], shown["nodes"]) == (2.0, 3)
    wrong = meshsim("run", "pair", "--set", "groups.car.cuont=3")
    assert wrong.exit_code == 2
    assert "did you mean 'count'?" in wrong.output


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(digests(GOLDEN_RUNS, 1), indent=2) + "\n")
