"""Eclipse Zenoh: sessions in peer mode over mutual TLS, one key each way.

Each end has two sessions, because in Zenoh the settings that are best for latency exclude those for throughput:

- *quick*: the low-latency transport and express publishers, for the latency runs. It neither batches nor fragments;
- *wide*: the default transport. Its default publishers, which batch, serve the throughput runs; an express one the
  requests of 300 kB.

Shared memory is off: on one host it would bypass TLS. Scouting is off: the far end is a fixed endpoint. Callbacks run
on Zenoh's default Python thread; on its network threads (``indirect=False``) round trips were slower.
"""

import contextlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import psutil
import zenoh

from benchmarks.contender import BenchmarkFailed, Ports, Setting
from benchmarks.peer import Peer

MATCH_TIMEOUT_S = 5.0
QUICK, WIDE = "quick", "wide"


class ZenohPeer(Peer):
    """One end of Eclipse Zenoh."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._sessions: list[zenoh.Session] = []
        self._publishers: dict[tuple[str, bool], zenoh.Publisher] = {}

    def listen(self, ports: Ports) -> Ports:
        """Open the sessions: the far end listens, the near end connects."""
        own: list[int] = []
        for index, kind in enumerate((QUICK, WIDE)):
            before = _listening_ports()
            session = zenoh.open(_config(self.setting, ports[index] if ports else 0, kind == QUICK))
            own += _listening_ports() - before  # zenoh does not tell the port it was given
            self._sessions.append(session)
            self._declare(session, kind)
        return tuple(own)

    def connect(self, ports: Ports) -> None:
        """Wait for the other end's subscribers: the near end has connected already, and a link serves both ways."""
        deadline_s = time.monotonic() + MATCH_TIMEOUT_S
        while not all(_matches(publisher) for publisher in self._publishers.values()):
            if time.monotonic() > deadline_s:
                raise BenchmarkFailed(f"zenoh found no subscriber at the other end in {MATCH_TIMEOUT_S:.0f} s")
            time.sleep(0.01)

    def sender(self, *, batched: bool) -> Callable[[bytes], object]:
        """A frame is a put."""
        put: Callable[[bytes], object] = self._publishers[(WIDE, False) if batched else (QUICK, True)].put
        return put

    def request_sender(self) -> Callable[[bytes], object]:
        """Requests are larger than the low-latency transport takes."""
        put: Callable[[bytes], object] = self._publishers[WIDE, True].put
        return put

    def versions(self) -> dict[str, str]:
        """The version of eclipse-zenoh."""
        return {"eclipse-zenoh": version("eclipse-zenoh")}

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions:
            with contextlib.suppress(zenoh.ZError):
                session.close()  # type: ignore[no-untyped-call]

    def _declare(self, session: zenoh.Session, kind: str) -> None:
        receive = self.inbox.receive
        session.declare_subscriber(
            f"bench/{kind}/to/{self.setting.end}", lambda sample: receive(sample.payload.to_bytes())
        )
        other = "far" if self.setting.end == "near" else "near"
        for express in (False, True):
            self._publishers[kind, express] = session.declare_publisher(
                f"bench/{kind}/to/{other}", congestion_control=zenoh.CongestionControl.BLOCK, express=express
            )


def _matches(publisher: zenoh.Publisher) -> bool:
    status: Any = publisher.matching_status  # an object, whatever its type stub says
    return bool(status.matching)


def _listening_ports() -> set[int]:
    sockets = psutil.Process().net_connections("tcp")
    return {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN}


def _config(setting: Setting, port: int, low_latency: bool) -> zenoh.Config:
    endpoint = json.dumps([f"tls/127.0.0.1:{port}"])
    settings = {
        "mode": '"peer"',
        "scouting/multicast/enabled": "false",
        "scouting/gossip/enabled": "false",
        "transport/shared_memory/enabled": "false",
        "listen/endpoints": "[]" if port else endpoint,
        "connect/endpoints": endpoint if port else "[]",
        "transport/link/tls": json.dumps(
            {
                "root_ca_certificate": str(setting.authority),
                "enable_mtls": True,
                # Certificates of a mesh name no address. The authority is checked all the same.
                "verify_name_on_connect": False,
                "listen_certificate": str(setting.certificate),
                "listen_private_key": str(setting.key),
                "connect_certificate": str(setting.certificate),
                "connect_private_key": str(setting.key),
            }
        ),
    }
    if low_latency:
        settings["transport/unicast/lowlatency"] = "true"
        settings["transport/unicast/qos/enabled"] = "false"  # it excludes the low-latency transport
    config = zenoh.Config()
    for path, value in settings.items():
        config.insert_json5(path, value)
    return config
