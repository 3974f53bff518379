"""Compares the pipes of a listening port with the connections that the kernel knows, and reports the differences.

Two faults of NNG 1.11.0 make that necessary. Both were measured, and stand in its ``tls_common.c``:

- its time-out of a negotiation has no effect while TLS waits for the peer's first bytes: any stranger could take all
  descriptors of a node by connecting and keeping still. This module shuts such connections down, and NNG sees them end;
- a connection that ends while nothing waits to receive from it (a slow reader, or a last frame directly before the end)
  is closed without a notice for its pipe. This module names such pipes, and their owner closes them. The same was seen
  of a dialled pipe whose peer ended as it opened.

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
Dialled = tuple[Remote, int]
"""The other end of a connection that we dialled, and the port of our end."""
_ESTABLISHED = 1
"""A state of TCP; see tcp(7)."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one comparison found."""

    mute_closed: int
    vanished: frozenset[Remote]
    """The other ends of known pipes that have no connection any more."""
    lanes_ended: frozenset["Dialled"] = frozenset()
    """The dialled connections that are gone, or that the peer has ended."""


class Connections:
    """The connections into one listening port. Not thread-safe: call it from one thread."""

    def __init__(self, port: int, handshake_ns: int) -> None:
        self._port = port
        self._handshake_ns = handshake_ns
        self._since_ns: dict[Remote, int] = {}

    def look(self, known: Collection[Remote], now_ns: int, lanes: Collection[Dialled] = ()) -> Found:
        """Shut down strangers that are older than a handshake may take. ``known`` are the other ends of all admitted
        pipes, ``lanes`` the connections of all open lanes."""
        strangers: dict[Remote, int] = {}
        missing, ended = set(known), set(lanes)
        closed = 0
        descriptors = socket_descriptors()
        if not descriptors:
            return Found(0, frozenset())
        for descriptor in descriptors:
            try:
                # the copy keeps the connection ours while we judge it, whatever NNG does with its own descriptor
                connection = socket.socket(fileno=os.dup(descriptor))
            except OSError:
                continue  # closed meanwhile
            with connection:
                found = _ends(connection)
                if found is None:
                    continue
                remote, own_port = found
                if own_port != self._port:
                    if (
                        found in ended
                        and connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
                    ):
                        ended.discard(found)
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
        return Found(closed, frozenset(missing), frozenset(ended))


def _ends(connection: socket.socket) -> Dialled | None:
    """Both ends of a connection; None when it is none, or has ended."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        own_port = connection.getsockname()[1]
        host, port = connection.getpeername()[:2]
    except OSError:
        return None  # it is a listener, or has ended
    return (plain_host(host.partition("%")[0]), port), own_port


def unconfirmed_bytes_of(dialled: Dialled) -> int:
    """Bytes that the kernel holds for a connection, because its peer has not acknowledged them."""
    for descriptor in socket_descriptors():
        try:
            connection = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed meanwhile
        with connection:
            if _ends(connection) == dialled:
                return unconfirmed_bytes(connection.fileno())
    return 0


def socket_descriptors() -> list[int]:
    """The descriptors of all sockets of this process; none where the system does not tell."""
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
