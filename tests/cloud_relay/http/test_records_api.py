"""The relay's HTTP API: the same records and the same grammar as everywhere, for programs that know nothing of it."""

import base64
import json
import math
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloud_relay.http import answering
from cloud_relay.http.openapi import described
from cloud_relay.query import sources
from cloud_relay.query.readers.sqlite import SqliteReader
from cloud_relay.query.searching import COLUMNS
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading
from protocols.base.limits import SECOND
from protocols.wire.codec import encode_frame
from protocols.wire.tensors import tensor_of
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, RelayProcess, batch
from tests.tools.relay_http_fixture import EventStream, RelayWeb, asked, given_web, raw_answer  # noqa: F401 -- a fixture


# --- records ---------------------------------------------------------------------------------------------------------
def test_records_come_with_their_whole_context(web: RelayWeb) -> None:
    """Nothing of what the node said about its reading may be lost on the way to a program."""
    web.relay.send(batch(7))
    (record,) = web.get("/v1/records").json["records"]
    assert record == {
        "origin": "v-1", "sequence": 7, "rule": "r", "key": "veh/v-1/speed", "sensing_origin": "v-1",
        "reading_sequence": 7, "value": {"number": 7}, "latitude_deg": 48.7, "longitude_deg": 11.4, "accuracy_m": 2.0,
        "altitude_m": None, "heading_deg": None, "event_utc_ns": BASE_NS + 7 * SECOND, "uncertainty_ns": 1_000_000,
        "sensor": "wheel", "unit": "m/s", "quality": 0.9, "calibration": "cal-7", "lineage": ["raw", "filtered"],
        "priority": 4, "lifespan_ms": 0, "received_utc_ns": BASE_NS, "has_receipt": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (math.nan, {"$float": "nan"}),
        ([-math.inf, 1.5, None, True], [{"$float": "-inf"}, 1.5, None, True]),
        (2**63 - 1, 2**63 - 1),
        (b"\x00\xff", {"$bytes": base64.b64encode(b"\x00\xff").decode()}),
        (
            tensor_of(memoryview(struct.pack("<2f", 1, 2)).cast("f")),
            {"$tensor": {"dtype": "f4", "shape": [2], "data": base64.b64encode(struct.pack("<2f", 1, 2)).decode()}},
        ),
        ({"$odd": {"deep": [[[["x"]]]]}}, {"$$odd": {"deep": [[[["x"]]]]}}),
    ],
)
def test_values_that_json_lacks_are_whole(web: RelayWeb, value: Any, form: Any) -> None:
    """A NaN that becomes null, or a tensor without its elements, would be a value that nobody sensed."""
    web.relay.send(batch(1, value=value))
    assert web.get("/v1/records").json["records"][0]["value"] == form


def test_pages_follow_one_another_by_cursor_and_by_link(web: RelayWeb) -> None:
    """A program that follows the links gets each record once, in order, also while new ones come."""
    web.relay.send(batch(*range(1, 26)))
    target, found = "/v1/records?key=veh%2F**&limit=10", []
    for _ in range(3):
        answer = asked(web.server.port, target)
        found += [record["sequence"] for record in answer.json["records"]]
        web.relay.send(batch(*range(26, 30)))
        if "link" not in answer.headers:
            break
        target, relation = answer.headers["link"].split("; ")
        target = target.strip("<>")
        assert relation == 'rel="next"'
        assert f"cursor={answer.json['cursor']}" in target
    assert found == list(range(25, 0, -1))
    assert answer.json["cursor"] is None


def test_filters_mean_what_they_mean_to_the_command(web: RelayWeb) -> None:
    """There is one grammar."""
    web.relay.send(batch(1, 2, 3))
    web.relay.send(batch(4, key="veh/v-1/hazard", latitude_deg=-17.0, longitude_deg=-179.5))
    assert web.found(key="veh/*/speed", limit=2) == [3, 2]
    assert web.found(box="-10,179,-20,-179") == [4]
    assert web.found(since=f"{BASE_NS // SECOND + 2}", until=f"{BASE_NS // SECOND + 4}", order="oldest") == [2, 3]
    assert web.found(rule="other") == web.found(origin="v-2") == web.found(min_quality="0.95") == []
    assert web.found("/v1/newest") == [4, 3]
    groups = web.get("/v1/aggregates", by="key", bucket="1d").json["groups"]
    assert [group["records"] for group in groups] == [1, 3]
    assert web.found("/v1/newest", limit=1, cursor="veh/v-1/hazard") == [3]


def test_hostile_question_costs_a_page_and_gets_the_next(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds nothing among many must neither hold a thread for long nor pretend that it looked at everything."""
    monkeypatch.setattr(sources, "_FIRST_CHUNKS", (2, 2))
    monkeypatch.setattr(sources, "_MAX_CHUNK", 2)
    monkeypatch.setattr("cloud_relay.query.readers.sqlite.SqliteReader.page.__defaults__", (-1.0,))
    web.relay.send(batch(*range(1, 8)))
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        answer = web.get("/v1/records", box="0,0,40,180", **({} if cursor is None else {"cursor": cursor}))
        assert answer.json["records"] == []
        cursor, pages = answer.json["cursor"], pages + 1
    assert pages == 4


# --- wrong requests --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("/v1/records?limt=3", 400, "'limt': did you mean 'limit'"),
        ("/v1/records?limit=3&limit=4", 400, "'limit' twice"),
        ("/v1/records?limit=1e3", 400, "limit is '1e3'"),
        ("/v1/records?limit=" + "9" * 5_000, 400, "from 1 to 1000"),
        ("/v1/records?box=1,2,3", 400, "'1,2,3'"),
        ("/v1/records?since=yesterday", 400, "'yesterday'"),
        ("/v1/records?key=a//b", 400, "empty chunk"),
        ("/v1/records?key=%ff%00", 400, "control character"),
        ("/v1/records?origin=%27%20OR%201=1--", 400, "OR 1=1"),
        ("/v1/records?cursor=1", 400, "give it unchanged"),
        ("/v1/newest?until=1m", 400, "'until': known are"),
        ("/v1/newest?cursor=a//b", 400, "give it unchanged"),
        ("/v1/records?key=" + "x" * 9_000, 414, "at most 8192"),
        ("/v1/record", 404, "/v1/openapi.json"),
        ("/v1/records/", 404, "/v1/records/"),
    ],
)
def test_wrong_request_is_told_what_is_wrong_as_problem_details(
    web: RelayWeb, target: str, status: int, said: str
) -> None:
    """Programs read the status, people the detail."""
    answer = asked(web.server.port, target)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert said in problem["detail"]


def test_only_get_is_taken(web: RelayWeb) -> None:
    """Nothing can be changed by HTTP."""
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = asked(web.server.port, "/v1/records", method=method)
        assert (answer.status, answer.json["title"]) == (405, "Method Not Allowed")
    head = asked(web.server.port, "/v1/records", method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_web_pages_of_others_are_kept_out(web: RelayWeb) -> None:
    """A page that somebody here looks at could otherwise read the records by a name of its own for 127.0.0.1."""
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = web.get("/v1/records", headers=headers)
        assert (answer.status, answer.json["title"]) == (403, "Forbidden")


def test_bytes_that_are_no_request_end_their_connection_alone(web: RelayWeb) -> None:
    """Whatever comes, the server goes on."""
    for junk in (b"\x16\x03\x01\x00\xff" * 40, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"):
        assert b"200" not in raw_answer(web.server.port, junk)[:20]
    assert web.get("/healthz").json == {"alive": True}


def test_store_that_can_not_be_read_is_told_without_names_of_files(web: RelayWeb) -> None:
    """Who asks over the network has no business with paths of the relay; its log has them."""
    web.relay.store.close()
    with closing(sqlite3.connect(web.relay.path)) as db:
        db.execute("PRAGMA user_version = 99")
    answer = web.get("/v1/records")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert str(web.folder) not in answer.body.decode()


def test_more_requests_than_wait_are_told_to_come_back(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue without an end would be memory without an end."""
    monkeypatch.setattr(answering, "THREADS", 0)
    monkeypatch.setattr(answering, "MAX_WAITING", 0)
    answer = web.get("/v1/records")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


# --- tags and compression --------------------------------------------------------------------------------------------
def test_question_asked_again_is_answered_anew_only_when_something_came(web: RelayWeb) -> None:
    """A board that asks each second should cost nothing while nothing happens."""
    web.relay.send(batch(1))
    first = web.get("/v1/records", key="veh/**")
    tag = first.headers["etag"]
    again = web.get("/v1/records", headers={"if-none-match": f'"x", {tag}'}, key="veh/**")
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert web.get("/v1/records", headers={"if-none-match": tag}, key="veh/*").status == 200, "another question"
    assert web.get("/v1/records", headers={"if-none-match": tag}, key="veh/**", since="1h").status == 200
    web.relay.send(batch(2))
    later = web.get("/v1/records", headers={"if-none-match": tag}, key="veh/**")
    assert (later.status, len(later.json["records"])) == (200, 2)
    description = web.get("/v1/openapi.json").headers["etag"]
    assert web.get("/v1/openapi.json", headers={"if-none-match": description}).status == 304


def test_answers_are_compressed_for_who_takes_it(web: RelayWeb) -> None:
    """Records are long and alike; a link by radio is neither wide nor free."""
    web.relay.send(batch(*range(1, 51)))
    plain, packed = web.get("/v1/records"), web.get("/v1/records", headers={"accept-encoding": "br, gzip;q=0.5"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json == plain.json
    assert len(packed.body) * 5 < len(plain.body)
    refused = web.get("/v1/records", headers={"accept-encoding": "gzip;q=0, identity"})
    assert "content-encoding" not in refused.headers


# --- the description -------------------------------------------------------------------------------------------------
def test_description_names_every_path_parameter_and_field(web: RelayWeb) -> None:
    """Clients are made from it, so what it does not say is not there."""
    web.relay.send(batch(1))
    description = web.get("/v1/openapi.json").json
    assert description == json.loads(json.dumps(described(description["info"]["version"])))
    for path, operations in description["paths"].items():
        assert asked(web.server.port, path, method="HEAD").status == (404 if "{name}" in path else 200)
        for parameter in operations["get"]["parameters"]:
            answer = web.get(path, **{parameter["name"]: "\x00"})
            assert answer.status == 400, (path, parameter)
            assert "unknown name" not in answer.json["detail"], (path, parameter)
    (record,) = web.get("/v1/records").json["records"]
    assert sorted(record) == sorted(description["components"]["schemas"]["Record"]["properties"]) == sorted(COLUMNS)


# --- a relay process -------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_relay_process_answers_over_http_what_a_node_sent(tmp_path: Path) -> None:
    """The whole way: a node over TLS, the store, programs over HTTP, and an end that waits for no stream."""
    relay = RelayProcess(tmp_path)
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n')
    with relay, relay.requester() as requester:
        requester.request(encode_frame(batch(1, 2)), 10)
        assert relay.http_url is not None
        port = urlsplit(relay.http_url).port
        assert port is not None
        answer = asked(port, "/v1/records?key=veh/**")
        assert [record["sequence"] for record in answer.json["records"]] == [2, 1]
        assert asked(port, "/v1/statistics").json["stored"] == 2
        with closing(EventStream(port)) as stream:
            requester.request(encode_frame(batch(2, 3)), 10)
            assert stream.sequences(1) == [3]
            relay.process.terminate()
            assert stream.event() is None
            assert relay.process.wait(30) == 0


def test_entity_tag_changes_when_retention_deletes(tmp_path: Path) -> None:
    """A client that is told 304 would go on showing what was deleted."""
    relay, tags = RelayInProcess(tmp_path / "relay.sqlite"), []

    def note() -> None:
        with closing(open_for_reading(relay.path)) as db:
            tags.append(SqliteReader(db, relay.path).state())

    for number in range(1, 5):
        relay.send(batch(number))
    relay.pack(1, 2)
    note()
    relay.pack(1)
    relay.retain(RetentionPolicy((RetentionRule("**", 60.0),)), 61.0)
    note()
    relay.send(batch(5))
    note()
    relay.pack(1)
    note()
    relay.store.close()
    assert len(set(tags)) == len(tags)
