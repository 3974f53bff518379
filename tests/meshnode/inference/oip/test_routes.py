"""The Open Inference Protocol, spoken with real processes over real sockets."""

import gzip
import http.client
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.http.guard import BadRequest
from meshnode.inference.oip.requests import parse_untrusted_request
from protocols.base.errors import InputInvalid
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes

HEAVY = 384
"""Side of the matrices of a model that takes at least tens of milliseconds."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    double = write_model(folder / "double.onnx", ["batch", 4], "Add")
    heavy = write_model(folder / "heavy.onnx", [HEAVY, HEAVY], "MatMul", repeat=40)
    flags = write_model(folder / "flags.onnx", [3], "Not", dtype="b1")
    yield from pair(
        folder,
        f'[models.double]\npath = "{double}"\n[models.heavy]\npath = "{heavy}"\n[models.flags]\npath = "{flags}"\n',
    )


@pytest.fixture
def rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture
def vehicle(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[1]


# --- Open Inference Protocol -----------------------------------------------------------------------------------------
def _request(data: Any, shape: tuple[int, ...] = (1, 4), **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(shape), "data": data}], **more}


def test_metadata_of_server_and_loaded_model_follow_the_protocol(rsu: RunningNode) -> None:
    """Clients build their requests from it."""
    assert rsu.get("/v2")["name"] == "meshnode"
    assert rsu.get("/v2/health/live")["live"] is True
    assert rsu.get("/v2/health/ready")["ready"] is True
    model = rsu.get("/v2/models/double/versions/1")
    assert model.pop("parameters")["loaded"] is True
    assert model == {
        "name": "double", "versions": ["1"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }  # fmt: skip
    assert rsu.get("/v2/models/double/ready")["ready"] is True


def test_metadata_of_a_neighbours_model_say_what_is_known(rsu: RunningNode, vehicle: RunningNode) -> None:
    """A vehicle without models serves those of its neighbours."""
    eventually(lambda: vehicle.get("/v2/models/double")["inputs"], "the neighbour has said what its model takes")
    model, there = vehicle.get("/v2/models/double"), rsu.get("/v2/models/double")
    told = model.pop("parameters")
    assert told == {"digest": there.pop("parameters")["digest"], "loaded": False, "offered_by": "rsu-1"}
    assert model == there
    assert [entry["name"] for entry in vehicle.get("/v1/models")] == ["double", "flags", "heavy"]


@pytest.mark.parametrize("where", ["rsu", "vehicle"])
def test_inference_in_json_is_computed_wherever_it_is_asked(where: str, rsu: RunningNode, vehicle: RunningNode) -> None:
    """The caller needn't know who has the model; the answer says who computed."""
    node = {"rsu": rsu, "vehicle": vehicle}[where]
    status, answer = node.post(
        "/v2/models/double/infer", _request([1, 2.5, -3, 0], id="seven", outputs=[{"name": "y"}])
    )
    assert status == 200, answer
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("double", "1", "seven")
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 5, -6, 0]}]
    assert answer["parameters"]["ran_on"] == "rsu-1"
    assert answer["parameters"]["took_ms"] >= answer["parameters"]["compute_ms"] > 0


@pytest.mark.parametrize("where", ["rsu", "vehicle"])
def test_answer_says_who_computed_which_file_where_and_how_often_it_was_tried(
    where: str, rsu: RunningNode, vehicle: RunningNode
) -> None:
    """A caller that measures its deadline has to know what took the time, and an auditor which model it was."""
    node = {"rsu": rsu, "vehicle": vehicle}[where]
    _, answer = node.post("/v2/models/double/infer", _request([1, 2, 3, 4]))
    told = answer["parameters"]
    assert (told["ran_on"], told["where"]) == ("rsu-1", "here" if where == "rsu" else "neighbour")
    assert told["model"] == "double"
    assert told["digest"] == rsu.get("/v2/models/double")["parameters"]["digest"]
    assert told["attempt_count"] == len(told["attempts"].split(","))
    assert told["took_ms"] >= told["compute_ms"] + told["queued_ms"]
    assert all(isinstance(value, str | int | float) for value in told.values()), "the protocol knows no others"


def test_inference_packed_both_ways_gives_the_same_numbers(vehicle: RunningNode) -> None:
    """The length of the JSON part is that of what was packed, as Triton has it."""
    values = np.random.default_rng(3).standard_normal((256, 4), dtype=np.float32)
    form = {"name": "x", "datatype": "FP32", "shape": [256, 4], "parameters": {"binary_data_size": values.nbytes}}
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [form]}).encode()
    answers = []
    for coding in ("identity", "gzip", "deflate"):
        pack = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding]
        status, headers, body = vehicle.ask(
            "POST", "/v2/models/double/infer", pack(head + values.tobytes()),
            {"Inference-Header-Content-Length": str(len(head)), "Content-Encoding": coding, "Accept-Encoding": coding},
        )  # fmt: skip
        assert (status, headers.get("content-encoding", "identity")) == (200, coding), body
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, "identity": bytes}[coding]
        answers.append(unpack(body)[int(headers["inference-header-content-length"]) :])
    assert set(answers) == {(values + values).tobytes()}


def test_numbers_that_are_not_finite_come_as_null_in_json_and_are_counted(rsu: RunningNode) -> None:
    """Strict parsers refuse NaN, and what was infinite must not be lost unseen."""
    body = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [NaN, Infinity, -Infinity, 1]}]}'
    status, _, answer = rsu.ask("POST", "/v2/models/double/infer", body)
    (output,) = json.loads(answer, parse_constant=pytest.fail)["outputs"]
    assert (status, output["data"], output["parameters"]) == (200, [None, None, None, 2], {"not_finite": 3})


def test_inference_in_binary_answers_in_binary(vehicle: RunningNode) -> None:
    """An image as JSON numbers is four times as large and a hundred times as slow."""
    head = json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "x", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}],
    }).encode()  # fmt: skip
    status, headers, body = vehicle.ask(
        "POST", "/v2/models/flags/infer", head + bytes([0, 1, 7]),
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )  # fmt: skip
    assert status == 200, body
    split = int(headers["inference-header-content-length"])
    (output,) = json.loads(body[:split])["outputs"]
    assert output == {"name": "y", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}
    assert body[split:] == bytes([1, 0, 0])


@pytest.mark.parametrize(
    ("path", "request_", "status", "said"),
    [
        ("nobody-has-this", _request([1, 2, 3, 4]), 404, "known: double"),
        ("double/versions/2", _request([1, 2, 3, 4]), 404, "no version '2'"),
        ("double", {"inputs": []}, 400, "needs the input"),
        ("double", {}, 400, "inputs"),
        ("double", _request([1, 2, 3]), 400, "has 4 elements"),
        ("double", _request([[1, 2, 3], [4]]), 400, "do not have the shape"),
        ("double", _request(["1", "2", "3", "4"]), 400, "element 0 of input 'x' is \"1\": FP32 takes numbers"),
        ("double", _request([1, 2, 3, 4, 5], (1, 5)), 400, "expected f4[?, 4]"),
        ("double", _request([1, 2, 3, 4], (1, -4)), 400, "shape"),
        ("double", _request([1, 2, 3, 4], outputs=[{"name": "z"}]), 400, "no output 'z'"),
        ("double", _request([1, 2, 3, 4], parameters={"timeout": -1}), 400, "timeout"),
        ("double", {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, 400, "BYTES"),
        ("double", {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}, 400,
         "given i4[1, 4]"),
        ("flags", {"inputs": [{"name": "x", "datatype": "INT8", "shape": [3], "data": [1, 2, 300]}]}, 400, "INT8"),
        ("double", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4],
                                "parameters": {"binary_data_size": 16}}]}, 400, "0 bytes are left"),
        ("double", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4],
                                "parameters": {"shared_memory_region": "r"}}]}, 400, "shared memory"),
    ],
)  # fmt: skip
def test_inference_asked_for_wrongly_names_the_mistake(
    rsu: RunningNode, path: str, request_: dict[str, Any], status: int, said: str
) -> None:
    """A wrong input is the caller's to correct: 4xx and the reason, never a failed model."""
    answered, answer = rsu.post(f"/v2/models/{path}/infer", request_)
    assert (answered, said in answer["error"]) == (status, True), answer


@pytest.mark.parametrize("length", ["0", "-1", "x", "99999", "9" * 40])
def test_binary_request_with_a_wrong_json_length_is_refused(rsu: RunningNode, length: str) -> None:
    """The header splits the body; a wrong one must not read past its end."""
    body = json.dumps(_request([1, 2, 3, 4]))
    status, _, answer = rsu.ask("POST", "/v2/models/double/infer", body, {"Inference-Header-Content-Length": length})
    assert (status, "Inference-Header-Content-Length" in json.loads(answer)["error"]) == (400, True)


def _heavy(**parameters: Any) -> tuple[bytes, dict[str, str]]:
    size = HEAVY * HEAVY * 4
    given = {"name": "x", "datatype": "FP32", "shape": [HEAVY, HEAVY], "parameters": {"binary_data_size": size}}
    head = json.dumps({"parameters": {"binary_data_output": True, **parameters}, "inputs": [given]}).encode()
    return head + bytes(size), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize("where", ["rsu", "vehicle"])
def test_inference_past_its_deadline_is_a_timeout(where: str, rsu: RunningNode, vehicle: RunningNode) -> None:
    """A caller with a deadline wants to know at the deadline."""
    body, headers = _heavy(timeout=1_000)
    status, _, answer = {"rsu": rsu, "vehicle": vehicle}[where].ask("POST", "/v2/models/heavy/infer", body, headers)
    assert (status, "heavy" in json.loads(answer)["error"]) == (504, True), answer


def test_inference_whose_caller_hangs_up_is_cancelled(rsu: RunningNode) -> None:
    """Work for somebody who has gone delays everybody who has not."""
    before = rsu.get("/v1/node")["statistics"]

    def since(name: str) -> int:
        return int(rsu.get("/v1/node")["statistics"][f"inference_{name}"] - before[f"inference_{name}"])

    body, headers = _heavy(timeout=60_000_000)
    callers = []
    for _ in range(8):  # one runs, the others wait
        caller = http.client.HTTPConnection("127.0.0.1", rsu.http_port, timeout=30)
        caller.request("POST", "/v2/models/heavy/infer", body, headers)
        callers.append(caller)
    eventually(lambda: since("asked") == 8, "all requests are under way")
    for caller in callers:
        caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.close()
    eventually(lambda: since("late_answers") > 0, "a run without a caller is given up")
    assert since("answered") < 8


# --- Triton's extensions ---------------------------------------------------------------------------------------------
def test_configuration_of_a_model_is_in_tritons_layout(rsu: RunningNode, vehicle: RunningNode) -> None:
    """perf_analyzer and the like read it before they ask for anything."""
    config = rsu.get("/v2/models/double/versions/1/config")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (0, 1)
    eventually(lambda: vehicle.get("/v2/models/double/config")["input"], "the neighbour has said what its model takes")
    other = vehicle.get("/v2/models/double/config")
    assert other == {**config, "instance_group": [], "default_model_filename": ""}


def test_statistics_of_a_model_count_what_this_node_asked_for(rsu: RunningNode, vehicle: RunningNode) -> None:
    """Whoever watches a server by its statistics can watch a node."""
    before = vehicle.get("/v2/models/flags/stats")["model_stats"][0]
    other = rsu.get("/v2/models/flags/stats")["model_stats"][0]
    given = {"name": "x", "datatype": "BOOL", "shape": [3], "data": [True, False, True]}
    for _ in range(3):
        assert vehicle.post("/v2/models/flags/infer", {"inputs": [given]})[0] == 200
    assert vehicle.post("/v2/models/flags/infer", {"inputs": [{**given, "shape": [1, 3]}]})[0] == 400
    after = vehicle.get("/v2/models/flags/versions/1/stats")["model_stats"][0]
    assert (after["name"], after["version"]) == ("flags", "1")
    assert after["last_inference"] >= before["last_inference"]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] >= 3
    for name, more in (("success", 3), ("fail", 1), ("queue", 3), ("compute_infer", 3), ("compute_input", 3)):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == more, name
    times = {name: each["ns"] for name, each in after["inference_stats"].items()}
    assert times["success"] >= times["queue"] + times["compute_infer"] > 0
    assert rsu.get("/v2/models/flags/stats")["model_stats"][0] == other, "it computed, and asked for nothing"
    assert [each["name"] for each in vehicle.get("/v2/models/stats")["model_stats"]] == ["double", "flags", "heavy"]


def test_index_lists_models_in_reach_and_those_that_can_not_be_had(tmp_path: Path) -> None:
    """An operator sees in one list what works and why the rest does not."""
    good = write_model(tmp_path / "good.onnx", [1])
    tables = (
        f'[models.good]\npath = "{good}"\n[models.lost]\npath = "{tmp_path / "lost.onnx"}"\n'
        f'[models.theirs]\ndigest = "{"0" * 64}"\n'
    )
    with RunningNode(prepare(tmp_path, "veh-7", "vehicle", tables)) as node:
        status, index = node.post("/v2/repository/index", {})
        assert (status, [(each["name"], each["version"], each["state"]) for each in index]) == (
            200, [("good", "1", "READY"), ("lost", "1", "UNAVAILABLE"), ("theirs", "1", "UNAVAILABLE")],
        )  # fmt: skip
        assert ["lost.onnx" in index[1]["reason"], "neighbours" in index[2]["reason"]] == [True, True]
        assert [each["name"] for each in node.post("/v2/repository/index", {"ready": True})[1]] == ["good"]
        status, answer = node.post("/v2/repository/index", {"ready": "yes"})
        assert (status, 'ready is "yes"' in answer["error"]) == (400, True)
        assert node.ask("POST", "/v2/repository/index")[0] == 200


@pytest.mark.parametrize("call", ["", "/ready", "/config", "/stats", "/infer"])
@pytest.mark.parametrize(("version", "status"), [("1", 200), ("2", 404), ("01", 404), ("-1", 404), ("latest", 404)])
def test_version_in_the_path_is_1_or_there_is_none(rsu: RunningNode, call: str, version: str, status: int) -> None:
    """An answer of another version than was asked for is a wrong answer."""
    path = f"/v2/models/double/versions/{version}{call}"
    if call == "/infer":
        answered, answer = rsu.post(path, _request([1, 2, 3, 4]))
    else:
        answered, _, body = rsu.ask("GET", path)
        answer = json.loads(body)
    assert answered == status
    assert status == 200 or f"no version {version!r}" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/v2/repository/models/double/load", "[models.<name>]"),
        ("POST", "/v2/repository/models/double/unload", "[models.<name>]"),
        ("GET", "/v2/systemsharedmemory/status", "binary data"),
        ("POST", "/v2/cudasharedmemory/region/r/register", "binary data"),
        ("GET", "/v2/trace/setting", "parameters of each answer"),
        ("POST", "/v2/models/double/trace/setting", "parameters of each answer"),
        ("POST", "/v2/logging", "standard error"),
        ("POST", "/v2/models/double/generate", "'infer'"),
        ("POST", "/v2/models/double/versions/1/infer_stream", "'infer'"),
    ],
)
def test_call_that_a_node_does_not_have_says_what_to_do_instead(
    rsu: RunningNode, method: str, path: str, said: str
) -> None:
    """Told that there is no such path, somebody looks for the mistake in the address."""
    status, headers, body = rsu.ask(method, path, b"{}" if method == "POST" else None)
    assert (status, headers["content-type"]) == (501, "application/json")
    assert said in json.loads(body)["error"]


# --- what never reaches a node ---------------------------------------------------------------------------------------
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_form = st.fixed_dictionaries({
    "inputs": st.lists(st.fixed_dictionaries({
        "name": st.sampled_from(["x", "y"]), "datatype": st.sampled_from(["FP32", "BOOL", "UINT64", "FP16", "BYTES"]),
        "shape": st.lists(st.integers(-1, 2**40), max_size=3), "data": _json,
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 40) | _json, max_size=1),
    }), max_size=3),
})  # fmt: skip


@given(_form | _json, st.binary(max_size=32), st.none() | st.integers(0, 500).map(str) | st.text(max_size=5))
def test_inference_request_of_any_content_is_parsed_or_refused(form: Any, tail: bytes, length: str | None) -> None:
    """Whatever a program sends, the node says 400 and goes on."""
    body = json.dumps(form).encode() + tail
    for given_length in (length, str(len(body) - len(tail))):
        try:
            call = parse_untrusted_request(body, given_length)
        except (BadRequest, InputInvalid):
            continue
        assert all(array.size < 1_000 for array in call.inputs.values())
