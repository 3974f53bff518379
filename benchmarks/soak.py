"""``python -m benchmarks.soak --minutes 10``: is anybody falsely called dead while the computer is overloaded?

Six nodes, and as many busy processes as there are cores. Nobody is killed, so every death is false; suspicions that are
refuted are the price of noticing fast, and are counted. Written to ``build/soak.json``.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fleet import Fleet, FleetFailed, machine

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
    """What was seen."""

    minutes: float
    busy_processes: int
    busy_share: float
    """Of the computer's cores, all programs together: 1.0 is overloaded throughout."""
    suspicions: int
    refuted: int
    deaths: list[str]
    """Who was called dead by whom, and when."""
    local_stalls: int
    """Times a node found that it had not been watching, and accused nobody for it."""
    exit_statuses: dict[str, int]

    def missed_bars(self) -> list[str]:
        """What was promised and not kept, a sentence each."""
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
    """Run it once. :raises FleetFailed: when a node does not start, never meets the others or ends by itself."""
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
    """Run from the command line. 0; 1 with ``--check`` when a promise was missed; 2 when it could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)s")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="busy processes (default: one a core)")
    parser.add_argument("--check", action="store_true", help="end with status 1 when anybody was falsely called dead")
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= MAX_MINUTES or not 0 <= options.busy <= 1_024:
        parser.error(f"--minutes lies above 0 and up to {MAX_MINUTES:g}, --busy from 0 to 1024")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the clean-up of the children
    try:
        with tempfile.TemporaryDirectory(prefix="meshnode-soak-") as folder:
            outcome = measure(Path(folder), options.minutes, options.busy)
    except FleetFailed as error:
        print(f"could not be measured: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    missed = outcome.missed_bars()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**asdict(outcome), "missed": missed, "machine": machine()}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        f"{outcome.minutes:g} minutes, {outcome.busy_processes} busy processes, cores {outcome.busy_share:.0%} loaded: "
        f"{outcome.suspicions} suspicions, {outcome.refuted} refuted, {len(outcome.deaths)} deaths, "
        f"{outcome.local_stalls} local stalls"
    )
    for sentence in missed:
        print(f"MISSED {sentence}")
    print(f"{options.out} written")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
