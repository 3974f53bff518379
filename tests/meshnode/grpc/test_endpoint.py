"""The gRPC endpoint of real nodes, over real sockets: the same answers as over HTTP, and no way to break it."""

import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest

from demo.processes import free_port
from meshnode.grpc.wire.messages import message_class
from tests.tools.eventually import eventually
from tests.tools.grpc_fixture import (
    PREFACE,
    GrpcClient,
    begun_call,
    hung_up,
    infer_message,
    message_frame,
    method_path,
    output_of,
)
from tests.tools.node_fixture import RunningNode, meshnode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes
HEAVY = 384
"""Side of the matrices of a model that takes at least tens of milliseconds."""
PATIENT = "[grpc]\nport = 0\n[inference]\ndeadline_ms = 60_000\n"
ONES = np.ones((1, 4), "f4")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    models = {
        "double": write_model(folder / "double.onnx", ["batch", 4], "Add"),
        "heavy": write_model(folder / "heavy.onnx", [HEAVY, HEAVY], "MatMul", repeat=40),
        "half": write_model(folder / "half.onnx", ["n"], dtype="f2"),
    }
    tables = "".join(f'[models.{name}]\npath = "{path}"\n' for name, path in models.items())
    for rsu, vehicle in pair(folder, PATIENT + tables, PATIENT):
        eventually(lambda: vehicle.get("/v2/models/double")["inputs"], "the unit has said what its models take")  # noqa: B023
        yield rsu, vehicle


@pytest.fixture(params=["rsu", "vehicle"])
def node(request: pytest.FixtureRequest, nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[["rsu", "vehicle"].index(request.param)]


@pytest.fixture
def rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture
def client(rsu: RunningNode) -> Iterator[GrpcClient]:
    with GrpcClient(rsu.grpc_port) as opened:
        yield opened


def over_http(node: RunningNode, values: Any) -> tuple[bytes, dict[str, Any]]:
    """The raw output of ``double``, and the parameters of the answer."""
    form = {"name": "x", "datatype": "FP32", "shape": values.shape, "parameters": {"binary_data_size": values.nbytes}}
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [form]}).encode()
    status, headers, body = node.ask(
        "POST", "/v2/models/double/infer", head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 200, body
    split = int(headers["inference-header-content-length"])
    return body[split:], json.loads(body[:split])["parameters"]


# --- answers ---------------------------------------------------------------------------------------------------------
def test_answer_has_the_bits_and_the_placement_that_http_has(node: RunningNode) -> None:
    """Whoever changes from one to the other compares them."""
    rng = np.random.default_rng(5)
    with GrpcClient(node.grpc_port) as client:
        for rows in (1, 7, 50_000):
            values = rng.integers(0, 2**32, (rows, 4), "u4").view("f4")  # NaN of every kind among them
            answer = client.method("ModelInfer")(infer_message("double", values, id="seven"), timeout=60)
            raw, told = over_http(node, values)
            assert answer.raw_output_contents[0] == raw
            assert (answer.id, answer.model_name, answer.model_version) == ("seven", "double", "1")
            parameters = {name: getattr(each, each.WhichOneof("parameter_choice"))
                          for name, each in answer.parameters.items()}  # fmt: skip
            assert {name: type(value) for name, value in parameters.items()} == {
                name: type(value) for name, value in told.items()
            }
            for name in ("ran_on", "where", "model", "digest"):
                assert parameters[name] == told[name]


def test_half_precision_travels_raw(client: GrpcClient) -> None:
    """The protocol has no other way for it."""
    values = np.array([1.5, -65504, 2e-8, np.inf], "f2")
    answer = client.method("ModelInfer")(infer_message("half", values, "FP16"), timeout=60)
    assert output_of(answer, "f2").tobytes() == values.tobytes()


def test_what_is_there_is_told_as_over_http(node: RunningNode) -> None:
    """Clients build their requests from it."""
    with GrpcClient(node.grpc_port) as client:
        assert client.ask("ServerLive").live
        assert client.ask("ServerReady").ready
        assert client.ask("ModelReady", name="double", version="1").ready
        assert not client.ask("ModelReady", name="nobody-has-this").ready
        assert not client.ask("ModelReady", name="double", version="2").ready
        told = client.ask("ServerMetadata")
        assert (told.name, told.version) == ("meshnode", node.get("/v2")["version"])
        model, there = client.ask("ModelMetadata", name="double"), node.get("/v2/models/double")
        assert [(each.name, each.datatype, list(each.shape)) for each in (*model.inputs, *model.outputs)] == [
            (each["name"], each["datatype"], each["shape"]) for each in (*there["inputs"], *there["outputs"])
        ]
        config, other = client.ask("ModelConfig", name="double").config, node.get("/v2/models/double/config")
        assert (config.backend, config.parameters["digest"].string_value, list(config.input[0].dims)) == (
            other["backend"], other["parameters"]["digest"]["string_value"], [-1, 4],
        )  # fmt: skip
        index = [(each.name, each.state) for each in client.ask("RepositoryIndex", ready=True).models]
        assert index == [("double", "READY"), ("half", "READY"), ("heavy", "READY")]


def test_calls_are_counted_with_those_over_http(rsu: RunningNode, client: GrpcClient) -> None:
    """They are requests of this node like any others."""
    before = client.ask("ModelStatistics", name="double").model_stats[0].inference_count
    client.method("ModelInfer")(infer_message("double", ONES), timeout=60)
    over_http(rsu, ONES)
    after = client.ask("ModelStatistics", name="double").model_stats[0]
    assert after.inference_count - before == 2
    assert rsu.get("/v2/models/double/stats")["model_stats"][0]["inference_count"] == after.inference_count
    assert after.inference_stats.compute_infer.ns > 0
    assert [each.name for each in client.ask("ModelStatistics").model_stats] == ["double", "half", "heavy"]


def test_stream_is_answered_in_order_and_survives_a_bad_request(client: GrpcClient) -> None:
    """A camera's frames, one of which is broken."""
    requests = [infer_message("double", ONES * at, id=str(at)) for at in range(4)]
    requests[2].raw_input_contents[0] = b"short"
    requests[3].model_name = "nobody-has-this"
    answers = list(client.method("ModelStreamInfer")(iter(requests), timeout=60))
    assert [each.infer_response.id for each in answers] == ["0", "1", "", "3"]
    assert [output_of(each.infer_response)[0, 0] for each in answers[:2]] == [0, 2]
    assert "has 16 bytes, 5 are given" in answers[2].error_message
    assert "known: double, half, heavy" in answers[3].error_message


@pytest.mark.parametrize(("where", "count"), [(0, 50), (1, 12)])
def test_many_calls_at_once_are_all_answered(nodes: tuple[RunningNode, RunningNode], where: int, count: int) -> None:
    """Each gets its own numbers, whoever computes them. A neighbour takes some of a node's requests at once, not 50."""
    with GrpcClient(nodes[where].grpc_port) as client:
        infer = client.method("ModelInfer")
        calls = [infer.future(infer_message("double", ONES * at), timeout=60) for at in range(count)]
        assert [output_of(call.result())[0, 0] for call in calls] == [2 * at for at in range(count)]


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "over_http", "status"),
    [
        ({"model_name": "nobody-has-this"}, "nobody-has-this", "NOT_FOUND"),
        ({"model_version": "2"}, "double/versions/2", "NOT_FOUND"),
        ({"outputs": [{"name": "z"}]}, "double", "INVALID_ARGUMENT"),
        ({"shape": [1, 2, 2]}, "double", "INVALID_ARGUMENT"),
        ({"name": "z"}, "double", "INVALID_ARGUMENT"),
        ({"datatype": "INT32"}, "double", "INVALID_ARGUMENT"),
        ({"datatype": "BYTES"}, "double", "INVALID_ARGUMENT"),
        ({"datatype": "BF16"}, "double", "INVALID_ARGUMENT"),
        ({"timeout": 10**10}, "double", "INVALID_ARGUMENT"),
    ],
)  # fmt: skip
def test_mistake_is_told_in_the_words_of_http(
    rsu: RunningNode, client: GrpcClient, fields: dict[str, Any], over_http: str, status: str
) -> None:
    """A client's mistake is its own to mend, never a failure of the node."""
    timeout, of_input = fields.pop("timeout", None), {"name", "datatype", "shape"} & set(fields)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], **{name: fields.pop(name) for name in of_input}}
    message = message_class("ModelInferRequest")(**{"model_name": "double", "inputs": [tensor], **fields})
    message.raw_input_contents.append(bytes(16))
    form: dict[str, Any] = {"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}]}
    form["outputs"] = fields.get("outputs", [])
    if timeout is not None:
        message.parameters["timeout"].int64_param = timeout
        form["parameters"] = {"timeout": timeout}
    head = json.dumps(form).encode()
    _, _, body = rsu.ask(
        "POST", f"/v2/models/{over_http}/infer", head + bytes(16), {"Inference-Header-Content-Length": str(len(head))}
    )
    with pytest.raises(grpc.RpcError) as caught:
        client.method("ModelInfer")(message, timeout=60)
    assert (caught.value.code().name, caught.value.details()) == (status, json.loads(body)["error"])


def test_call_that_a_node_does_not_have_says_what_to_do_instead(client: GrpcClient) -> None:
    """Told that there is no such method, somebody looks for the mistake in the address."""
    for name, said in (
        ("RepositoryModelLoad", "[models.<name>]"), ("CudaSharedMemoryStatus", "raw_input_contents"),
        ("TraceSetting", "parameters of each answer"), ("LogSettings", "standard error"),
    ):  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            client.channel.unary_unary(method_path(name).decode())(b"", timeout=30)
        assert (caught.value.code().name, said in caught.value.details()) == ("UNIMPLEMENTED", True)


def test_spoilt_message_is_answered_or_refused_with_a_reason(node: RunningNode) -> None:
    """Anything but INVALID_ARGUMENT and NOT_FOUND would send somebody to the log of a node that did nothing wrong."""
    random, good = Random(3), infer_message("double", ONES, id="a").SerializeToString()
    told: list[tuple[str, str]] = []
    with GrpcClient(node.grpc_port) as client:
        infer = client.method("ModelInfer")
        for _ in range(300):
            at = random.randrange(len(good))
            spoilt = good[:at] + random.randbytes(random.choice((0, 1, 2))) + good[at + 1 :]
            try:
                infer(spoilt, timeout=60)
            except grpc.RpcError as error:
                told.append((error.code().name, error.details()))
    assert {code for code, _ in told} == {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert all(text for _, text in told)
    assert len(told) < 300, "some of them are right, or nothing is tried"
    assert "Traceback" not in node.log.read_text()


# --- time ------------------------------------------------------------------------------------------------------------
def counters(node: RunningNode) -> dict[str, int]:
    return dict(node.get("/v1/node")["statistics"])


def heavy(**fields: Any) -> Any:
    return infer_message("heavy", np.zeros((HEAVY, HEAVY), "f4"), **fields)


def test_deadline_in_the_request_is_told_with_the_reason(node: RunningNode) -> None:
    """A caller with a deadline wants to know at the deadline, and why."""
    message = heavy()
    message.parameters["timeout"].int64_param = 1_000
    with GrpcClient(node.grpc_port) as client, pytest.raises(grpc.RpcError) as caught:
        client.method("ModelInfer")(message, timeout=60)
    assert (caught.value.code().name, "heavy" in caught.value.details()) == ("DEADLINE_EXCEEDED", True)


def failures(node: RunningNode) -> int:
    """Own requests for ``heavy`` that were not answered."""
    return int(node.get("/v2/models/heavy/stats")["model_stats"][0]["inference_stats"]["fail"]["count"])


def test_calls_that_are_cancelled_are_given_up(rsu: RunningNode, client: GrpcClient) -> None:
    """Work for somebody who has gone delays everybody who has not."""
    before, failed = counters(rsu), failures(rsu)

    def since(name: str) -> int:
        return counters(rsu)[f"inference_{name}"] - before[f"inference_{name}"]

    infer = client.method("ModelInfer")
    calls = [infer.future(heavy(), timeout=60) for _ in range(16)]  # one runs, the others wait
    eventually(lambda: since("asked") == 16, "all requests are under way")
    for call in calls:
        call.cancel()
    eventually(lambda: since("late_answers") > 0, "a run without a caller is given up")
    eventually(lambda: failures(rsu) > failed, "it is counted as such")
    assert since("answered") < 16


# --- strangers -------------------------------------------------------------------------------------------------------
def test_garbage_on_the_port_is_hung_up_on_and_disturbs_nobody(rsu: RunningNode, client: GrpcClient) -> None:
    """A port scanner, a browser, a fuzzer: the node does not notice."""
    random = Random(7)
    for sent in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        random.randbytes(5_000),
        PREFACE + random.randbytes(5_000),
    ):
        with socket.create_connection(("127.0.0.1", rsu.grpc_port), 30) as link:
            link.sendall(sent)
            assert hung_up(link)
    for path in (b"/inference.GRPCInferenceService/\xff\xfe", b"\xff", b"/", b"/no/Method"):
        with begun_call(rsu.grpc_port, path) as link:
            link.sendall(message_frame(b""))
            assert hung_up(link)
    assert client.ask("ServerLive").live
    assert "Traceback" not in rsu.log.read_text()


def peak_bytes(node: RunningNode) -> int:
    """The most memory that the process has had."""
    lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_message_that_is_too_large_is_refused_packed_or_not(rsu: RunningNode, client: GrpcClient) -> None:
    """400 kB become 400 MB, and an inference may have 64 MiB."""
    before = peak_bytes(rsu)
    large = infer_message("double", np.zeros((5_000_000, 4), "f4")).SerializeToString()
    code, text = _refusal(client, large)
    assert (code, "larger than max" in text) == ("RESOURCE_EXHAUSTED", True)
    code, text = _refusal(client, bytes(400 * 1024 * 1024), compression=grpc.Compression.Gzip)
    assert (code, "larger than max" in text) == ("RESOURCE_EXHAUSTED", True)
    assert peak_bytes(rsu) - before < 250 * 1024 * 1024
    assert client.ask("ServerLive").live


def _refusal(client: GrpcClient, message: bytes, **options: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        client.method("ModelInfer")(message, timeout=60, **options)
    return caught.value.code().name, caught.value.details()


def test_message_that_would_become_too_large_is_refused_before_it_does(rsu: RunningNode, client: GrpcClient) -> None:
    """Inputs of nothing, two bytes each: parsed they would take gigabytes."""
    before = peak_bytes(rsu)
    code, text = _refusal(client, b"\x2a\x00" * (30 * 1024 * 1024))
    assert (code, "fields" in text) == ("INVALID_ARGUMENT", True)
    assert peak_bytes(rsu) - before < 400 * 1024 * 1024


def test_packed_requests_and_plain_ones_give_the_same(client: GrpcClient) -> None:
    """Compression is the client's choice, by the head of its call."""
    values = np.random.default_rng(1).standard_normal((512, 4), dtype="f4")
    for coding in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
        answer = client.method("ModelInfer")(infer_message("double", values), timeout=60, compression=coding)
        assert output_of(answer).tobytes() == (values + values).tobytes()


def test_clients_that_never_read_or_stop_half_way_keep_nobody_waiting(rsu: RunningNode, client: GrpcClient) -> None:
    """Their answers wait for them, and what they did not send is not waited for; those of others go."""
    large = infer_message("double", np.zeros((4_000, 4), "f4")).SerializeToString()
    links = [begun_call(rsu.grpc_port, method_path("ModelInfer"), window_bytes=0) for _ in range(16)]
    for at, link in enumerate(links):
        link.sendall(message_frame(large[:16_000] if at % 2 else large, len(large), last=not at % 2))
    answer = client.method("ModelInfer")(infer_message("double", ONES), timeout=60)
    assert output_of(answer).tolist() == [[2, 2, 2, 2]]
    for link in links:
        link.close()


# --- life ------------------------------------------------------------------------------------------------------------
def test_node_without_the_table_loads_none_of_it(tmp_path: Path) -> None:
    """Its libraries take 24 MB, which only a node with the endpoint pays."""
    with RunningNode(prepare(tmp_path, "rsu-2", "rsu")) as node:
        assert node.get("/v1/node")["grpc_port"] is None
        assert "cygrpc" not in Path(f"/proc/{node.process.pid}/maps").read_text()


def test_node_with_a_port_in_use_goes_on_and_names_the_key_to_change(rsu: RunningNode, tmp_path: Path) -> None:
    """Two nodes must not share a port and its calls, as the library would have it."""
    port = rsu.grpc_port
    with RunningNode(prepare(tmp_path, "rsu-3", "rsu", f"[grpc]\nport = {port}\n")) as node:
        (trouble,) = node.get("/v1/node")["troubles"]
        assert (trouble["part"], trouble["essential"]) == ("grpc", False)
        assert f"gRPC can't listen on 127.0.0.1:{port}: another process does. Set [grpc] port" in trouble["why"]


def test_node_without_the_libraries_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is easily forgotten, and the rest of the node works."""
    blocked = tmp_path / "blocked" / "sitecustomize.py"
    blocked.parent.mkdir()
    blocked.write_text("import sys\nsys.modules['grpc'] = None\n")
    monkeypatch.setattr(
        "tests.tools.node_fixture.environment",
        lambda: {**os.environ, "PYTHONPATH": f"{blocked.parent}:{Path(__file__).parents[3]}", "PYTHONUNBUFFERED": "1"},
    )
    config = prepare(tmp_path, "rsu-4", "rsu", f"[http]\nport = {free_port()}\n[grpc]\nport = 0\n")
    with RunningNode(config) as node:
        (trouble,) = node.get("/v1/node")["troubles"]
        assert (trouble["part"], trouble["essential"]) == ("grpc", False)
        assert "pip install 'meshnode[grpc]'" in trouble["why"]
        assert "pip install 'meshnode[grpc]'" in meshnode("doctor", config).stdout
    assert "pip install 'meshnode[grpc]'" in meshnode("doctor", config).stdout


def test_doctor_says_where_the_endpoint_listens_or_would(tmp_path: Path) -> None:
    """The first question of somebody whose client can't connect."""
    port = free_port()
    config = prepare(tmp_path, "rsu-5", "rsu", f"[http]\nport = {free_port()}\n[grpc]\nport = {port}\n")
    assert f"127.0.0.1 port {port} is free" in meshnode("doctor", config).stdout
    with RunningNode(config) as node:
        assert node.grpc_port == port
        assert f"port {port}, in use by this node" in meshnode("doctor", config).stdout


def test_slow_call_ends_at_its_deadline_and_when_the_node_leaves(tmp_path: Path) -> None:
    """The deadline needs no parameter: the library sends it along. And who is told can ask another node at once."""
    model = write_model(tmp_path / "heavy.onnx", [HEAVY, HEAVY], "MatMul", repeat=1_000)
    tables = f'{PATIENT}isolation = "none"\n[models.heavy]\npath = "{model}"\n'
    with RunningNode(prepare(tmp_path, "rsu-6", "rsu", tables)) as node, GrpcClient(node.grpc_port) as client:
        infer = client.method("ModelInfer")
        for timeout_s in (0.1, 0.2, 0.4, 0.8, 1.6):  # on a busy machine a message takes its time
            late = infer.future(heavy(), timeout=timeout_s).exception()
            assert late is not None
            assert late.code().name == "DEADLINE_EXCEEDED"
            with suppress(AssertionError):
                eventually(lambda: failures(node) >= 1, "the node does not go on without the client", 2.0)
                break
        asked = counters(node)["inference_asked"]
        assert failures(node) >= 1
        calls = [infer.future(heavy(), timeout=60) for _ in range(8)]
        eventually(lambda: counters(node)["inference_asked"] == asked + 8, "all are under way")
        with ThreadPoolExecutor(1) as stopping:
            status = stopping.submit(node.stop)
            errors = [call.exception() for call in calls]
        assert status.result() == 0
        assert {error.code().name for error in errors if error} == {"UNAVAILABLE"}
        assert "the node is leaving" in {error.details() for error in errors if error}
