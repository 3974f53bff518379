"""One worker process as the node sees it: started, asked to load its model, asked to compute, ended."""

import os
import select
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.children import how_it_exited
from meshnode.models.model import Cancellation
from meshnode.models.worker.fork_server import ForkServer
from meshnode.models.worker.losses import Loss, WorkerLost
from meshnode.models.worker.messages import (
    MAX_MESSAGE_BYTES,
    CancelOrder,
    CedeOrder,
    ControlOrder,
    FailureReply,
    LoadedReply,
    LoadOrder,
    RefusedReply,
    RunReply,
    SlotOrder,
    decode_control_reply,
    encode,
)
from meshnode.models.worker.segment import KEPT_BYTES
from meshnode.models.worker.slot import RunWatch, Slot
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REAP_S: Final = 5.0


class WorkerProcess:
    """A process that has one model. Its methods may be called from any thread."""

    def __init__(self, name: str, starter: ForkServer, *, idle: bool = False) -> None:
        """Start it. ``idle``: it gets only the processor time that nobody else wants.

        :raises InferenceError: no process can be started.
        """
        self.name, self._idle = name, idle
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise InferenceError(f"model {name!r}: no worker process can be started ({error})") from error
        self._control_lock = threading.Lock()
        """Held while something is sent, so that the socket is not closed meanwhile."""
        self._lock = threading.Lock()
        self._idle_slots: list[Slot] = []
        self._slots = 0
        self._ended: WorkerLost | None = None
        with theirs:
            try:
                self._process = starter.start(theirs.fileno(), idle=idle)
            except BaseException as error:
                self._control.close()
                if not isinstance(error, OSError | RuntimeError):
                    raise
                raise InferenceError(f"model {name!r}: no worker process can be started ({error})") from error

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.process_id

    def become_idle(self) -> None:
        """From now on it gets only the processor time that nobody else wants. There is no way back."""
        if self._idle:
            return
        self._idle = True
        with suppress(OSError):  # it has ended, or the system has no such thing
            for thread in Path(f"/proc/{self.process_id}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))

    def load(self, order: LoadOrder, limit_s: float) -> LoadedReply:
        """Have the model loaded, blocking.

        :raises ModelInvalid: it can't be loaded; the message says why.
        :raises WorkerLost: the process ended meanwhile, or was ended because it took longer than ``limit_s``.
        """
        content = b""
        with suppress(OSError, ValueError):  # the socket is closed when the process is ended meanwhile
            self._send(order)
            if not _readable(self._control, limit_s):
                raise self.end("hung", f"did not load the model within {limit_s:g} s")
            content = self._control.recv(MAX_MESSAGE_BYTES)
        if not content:
            raise self.how_it_ended()
        answer = decode_control_reply(content)
        if isinstance(answer, RefusedReply):
            self.end("closed", "has refused the model")
            raise ModelInvalid(answer.why)
        return answer

    def run(
        self, inputs: "Sequence[tuple[str, NDArray[Any]]]", runs: int, wanted: tuple[str, ...], cancel: Cancellation,
        held_up_s: float, grace_s: float,
    ) -> "list[tuple[str, NDArray[Any]]]":  # fmt: skip
        """Compute, blocking. ``inputs``: those of so many ``runs``, each with as many. The outputs are copies, which
        the caller may keep, of at least one run: see :meth:`LoadedModel.run_each`.

        ``cancel.held_up`` is called when the run takes longer than ``held_up_s``. The run is told to end when it is
        cancelled or its deadline passes; ``grace_s`` later the process is ended.

        :raises InputInvalid: the model refused the inputs.
        :raises BudgetExhausted: the deadline passed.
        :raises WorkerLost: the process ended, or was ended.
        :raises InferenceError: the model failed on these inputs, or the run was cancelled.
        """
        slot = self._take_slot()
        watch = RunWatch(self, slot, cancel, held_up_s, grace_s)
        cancel.watch(watch)
        try:
            reply = slot.exchange(inputs, runs, wanted, watch)
            outputs = []
            if isinstance(reply, RunReply):
                outputs, cancel.compute_ns = slot.copies(reply.outputs), reply.compute_ns
        except BaseException:
            slot.connection.close()
            raise
        finally:
            cancel.watch(None)
        self._give_back(slot)
        if isinstance(reply, FailureReply):
            raise self._failure(reply, watch)
        return outputs

    def _failure(self, reply: FailureReply, watch: RunWatch) -> InferenceError:
        if watch.late:
            return BudgetExhausted(
                f"the run of model {self.name!r} was ended at its deadline: give it a larger budget, or ask another "
                "node"
            )
        if reply.kind == "memory":
            # What an arena has taken it keeps: the next run would fail on smaller inputs.
            return self.end("grew", f"needed more memory than 'memory_limit_mib' allows ({reply.why})")
        return InputInvalid(reply.why) if reply.kind == "invalid" else InferenceError(reply.why)

    # --- slots -----------------------------------------------------------------------------------------------------
    def _take_slot(self) -> Slot:
        with self._lock:
            if self._idle_slots:
                return self._idle_slots.pop()
            number, self._slots = self._slots, self._slots + 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._send(SlotOrder(number), theirs.fileno())
            except BlockingIOError:
                ours.close()
                raise self.end("hung", "was ended because it took no messages any more") from None
            except OSError:
                ours.close()
                raise self.how_it_ended() from None
        return Slot(self, number, ours)

    def _give_back(self, slot: Slot) -> None:
        if slot.segment is not None and slot.segment.size_bytes > KEPT_BYTES:
            slot.segment = None  # so does the worker
        with self._lock:
            if self._ended is None:
                self._idle_slots.append(slot)
            else:
                slot.connection.close()

    def cancel(self, slot: int, run: int) -> None:
        """Tell the process to end that run. Nothing happens if it has ended, or the process has."""
        with suppress(OSError):
            self._send(CancelOrder(slot, run))

    def cede(self, slot: int, run: int) -> None:
        """Tell the process to begin no further run of that order, as :meth:`cancel` does."""
        with suppress(OSError):
            self._send(CedeOrder(slot, run))

    def _send(self, order: ControlOrder, *descriptors: int) -> None:
        """It never blocks: whoever cancels a run must not wait for a process that is stuck."""
        with self._control_lock:
            socket.send_fds(self._control, [encode(order)], descriptors, socket.MSG_DONTWAIT)

    # --- its end ---------------------------------------------------------------------------------------------------
    def end(self, loss: Loss, why: str) -> WorkerLost:
        """End the process at once, because of ``why``; it has nothing to save. Returns what is raised then, or the
        reason for which it had ended before."""
        with self._lock:
            if self._ended is None:
                self._ended = WorkerLost(loss, why)
            ended = self._ended
        self._process.kill()
        if self._idle:  # to end takes processor time, of which it may not get any for long
            threading.Thread(target=self.how_it_ended, name="model-worker-end", daemon=True).start()
            return ended
        return self.how_it_ended()

    def how_it_ended(self) -> WorkerLost:
        """Why the process is gone; it is known to be gone, or was killed."""
        try:
            status = self._process.wait(_REAP_S)
        except TimeoutError:
            self._process.kill()  # it closed its sockets, and did not end
            status = self._process.wait()
        with self._control_lock:
            self._control.close()
        with self._lock:
            if self._ended is None:
                self._ended = WorkerLost("crashed", how_it_exited(status))
            for slot in self._idle_slots:
                slot.connection.close()
            self._idle_slots.clear()
            return self._ended


def _readable(connection: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(timeout_s * 1e3))
