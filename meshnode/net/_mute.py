"""Closes TCP connections to one of our ports that never finish a handshake.

NNG's own negotiation time-out has no effect while TLS waits for the peer's first bytes (measured with 1.11.0), so any
stranger could take all descriptors of a node by connecting and keeping still. The kernel knows all connections of this
process; those of our port that belong to no admitted pipe at two looks in a row are shut down, and NNG sees them end.
Linux only (``/proc``); elsewhere nothing is found and nothing is closed.
"""

import os
import socket
from collections.abc import Set as AbstractSet
from pathlib import Path

from meshnode.net._peer import plain_host


class MuteConnections:
    """Strangers on one listening port. Not thread-safe: call it from one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen: set[tuple[str, int]] = set()

    def sweep(self, known: AbstractSet[tuple[str, int]]) -> int:
        """Shut down what was a stranger at the last look and still is; ``known`` are the ends of admitted pipes.

        Call it at intervals of the time that a handshake may take. Returns how many were closed.
        """
        strangers: set[tuple[str, int]] = set()
        closed = 0
        for descriptor in _socket_descriptors():
            try:
                connection = socket.socket(fileno=os.dup(descriptor))
            except OSError:
                continue  # closed meanwhile
            with connection:
                try:
                    if connection.family not in (socket.AF_INET, socket.AF_INET6):
                        continue
                    if connection.getsockname()[1] != self._port:
                        continue
                    host, port = connection.getpeername()[:2]
                    remote = (plain_host(host.partition("%")[0]), port)
                    if remote in known:
                        continue
                    if remote in self._seen:
                        connection.shutdown(socket.SHUT_RDWR)
                        closed += 1
                    else:
                        strangers.add(remote)
                except OSError:
                    continue  # a listening socket, or gone meanwhile
        self._seen = strangers
        return closed


def _socket_descriptors() -> list[int]:
    found = []
    try:
        entries = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return []
    for entry in entries:
        try:
            if entry.readlink().name.startswith("socket:"):
                found.append(int(entry.name))
        except OSError:
            continue  # closed meanwhile
    return found
