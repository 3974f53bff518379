"""The simulator: a seed names one history, its faults are what they say, and ``meshsim`` tells the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sims.cli
from protocols import limits
from protocols.events import NeighbourDead, NeighbourMet
from protocols.ids import NodeId
from protocols.streams import Quality
from sims.driver import SimDriver

MS, SECOND = limits.MS, limits.SECOND
ROOT = Path(__file__).resolve().parent.parent


def pair(seed: int = 1) -> SimDriver:
    """Two nodes that have met; n0 listens to n1."""
    sim = SimDriver(seed)
    for name in ("n0", "n1"):
        sim.add(name)
    sim.subscribe("n0", "**", Quality(own=False))
    sim.meet()
    sim.run_for(SECOND)
    return sim


def came(sim: SimDriver) -> list[tuple[int, Any]]:
    """What n0 got, and how long after the start of the second in milliseconds."""
    return [((at - SECOND) // MS, reading.value) for at, reading in sim.nodes[NodeId("n0")].received]


def meshsim(*arguments: str) -> Result:
    """``meshsim run`` in this process."""
    return CliRunner().invoke(sims.cli.main, ["run", *arguments])


# --- the driver ----------------------------------------------------------------------------------------------------
def test_link_with_a_rate_sends_one_frame_after_the_other() -> None:
    """A radio of 100 kB/s takes 100 ms for 10 kB; the delay comes on top, once."""
    sim = pair()
    sim.shape("n1", "n0", 20 * MS, 100_000)
    for number in range(3):
        sim.publish("n1", f"veh/n1/{number}", bytes(10_000))
        sim.run_for(MS)
    sim.run_for(SECOND)
    arrived_ms = [at for at, _ in came(sim)]
    assert all(abs(at - expected) <= 5 for at, expected in zip(arrived_ms, (121, 222, 323), strict=True))


def test_cut_link_holds_frames_until_it_heals() -> None:
    """TLS streams stall, they never drop."""
    sim = pair()
    sim.cut_one_way("n1", "n0")
    sim.publish("n1", "veh/n1/x", 1)
    sim.run_for(500 * MS)
    assert came(sim) == []
    sim.heal()
    sim.publish("n1", "veh/n1/x", 2)
    sim.run_for(10 * MS)
    assert [value for _, value in came(sim)] == [1, 2]


def test_stalled_node_does_nothing_and_then_everything() -> None:
    """A process without CPU: what was sent to it waits in its kernel."""
    sim = pair()
    sim.stall("n0", 300 * MS)
    sim.publish("n1", "veh/n1/x", 1)
    sent_before = sim.nodes[NodeId("n0")].engine.statistics()["frames_received"]
    sim.run_for(299 * MS)
    assert sim.nodes[NodeId("n0")].engine.statistics()["frames_received"] == sent_before
    sim.run_for(10 * MS)
    assert came(sim) == [(300, 1)]


def test_kill_behind_a_cut_is_learned_by_silence_only() -> None:
    """No reset passes a link that is cut: a crash in a tunnel looks like a tunnel."""
    sim = pair()
    sim.cut("n0", "n1")
    sim.kill("n1")
    sim.run_for(limits.LOST_LINK_SUSPICION_NS + 200 * MS)
    node = sim.nodes[NodeId("n0")]
    assert not [event for _, event in node.events if type(event) is NeighbourDead]
    sim.run_for(5 * SECOND)
    assert [event for _, event in node.events if type(event) is NeighbourDead]


def test_dial_of_a_stalled_node_waits_for_it_or_times_out() -> None:
    """Its kernel accepts the connection, nobody shakes hands."""
    for stall_ns, met in ((2 * SECOND, True), (30 * SECOND, False)):
        sim = SimDriver(1)
        for name in ("n0", "n1"):
            sim.add(name)
        sim.stall("n1", stall_ns)
        sim.nodes[NodeId("n0")].engine.hint("n1", NodeId("n1"), (("n1", 7000),), sim.now)
        sim.act(sim.nodes[NodeId("n0")], lambda engine, now: engine.handle_timer(now))
        sim.run_for(4 * SECOND)
        assert bool([e for _, e in sim.nodes[NodeId("n0")].events if type(e) is NeighbourMet]) is met
        sim.run_for(3 * SECOND)
        assert (sim.nodes[NodeId("n0")].engine.statistics()["dials_failed"] > 0) is not met


def test_dial_of_nobody_and_across_a_cut_times_out() -> None:
    """A hint to an address where nobody lives."""
    sim = SimDriver(1)
    node = sim.add("n0")
    sim.act(node, lambda engine, now: engine.hint("ghost", NodeId("ghost"), (("ghost", 1),), now))
    sim.run_for(limits.DIAL_TIMEOUT_NS + 100 * MS)
    assert node.engine.statistics()["dials_failed"] == 1


# --- meshsim -------------------------------------------------------------------------------------------------------
def test_same_seed_gives_the_same_digest_whatever_the_hash_seed() -> None:
    """A seed that does not replay finds bugs that nobody can find again."""
    command = [sys.executable, "-c", "from sims.cli import main; main()"]
    arguments = ["run", "--nodes", "7", "--seconds", "15", "--seed", "11", "--kill", "2", "--json"]
    processes = [
        subprocess.Popen(
            [*command, *arguments[:-2], kills, "--json"], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE, text=True,
        )
        for hash_seed, kills in (("1", "2"), ("4242", "2"), ("1", "3"))
    ]  # fmt: skip
    reports = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert reports[0]["digest"] == reports[1]["digest"] != reports[2]["digest"]


def test_run_report_holds_what_a_program_needs() -> None:
    """Names and counts of the checks, and nothing judged on an empty stage."""
    result = meshsim("--nodes", "4", "--seconds", "14", "--seed", "3", "--kill", "1", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["nodes"], report["virtual_s"], len(report["digest"])) == (0, 4, 14.0, 64)
    assert report["wall_s"] >= 0
    assert set(report["checks"]) == {
        "met_in_time", "known_at_the_end", "no_false_death", "death_noticed_in_time", "readings_once_and_in_order",
        "readings_delivered_or_counted",
    }  # fmt: skip
    assert all(check["failed"] == 0 < check["passed"] for check in report["checks"].values())
    assert report["checks"]["death_noticed_in_time"]["passed"] == 3
    assert report["published"] > 300
    assert report["delivered"] > 900


def test_run_for_people_says_the_same_in_words() -> None:
    """One line a promise."""
    result = meshsim("--nodes", "3", "--seconds", "5", "--kill", "0")
    assert result.exit_code == 0
    assert "3 nodes, 5 s" in result.stdout
    assert "kept   met_in_time: 6 of 6" in result.stdout
    assert "death" not in result.stdout.replace("no_false_death", "")


@pytest.mark.parametrize(
    ("name", "check"), [("MEET_WITHIN_NS", "met_in_time"), ("DEAD_WITHIN_NS", "death_noticed_in_time")]
)
def test_run_with_a_broken_promise_exits_with_one(monkeypatch: pytest.MonkeyPatch, name: str, check: str) -> None:
    """A harness that can't fail proves nothing."""
    monkeypatch.setattr(sims.cli, name, 1)
    result = meshsim("--nodes", "3", "--seconds", "14", "--kill", "1")
    assert result.exit_code == 1
    assert f"FAILED {check}" in result.stdout
    assert f"{check}: n" in result.stderr


def test_run_with_readings_that_vanish_exits_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The book-keeping must notice a loss that nobody counted, and a false death."""
    arrive = SimDriver._arrive
    lost = []

    def lossy(self: SimDriver, pipe: Any) -> None:
        if self.now > 3 * SECOND and not lost and pipe.under_way and pipe.under_way[0][1] == 6:
            lost.append(pipe.under_way.popleft())
        arrive(self, pipe)

    monkeypatch.setattr(SimDriver, "_arrive", lossy)
    result = meshsim("--nodes", "3", "--seconds", "5", "--kill", "0", "--json")
    assert result.exit_code == 1
    checks = json.loads(result.stdout)["checks"]
    assert checks["readings_delivered_or_counted"]["failed"] == 1


@pytest.mark.parametrize(
    "arguments", [("--nodes", "1"), ("--nodes", "3", "--kill", "3"), ("--seconds", "8"), ("--seed", "-1")]
)
def test_run_with_impossible_arguments_says_why(arguments: tuple[str, ...]) -> None:
    """No traceback for a person."""
    result = meshsim(*arguments)
    assert result.exit_code == 2
    assert "Error: Invalid value" in result.stderr
