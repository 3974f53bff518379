"""The thread for handshakes of the express links: the arithmetic of TLS, one step after the other.

The step that proves an identity takes up to 1.5 ms, as long as a hundred frames. OpenSSL does it without the
interpreter, so on a thread of its own it keeps no frame waiting; whoever opens one link after the other only makes
other newcomers wait.

Invariant: while this thread has a connection, nothing else uses its TLS object. The I/O thread reads no bytes for it.
"""

import queue
import threading
from collections.abc import Callable
from typing import Final

from meshnode.links.express.connection import Connection

_END: Final = None


class Handshakes:
    """Takes steps of handshakes. ``post`` has the I/O thread run a task."""

    def __init__(self, post: Callable[[Callable[[], None]], None], came_back: Callable[[Connection], None]) -> None:
        """``came_back`` is called on the I/O thread with each connection whose step has been taken."""
        self._post, self._came_back = post, came_back
        # it holds each connection once at most, and these are bounded
        self._waiting: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mesh-handshakes", daemon=True)
        self._thread.start()

    def take_step(self, connection: Connection) -> None:
        """Go on with the handshake of a connection as far as its bytes allow."""
        self._waiting.put(connection)

    def close(self) -> None:
        """End the thread, once it has taken the steps that wait. Idempotent."""
        self._waiting.put(_END)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (connection := self._waiting.get()) is not _END:
            if not connection.finished:
                connection.advance()
            self._post(lambda connection=connection: self._came_back(connection))  # type: ignore[misc]
