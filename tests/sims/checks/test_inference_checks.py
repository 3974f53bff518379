"""The checks of inference on single answers and requests: what they accept, and what they don't."""

from typing import Any

import pytest

from protocols.base.ids import NodeId
from protocols.inference.events import Answered, PartReport, RunReport
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of
from sims.checks.contract import INPUT, computed_from, computed_rows, make_checks, steps_of
from sims.results.recorder import Recording
from sims.results.result import Result
from sims.scenario.file import Cut, Fixed, Group, Inference, Scenario

SCENARIO = Scenario(
    "cut", "One vehicle", 10.0, (Group("car", 1, Fixed(((0.0, 0.0),)), accept_stages=True),),
    inference=(Inference("car", cuts=(Cut(0.5, 200),), private=True, split="off"), Inference("car"),
               Inference("car", rows=4)),
)  # fmt: skip
IMAGE = (NamedTensor(INPUT, tensor_of(b"picture 1".ljust(1_000, b"."))),)
STAGED = (
    PartReport("stage", 0, NodeId("car-0"), 5, 0, 5, 1_000, 200),
    PartReport("stage", 1, NodeId("b"), 5, 0, 5, 200, 50),
)
RIGHT = computed_from(IMAGE, 50, steps_of("model-0", 1))


class Alone:
    """A world of which nothing but its scenario is looked at."""

    scenario = SCENARIO
    now = 0


def judged(name: str, *happened: tuple[str, tuple[Any, ...]]) -> Result:
    """What a check says of what happened: names of hooks, and what they are given."""
    recording = Recording(SCENARIO)
    world: Any = Alone()
    (check,) = make_checks([name], world, recording)
    for hook, given in happened:
        getattr(check, hook)(*given)
    return recording.result("simulator", 1, 1.0, 1.0)


def asked(
    model: str = "model-0", number: int = 1, inputs: tuple[NamedTensor, ...] = IMAGE
) -> tuple[str, tuple[Any, ...]]:
    return "asked", ("car-0", number, inputs, 1_000, model)


def answered(output: bytes, parts: tuple[PartReport, ...] = ()) -> tuple[str, tuple[Any, ...]]:
    winner, outputs = RunReport(NodeId("b"), "done", 10, 0, 5), (NamedTensor("y", tensor_of(output)),)
    return "answered", ("car-0", Answered(1, winner, outputs, (winner,), 10, model="model-0", parts=parts))


@pytest.mark.parametrize(("output", "parts", "kept"), [
    (RIGHT, (), True),
    (RIGHT, STAGED, True),
    (computed_from(IMAGE, 50), STAGED, False),
    (computed_from(IMAGE, 50, steps_of("model-0", 1)[:1]), STAGED, False),
    (computed_from(IMAGE, 50, steps_of("model-0", 1)[::-1]), STAGED, False),
    (RIGHT, STAGED[:1], False),
    (RIGHT, STAGED[::-1], False),
    (RIGHT, (STAGED[0], STAGED[0], STAGED[1]), False),
])  # fmt: skip
def test_answer_of_a_pipeline_has_to_show_each_step_and_each_stage_once(
    output: bytes, parts: tuple[PartReport, ...], kept: bool
) -> None:
    """The result proves what ran, and what is told of it has to agree."""
    tally = judged("answer_is_right", asked(), answered(output, parts)).checks["answer_is_right"]
    assert (tally.passed, tally.failed) == (int(kept), int(not kept))


ROWS = (NamedTensor(INPUT, Tensor("u1", (4, 100), memoryview(b"".join(bytes([row]) * 100 for row in range(4))))),)
"""Four rows."""


def shard(index: int, rows: int) -> PartReport:
    """A shard of a batch whose outputs have ten bytes a row."""
    return PartReport("shard", index, NodeId("b"), 5, 0, 5, rows * 100, rows * 10, size=rows)


@pytest.mark.parametrize(("output", "parts", "kept"), [
    (computed_rows(4, ROWS, 10), (shard(0, 2), shard(1, 2)), True),
    (computed_rows(4, ROWS, 10), (shard(0, 2), shard(0, 2)), False),
    (computed_rows(4, ROWS, 10), (shard(1, 2), shard(0, 2)), False),
    (computed_rows(4, ROWS, 10), (shard(0, 2), shard(1, 1)), False),
    (computed_rows(4, ROWS, 10)[::-1], (shard(0, 2), shard(1, 2)), False),
])  # fmt: skip
def test_answer_of_a_batch_has_to_have_each_row_in_its_place(
    output: bytes, parts: tuple[PartReport, ...], kept: bool
) -> None:
    """Rows of another shard are results of the same model and the same request."""
    tally = judged("answer_is_right", asked("model-2", inputs=ROWS), answered(output, parts)).checks["answer_is_right"]
    assert (tally.passed, tally.failed) == (int(kept), int(not kept))


@pytest.mark.parametrize(("model", "name", "data", "kept"), [
    ("model-0:0123456789abcdef", "cut-0", RIGHT, True),
    ("model-0", INPUT, b"anything", False),
    ("model-0:0123456789abcdef", INPUT, b"anything", False),
    ("model-0:0123456789abcdef", "cut-0", bytes(IMAGE[0].tensor.data), False),
    ("model-1", INPUT, bytes(IMAGE[0].tensor.data), False),
    ("model-1", INPUT, b"of another model", None),
])  # fmt: skip
def test_request_that_carries_a_private_input_is_noticed_whatever_it_asks_for(
    model: str, name: str, data: bytes, kept: bool | None
) -> None:
    """An input under another name, or for another model, has left all the same."""
    sent = "request_sent", ("car-0", model, (NamedTensor(name, tensor_of(data)),))
    checks = judged("private_inputs_stay", asked(), asked("model-1", 2, ()), sent).checks
    tally = checks.get("private_inputs_stay")
    assert (tally and (tally.passed, tally.failed)) == (None if kept is None else (int(kept), int(not kept)))
