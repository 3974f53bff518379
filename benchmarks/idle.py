"""``python -m benchmarks.idle``: what an idle node costs, and how fast six nodes meet and notice a death.

Six nodes run with five neighbours each, no model, and HTTP on. The benchmark measures the share of one core and the
resident memory of each, the time from the last ready line until all have met, and the time until all others have
noticed a SIGKILL. It writes ``build/idle.json``. :mod:`benchmarks.startup` measures how long a node takes to become
ready.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import command
from benchmarks.command import between, finish, measuring
from benchmarks.fleet import NAMES, NEIGHBOURS, Fleet

CPU_BAR_PERCENT = 1.5
RESIDENT_BAR_MB = 90.0
MET_BAR_S = 2.5
DEAD_BAR_S = 1.5
_SETTLE_S = 2.0
"""The pause between the last meeting and the first measurement."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node costs."""

    node: str
    cpu_percent: float
    """The share of one core."""
    resident_mb: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was measured."""

    costs: list[Cost]
    met_after_s: float
    """Time from the last ready line to the last meeting; 0 when all had met before."""
    noticed_s: list[dict[str, float]]
    """For each kill: how long after it each survivor noticed."""
    false_deaths: int

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = []
        for cost in self.costs:
            if cost.cpu_percent > CPU_BAR_PERCENT:
                missed.append(f"{cost.node} uses {cost.cpu_percent:.2f} % of a core, above {CPU_BAR_PERCENT} %")
            if cost.resident_mb > RESIDENT_BAR_MB:
                missed.append(f"{cost.node} has {cost.resident_mb:.1f} MB resident, above {RESIDENT_BAR_MB:g} MB")
        if self.met_after_s > MET_BAR_S:
            missed.append(f"all have met {self.met_after_s:.2f} s after the last ready line, later than {MET_BAR_S} s")
        for number, noticed in enumerate(self.noticed_s, 1):
            if len(noticed) < NEIGHBOURS:
                missed.append(f"kill {number} was noticed by {len(noticed)} of {NEIGHBOURS}")
            if noticed and max(noticed.values()) > DEAD_BAR_S:
                missed.append(
                    f"kill {number} was noticed after {max(noticed.values()):.2f} s, later than {DEAD_BAR_S} s"
                )
        if self.false_deaths:
            missed.append(f"{self.false_deaths} times a node that lived was called dead")
        return missed


def measure(folder: Path, seconds: float, kills: int) -> Outcome:
    """Measure once. :raises FleetFailed: when the nodes do not start or never meet."""
    with Fleet(folder) as fleet:
        met_after_s = max(fleet.wait_until_met() - max(node.ready_s for node in fleet.nodes.values()), 0.0)
        time.sleep(_SETTLE_S)
        before = {name: node.cpu_s() for name, node in fleet.nodes.items()}
        begin_s = time.monotonic()
        time.sleep(seconds)
        lasted_s = time.monotonic() - begin_s
        costs = [
            Cost(name, round((node.cpu_s() - before[name]) / lasted_s * 100, 3), round(node.resident_mb(), 2))
            for name, node in fleet.nodes.items()
        ]
        fleet.check()
        noticed = [_kill(fleet, NAMES[number % len(NAMES)]) for number in range(kills)]
        deaths = len(fleet.sightings("NeighbourDead"))
        false_deaths = deaths - sum(len(each) for each in noticed)
        fleet.stop()
    return Outcome(costs, round(met_after_s, 3), noticed, false_deaths)


def _kill(fleet: Fleet, name: str) -> dict[str, float]:
    """Kill one node, wait until all others have noticed, and start it again."""
    killed_s = fleet.nodes.pop(name).kill()

    def noticed() -> dict[str, float]:
        # The times of log lines are cut off to milliseconds.
        dead = fleet.sightings("NeighbourDead", name, killed_s - 0.001)
        return {sighting.node: round(max(sighting.at_s - killed_s, 0.0), 3) for sighting in dead}

    fleet.wait(lambda: len(noticed()) == NEIGHBOURS, f"{name} is dead everywhere")
    fleet.start(name)
    fleet.wait_until_met()
    return noticed()


def table(outcome: Outcome) -> str:
    """The outcome as a table for people."""
    lines = [f"{'node':8}{'core':>10}{'resident':>12}"]
    lines += [f"{cost.node:8}{cost.cpu_percent:8.2f} %{cost.resident_mb:9.1f} MB" for cost in outcome.costs]
    lines.append(f"{'bar':8}{CPU_BAR_PERCENT:8.2f} %{RESIDENT_BAR_MB:9.1f} MB")
    lines.append(f"all have met {outcome.met_after_s:.2f} s after the last ready line (bar {MET_BAR_S} s)")
    for number, noticed in enumerate(outcome.noticed_s, 1):
        values = sorted(noticed.values())
        lines.append(
            f"kill {number}: noticed by {len(values)} after {values[0]:.2f} to {values[-1]:.2f} s (bar {DEAD_BAR_S} s)"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("idle", __doc__, "a promise is missed")
    seconds, kills = between(0.001, 3_600.0), between(0, 100)
    parser.add_argument("--seconds", type=seconds, default=20.0, help="seconds to measure for (default: %(default)s)")
    parser.add_argument("--kills", type=kills, default=3, help="nodes killed, one by one (default: %(default)s)")
    options = parser.parse_args(arguments)
    with measuring("idle") as folder:
        outcome = measure(folder, options.seconds, options.kills)
    print(table(outcome))
    return finish(options, {**asdict(outcome), "seconds": options.seconds}, outcome.missed_bars())


if __name__ == "__main__":
    sys.exit(main())
