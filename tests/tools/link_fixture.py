"""Two ends of a link for tests: credentials, an observer that remembers, transports that are closed again.

Its fixtures are imported where they are used: ``ca``, ``pki`` and ``end``. Two more run one test on both engines:
``engine``, and ``two``, which opens the two ends of a link on each engine and across them.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshnode.links.express.engine import open_express
from meshnode.links.nng.library import open_transport
from meshnode.links.transport import Address, CredentialFiles, OutgoingLane, Transport
from protocols.base.ids import PeerIdentity, mesh_name
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.pki_fixture import Authority, authority, credentials

MESH = mesh_name("demo")
SP_PUSH = b"\0SP\0\0\x50\0\0"
SP_PULL = b"\0SP\0\0\x51\0\0"
ENGINES = {"express": open_express, "nng": open_transport}


@pytest.fixture(name="engine", params=list(ENGINES))
def given_engine(request: pytest.FixtureRequest) -> str:
    """The link engine under test."""
    return str(request.param)


@pytest.fixture(
    name="pair",
    params=[("express", "express"), ("nng", "nng"), ("express", "nng"), ("nng", "express")],
    ids=lambda pair: f"{pair[0]} dials {pair[1]}",
)
def given_pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The engines of the dialler and of the inbox."""
    first, second = request.param
    return first, second


@pytest.fixture(scope="module", name="ca")
def given_ca() -> Authority:
    return authority()


@pytest.fixture(scope="module", name="pki")
def given_pki(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CredentialFiles]:
    """Make credentials: ``pki("a")``, or with arguments that make them wrong on purpose."""
    folder = tmp_path_factory.mktemp("pki")
    made: dict[str, CredentialFiles] = {}

    def make(node: str, signer: Authority = ca, **options: Any) -> CredentialFiles:
        name = f"{node}{id(signer)}{sorted(options.items(), key=str)}"
        if name not in made:
            made[name] = credentials(folder / str(len(made)), signer, node, trusted=ca, **options)
        return made[name]

    return make


@dataclass
class Recorder:
    """An observer that remembers every notice, in order."""

    refusal: str | None = None
    log: list[tuple[Any, ...]] = field(default_factory=list)
    on_frame: Callable[[int, bytes], None] | None = None

    def admit(
        self, identity: PeerIdentity | None, detail: str, lane: OutgoingLane | None, remote_host: str
    ) -> str | None:
        self.log.append(("admit", identity, detail, lane, remote_host))
        return self.refusal or (None if identity else detail)

    def inbound_opened(self, pipe: int, identity: PeerIdentity, remote_host: str) -> None:
        self.log.append(("inbound_opened", pipe, identity, remote_host))

    def inbound_closed(self, pipe: int) -> None:
        self.log.append(("inbound_closed", pipe))

    def frame_received(self, pipe: int, frame: bytes) -> None:
        self.log.append(("frame", pipe, frame))
        if self.on_frame:
            self.on_frame(pipe, frame)

    def lane_opened(self, lane: OutgoingLane, identity: PeerIdentity) -> None:
        self.log.append(("lane_opened", lane, identity))

    def lane_closed(self, lane: OutgoingLane, reason: str) -> None:
        self.log.append(("lane_closed", lane, reason))

    def lane_writable(self, lane: OutgoingLane) -> None:
        self.log.append(("lane_writable", lane))

    def all(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry for entry in list(self.log) if entry[0] == kind]

    def frames(self) -> list[bytes]:
        return [entry[2] for entry in self.all("frame")]

    def of(self, lane: OutgoingLane) -> set[str]:
        """The kinds of notices about a lane."""
        return {entry[0] for entry in list(self.log) if entry[0].startswith("lane_") and entry[1] is lane}

    def one(self, kind: str) -> tuple[Any, ...]:
        """Wait for the first notice of a kind."""
        return eventually(lambda: self.all(kind), kind)[0]


@dataclass
class End:
    """One node: its transport, the notices that it got, and the address of its inbox."""

    transport: Transport
    told: Recorder
    address: Address

    def dial(self, other: "End | Address", greeting: bytes = b"hello", timeout_s: float = LIMIT_S) -> OutgoingLane:
        return self.transport.dial(other if isinstance(other, Address) else other.address, lambda: greeting, timeout_s)


@pytest.fixture(name="end")
def given_end() -> Iterator[Callable[..., End]]:
    with contextlib.ExitStack() as stack:

        def make(
            files: CredentialFiles, recorder: Recorder | None = None, port: int = 0, engine: str = "express",
            host: str = "127.0.0.1",
        ) -> End:  # fmt: skip
            told = recorder or Recorder()
            transport = ENGINES[engine](files, told, MESH)
            stack.callback(transport.close)
            return End(transport, told, Address(host, transport.listen(host, port)))

        yield make


@pytest.fixture(name="two")
def given_two(end: Callable[..., End], pair: tuple[str, str]) -> Callable[..., tuple[End, End]]:
    """Open both ends: ``two(pki("a"), pki("b"))``; the first is the one that dials."""

    def make(
        first: CredentialFiles,
        second: CredentialFiles,
        told: Recorder | None = None,
        told_second: Recorder | None = None,
    ) -> tuple[End, End]:
        return end(first, told, engine=pair[0]), end(second, told_second, engine=pair[1])

    return make


def raw_tls(address: Address, files: CredentialFiles | None, authority_file: Path, **options: Any) -> ssl.SSLSocket:
    """A TLS client of the standard library, to send what ours never would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority_file)
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    for name, value in options.items():
        setattr(context, name, value)
    plain = socket.create_connection((address.host, address.port), timeout=30)
    return context.wrap_socket(plain, server_hostname="mesh.node")


def drained(sock: ssl.SSLSocket) -> bytes:
    """Read until the other end hangs up."""
    data = b""
    sock.settimeout(30)
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        while chunk := sock.recv(4096):
            data += chunk
    return data
