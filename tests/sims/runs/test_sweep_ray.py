"""``meshsim sweep --ray`` on a real cluster: the same call gives the same, nothing finished is lost or made again."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sims.results.saved import load as load_result
from sims.results.sweep_table import TABLE_FILE
from sims.runs.sweep import ROW_FILE
from tests.tools.eventually import eventually
from tests.tools.ray_fixture import BIN, ROOT, Cluster

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]  # half a minute on two idle cores

SEEDS = 40
"""So many runs that the other machine, too, has made its worker before the first has made them all."""


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Skips where Ray is not there; in CI that is a failure."""
    if not (BIN / "ray").exists():
        why = "no Ray here: `.ci/ray` installs it into build/ray"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="module")
def cluster(installed: None) -> Iterator[Cluster]:
    """Shared: a start takes seconds."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        yield made
        made.close()


@pytest.fixture(scope="module")
def local(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep over processes of this machine."""
    out = tmp_path_factory.mktemp("local") / "sweep"
    done = finished(command(out, SEEDS), dict(os.environ))
    assert done.returncode == 0, done.stderr
    return out


def command(out: Path, seeds: int, *more: str) -> list[str]:
    """The program as a person calls it."""
    return [str(BIN / "meshsim"), "sweep", "partition-heal", "--seeds", str(seeds), "--out", str(out), *more]


def finished(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A process from start to end."""
    return subprocess.run(
        arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def table(out: Path) -> list[dict[str, str]]:
    """``sweep.csv`` without the one figure that depends on the machine."""
    rows = list(csv.DictReader(io.StringIO((out / TABLE_FILE).read_text("utf-8"))))
    for row in rows:
        del row["wall_s"]
    return rows


def begun(out: Path, cluster: Cluster, seeds: int, rows: int) -> subprocess.Popen[str]:
    """A sweep under way of which some runs are finished."""
    process = subprocess.Popen(
        command(out, seeds, "--ray", cluster.address),
        env=cluster.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        process_group=0,
    )  # fmt: skip

    def enough() -> bool:
        assert process.poll() is None, process.communicate()
        return len(list(out.rglob(ROW_FILE))) >= rows

    eventually(enough, "some runs are finished", 60.0)
    return process


def test_sweep_on_a_cluster_gives_what_the_processes_of_one_machine_give(
    cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    """Where a run was made must not change a single figure, nor what a person sees."""
    out = tmp_path / "sweep"
    done = finished(command(out, SEEDS, "--ray", cluster.address), cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "worker.py" not in done.stderr  # Ray's own chatter
    assert f"{out / TABLE_FILE}: all {SEEDS} runs" in done.stdout
    assert table(out) == table(local)
    for file in local.rglob(ROW_FILE):
        there = out / file.parent.relative_to(local)
        assert load_result(there).digest == load_result(file.parent).digest


def test_worker_killed_on_the_other_machine_has_its_run_made_again(
    cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    """Machines of a cluster are taken away without asking."""
    out = tmp_path / "sweep"
    process = begun(out, cluster, SEEDS, 1)
    killed = 0
    while not killed and process.poll() is None:
        for worker in cluster.workers(1):
            worker.kill()
            killed += 1
    said, complained = process.communicate(timeout=240)
    assert killed, "no run was made on the other machine"
    assert process.returncode == 0, complained + said
    assert table(out) == table(local)


def test_sweep_on_a_cluster_interrupted_leaves_no_worker_and_goes_on_elsewhere(
    cluster: Cluster, local: Path, tmp_path: Path
) -> None:
    """Ctrl-C must free the processors of others; what was computed is kept, for a cluster or for this machine."""
    out = tmp_path / "sweep"
    process = begun(out, cluster, SEEDS, 2)
    workers = cluster.workers(0) + cluster.workers(1)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert f"of {SEEDS} runs are finished, the same call goes on" in told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    kept = {file: file.stat().st_mtime_ns for file in out.rglob(ROW_FILE)}
    assert 2 <= len(kept) < SEEDS
    again = finished(command(out, SEEDS), dict(os.environ))
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of {SEEDS} runs are finished already" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert table(out) == table(local)


def test_run_that_kills_every_worker_is_given_up_and_told(cluster: Cluster, tmp_path: Path) -> None:
    """One run that is too large for the machines must neither go on for ever nor cost the others."""
    program = (
        "import json, sys; from pathlib import Path; from sims.runs.cluster import on_ray;"
        "from sims.runs.grid import Cell; from sims.scenario.file import load;"
        "from tests.tools.result_fixture import run_that_may_kill as run; scenario = load('partition-heal');"
        "cells = [Cell(scenario, seed, ()) for seed in (1, 666, 2, 13, 3)];"
        "ended = {cell.seed: row.error for cell, row, _ in on_ray(cells, run, sys.argv[1], 2)};"
        "Path(sys.argv[2]).write_text(json.dumps(ended))"
    )
    file = tmp_path / "ended.json"  # a thread of Ray prints of each death, also into the middle of other lines
    done = finished([str(BIN / "python"), "-c", program, cluster.address, str(file)], cluster.environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(file.read_text())
    assert {seed for seed, error in told.items() if not error} == {"1", "2", "3"}
    assert told.keys() == {"1", "2", "3", "13", "666"}
    assert told["666"].startswith("lost 3 times with its worker: ")
    assert "ValueError: an unlucky run (result_fixture.py:" in told["13"]


def test_port_where_something_else_listens_is_told_soon(installed: None) -> None:
    """Ray itself would try for a quarter of an hour, and Ctrl-C would not help."""
    program = (
        "import sys; import sims.runs.cluster; sims.runs.cluster.CONNECT_S = 2.0; "
        "next(sims.runs.cluster.on_ray([], print, sys.argv[1]))"
    )
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        done = finished([str(BIN / "python"), "-c", program, address], dict(os.environ))
    assert f"SweepError: no Ray cluster answers at '{address}' within 2 s" in done.stderr
