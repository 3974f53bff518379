"""A link that does not come about says why and with whom: in the log, in the metrics and to the doctor."""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.processes import free_port
from meshnode.identity import create_mesh, issue
from meshnode.links.tls import MAX_REMEMBERED, REFUSED, UNREACHABLE, FailureKind, Failures
from meshnode.links.transport import Address
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    Recorder,
    given_ca,
    given_end,
    given_engine,
    given_pki,
    raw_tls,
)
from tests.tools.node_fixture import RunningNode, meshnode, prepare
from tests.tools.pki_fixture import authority


def test_failures_remembered_are_bounded_and_strangers_never_push_out_those_dialled() -> None:
    """Whoever comes from ever new addresses must not hide that our own seed has expired."""
    failures = Failures(time.monotonic_ns, iter(range(10_000)).__next__)
    failures.note(FailureKind.EXPIRED, "192.0.2.1:7000", "expired", dialled=True)
    for number in range(10 * MAX_REMEMBERED):
        failures.note(FailureKind.MUTE, f"198.51.100.{number}", "mute")
    failures.note(FailureKind.EXPIRED, "192.0.2.1:7000", "expired again", dialled=True)
    recent = failures.recent()
    assert len(recent) == MAX_REMEMBERED + 1
    assert (recent[-1].peer, recent[-1].why, recent[-1].count) == ("192.0.2.1:7000", "expired again", 2)
    assert [link.last_utc_ns for link in recent] == sorted(link.last_utc_ns for link in recent)
    assert recent[-2].peer == f"198.51.100.{10 * MAX_REMEMBERED - 1}", "the oldest made room"


def test_dial_that_fails_is_remembered_with_its_address_and_reason(pki: Any, end: Any, engine: str) -> None:
    """On both engines: where it was, and what an operator can do."""
    a, stranger = end(pki("a"), engine=engine), end(pki("x", authority()), engine=engine)
    with socket.socket() as unused:  # bound and not listening: nobody else gets the port meanwhile
        unused.bind(("127.0.0.1", 0))
        nowhere = Address("127.0.0.1", unused.getsockname()[1])
        a.dial(stranger)
        a.dial(nowhere, timeout_s=60)  # whoever waits for that long can not try another place
        eventually(lambda: len(a.told.all("lane_closed")) == 2, "both dials end")
    by_peer = {link.peer: link for link in a.transport.failures()}
    told = by_peer[str(stranger.address)]
    assert "another authority" in told.why or "refuses the other's certificate (other authority" in told.why
    assert by_peer[str(nowhere)].kind == UNREACHABLE
    assert "connection refused" in by_peer[str(nowhere)].why


def test_peer_that_is_refused_is_remembered_by_name_at_both_ends(pki: Any, end: Any, engine: str) -> None:
    """Whoever revoked a node wants to read that it tried, and where from."""
    a, b = end(pki("a"), engine=engine), end(pki("b"), Recorder(refusal="revoked"), engine=engine)
    a.dial(b)
    a.told.one("lane_closed")
    (came,) = eventually(b.transport.failures, "the inbox remembers")
    assert (came.peer, came.kind, "revoked" in came.why) == ("vehicle a at 127.0.0.1", REFUSED, True)
    b.dial(a)
    b.told.one("lane_closed")
    assert any(str(a.address) in link.peer and link.kind == REFUSED for link in b.transport.failures())


# --- a whole node ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Address]]:
    """TCP servers that are no neighbours: a mute one, one that speaks HTTP, one with the wrong authority …"""
    folder = tmp_path_factory.mktemp("bad seeds")
    strange = folder / "strange"
    create_mesh(strange, "test")
    with contextlib.ExitStack() as stack:

        def server() -> socket.socket:
            return stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        mute, closed = server(), stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # it does not listen, and nobody else gets the port
        nowhere = Address("127.0.0.1", closed.getsockname()[1])
        issue(strange, "vehicle", "veh-9", folder / "veh-9")
        other = RunningNode(prepare_strange(folder, strange))
        stack.enter_context(other)
        yield {
            "mute": Address("127.0.0.1", mute.getsockname()[1]),
            "unreachable": nowhere,
            "other_authority": Address("127.0.0.1", other.port),
            "not_our_protocol": Address("127.0.0.1", other.http_port),
        }


def prepare_strange(folder: Path, strange: Path) -> Path:
    """The configuration of a node of another mesh of the same name."""
    config = folder / "veh-9" / "node.toml"
    issue(strange, "vehicle", "veh-9", folder / "veh-9")
    config.write_text(
        '[node]\nid = "veh-9"\n[listen]\nhost = "127.0.0.1"\n[discovery]\nmdns = false\n[http]\nport = 0\n'
    )
    return config


@pytest.mark.processes
def test_running_node_tells_log_metrics_and_doctor_why_and_with_whom(seeds: dict[str, Address], tmp_path: Path) -> None:
    """'It does not connect' is the call an operator gets; the node itself must know the answer."""
    tables = f"[http]\nport = {free_port()}\n[membership]\ndial_timeout_ms = 700\n"
    config = prepare(tmp_path, "veh-1", "vehicle", tables, tuple(address.port for address in seeds.values()))
    # an expired certificate, none at all, and TLS 1.2, from outside
    good = issue(tmp_path / "authority", "vehicle", "veh-2", tmp_path / "veh-2").credentials
    past = datetime.now(UTC) - timedelta(minutes=30)
    old = issue(tmp_path / "authority", "vehicle", "veh-3", tmp_path / "veh-3", valid_days=0.001, now=past).credentials
    with RunningNode(config) as node:
        inbox = Address("127.0.0.1", node.port)
        with contextlib.suppress(OSError), raw_tls(inbox, None, good.authority) as tls:
            tls.recv(1)
        with contextlib.suppress(OSError), raw_tls(inbox, old, good.authority) as tls:
            tls.recv(1)
        with contextlib.suppress(OSError):
            raw_tls(inbox, good, good.authority, maximum_version=ssl.TLSVersion.TLSv1_2).close()
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
            connection.request("GET", "/")
            connection.getresponse()

        def failures() -> dict[tuple[str, str], dict[str, Any]]:
            return {(failed["peer"], failed["kind"]): failed for failed in node.get("/v1/node")["link_failures"]}

        wanted = {(str(address), kind) for kind, address in seeds.items()}
        wanted |= {("127.0.0.1", kind) for kind in ("no_certificate", "expired", "old_tls", "not_our_protocol")}
        eventually(lambda: wanted <= set(failures()), f"{wanted} are told")
        assert "another authority" in failures()[str(seeds["other_authority"]), "other_authority"]["why"]
        page = node.ask("GET", "/metrics")[2].decode()
        ran = meshnode("doctor", config)
        log = node.log.read_text()
    for peer, kind in wanted:
        assert f'meshnode_link_failures{{kind="{kind}",peer="{peer}"}}' in page
        assert f"{peer}: " in ran.stdout
    lines = [line for line in ran.stdout.splitlines() if line.startswith("warn  link")]
    assert len(lines) >= len(wanted)
    for said in (
        "it showed no certificate",
        "has expired",
        "older TLS than 1.3",
        "speaks HTTP",
        "another authority",
        "mute",
    ):
        assert any(said in line for line in lines), (said, lines)
        assert said in log
    assert any("connection refused" in line for line in lines)
