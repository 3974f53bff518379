"""``python -m benchmarks.soak --minutes 10``: whether nodes are falsely called dead while the computer is overloaded.

Six nodes run beside as many busy processes as there are cores. No node is killed, so every death is false. Suspicions
that are refuted are the price of noticing deaths fast, and are counted. The benchmark writes ``build/soak.json``.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import command
from benchmarks.command import between, finish, measuring
from benchmarks.fleet import Fleet

MAX_MINUTES = 600.0
_REPORT_EVERY_S = 30.0
_BUSY = """\
import os, sys, time
parent, ends_s = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < ends_s and os.getppid() == parent:
    for _ in range(200_000):
        pass
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened in the run."""

    minutes: float
    busy_processes: int
    busy_share: float
    """The share of the computer's cores that all programs together used; 1.0 means overloaded throughout."""
    suspicions: int
    refuted: int
    deaths: list[str]
    """Each death in words: which node was called dead, by which node, and when."""
    local_stalls: int
    """How often a node found that it had not run itself, and so suspected nobody."""
    exit_statuses: dict[str, int]

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = [f"false death: {death}" for death in self.deaths]
        missed += [f"{name} ended with status {status}" for name, status in self.exit_statuses.items() if status]
        if self.busy_share < 0.9:
            missed.append(f"the cores were loaded for {self.busy_share:.0%} only: nothing was proved")
        return missed


@contextlib.contextmanager
def busy_processes(count: int, seconds: float) -> Iterator[None]:
    """Load ``count`` cores for at most ``seconds``; each ends with this process, however it ends."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid()), str(seconds)], stdin=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(folder: Path, minutes: float, busy: int) -> Outcome:
    """Measure once. :raises FleetFailed: when a node does not start, never meets the others or ends by itself."""
    with Fleet(folder) as fleet:
        fleet.wait_until_met()
        begin_s, begin_times = time.time(), psutil.cpu_times()
        ends_s = time.monotonic() + minutes * 60
        with busy_processes(busy, minutes * 60 + 60):
            while (left_s := ends_s - time.monotonic()) > 0:
                time.sleep(min(left_s, _REPORT_EVERY_S))
                fleet.check()
                kinds = Counter(kind for kind in _KINDS for _ in fleet.sightings(kind, since_s=begin_s))
                print(
                    f"{(time.time() - begin_s) / 60:5.1f} min  {kinds['NeighbourSuspected']} suspected, "
                    f"{kinds['NeighbourRefuted']} refuted, {kinds['NeighbourDead']} dead",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            share = _busy_share(begin_times)
            stalls = sum(node.statistics()["local_stalls"] for node in fleet.nodes.values())
        deaths = [
            f"{sighting.about} by {sighting.node} after {sighting.at_s - begin_s:.1f} s"
            for sighting in fleet.sightings("NeighbourDead")
        ]
        suspicions, refuted = (len(fleet.sightings(kind, since_s=begin_s)) for kind in _KINDS[:2])
        return Outcome(minutes, busy, round(share, 3), suspicions, refuted, deaths, stalls, fleet.stop())


_KINDS = ("NeighbourSuspected", "NeighbourRefuted", "NeighbourDead")


def _busy_share(begin: Any) -> float:
    now = psutil.cpu_times()
    idle_s = now.idle - begin.idle
    return float(1 - idle_s / (sum(now) - sum(begin)))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("soak", __doc__, "anybody was falsely called dead")
    minutes, busy = between(0.001, MAX_MINUTES), between(0, 1_024)
    parser.add_argument("--minutes", type=minutes, default=10.0, help="default: %(default)s")
    parser.add_argument("--busy", type=busy, default=os.cpu_count() or 1, help="busy processes (default: one a core)")
    options = parser.parse_args(arguments)
    with measuring("soak") as folder:
        outcome = measure(folder, options.minutes, options.busy)
    print(
        f"{outcome.minutes:g} minutes, {outcome.busy_processes} busy processes, cores {outcome.busy_share:.0%} loaded: "
        f"{outcome.suspicions} suspicions, {outcome.refuted} refuted, {len(outcome.deaths)} deaths, "
        f"{outcome.local_stalls} local stalls"
    )
    return finish(options, asdict(outcome), outcome.missed_bars())


if __name__ == "__main__":
    sys.exit(main())
