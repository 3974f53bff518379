"""The HTTP API of a node, asked over real sockets of real processes."""

import http.client
import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from meshnode.http.reading_json import parse_untrusted_publish, reading_form
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.tensors import Tensor
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    double = write_model(folder / "double.onnx", ["batch", 4], "Add")
    yield from pair(folder, f'[models.double]\npath = "{double}"\n')


@pytest.fixture
def rsu(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[0]


@pytest.fixture
def vehicle(nodes: tuple[RunningNode, RunningNode]) -> RunningNode:
    return nodes[1]


# --- health and views ------------------------------------------------------------------------------------------------
def test_health_of_a_running_node_is_good(rsu: RunningNode) -> None:
    """A supervisor restarts what does not answer."""
    assert rsu.get("/healthz") == {"alive": True}
    assert rsu.get("/readyz") == {"ready": True, "troubles": [], "models": ["double"]}


def test_node_view_of_a_running_node_says_who_it_is(rsu: RunningNode) -> None:
    """The first thing an operator asks."""
    node = rsu.get("/v1/node")
    assert (node["id"], node["role"], node["mesh"]) == ("rsu-1", "rsu", "test")
    assert (node["port"], node["http_port"], node["relay"]) == (rsu.port, rsu.http_port, None)
    assert 29 < node["certificate_days_left"] < 31
    assert node["position"]["latitude_deg"] == 48.7661
    assert node["statistics"]["frames_received"] > 0


def test_peers_of_a_node_with_a_neighbour_name_it_and_its_offers(vehicle: RunningNode) -> None:
    """A program places work by what neighbours offer."""
    eventually(lambda: vehicle.get("/v1/peers")[0]["round_trip_ns"], "a round trip is measured")
    (peer,) = vehicle.get("/v1/peers")
    assert (peer["node"], peer["state"], peer["met"], peer["lanes"][0]) == ("rsu-1", "alive", True, "realtime")
    assert {offer["model"] for offer in peer["offers"]} == {"double"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8470"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.0.2.1:8470"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Host": "localhost", "Origin": "null"}, 403),
        ({"Referer": "https://evil.example/page"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Referer": "http://127.0.0.1:9/"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://localhost:3000"}, 200),
    ],
)
def test_request_by_a_foreign_name_is_refused(rsu: RunningNode, headers: dict[str, str], status: int) -> None:
    """DNS rebinding makes a web page's own name point here; its Host header gives it away."""
    answered, _, body = rsu.ask("GET", "/v1/node", headers=headers)
    assert answered == status, body
    assert ("error" in json.loads(body)) == (status != 200)


def test_unknown_paths_and_methods_are_json_errors(rsu: RunningNode) -> None:
    """A program parses one form of error, whatever it did wrong."""
    for method, path, status in (("GET", "/v3", 404), ("DELETE", "/v1/peers", 405), ("GET", "/v1/peers/", 404)):
        answered, headers, body = rsu.ask(method, path)
        assert (answered, headers["content-type"]) == (status, "application/json")
        assert path in json.loads(body)["error"]


def test_metrics_of_a_working_node_parse_and_count(rsu: RunningNode, vehicle: RunningNode) -> None:
    """A dashboard that can't read the page shows a healthy flat line."""
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    vehicle.post("/v2/models/double/infer", {"inputs": [given]})
    vehicle.post("/v1/readings", {"key": "veh/veh-1/metrics", "value": 1})
    status, headers, body = vehicle.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    samples = {(sample.name, *sample.labels.values()): sample.value for f in families.values() for sample in f.samples}
    assert samples["meshnode_readings_published_total",] >= 1
    assert samples["meshnode_neighbours", "alive"] == 1
    assert samples["meshnode_neighbour_round_trip_seconds", "rsu-1"] > 0
    assert samples["meshnode_neighbour_behind", "rsu-1"] == 0
    assert samples["process_resident_memory_bytes",] > 0
    assert samples["meshnode_inference_latency_seconds_count", "neighbour"] >= 1
    assert families["meshnode_link_lanes"].type == "gauge"
    assert any(name[0] == "meshnode_drops_total" for name in samples) or not vehicle.get("/v1/drops")


# --- readings --------------------------------------------------------------------------------------------------------
def test_reading_published_at_one_node_streams_from_the_other_with_its_context(
    rsu: RunningNode, vehicle: RunningNode
) -> None:
    """A reading without its context is worthless to whoever gets it; JSON must not lose any of it."""
    value = {"$$own": [None, True, 1.5, "ü"], "b": {"$bytes": "AP8="}, "n": {"$float": "-inf"},
             "t": {"$tensor": {"dtype": "i2", "shape": [2, 1], "data": "AQACAA=="}}}  # fmt: skip
    asked = {
        "key": "veh/veh-1/context", "value": value, "unit": "m/s", "sensor": "wheel",
        "time_ns": 1_700_000_000_123_456_789, "where": {
            "latitude_deg": 1.5, "longitude_deg": -2.5, "accuracy_m": 0.5, "altitude_m": 7.0, "heading_deg": 90.0,
        },
        "quality": 0.5, "calibration": "c7", "lineage": ["filter", "wheel"], "priority": 5, "hops": 2,
    }  # fmt: skip
    status, put = vehicle.post("/v1/readings", asked)
    assert (status, put["origin"]) == (200, "veh-1")
    _, headers, body = rsu.ask("GET", "/v1/readings?key=veh/*/context&count=1&timeout_s=30")
    assert headers["content-type"] == "application/x-ndjson"
    (line,) = body.splitlines()
    reading = json.loads(line)
    assert reading.pop("sequence") == put["sequence"]
    assert reading.pop("hops") <= 2
    assert reading == {
        "key": asked["key"], "origin": "veh-1", "value": value, "where": asked["where"],
        "when": {"utc_ns": asked["time_ns"], "uncertainty_ns": 10_000_000},
        "how": {key: asked[key] for key in ("sensor", "unit", "quality", "calibration", "lineage")},
        "priority": 5, "lifespan_ms": 0,
    }  # fmt: skip


def test_stream_open_gets_readings_as_they_come(rsu: RunningNode, vehicle: RunningNode) -> None:
    """A stream that only shows what it began with is a query."""
    connection = http.client.HTTPConnection("127.0.0.1", rsu.http_port, timeout=30)
    connection.request("GET", "/v1/readings?key=veh/veh-1/live&history=false&timeout_s=30")
    response = connection.getresponse()
    for number in range(3):
        eventually(
            lambda n=number: vehicle.post("/v1/readings", {"key": "veh/veh-1/live", "value": n})[1]["queued"],  # type: ignore[misc]
            "the interest of the other node is known",
        )
        assert json.loads(response.readline())["value"] == number
    connection.close()


def test_stream_without_readings_ends_in_time(rsu: RunningNode) -> None:
    """A script that waits for a reading which never comes must not wait for ever."""
    status, _, body = rsu.ask("GET", "/v1/readings?key=nobody/says/this&timeout_s=0.1")
    assert (status, body) == (200, b"")


def test_streams_beyond_the_bound_are_refused_until_one_is_closed(vehicle: RunningNode) -> None:
    """Each stream takes a subscription of the node; a program that leaks them must not take all."""
    streams = []
    for _ in range(32):
        connection = http.client.HTTPConnection("127.0.0.1", vehicle.http_port, timeout=30)
        connection.request("GET", "/v1/readings?key=leak&timeout_s=60")
        streams.append((connection, connection.getresponse()))
    status, headers, _ = vehicle.ask("GET", "/v1/readings?key=leak&timeout_s=0")
    assert (status, headers["retry-after"]) == (503, "1")
    for connection, response in streams:
        response.close()
        connection.close()
    eventually(
        lambda: vehicle.ask("GET", "/v1/readings?key=leak&timeout_s=0")[0] == 200, "closed streams free their place"
    )


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "lacks 'key'"),
        ("?key=a//b", "empty chunk"),
        ("?key=a&cout=1", "did you mean 'count'?"),
        ("?key=a&count=-1", "whole number"),
        ("?key=a&timeout_s=nan", "number from 0"),
        ("?key=a&conflate=perhaps", "true or false"),
        ("?key=a&conflate=true&every=true", "use one of both"),
        ("?key=a&hops=99", "from 0 to 8"),
    ],
)
def test_stream_asked_for_wrongly_says_what_is_wrong(rsu: RunningNode, query: str, said: str) -> None:
    """An option that is misspelt and ignored costs somebody an afternoon."""
    status, _, body = rsu.ask("GET", f"/v1/readings{query}")
    assert (status, said in json.loads(body)["error"]) == (400, True), body


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        ('{"key": "veh/veh-1/x", "value": 1}', "text/plain", 415, "application/json"),
        ("{", "application/json", 400, "not a reading"),
        ('{"key": "veh/veh-1/x"}', "application/json", 400, "value"),
        ('{"key": "veh/veh-1/x", "value": 1, "units": "m"}', "application/json", 400, "units"),
        ('{"key": "veh/veh-1/x", "value": 1, "priority": 8}', "application/json", 400, "priority"),
        ('{"key": "veh/*/x", "value": 1}', "application/json", 400, "wildcard"),
        ('{"key": "rsu/rsu-1/x", "value": 1}', "application/json", 403, "access table"),
        ('{"key": "veh/veh-1/x", "value": {"$bytes": "?"}}', "application/json", 400, "base64"),
        ('{"key": "veh/veh-1/x", "value": {"$tensor": {"dtype": "f4", "shape": [0, 99999999, 99999999], "data": ""}}}',
         "application/json", 400, "not addressable"),
        ('{"key": "veh/veh-1/x", "value": {"$tensor": {"dtype": "f4", "shape": [2], "data": "AAAA"}}}',
         "application/json", 400, "has 8 bytes"),
        ('{"key": "veh/veh-1/x", "value": {"$what": 1}}', "application/json", 400, "$what"),
        ('{"key": "veh/veh-1/x", "value": 123456789012345678901234567890}', "application/json", 400, "travel"),
        ('{"key": "veh/veh-1/x", "value": ' + "[" * 5_000 + "]" * 5_000 + "}",
         "application/json", 400, "not a reading"),
    ],
)  # fmt: skip
def test_reading_published_wrongly_is_refused(
    vehicle: RunningNode, body: str, kind: str, status: int, said: str
) -> None:
    """Nothing wrong gets into the mesh, and the program that sent it learns why."""
    answered, _, answer = vehicle.ask("POST", "/v1/readings", body, {"Content-Type": kind})
    assert (answered, said in json.loads(answer)["error"]) == (status, True), answer


def test_body_declared_too_large_is_refused_before_it_is_sent(vehicle: RunningNode) -> None:
    """A length field must not claim memory."""
    with socket.create_connection(("127.0.0.1", vehicle.http_port), 30) as link:
        link.sendall(
            b"POST /v1/readings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert link.recv(4096).startswith(b"HTTP/1.1 413")


# --- what never reaches a node ---------------------------------------------------------------------------------------
_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.binary(max_size=8).map(lambda data: Tensor("u1", (len(data),), memoryview(data))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["$", "$bytes", "$$x"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(_value)
def test_value_of_a_reading_survives_json(value: Any) -> None:
    """What a program publishes as it was streamed to it is the same reading."""
    reading = Reading("k", "n", 1, value, Position(0, 0, 1), EventTime(1, 1), Provenance("s", "1"))
    body = msgspec.json.encode({"key": "k", "value": reading_form(reading)["value"]})
    assert parse_untrusted_publish(body).value == value


def test_value_that_is_not_a_number_survives_json() -> None:
    """A sensor that says NaN did not say null."""
    body = b'{"key": "k", "value": {"$float": "nan"}}'
    assert math.isnan(parse_untrusted_publish(body).value)


# --- silence -------------------------------------------------------------------------------------------------------
def test_silent_connections_make_place_for_who_asks(vehicle: RunningNode) -> None:
    """A program that leaks connections, or is stopped in the middle of a request, must not lock everybody out."""
    stream = http.client.HTTPConnection("127.0.0.1", vehicle.http_port, timeout=30)
    stream.request("GET", "/v1/readings?key=veh/veh-1/kept")
    response = stream.getresponse()
    begun = [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"]
    silent = []
    for number in range(300):
        silent.append(socket.create_connection(("127.0.0.1", vehicle.http_port), timeout=30))
        silent[-1].sendall(begun[number % len(begun)])
    eventually(lambda: vehicle.ask("GET", "/healthz")[0] == 200, "the API answers")
    assert silent[0].recv(1) == b"", "the one that was silent for longest is closed"
    assert vehicle.post("/v1/readings", {"key": "veh/veh-1/kept", "value": 7})[0] == 200
    assert json.loads(response.readline())["value"] == 7, "a connection at work is left alone"
    assert all(vehicle.ask("GET", "/healthz")[0] == 200 for _ in range(5))
    for connection in (*silent, response, stream):
        connection.close()


# --- leaving ---------------------------------------------------------------------------------------------------------
def test_node_told_to_leave_with_a_stream_open_ends_it_and_exits(tmp_path: Any) -> None:
    """A dashboard that listens must not keep a vehicle from shutting down."""
    with RunningNode(prepare(tmp_path, "veh-9", "vehicle")) as node:
        connection = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=30)
        connection.request("GET", "/v1/readings?key=**")
        response = connection.getresponse()
        assert node.stop() == 0
        assert response.read() == b""
        connection.close()
