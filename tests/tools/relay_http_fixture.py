"""The HTTP server of a relay without its process, and a client. Import ``given_web`` where the fixture ``web`` is
used."""

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.config import HttpConfig
from cloud_relay.http.serving import RelayHttp
from cloud_relay.store.places import StorePlace
from tests.tools.relay_fixture import RelayInProcess


class HttpAnswer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, unpacked."""
        packed = self.headers.get("content-encoding") == "gzip"
        return json.loads(gzip.decompress(self.body) if packed else self.body)


class RelayWeb:
    """A store, and an HTTP server that reads it."""

    def __init__(
        self, folder: Path, *, tokens_required: bool = False, place: StorePlace | None = None,
        aggregates: tuple[AggregateDefinition, ...] | None = None,
    ) -> None:  # fmt: skip
        """``place``: that of the store; None: a file in the folder."""
        self.folder = folder
        self.relay = RelayInProcess(place or folder / "relay.sqlite", aggregates=aggregates)
        config = HttpConfig("127.0.0.1", 0, tokens_required, None, self.relay.path, folder)
        self.server = RelayHttp(config, self.relay.store.statistics)
        self.relay.store.at_commit = self.server.stored

    def get(
        self, path: str, token: str | None = None, headers: dict[str, str] | None = None, **query: Any
    ) -> HttpAnswer:
        """Ask for a path."""
        headers = headers or {}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return asked(self.server.port, path + ("?" + urlencode(query) if query else ""), headers)

    def found(self, path: str = "/v1/records", **query: Any) -> list[int]:
        """The sequences of the records on a page."""
        answer = self.get(path, **query)
        assert answer.status == 200, answer
        return [record["sequence"] for record in answer.json["records"]]

    def close(self) -> None:
        """Stop both."""
        self.server.close()
        self.relay.store.close()


def asked(port: int, target: str, headers: dict[str, str] | None = None, method: str = "GET") -> HttpAnswer:
    """Ask a server on this host."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, target, headers=headers or {})
        answer = connection.getresponse()
        return HttpAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


class EventStream:
    """A stream of events that is open. ``with closing(EventStream(…)) as stream:``"""

    def __init__(self, port: int, target: str = "/v1/stream", headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._connection.request("GET", target, headers=headers or {})
        self.answer = self._connection.getresponse()
        self.last_id = ""

    def event(self) -> tuple[str, Any] | None:
        """The next event with content, by its name; None: the stream has ended."""
        name, data = "", ""
        while line := self.answer.readline().decode():
            field, _, value = line.rstrip("\n").partition(": ")
            match field:
                case "id":
                    self.last_id = value
                case "event":
                    name = value
                case "data":
                    data = value
                case "" if data:
                    return name, json.loads(data)
        return None

    def sequences(self, count: int) -> list[int]:
        """Those of the next records."""
        found = []
        for _ in range(count):
            event = self.event()
            assert event is not None
            assert event[0] == "record"
            found.append(event[1]["sequence"])
        return found

    def close(self) -> None:
        """Hang up."""
        self.answer.close()
        self._connection.close()


def raw_answer(port: int, request: bytes) -> bytes:
    """What the server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
        return answer


@pytest.fixture(name="web")
def given_web(tmp_path: Path) -> Iterator[RelayWeb]:
    with closing(RelayWeb(tmp_path)) as web:
        yield web
