"""``python -m benchmarks.workers``: what worker processes of models cost, and what they keep from the others.

The way: the model of 300 kB in and out runs in this process and in a worker process in turn, so that both see the same
computer. The copies into and out of shared memory are measured beside it.

The neighbours: one good model computes at a steady pace, in windows that are quiet and windows in which ten others
crash, hang and grow beside it. Each request counts how often it was answered. The times of all windows of one kind are
taken together. In the *first* window of harm, each bad model does harm for the first time and is not set aside yet: it
is told apart, and its p99 is not held against anything.
"""

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks import command
from benchmarks.load import percentiles
from benchmarks.misbehaving import KINDS, LIMIT_MIB, Kind, harmless, trigger, write_misbehaving
from benchmarks.model import INPUT, OUTPUT, sample_input, write_model
from meshnode.models import Job, LoadedModel, ModelSpec, Outcome, RunDone, Runner, load_model
from meshnode.models.worker import Patience, Workers
from meshnode.models.worker.segment import Segment, size_of

MAX_ADDED_MS: Final = 0.3
MAX_RATIO: Final = 1.5
BAD_MODELS: Final = 10
GOOD_ADDITIONS: Final = 200
"""The good model computes for 2 ms. Of one that takes 0.1 ms, the p99 would be the time that the kernel takes to wake
four threads."""
GOOD_HZ: Final = 50.0
BAD_HZ: Final = 2.0
"""Requests for each bad model. Half of them make it do harm."""
GOOD_DEADLINE_S: Final = 5.0
BAD_DEADLINE_S: Final = 0.3
SWITCH_INTERVAL_S: Final = 0.0002
"""As a node sets it (decision 10)."""
_SETTLE_S: Final = 1.0
_DRAIN_S: Final = 30.0


@dataclass(slots=True)
class Way:
    """What a run of 300 kB takes, in microseconds."""

    here_p50_us: float
    here_p99_us: float
    worker_p50_us: float
    worker_p99_us: float
    copy_in_us: float
    """The copy of the input into shared memory."""
    copy_out_us: float
    """The copy of the output out of it. The worker makes one more, into it, which takes as long as the first."""
    start_ms: float
    """From nothing to a model that is loaded."""

    @property
    def added_ms(self) -> float:
        """What the worker adds to the median."""
        return (self.worker_p50_us - self.here_p50_us) / 1e3


@dataclass(slots=True)
class Windows:
    """What became of the requests of all windows of one kind."""

    good_us: list[float] = field(default_factory=list)
    good_failed: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Requests for bad models, by their end."""
    unanswered: int = 0
    answered_twice: int = 0


def measure_way(folder: Path, count: int) -> Way:
    """In this process and in a worker, in turn."""
    write_model(folder / "add.onnx")
    spec, x = ModelSpec("add", folder / "add.onnx"), {INPUT: sample_input()}
    times: dict[str, list[float]] = {"here": [], "worker": []}
    with contextlib.closing(Workers()) as workers:
        started_s = time.perf_counter()
        there = workers.load(spec)
        start_ms = (time.perf_counter() - started_s) * 1e3
        models: dict[str, LoadedModel] = {"here": load_model(spec), "worker": there}
        for number in range(-20, count):
            for name, model in models.items():
                started_ns = time.perf_counter_ns()
                ((_, output),) = model.run(x, (OUTPUT,))
                took_us = (time.perf_counter_ns() - started_ns) / 1e3
                assert output[-1] == x[INPUT][-1] + 1
                if number >= 0:
                    times[name].append(took_us)
    copy_in_us, copy_out_us = _copies(x[INPUT], count)
    here, worker = percentiles(times["here"]), percentiles(times["worker"])
    return Way(here[0], here[1], worker[0], worker[1], copy_in_us, copy_out_us, round(start_ms, 1))


def _copies(array: Any, count: int) -> tuple[float, float]:
    arrays = [(INPUT, array)]
    segment = Segment.make(size_of(arrays))
    segment.close_descriptor()
    into, out = [], []
    for _ in range(count):
        started_ns = time.perf_counter_ns()
        (placed,) = segment.put(arrays, 0)
        copied_ns = time.perf_counter_ns()
        copy = segment.view(placed).copy()
        into.append((copied_ns - started_ns) / 1e3)
        out.append((time.perf_counter_ns() - copied_ns) / 1e3)
        del copy
    return percentiles(into)[0], percentiles(out)[0]


# --- neighbours ------------------------------------------------------------------------------------------------------
class _Street:
    """One good model and ten bad ones in one runner, as a node has them."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._runner = Runner()
        write_model(folder / "good.onnx", GOOD_ADDITIONS)
        self._good = workers.load(ModelSpec("good", folder / "good.onnx"))
        self._good_input = {INPUT: sample_input()}
        self._bad: list[tuple[Kind, LoadedModel]] = []
        for number in range(BAD_MODELS):
            kind = KINDS[number % len(KINDS)]
            path = write_misbehaving(folder / f"{kind}-{number}.onnx", kind)
            self._bad.append((kind, workers.load(ModelSpec(path.stem, path, memory_limit_mib=LIMIT_MIB))))
        for model in (self._good, *(model for _, model in self._bad)):
            self._runner.warm_up(model)
        self._random = Random(1)

    def close(self) -> None:
        self._runner.close()

    def window(self, seconds: float, beset: bool, into: Windows) -> None:
        """Ask for ``seconds``, then wait for the last answers. ``beset``: ask the bad models too."""
        answers: Counter[int] = Counter()
        asked, ended = 0, threading.Condition()
        ends_s = time.monotonic() + seconds
        next_bad_s = [time.monotonic() + number / BAD_HZ / BAD_MODELS for number in range(BAD_MODELS)]

        def ask(model: LoadedModel, inputs: Any, deadline_s: float, note: Callable[[Outcome, float], None]) -> None:
            nonlocal asked
            number, asked, begun_ns = asked, asked + 1, time.monotonic_ns()

            def called(outcome: Outcome) -> None:
                with ended:
                    answers[number] += 1
                    note(outcome, (time.monotonic_ns() - begun_ns) / 1e3)
                    ended.notify_all()

            self._runner.submit(Job(model, inputs, deadline_ns=begun_ns + int(deadline_s * 1e9)), called)

        def good(outcome: Outcome, took_us: float) -> None:
            if isinstance(outcome, RunDone):
                into.good_us.append(took_us)
            else:
                into.good_failed += 1

        def bad(kind: Kind) -> Callable[[Outcome, float], None]:
            def note(outcome: Outcome, _: float) -> None:
                into.bad[f"{kind} {'done' if isinstance(outcome, RunDone) else type(outcome.error).__name__}"] += 1

            return note

        next_good_s = time.monotonic()
        while (now_s := time.monotonic()) < ends_s:
            if now_s >= next_good_s:
                ask(self._good, self._good_input, GOOD_DEADLINE_S, good)
                next_good_s += 1 / GOOD_HZ
            if beset:
                for number, (kind, model) in enumerate(self._bad):
                    if now_s >= next_bad_s[number]:
                        next_bad_s[number] += 1 / BAD_HZ
                        inputs = trigger(kind) if self._random.random() < 0.5 else harmless()
                        ask(model, inputs, BAD_DEADLINE_S, bad(kind))
            time.sleep(max(0.0, min(next_good_s, *next_bad_s if beset else (next_good_s,)) - time.monotonic()))
        with ended:
            ended.wait_for(lambda: len(answers) == asked, _DRAIN_S)
        time.sleep(_SETTLE_S)
        with ended:
            into.unanswered += asked - len(answers)
            into.answered_twice += sum(count > 1 for count in answers.values())


def measure_neighbours(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Quiet and beset windows, alternating. Pauses are short here, so that models do harm in every window."""
    windows = {"quiet": Windows(), "first": Windows(), "beset": Windows()}
    with (
        contextlib.closing(Workers(patience=Patience(first_pause_s=1.0, longest_pause_s=2.0))) as workers,
        contextlib.closing(_Street(folder, workers)) as street,
    ):
        for name in ("quiet", "first", *("quiet", "beset") * rounds):
            street.window(seconds, name != "quiet", windows[name])
        counters = workers.counters()
    figures: dict[str, Any] = {
        "counters": counters,
        "bad": dict(sorted((windows["first"].bad + windows["beset"].bad).items())),
    }
    for name, into in windows.items():
        p50, p99, most = percentiles(into.good_us)
        figures[name] = {
            "good": len(into.good_us), "good_failed": into.good_failed, "p50_us": p50, "p99_us": p99, "max_us": most,
            "unanswered": into.unanswered, "answered_twice": into.answered_twice,
        }  # fmt: skip
    return figures


def missed_bars(way: Way, neighbours: dict[str, Any]) -> list[str]:
    """The promises that were not kept, one sentence each."""
    missed = []
    if way.added_ms > MAX_ADDED_MS:
        missed.append(f"a worker adds {way.added_ms:.2f} ms to a run of 300 kB, more than {MAX_ADDED_MS} ms")
    quiet, beset = neighbours["quiet"], neighbours["beset"]
    if beset["p99_us"] > MAX_RATIO * quiet["p99_us"]:
        missed.append(
            f"p99 of the good model is {beset['p99_us'] / 1e3:.2f} ms beside bad ones, and "
            f"{quiet['p99_us'] / 1e3:.2f} ms when it is quiet"
        )
    missed += [
        f"{neighbours[name][what]} requests {what.replace('_', ' ')} in {name} windows"
        for name in ("quiet", "first", "beset")
        for what in ("good_failed", "unanswered", "answered_twice")
        if neighbours[name][what]
    ]
    if not all(neighbours["counters"][f"model_workers_{what}"] for what in ("crashed", "hung", "grew")):
        missed.append(f"not every kind of harm was done: {neighbours['counters']}")
    return missed


def main() -> int:
    """Run the command line."""
    parser = command.parser(
        "workers", __doc__, f"a worker adds more than {MAX_ADDED_MS} ms to a run of 300 kB, the p99 of a good model "
        f"beside ten bad ones is above {MAX_RATIO} times the quiet one, or a request is lost"
    )  # fmt: skip
    parser.add_argument("--runs", type=command.between(20, 1_000_000), default=3_000, help="default: %(default)s")
    parser.add_argument("--window", type=command.between(0.2, 600.0), default=4.0, help="seconds; default: %(default)s")
    parser.add_argument("--rounds", type=command.between(1, 1_000), default=5, help="default: %(default)s")
    options: argparse.Namespace = parser.parse_args()
    logging.disable(logging.WARNING)  # each loss would be a line
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with command.measuring("workers") as folder:
        way = measure_way(folder, options.runs)
        neighbours = measure_neighbours(folder, options.window, options.rounds)
    print(f"{'300 kB in and out':24}{'p50 us':>10}{'p99 us':>10}")
    print(f"{'in this process':24}{way.here_p50_us:10.1f}{way.here_p99_us:10.1f}")
    print(f"{'in a worker process':24}{way.worker_p50_us:10.1f}{way.worker_p99_us:10.1f}")
    print(f"copy into shared memory {way.copy_in_us} us, out of it {way.copy_out_us} us; start {way.start_ms} ms")
    for name in ("quiet", "first", "beset"):
        figures = neighbours[name]
        print(f"good model, {name:12}{figures['p50_us']:10.1f}{figures['p99_us']:10.1f}  {figures['good']} runs")
    print(f"bad models: {neighbours['bad']}, {neighbours['counters']}")
    return command.finish(options, {"way": asdict(way), "neighbours": neighbours}, missed_bars(way, neighbours))


if __name__ == "__main__":
    sys.exit(main())
