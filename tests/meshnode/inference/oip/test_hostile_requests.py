"""Requests that are almost right, over real HTTP: the mistakes are the client's, and never an error of the node."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from random import Random
from typing import Any

import pytest

from tests.clients.__main__ import nodes_with_models
from tests.meshnode.http.test_bodies import bomb
from tests.tools.node_fixture import RunningNode

pytestmark = pytest.mark.processes
VALUES: tuple[Any, ...] = (
    None, True, -1, 1.5, 1e308, 2**70, -(2**70), "", "NaN", "\ud800", "y" * 300, "BYTES", "FP16", "UINT64",
    float("nan"), float("-inf"), 1 << 40, [], [[]], [1], [1, 2, 3, 4], [0, 1 << 40, 1 << 40], {}, {"a": 1},
)  # fmt: skip
FIELDS = ("data", "shape", "parameters", "id", "outputs", "inputs", "name", "datatype", "binary_data_size", "timeout")
PATHS = (*["/v2/models/double/infer"] * 6, "/v2/models/half/infer", "/v2/repository/index", "/v2/models/%ff/infer")
REQUESTS = 400


@pytest.fixture(scope="module", name="nodes")
def given_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    yield from nodes_with_models(folder)


def spoilt(form: Any, random: Random) -> Any:
    """``form`` with some of its parts replaced, left out or added."""
    if random.random() < 0.12:
        return random.choice(VALUES)
    if isinstance(form, dict):
        more = {random.choice(FIELDS): random.choice(VALUES)} if random.random() < 0.1 else {}
        return {name: spoilt(value, random) for name, value in form.items() if random.random() > 0.05} | more
    return [spoilt(value, random) for value in form] if isinstance(form, list) else form


def request(random: Random) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers of a spoilt request."""
    given: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    tail = bytes(16) if random.random() < 0.4 else b""
    given |= {"parameters": {"binary_data_size": 16}} if tail else {"data": [1, 2, 3, 4], "parameters": {}}
    parameters = {"binary_data_output": random.random() < 0.5, "timeout": 60_000_000}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    form = {"id": "a", "parameters": parameters, "inputs": [given], "outputs": outputs}
    head = json.dumps(spoilt(form, random)).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    if random.random() < 0.05:
        headers["Inference-Header-Content-Length"] = random.choice(("-1", "0", "9" * 30, "x", "1.5", " 5"))
    body = head + tail
    if random.random() < 0.2:
        headers["Content-Encoding"], body = "gzip", gzip.compress(body)
    if random.random() < 0.05:
        at = random.randrange(len(body))
        body = body[:at] + random.randbytes(1) + body[at + 1 :]
    if random.random() < 0.1:
        headers["Accept-Encoding"] = random.choice(("gzip", "gzip;q=nan", ";", ",,,", "*", "gzip;q=0"))
    return random.choice(PATHS), body, headers


@pytest.mark.parametrize("where", [0, 1])
def test_spoilt_request_is_answered_or_refused_with_a_reason(
    nodes: tuple[RunningNode, RunningNode], where: int
) -> None:
    """500 sends an operator to the log of a node that did nothing wrong."""
    random, statuses = Random(where), Counter[int]()
    connection = HTTPConnection("127.0.0.1", nodes[where].http_port, timeout=30)
    for _ in range(REQUESTS):
        path, body, headers = request(random)
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert response.status in (200, 400, 404), (response.status, answer, body)
        assert response.status == 200 or json.loads(answer)["error"], body
        statuses[response.status] += 1
    connection.close()
    assert statuses[200] > REQUESTS // 50, "some of them are right, or nothing is tried"
    assert "Traceback" not in nodes[where].log.read_text()


def test_bomb_as_a_tensor_is_refused_at_the_bound_of_a_request(nodes: tuple[RunningNode, RunningNode]) -> None:
    """4 MB become 4 GiB, and an inference may have 64 MiB."""
    headers = {"Content-Encoding": "deflate", "Inference-Header-Content-Length": "2"}
    status, _, answer = nodes[0].ask("POST", "/v2/models/double/infer", bomb(4_096), headers)
    assert (status, "67108864 bytes once it is unpacked" in json.loads(answer)["error"]) == (413, True)
    assert nodes[0].get("/v2/health/live") == {"live": True}
