"""Inference through the public API: here, at a neighbour, and when neighbours are slow, stop, leave or are killed."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.config.sections import MembershipSection
from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelSection
from protocols.access import DEFAULT_RULES
from protocols.base import limits
from protocols.base.errors import BoundExceeded, BudgetExhausted, InferenceError, InputInvalid, ModelUnknown
from protocols.base.ids import Lane
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Member, Open, given_house, given_opened
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
SIDE = 96
SLOW = InferenceSection(emulate_slowdown=1_000)
"""The work takes a fraction of a millisecond: times a thousand, something can happen meanwhile."""


@pytest.fixture(scope="module", name="model")
def given_model(house: House) -> dict[str, ModelSection]:
    """``work`` squares a matrix four times."""
    path = write_model(house.folder / "work.onnx", [SIDE, SIDE], "MatMul", repeat=4)
    return {"work": ModelSection(path=path)}


@pytest.fixture(name="started")
def given_started(house: House, model: dict[str, ModelSection]) -> Iterator[Callable[..., Member]]:
    """Start an RSU that offers ``work`` as a process, to be stopped and killed."""
    with ExitStack() as stack:

        def start(node: str, slowdown: float, path: Path | None = model["work"].path) -> Member:
            tables = (
                f'[discovery]\nmdns = false\n[models.work]\npath = "{path}"\n'
                f"[inference]\nemulate_slowdown = {slowdown}\n"
            )
            member = stack.enter_context(Member(house.file(node, tables, role="rsu")))
            member.wait_for("up")
            return member

        yield start


@pytest.fixture(name="matrix")
def given_matrix() -> Any:
    return np.random.default_rng(3).standard_normal((SIDE, SIDE), dtype="f4") * 0.1


async def offered(node: meshnode.Node, count: int = 1, model: str = "work") -> None:
    """Until so many neighbours have told ``node`` that they compute ``model``."""

    def offers() -> int:
        return sum(offer.model == model and peer.met for peer in node.peers() for offer in peer.offers)

    await until(lambda: offers() == count, f"{count} offers of {model}")


async def serving(node: meshnode.Node, count: int) -> None:
    """Until so many runs are held there."""
    await until(lambda: node.part(RunningInference)._compute._runner.waiting == count, f"{count} runs at {node.id}")


async def test_infer_here_and_at_a_neighbour_give_the_same_bits(
    house: House, model: dict[str, ModelSection], matrix: Any
) -> None:
    """Where it is computed is the mesh's business: the application must not see it in the answer."""
    results = []
    for rsu, vehicle in (("express", "express"), ("nng", "express"), ("express", "nng")):
        async with AsyncExitStack() as stack:
            config = house.config("rsu-1", role="rsu", engine=rsu, models=model)
            here = await stack.enter_async_context(meshnode.open(config))
            there = await stack.enter_async_context(meshnode.open(house.config("veh-1", here.port, engine=vehicle)))
            await offered(there)
            results += [
                await here.infer("work", {"x": matrix}),
                await there.infer("work", {"x": matrix}, outputs=("y",)),
            ]
            assert [run.outcome for run in results[-1].attempts] == ["done"]
    assert {result.ran_on for result in results} == {"rsu-1"}
    assert len({result.outputs["y"].tobytes() for result in results}) == 1
    assert results[0].outputs["y"] == pytest.approx(np.linalg.matrix_power(matrix, 16), abs=1e-4)
    assert all(0 < result.compute_ms <= result.took_ms for result in results)


async def test_infer_of_megabytes_goes_by_the_bulk_lane_both_ways(opened: Open, house: House) -> None:
    """A picture on the way to an RSU may not hold up heartbeats and hazards."""
    path = write_model(house.folder / "double.onnx", ["n"], "Add")
    here = await opened("rsu-1", role="rsu", models={"double": ModelSection(path=path, warm_up={"x": (8,)})})
    there = await opened("veh-1", here.port)
    await offered(there, model="double")
    array = np.random.default_rng(5).random(750_000, dtype="f4")
    result = await there.infer("double", {"x": array}, deadline_ms=10_000)
    assert result.outputs["y"].tobytes() == (array + array).tobytes()
    assert all(Lane.BULK in node.peers()[0].lanes for node in (here, there))


async def test_infer_prefers_the_neighbour_only_when_that_is_faster(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """A neighbour never makes the caller slower than doing it alone; a slow computer is helped."""
    between = InferenceSection(emulate_slowdown=30)  # noise of a busy machine is less than the steps between them
    rsu = await opened("rsu-1", role="rsu", models=model, inference=between)
    slow = await opened("veh-1", rsu.port, models=model, inference=SLOW)
    fast = await opened("veh-2", rsu.port, models=model)
    await offered(slow)
    await offered(fast)
    assert (await slow.infer("work", {"x": matrix}, hedge=False)).ran_on == "rsu-1"
    assert (await fast.infer("work", {"x": matrix}, hedge=False)).ran_on == "veh-2"


async def test_infer_of_an_unknown_model_lists_those_that_are_known(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """A typing mistake must be seen at once, without a time-out."""
    rsu = await opened("rsu-1", role="rsu", models=model)
    vehicle = await opened("veh-1", rsu.port)
    await offered(vehicle)
    with pytest.raises(ModelUnknown, match="no model 'wrok' here or at a neighbour; known: work"):
        await vehicle.infer("wrok", {"x": matrix})


async def test_infer_with_wrong_inputs_names_them_wherever_the_model_is(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """The caller's mistake is told as such, and not tried at one neighbour after the other."""
    rsu = await opened("rsu-1", role="rsu", models=model)
    vehicle = await opened("veh-1", rsu.port)
    await offered(vehicle)
    for node in (rsu, vehicle):
        for inputs, says in (
            ({"z": matrix}, "z"), ({"x": matrix[:3]}, "x"), ({"x": matrix.astype("f8")}, "x"), ({}, "x"),
            ({"x": matrix, "more": matrix}, "more"),
        ):  # fmt: skip
            with pytest.raises(InputInvalid, match=says):
                await node.infer("work", inputs)
        with pytest.raises(InferenceError, match="nothing"):
            await node.infer("work", {"x": matrix}, outputs=("nothing",))
        assert (await node.infer("work", {"x": matrix})).ran_on == "rsu-1", "it goes on"


async def test_infer_not_permitted_is_refused_by_who_would_compute(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """An RSU's processor is not for everybody."""
    rules = tuple(rule for rule in DEFAULT_RULES if rule.verb != "infer")
    rsu = await opened("rsu-1", role="rsu", models=model, rules=rules)
    vehicle = await opened("veh-1", rsu.port)
    await offered(vehicle)
    with pytest.raises(InferenceError, match="may not compute 'work' for veh-1"):
        await vehicle.infer("work", {"x": matrix})


@pytest.mark.parametrize("where", ["here", "there"])
async def test_infer_past_its_deadline_fails_then_and_frees_the_worker(
    opened: Open, model: dict[str, ModelSection], matrix: Any, where: str
) -> None:
    """A late answer is no answer, and its run must not delay the next request."""
    rsu = await opened("rsu-1", role="rsu", models=model, inference=SLOW)
    node = rsu if where == "here" else await opened("veh-1", rsu.port)
    if node is not rsu:
        await offered(node)
    with pytest.raises(BudgetExhausted, match=r"deadline|budget"):
        await node.infer("work", {"x": matrix}, deadline_ms=30)
    await serving(rsu, 0)
    assert (await node.infer("work", {"x": matrix}, deadline_ms=30_000)).ran_on == "rsu-1"


async def test_infer_cancelled_by_its_caller_is_cancelled_at_the_neighbour(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """Who hangs up must not keep a neighbour computing for nobody."""
    rsu = await opened("rsu-1", role="rsu", models=model, inference=SLOW)
    vehicle = await opened("veh-1", rsu.port)
    await offered(vehicle)
    tasks = [asyncio.create_task(vehicle.infer("work", {"x": matrix}, deadline_ms=60_000)) for _ in range(3)]
    await serving(rsu, 3)
    (measured,) = rsu.part(RunningInference)._compute._runner._costs._times_us.values()
    before = len(measured)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    await serving(rsu, 0)
    assert len(measured) <= before + 1, "those that waited were not run, and the one under way hardly to its end"


async def test_requests_beyond_the_bound_are_refused_and_the_others_end(
    opened: Open, model: dict[str, ModelSection], matrix: Any
) -> None:
    """An application that asks faster than anybody computes gets an error, not a full memory."""
    node = await opened("veh-1", models=model, inference=SLOW)

    def asked(count: int) -> list[asyncio.Task[meshnode.InferenceResult]]:
        return [asyncio.create_task(node.infer("work", {"x": matrix}, deadline_ms=600_000)) for _ in range(count)]

    held = asked(limits.MAX_PENDING_REQUESTS)
    await until(lambda: node.statistics()["inference_asked"] == len(held), "all are under way")
    more = asked(20)
    await until(lambda: sum(task.done() for task in more) >= 10, "at most those few that ended have made room")
    refused = [str(task.exception()) for task in more if task.done()]
    assert all("wait for answers" in told for told in refused)
    for task in (*held, *more):
        task.cancel()
    ends = await asyncio.gather(*held, *more, return_exceptions=True)
    assert {type(end) for end in ends} <= {meshnode.InferenceResult, asyncio.CancelledError, BoundExceeded}
    assert (await node.infer("work", {"x": matrix}, deadline_ms=30_000)).ran_on == "veh-1"


async def test_node_closed_with_requests_in_flight_answers_each_with_an_error(
    opened: Open, house: House, model: dict[str, ModelSection], matrix: Any
) -> None:
    """Nobody may wait for ever: neither at the node that closes nor at the neighbour that it computed for."""
    async with meshnode.open(house.config("rsu-1", role="rsu", models=model, inference=SLOW)) as rsu:
        vehicle = await opened("veh-1", rsu.port)
        await offered(vehicle)
        tasks = [asyncio.create_task(node.infer("work", {"x": matrix}, deadline_ms=60_000)) for node in (rsu, vehicle)]
        await serving(rsu, 2)
    for end in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30):
        assert isinstance(end, InferenceError)
        assert not isinstance(end, BudgetExhausted)


async def test_neighbour_killed_during_an_inference_is_replaced_by_another(
    opened: Open, started: Callable[..., Member], matrix: Any
) -> None:
    """A request must survive any node but its own: SIGKILL of the helper costs time, not the answer."""
    better, worse = await asyncio.gather(
        asyncio.to_thread(started, "rsu-1", 1_000.0), asyncio.to_thread(started, "rsu-2", 1.0)
    )
    vehicle = await opened("veh-1", better.port)
    await offered(vehicle)
    for _ in range(10):  # the neighbour may have answered before it is stopped
        before = better.ask("statistics")["inference_served"]
        asked = asyncio.create_task(vehicle.infer("work", {"x": matrix}, deadline_ms=60_000, hedge=False))
        await until(lambda: better.ask("statistics")["inference_served"] > before, "the first neighbour computes")  # noqa: B023
        better.send(signal.SIGSTOP)
        await until(lambda: _has_stopped(better.process.pid), "all of its threads have stopped")
        await asyncio.wait((asked,), timeout=0.2)  # for an answer that is on its way
        if not asked.done():
            break
        better.send(signal.SIGCONT)
    at = (("127.0.0.1", worse.port),)
    vehicle.driver.act(lambda engine, now: engine.membership.hint("later", None, at, now))
    await offered(vehicle, 2)
    better.send(signal.SIGKILL)
    result = await asked
    assert result.ran_on == "rsu-2"
    assert [(run.node, run.outcome) for run in result.attempts] == [("rsu-1", "dead"), ("rsu-2", "done")]
    assert vehicle.statistics()["inference_replayed"] == 1


async def test_neighbour_that_leaves_during_an_inference_is_replaced_at_once(
    opened: Open, started: Callable[..., Member], house: House, matrix: Any
) -> None:
    """A goodbye needs no time-out: this node computes itself. The work is long, so that it comes before the answer."""
    long = write_model(house.folder / "long.onnx", [SIDE, SIDE], "MatMul", repeat=30)
    member = await asyncio.to_thread(started, "rsu-1", 300.0, long)
    vehicle = await opened("veh-1", member.port, models={"work": ModelSection(path=long)}, inference=SLOW)
    await offered(vehicle)
    for _ in range(10):  # on a busy machine the way to the neighbour may look too long, and the node computes itself
        before = member.ask("statistics")["inference_served"]  # one that it had answered says nothing of the next one
        asked = asyncio.create_task(vehicle.infer("work", {"x": matrix}, deadline_ms=100_000, hedge=False))
        await until(
            lambda: asked.done() or member.ask("statistics")["inference_served"] > before,  # noqa: B023
            "somebody computes",
        )
        if not asked.done():
            break
    member.send(signal.SIGTERM)
    result = await asked
    assert result.ran_on == "veh-1"
    assert result.attempts[0].node == "rsu-1"
    assert result.attempts[0].outcome in ("dead", "failed")


def _has_stopped(process_id: int) -> bool:
    """Whether no thread of a process runs any more. A busy machine takes a while to stop them all."""
    states = [
        path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{process_id}/task").glob("*/stat")
    ]
    return set(states) == {"T"}


async def test_neighbour_that_stalls_is_hedged_and_its_late_answer_is_harmless(
    opened: Open, started: Callable[..., Member], model: dict[str, ModelSection], matrix: Any
) -> None:
    """A stopped process still holds its links: waiting for its death would cost seconds, a hedge milliseconds."""
    member = await asyncio.to_thread(started, "rsu-1", 1.0)
    patient = MembershipSection(suspect_after_silence_ms=60_000)  # the run may take long, and so may a stall
    vehicle = await opened("veh-1", member.port, models=model, inference=SLOW, membership=patient)
    await offered(vehicle)
    assert (await vehicle.infer("work", {"x": matrix}, hedge=False)).ran_on == "rsu-1"
    member.send(signal.SIGSTOP)
    await until(lambda: _has_stopped(member.process.pid), "all of its threads have stopped")
    try:
        result = await vehicle.infer("work", {"x": matrix}, deadline_ms=20_000)
    finally:
        member.send(signal.SIGCONT)
    assert result.ran_on == "veh-1"
    assert [(run.node, run.outcome) for run in result.attempts] == [("veh-1", "done"), ("rsu-1", "cancelled")]
    assert vehicle.statistics()["inference_hedged"] == 1
    await until(lambda: vehicle.peers()[0].met and vehicle.peers()[0].silent_ns < limits.SECOND, "it is back")
    assert vehicle.statistics()["deaths"] == 0
    assert (await vehicle.infer("work", {"x": matrix}, deadline_ms=20_000)).outputs["y"].shape == (SIDE, SIDE)
