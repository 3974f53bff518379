"""Makes the runs of a sweep on a Ray cluster that is there already. Its machines need the same code of this package.

A process of its own makes the first connection. Ray's native part waits for minutes for an address where nobody
answers, can't be interrupted meanwhile, and ends the whole process when this machine has no part in the cluster.

No cluster is started here. One of this machine alone would gain nothing over its processes, and the head that Ray would
start asks metadata services of clouds for their names, whatever is switched off.
"""

import importlib
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any
from urllib.parse import urlsplit

from sims.errors import SweepError
from sims.runs.grid import Cell
from sims.runs.sweep import Ended, RunFigures, RunFunction, compute
from sims.runs.versions import versions
from sims.scenario.file import Scenario

_LOOK_AGAIN_S = 5.0
PER_CPU = 2
"""Runs that are handed over at a time for each processor, so that none waits for work and results don't pile up."""
MAX_ATTEMPTS = 3
"""How often a run that is lost is tried. Machines of a cluster come and go, but a run that kills its workers must not
be tried for ever."""
ANSWER_S = 5.0
"""How long to wait until the connection is accepted: as long as Ray itself waits."""
CONNECT_S = 60.0
"""How long to wait until Ray has joined, which takes half a second where nothing else runs."""


def on_ray(
    cells: Sequence[Cell], run: RunFunction, address: str, jobs: int | None = None
) -> Generator[Ended, None, None]:
    """Make runs on all processors of the cluster, also on those that join later, at most ``jobs`` at a time.

    :raises SweepError: when Ray is not installed, or the cluster or one of its machines can't be used; names the
    address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody outside
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise SweepError(f"--ray {address} needs the extra 'ray': pip install 'meshnode[ray]'") from error
    _try_to_join(address)
    _join(ray, address)
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    try:
        # Ray would make a run that is short of memory again and again; the attempts are counted here.
        remote = ray.remote(num_cpus=1, max_retries=0)(_compute_there)
        code = versions()["code"]
        waiting = list(reversed(cells))
        under_way: dict[Any, Cell] = {}
        attempts: Counter[Cell] = Counter()
        while waiting or under_way:
            window = max(1, int(ray.cluster_resources().get("CPU", 1))) * PER_CPU
            while waiting and len(under_way) < min(window, jobs or window):
                cell = waiting.pop()
                attempts[cell] += 1
                under_way[remote.remote(run, cell.scenario, cell.seed, code)] = cell
            ended, _ = ray.wait(list(under_way), num_returns=1, timeout=_LOOK_AGAIN_S)  # machines come and go
            for reference in ended:
                cell = under_way.pop(reference)
                try:
                    row, result = ray.get(reference)
                except lost as error:
                    if attempts[cell] < MAX_ATTEMPTS:
                        waiting.append(cell)
                        continue
                    row, result = RunFigures(error=f"lost {MAX_ATTEMPTS} times with its worker: {_told(error)}"), b""
                except ray.exceptions.RayTaskError as error:
                    # No run fails so, and a machine that fails at once would soon have taken all of them.
                    told = _told(getattr(error, "cause", None) or error)
                    raise SweepError(f"a machine of the Ray cluster at {address!r} can't make runs: {told}") from error
                except ray.exceptions.RayError as error:
                    row, result = RunFigures(error=f"Ray could not make it: {_told(error)}"), b""
                yield cell, row, result
    finally:
        ray.shutdown()


def _compute_there(run: RunFunction, scenario: Scenario, seed: int, code: str) -> tuple[RunFigures, bytes]:
    """The program of a run on a machine of the cluster. :raises SweepError: when that machine has other code: its
    figures can't stand beside those made here."""
    there = versions()["code"]
    if there != code:
        raise SweepError(f"{socket.gethostname()} has other code of this package ({there}, here {code}), or it changed")
    return compute(run, scenario, seed)


def _told(error: Exception) -> str:
    """The gist of an error. The rest are traces of Ray's own calls."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- the connection --------------------------------------------------------------------------------------------------
def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray and gRPC raise errors of many kinds here
        raise SweepError(f"can't use the Ray cluster at {address!r}: {error}") from error


def _try_to_join(address: str) -> None:
    """Join in a process of its own. :raises SweepError: when that fails; names the address."""
    if address == "local":
        raise SweepError(
            "--ray local: Ray gains nothing on this machine alone; leave --ray out to use all its processors"
        )
    if address != "auto":
        _knock(address)
    command = [sys.executable, "-c", "from sims.runs.cluster import join_and_leave; join_and_leave()", address]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    try:
        tried = subprocess.run(  # noqa: S603  # our own interpreter and module
            command, env=environment, capture_output=True, text=True, timeout=CONNECT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SweepError(
            f"no Ray cluster answers at {address!r} within {CONNECT_S:g} s: is that the port of its head (6379)?"
        ) from error
    if tried.returncode:
        raise SweepError(f"can't use the Ray cluster at {address!r}: {tried.stdout.strip() or _NOT_A_MEMBER}")


_NOT_A_MEMBER = (
    "it answers, but this machine has no part in it; call it on one of its machines, or join with "
    "'ray start --address …', or give ray://HOST:10001 (needs ray[client] on both sides)"
)


def _knock(address: str) -> None:
    """Connect once, so that a misspelt address is reported at once. :raises SweepError: when nothing answers there."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise SweepError(f"--ray {address!r} is not an address: give HOST:6379, ray://HOST:10001, or auto")
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except OSError as error:
        raise SweepError(f"can't reach a Ray cluster at {address!r}: {error.strerror or error}") from error


def join_and_leave() -> None:
    """The program of that first process. It ends with status 0 when the address in the argument can be used, and
    otherwise prints why not."""
    ray: Any = importlib.import_module("ray")
    try:
        _join(ray, sys.argv[1])
    except SweepError as error:
        sys.stdout.write(str(error.__cause__))
        raise SystemExit(1) from error
    ray.shutdown()
