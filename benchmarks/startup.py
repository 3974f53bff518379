"""``python -m benchmarks.startup``: how long a node takes from the start of its process until it is ready.

It starts ``meshnode run`` again and again beside a neighbour that runs already, HTTP on, no model, mDNS on loopback. It
measures the time until the ready line, the processor time used by then, and the time until the node has met the
neighbour. Beside them stand a bare interpreter and one that only imports what a node is made of. The bytecode of our
packages is compiled first, as an installation does it. The figures are medians, and are written to
``build/startup.json``.
"""

import compileall
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import command
from benchmarks.command import between, finish, measuring
from benchmarks.fleet import FleetNode, Sighting, prepare, wait_until
from meshnode.identity import create_mesh

READY_BAR_S = 1.0
"""The bar on an idle machine. A roadside unit that restarts is then back before its death would be noticed."""
MET_BAR_S = 1.5
IMPORTS = "import meshnode.cli.main, meshnode.node, meshnode.http"
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a node, or the median of several, in seconds from the start of the process."""

    ready_s: float
    ready_cpu_s: float
    """Processor time used until the ready line, in steps of 10 ms."""
    met_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was measured."""

    starts: int
    interpreter_s: float
    interpreter_cpu_s: float
    imports_s: float
    imports_cpu_s: float
    node: Start

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = []
        if self.node.ready_s > READY_BAR_S:
            missed.append(f"a node is ready after {self.node.ready_s:.2f} s, later than {READY_BAR_S} s")
        if self.node.met_s > MET_BAR_S:
            missed.append(f"a node has met its neighbour after {self.node.met_s:.2f} s, later than {MET_BAR_S} s")
        return missed


def measure(folder: Path, starts: int) -> Outcome:
    """Start a node ``starts`` times. :raises FleetFailed: when one does not start or meet its neighbour."""
    for package in ("protocols", "meshnode"):
        compileall.compile_dir(_ROOT / package, quiet=2)
    create_mesh(folder / "authority", f"bench-{os.getpid()}")
    config, neighbour_config = prepare(folder, "veh-1"), prepare(folder, "rsu-1")
    neighbour = FleetNode("rsu-1", neighbour_config, lambda _: None)
    nodes: list[Start] = []
    bare: list[tuple[float, float]] = []
    imports: list[tuple[float, float]] = []
    try:
        wait_until(lambda: neighbour.http_port > 0, [neighbour], "the neighbour is ready")
        for _ in range(starts):
            bare.append(_run("pass"))
            imports.append(_run(IMPORTS))
            nodes.append(_start(config))
    finally:
        neighbour.tell_to_leave()
        neighbour.left()
    return Outcome(
        starts=starts,
        interpreter_s=_median(run[0] for run in bare),
        interpreter_cpu_s=_median(run[1] for run in bare),
        imports_s=_median(run[0] for run in imports),
        imports_cpu_s=_median(run[1] for run in imports),
        node=Start(
            _median(node.ready_s for node in nodes),
            _median(node.ready_cpu_s for node in nodes),
            _median(node.met_s for node in nodes),
        ),
    )


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def _run(code: str) -> tuple[float, float]:
    """Run an interpreter with ``code``. Returns its seconds and its processor seconds."""
    begin_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_ROOT, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - begin_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _start(config: Path) -> Start:
    """Start a node, wait until it is ready and has met the neighbour, and stop it."""
    met: list[float] = []

    def seen(sighting: Sighting) -> None:
        if sighting.kind == "NeighbourMet":
            met.append(sighting.at_s)

    node = FleetNode("veh-1", config, seen)
    try:
        wait_until(lambda: node.http_port > 0 and bool(met), [node], "a node is ready and has met its neighbour")
        return Start(node.ready_s - node.started_s, node.ready_cpu_s, met[0] - node.started_s)
    finally:
        node.tell_to_leave()
        node.left()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("startup", __doc__, "a promise is missed")
    parser.add_argument("--starts", type=between(1, 1_000), default=10, help="how many starts (default: %(default)s)")
    options = parser.parse_args(arguments)
    with measuring("startup") as folder:
        outcome = measure(folder, options.starts)
    print(table(outcome))
    return finish(options, asdict(outcome), outcome.missed_bars())


def table(outcome: Outcome) -> str:
    """The outcome as a table for people."""
    node = outcome.node
    return "\n".join((
        f"{'from process start to':32}{'time':>10}{'processor':>12}",
        f"{'end of a bare interpreter':32}{outcome.interpreter_s:8.3f} s{outcome.interpreter_cpu_s:10.3f} s",
        f"{'end of one with our imports':32}{outcome.imports_s:8.3f} s{outcome.imports_cpu_s:10.3f} s",
        f"{'ready line of a node':32}{node.ready_s:8.3f} s{node.ready_cpu_s:10.3f} s (bar {READY_BAR_S} s)",
        f"{'first neighbour met':32}{node.met_s:8.3f} s{'':12} (bar {MET_BAR_S} s)",
        f"medians of {outcome.starts} starts",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
