"""The thread for handshakes of the express links: the arithmetic of TLS, one step after the other.

The step that proves an identity takes up to 1.5 ms, as long as a hundred frames. OpenSSL does it without the
interpreter, so on a thread of its own it keeps no frame waiting; whoever opens one link after the other only makes
other newcomers wait.

Who a newcomer is shows at the end of its handshake, so the host that it comes from pays for that: an IPv4 address, or
all addresses in a /64 of IPv6. Beyond its allowance newcomers of a host wait, and those of others overtake them.

Invariant: while this thread has a connection, or the connection waits, nothing else uses its TLS object. The I/O thread
reads no bytes for it.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from meshnode.links.express.connection import Connection
from meshnode.links.peer import payer_of
from protocols.base.allowance import Allowance
from protocols.base.limits import HANDSHAKES_PER_S, MAX_HANDSHAKE_BURST, SECOND
from protocols.base.time import NEVER

_END: Final = None
_MAX_HOSTS: Final = 256
"""Hosts whose allowance is remembered; the one that came first is forgotten first."""


class Handshakes:
    """Takes steps of handshakes. ``post`` has the I/O thread run a task."""

    def __init__(self, post: Callable[[Callable[[], None]], None], came_back: Callable[[Connection], None]) -> None:
        """``came_back`` is called on the I/O thread with each connection whose step has been taken."""
        self._post, self._came_back = post, came_back
        self._hosts: dict[str, Allowance] = {}
        self._put_off: deque[Connection] = deque()
        self.due_ns = NEVER
        """When :meth:`go_on` has to be called next."""
        # it holds each connection once at most, and these are bounded
        self._waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mesh-handshakes", daemon=True)
        self._thread.start()

    def take_step(self, connection: Connection) -> None:
        """Go on with the handshake of a connection as far as its bytes allow, once its host may cost that."""
        now_ns = time.monotonic_ns()
        if self._is_paid(connection, now_ns):
            self._waiting.put(connection)
        else:
            self._put_off.append(connection)
            self.due_ns = min(self.due_ns, now_ns + SECOND // HANDSHAKES_PER_S)

    def go_on(self, now_ns: int) -> int:
        """Take the first steps of those that waited long enough. Returns when to call this next."""
        if now_ns >= self.due_ns:
            waiting = [connection for connection in self._put_off if not connection.finished]
            self._put_off.clear()
            for connection in waiting:
                (self._waiting.put if self._is_paid(connection, now_ns) else self._put_off.append)(connection)
            self.due_ns = now_ns + SECOND // HANDSHAKES_PER_S if self._put_off else NEVER
        return self.due_ns

    def close(self) -> None:
        """End the thread, once it has taken the steps that wait. Idempotent."""
        self._waiting.put(_END)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _is_paid(self, connection: Connection, now_ns: int) -> bool:
        """Whether a connection may take a step. Its host pays for the first one."""
        if not connection.owes:
            return True
        payer = payer_of(connection.host)
        allowance = self._hosts.get(payer)
        if allowance is None:
            if len(self._hosts) >= _MAX_HOSTS:
                del self._hosts[next(iter(self._hosts))]
            allowance = self._hosts[payer] = Allowance(HANDSHAKES_PER_S, MAX_HANDSHAKE_BURST, now_ns)
        connection.owes = not allowance.take(now_ns)
        return not connection.owes

    def _run(self) -> None:
        while (connection := self._waiting.get()) is not _END:
            if not connection.finished:
                connection.advance()
            self._post(lambda connection=connection: self._came_back(connection))  # type: ignore[misc]
