"""What a neighbour with a valid certificate does to the inferences of others when it lies: real nodes on real links."""

import asyncio
import http.client
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.http.section import HttpSection
from meshnode.inference.result import InferenceResult
from meshnode.inference.section import InferenceSection, ModelSection
from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base.errors import InferenceError, InputInvalid, NeighbourFailed
from protocols.base.ids import Role
from protocols.inference.events import Compute
from protocols.inference.placement import LocalModel
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house"]
pytestmark = pytest.mark.processes
SLOW = InferenceSection(emulate_slowdown=100)
NAN = float("nan")
ONES = np.ones((2, 4), "f4")
Lie = Callable[[Compute], InferAnswer]


def done(*outputs: tuple[str, Any]) -> Lie:
    """An answer with these outputs, computed in no time."""
    tensors = tuple(NamedTensor(name, tensor_of(array)) for name, array in outputs)
    return lambda _: InferAnswer(0, "done", tensors, 0, 1)


LIES = {
    "nothing": done(),
    "another shape": done(("y", np.full((7, 3), NAN, "f4"))),
    "another batch": done(("y", np.full((5, 4), NAN, "f4"))),
    "another type": done(("y", np.zeros((2, 4), "f8"))),
    "another name": done(("z", np.zeros((2, 4), "f4"))),
    "one too many": done(("y", np.zeros((2, 4), "f4")), ("z", np.zeros(1, "f4"))),
    "a false complaint": lambda _: InferAnswer(0, "invalid", detail="your inputs are wrong"),
    "a false refusal": lambda _: InferAnswer(0, "unknown", detail="never heard of it"),
}


class Liars:
    """Opens honest nodes and liars of one mesh."""

    def __init__(self, house: House, stack: AsyncExitStack) -> None:
        self._house, self._stack = house, stack
        self.path = write_model(house.folder / "double.onnx", ["batch", 4], "Add")
        self.models = {"double": ModelSection(path=self.path)}

    async def honest(self, node: str, *seeds: int, **options: Any) -> meshnode.Node:
        """An honest node with an HTTP API."""
        config = self._house.config(node, *seeds, **options).with_sections(HttpSection(port=0))
        return await self._stack.enter_async_context(meshnode.open(config))

    async def liar(self, node: str, digest: str, lie: Lie, *seeds: int) -> meshnode.Node:
        """A neighbour that offers ``double`` at a microsecond, and answers as ``lie`` says."""
        liar = await self._stack.enter_async_context(meshnode.open(self._house.config(node, *seeds, role="rsu")))

        def answer(effect: Compute) -> None:
            liar.driver.act(lambda engine, now: engine.inference.computed(effect.run, lie(effect), now))

        liar.driver._performers[Compute] = answer
        claimed = (LocalModel("double", digest, 1_000, 0, True),)
        liar.driver.act(lambda engine, now: engine.inference.set_models(claimed, now))
        return liar


@pytest.fixture(name="liars")
async def given_liars(house: House) -> AsyncIterator[Liars]:
    async with AsyncExitStack() as stack:
        yield Liars(house, stack)


async def offered(node: meshnode.Node, *by: str) -> None:
    """Until those neighbours, and no others, have offered ``double``."""

    def offering() -> set[str]:
        return {peer.node for peer in node.peers() if peer.met and any(o.model == "double" for o in peer.offers)}

    await until(lambda: offering() == set(by), f"offers of {by}")


def post(node: meshnode.Node, content: Any) -> tuple[int, Any]:
    """Ask the node's HTTP API for an inference."""
    return ask(node, "POST", "/v2/models/double/infer", json.dumps(content))


def ask(node: meshnode.Node, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    """Status and content of an answer of the node's HTTP API."""
    connection = http.client.HTTPConnection("127.0.0.1", node.http_port or 0, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


REQUEST = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ONES.ravel().tolist()}],
    "outputs": [{"name": "y"}],
}


@pytest.mark.parametrize("lie", LIES)
async def test_neighbour_that_lies_about_a_result_is_not_believed_and_not_asked_again(liars: Liars, lie: str) -> None:
    """It claimed our model at 1 µs: its answers won every time, whatever was in them."""
    rsu = await liars.honest("rsu-1", role="rsu", models=liars.models, inference=SLOW)
    digest = rsu.models["double"].digest
    liar = await liars.liar("rsu-2", digest, LIES[lie], rsu.port)
    vehicle = await liars.honest("veh-1", rsu.port, liar.port, models=liars.models, inference=SLOW)
    await offered(vehicle, "rsu-1", "rsu-2")
    results: list[InferenceResult] = []
    asked: list[int] = []
    # On a busy machine the way to the liar looks longer than its claim is short until it has been measured again.
    enough_s = time.monotonic() + 60
    while len(results) < 20 or (not asked and time.monotonic() < enough_s):
        results.append(await vehicle.infer("double", {"x": ONES}, deadline_ms=10_000, hedge=False))
        if "rsu-2" in {run.node for run in results[-1].attempts}:
            asked.append(len(results))
    assert all(np.array_equal(result.outputs["y"], ONES + ONES) for result in results)
    # The pauses double, so the number grows only with the logarithm of the time that a busy machine takes.
    assert 1 <= len(asked) <= 10, f"it was asked for the requests {asked}"
    status, answer = await asyncio.to_thread(post, vehicle, REQUEST)
    assert (status, answer["outputs"][0]["data"]) == (200, [2.0] * 8)


@pytest.mark.parametrize("lie", ["nothing", "another name", "a false refusal"])
async def test_http_request_that_only_a_liar_could_compute_is_a_bad_gateway(liars: Liars, lie: str) -> None:
    """An error of 500 says that this node is broken, and a supervisor would restart it."""
    liar = await liars.liar("rsu-2", "a" * 64, LIES[lie])
    vehicle = await liars.honest("veh-1", liar.port)
    await offered(vehicle, "rsu-2")
    for _ in range(3):
        status, answer = await asyncio.to_thread(post, vehicle, REQUEST)
        assert (status, "rsu-2" in answer["error"]) == (502, True), answer
    with pytest.raises(NeighbourFailed):
        await vehicle.infer("double", {"x": ONES}, outputs=("y",))


async def test_http_request_whose_only_neighbour_calls_it_invalid_is_told_so(liars: Liars) -> None:
    """With nobody else to ask, the neighbour's word is all there is; alone it can't end a request that others take."""
    liar = await liars.liar("rsu-2", "a" * 64, LIES["a false complaint"])
    vehicle = await liars.honest("veh-1", liar.port)
    await offered(vehicle, "rsu-2")
    with pytest.raises(InputInvalid, match="your inputs are wrong"):
        await vehicle.infer("double", {"x": ONES})


async def test_neighbour_that_answers_nothing_at_all_costs_a_bounded_delay(liars: Liars) -> None:
    """It holds every request for as long as it is believed; the others have to take over soon, and then at once."""
    rsu = await liars.honest("rsu-1", role="rsu", models=liars.models)
    liar = await liars.liar("rsu-2", rsu.models["double"].digest, LIES["nothing"], rsu.port)
    liar.driver._performers[Compute] = lambda effect: None
    vehicle = await liars.honest("veh-1", rsu.port, liar.port)
    await offered(vehicle, "rsu-1", "rsu-2")
    results = [await vehicle.infer("double", {"x": ONES}, deadline_ms=10_000) for _ in range(30)]
    assert {result.ran_on for result in results} == {"rsu-1"}
    asked_first = [result.attempts[-1].node == "rsu-2" for result in results]
    assert sum(asked_first) <= 8, asked_first


async def test_model_that_is_pinned_takes_answers_of_that_file_only(liars: Liars) -> None:
    """Without the file a node believed the digest that most neighbours name, or the smallest one."""
    rsu = await liars.honest("rsu-1", role="rsu", models=liars.models)
    digest = rsu.models["double"].digest
    liar = await liars.liar("rsu-2", "0" * 64, LIES["another shape"], rsu.port)
    other = await liars.liar("rsu-3", "0" * 64, LIES["another shape"], rsu.port)
    pinned = {"double": ModelSection(digest=digest)}
    vehicle = await liars.honest("veh-1", rsu.port, liar.port, other.port, models=pinned)
    await offered(vehicle, "rsu-1", "rsu-2", "rsu-3")
    for _ in range(3):
        result = await vehicle.infer("double", {"x": ONES})
        assert [run.node for run in result.attempts] == ["rsu-1"]
        assert np.array_equal(result.outputs["y"], ONES + ONES)
    _, told = await asyncio.to_thread(ask, vehicle, "GET", "/v2/models/double")
    assert (told["parameters"]["digest"], told["parameters"]["offered_by"]) == (digest, "rsu-1")


async def test_offers_of_a_role_that_may_not_offer_are_not_taken(liars: Liars) -> None:
    """An operator who trusts roadside units only must be able to say so."""
    rules = (*(rule for rule in DEFAULT_RULES if rule.verb != "offer"), AccessRule(Role.VEHICLE, "offer", "**"))
    liar = await liars.liar("rsu-2", "0" * 64, LIES["nothing"])
    helper = await liars.honest("veh-2", liar.port, models=liars.models)
    vehicle = await liars.honest("veh-1", liar.port, helper.port, rules=rules)
    await offered(vehicle, "veh-2")
    await until(lambda: len([peer for peer in vehicle.peers() if peer.met]) == 2, "both have been met")
    assert (await vehicle.infer("double", {"x": ONES})).ran_on == "veh-2"
    assert ("rsu-2", "", "offer_not_permitted") in {entry for entry, _ in vehicle.drops()}


async def test_neighbour_whose_answer_was_wrong_is_named(liars: Liars) -> None:
    """An operator has to see who lies, and about what."""
    liar = await liars.liar("rsu-2", "a" * 64, LIES["nothing"])
    vehicle = await liars.honest("veh-1", liar.port)
    await offered(vehicle, "rsu-2")
    with pytest.raises(InferenceError, match="rsu-2"):
        await vehicle.infer("double", {"x": ONES})
    assert (("rsu-2", "double", "wrong_answer"), 1) in vehicle.drops()
