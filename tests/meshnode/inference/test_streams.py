"""Streams of inferences through the public API: order, back-pressure, failures, and what an early end leaves."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelSection
from protocols.base import limits
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid, LocalProtocolError, ModelUnknown
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
SIDE = 96
SLOW = InferenceSection(emulate_slowdown=1_000)
"""A run takes a fraction of a millisecond: times a thousand, something can happen meanwhile."""
WAIT_MS = 60_000
"""A deadline that no test reaches."""


@pytest.fixture(scope="module", name="models")
def given_models(house: House) -> dict[str, ModelSection]:
    """``double`` takes one number, ``work`` squares a matrix four times."""
    double = write_model(house.folder / "double.onnx", [1], "Add")
    work = write_model(house.folder / "work.onnx", [SIDE, SIDE], "MatMul", repeat=4)
    return {"double": ModelSection(path=double), "work": ModelSection(path=work)}


@pytest.fixture(name="node")
async def given_node(opened: Open, models: dict[str, ModelSection]) -> meshnode.Node:
    return await opened("veh-1", models=models)


@pytest.fixture(name="slow")
async def given_slow(opened: Open, models: dict[str, ModelSection]) -> meshnode.Node:
    return await opened("veh-1", models=models, inference=SLOW)


def number(value: float) -> dict[str, Any]:
    return {"x": np.array([value], "f4")}


def matrix() -> dict[str, Any]:
    return {"x": np.full((SIDE, SIDE), 0.01, "f4")}


def doubled(item: meshnode.StreamItem) -> float:
    return float(item.result().outputs["y"][0])


async def read_to_its_error(stream: meshnode.InferenceStream) -> tuple[list[meshnode.StreamItem], OSError | None]:
    """The items of a stream, and what its source raised then."""
    seen = []
    try:
        async for item in stream:
            seen.append(item)  # noqa: PERF401 - those before the error count
    except OSError as error:
        return seen, error
    return seen, None


def pending(node: meshnode.Node) -> tuple[int, int, int]:
    """Requests and runs in the engine, and answers that somebody waits for."""
    asking, part = node.driver.engine.inference._asking, node.part(RunningInference)
    return len(asking.requests), len(asking._runs), len(part._answers)


async def nothing_is_left(node: meshnode.Node) -> None:
    """Nothing is pending in the engine, and no task of a stream is left."""
    await until(lambda: pending(node) == (0, 0, 0), lambda: f"nothing is pending, not {pending(node)}")
    await until(lambda: not stream_tasks(), lambda: f"no task is left, not {stream_tasks()}")
    await until(lambda: node.part(RunningInference)._compute._runner.waiting == 0, "no run is held")
    assert not node.streams._flows


def stream_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("stream: ")]


# --- the way of an input ---------------------------------------------------------------------------------------------
async def test_stream_gives_every_item_in_the_order_of_the_inputs(node: meshnode.Node) -> None:
    """There are more inputs than requests may be pending: a folder of files has no bound of its own."""
    count = limits.MAX_PENDING_REQUESTS + 44
    items = [item async for item in node.infer_stream("double", (number(n) for n in range(count)))]
    assert [item.index for item in items] == list(range(count))
    assert [doubled(item) for item in items] == [2 * n for n in range(count)]
    assert {item.result().ran_on for item in items} == {"veh-1"}
    assert node.statistics()["inference_answered"] == count
    await nothing_is_left(node)


async def test_stream_of_nothing_ends_at_once(node: meshnode.Node) -> None:
    """A folder may be empty."""
    assert [item async for item in node.infer_stream("double", [])] == []
    await nothing_is_left(node)


async def test_stream_in_the_order_of_answers_does_not_wait_for_a_slow_one(slow: meshnode.Node) -> None:
    """Whoever needs no order must not pay for it: an input that fails at once overtakes one that is being computed."""
    inputs = [matrix(), {"z": 1}, {"z": 2}]
    stream = slow.infer_stream("work", inputs, order="done", deadline_ms=WAIT_MS)
    assert [item.index async for item in stream] == [1, 2, 0]
    ordered = slow.infer_stream("work", inputs, deadline_ms=WAIT_MS)
    assert [item.index async for item in ordered] == [0, 1, 2]


async def test_slow_reader_holds_the_source_back(node: meshnode.Node) -> None:
    """Memory is bounded by ``in_flight``, however fast the source is and however slow the reader."""
    pulled = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal pulled
        for n in range(100):
            pulled += 1
            yield number(n)

    async with node.infer_stream("double", source(), in_flight=3) as stream:
        assert pulled == 0, "nothing is pulled before somebody reads"
        for taken in range(1, 10):
            await anext(stream)
            await until(lambda: node.statistics()["inference_answered"] == taken + 3, "the places are taken")  # noqa: B023
            for _ in range(10):
                await asyncio.sleep(0)
            assert pulled == taken + 3
    await nothing_is_left(node)


async def test_stream_never_has_more_requests_under_way_than_it_may(slow: meshnode.Node) -> None:
    """One stream must leave places for the other requests of a node."""
    most = 0

    async def source() -> AsyncIterator[dict[str, Any]]:
        nonlocal most
        for _ in range(6):
            most = max(most, pending(slow)[0])
            yield matrix()
            await asyncio.sleep(0)

    stream = slow.infer_stream("work", source(), in_flight=2, deadline_ms=WAIT_MS, order="done")
    assert len([item.result() async for item in stream]) == 6
    assert most == 1, "when the source is asked for the last place, one request less than allowed is under way"


async def test_slow_source_does_not_hold_up_items_that_are_answered(node: meshnode.Node) -> None:
    """The frame of a camera must not wait for the next one."""
    more: asyncio.Queue[float] = asyncio.Queue()

    async def source() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield number(await more.get())

    async with node.infer_stream("double", source()) as stream:
        for value in (1.0, 2.0, 3.0):
            more.put_nowait(value)
            assert doubled(await anext(stream)) == 2 * value
    await nothing_is_left(node)


# --- failures --------------------------------------------------------------------------------------------------------
async def test_input_that_fails_is_an_item_with_its_error_and_the_stream_goes_on(node: meshnode.Node) -> None:
    """One bad frame does not end a camera."""
    inputs: list[Any] = [
        number(1), {"z": np.zeros(1, "f4")}, number(2), {"x": np.zeros(1, "f8")}, [1.0], {"x": np.array([None])},
        number(3),
    ]  # fmt: skip
    items = [item async for item in node.infer_stream("double", inputs)]
    assert [type(item.error) for item in items] == [
        type(None), InputInvalid, type(None), InputInvalid, InputInvalid, InputInvalid, type(None)
    ]  # fmt: skip
    assert [doubled(item) for item in items if item.error is None] == [2, 4, 6]
    assert "input 4 is a list" in str(items[4].error)
    with pytest.raises(InputInvalid, match="'z'"):
        items[1].result()
    await nothing_is_left(node)


async def test_late_input_is_an_item_and_the_next_one_is_computed(slow: meshnode.Node) -> None:
    """A deadline is that of one input, not of the stream."""
    stream = slow.infer_stream("work", [matrix(), matrix()], deadline_ms=20, in_flight=1)
    assert [type(item.error) async for item in stream] == [BudgetExhausted, BudgetExhausted]
    await nothing_is_left(slow)


async def test_unknown_model_is_told_with_each_item(node: meshnode.Node) -> None:
    """The neighbour that has it may come back."""
    (item,) = [item async for item in node.infer_stream("duoble", [number(1)])]
    assert isinstance(item.error, ModelUnknown)
    assert "known: double" in str(item.error)


async def test_what_the_source_raises_comes_after_the_items_before_it(node: meshnode.Node) -> None:
    """The last frames before a camera broke are not lost."""

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield number(1)
        yield number(2)
        raise OSError("the camera is gone")

    seen, error = await read_to_its_error(node.infer_stream("double", source()))
    assert ([doubled(item) for item in seen], str(error)) == ([2, 4], "the camera is gone")
    await nothing_is_left(node)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"in_flight": 0}, "in_flight 0 is out of range: use 1 to 256"),
        ({"in_flight": 257}, "in_flight 257"),
        ({"order": "newest"}, "'input' or 'done'"),
        ({"inputs": {"x": 1}}, "put it into a list, or use infer"),
        ({"inputs": 5}, "not one int"),
        ({"newest": True}, "newest=True needs an async iterable"),
    ],
)
async def test_stream_asked_for_wrongly_is_refused_at_once(
    node: meshnode.Node, options: dict[str, Any], says: str
) -> None:
    """A mistake is seen where it was made, and not when the stream is read."""
    with pytest.raises((LocalProtocolError, InputInvalid), match=says):
        node.infer_stream("double", **{"inputs": [], **options})


# --- early ends ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["closed", "left", "cancelled"])
async def test_stream_ended_in_the_middle_leaves_nothing_behind(slow: meshnode.Node, way: str) -> None:
    """What nobody will read must not be computed, and may not hold places of the engine."""

    async def read(leave: Callable[[int], bool]) -> None:
        count = 0
        async for _ in slow.infer_stream("work", (matrix() for _ in range(1_000)), in_flight=8, deadline_ms=WAIT_MS):
            count += 1
            if leave(count):
                break

    if way == "closed":
        async with slow.infer_stream("work", [matrix()] * 100, in_flight=8, deadline_ms=WAIT_MS) as stream:
            await anext(stream)
            assert pending(slow)[0] > 1
        assert pending(slow) == (0, 0, 0), "at once"
    elif way == "left":
        await read(lambda count: count == 2)
    else:
        reading = asyncio.create_task(read(lambda _: False))
        await until(lambda: pending(slow)[0] == 8, "all places are taken")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert pending(slow) == (0, 0, 0), "at once"
    await nothing_is_left(slow)
    asked, answered = (slow.statistics()[f"inference_{name}"] for name in ("asked", "answered"))
    assert answered < asked < 20, "what was under way was cancelled, and not computed to its end"


async def test_stream_that_was_never_read_holds_nothing(node: meshnode.Node) -> None:
    """A program may change its mind."""
    stream = node.infer_stream("double", [number(1)])
    await stream.aclose()
    assert [item async for item in stream] == []
    del stream
    node.infer_stream("double", [number(1)])
    gc.collect()
    assert node.statistics()["inference_asked"] == 0


@pytest.mark.parametrize("place", ["under way", "source", "reader"])
async def test_node_closed_in_the_middle_ends_the_stream_with_a_clear_error(
    house: House, models: dict[str, ModelSection], place: str
) -> None:
    """Whatever the stream waits for, nobody may wait for ever."""
    never = asyncio.Event()

    async def source() -> AsyncIterator[dict[str, Any]]:
        for _ in range(2 if place == "source" else 1_000):
            yield number(1) if place == "source" else matrix()
        await never.wait()

    read = asyncio.Event()
    node: meshnode.Node

    async def reading(model: str) -> None:
        async for _ in node.infer_stream(model, source(), deadline_ms=WAIT_MS):
            read.set()
            if place == "reader":
                await closed.wait()

    closed = asyncio.Event()
    async with meshnode.open(house.config("veh-2", models=models, inference=SLOW)) as node:
        task = asyncio.create_task(reading("double" if place == "source" else "work"))
        await read.wait()
        if place == "source":
            await until(lambda: node.statistics()["inference_answered"] == 2, "the source is waited for")
    closed.set()
    with pytest.raises(InferenceError, match="the node veh-2 closed while a stream of inferences was being read"):
        await asyncio.wait_for(task, 30)
    assert pending(node) == (0, 0, 0)
    assert not stream_tasks()
    with pytest.raises(LocalProtocolError, match="not running"):
        node.infer_stream("double", [])


# --- the newest ------------------------------------------------------------------------------------------------------
async def test_newest_input_replaces_those_that_wait_and_they_are_counted(slow: meshnode.Node) -> None:
    """A camera that is faster than the model must not be seen later and later."""
    shown = asyncio.Event()

    async def camera() -> AsyncIterator[dict[str, Any]]:
        yield matrix()
        await until(lambda: pending(slow)[0] == 1, "the first frame is under way")
        for _ in range(9):
            yield matrix()
        shown.set()

    indices = []
    async with slow.infer_stream("work", camera(), in_flight=1, newest=True, deadline_ms=WAIT_MS) as stream:
        async for item in stream:
            await shown.wait()
            item.result()
            indices.append(item.index)
    assert indices == [0, 9]
    assert stream.dropped == 8
    await nothing_is_left(slow)


async def test_newest_of_a_source_that_fails_gives_the_last_input_first(node: meshnode.Node) -> None:
    """What a source raises must not be lost because somebody reads it beside the stream."""

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield number(1)
        yield number(2)
        raise OSError("the camera is gone")

    seen, error = await read_to_its_error(node.infer_stream("double", source(), newest=True))
    assert (seen[-1].index, str(error)) == (1, "the camera is gone")
    await nothing_is_left(node)


async def test_newest_left_in_the_middle_stops_reading_its_source(node: meshnode.Node) -> None:
    """A camera that nobody looks at must not be read on."""
    ended = asyncio.Event()

    async def camera() -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield number(1)
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with node.infer_stream("double", camera(), newest=True) as stream:
        await anext(stream)
    await asyncio.wait_for(ended.wait(), 30)
    await nothing_is_left(node)
