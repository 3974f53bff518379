"""The acts of the demonstration of learning, and what has to be true in the end."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from cloud_relay.learning.recipe import read_recipe
from cloud_relay.learning.rows import LearningRows, read_rows
from cloud_relay.learning.runs import TrainingRun
from cloud_relay.learning.splitting import split
from demo.learning.stage import EARLY_S, HELD_OUT, MODEL, UNITS, VEHICLES, passages, write_whole
from demo.processes import RELAY, Processes
from demo.promises import Promise, about_mesh
from demo.update.stage import relay
from demo.update.story import ActFailed
from protocols.base.limits import SECOND

ACT_S: Final = 180.0
"""How long an act may take. It takes seconds; a machine that needs longer can't show it."""


@dataclass
class Report:
    """What came of it."""

    runs: list[TrainingRun] = field(default_factory=list)
    """The runs that became releases, in order."""
    noise: TrainingRun | None = None
    """The run with nothing new to learn."""
    held_out: LearningRows | None = None
    measured: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """By unit and release: its answers for the rows that were held out."""
    records: int = 0
    published: int = 0


class Scene:
    """The processes, and what they have told; none outlives :meth:`close`."""

    def __init__(self, folder: Path, is_short: bool = False) -> None:
        self.folder, self.report, self._is_short = folder, Report(), is_short
        self.figures: dict[str, dict[str, Any]] = {}
        self.ready: set[str] = set()
        self.failures: list[str] = []
        self.processes = Processes(folder, self._take)
        self._lock, self._began_s = threading.Lock(), time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of the story."""
        print(f"{time.monotonic() - self._began_s:6.1f} s  {text}", flush=True)

    def play(self) -> None:
        """All acts. :raises ActFailed, MeshError: it can't go on."""
        base_ns = time.time_ns() - 3_600 * SECOND
        ways = passages()
        for each in (one for way in ways.values() for one in way):
            each["time_ns"] = base_ns + int(each["at_s"] * SECOND)
        self.processes.start_relay()
        for name in (*UNITS, *VEHICLES):
            home = self.folder / name
            self.processes.start(
                name, ["-m", "demo.learning.player", str(home / "node.toml")], (home / "log.txt").open("a")
            )
        self.until("all nodes are ready", lambda: self.ready == {*UNITS, *VEHICLES})
        self.until("everybody has met", lambda: all(self._of(name, "peers") == 5 for name in (*UNITS, *VEHICLES)))
        self._drive(ways, 1, lambda at_s: at_s < EARLY_S)
        self._learn(1)
        relay(self.folder, "rollout", "start", "--folder", str(self.folder / "repository"), MODEL, "1")
        self.until("release 1 serves at all roadside units", lambda: self._serves(1))
        self.say("release 1 serves at the roadside units, which warn by it")
        self._drive(ways, 2, lambda at_s: at_s >= EARLY_S)
        self._learn(2)
        self._measure(1)
        canaries = [f"--canary={name}" for name in UNITS]
        relay(self.folder, "rollout", "start", "--folder", str(self.folder / "repository"), MODEL, "2", *canaries,
              "--soak=3s", "--min-runs=20", "--max-latency=0")  # fmt: skip
        self.say("the units try it beside release 1")
        self.until("release 2 is promoted and serves", lambda: self._serves(2) and all(map(self._promoted, UNITS)))
        self.say("all canaries found it healthy; release 2 serves")
        self._measure(2)
        self.report.published = sum(self._of(name, "published") for name in VEHICLES)
        if not self._is_short:
            self.report.noise = self._trained("--publish")
            self.say("training again on the same records publishes nothing")

    def _drive(self, ways: dict[str, list[dict[str, Any]]], number: int, wanted: Callable[[float], bool]) -> None:
        for name, way in ways.items():
            write_whole(self.folder / name / f"stretch-{number}.json", [each for each in way if wanted(each["at_s"])])
        total = sum(
            number == 2 or wanted(each["at_s"]) for way in ways.values() for each in way
        )  # the second one ends with all of them
        self.until(
            f"all passages of stretch {number} are at the relay",
            lambda: (
                sum(self._of(name, "published") for name in VEHICLES) == total
                and sum(self._of(name, "taken") for name in VEHICLES) >= total  # outboxes take them a little later
                and not any(self._of(name, "pending") for name in VEHICLES)
            ),
        )
        self.say(f"{total} passages are at the relay")

    def _learn(self, release: int) -> None:
        """Export all records and train."""
        home = self.folder / RELAY
        relay(self.folder, "export", "--config", str(home / "relay.toml"), "--rule", "passage", "--overwrite",
              str(home / "passages.parquet"))  # fmt: skip
        run = self._trained("--publish")
        if run.release != release:
            why = run.error or run.not_released
            raise ActFailed(f"run {run.id} became release {run.release} and not {release}: {why}; {run.comparison}")
        self.report.runs.append(run)
        assert run.data is not None
        assert run.comparison is not None
        self.report.records = run.data.rows
        told = run.comparison
        against = run.serving or "who knows no features"
        self.say(
            f"the relay has learned from {run.data.training_rows} passages: {told.metric} {told.new:.3f} against "
            f"{told.old:.3f} of {against}; it is release {release}"
        )

    def _trained(self, *more: str) -> TrainingRun:
        home = self.folder / RELAY
        told = relay(self.folder, "train", "--config", str(home / "relay.toml"), "--data",
                     str(home / "passages.parquet"), "--json", *more, str(home / "hotspot.toml"))  # fmt: skip
        return msgspec.json.decode(told[told.index("{\n") :], type=TrainingRun)

    def _measure(self, release: int) -> None:
        """Have each unit answer for the rows that the second run held out."""
        if self.report.held_out is None:
            home = self.folder / RELAY
            recipe = read_recipe(home / "hotspot.toml")
            self.report.held_out = split(read_rows(home / "passages.parquet", recipe), recipe)[1]
            for name in UNITS:
                write_whole(self.folder / name / HELD_OUT, self.report.held_out.features.tolist())
        self.until(
            f"all units have answered with release {release}",
            lambda: all((name, release) in self.report.measured for name in UNITS),
        )

    # --- what players tell -------------------------------------------------------------------------------------------
    def _take(self, name: str, line: dict[str, Any]) -> None:
        with self._lock:
            match line["kind"]:
                case "ready":
                    self.ready.add(name)
                case "figures":
                    self.figures[name] = line
                case "measured":
                    self.report.measured[name, line["counter"]] = line["told"]
                case "failed":
                    self.failures.append(f"{name}: {line['why']}")

    def _of(self, name: str, figure: str) -> int:
        return int(self.figures.get(name, {}).get(figure, 0))

    def _serves(self, release: int) -> bool:
        return all(self._of(name, "serving") == release for name in UNITS)

    def _promoted(self, name: str) -> bool:
        orders = self.figures.get(name, {}).get("orders", [])
        return any(order["counter"] == 2 and order["decision"] == "promoted" for order in orders)

    def total(self, figure: str) -> int:
        """The sum of a figure of all units."""
        return sum(self._of(name, figure) for name in UNITS)

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something holds. :raises ActFailed: it does not, or a process ended."""
        ends_s = time.monotonic() + ACT_S
        while not holds():
            for name, status in self.processes.ended().items():
                raise ActFailed(f"{name} has ended (status {status}) before {what}")
            if time.monotonic() > ends_s:
                raise ActFailed(f"{what}: not within {ACT_S:g} s; the figures: {json.dumps(self.figures)[:3_000]}")
            time.sleep(0.05)

    def close(self) -> None:
        """End all processes."""
        self.processes.close()


def balanced_accuracy(told: list[int], rows: LearningRows) -> float:
    """That of the answers of a unit."""
    labels = np.asarray(told)
    return float(np.mean([np.mean(labels[rows.target == each] == each) for each in range(len(rows.labels))]))


def judged(scene: Scene) -> list[Promise]:
    """The promises, and what was seen."""
    report = scene.report
    old, new = report.runs[-2:]
    assert report.held_out is not None
    assert new.comparison is not None
    told = {key: balanced_accuracy(answers, report.held_out) for key, answers in report.measured.items()}
    before, after = (sorted({round(told[name, release], 4) for name in UNITS}) for release in (1, 2))
    said = new.comparison
    promises = [
        about_mesh(
            "all passages became records, and nothing was lost on the way",
            report.records == report.published > 0,
            f"{report.records} of {report.published}",
        ),
        about_mesh(
            "the model of more records is surely better, and became a release",
            said.is_better and new.release == 2 and old.release == 1,
            f"{said.metric} {said.new:.3f} against {said.old:.3f} on {said.rows} rows held out, a gain of at least "
            f"{said.low:.3f} at {said.confidence:.0%}",
        ),
        about_mesh(
            "the roadside units serve it by a rollout, with the accuracy that the relay measured",
            after == [round(said.new, 4)] and before == [round(said.old, 4)],
            f"old: {', '.join(map(str, before))}; new: {', '.join(map(str, after))}",
        ),
        about_mesh(
            "no inference failed meanwhile", not scene.failures, f"{scene.total('asked')} answers, "
            f"{len(scene.failures)} failed, {scene.total('warned')} warnings"
            + (f": {scene.failures[0]}" if scene.failures else ""),
        ),
    ]  # fmt: skip
    if (noise := report.noise) is not None:
        promises.append(about_mesh(
            "training again on the same records publishes nothing",
            not noise.release and noise.comparison is not None,
            noise.not_released,
        ))  # fmt: skip
    return promises
