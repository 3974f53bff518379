"""``python -m benchmarks.simulator [--check] [--large]``: how fast the simulator is.

It runs the scenarios ``grid-100`` and ``grid-1000`` (with ``--large`` also ``grid-5000``): the full engine, readings at
10 Hz to a mean of eight neighbours in range, gossip, all checks. Each size has a process of its own, one after the
other, on one core. Factors are virtual seconds divided by seconds of processor time, so that other programs on the
machine disturb little. The *whole* run includes discovery and all handshakes; *steady* is its second half.

``--check`` compares the steady factor and the memory with their bars, and exits with 1 when one is missed.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from sims.runs.run import Run
from sims.scenario.file import load

SECOND_NS = 1_000_000_000


class Size(NamedTuple):
    """One scenario and its bars."""

    scenario: str
    duration_s: float
    least_factor: float
    most_gib: float


SIZES = (Size("grid-100", 40.0, 20.0, 1.0), Size("grid-1000", 16.0, 2.0, 4.0))
LARGE = Size("grid-5000", 10.0, 0.0, 16.0)
"""A scenario that only has to complete within its memory."""


class Figures(NamedTuple):
    """The figures of one run."""

    scenario: str
    nodes: int
    virtual_s: float
    whole_factor: float
    steady_factor: float
    wall_s: float
    us_per_frame: float
    """Microseconds of processor time for each frame, in the steady half."""
    frames_per_node_s: float
    mib_per_node: float
    gib: float
    degree: float
    """The mean number of neighbours in range."""
    broken: tuple[str, ...]
    digest: str


def measure(size: Size, seed: int = 1) -> Figures:
    """Make one run in this process."""
    scenario = replace(load(size.scenario), duration_s=size.duration_s)
    began_s, wall_s = time.process_time(), time.perf_counter()
    run = Run(scenario, seed)
    pipes = run.world.driver.pipes
    run.advance(int(size.duration_s * SECOND_NS / 2))
    half_s, frames = time.process_time(), pipes.frames
    result = run.go()
    done_s = time.process_time()
    nodes, gib = result.nodes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    steady_s, frames = done_s - half_s, pipes.frames - frames
    return Figures(
        size.scenario,
        nodes,
        size.duration_s,
        size.duration_s / (done_s - began_s),
        size.duration_s / 2 / steady_s,
        time.perf_counter() - wall_s,
        1e6 * steady_s / frames,
        frames / nodes / (size.duration_s / 2),
        gib * 1024 / nodes,
        gib,
        sum(len(run.world.near(number)) for number in range(nodes)) / nodes,
        tuple(result.broken),
        result.digest,
    )


def missed(size: Size, figures: Figures) -> list[str]:
    """The bars that a run misses, in words."""
    found = [f"{figures.scenario}: the check {name} failed" for name in figures.broken]
    if figures.steady_factor < size.least_factor:
        found.append(f"{figures.scenario}: {figures.steady_factor:.2f} times real time, wanted {size.least_factor:g}")
    if figures.gib > size.most_gib:
        found.append(f"{figures.scenario}: {figures.gib:.2f} GiB, allowed {size.most_gib:g}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description="How fast the simulator is.")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    parser.add_argument("--large", action="store_true", help="also run 5,000 nodes (several minutes)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(arguments)
    sizes = (*SIZES, LARGE) if chosen.large else SIZES
    context = multiprocessing.get_context("spawn")
    all_figures, failures = [], []
    if not chosen.json:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; factors by processor time of one core")
        print("nodes  degree  whole x  steady x  µs/frame  frames/node/s  MiB/node   GiB  wall s")
    for size in sizes:
        with context.Pool(1) as pool:
            figures = pool.apply(measure, (size,))
        all_figures.append(figures._asdict())
        failures += missed(size, figures)
        if not chosen.json:
            print(
                f"{figures.nodes:5}  {figures.degree:6.2f}  {figures.whole_factor:7.2f}  {figures.steady_factor:8.2f}  "
                f"{figures.us_per_frame:8.2f}  {figures.frames_per_node_s:13.1f}  {figures.mib_per_node:8.2f}  "
                f"{figures.gib:4.2f}  {figures.wall_s:6.1f}",
                flush=True,
            )
    if chosen.json:
        print(json.dumps(all_figures, indent=2))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if chosen.check and failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
