"""A model that crashes, hangs or grows costs its own runs only, each of which still gets exactly one outcome."""

import contextlib
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.misbehaving import KINDS, LIMIT_MIB, Kind, harmless, trigger, write_misbehaving
from meshnode.models import Failed, Job, ModelSpec, RunDone, Runner
from meshnode.models.worker import Patience, WorkerModel, Workers
from protocols.base.errors import InferenceError, ModelInvalid
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.outcomes import Outcomes
from tests.tools.tiny_onnx import write_model
from tests.tools.worker_fixture import SHORT, Troubled, given_bad, given_troubled, given_workers, running, within

__all__ = ["given_bad", "given_troubled", "given_workers"]
pytestmark = pytest.mark.processes
Load = Callable[[Kind], WorkerModel]
COUNTED = {"crash": "crashed", "hang": "hung", "grow": "grew"}
KINDS_HERE = [
    pytest.param(kind, marks=pytest.mark.skipif(
        kind == "crash" and platform.machine() != "x86_64", reason="other processors compute the remainder"))
    for kind in KINDS
]  # fmt: skip


@pytest.fixture(name="runner")
def given_runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    assert made.close(LIMIT_S)


def count(workers: Workers, what: str) -> int:
    return workers.counters()[f"model_workers_{what}"]


def deadline_ns(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_model_that_loses_its_worker_fails_with_the_reason_and_is_back(
    workers: Workers, bad: Load, kind: Kind, troubled: Troubled
) -> None:
    """The node, and whoever asks next, must hardly notice."""
    model = bad(kind)
    first = model.process_id
    assert first is not None
    why = {"crash": "SIGFPE", "hang": "went on for", "grow": "'memory_limit_mib' allows"}[kind]
    with pytest.raises(InferenceError, match=why):
        model.run(trigger(kind), cancel=within(0.3 if kind == "hang" else 60))
    assert model.run(harmless(), cancel=within(60))[0][0] == "y"
    assert model.process_id not in (None, first)
    assert not running(first)
    assert count(workers, COUNTED[kind]) == (1 if kind == "hang" else 2), "a run that crashed is tried once more"
    assert count(workers, "repeated") == (0 if kind == "hang" else 1)
    assert troubled.told == []


def test_run_whose_worker_is_killed_is_done_once_more(workers: Workers, tmp_path: Path) -> None:
    """The kernel may have ended the process for the memory of another: nobody needs to hear of it."""
    model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", (300_000,), "Sin", repeat=100)))
    x, outcomes = {"x": np.ones(300_000, "f4")}, Outcomes()
    expected = model.run(x)[0][1]
    with contextlib.closing(Runner()) as runner:
        for _ in range(5):
            runner.submit(Job(model, x), outcomes)
        process_id = model.process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        ended = outcomes.wait_for(5)
    assert all(isinstance(outcome, RunDone) for outcome in ended), ended
    assert all(np.array_equal(outcome.outputs[0][1], expected) for outcome in ended if isinstance(outcome, RunDone))
    assert count(workers, "crashed") == 1
    assert count(workers, "started") == 2


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_runs_that_waited_behind_a_loss_are_computed(bad: Load, runner: Runner, kind: Kind) -> None:
    """They did nothing wrong."""
    model, outcomes, guilty = bad(kind), Outcomes(), Outcomes()
    runner.submit(Job(model, trigger(kind), deadline_ns=deadline_ns(0.5) if kind == "hang" else None), guilty)
    for _ in range(4):
        runner.submit(Job(model, harmless()), outcomes)
    assert all(isinstance(outcome, RunDone) for outcome in outcomes.wait_for(4))
    (failed,) = guilty.wait_for(1)
    assert isinstance(failed, Failed)
    assert len(guilty.outcomes) == 1


def test_other_models_go_on_while_one_hangs(workers: Workers, bad: Load, runner: Runner, tmp_path: Path) -> None:
    """One thread computed for all models: one that hung took it with it, until its deadline and longer."""
    good = workers.load(ModelSpec("good", write_model(tmp_path / "m.onnx", (4,), "Add")))
    hanging, hung, outcomes = bad("hang"), Outcomes(), Outcomes()
    cancel = runner.submit(Job(hanging, trigger("hang"), deadline_ns=deadline_ns(120)), hung)
    for _ in range(10):
        runner.submit(Job(good, {"x": np.ones(4, "f4")}, deadline_ns=deadline_ns(60)), outcomes)
    assert all(isinstance(outcome, RunDone) for outcome in outcomes.wait_for(10))
    assert not hung.outcomes
    assert runner.queue_ns(good) == (0, 0)
    assert runner.queue_ns(hanging) == (0, 0), "it takes longer already than it ever did"
    cancel.cancel()
    (outcome,) = hung.wait_for(1)
    assert isinstance(outcome, Failed)
    assert outcome.cancelled
    assert count(workers, "hung") == 1


def test_model_that_has_crashed_has_a_thread_and_idle_time_of_its_own(
    workers: Workers, bad: Load, runner: Runner, tmp_path: Path
) -> None:
    """What happened once may happen again: then nobody else waits."""
    model, outcomes = bad("hang"), Outcomes()
    assert not model.apart
    assert model.process_id is not None
    os.kill(model.process_id, signal.SIGKILL)
    runner.submit(Job(model, harmless()), outcomes)
    assert isinstance(outcomes.wait_for(1)[0], RunDone)
    assert model.apart
    assert model.process_id is not None
    assert os.sched_getscheduler(model.process_id) == os.SCHED_IDLE
    threads: set[str] = set()
    gate = threading.Event()
    good = workers.load(ModelSpec("good", write_model(tmp_path / "m.onnx", (4,), "Add")))

    def hold(_: Any) -> None:
        threads.add(threading.current_thread().name)
        assert gate.wait(LIMIT_S)

    runner.submit(Job(good, {"x": np.ones(4, "f4")}), hold)
    eventually(lambda: threads, "the thread of all models is held")
    runner.submit(Job(model, harmless()), outcomes)
    assert isinstance(outcomes.wait_for(2)[1], RunDone)
    gate.set()


def test_model_that_was_only_slow_once_shares_the_thread_again(
    workers: Workers, runner: Runner, tmp_path: Path
) -> None:
    """A large input is not a crash: `workers` says how many runs go on at the same time."""
    model, outcomes = (
        workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", ("n",), "Sin", repeat=100))),
        Outcomes(),
    )
    runner.submit(Job(model, {"x": np.ones(1_000_000, "f4")}), outcomes)
    for _ in range(20):
        runner.submit(Job(model, {"x": np.ones(10, "f4")}), outcomes)
    assert all(isinstance(outcome, RunDone) for outcome in outcomes.wait_for(21))
    assert not model.apart
    eventually(lambda: not runner._apart, "nothing is kept of it")


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_model_that_goes_on_losing_workers_is_out_of_service_and_comes_back(
    workers: Workers, bad: Load, troubled: Troubled, kind: Kind
) -> None:
    """Each start takes processor time and each run time of whoever asked: others are asked meanwhile."""
    model = bad(kind)
    while not troubled.told:
        with pytest.raises(InferenceError):
            model.run(trigger(kind), cancel=within(0.3 if kind == "hang" else 60))
    assert count(workers, COUNTED[kind]) == 3
    ((name, why),) = troubled.told
    assert name == kind
    assert why is not None
    assert "out of service for 2 s" in why
    with pytest.raises(InferenceError, match="out of service"):
        model.run(harmless())
    eventually(lambda: troubled.told[1:] == [(kind, None)], "it is back")
    assert model.run(harmless(), cancel=within(60))[0][0] == "y"
    with pytest.raises(InferenceError):
        model.run(trigger(kind), cancel=within(0.3 if kind == "hang" else 60))
    assert "out of service for 4 s" in (troubled.told[-1][1] or ""), "the next pause begins at once, and is longer"


def test_model_whose_file_has_changed_is_not_started_again_as_another(
    workers: Workers, bad: Load, troubled: Troubled
) -> None:
    """Neighbours trust the digest that was announced."""
    model = bad("hang")
    write_misbehaving(model.spec.path, "grow")
    assert model.process_id is not None
    os.kill(model.process_id, signal.SIGKILL)
    with pytest.raises(InferenceError, match="has the digest"):
        model.run(harmless())
    assert "has the digest" in (troubled.told[0][1] or "")
    write_misbehaving(model.spec.path, "hang")
    eventually(lambda: troubled.told[-1] == ("hang", None), "its file is as it was")
    assert model.run(harmless(), cancel=within(60))[0][0] == "y"


def test_model_that_hangs_or_grows_while_it_is_loaded_is_refused(tmp_path: Path, troubled: Troubled) -> None:
    """Its file is tried again later, like any that can't be loaded."""
    path = write_misbehaving(tmp_path / "m.onnx", "hang")
    with contextlib.closing(Workers(troubled, Patience(load_s=0.0))) as workers:
        with pytest.raises(ModelInvalid, match="did not load the model within 0 s"):
            workers.load(ModelSpec("m", path))
        assert count(workers, "hung") == 1
    large = write_model(tmp_path / "large.onnx", (4,), "Identity", repeat=100_000)
    with contextlib.closing(Workers(troubled, SHORT)) as workers:
        with pytest.raises(ModelInvalid, match=r"memory_limit_mib"):
            workers.load(ModelSpec("large", large, memory_limit_mib=2))
        assert workers.load(ModelSpec("large", large)).run({"x": np.ones(4, "f4")})[0][1].tolist() == [1] * 4


def test_many_losses_at_once_lose_no_run(workers: Workers, tmp_path: Path) -> None:
    """Whoever waits for an answer that never comes waits for ever."""
    models = [workers.load(ModelSpec(kind, write_misbehaving(tmp_path / kind, kind), memory_limit_mib=LIMIT_MIB))
              for kind in ("hang", "grow")]  # fmt: skip
    outcomes, expected = Outcomes(), 0
    with contextlib.closing(Runner(workers=3)) as runner:
        for number in range(60):
            model = models[number % 2]
            inputs = trigger("hang" if number % 2 == 0 else "grow") if number % 7 == 0 else harmless()
            cancel = runner.submit(Job(model, inputs, deadline_ns=deadline_ns(1.5)), outcomes)
            expected += 1
            if number % 11 == 0:
                cancel.cancel()
            if number % 20 == 0 and model.process_id is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(model.process_id, signal.SIGKILL)
        outcomes.wait_for(expected)
        eventually(lambda: runner.waiting == 0, "nothing is left")
    assert len(outcomes.outcomes) == expected


def test_model_that_lost_no_worker_for_long_is_one_like_any_other(tmp_path: Path, troubled: Troubled) -> None:
    """The kernel once ended it for the memory of another: that must not slow it down for weeks."""
    with contextlib.closing(Workers(troubled, Patience(forgiven_s=0.0))) as workers:
        model = workers.load(ModelSpec("m", write_model(tmp_path / "m.onnx", (4,), "Add")))
        first = model.process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert model.run({"x": np.ones(4, "f4")}, cancel=within(60))[0][1].tolist() == [2] * 4
        assert not model.apart
        assert model.run({"x": np.ones(4, "f4")}, cancel=within(60))[0][1].tolist() == [2] * 4
        assert model.process_id is not None
        assert os.sched_getscheduler(model.process_id) == os.SCHED_OTHER
        assert count(workers, "crashed") == 1
