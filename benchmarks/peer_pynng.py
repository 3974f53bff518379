"""Bare pynng: a PUSH and a PULL socket at each end over ``tls+tcp``, blocking calls, one receiving thread.

One task thread and one poller thread make a round trip about a third faster than NNG's own defaults, so the peer
gets them. Socket buffers let a burst run ahead of the receiver.
"""

import threading
from collections.abc import Callable
from typing import Any

import pynng
from pynng import TLSConfig, lib

from benchmarks.contender import Ports, Setting
from benchmarks.peer import Peer
from protocols.base.ids import SERVER_NAME

SEND_TIMEOUT_MS = 5_000
BUFFER_MESSAGES = 128
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


class PynngPeer(Peer):
    """One end of bare pynng."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        lib.nng_init_set_parameter(lib.NNG_INIT_NUM_TASK_THREADS, 1)
        lib.nng_init_set_parameter(lib.NNG_INIT_NUM_POLLER_THREADS, 1)
        self._pull = pynng.Pull0(
            tls_config=_tls(setting, TLSConfig.MODE_SERVER),
            recv_buffer_size=BUFFER_MESSAGES,
            recv_max_size=MAX_MESSAGE_BYTES,
        )
        self._push = pynng.Push0(
            tls_config=_tls(setting, TLSConfig.MODE_CLIENT),
            send_buffer_size=BUFFER_MESSAGES,
            send_timeout=SEND_TIMEOUT_MS,
        )

    def listen(self, ports: Ports) -> Ports:
        """Open the PULL socket."""
        listener = self._pull.listen("tls+tcp://127.0.0.1:0")
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        own: int = listener.local_address.port  # in network byte order
        return ((own & 0xFF) << 8 | own >> 8,)

    def connect(self, ports: Ports) -> None:
        """Dial the other end's PULL socket."""
        self._push.dial(f"tls+tcp://127.0.0.1:{ports[0]}", block=False)

    def sender(self, *, batched: bool) -> Callable[[bytes], object]:
        """A frame is a message; NNG has no batching."""
        send: Callable[[bytes], object] = self._push.send
        return send

    def versions(self) -> dict[str, str]:
        """The versions of pynng and of the NNG in it."""
        return {"pynng": str(pynng.__version__), "nng": pynng.ffi.string(lib.nng_version()).decode()}

    def close(self) -> None:
        """Close both sockets; the receiving thread ends."""
        self._push.close()
        self._pull.close()

    def _receive(self) -> None:
        receive, handle = self._pull.recv, self.inbox.receive
        try:
            while True:
                handle(receive())
        except pynng.Closed:
            return


def _tls(setting: Setting, mode: Any) -> TLSConfig:
    config = TLSConfig(
        mode,
        ca_string=setting.authority.read_text(),
        own_cert_string=setting.certificate.read_text(),
        own_key_string=setting.key.read_text(),
        auth_mode=TLSConfig.AUTH_MODE_REQUIRED,
        server_name=SERVER_NAME if mode == TLSConfig.MODE_CLIENT else None,
    )
    lib.nng_tls_config_version(config._tls_config, lib.NNG_TLS_1_3, lib.NNG_TLS_1_3)
    return config
