"""Compares the pipes of a listening port with the connections that the kernel knows, and reports the differences.

Two faults of NNG 1.11.0 make that necessary. Both were measured, and stand in its ``tls_common.c``:

- its time-out of a negotiation has no effect while TLS waits for the peer's first bytes: any stranger could take all
  descriptors of a node by connecting and keeping still. This module shuts such connections down, and NNG sees them end;
- a connection that ends while nothing waits to receive from it (a slow reader, or a last frame directly before the end)
  is closed without a notice for its pipe. This module names such pipes, and their owner closes them.

It works on Linux only (``/proc``); elsewhere it finds and closes nothing.
"""

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from meshnode.links.peer import plain_host
from meshnode.links.unconfirmed import unconfirmed_bytes

_DESCRIPTORS = "/proc/self/fd"
Remote = tuple[str, int]
"""The host and port of the other end of a connection."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one comparison found."""

    mute_closed: int
    vanished: frozenset[Remote]
    """The other ends of known pipes that have no connection any more."""


class Connections:
    """The connections into one listening port. Not thread-safe: call it from one thread."""

    def __init__(self, port: int, handshake_ns: int) -> None:
        self._port = port
        self._handshake_ns = handshake_ns
        self._since_ns: dict[Remote, int] = {}

    def look(self, known: Collection[Remote], now_ns: int) -> Found:
        """Shut down strangers that are older than a handshake may take. ``known`` are the other ends of all admitted
        pipes."""
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
            return None  # it is the listener, or has ended
        return plain_host(host.partition("%")[0]), port


def unconfirmed_bytes_to(remote: Remote, own_port: int) -> int:
    """Bytes that the kernel holds for the connection from ``own_port`` to ``remote``, because its peer has not
    acknowledged them."""
    for descriptor in _socket_descriptors():
        try:
            connection = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed meanwhile
        with connection:
            try:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    host, port = connection.getpeername()[:2]
                    if (plain_host(host.partition("%")[0]), port) == remote and connection.getsockname()[1] == own_port:
                        return unconfirmed_bytes(connection.fileno())
            except OSError:
                continue  # it is a listener, or has ended
    return 0


def _socket_descriptors() -> list[int]:
    # os.listdir and not Path: this looks at hundreds of descriptors each second, with the interpreter held
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
