"""What happens inside the fork server: it loads what all workers need, and becomes one worker after the other.

Invariants:

- It has one thread, no session of ONNX Runtime and nothing of the node's but one socket, so that a fork is safe and a
  child has nothing that it could break. When a library has started a thread after all, the child calls ``exec`` at
  once, as ``subprocess`` would: that takes longer and is as safe.
- It ends with the node, and the workers end with it (``PR_SET_PDEATHSIG``).
- It alone waits for workers, so a process id that it kills is the one that is meant.
"""

import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, assert_never

from meshnode.models.children import end_with
from meshnode.models.worker import inside
from meshnode.models.worker.messages import (
    MAX_MESSAGE_BYTES,
    PIPE_NUMBER,
    KillOrder,
    StartOrder,
    decode_server_order,
)

ALONE: Final = "alone"
"""The argument of a process that is a worker from the start."""


def serve(orders_fd: int, parent: int) -> NoReturn:
    """Start and kill workers as ordered, until the node closes the socket."""
    end_with(parent)
    with suppress(ImportError):  # a worker tells why it can't load its model
        import onnxruntime  # noqa: F401 - for all workers
    gc.collect()
    gc.freeze()  # a collection in a worker would copy the pages of all objects
    server = _ForkingServer(socket.socket(fileno=orders_fd))
    while server.obey():
        pass
    os._exit(0)


class _ForkingServer:
    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        for descriptor in (orders.fileno(), self._woken):
            self._poll.register(descriptor, select.POLLIN)
        self._workers: dict[int, tuple[int, int]] = {}
        """By process id: its number, and the pipe that tells its status."""

    def obey(self) -> bool:
        """Wait for the next order or end of a worker, and act. Returns whether there will be more."""
        for descriptor, _ in self._poll.poll():
            if descriptor == self._woken:
                os.read(self._woken, MAX_MESSAGE_BYTES)
                self._reap()
                continue
            content, descriptors, _, _ = socket.recv_fds(self._orders, MAX_MESSAGE_BYTES, 2)
            if not content:
                return False
            match order := decode_server_order(content):
                case StartOrder():
                    self._start(order, *descriptors)
                case KillOrder(number=number):
                    for process_id, (known, _) in self._workers.items():
                        if known == number:
                            os.kill(process_id, signal.SIGKILL)
                case _:
                    assert_never(order)
        return True

    def _reap(self) -> None:
        while self._workers:
            process_id, status = os.waitpid(-1, os.WNOHANG)
            if not process_id:
                return
            _, pipe = self._workers.pop(process_id)
            _tell(pipe, os.waitstatus_to_exitcode(status))
            os.close(pipe)

    def _start(self, order: StartOrder, control: int, pipe: int) -> None:
        me = os.getpid()
        try:
            process_id = os.fork()
        except OSError as error:
            _tell(pipe, -(error.errno or 1))
            os.close(pipe)
        else:
            if process_id == 0:
                self._become_worker(order, control, pipe, me)
            self._workers[process_id] = (order.number, pipe)
            _tell(pipe, process_id)
        os.close(control)

    def _become_worker(self, order: StartOrder, control: int, pipe: int, parent: int) -> NoReturn:
        try:
            if order.idle:
                with suppress(OSError):
                    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._orders.close()
            for descriptor in (self._woken, self._wake, pipe, *(pipe for _, pipe in self._workers.values())):
                os.close(descriptor)
            if _has_threads(parent):
                os.set_inheritable(control, True)
                command = [*sys.orig_argv[:-2], ALONE, str(control), str(parent)]
                os.execv(sys.executable, command)  # noqa: S606 - the program that this process is
            inside.serve(control, parent)
        except BaseException:  # noqa: BLE001 - it must not become a second server
            traceback.print_exc()
        os._exit(1)


def _has_threads(process_id: int) -> bool:
    """Whether a process has more threads than one."""
    return sum(1 for _ in Path(f"/proc/{process_id}/task").iterdir()) > 1


def _tell(pipe: int, number: int) -> None:
    with suppress(OSError):  # the node has closed it
        os.write(pipe, PIPE_NUMBER.pack(number))
