"""The relay computes for nodes: real nodes, a real relay, real models in worker processes of their own."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import numpy as np
import pytest

import meshnode
from demo.processes import free_port
from meshnode.asking import computing
from meshnode.asking.running import RunningAsking
from meshnode.http.section import HttpSection
from meshnode.identity import issue
from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.links.nng.library import open_requester, open_responder
from meshnode.links.transport import Address
from meshnode.records.section import RelaySection
from protocols.base.errors import BudgetExhausted, ModelUnknown, NeighbourFailed
from protocols.base.ids import MeshName, PeerIdentity, Role
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.inference import InferAnswer, InferRequest, Offer, Offers, OffersAsked, OffersTold
from protocols.wire.records import RelayRefusal
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.node_fixture import meshnode as run
from tests.tools.relay_fixture import RelayProcess
from tests.tools.relay_http_fixture import asked
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house"]
pytestmark = pytest.mark.processes
ONES: Final = np.ones((2, 4), "f4")
QUICK: Final = np.eye(4, dtype="f4")
SLOW: Final = np.eye(400, dtype="f4")
"""For ``powers``, whose time grows with the third power of the size of its input."""
PATIENT_MS: Final = 60_000
CONFIG: Final = """
[relay]
id = "relay-1"
host = "127.0.0.1"
port = 0

[http]
port = 0

[models.double]
path = "double.onnx"

[models.powers]
path = "powers.onnx"

[access]
rules = [
  { role = "vehicle", verb = "publish", keys = "veh/{id}/**" },
  { role = "vehicle", verb = "infer", keys = "*" },
  { role = "rsu", verb = "infer", keys = "powers" },
]
"""


@pytest.fixture(name="models", scope="module")
def given_models(house: House) -> dict[str, ModelSection]:
    double = write_model(house.folder / "double.onnx", ["batch", 4], "Add")
    powers = write_model(house.folder / "powers.onnx", ["n", "n"], "MatMul", repeat=400)
    return {"double": ModelSection(path=double), "powers": ModelSection(path=powers)}


@contextmanager
def a_relay(house: House, port: int = 0) -> Iterator[RelayProcess]:
    (house.folder / "relay.toml").write_text(CONFIG.replace("port = 0", f"port = {port}", 1))
    with RelayProcess(house.folder, house.mesh) as relay:
        yield relay


@pytest.fixture(name="relay", scope="module")
def given_relay(house: House, models: dict[str, ModelSection]) -> Iterator[RelayProcess]:
    with a_relay(house) as relay:
        yield relay


@asynccontextmanager
async def node(house: House, address: Address, name: str, *infer: str, **of: Any) -> AsyncIterator[meshnode.Node]:
    config = house.config(name, **of).with_sections(RelaySection(address=address, infer=infer), HttpSection(port=0))
    async with meshnode.open(config) as opened:
        yield opened


async def offers(of: meshnode.Node, *models: str) -> None:
    """Until the relay offers these models, and no others."""

    def offered() -> bool:
        told = computing_of(of).told
        return {each.model for each in (() if told is None else told[0].offers.offers)} == set(models)

    await until(offered, f"the relay offers {models}")


def computing_of(of: meshnode.Node) -> computing.RelayComputing:
    made = of.part(RunningAsking)._computing
    assert made is not None
    return made


async def loaded(of: meshnode.Node) -> None:
    await until(lambda: "double" in of.part(RunningInference).models, "the node has loaded its model")


async def ran_on(of: meshnode.Node, **how: Any) -> str:
    """Who computes ``double`` for a node."""
    return (await of.infer("double", {"x": ONES}, deadline_ms=PATIENT_MS, **how)).ran_on


def counted(relay: RelayProcess) -> dict[str, int]:
    port = urlsplit(relay.http_url or "").port
    assert port is not None
    told: dict[str, int] = asked(port, "/v1/statistics").json["inference"]
    return told


async def test_node_without_the_model_gets_its_answer_from_the_relay(house: House, relay: RelayProcess) -> None:
    """The reason to ask the relay: nobody in the neighbourhood has the model."""
    async with node(house, relay.address, "veh-1", "double") as vehicle:
        await offers(vehicle, "double", "powers")
        result = await vehicle.infer("double", {"x": ONES}, deadline_ms=PATIENT_MS)
        assert np.array_equal(result.outputs["y"], 2 * ONES)
        assert result.ran_on == "relay/relay-1"
        assert [(run.node, run.outcome) for run in result.attempts] == [("relay/relay-1", "done")]
        statistics = vehicle.statistics()
        assert statistics["inference_run_at_relay"] == statistics["asking_inferences"] == 1
        with pytest.raises(ModelUnknown):  # its owner did not let its inputs go there
            await vehicle.infer("powers", {"x": QUICK}, deadline_ms=PATIENT_MS)
        page = await asyncio.to_thread(asked, vehicle.http_port or 0, "/metrics")
        assert b'meshnode_inference_latency_seconds_count{where="relay"} 1.0' in page.body
    assert counted(relay)["done"] >= 1


async def test_commands_show_that_the_relay_computed(house: House, relay: RelayProcess, tmp_path: Path) -> None:
    """Whoever wonders where the time goes looks there first."""
    np.save(tmp_path / "x.npy", ONES)
    async with node(house, relay.address, "veh-1", "*") as vehicle:
        await offers(vehicle, "double", "powers")

        def said(*arguments: str) -> str:
            ran = run(*arguments, "--http", f"127.0.0.1:{vehicle.http_port}")
            assert ran.returncode == 0, ran.stderr
            return ran.stdout + ran.stderr

        answer = await asyncio.to_thread(said, "infer", "double", "--input", f"x={tmp_path / 'x.npy'}")
        assert "relay/relay-1" in answer
        assert "neighbour" not in answer
        watched = await asyncio.to_thread(said, "watch", "--once")
        assert "at relay   computed 1   without a result 0   offers double (" in " ".join(watched.split("\n"))


async def test_node_that_the_table_of_access_does_not_let_infer_computes_at_home(
    house: House, relay: RelayProcess, models: dict[str, ModelSection]
) -> None:
    """The relay tells it of no model that it would not compute, and refuses it when it asks all the same."""
    async with node(house, relay.address, "rsu-1", "*", role="rsu", models={"double": models["double"]}) as rsu:
        await asyncio.gather(loaded(rsu), offers(rsu, "powers"))
        assert await ran_on(rsu) == "rsu-1"
        assert (await rsu.infer("powers", {"x": QUICK}, deadline_ms=PATIENT_MS)).ran_on == "relay/relay-1"
        (digest,) = {model.digest for model in rsu.part(RunningInference).models.values()}
    request = InferRequest(1, "double", digest, 9_000_000, (NamedTensor("x", tensor_of(ONES)),))
    credentials = issue(house.folder / "authority", "rsu", "rsu-1", house.folder / "nodes").credentials
    with closing(open_requester(credentials, relay.address, MeshName(house.mesh))) as requester:
        answer = decode_untrusted_relay_frame(requester.request(encode_frame(request), 60))
    assert isinstance(answer, InferAnswer)
    assert (answer.status, answer.detail) == ("unknown", "relay-1 may not compute 'double' for rsu-1")


async def test_deadline_that_the_relay_can_not_make_is_not_tried_there(house: House, relay: RelayProcess) -> None:
    """The way and the run would be paid for nothing."""
    async with node(house, relay.address, "veh-1", "*") as vehicle:
        await offers(vehicle, "double", "powers")
        for _ in range(2):
            await vehicle.infer("powers", {"x": SLOW}, deadline_ms=PATIENT_MS)
        before = vehicle.statistics()["asking_inferences"]
        with pytest.raises(BudgetExhausted):
            await vehicle.infer("powers", {"x": SLOW}, deadline_ms=1)
        assert vehicle.statistics()["asking_inferences"] == before


async def test_request_that_nobody_wants_any_more_ends_at_the_relay(house: House, relay: RelayProcess) -> None:
    """A caller that gives up must not keep a place and a processor there."""
    async with node(house, relay.address, "veh-1", "*") as vehicle:
        await offers(vehicle, "double", "powers")
        request = asyncio.create_task(vehicle.infer("powers", {"x": SLOW}, deadline_ms=PATIENT_MS))
        await until(lambda: counted(relay)["held"] == 1, "the relay has it")
        failed = counted(relay)["failed"]
        request.cancel()
        await until(lambda: counted(relay)["held"] == 0, "the relay has given it up")
        assert counted(relay)["failed"] == failed + 1
        assert await ran_on(vehicle) == "relay/relay-1"


async def test_relay_that_is_killed_during_a_request_loses_none(
    house: House, models: dict[str, ModelSection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the model computes it then; whoever has not is told so long before the deadline. When the relay is
    back, it is asked again."""
    monkeypatch.setattr(computing, "_LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr(computing, "_DIALLING_S", 1.0)
    slow_here = InferenceSection(emulate_slowdown=1_000)
    port = free_port()
    with a_relay(house, port) as relay:
        async with (
            node(house, relay.address, "veh-1", "*", models=models, inference=slow_here) as able,
            node(house, relay.address, "veh-2", "*") as other,
        ):
            await asyncio.gather(loaded(able), offers(able, "double", "powers"), offers(other, "double", "powers"))
            both = (able, other)
            while [await ran_on(each) for each in both] != ["relay/relay-1"] * 2:
                pass  # one that is not proven is tried only as often as hedges are left
            relay.process.send_signal(signal.SIGSTOP)
            running = [asyncio.create_task(ran_on(each, hedge=False)) for each in both]
            await until(lambda: all(each.ask("inference_runs") == ["relay/relay-1"] for each in both), "it was asked")
            relay.process.send_signal(signal.SIGKILL)
            assert await running[0] == "veh-1"
            with pytest.raises(NeighbourFailed, match=r"relay/relay-1: (failed|dead)"):
                await running[1]
            await offers(other)
            with pytest.raises(ModelUnknown, match="The relay may compute it, and is away"):
                await ran_on(other)
    async with node(house, Address("127.0.0.1", port), "veh-2", "*") as other:
        await until(lambda: computing_of(other).told is None, "the relay is away")
        with RelayProcess(house.folder, house.mesh):
            await offers(other, "double", "powers")
            assert await ran_on(other) == "relay/relay-1"


LIES: Final = {
    "another shape": (("y", np.zeros((7, 3), "f4")),),
    "another name": (("z", ONES),),
    "nothing": (),
}


class FakeRelay:
    """Answers as a test says, with the certificate of a relay."""

    def __init__(self, house: House, answer: Any) -> None:
        credentials = issue(house.folder / "authority", Role.RELAY, "relay-2", house.folder / "fake").credentials

        def handle(peer: PeerIdentity, data: bytes) -> bytes:
            frame = decode_untrusted_relay_frame(data)
            reply: Frame = answer(frame)
            return encode_frame(reply)

        self._responder = open_responder(credentials, "127.0.0.1", 0, MeshName(house.mesh), handler=handle)
        self.address = Address("127.0.0.1", self._responder.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._responder.close()


@pytest.mark.parametrize("lie", LIES)
async def test_answer_of_the_relay_that_can_not_be_a_result_is_not_believed(
    house: House, models: dict[str, ModelSection], lie: str
) -> None:
    """Whoever has the model knows its signature, and computes it then."""
    outputs = tuple(NamedTensor(name, tensor_of(array)) for name, array in LIES[lie])
    slow_here = InferenceSection(emulate_slowdown=1_000)
    digest: list[str] = []

    def answer(frame: Frame) -> Frame:
        match frame:
            case OffersAsked():
                return OffersTold("relay-2", Offers(1, tuple(Offer("double", each, 1) for each in digest)))
            case InferRequest():
                return InferAnswer(frame.request, "done", outputs)
            case _:
                return RelayRefusal("malformed")

    with FakeRelay(house, answer) as relay:
        async with node(house, relay.address, "veh-3", "*", models=models, inference=slow_here) as vehicle:
            await loaded(vehicle)
            digest.append(vehicle.part(RunningInference).models["double"].digest)
            await offers(vehicle, "double")
            ran = [await vehicle.infer("double", {"x": ONES}, deadline_ms=PATIENT_MS) for _ in range(3)]
            assert {result.ran_on for result in ran} == {"veh-3"}
            assert vehicle.statistics()["inference_wrong_answers"] <= 1
            assert all(np.array_equal(result.outputs["y"], 2 * ONES) for result in ran)


async def test_relay_of_an_earlier_version_is_no_candidate(
    house: House, caplog: pytest.LogCaptureFixture, models: dict[str, ModelSection]
) -> None:
    """It refuses a frame that it does not know. Nothing else of the node is disturbed by that."""
    refused: list[Frame] = []

    def answer(frame: Frame) -> Frame:
        refused.append(frame)
        return RelayRefusal("malformed", "a frame is malformed")

    with FakeRelay(house, answer) as relay:
        async with node(house, relay.address, "veh-3", "*", models={"double": models["double"]}) as vehicle:
            await until(lambda: len(refused) >= 2, "it was asked twice")
            await loaded(vehicle)
            assert await ran_on(vehicle) == "veh-3"
    assert sum("before wire 1.9" in record.message for record in caplog.records) == 1
