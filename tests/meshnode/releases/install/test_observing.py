"""What is measured of releases: live runs, and runs beside them that nobody waits for."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.misbehaving import LIMIT_MIB, Kind, trigger, write_misbehaving
from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection
from meshnode.models import Failed, Job, ModelSpec, RunDone
from meshnode.models.worker import WorkerModel
from meshnode.releases.install import models
from meshnode.releases.install.askers import p95s_ns
from meshnode.releases.install.observing import LiveRuns, Shadow, Watched, agree
from meshnode.troubles import Troubles
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid
from protocols.releases.catalogue import Gates
from protocols.releases.rollout.health import broken_gate
from tests.tools.eventually import eventually
from tests.tools.released_fixture import adder
from tests.tools.tiny_onnx import write_model

ZEROS = {"x": np.zeros((1, 2), "f4")}


def done(value: float = 1.0, compute_ns: int = 1_000_000) -> RunDone:
    return RunDone((("y", np.full((1, 2), value, "f4")),), 0, compute_ns)


# --- live runs -------------------------------------------------------------------------------------------------------
def test_live_runs_count_what_the_model_did_and_not_what_its_caller_did() -> None:
    """A caller with the wrong picture, or without patience, must not take a release back."""
    runs = LiveRuns()
    for number in range(100):
        runs.note(done(compute_ns=number * 1_000))
    runs.note(Failed(InferenceError("it crashed"), 0, began=True))
    runs.note(Failed(BudgetExhausted("it was ended at its deadline"), 0, began=True))
    runs.note(Failed(BudgetExhausted("it waited too long"), 0))
    runs.note(Failed(InputInvalid("no picture"), 0, began=True))
    runs.note(Failed(InferenceError("it was cancelled"), 0, cancelled=True, began=True))
    assert (*runs.counted(), *p95s_ns(runs.timed(), ())) == (102, 2, 94_000, 0)


def test_outputs_agree_when_they_say_the_same_and_not_when_they_do_not() -> None:
    """Weights that were trained further answer a little differently, and that is no fault."""
    before = np.linspace(-10, 10, 100, dtype="f4")
    assert agree(before, before + 0.4)
    assert not agree(before, before + 0.6)
    assert not agree(before, before[:50])
    assert not agree(before, before.astype("f8"))
    assert not agree(before, -before)
    few = before.copy()
    few[:5] = 100
    assert agree(before, few), "five of a hundred"
    classes = np.array([1, 2, 3])
    assert agree(classes, classes)
    assert not agree(classes, np.array([1, 2, 4]))
    assert agree(np.zeros((0, 4), "f4"), np.zeros((0, 4), "f4"))


# --- beside ----------------------------------------------------------------------------------------------------------
class Bench:
    """Models without a node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.compute = ComputeService({}, InferenceSection(), lambda run, answer: None, lambda models: None, Troubles())

    def spec(self, amount: float) -> ModelSpec:
        path = self._folder / f"{amount}.onnx"
        path.write_bytes(adder(amount))
        return ModelSpec("adder", path)

    def serve(self, amount: float) -> Watched:
        self.compute.serve_version(self.spec(amount), 1)
        watched = Watched(1, lambda: self.compute.models.get("adder"))
        self.compute.watch_runs("adder", watched.ended)
        return watched

    def beside(self, spec: ModelSpec) -> WorkerModel:
        """A release beside, which gets processor time also while other tests want all of it."""
        return self.compute.rehearse(spec, idle=False)

    def run(self, watched: Watched) -> None:
        """One live run, told to those who watch."""
        model = self.compute.models["adder"]
        watched.ended(Job(model, ZEROS), RunDone(tuple(model.run(ZEROS)), 0, 1_000_000))


@pytest.fixture(name="bench")
def given_bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.compute.close()


def runs_of(watched: Watched, counter: int, at_least: int) -> tuple[int, int, int, int]:
    """Runs, errors, compared and agreed of a release beside, once there were enough."""

    def enough() -> bool:
        measures = watched.measures(counter)
        return measures is not None and measures.runs >= at_least

    eventually(enough)
    measures = watched.measures(counter)
    assert measures is not None
    return measures.runs, measures.errors, measures.compared, measures.agreed


@pytest.mark.processes
def test_neighbour_alone_breaks_no_gate_of_a_release_that_others_ask_for(bench: Bench) -> None:
    """It may ask whatever it likes, and a canary that says *failed* is believed for ever."""
    watched = bench.serve(1.0)
    model = bench.compute.models["adder"]
    for _ in range(100):
        watched.ended(Job(model, ZEROS), done())
        watched.ended(Job(model, ZEROS, asked_by="rsu-1"), done(compute_ns=500_000))
    watched.serves(2)
    for _ in range(100):
        watched.ended(Job(model, ZEROS), done())
        watched.ended(Job(model, ZEROS, asked_by="rsu-1"), Failed(InferenceError("these inputs"), 0, began=True))
        watched.ended(Job(model, ZEROS, asked_by="rsu-1"), done(compute_ns=90_000_000))
    measures = watched.measures(2)
    assert measures is not None
    assert broken_gate(Gates(), measures) == ""
    for _ in range(100):
        watched.ended(Job(model, ZEROS), Failed(InferenceError("it crashed"), 0, began=True))
    measures = watched.measures(2)
    assert measures is not None
    assert broken_gate(Gates(), measures) == "errors"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("beside", "expected"), [(1.01, (1, 0, 1, 1)), (-1.0, (1, 0, 1, 0)), (float("nan"), (1, 1, 1, 0))]
)
def test_release_beside_is_compared_on_live_inputs(
    bench: Bench, beside: float, expected: tuple[int, int, int, int]
) -> None:
    """One that says the same, one that says something else, and one that says nothing."""
    watched = bench.serve(1.0)
    watched.begin_shadow(Shadow(2, bench.beside(bench.spec(beside))))
    bench.run(watched)
    assert runs_of(watched, 2, 1) == expected
    watched.end_shadow()
    assert watched.measures(2) is None


@pytest.mark.processes
def test_release_that_breaks_its_signature_is_not_run_on_live_inputs(bench: Bench, tmp_path: Path) -> None:
    """They are inputs of the release before. Each was an error, and no canary could call such a release healthy."""
    watched = bench.serve(1.0)
    spec = ModelSpec("adder", write_model(tmp_path / "other.onnx", [1, 2], input_name="image"))
    watched.begin_shadow(Shadow(2, bench.beside(spec)))
    bench.run(watched)
    assert runs_of(watched, 2, 1) == (1, 1, 0, 0)
    shadow = Shadow(2, bench.beside(spec), takes_live_inputs=False)
    watched.begin_shadow(shadow)
    bench.run(watched)
    shadow.close()
    measures = watched.measures(2)
    assert measures is not None
    assert (measures.runs, measures.errors, measures.compared, measures.agreed) == (0, 0, 0, 0)


@pytest.mark.processes
def test_what_was_compared_beside_counts_while_it_serves(bench: Bench) -> None:
    """The gate on agreement is looked at when the release serves, and then there is nothing beside it."""
    watched = bench.serve(1.0)
    watched.begin_shadow(Shadow(2, bench.beside(bench.spec(1.01))))
    bench.run(watched)
    runs_of(watched, 2, 1)
    bench.compute.serve_version(bench.spec(1.01), 1)
    watched.serves(2)
    bench.run(watched)
    measures = watched.measures(2)
    assert measures is not None
    assert (measures.runs, measures.errors, measures.compared, measures.agreed) == (1, 0, 1, 1)
    assert (measures.p95_ns, measures.before_p95_ns) == (1_000_000, 1_000_000)


@pytest.mark.processes
def test_release_that_came_to_serve_while_it_was_loaded_to_run_beside_does_not(bench: Bench) -> None:
    """Swaps wait for nothing. It would be compared with itself, and what it measures as it serves be hidden."""
    watched = bench.serve(1.0)
    bench.compute.serve_version(bench.spec(1.01), 1)
    watched.serves(2)
    watched.begin_shadow(Shadow(2, bench.beside(bench.spec(1.01))))
    assert watched.shadow is None
    bench.run(watched)
    measures = watched.measures(2)
    assert measures is not None
    assert measures.p95_ns == 1_000_000


@pytest.mark.processes
@pytest.mark.parametrize("idle_load_s", [0.0, 60.0])
def test_release_beside_has_idle_time_only_and_is_loaded_where_there_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, idle_load_s: float
) -> None:
    """A canary on a computer that is always busy called every good release one that hangs."""
    monkeypatch.setattr(models, "IDLE_LOAD_S", idle_load_s)
    with closing(models.rehearsed_beside(bench.compute, bench.spec(1.0))) as model:
        assert model.process_id is not None
        threads = [int(path.name) for path in Path(f"/proc/{model.process_id}/task").iterdir()]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["hang", "grow"])
def test_release_beside_that_hangs_or_grows_delays_nobody(bench: Bench, tmp_path: Path, kind: Kind) -> None:
    """It is not trusted yet: that is why it runs beside."""
    served = write_model(tmp_path / "served.onnx", [4], "Identity", dtype="i8")
    bench.compute.serve_version(ModelSpec("adder", served), 1)
    watched = Watched(1, lambda: bench.compute.models.get("adder"))
    path = write_misbehaving(tmp_path / "bad.onnx", kind)
    watched.begin_shadow(Shadow(2, bench.beside(ModelSpec("adder", path, memory_limit_mib=LIMIT_MIB))))
    model, bad = bench.compute.models["adder"], trigger(kind)
    for _ in range(50):
        watched.ended(Job(model, bad), RunDone(tuple(model.run(bad)), 0, 1_000_000))
    measures = watched.measures(1)
    assert measures is not None
    assert (measures.runs, measures.errors) == (50, 0)
    if kind == "grow":
        runs, errors, *_ = runs_of(watched, 2, 1)
        assert (runs, errors) == (1, 1)
    watched.end_shadow()  # though it hangs
