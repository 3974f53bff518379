"""The commands that hold a mesh against its promises: they measure what they say, and a missed bar is named."""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from benchmarks import churn, command, hostile, idle, soak, startup
from benchmarks.fleet import NAMES, NEIGHBOURS, FleetFailed
from tests.tools.eventually import eventually
from tests.tools.node_fixture import environment


def run(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=200, check=False)


GOOD_IDLE = idle.Outcome(
    [idle.Cost(name, idle.CPU_BAR_PERCENT, idle.RESIDENT_BAR_MB) for name in NAMES], idle.MET_BAR_S,
    [dict.fromkeys(NAMES[1:], idle.DEAD_BAR_S)], 0,
)  # fmt: skip
GOOD_START_UP = startup.Outcome(3, 0.02, 0.01, 0.3, 0.3, startup.Start(startup.READY_BAR_S, 0.4, startup.MET_BAR_S))
GOOD_SOAK = soak.Outcome(10.0, 2, 1.0, 7, 7, [], 3, dict.fromkeys(NAMES, 0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"costs": [idle.Cost("veh-1", 1.51, 1.0)]}, "veh-1 uses 1.51 % of a core"),
        ({"costs": [idle.Cost("veh-1", 1.0, 90.5)]}, "veh-1 has 90.5 MB resident"),
        ({"met_after_s": 2.51}, "2.51 s after the last ready line"),
        ({"noticed_s": [dict.fromkeys(NAMES[1:], 1.51)]}, "kill 1 was noticed after 1.51 s"),
        ({"noticed_s": [dict.fromkeys(NAMES[2:], 1.0)]}, f"kill 1 was noticed by 4 of {NEIGHBOURS}"),
        ({"noticed_s": [{}]}, f"kill 1 was noticed by 0 of {NEIGHBOURS}"),
        ({"false_deaths": 1}, "called dead"),
    ],
)
def test_idle_bars_are_kept_until_one_is_missed(changes: dict[str, Any], says: str) -> None:
    """Each promise can be broken; at the bar it is kept."""
    assert GOOD_IDLE.missed_bars() == []
    (missed,) = dataclasses.replace(GOOD_IDLE, **changes).missed_bars()
    assert says in missed


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (startup.Start(startup.READY_BAR_S + 0.01, 0.4, startup.MET_BAR_S), "ready after 1.01 s"),
        (startup.Start(startup.READY_BAR_S, 0.4, startup.MET_BAR_S + 0.01), "met its neighbour after 1.51 s"),
    ],
)
def test_startup_bars_are_kept_until_one_is_missed(node: startup.Start, says: str) -> None:
    """Each promise can be broken; at the bar it is kept."""
    assert GOOD_START_UP.missed_bars() == []
    (missed,) = dataclasses.replace(GOOD_START_UP, node=node).missed_bars()
    assert says in missed


@pytest.mark.processes
def test_startup_short_run_measures_the_interpreter_the_imports_and_the_node(tmp_path: Path) -> None:
    """What the interpreter takes must stand apart from what the node takes."""
    out = tmp_path / "startup.json"
    done = run("startup", "--starts", "3", "--out", str(out))  # a stall is in one of them
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(out.read_text())
    assert content["starts"] == 3
    assert 0 < content["interpreter_cpu_s"] < content["imports_cpu_s"]
    assert content["node"]["ready_cpu_s"] > 0
    assert content["interpreter_s"] < content["node"]["ready_s"]
    assert content["interpreter_s"] < content["node"]["met_s"]
    assert "first neighbour met" in done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"deaths": ["veh-1 by rsu-1 after 3.0 s"]}, "false death: veh-1 by rsu-1"),
        ({"exit_statuses": {"veh-1": -9}}, "veh-1 ended with status -9"),
        ({"busy_share": 0.5}, "loaded for 50% only"),
    ],
)
def test_soak_bars_are_kept_until_one_is_missed(changes: dict[str, Any], says: str) -> None:
    """Suspicions that were refuted are no fault; a death is, and so is a load that was none."""
    assert GOOD_SOAK.missed_bars() == []
    (missed,) = dataclasses.replace(GOOD_SOAK, **changes).missed_bars()
    assert says in missed


@pytest.mark.processes
def test_idle_short_run_measures_every_node_and_kill(tmp_path: Path) -> None:
    """The figures come from six real nodes; whether they keep the bars is not judged on a shared machine."""
    out = tmp_path / "build" / "idle.json"
    for _ in range(3):  # a node that a busy computer has stopped for a second is called dead, and rightly so
        done = run("idle", "--seconds", "0.5", "--kills", "1", "--out", str(out))
        assert done.returncode == 0, done.stdout + done.stderr
        content = json.loads(out.read_text())
        if not content["false_deaths"]:
            break
    assert [cost["node"] for cost in content["costs"]] == list(NAMES)
    assert all(10 < cost["resident_mb"] < 1_000 for cost in content["costs"])
    assert content["met_after_s"] >= 0
    (noticed,) = content["noticed_s"]
    assert sorted(noticed) == sorted(NAMES[1:])
    assert content["false_deaths"] == 0
    assert all(name in done.stdout for name in NAMES)


@pytest.mark.processes
def test_soak_short_run_counts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its busy processes would make a computer useless if they outlived it."""
    out = tmp_path / "soak.json"
    for _ in range(3):  # who stands still for a second is called dead, and says so afterwards
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.03", "--busy", "1", "--out", str(out)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        children = descendants(process, 7)
        said, errors = process.communicate(timeout=200)
        assert process.returncode == 0, said + errors
        content = json.loads(out.read_text())
        if not content["deaths"] or not content["local_stalls"]:
            break
    assert content["deaths"] == []
    assert content["exit_statuses"] == dict.fromkeys(NAMES, 0)
    assert content["busy_processes"] == 1
    assert 0 < content["busy_share"] <= 1
    gone(children)


@pytest.mark.processes
def test_soak_killed_takes_its_processes_along(tmp_path: Path) -> None:
    """A SIGKILL leaves no time to clean up: children must notice by themselves."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.soak",
        "--minutes",
        "1",
        "--busy",
        "1",
        "--out",
        str(tmp_path / "s.json"),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="fleet-") as folder,  # short: paths of sockets are bounded
        subprocess.Popen(
            command, env={**environment(), "TMPDIR": folder}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
    ):
        children = descendants(process, 7)
        process.kill()
        gone(children)


def descendants(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", count: int) -> list[psutil.Process]:
    """The six nodes and the busy process, once they are there; a node has children of its own while it starts."""
    parent = psutil.Process(process.pid)

    def all_of_them() -> list[psutil.Process]:
        assert process.poll() is None, "it ended early"
        children = parent.children(recursive=True)
        return list(children) if len(children) >= count else []

    return eventually(all_of_them, lambda: f"{count} processes, not only {parent.children(recursive=True)}")


def gone(children: list[psutil.Process]) -> None:
    """:raises AssertionError: when one still runs after a while."""
    _, left = psutil.wait_procs(children, timeout=60)
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


# --- what these commands have in common ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        (soak, ["--minutes", "601"], "--minutes: 601 is out of range: use 0.001 to 600"),
        (idle, ["--kills", "1.5"], "--kills: invalid number value: '1.5'"),
        (churn, ["--round-s", "nan"], "--round-s: nan is out of range: use 0.5 to 600"),
        (hostile, ["--half-open", "-1"], "--half-open: -1 is out of range: use 0 to 2000"),
    ],
)
def test_option_out_of_range_is_refused_with_the_range(
    module: ModuleType, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the pen would otherwise hold a computer for days, or measure nothing."""
    with pytest.raises(SystemExit, match="2"):
        module.main(arguments)
    assert says in capsys.readouterr().err


def test_measurement_that_can_not_be_made_ends_with_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    """A script must not take it for a promise that was kept, nor for one that was missed."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="2"), command.measuring("soak") as folder:
            raise FleetFailed("veh-1 did not start")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "soak could not be measured: veh-1 did not start\n"
    assert not folder.exists()


@pytest.mark.parametrize(("check", "missed", "status"), [(True, ["a"], 1), (True, [], 0), (False, ["a"], 0)])
def test_missed_promise_is_said_and_written_and_is_the_status_when_checked(
    tmp_path: Path, check: bool, missed: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI goes by the status, people by the sentence, reports by the file."""
    options = argparse.Namespace(check=check, out=tmp_path / "build" / "soak.json")
    assert command.finish(options, {"deaths": 1}, missed) == status
    written = json.loads(options.out.read_text())
    assert (written["deaths"], written["missed"]) == (1, missed)
    assert ("MISSED a\n" in capsys.readouterr().out) == bool(missed)
