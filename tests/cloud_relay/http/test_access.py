"""Who may do what over HTTP: every route, for everybody who may come, as the reference has it."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from ssl import CERT_NONE, PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import pytest

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.config import CertificateRules, HttpConfig, load_config
from cloud_relay.http import access
from cloud_relay.http.serving import RelayHttp
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from meshnode.identity import create_mesh, issue
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import ConfigError, StorageError
from protocols.base.ids import MeshName, NodeId, Role
from protocols.base.limits import SECOND
from tests.tools.relay_fixture import RelayInProcess, batch
from tests.tools.relay_http_fixture import RelayWeb, asked, given_web

__all__ = ["given_web"]
ROOT: Final = Path(__file__).resolve().parents[3]
ROW: Final = re.compile(r"^\| `GET (/\S*)` \| (viewer|operator|) ?\|", re.MULTILINE)
SPEED: Final = AggregateDefinition("speed", "veh/**", 60 * SECOND)
NO_CONNECTION: Final = 0
"""What stands for a handshake that fails."""


def documented() -> dict[str, str]:
    """The role that each path asks for, as the reference says; empty: none."""
    return dict(ROW.findall((ROOT / "docs/reference/relay-http.md").read_text("utf-8")))


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class GuardedRelay:
    """A server with TLS that lets tokens and certificates in, and those who knock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relay = RelayInProcess(folder / "relay.sqlite", aggregates=(SPEED,))
        self.relay.send(batch(1))
        for mesh in ("authority", "elsewhere"):
            create_mesh(folder / mesh, "demo", now=datetime.now(UTC) - timedelta(days=10))
        served = issue(folder / "authority", Role.RELAY, "relay-1", folder).credentials
        self.rules = CertificateRules(served.authority, frozenset((NodeId("ops-1"),)))
        config = HttpConfig(
            "127.0.0.1", 0, True, (served.certificate, served.key), self.relay.path, folder, self.rules
        )  # fmt: skip
        self.server = RelayHttp(config, self.relay.store.statistics, MeshName("demo"))
        self._trusted = served.authority

    def token(self, name: str, role: TokenRole, expires_utc_s: int | None = None) -> str:
        return TokenFile(self.folder / FILE).create(name, role, 0, expires_utc_s)

    def certificate(
        self, node: str, role: Role = Role.TOOL, *, mesh: str = "authority", now: datetime | None = None
    ) -> CredentialFiles:
        return issue(self.folder / mesh, role, node, self.folder / f"of-{mesh}", valid_days=1, now=now).credentials

    def connection(self, shown: CredentialFiles | None = None) -> HTTPSConnection:
        context = SSLContext(PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = CERT_NONE
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        return HTTPSConnection("127.0.0.1", self.server.port, timeout=30, context=context)

    def ask(self, path: str, token: str | None = None, shown: CredentialFiles | None = None) -> Answered:
        with closing(self.connection(shown)) as connection:
            try:
                # A stream would not end: what its head says is enough.
                method = "HEAD" if path.endswith("/stream") else "GET"
                connection.request(method, path, headers={} if token is None else {"authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                body = answer.read()
            except (SSLError, ConnectionError, HTTPException):
                return Answered(NO_CONNECTION, {}, b"")
            return Answered(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def close(self) -> None:
        self.server.close()
        self.relay.store.close()


@pytest.fixture(name="guarded")
def given_guarded(tmp_path: Path) -> Iterator[GuardedRelay]:
    with closing(GuardedRelay(tmp_path)) as guarded:
        yield guarded


def revoked(relay: GuardedRelay) -> str:
    text = relay.token("gone", TokenRole.OPERATOR)
    assert relay.ask("/v1/statistics", text).status == 200
    TokenFile(relay.folder / FILE).revoke("gone")
    return text


Shown = tuple[str | None, CredentialFiles | None]
VISITORS: Final[dict[str, tuple[Callable[[GuardedRelay], Shown], int, int, int]]] = {
    # what is shown, and the answers to: who asks for nothing special, a viewer's path, an operator's path
    "stranger": (lambda relay: (None, None), 200, 401, 401),
    "viewer": (lambda relay: (relay.token("board", TokenRole.VIEWER), None), 200, 200, 403),
    "operator": (lambda relay: (relay.token("ops", TokenRole.OPERATOR), None), 200, 200, 200),
    "expired token": (lambda relay: (relay.token("old", TokenRole.OPERATOR, 1), None), 200, 401, 401),
    "revoked token": (lambda relay: (revoked(relay), None), 200, 401, 401),
    "certificate of a tool": (lambda relay: (None, relay.certificate("tool-1")), 200, 200, 403),
    "certificate of an operator": (lambda relay: (None, relay.certificate("ops-1")), 200, 200, 200),
    "certificate of a vehicle": (lambda relay: (None, relay.certificate("v-1", Role.VEHICLE)), 200, 403, 403),
    "certificate of another mesh": (
        lambda relay: (None, relay.certificate("ops-1", mesh="elsewhere")),
        NO_CONNECTION, NO_CONNECTION, NO_CONNECTION,
    ),
    "certificate that has ended": (
        lambda relay: (None, relay.certificate("ops-1", now=datetime.now(UTC) - timedelta(days=3))),
        NO_CONNECTION, NO_CONNECTION, NO_CONNECTION,
    ),
    "bad token beside a good certificate": (lambda relay: ("mrt_x", relay.certificate("ops-1")), 200, 401, 401),
}  # fmt: skip


@pytest.mark.parametrize("who", list(VISITORS))
def test_everybody_gets_of_every_route_what_the_table_says(guarded: GuardedRelay, who: str) -> None:
    """A route that somebody forgot to guard would give everything away, and nobody would notice."""
    show, unasked, viewed, operated = VISITORS[who]
    token, shown = show(guarded)
    expected = {"": unasked, "viewer": viewed, "operator": operated}
    for path, role in documented().items():
        answer = guarded.ask(path.format(name=SPEED.name), token, shown)
        assert answer.status == expected[role], path
        if answer.status in (401, 403):
            assert answer.headers["content-type"] == "application/problem+json", path
            assert b"veh/" not in answer.body


def test_reference_lists_every_route(web: RelayWeb) -> None:
    """The walk above goes along that table, so a route that is not in it would not be walked."""
    described = web.get("/v1/openapi.json").json["paths"]
    assert sorted(documented()) == sorted(described)
    assert set(documented().values()) == {"", "viewer", "operator"}


def test_connection_with_a_certificate_has_to_prove_it_again(
    guarded: GuardedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection must not outlive what it was let in for."""
    shown = guarded.certificate("tool-1")
    with closing(guarded.connection(shown)) as connection:
        for _ in range(2):
            connection.request("GET", "/v1/newest")
            answer = connection.getresponse()
            assert (answer.read() != b"", answer.getheader("connection")) == (True, None)
        monkeypatch.setattr(access, "MAX_CONNECTION_AGE_S", 0.0)
        connection.request("GET", "/v1/newest")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        answer.read()
    monkeypatch.setattr(access.time, "time_ns", lambda: 2**62)
    refused = guarded.ask("/v1/newest", shown=shown)
    assert (refused.status, b"has ended" in refused.body) == (401, True)


def test_stream_ends_with_the_certificate_that_opened_it(
    guarded: GuardedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream lasts for days, and a certificate does not."""
    guarded.relay.store.at_commit = guarded.server.stored
    with closing(guarded.connection(guarded.certificate("tool-1"))) as connection:
        connection.request("GET", "/v1/stream")
        answer = connection.getresponse()
        assert answer.readline() == b"retry: 1000\n"
        monkeypatch.setattr(access.time, "time_ns", lambda: 2**62)
        guarded.relay.send(batch(2))
        lines = answer.read().decode()
    assert "event: ended" in lines
    assert "veh/" not in lines


# --- how one may ask -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "headers", "status", "said"),
    [
        ("GET", {"accept": "application/json"}, 200, ""),
        ("GET", {"accept": "text/html, application/*;q=0.5"}, 200, ""),
        ("GET", {"accept": "*/*;q=0.1"}, 200, ""),
        ("GET", {"accept": "text/html"}, 406, "application/json"),
        ("GET", {"accept": "application/json;q=0, text/*"}, 406, "application/json"),
        ("GET", {"content-length": "3"}, 413, "put what you ask for into the URL"),
        ("GET", {"transfer-encoding": "chunked"}, 413, "put what you ask for into the URL"),
        ("HEAD", {}, 200, ""),
        ("OPTIONS", {}, 204, ""),
        ("DELETE", {}, 405, "use GET"),
        ("TRACE", {}, 405, "use GET"),
    ],
)
def test_ways_of_asking(web: RelayWeb, method: str, headers: dict[str, str], status: int, said: str) -> None:
    """Programs are told in the words of HTTP what can be had."""
    answer = asked(web.server.port, "/v1/records", headers, method)
    assert answer.status == status
    if status in (204, 405):
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
    if said:
        assert said in answer.json["detail"]


# --- the file of tokens ----------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_tokens_made_by_another_user_can_be_read_by_the_relay_or_are_not_made() -> None:
    """An operator who makes a token as root must not lock the relay out of its own file."""
    with TemporaryDirectory() as folder:  # that of pytest is closed to others
        Path(folder).chmod(0o755)
        state = Path(folder) / "state"
        state.mkdir()
        state.chmod(0o777)
        os.chown(state, 65_534, 65_534)
        text = TokenFile(state / FILE).create("board", TokenRole.VIEWER, 0, None)
        for file in (state / FILE, state / f"{FILE}.lock"):
            assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (65_534, 65_534, 0o600)
        os.seteuid(12_345)
        try:
            with pytest.raises(StorageError, match=r"belongs to nobody.*sudo -u nobody"):
                TokenFile(state / FILE).create("other", TokenRole.VIEWER, 0, None)
            os.seteuid(0)
            os.seteuid(65_534)
            assert TokenFile(state / FILE).untrusted_holder(text, 0.0) is not None
            TokenFile(state / FILE).revoke("board")
        finally:
            os.seteuid(0)


# --- the configuration -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('certificates = "accepted"', "needs TLS"),
        ('operators = ["ops-1"]', 'set certificates = "accepted"'),
        ('certificates = "some"', 'write "none" or "accepted"'),
        ('operators = "ops-1"', "write ids of tools"),
        (
            'certificates = "accepted"\ncertificate = "c"\nkey = "k"\noperators = ["Ops"]',
            "http.operators: node id 'Ops'",
        ),
    ],
)
def test_wrong_rules_for_certificates_are_refused(tmp_path: Path, table: str, said: str) -> None:
    """A rule that is not in force must not look as if it were."""
    path = tmp_path / "relay.toml"
    path.write_text(f'[relay]\nid = "relay-1"\n[http]\n{table}\n')
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert said in str(raised.value)


def test_certificates_are_enough_beyond_loopback(tmp_path: Path) -> None:
    """Tokens or certificates, whichever a fleet has."""
    path = tmp_path / "relay.toml"
    path.write_text(
        '[relay]\nid = "relay-1"\n[http]\nhost = "0.0.0.0"\ncertificate = "c"\nkey = "k"\n'
        'certificates = "accepted"\noperators = ["ops-1"]\n'
    )
    http = load_config(path).http
    assert http is not None
    assert http.certificates == CertificateRules(tmp_path / "authority.crt", frozenset((NodeId("ops-1"),)))
