"""Records as they are stored: nobody misses one, and nobody who is slow costs the relay memory."""

import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cloud_relay.http import streaming
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from cloud_relay.query import arrivals
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import batch
from tests.tools.relay_http_fixture import EventStream, RelayWeb, given_web

__all__ = ["given_web"]


def test_stream_shows_what_is_stored_from_now_on_and_goes_on_where_it_ended(web: RelayWeb) -> None:
    """A board that lost its connection must show what came meanwhile, once."""
    web.relay.send(batch(1, 2))
    with closing(EventStream(web.server.port)) as stream:
        assert stream.answer.getheader("content-type", "").startswith("text/event-stream")
        web.relay.send(batch(3, 4))
        assert stream.sequences(2) == [3, 4]
        web.relay.send(batch(3, 4, 5))
        assert stream.sequences(1) == [5], "what comes again is not stored again"
        last = stream.last_id
    web.relay.send(batch(6, 7))
    with closing(EventStream(web.server.port, headers={"last-event-id": last})) as stream:
        assert stream.sequences(2) == [6, 7]
        web.relay.send(batch(8))
        assert stream.sequences(1) == [8]
    with closing(EventStream(web.server.port, headers={"last-event-id": "0"})) as stream:
        assert stream.sequences(8) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_stream_of_a_filter_goes_on_past_what_it_does_not_show(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes back need not be looked for from the beginning again."""
    monkeypatch.setattr(arrivals, "MAX_EXAMINED", 3)
    web.relay.send(batch(*range(1, 9)))
    web.relay.send(batch(9, key="veh/v-1/hazard", latitude_deg=10.0))
    web.relay.send(batch(10, 11))
    for target in ("key=veh/*/hazard", "box=9,11,11,12", "key=veh/**&box=9,11,11,12&origin=v-1&rule=r"):
        with closing(EventStream(web.server.port, f"/v1/stream?{target}", {"last-event-id": "0"})) as stream:
            assert stream.sequences(1) == [9]
            web.relay.send(batch(9))
            assert stream.answer.readline() == b"id: 11\n"


def test_stream_that_falls_too_far_behind_is_told_and_goes_on_later(
    web: RelayWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that can't keep up must learn it, instead of showing an hour ago as now."""
    monkeypatch.setattr(streaming, "MAX_BEHIND", 5)
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 2)
    with closing(EventStream(web.server.port)) as stream:
        assert stream.answer.readline() == b"retry: 1000\n"
        web.relay.send(batch(*range(1, 21)))
        assert stream.event() == ("dropped", {"why": "18 records behind: go on with Last-Event-ID"})
        assert stream.event() is None
        last = stream.last_id
    with closing(EventStream(web.server.port, headers={"last-event-id": last})) as stream:
        assert stream.sequences(20) == list(range(1, 21)), "who catches up is not behind"


def test_client_that_takes_nothing_is_cut_off(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its connection for ever, and there are few."""
    monkeypatch.setattr(streaming, "PATIENCE_S", 0.2)
    for first in range(1, 400, 10):
        web.relay.send(batch(*range(first, first + 10), value="x" * 50_000))
    with socket.create_connection(("127.0.0.1", web.server.port), 20) as connection:
        connection.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 0\r\n\r\n")
        eventually(lambda: not is_established(connection))
    assert web.get("/healthz").status == 200


def is_established(connection: socket.socket) -> bool:
    """Whether the other side still holds a connection, of which nothing is read."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1


def test_streams_are_few_and_end_with_the_server(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that opens more and more must not take all connections; a relay that stops must not wait."""
    monkeypatch.setattr(streaming, "MAX_STREAMS", 2)
    with ExitStack() as opened:
        streams = [opened.enter_context(closing(EventStream(web.server.port))) for _ in range(2)]
        for stream in streams:
            assert stream.answer.readline() == b"retry: 1000\n"
        assert web.get("/v1/stream").status == 503
        streams[0].close()
        web.relay.send(batch(1))
        eventually(lambda: is_free(web))
        web.server.close()
        assert streams[1].sequences(1) == [1]
        assert streams[1].event() is None


def test_streams_that_come_together_are_no_more_than_others(web: RelayWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards of a whole control room begin anew at once after a cut; each stream costs looks into the store."""
    monkeypatch.setattr(streaming, "MAX_STREAMS", 2)
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", web.server.port), 20)) for _ in range(12)
        ]
        for connection in connections:
            connection.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heads = [connection.recv(64).split(b"\r\n")[0] for connection in connections]
        assert sorted(head.split()[1] for head in heads) == [b"200"] * 2 + [b"503"] * 10
    eventually(lambda: is_free(web))


def is_free(web: RelayWeb) -> bool:
    """Whether another stream can be opened."""
    with closing(EventStream(web.server.port)) as stream:
        return stream.answer.status == 200


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 40, "٣"])
def test_wrong_last_event_id_is_refused(web: RelayWeb, last: str) -> None:
    """A stream from a wrong place would look like a right one."""
    answer = web.get("/v1/stream", headers={"last-event-id": last.encode().decode("latin-1")})
    assert (answer.status, "Last-Event-ID" in answer.json["detail"]) == (400, True)
    assert web.get("/v1/stream", since="1m").status == 400


def test_stream_does_not_wait_for_a_number_of_another_store(web: RelayWeb) -> None:
    """After a copy was restored, a board with a higher number would get nothing until the store has grown past it."""
    web.relay.send(batch(1, 2))
    answer = web.get("/v1/stream", headers={"last-event-id": "3"})
    assert (answer.status, "begin without it" in answer.json["detail"]) == (400, True)
    with closing(EventStream(web.server.port, headers={"last-event-id": "2"})) as stream:
        web.relay.send(batch(3))
        assert stream.sequences(1) == [3]


def test_stream_ends_when_its_token_is_revoked(tmp_path: Path) -> None:
    """A stream may last for weeks; a token that was taken back must not."""
    with closing(RelayWeb(tmp_path, tokens_required=True)) as web:
        tokens = TokenFile(web.folder / FILE)
        shown = tokens.create("board", TokenRole.VIEWER, 0, None)
        headers = {"authorization": f"Bearer {shown}"}
        with closing(EventStream(web.server.port, headers=headers)) as stream:
            web.relay.send(batch(1))
            assert stream.sequences(1) == [1]
            tokens.revoke("board")
            web.relay.send(batch(2))
            event = stream.event()
            assert event is not None
            assert (event[0], "revoked" in event[1]["why"]) == ("ended", True)
            assert stream.event() is None


def test_file_of_tokens_that_is_damaged_ends_streams_and_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody may go on when the right to it can't be checked, and the operator has to find out why."""
    with closing(RelayWeb(tmp_path, tokens_required=True)) as web:
        shown = TokenFile(web.folder / FILE).create("board", TokenRole.VIEWER, 0, None)
        with closing(EventStream(web.server.port, headers={"authorization": f"Bearer {shown}"})) as stream:
            assert stream.answer.readline() == b"retry: 1000\n"
            (web.folder / FILE).write_text("{")
            web.relay.send(batch(1))
            event = stream.event()
            assert event is not None
            assert (event[0], "can't be checked" in event[1]["why"]) == ("ended", True)
        caplog.clear()
        assert web.get("/v1/records", shown).status == 503
        assert "restore it, or remove it and create tokens anew" in caplog.text
        assert shown not in caplog.text
