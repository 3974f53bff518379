"""The other side of the churn: nodes that live briefly, and links that come and go by the hundred.

``live`` is one life of a whole node, in a process of its own, which ends by SIGKILL, by leaving, or by leaving in the
middle of a send. ``Links`` opens bare links to the node under test, one after the other, and ends them in every way
that a link can end. Both ask the authority for a new certificate again and again.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import meshnode
from meshnode.config.sections import (
    DiscoverySection,
    IdentitySection,
    ListenSection,
    LogSection,
    MembershipSection,
    NodeConfig,
    NodeSection,
)
from meshnode.http.section import HttpSection
from meshnode.identity import issue
from meshnode.links.express.engine import open_express
from meshnode.links.nng.library import open_transport
from meshnode.links.transport import Address, CredentialFiles, OutgoingLane, Transport
from meshnode.local.section import LocalSection
from protocols.base.ids import SERVER_NAME, Incarnation, Lane, MeshName, PeerIdentity, Role, node_id
from protocols.wire.codec import encode_frame
from protocols.wire.membership import MAJOR, MINOR, Hello
from protocols.wire.readings import EventTime, Position, Provenance, Reading, Readings

MESH = MeshName("churn")
SUBJECT = "rsu-1"
WHERE = Position(48.7657, 11.4237, 1.0)
TENSOR_ELEMENTS = 250_000
ENDINGS = ("killed while it sends", "leaves", "leaves while it sends", "killed while it rests")
LINK_ENDINGS = ("closed", "closed while it sends", "reset in a frame", "gone in the handshake", "no certificate")
_MEET_S = 30.0
_OPEN_S = 10.0
_READINGS = 20
_MAX_TOLD = 16
_LINKS_A_CERTIFICATE = 25
_OPENERS = {"express": open_express, "nng": open_transport}


def config(folder: Path, name: str, engine: str, *seeds: Address, port: int = 0) -> NodeConfig:
    """The smallest configuration of a node on loopback."""
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=WHERE),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1", port=port, link_engine=engine),  # type: ignore[arg-type]
        discovery=DiscoverySection(mdns=False, seeds=seeds),
        sections=(HttpSection(enabled=False), LocalSection(enabled=False)),
        # No dial of a dead neighbour is then under way for long, and the node comes to rest between rounds.
        membership=MembershipSection(dial_timeout_ms=1_000),
        log=LogSection(level="error"),
    )


def new_certificate(folder: Path, name: str, valid_days: float = 30) -> CredentialFiles:
    """Issue a certificate of the authority in place of the old one."""
    role = Role.RSU if name.startswith("rsu") else Role.VEHICLE
    return issue(folder / "authority", role, name, folder / name, valid_days=valid_days).credentials


def live(folder: Path, name: str, engine: str, port: int, ending: str) -> None:
    """Join, exchange readings and tensors with the node at ``port``, and end as ``ending`` says. This is the main
    function of a process."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    new_certificate(folder, name)
    asyncio.run(_live(config(folder, name, engine, Address("127.0.0.1", port)), name, ending))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


async def _live(settings: NodeConfig, name: str, ending: str) -> None:
    import numpy as np

    async with meshnode.open(settings) as node:
        await node.wait_for_peers(1, _MEET_S)
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        node.subscribe(f"rsu/{SUBJECT}/**", callback=lambda _: loop.call_soon_threadsafe(heard.set), history=False)
        for number in range(_READINGS):
            node.publish(f"veh/{name}/speed", float(number), unit="m/s", sensor="benchmark")
            await asyncio.sleep(0.005)
        async with asyncio.timeout(_MEET_S):
            await heard.wait()
        tensor = np.ones(TENSOR_ELEMENTS, np.float32)
        stop = threading.Event()

        def send() -> None:
            with contextlib.suppress(meshnode.MeshError):
                while not stop.is_set():
                    node.publish(f"veh/{name}/tensor", tensor, sensor="benchmark")
                    time.sleep(0.02)

        node.publish(f"veh/{name}/tensor", tensor, sensor="benchmark")
        if "sends" in ending:
            sender = threading.Thread(target=send, daemon=True)
            sender.start()
        await asyncio.sleep(0.15)
        if "killed" in ending:
            os.kill(os.getpid(), signal.SIGKILL)
    stop.set()


# --- bare links ------------------------------------------------------------------------------------------------------
class _Ends:
    """What a bare link's transport reports."""

    def __init__(self) -> None:
        self._opened: dict[OutgoingLane, bool] = {}
        self._told = threading.Condition()

    def opened(self, lane: OutgoingLane, timeout_s: float) -> bool:
        """Wait for the end of a dial. Returns whether its lane is open."""
        with self._told:
            self._told.wait_for(lambda: lane in self._opened, timeout_s)
            return self._opened.pop(lane, False)

    def _tell(self, lane: OutgoingLane, opened: bool) -> None:
        with self._told:
            while len(self._opened) >= _MAX_TOLD:  # lanes that ended after they were opened, which nobody asks about
                del self._opened[next(iter(self._opened))]
            self._opened[lane] = opened
            self._told.notify_all()

    def admit(
        self, identity: PeerIdentity | None, detail: str, lane: OutgoingLane | None, remote_host: str
    ) -> str | None:
        return None if identity is not None else detail

    def inbound_opened(self, pipe: int, identity: PeerIdentity, remote_host: str) -> None:
        pass

    def inbound_closed(self, pipe: int) -> None:
        pass

    def frame_received(self, pipe: int, frame: bytes | bytearray) -> None:
        pass

    def lane_opened(self, lane: OutgoingLane, identity: PeerIdentity) -> None:
        self._tell(lane, True)

    def lane_closed(self, lane: OutgoingLane, reason: str) -> None:
        self._tell(lane, False)

    def lane_writable(self, lane: OutgoingLane) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Linking:
    """What one process of bare links did in one round."""

    counts: dict[str, int]
    """The number of connections, by how they ended."""
    certificates: int
    not_opened: int


class Links:
    """One identity whose links come and go."""

    def __init__(self, folder: Path, name: str, engine: str, port: int) -> None:
        self._folder, self._name, self._engine, self._to = folder, name, engine, Address("127.0.0.1", port)
        self._ends = _Ends()
        self._sequence = self._number = 0  # over all rounds: a slow computer opens few links in one

    def run(self, seconds: float, rate_hz: float) -> Linking:
        """Open and end links for ``seconds``, then close the inbox too."""
        self._counts: Counter[str] = Counter()
        self._certificates = self._not_opened = 0
        self._open()
        try:
            self._come_and_go(seconds, rate_hz)
        finally:
            self._transport.close()
        return Linking(dict(self._counts), self._certificates, self._not_opened)

    def _come_and_go(self, seconds: float, rate_hz: float) -> None:
        ends_s = due_s = time.monotonic()
        ends_s += seconds
        while (now_s := time.monotonic()) < ends_s:
            ending = LINK_ENDINGS[self._number % len(LINK_ENDINGS)]
            self._number += 1
            if self._number % _LINKS_A_CERTIFICATE == 0:
                self._renew()
            with contextlib.suppress(OSError):  # the node may end it first
                self._ways[ending](self)
                self._counts[ending] += 1
            due_s = max(due_s + 1 / rate_hz, now_s)
            time.sleep(max(0.0, due_s - time.monotonic()))

    def _open(self) -> None:
        self._files = new_certificate(self._folder, self._name)
        self._certificates += 1
        self._transport: Transport = _OPENERS[self._engine](self._files, self._ends, MESH)
        self._inbox_port = self._transport.listen("127.0.0.1", 0)

    def _renew(self) -> None:
        if self._engine == "nng":  # NNG freezes a configuration once it is used
            self._transport.close()
            self._open()
            return
        self._files = new_certificate(self._folder, self._name)
        self._certificates += 1
        self._transport.renew(self._files)

    def _hello(self) -> bytes:
        return encode_frame(Hello(MAJOR, MINOR, self._name, Incarnation(1), self._inbox_port, Lane.REALTIME.value))

    def _reading(self, value: float | bytes) -> bytes:
        when, how = EventTime(time.time_ns(), 1_000_000), Provenance("benchmark", "m/s")
        self._sequence += 1
        reading = Reading(f"veh/{self._name}/speed", self._name, self._sequence, value, WHERE, when, how)
        return encode_frame(Readings((reading,)))

    def _dialled(self, then: Callable[[OutgoingLane], None]) -> None:
        lane = self._transport.dial(self._to, self._hello, _OPEN_S)
        if self._ends.opened(lane, _OPEN_S + 1.0):
            then(lane)
        else:
            self._not_opened += 1
        lane.close()

    def _closed(self) -> None:
        def send(lane: OutgoingLane) -> None:
            for number in range(5):
                lane.try_send(self._reading(float(number)))

        self._dialled(send)

    def _closed_while_it_sends(self) -> None:
        def send(lane: OutgoingLane) -> None:
            large = self._reading(bytes(1_000_000))
            for _ in range(4):
                lane.try_send(large)

        self._dialled(send)

    def _tls(self, certificate: bool) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self._files.authority)
        if certificate:
            context.load_cert_chain(self._files.certificate, self._files.key)
        plain = socket.create_connection((self._to.host, self._to.port), _OPEN_S)
        try:
            return context.wrap_socket(plain, server_hostname=SERVER_NAME)
        except BaseException:
            plain.close()
            raise

    def _reset_in_a_frame(self) -> None:
        with self._tls(True) as sock:
            hello = self._hello()
            sock.sendall(b"\0SP\0\0\x50\0\0" + struct.pack(">Q", len(hello)) + hello)
            sock.sendall(struct.pack(">Q", 1_000_000) + bytes(50_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _gone_in_the_handshake(self) -> None:
        with socket.create_connection((self._to.host, self._to.port), _OPEN_S) as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00" + random.randbytes(50))

    def _no_certificate(self) -> None:
        with contextlib.suppress(ssl.SSLError), self._tls(False) as sock:
            sock.settimeout(_OPEN_S)
            sock.recv(1)  # the alert

    _ways: ClassVar = dict(zip(LINK_ENDINGS, (
        _closed, _closed_while_it_sends, _reset_in_a_frame, _gone_in_the_handshake, _no_certificate
    ), strict=True))  # fmt: skip


def link_up(folder: Path, names: list[str], engines: list[str], port: int, orders: Connection) -> None:
    """Open bare links of several identities. Each order (seconds, rate) is answered with a :class:`Linking`."""
    identities = [Links(folder, name, engine, port) for name, engine in zip(names, engines, strict=True)]
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            seconds, rate_hz = orders.recv()
            with ThreadPoolExecutor(len(identities)) as pool:
                running = [pool.submit(links.run, seconds, rate_hz) for links in identities]
                orders.send([run.result() for run in running])
    os._exit(0)
