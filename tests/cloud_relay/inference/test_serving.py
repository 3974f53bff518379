"""What the relay computes for nodes: by its table of access, within bounds, and never at the cost of batches."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_relay.config import load_config
from cloud_relay.inference import serving
from cloud_relay.inference.section import served_models
from cloud_relay.inference.serving import MAX_QUESTIONS_BURST, InferenceService
from meshnode.identity import issue
from meshnode.links.nng.library import open_requester
from protocols.access import AccessRule, AccessTable
from protocols.base.errors import ConfigError, TransportError
from protocols.base.ids import MeshName, PeerIdentity, Role, node_id
from protocols.base.limits import MAX_EXCHANGE_BYTES
from protocols.inference.serving import MAX_SERVED_PER_NEIGHBOUR
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, OffersAsked, OffersTold
from protocols.wire.records import Acknowledgement, RelayRefusal
from protocols.wire.tensors import NamedTensor, tensor_of
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayProcess, batch
from tests.tools.strategies import RELAY_FRAMES
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes
TABLE: Final = AccessTable((AccessRule(Role.VEHICLE, "infer", "*"), AccessRule(Role.RSU, "infer", "double")))
ONES: Final = np.ones((2, 4), "f4")
SLOW: Final = np.eye(400, dtype="f4")
"""Half a second of ``powers``, or less, and ten times as much of ``long``."""
BUDGET_US: Final = 60_000_000
LONG: Final = "y" * 190
MODELS: Final = '[models.double]\npath = "double.onnx"\n[models.powers]\npath = "powers.onnx"\n'


def write_models(folder: Path) -> None:
    write_model(folder / "double.onnx", ["batch", 4], "Add", output_name=LONG)
    write_model(folder / "powers.onnx", ["n", "n"], "MatMul", repeat=400)
    write_model(folder / "long.onnx", ["n", "n"], "MatMul", repeat=4_000)


class Served:
    """A service without a network, and nodes that ask it on threads of their own."""

    def __init__(self, folder: Path) -> None:
        write_models(folder)
        (folder / "relay.toml").write_text(f'[relay]\nid = "relay-1"\n{MODELS}[models.long]\npath = "long.onnx"\n')
        config = load_config(folder / "relay.toml")
        self.service = InferenceService(
            config.node, served_models(config), TABLE, config.releases, config.state_dir / "computed"
        )
        self.threads = ThreadPoolExecutor(64)
        self.digests = eventually(self._offered, "all models are offered")

    def _offered(self) -> dict[str, str]:
        told = self.ask(OffersAsked(True), "first-1")
        assert isinstance(told, OffersTold)
        assert len(told.offers.offers) == len(told.signatures)
        return {offer.model: offer.digest for offer in told.offers.offers} if len(told.signatures) == 3 else {}

    def raw(self, data: bytes, node: str = "v-1", role: Role = Role.VEHICLE) -> bytes:
        return self.service.answer(PeerIdentity(MeshName("demo"), role, node_id(node)), data)

    def ask(self, frame: Frame, node: str = "v-1", role: Role = Role.VEHICLE) -> Frame:
        return decode_untrusted_relay_frame(self.raw(encode_frame(frame), node, role))

    def request(self, number: int, model: str = "double", array: Any = ONES, **more: Any) -> InferRequest:
        fields = {"digest": self.digests[model], "budget_us": BUDGET_US, **more}
        return InferRequest(number, model, inputs=(NamedTensor("x", tensor_of(array)),), **fields)

    def infer(
        self, number: int, model: str = "double", array: Any = ONES, node: str = "v-1", role: Role = Role.VEHICLE
    ) -> InferAnswer:
        answer = self.ask(self.request(number, model, array), node, role)
        assert isinstance(answer, InferAnswer)
        return answer

    def begin(self, number: int, node: str = "v-1", model: str = "long") -> "Future[InferAnswer]":
        """A slow request under way, which is to be ended."""
        return self.threads.submit(self.infer, number, model, SLOW, node)

    def held(self) -> int:
        return self.service.statistics()["held"]


@pytest.fixture(name="served", scope="module")
def given_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.service.close()
    served.threads.shutdown()


def test_request_is_computed_and_offers_are_those_that_the_role_may_infer(served: Served) -> None:
    """The table of access decides as it does between nodes."""
    answer = served.infer(1)
    assert answer.status == "done"
    assert answer.queue_us is not None
    assert np.array_equal(np.asarray(answer.outputs[0].tensor), 2 * ONES)
    told = served.ask(OffersAsked(False), "r-1", Role.RSU)
    assert isinstance(told, OffersTold)
    assert [offer.model for offer in told.offers.offers] == ["double"]
    assert told.signatures == ()
    assert served.infer(2, node="r-1", role=Role.RSU).status == "done"
    refused = served.infer(3, "powers", ONES, "r-1", role=Role.RSU)
    assert (refused.status, refused.detail) == ("unknown", "relay-1 may not compute 'powers' for r-1")
    other = served.ask(served.request(4, digest="0" * 64))
    assert isinstance(other, InferAnswer)
    assert other.status == "unknown"
    assert served.infer(5, array=np.ones((2, 5), "f4")).status == "invalid"


def test_relay_is_no_node_that_may_ask(served: Served) -> None:
    """Only nodes and tools are in the table of access."""
    answer = served.ask(OffersAsked(False), "relay-2", Role.RELAY)
    assert isinstance(answer, RelayRefusal)
    assert answer.code == "identity"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(*(RELAY_FRAMES[kind] for kind in (OffersAsked, OffersTold, InferAnswer, InferCancel))), st.data())
def test_whatever_is_sent_gets_an_answer(served: Served, frame: Any, data: st.DataObject) -> None:
    """A handler that raises takes a thread of the relay along."""
    whole = encode_frame(frame)
    cut = whole[: data.draw(st.integers(1, len(whole)))]
    for sent in (whole, cut):
        node = data.draw(st.sampled_from([f"v-{number}" for number in range(20)]))
        assert isinstance(decode_untrusted_relay_frame(served.raw(sent, node)), OffersTold | RelayRefusal)


def test_insider_that_floods_gets_its_places_and_others_their_turn(served: Served) -> None:
    """One node with a valid certificate could otherwise keep the relay's models, memory and threads for itself."""
    flood = [served.begin(number, "v-9", "powers") for number in range(40)]
    eventually(lambda: served.held() == MAX_SERVED_PER_NEIGHBOUR, "it holds its places")
    eventually(lambda: sum(each.done() for each in flood) >= 40 - MAX_SERVED_PER_NEIGHBOUR, "the rest is refused")
    honest = served.infer(1, node="v-1")
    assert honest.status == "done"
    assert sum(each.done() and each.result().status == "done" for each in flood) <= 3, "it came by its turn"
    for number in range(40):
        served.ask(InferCancel(number), "v-9")
    assert {each.result(30).status for each in flood} <= {"busy", "failed", "done"}
    eventually(lambda: served.held() == 0, "nothing is held")


def test_node_that_asks_again_with_a_number_under_way_gets_the_second_answer(served: Served) -> None:
    """It has restarted: the answer to its first life must not be taken for one to the second."""
    first = served.begin(7)
    eventually(lambda: served.held() == 1, "the first is under way")
    second = served.infer(7)
    assert second.outputs[0].name == LONG
    assert (first.result(30).status, first.result().detail) == ("failed", "it was asked for again")


def test_answer_that_no_exchange_can_carry_is_a_failure(served: Served) -> None:
    """The node hears why, and asks somebody else."""
    rows = (MAX_EXCHANGE_BYTES - 150) // 16
    answer = served.infer(8, array=np.ones((rows, 4), "f4"))
    assert answer.status == "failed"
    assert "larger than" in answer.detail


def test_questions_have_an_allowance(served: Served) -> None:
    """They take no places, so nothing else bounds them."""
    kinds = [type(served.ask(OffersAsked(True), "v-8")) for _ in range(3 * MAX_QUESTIONS_BURST)]
    assert kinds[:MAX_QUESTIONS_BURST] == [OffersTold] * MAX_QUESTIONS_BURST
    assert RelayRefusal in kinds
    under_way = served.begin(11, "v-8")
    eventually(lambda: served.held() == 1, "it is under way")
    while not isinstance(served.ask(OffersAsked(True), "v-8"), RelayRefusal):
        pass
    served.ask(InferCancel(11), "v-8")
    assert under_way.result(30).status == "failed", "whoever asks too much is still listened to"
    assert isinstance(served.ask(OffersAsked(True), "v-1"), OffersTold), "that of another node is its own"


def test_what_is_remembered_of_nodes_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh may have more nodes over the years than a relay has memory."""
    monkeypatch.setattr(serving, "MAX_NODES", 50)
    for number in range(120):
        served.ask(OffersAsked(False), f"many-{number}")
        assert served.infer(number, node=f"only-requests-{number}").status == "done"
    assert len(served.service._allowances) <= 50
    assert len(served.service._machine._serving._allowances) <= 50


def test_worker_process_that_is_killed_costs_its_run_only(served: Served) -> None:
    """The model room of the nodes, with its walls."""
    under_way = served.begin(9)
    eventually(lambda: served.held() == 1, "it is under way")
    workers = [child for child in psutil.Process().children(recursive=True) if computes(child)]
    assert workers
    for worker in workers:
        worker.kill()
    assert under_way.result(60).status in ("done", "failed")
    eventually(lambda: served.infer(10).status == "done", "the model is back")


def computes(process: psutil.Process) -> bool:
    """Whether it is a worker process with a model: a database of other tests may be large, too."""
    with suppress(psutil.NoSuchProcess):
        return "meshnode.models" in " ".join(process.cmdline()) and process.memory_info().rss > 30e6
    return False


def test_relay_that_stops_answers_those_who_wait(tmp_path: Path) -> None:
    """Their nodes go elsewhere at once."""
    served = Served(tmp_path)
    under_way = served.begin(1)
    eventually(lambda: served.held() == 1, "it is under way")
    served.service.close()
    assert under_way.result(20).status != "done"
    served.service.close()
    served.threads.shutdown()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[models.double]\npath = "double.onnx"\nserve = true\n', "models.double.serve"),
        ('[models.double]\npath = "double.onnx"\nrelease = true\n', "models.double.path"),
        ("[models.double]\nrelease = false\n", "models.double.release"),
        ("[models.double]\nthreads = 2\n", "models.double.path"),
        ("[models.'a b']\npath = \"double.onnx\"\n", "is not a name"),
        (f"{MODELS}[inference]\nlocal = false\n", "inference.local"),
        (f"{MODELS}[inference]\nworkers = 0\n", "inference.workers"),
        ('models = "double"\n', "write a table, [models]"),
        ('[models]\ndouble = "double.onnx"\n', "models.double"),
        ('[models.home]\npath = "home.onnx"\n', "first_cut_at_home"),
    ],
)
def test_mistake_in_the_configuration_is_named(tmp_path: Path, text: str, named: str) -> None:
    """A relay that starts without a model that somebody wrote down would be noticed on the road."""
    write_models(tmp_path)
    write_model(tmp_path / "home.onnx", ["batch", 4], "Add")
    (tmp_path / "home.toml").write_text("[split]\nfirst_cut_at_home = true\n")
    at_top, table = (text, "") if text.startswith("models =") else ("", text)
    (tmp_path / "relay.toml").write_text(f'{at_top}[relay]\nid = "relay-1"\n{table}')
    with pytest.raises(ConfigError) as caught:
        served_models(load_config(tmp_path / "relay.toml"))
    assert named in str(caught.value)


def test_flood_at_a_real_relay_leaves_threads_to_batches_and_turns_to_others(tmp_path: Path) -> None:
    """Each inference keeps a thread of the relay. Records must reach the disk meanwhile."""
    write_models(tmp_path)
    (tmp_path / "relay.toml").write_text(f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n{MODELS}')
    stop = threading.Event()
    with RelayProcess(tmp_path) as relay, ExitStack() as stack:
        honest = stack.enter_context(relay.requester("v-2"))

        def offered() -> dict[str, str]:
            told = decode_untrusted_relay_frame(honest.request(encode_frame(OffersAsked(False)), 20))
            assert isinstance(told, OffersTold)
            offers = told.offers.offers
            return {offer.model: offer.digest for offer in offers} if len(offers) == 2 else {}

        digests = eventually(offered, "both are offered")

        def request(number: int, model: str, array: Any) -> bytes:
            tensors = (NamedTensor("x", tensor_of(array)),)
            return encode_frame(InferRequest(number, model, digests[model], BUDGET_US, tensors))

        credentials = issue(tmp_path / "authority", Role.VEHICLE, "v-9", tmp_path / "insider").credentials

        def flood(number: int) -> None:
            while not stop.is_set():
                with closing(open_requester(credentials, relay.address, MeshName("demo"))) as insider:
                    try:
                        insider.request(request(number, "powers", SLOW), 5)
                    except TransportError:
                        continue

        with ThreadPoolExecutor(16) as threads:
            insiders = [threads.submit(flood, number) for number in range(16)]
            try:
                for number in range(1, 11):
                    answer = honest.request(encode_frame(batch(number, node="v-2")), 20)
                    assert decode_untrusted_relay_frame(answer) == Acknowledgement((number,))
                    computed = decode_untrusted_relay_frame(honest.request(request(number, "double", ONES), 60))
                    assert isinstance(computed, InferAnswer)
                    assert computed.status == "done", computed.detail
            finally:
                stop.set()
            for insider in insiders:
                insider.result(60)
