"""The Open Inference Protocol, spoken with real processes over real sockets."""

import http.client
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.http.guard import BadRequest
from meshnode.inference.oip.requests import parse_untrusted_request
from protocols.base.errors import InputInvalid
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, pair
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
    model = vehicle.get("/v2/models/double")
    assert (model["inputs"], model["parameters"]["loaded"]) == ([], False)
    assert model["parameters"]["offered_by"] == "rsu-1"
    assert model["parameters"]["digest"] == rsu.get("/v2/models/double")["parameters"]["digest"]
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


def test_inference_by_an_unmodified_client_works(vehicle: RunningNode) -> None:
    """Programs written for an inference server are pointed at a node, not rewritten."""
    code = """
import sys
import numpy as np
try:
    import tritonclient.http as client
except (ImportError, RuntimeError) as error:
    print(error)
    sys.exit(77)
server = client.InferenceServerClient(sys.argv[1])
assert server.is_server_live() and server.is_server_ready() and server.is_model_ready("double")
assert server.get_server_metadata()["name"] == "meshnode"
assert server.get_model_metadata("double", "1")["versions"] == ["1"]
values = np.arange(8, dtype=np.float32).reshape(2, 4)
for binary_in in (True, False):
    for wanted in (None, [client.InferRequestedOutput("y", binary_data=True)],
                   [client.InferRequestedOutput("y", binary_data=False)]):
        given = client.InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(values, binary_data=binary_in)
        result = server.infer("double", [given], outputs=wanted, request_id="r", timeout=10_000_000)
        assert (result.as_numpy("y") == 2 * values).all()
        assert result.get_response()["parameters"]["ran_on"] == "rsu-1"
try:
    server.infer("nobody-has-this", [given])
except client.InferenceServerException as error:
    assert error.status() == "404" and "nobody-has-this" in error.message(), error
else:
    raise SystemExit("an unknown model was computed")
print("done")
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, f"127.0.0.1:{vehicle.http_port}"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if ran.returncode == 77:
        pytest.skip(f"tritonclient[http] is not installed: {ran.stdout.strip()}")
    assert (ran.returncode, ran.stdout.strip()) == (0, "done"), ran.stderr


@pytest.mark.parametrize(
    ("path", "request_", "status", "said"),
    [
        ("nobody-has-this", _request([1, 2, 3, 4]), 404, "known: double"),
        ("double/versions/2", _request([1, 2, 3, 4]), 404, "no version '2'"),
        ("double", {"inputs": []}, 400, "needs the input"),
        ("double", {}, 400, "inputs"),
        ("double", _request([1, 2, 3]), 400, "has 4 elements"),
        ("double", _request([[1, 2, 3], [4]]), 400, "not an array"),
        ("double", _request([1, 2, 3, None]), 400, "not numbers"),
        ("double", _request(["1", "2", "3", "4"]), 400, "not numbers"),
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
