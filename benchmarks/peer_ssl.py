"""Bare ``ssl`` sockets: one TCP connection each way, blocking calls, frames with a length in front.

This is close to the most that this machine can do from Python, because there is no routing, no queue, no reconnecting
and no discovery. There is one connection each way, because two threads must not read and write one TLS object at once.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

from benchmarks.contender import BenchmarkFailed, Ports, Setting
from benchmarks.peer import Peer
from protocols.base.ids import SERVER_NAME

LENGTH_BYTES = 4
CHUNK_BYTES = 256 * 1024
"""How much is read at once. A larger frame is read straight into its own buffer."""
TIMEOUT_S = 5.0


class SslPeer(Peer):
    """One end of bare ``ssl`` sockets."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._outgoing: ssl.SSLSocket | None = None

    def listen(self, ports: Ports) -> Ports:
        """Open the listener and await one connection in a thread."""
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        return (self._listener.getsockname()[1],)

    def connect(self, ports: Ports) -> None:
        """Connect for sending."""
        raw = socket.create_connection(("127.0.0.1", ports[0]), timeout=TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The time-out holds for the handshake only. Sending blocks, as in a program without a library.
        outgoing = _context(self.setting, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(raw, server_hostname=SERVER_NAME)
        outgoing.settimeout(None)
        self._outgoing = outgoing

    def sender(self, *, batched: bool) -> Callable[[bytes], object]:
        """A frame is a TLS record, or several when it is long.

        The function raises ``BenchmarkFailed`` when the other end has closed the connection.
        """
        outgoing = self._outgoing
        assert outgoing is not None, "connect first"

        def send(frame: bytes) -> None:
            try:
                outgoing.sendall(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)
            except OSError as error:
                raise BenchmarkFailed(f"the other end closed the connection: {error}") from error

        return send

    def versions(self) -> dict[str, str]:
        """The version of OpenSSL."""
        return {"openssl": ssl.OPENSSL_VERSION.split()[1]}

    def close(self) -> None:
        """Close the sending side and the listener."""
        self._listener.close()
        if self._outgoing is not None:
            self._outgoing.close()

    def _receive(self) -> None:
        try:
            raw, _ = self._listener.accept()
        except OSError:
            return  # it was closed before a connection came
        raw.settimeout(TIMEOUT_S)
        context = _context(self.setting, ssl.PROTOCOL_TLS_SERVER)
        with (
            context.wrap_socket(raw, server_side=True) as incoming,
            # BenchmarkFailed: an echo found that the other end is gone, which the waiting thread there reports.
            contextlib.suppress(ConnectionError, ssl.SSLEOFError, BenchmarkFailed),
        ):
            incoming.settimeout(None)
            self._read_frames(incoming)

    def _read_frames(self, incoming: ssl.SSLSocket) -> None:
        handle = self.inbox.receive
        chunk = memoryview(bytearray(CHUNK_BYTES))
        start = end = 0
        while got := incoming.recv_into(chunk[end:]):
            end += got
            while end - start >= LENGTH_BYTES:
                size = int.from_bytes(chunk[start : start + LENGTH_BYTES], "big")
                start += LENGTH_BYTES
                if end - start >= size:
                    handle(chunk[start : start + size])
                elif size <= CHUNK_BYTES - LENGTH_BYTES:
                    start -= LENGTH_BYTES
                    break
                else:
                    # The frame gets memory of its own, because a receiver may keep the array in it.
                    frame = memoryview(bytearray(size))
                    have = end - start
                    frame[:have] = chunk[start:end]
                    while have < size:
                        got = incoming.recv_into(frame[have:])
                        if not got:
                            return
                        have += got
                    handle(frame)
                    start = end = 0
                    continue
                start += size
            if start == end:
                start = end = 0
            elif end == CHUNK_BYTES:
                chunk[: end - start] = chunk[start:end]
                start, end = 0, end - start


def _context(setting: Setting, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(setting.authority)
    context.load_cert_chain(setting.certificate, setting.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
