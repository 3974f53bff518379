"""Kept aggregates over HTTP: pages, entity tags, and a stream of groups as they change."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.http.kept import kept_state
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from cloud_relay.query.readers.sqlite import SqliteReaders
from cloud_relay.store.sqlite import Store
from protocols.base.limits import SECOND
from protocols.wire.codec import encode_frame
from tests.tools.aggregates_fixture import batch_of, kept_groups, storable
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import BASE_NS, RelayProcess, batch
from tests.tools.relay_http_fixture import EventStream, RelayWeb, asked

MINUTE_NS = 60 * SECOND
SPEED = AggregateDefinition("speed", "veh/**", MINUTE_NS, by=("key",), percentiles=(50,))
FIRST_NS = BASE_NS - BASE_NS % MINUTE_NS


@pytest.fixture(name="web")
def given_web(tmp_path: Path) -> Iterator[RelayWeb]:
    with closing(RelayWeb(tmp_path, aggregates=(SPEED,))) as web:
        yield web


def test_groups_come_page_by_page_and_tell_the_next_one(web: RelayWeb) -> None:
    """A program follows the cursor, or the header."""
    for number in (1, 61, 121):
        web.relay.send(batch(number, value=float(number), following=999))
    first = web.get("/v1/aggregates/kept/speed", limit=2, order="oldest")
    assert first.status == 200
    assert [group["mean"] for group in first.json["groups"]] == [1.0, 61.0]
    target = first.headers["link"].split(">")[0][1:]
    assert parse_qs(urlparse(target).query)["cursor"] == [first.json["cursor"]]
    second = web.get(target)
    assert second.json["cursor"] is None
    (group,) = second.json["groups"]
    assert group == {
        "aggregate": "speed", "bucket_utc_ns": FIRST_NS + 2 * MINUTE_NS, "bucket_ns": MINUTE_NS,
        "key": "veh/v-1/speed", "unit": "m/s", "records": 1, "numbers": 1, "nans": 0, "infinities": 0, "missing": 0,
        "others": 0, "min": 121.0, "mean": 121.0, "max": 121.0, "sum": 121.0, "p50": 121.0,
        "percentile_error": 2**-7, "change": 3,
    }  # fmt: skip
    assert web.get("/v1/aggregates").json["groups"][0]["records"] == 3, "these are computed now"


def test_entity_tag_changes_only_with_the_groups(web: RelayWeb) -> None:
    """A board that asks each second must cost nothing while nothing comes."""
    web.relay.send(batch(1, value=1.0, following=999))
    answer = web.get("/v1/aggregates/kept/speed")
    known = {"if-none-match": answer.headers["etag"]}
    assert web.get("/v1/aggregates/kept/speed", headers=dict(known)).status == 304
    web.relay.send(batch(1, value=1.0, following=999))
    assert web.get("/v1/aggregates/kept/speed", headers=dict(known)).status == 304
    listed = {"if-none-match": web.get("/v1/aggregates/kept").headers["etag"]}
    assert web.get("/v1/aggregates/kept", headers=dict(listed)).status == 304
    web.relay.send(batch(2, value=2.0, following=999))
    assert web.get("/v1/aggregates/kept/speed", headers=dict(known)).json["groups"][0]["records"] == 2
    assert web.get("/v1/aggregates/kept", headers=dict(listed)).json["aggregates"][0]["groups"] == 1


def test_entity_tag_changes_with_another_aggregate_in_the_place_of_one(tmp_path: Path) -> None:
    """The number of the last one is given again once it was dropped."""
    path = tmp_path / "relay.sqlite"

    def state_with(*kept: AggregateDefinition) -> str:
        with closing(Store(path, aggregates=kept)):
            kept_groups(path)  # waits until all is filled or dropped
            with SqliteReaders(path).reader() as reader:
                return kept_state(reader)

    with closing(Store(path)) as store:
        store.submit(batch_of(storable(1))).result()
    before = state_with(SPEED)
    state_with()
    assert state_with(replace(SPEED, key="rsu/**")) != before


def test_stream_shows_groups_as_they_change_and_goes_on_where_it_ended(web: RelayWeb) -> None:
    """A late record changes an hour that was shown already: who follows must see it."""
    web.relay.send(batch(1, 61, value=1.0, following=999))
    with closing(EventStream(web.server.port, "/v1/aggregates/kept/speed/stream")) as stream:
        assert stream.answer.getheader("content-type", "").startswith("text/event-stream")
        web.relay.send(batch(2, value=3.0, following=999))
        name, group = stream.event() or ("", {})
        assert (name, group["bucket_utc_ns"], group["records"], group["mean"]) == ("group", FIRST_NS, 2, 2.0)
        last = stream.last_id
    web.relay.send(batch(2, value=3.0, following=999))
    web.relay.send(batch(62, value=3.0, following=999))
    web.relay.send(batch(63, value=3.0, following=999))
    headers = {"last-event-id": last}
    with closing(EventStream(web.server.port, "/v1/aggregates/kept/speed/stream", headers)) as stream:
        name, group = stream.event() or ("", {})
        assert (name, group["records"]) == ("group", 3), "it is shown as it is now, once"
    with closing(EventStream(web.server.port, "/v1/aggregates/kept/speed/stream", {"last-event-id": "0"})) as stream:
        assert [(stream.event() or ("", {}))[1]["records"] for _ in range(2)] == [2, 3]


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("/v1/aggregates/kept/nope", 404, "known are speed"),
        ("/v1/aggregates/kept/nope?since=2&until=1", 404, "known are speed"),
        ("/v1/aggregates/kept/SPEED%00", 404, "known are speed"),
        ("/v1/aggregates/kept/speed/none", 404, "/v1/openapi.json lists what there is"),
        ("/v1/aggregates/kept/", 404, "/v1/openapi.json lists what there is"),
        ("/v1/aggregates/kept/speed?box=0,0,1,1", 400, "has no cells"),
        ("/v1/aggregates/kept/speed?origin=v-1", 400, "is not by origin"),
        ("/v1/aggregates/kept/speed?by=key", 400, "unknown name 'by'"),
        ("/v1/aggregates/kept/speed?unit=", 400, "is no unit"),
        ("/v1/aggregates/kept/speed?cursor=%2500", 400, "give it unchanged"),
        ("/v1/aggregates/kept/nope/stream", 404, "known are speed"),
        ("/v1/aggregates/kept/speed/stream?since=1h", 400, "unknown name 'since'"),
        ("/v1/aggregates?name=speed", 400, "unknown name 'name'"),
    ],
)
def test_wrong_question_is_a_problem_with_the_way_out(web: RelayWeb, target: str, status: int, said: str) -> None:
    """As everywhere."""
    answer = web.get(target)
    assert answer.status == status
    assert said in answer.json["detail"]


@pytest.mark.parametrize("question", [{"since": "2", "until": "1"}, {"unit": "m\u2028"}, {"key": "veh/\u2028"}])
def test_question_that_nothing_can_answer_is_no_error(web: RelayWeb, question: dict[str, str]) -> None:
    """A program that a person types into gets an empty page and a note, as for records."""
    answer = web.get("/v1/aggregates/kept/speed", **question)
    assert (answer.status, answer.json["groups"], answer.json["cursor"]) == (200, [], None)
    assert answer.json["note"]


def test_paths_with_names_share_a_label(web: RelayWeb) -> None:
    """Whoever asks for names that there are not must not make a series of each."""
    for number in range(5):
        web.get(f"/v1/aggregates/kept/n-{number}")
    text = web.get("/metrics").body.decode()
    assert 'cloud_relay_http_request_seconds_count{path="/v1/aggregates/kept/{name}",status="404"} 5.0' in text
    assert "n-0" not in text


def test_tokens_know_the_paths(tmp_path: Path) -> None:
    """A stranger gets nothing; a viewer all of it."""
    with closing(RelayWeb(tmp_path, tokens_required=True, aggregates=(SPEED,))) as web:
        viewer = TokenFile(tmp_path / FILE).create("board", TokenRole.VIEWER, 0, None)
        for path in ("/v1/aggregates/kept", "/v1/aggregates/kept/speed"):
            assert web.get(path).status == 401
            assert web.get(path, token=viewer).status == 200
        assert web.get("/v1/aggregates/kept/speed/stream").status == 401
        assert web.get("/v1/aggregates/kept/nope").status == 401, "nor which names there are"


@pytest.mark.processes
def test_relay_process_keeps_what_its_configuration_says(tmp_path: Path) -> None:
    """The whole way: a node over TLS, a kill, another configuration, and a board that asks."""
    head = '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n'
    first = '[[aggregate]]\nname = "speed"\nkey = "veh/**"\nbucket = "1m"\n'
    second = '[[aggregate]]\nname = "map"\nkey = "veh/**"\nby = []\ncell_deg = 0.1\nbucket = "1h"\n'
    relay = RelayProcess(tmp_path)
    (tmp_path / "relay.toml").write_text(head + first)
    with relay, relay.requester() as requester:
        requester.request(encode_frame(batch(*range(1, 101), value=1.5)), 20)
        (kept,) = _asked(relay, "/v1/aggregates/kept")["aggregates"]
        assert (kept["name"], kept["groups"], kept["filled"]) == ("speed", 3, 1.0)
    (tmp_path / "relay.toml").write_text(head + first + second)
    with relay, relay.requester() as requester:
        requester.request(encode_frame(batch(*range(51, 121), value=1.5, following=121)), 20)
        eventually(lambda: all(one["filled"] == 1 for one in _asked(relay, "/v1/aggregates/kept")["aggregates"]))
        groups = _asked(relay, "/v1/aggregates/kept/map?box=48,11,49,12")["groups"]
        assert [(group["records"], group["sum"], group["south_deg"]) for group in groups] == [(120, 180.0, 48.7)]
        assert sum(group["records"] for group in _asked(relay, "/v1/aggregates/kept/speed")["groups"]) == 120


def _asked(relay: RelayProcess, target: str) -> Any:
    assert relay.http_url is not None
    port = urlparse(relay.http_url).port
    assert port is not None
    return asked(port, target).json
