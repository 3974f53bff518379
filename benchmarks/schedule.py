"""The schedule of a benchmark: which contender is measured when, and the results.

Machines are noisy, and their noise drifts. So the contenders take turns within each measure (A B C D, then the next
measure), the first of them changes from round to round, and all rounds are repeated with new processes
(*generations*), because addresses in memory and placement on cores are fixed by chance at the start of a process.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.contender import ENDS, BenchmarkFailed, End, Setting
from benchmarks.ends import Pair
from benchmarks.measures import RUNS
from benchmarks.model import write_model
from meshnode.identity import create_mesh, issue
from protocols.base.ids import Role

SECONDS = {
    "reading_64B": 1.0,
    "reading_16KiB": 0.6,
    "readings_per_s": 0.6,
    "gathered_readings_per_s": 0.6,
    "tensor_1MB_bytes_per_s": 0.7,
    "remote_inference_overhead": 0.5,
}
"""The relative lengths of the runs. The 64 B run needs enough samples for a p99."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    contenders: tuple[str, ...]
    runs: tuple[str, ...] = RUNS
    generations: int = 1
    rounds: int = 3
    pace: float = 0.7
    """The length of the runs as a multiple of ``SECONDS``."""
    budget_s: float = math.inf
    """The time for everything, including the set-up. Runs are shortened when the set-up took long."""


@dataclass(slots=True)
class Outcome:
    """The results, by measure and contender."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    """For each contender that failed: what happened, one sentence for each time."""

    def add(self, measure: str, contender: str, value: float) -> None:
        """Note the result of one run."""
        self.values.setdefault(measure, {}).setdefault(contender, []).append(value)

    def median(self, measure: str, contender: str) -> float | None:
        """The median over the runs; None when there was no run."""
        values = self.values.get(measure, {}).get(contender)
        return statistics.median(values) if values else None


def carry_out(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Carry out a plan. A contender that fails is named in ``failures`` and left out for the rest of its generation."""
    begin_s = time.monotonic()
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        write_model(folder / "add.onnx")
        create_mesh(folder / "authority", "bench")
        for end in ENDS:
            issue(folder / "authority", Role.VEHICLE, f"bench-{end}", folder / end)
        for generation in range(plan.generations):
            left_s = plan.budget_s - (time.monotonic() - begin_s)
            _run_generation(plan, folder, generation, left_s, outcome, say)
    return outcome


def _run_generation(
    plan: Plan, folder: Path, generation: int, left_s: float, outcome: Outcome, say: Callable[[str], None]
) -> None:
    begin_s = time.monotonic()
    pairs: dict[str, Pair] = {}
    try:
        for name in plan.contenders:
            pairs[name] = Pair(name, _settings(folder, name, generation))
        for name in plan.contenders:
            _attempt(pairs, name, "open", outcome, lambda pair: outcome.versions.update(pair.open()))
        for turn in range(plan.rounds):
            say(f"generation {generation + 1}/{plan.generations}, round {turn + 1}/{plan.rounds}")
            pace = _affordable_pace(plan, len(pairs), plan.rounds - turn, left_s - (time.monotonic() - begin_s))
            for run in plan.runs:
                for name in rotated(plan.contenders, turn):
                    _attempt(pairs, name, run, outcome, partial(_note, outcome, run, SECONDS[run] * pace))
    finally:
        for pair in pairs.values():
            pair.close()


def _affordable_pace(plan: Plan, contenders: int, rounds_left: int, left_s: float) -> float:
    """``plan.pace``, or less when time is short, but never so little that a run means nothing."""
    planned_s = rounds_left * contenders * sum(SECONDS[run] for run in plan.runs) * plan.pace
    return plan.pace * min(1.0, max(0.1, left_s / planned_s)) if planned_s else plan.pace


def _note(outcome: Outcome, run: str, seconds: float, pair: Pair) -> None:
    for measure, value in pair.run(run, seconds).items():
        outcome.add(measure, pair.name, value)


def _attempt(pairs: dict[str, Pair], name: str, what: str, outcome: Outcome, act: Callable[[Pair], None]) -> None:
    if name not in pairs:
        return
    try:
        act(pairs[name])
    except BenchmarkFailed as error:
        # A pair whose ends disagree about which run they are in would spoil its next measure too.
        pair = pairs.pop(name)
        outcome.failures.setdefault(name, []).append("; ".join(filter(None, (f"{what}: {error}", pair.dead()))))
        pair.kill()


def rotated(names: Sequence[str], turn: int) -> tuple[str, ...]:
    """``names`` in the order of one round."""
    at = turn % len(names)
    return (*names[at:], *names[:at])


def _settings(folder: Path, contender: str, generation: int) -> dict[End, Setting]:
    settings: dict[End, Setting] = {}
    for end in ENDS:
        state = folder / f"{contender}-{end}-{generation}"
        state.mkdir()
        own = folder / end
        settings[end] = Setting(
            end, own / f"bench-{end}.crt", own / f"bench-{end}.key", own / "authority.crt", folder / "add.onnx", state
        )
    return settings
