"""The runner: jobs of all models of a node in turn, with their deadlines, ends, costs and callbacks."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meshnode.models import (
    Failed,
    Job,
    LoadedModel,
    ModelSpec,
    Outcome,
    RunDone,
    Runner,
    load_model,
)
from protocols.base.errors import BoundExceeded, BudgetExhausted, InputInvalid, ModelInvalid
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.loaded_fixture import given_doubler, given_slow, ones  # noqa: F401 -- fixtures
from tests.tools.outcomes import Outcomes
from tests.tools.tiny_onnx import write_model

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "meshnode" / "sensors" / "data" / "street_plate.png"


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    yield made
    assert made.close(LIMIT_S)


def test_runner_given_a_job_calls_back_from_a_worker_thread(runner: Runner, doubler: LoadedModel) -> None:
    """The caller's thread is never held by a model."""
    outcomes = Outcomes()
    runner.submit(Job(doubler, ones(), ("y",)), outcomes)
    [outcome] = outcomes.wait_for(1)
    assert isinstance(outcome, RunDone)
    assert [(name, array.tolist()) for name, array in outcome.outputs] == [("y", [[2, 2, 2, 2]])]
    assert outcome.compute_ns > 0
    assert outcome.queued_ns >= 0
    assert outcomes.threads == ["model-runner"]
    assert runner.median_us(doubler) is not None
    eventually(lambda: runner.waiting == 0)


def test_runner_given_wrong_inputs_refuses_at_once(runner: Runner, doubler: LoadedModel) -> None:
    """A request that can't succeed must not wait its turn."""
    with pytest.raises(InputInvalid, match="which is missing"):
        runner.submit(Job(doubler, {}), Outcomes())
    assert runner.waiting == 0


def test_runner_busy_beyond_a_deadline_does_not_run_the_late_job(
    runner: Runner, slow: LoadedModel, doubler: LoadedModel
) -> None:
    """Computing what nobody waits for any more makes the next one late too."""
    zeros, outcomes = slow.zeros(), Outcomes()
    assert zeros is not None
    blocker = runner.submit(Job(slow, zeros), Outcomes())
    eventually(lambda: runner.waiting == 1)
    runner.submit(Job(doubler, ones(), deadline_ns=time.monotonic_ns()), outcomes)
    runner.submit(Job(doubler, ones(), deadline_ns=time.monotonic_ns() + 60_000_000_000), outcomes)
    assert runner.waiting == 3
    blocker.cancel()
    late, in_time = outcomes.wait_for(2)
    assert isinstance(late, Failed)
    assert isinstance(late.error, BudgetExhausted)
    assert "its deadline passed" in str(late.error)
    assert isinstance(in_time, RunDone)


def test_runner_with_a_queued_job_cancelled_skips_it(runner: Runner, slow: LoadedModel, doubler: LoadedModel) -> None:
    """Each job gets exactly one outcome, the cancelled one too."""
    zeros, blocked, outcomes = slow.zeros(), Outcomes(), Outcomes()
    assert zeros is not None
    blocker = runner.submit(Job(slow, zeros), blocked)
    cancel = runner.submit(Job(doubler, ones()), outcomes)
    assert runner.waiting == 2
    cancel.cancel()
    assert runner.waiting == 1
    blocker.cancel()
    [outcome] = outcomes.wait_for(1)
    assert isinstance(outcome, Failed)
    assert outcome.cancelled
    [outcome] = blocked.wait_for(1)
    assert isinstance(outcome, Failed)
    assert outcome.cancelled
    assert runner.median_us(doubler) is None


def test_runner_with_a_full_queue_refuses_the_next_job(slow: LoadedModel) -> None:
    """Neighbours must not be able to fill this node's memory with tensors; a cancelled job makes room at once."""
    runner = Runner(max_waiting=2)
    zeros, outcomes = slow.zeros(), Outcomes()
    assert zeros is not None
    runner.submit(Job(slow, zeros), outcomes)
    queued = runner.submit(Job(slow, zeros), outcomes)
    with pytest.raises(BoundExceeded, match="2 runs are waiting already"):
        runner.submit(Job(slow, zeros), outcomes)
    queued.cancel()
    runner.submit(Job(slow, zeros), outcomes)
    assert runner.close(LIMIT_S)
    assert [type(outcome) for outcome in outcomes.wait_for(3)] == [Failed] * 3


def test_runner_closed_under_load_answers_every_job_and_takes_no_more(slow: LoadedModel) -> None:
    """SIGTERM drains: nobody is left waiting for a callback that never comes."""
    runner = Runner(workers=2)
    zeros, outcomes = slow.zeros(), Outcomes()
    assert zeros is not None
    for _ in range(5):
        runner.submit(Job(slow, zeros), outcomes)
    assert runner.close(LIMIT_S)
    assert runner.close(LIMIT_S)
    assert len(outcomes.outcomes) == 5
    assert all(isinstance(outcome, Failed) and outcome.cancelled for outcome in outcomes.outcomes)
    with pytest.raises(BoundExceeded, match="the runner is closed"):
        runner.submit(Job(slow, zeros), outcomes)


def test_runner_whose_callback_raises_goes_on(
    runner: Runner, doubler: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in an application's callback must not stop inference on the node."""

    def broken(_: Outcome) -> None:
        raise RuntimeError("application bug")

    outcomes = Outcomes()
    runner.submit(Job(doubler, ones()), broken)
    runner.submit(Job(doubler, ones()), outcomes)
    assert isinstance(outcomes.wait_for(1)[0], RunDone)
    assert "the callback of a run of model 'doubler' failed" in caplog.text


def test_runner_emulating_a_slow_device_stretches_time_and_median(doubler: LoadedModel) -> None:
    """The demo's slow vehicles must look slow to the planner, by their own figures."""
    runner, outcomes = Runner(emulate_slowdown=500), Outcomes()
    cost_us = runner.warm_up(doubler)
    runner.submit(Job(doubler, ones()), outcomes)
    [outcome] = outcomes.wait_for(1)
    assert isinstance(outcome, RunDone)
    assert outcome.compute_ns >= 500 * 1_000  # a run takes at least a microsecond
    assert cost_us is not None
    assert cost_us >= 500
    assert runner.close(LIMIT_S)


def test_runner_emulating_a_slow_device_ends_the_pause_when_cancelled(doubler: LoadedModel) -> None:
    """The pause stands for computing, and computing can be cancelled."""
    runner, outcomes = Runner(emulate_slowdown=1_000), Outcomes()
    big = {"x": np.ones((500_000, 4), np.float32)}  # milliseconds, so the pause takes seconds
    cancel = runner.submit(Job(doubler, big), outcomes)
    cancel.cancel()
    [outcome] = outcomes.wait_for(1)
    assert isinstance(outcome, Failed)
    assert outcome.cancelled
    assert runner.close(LIMIT_S)


def test_runner_with_two_workers_runs_two_jobs_at_once(slow: LoadedModel, doubler: LoadedModel) -> None:
    """A second worker is of use while the first is busy."""
    runner, outcomes, blocked = Runner(workers=2), Outcomes(), Outcomes()
    zeros = slow.zeros()
    assert zeros is not None
    runner.submit(Job(slow, zeros), blocked)
    runner.submit(Job(doubler, ones()), outcomes)
    assert isinstance(outcomes.wait_for(1)[0], RunDone)
    assert not blocked.outcomes
    assert runner.close(LIMIT_S)


def test_runner_out_of_bounds_is_refused() -> None:
    """Bounds hold at construction, not at the first job."""
    for arguments in (
        {"workers": 0},
        {"max_waiting": 0},
        {"emulate_slowdown": 0.5},
        {"emulate_slowdown": float("nan")},
    ):
        with pytest.raises(BoundExceeded, match="a runner of"):
            Runner(**arguments)


def test_warm_up_of_open_sizes_needs_shapes_from_the_spec(tmp_path: Path, runner: Runner) -> None:
    """A cost measured on a picture of one pixel would mislead every neighbour."""
    path = write_model(tmp_path / "m.onnx", ("b", "h", 3))
    assert runner.warm_up(load_model(ModelSpec("m", path))) is None
    assert runner.warm_up(load_model(ModelSpec("m", path, warm_up={"x": (1, 64, 3)}))) is not None
    with pytest.raises(ModelInvalid, match=r"'warm_up' of model 'm' doesn't fit it: .*given f4\[1, 64, 4\]"):
        runner.warm_up(load_model(ModelSpec("m", path, warm_up={"x": (1, 64, 4)})))
    with pytest.raises(ModelInvalid, match="has no input 'z'"):
        runner.warm_up(load_model(ModelSpec("m", path, warm_up={"x": (1, 64, 3), "z": (1,)})))
