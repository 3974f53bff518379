"""Whose run is next: this node's own before those of neighbours, and no neighbour before its turn."""

import gc
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from meshnode.models import (
    Cancellation,
    Failed,
    Job,
    LoadedModel,
    ModelSpec,
    Outcome,
    RunDone,
    Runner,
    TensorSignature,
    load_model,
)
from protocols.base.errors import BoundExceeded, InferenceError, InputInvalid, ModelInvalid
from protocols.base.ids import ModelDigest
from protocols.base.waiting import WaitingJobs
from tests.tools.eventually import eventually
from tests.tools.outcomes import Outcomes
from tests.tools.tiny_onnx import write_model

X = TensorSignature("x", "f4", (None,))


class Gate(LoadedModel):
    """A model whose runs wait until they are let through, and tell in which order they began."""

    def __init__(self) -> None:
        super().__init__(ModelSpec("gate", None), ModelDigest("0" * 64), None, (X,), (X,))  # type: ignore[arg-type]
        self.began: list[float] = []
        self.entered, self.open = threading.Semaphore(0), threading.Event()

    def _compute(self, feeds: dict[str, Any], wanted: tuple[str, ...], cancel: Cancellation) -> list[Any]:
        self.began.append(float(feeds["x"][0]))
        self.entered.release()
        assert self.open.wait(30)
        return [feeds["x"]]


def numbered(number: float) -> dict[str, Any]:
    return {"x": np.full(1, number, np.float32)}


def test_waiting_jobs_leave_own_first_then_one_of_each_neighbour() -> None:
    """A neighbour with 16 jobs must not hold up one that has a single job, and none of them this node."""
    jobs: WaitingJobs[str] = WaitingJobs()
    for name, asked_by, deadline_ns in (
        ("a late", "a", 9), ("a soon", "a", 1), ("a whenever", "a", None), ("b", "b", 50), ("own 1", None, 99),
        ("own 2", None, 1),
    ):  # fmt: skip
        jobs.put(name, asked_by, deadline_ns)
    assert (len(jobs), len(list(jobs.own())), len(list(jobs.all()))) == (6, 2, 6)
    assert [jobs.take() for _ in range(6)] == ["own 2", "own 1", "a soon", "b", "a late", "a whenever"]
    with pytest.raises(KeyError):
        jobs.take()


def test_waiting_jobs_removed_are_gone_once() -> None:
    """Who cancels frees the place, whoever asked."""
    jobs: WaitingJobs[str] = WaitingJobs()
    for name, asked_by in (("own", None), ("a 1", "a"), ("a 2", "a"), ("b", "b")):
        jobs.put(name, asked_by, 1)
    for name, asked_by in (("own", None), ("a 1", "a"), ("b", "b")):
        assert jobs.remove(name, asked_by)
        assert not jobs.remove(name, asked_by)
    assert jobs.take() == "a 2"
    assert len(jobs) == 0


def test_runner_with_runs_of_neighbours_waiting_takes_its_own_first() -> None:
    """One queue for all made an own request wait for the 32 runs that neighbours had asked for."""
    runner, gate, outcomes = Runner(), Gate(), Outcomes()
    runner.submit(Job(gate, numbered(0), asked_by="a"), outcomes)
    assert gate.entered.acquire(timeout=30)
    for number, asked_by in ((1, "a"), (2, "a"), (3, "b"), (4, None)):
        runner.submit(Job(gate, numbered(number), asked_by=asked_by), outcomes)
    assert runner.waiting == 5
    gate.open.set()
    assert all(isinstance(outcome, RunDone) for outcome in outcomes.wait_for(5))
    assert gate.began == [0, 4, 1, 3, 2]
    assert runner.close()


def several(gate: Gate, *numbers: float, asked_by: str | None = "a", deadline_ns: int | None = None) -> Job:
    """A job with a run for each number."""
    first, *further = map(numbered, numbers)
    return Job(gate, first, (), deadline_ns, asked_by, tuple(further))


def test_runs_of_one_job_take_turns_with_those_of_others() -> None:
    """Eight pictures of one neighbour keep neither this node waiting nor another neighbour, for longer than one."""
    runner, gate, outcomes = Runner(), Gate(), Outcomes()
    runner.submit(several(gate, 0, 1, 2, 3), outcomes)
    assert gate.entered.acquire(timeout=30)
    runner.submit(several(gate, 4, 5), outcomes)
    runner.submit(several(gate, 6, 7, asked_by="b"), outcomes)
    runner.submit(several(gate, 8, 9, asked_by=None), outcomes)
    assert runner.waiting == 4
    gate.open.set()
    ended = outcomes.wait_for(4)
    assert gate.began == [0, 8, 9, 1, 6, 2, 7, 3, 4, 5]
    given = [[float(array[0]) for _, array in outcome.outputs] for outcome in ended if isinstance(outcome, RunDone)]
    assert given == [[8, 9], [6, 7], [0, 1, 2, 3], [4, 5]]
    assert runner.close()
    median_us = runner.median_us(gate)
    assert median_us is not None
    assert all(isinstance(each, RunDone) and each.compute_ns >= 0 and each.queued_ns >= 0 for each in ended)


@pytest.mark.parametrize("is_late", [False, True])
def test_job_that_is_cancelled_or_late_does_not_begin_its_next_run(is_late: bool) -> None:
    """Whoever took another answer needs the core, and not the other seven pictures."""
    runner, gate, outcomes = Runner(), Gate(), Outcomes()
    deadline_ns = time.monotonic_ns() + 2_000_000_000 if is_late else None
    cancel = runner.submit(several(gate, 0, 1, 2, deadline_ns=deadline_ns), outcomes)
    assert gate.entered.acquire(timeout=30)
    if deadline_ns is None:
        cancel.cancel()
    else:
        eventually(lambda: time.monotonic_ns() > deadline_ns)
    gate.open.set()
    (outcome,) = outcomes.wait_for(1)
    assert isinstance(outcome, Failed)
    assert (gate.began, outcome.cancelled, outcome.began) == ([0], not is_late, True)
    assert runner.close()
    assert runner.waiting == 0


def test_job_one_of_whose_runs_fails_has_that_error() -> None:
    """There is one answer for all of them, and it says why."""

    class Fails(Gate):
        def _compute(self, feeds: dict[str, Any], wanted: tuple[str, ...], cancel: Cancellation) -> list[Any]:
            if feeds["x"][0] == 1:
                raise InferenceError("it did not work")
            return [feeds["x"]]

    runner, gate, outcomes = Runner(), Fails(), Outcomes()
    runner.submit(several(gate, 0, 1, 2), outcomes)
    (outcome,) = outcomes.wait_for(1)
    assert isinstance(outcome, Failed)
    assert str(outcome.error) == "it did not work"
    with pytest.raises(InputInvalid, match="which is missing"):
        runner.submit(Job(gate, numbered(0), further=({},)), outcomes)
    assert runner.close()


def test_runner_whose_waiting_job_is_cancelled_lets_go_of_its_inputs_at_once() -> None:
    """A neighbour that asked and cancelled while one long run was under way filled the memory with inputs."""
    runner, gate, outcomes = Runner(), Gate(), Outcomes()
    runner.submit(Job(gate, numbered(0)), outcomes)
    assert gate.entered.acquire(timeout=30)
    seen: list[Outcome] = []
    gc.disable()
    try:
        for number in range(1_000):
            inputs = numbered(number)
            kept = weakref.ref(inputs["x"])
            runner.submit(Job(gate, inputs, asked_by="a"), seen.append).cancel()
            del inputs
            assert kept() is None, "its inputs are still held"
    finally:
        gc.enable()
    assert all(isinstance(outcome, Failed) and outcome.cancelled for outcome in seen)
    assert (len(seen), runner.waiting) == (1_000, 1)
    gate.open.set()
    assert runner.close()


def test_runner_whose_run_has_ended_lets_go_of_its_inputs_at_once() -> None:
    """The collector counts objects, not bytes. Left to it, dozens of pictures of a camera waited to be let go of."""
    runner, gate, outcomes = Runner(max_waiting=1), Gate(), Outcomes()
    gc.disable()
    try:
        inputs, refused = numbered(0), numbered(1)
        kept, not_taken = weakref.ref(inputs["x"]), weakref.ref(refused["x"])
        runner.submit(Job(gate, inputs), outcomes)
        with pytest.raises(BoundExceeded):
            runner.submit(Job(gate, refused), outcomes)
        del inputs, refused
        assert not_taken() is None
        gate.open.set()
        assert isinstance(outcomes.wait_for(1)[0], RunDone)
        outcomes.outcomes.clear()
        eventually(lambda: kept() is None, "nobody holds its inputs")
    finally:
        gc.enable()
    assert runner.close()


def test_model_whose_file_is_not_the_pinned_one_is_refused(tmp_path: Any) -> None:
    """Somebody replaced the file: the operator who pinned it wants to know before the node opens."""
    path = write_model(tmp_path / "m.onnx", [4], "Add")
    digest = load_model(ModelSpec("m", path)).digest
    assert load_model(ModelSpec("m", path, digest=digest)).digest == digest
    with pytest.raises(ModelInvalid, match=f"has the digest {digest}, not {'0' * 64}"):
        load_model(ModelSpec("m", path, digest="0" * 64))
