"""The node's side of the process that starts all workers by forking (:mod:`meshnode.models.worker.forking`).

A new interpreter with NumPy and ONNX Runtime takes a quarter of a second of processor time and 26 MB. The fork server
loads both once, so each worker costs a hundredth of that time and shares the memory. The node itself never forks while
it runs: a fork holds the interpreter's lock until the child has called ``exec``, which took up to 59 ms.

What is known of a worker comes through a pipe of its own: its process id, and later its wait status, each as one
integer. So nobody has to look after the fork server, and its end is the end of all these pipes.
"""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Final

from meshnode.models.children import child_command, child_environment
from meshnode.models.worker.messages import PIPE_NUMBER, KillOrder, ServerOrder, StartOrder, encode

_HELD_BACK: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that a terminal or systemd sends to all processes of a node: the node decides what ends when."""
_ATTEMPTS: Final = 2
"""The kernel may have ended the fork server for the memory of another."""


class ForkServer:
    """Starts workers. Its methods may be called from any thread. Before the first worker there is no process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._closed = False
        # The kernel ends the server when the thread that started it ends. This one lasts as long as the node, and new
        # processes inherit which signals it blocks.
        self._starter = ThreadPoolExecutor(
            1, "model-worker-starter", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        )

    def start(self, control: int, *, idle: bool) -> "ForkedWorker":
        """Start a worker that serves the socket behind the descriptor ``control``, blocking for milliseconds. ``idle``:
        it gets only the processor time that nobody else wants.

        :raises OSError: no process can be started.
        """
        for _ in range(_ATTEMPTS):
            server = self._running()
            with suppress(ConnectionError):
                return server.start(control, idle=idle)
            with self._lock:
                if self._server is server:
                    self._server = None
            server.close()
        raise ConnectionError("the process that starts the others ends at once")

    def _running(self) -> "_Server":
        with self._lock:
            if self._closed:
                raise ConnectionError("the node is shutting down")
            if self._server is None:
                self._server = self._starter.submit(_Server).result()
            return self._server

    def close(self) -> None:
        """End the fork server, and with it all workers that are left. Idempotent."""
        with self._lock:
            self._closed, server, self._server = True, self._server, None
        if server is not None:
            server.close()
        self._starter.shutdown()


class _Server:
    """One life of the fork server."""

    def __init__(self) -> None:
        """Start it; the calling thread has to last as long as it."""
        self._numbers = count()
        self._lock = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # NumPy's threads would keep it from forking, and models are not computed by NumPy.
        environment = child_environment() | {"OPENBLAS_NUM_THREADS": "1"}
        command = child_command("meshnode.models.worker", theirs.fileno(), os.getpid())
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
                    env=environment,
                )  # fmt: skip
            except BaseException:
                self._orders.close()
                raise

    def start(self, control: int, *, idle: bool) -> "ForkedWorker":
        """See :meth:`ForkServer.start`. :raises ConnectionError: the fork server has ended."""
        number = next(self._numbers)
        status, theirs = os.pipe()
        try:
            self.send(StartOrder(number, idle), control, theirs)
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(theirs)
        return ForkedWorker(self, number, status)

    def send(self, order: ServerOrder, *descriptors: int) -> None:
        """:raises OSError: the fork server has ended, or takes no messages."""
        with self._lock:  # so that the socket is not closed meanwhile
            if self._orders.fileno() < 0:
                raise ConnectionError("the fork server has ended")
            socket.send_fds(self._orders, [encode(order)], descriptors, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """End it. Idempotent."""
        with self._lock:
            self._orders.close()
        self._process.kill()
        self._process.wait()


class ForkedWorker:
    """A worker process. Its methods may be called from any thread."""

    def __init__(self, server: _Server, number: int, status: int) -> None:
        """Wait until it is started. ``status``: the reading end of its pipe, which this object closes.

        :raises ConnectionError: the fork server has ended. :raises OSError: it could not fork.
        """
        self._server, self._number, self._pipe = server, number, status
        self._lock = threading.Lock()
        self._status: int | None = None
        content = os.read(status, PIPE_NUMBER.size)
        if not content:
            os.close(status)
            raise ConnectionError("the fork server has ended")
        self.process_id: int = PIPE_NUMBER.unpack(content)[0]
        if self.process_id < 0:
            os.close(status)
            raise OSError(-self.process_id, os.strerror(-self.process_id))

    def kill(self) -> None:
        """Have it killed. The fork server does it, which alone knows whether the process id is still that of this
        worker. Without a fork server the kernel has killed it."""
        with suppress(OSError):
            self._server.send(KillOrder(self._number))

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end; return its status as ``subprocess`` does. :raises TimeoutError: it did not end in time."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError
        try:
            if self._status is None:
                poll = select.poll()
                poll.register(self._pipe, select.POLLIN)
                if not poll.poll(None if ends_s is None else max(ends_s - time.monotonic(), 0) * 1e3):
                    raise TimeoutError
                content = os.read(self._pipe, PIPE_NUMBER.size)
                os.close(self._pipe)
                self._status = PIPE_NUMBER.unpack(content)[0] if content else -signal.SIGKILL
            return self._status
        finally:
            self._lock.release()
