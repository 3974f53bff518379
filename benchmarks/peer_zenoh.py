"""Eclipse Zenoh: two sessions in peer mode over one mutual TLS link, one key each way.

Latency is measured with express publishers, which skip Zenoh's batching; throughput without, so that it may batch.
Shared memory is off: on one host it would bypass TLS. Scouting is off: the far end is a fixed endpoint. Callbacks are
Zenoh's default for Python; running them on its network threads instead made no difference that could be measured,
nor did its low-latency transport.
"""

import contextlib
import json
from collections.abc import Callable
from importlib.metadata import version

import psutil
import zenoh

from benchmarks.contender import Setting
from benchmarks.peer import Peer


class ZenohPeer(Peer):
    """See the module."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._session: zenoh.Session | None = None
        self._publishers: dict[bool, zenoh.Publisher] = {}

    def listen(self, port: int) -> int:
        """Open the session: the far end listens, the near end connects."""
        self._session = zenoh.open(_config(self.setting, port))
        receive = self.inbox.receive
        self._session.declare_subscriber(
            f"bench/to/{self.setting.end}", lambda sample: receive(sample.payload.to_bytes())
        )
        other = "far" if self.setting.end == "near" else "near"
        for batched in (False, True):
            self._publishers[batched] = self._session.declare_publisher(
                f"bench/to/{other}", congestion_control=zenoh.CongestionControl.BLOCK, express=not batched
            )
        if port:
            return 0
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        own: int = listening[0].laddr.port  # zenoh does not tell the port it was given
        return own

    def connect(self, port: int) -> None:
        """Nothing: one link serves both ways and the near end has opened it."""

    def sender(self, *, batched: bool) -> Callable[[bytes], object]:
        """A frame is a put."""
        put: Callable[[bytes], object] = self._publishers[batched].put
        return put

    def versions(self) -> dict[str, str]:
        """Of eclipse-zenoh."""
        return {"eclipse-zenoh": version("eclipse-zenoh")}

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            with contextlib.suppress(zenoh.ZError):
                self._session.close()  # type: ignore[no-untyped-call]


def _config(setting: Setting, port: int) -> zenoh.Config:
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
                # mesh certificates name the mesh, not an address; the authority is checked all the same
                "verify_name_on_connect": False,
                "listen_certificate": str(setting.certificate),
                "listen_private_key": str(setting.key),
                "connect_certificate": str(setting.certificate),
                "connect_private_key": str(setting.key),
            }
        ),
    }
    config = zenoh.Config()
    for path, value in settings.items():
        config.insert_json5(path, value)
    return config
