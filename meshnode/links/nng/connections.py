"""Compares the pipes of a listening port with the connections that the kernel knows, and names what does not match.

Two faults of NNG 1.11.0 make that necessary; both were measured and can be read in its ``tls_common.c``:

- its negotiation time-out has no effect while TLS waits for the peer's first bytes: any stranger could take all
  descriptors of a node by connecting and keeping still. Such connections are shut down here, and NNG sees them end;
- a connection that ends while nothing waits to receive from it (a slow reader, or a last frame directly before the end)
  is closed without its pipe ever being told. Such pipes are named here, and the owner closes them.

Linux only (``/proc``); elsewhere nothing is found and nothing is closed.
"""

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from meshnode.links.peer import plain_host

_DESCRIPTORS = "/proc/self/fd"
Remote = tuple[str, int]
"""Host and port of the other end of a connection."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look gave."""

    mute_closed: int
    vanished: frozenset[Remote]
    """Ends of known pipes that have no connection any more."""


class Connections:
    """Connections into one listening port. Not thread-safe: call it from one thread."""

    def __init__(self, port: int, handshake_ns: int) -> None:
        self._port = port
        self._handshake_ns = handshake_ns
        self._since_ns: dict[Remote, int] = {}

    def look(self, known: Collection[Remote], now_ns: int) -> Found:
        """Shut down strangers older than a handshake may take; ``known`` are the ends of all admitted pipes."""
        strangers: dict[Remote, int] = {}
        missing = set(known)
        closed = 0
        descriptors = _socket_descriptors()
        if not descriptors:
            return Found(0, frozenset())
        for descriptor in descriptors:
            try:
                # the copy keeps the connection ours while we judge it, whatever NNG does with its own descriptor
                connection = socket.socket(fileno=os.dup(descriptor))
            except OSError:
                continue  # closed meanwhile
            with connection:
                remote = self._remote(connection)
                if remote is None:
                    continue
                if remote in known:
                    missing.discard(remote)
                    continue
                since_ns = self._since_ns.get(remote, now_ns)
                if now_ns - since_ns < self._handshake_ns:
                    strangers[remote] = since_ns
                    continue
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                    closed += 1
                except OSError:
                    continue  # gone meanwhile
        self._since_ns = strangers
        return Found(closed, frozenset(missing))

    def _remote(self, connection: socket.socket) -> Remote | None:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            if connection.getsockname()[1] != self._port:
                return None
            host, port = connection.getpeername()[:2]
        except OSError:
            return None  # it listens, or has ended
        return plain_host(host.partition("%")[0]), port


def _socket_descriptors() -> list[int]:
    # by names and not by Path: hundreds of them are looked at each second, with the interpreter held
    try:
        names = os.listdir(_DESCRIPTORS)  # noqa: PTH208
    except OSError:
        return []
    found = []
    for name in names:
        try:
            if os.readlink(f"{_DESCRIPTORS}/{name}").startswith("socket:"):  # noqa: PTH115
                found.append(int(name))
        except OSError:
            continue  # closed meanwhile
    return found
