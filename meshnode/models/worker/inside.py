"""What happens inside a worker process: it loads one model, and computes what comes on its slots.

Invariants:

- It ends when the node does: at the end of the control socket, and by ``PR_SET_PDEATHSIG`` should it be stuck in a call
  that never returns to Python.
- It has nothing of the node's but its control socket, ``stderr`` and what comes through that socket. SIGINT, SIGTERM
  and SIGHUP are blocked when it starts, because the node decides when it ends.
- When memory runs out, the kernel kills this process before the node.
"""

import errno
import os
import resource
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.children import end_with, is_about_memory
from meshnode.models.manifest import read_manifest
from meshnode.models.model import MAX_MODEL_BYTES, Cancellation, LoadedModel, ModelSpec, load_model
from meshnode.models.weights import size_with_weights
from meshnode.models.worker.messages import (
    MAX_MESSAGE_BYTES,
    CancelOrder,
    CedeOrder,
    FailureReply,
    LoadedReply,
    LoadOrder,
    RefusedReply,
    RoomOrder,
    RoomReply,
    RunOrder,
    RunReply,
    SlotOrder,
    SlotReply,
    decode_control_order,
    decode_slot_order,
    encode,
)
from meshnode.models.worker.segment import KEPT_BYTES, Segment, size_of
from protocols.base.errors import InferenceError, InputInvalid, MeshError, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OOM_SCORE: Final = 500
"""Half of all memory: of two processes the kernel ends this one, unless the other is larger by that much."""
DEFAULT_LIMIT_BYTES: Final = 1 << 30
_STACK_BYTES: Final = 8 << 20
"""What a thread counts for in ``RLIMIT_DATA``, whether it uses its stack or not."""
_SLOTS: Final = 8
"""Threads beside those that compute."""
_MAX_WHY: Final = 2_000


def serve(control_fd: int, parent: int) -> None:
    """Load the model that is ordered and serve its slots, until the node closes the control socket."""
    end_with(parent)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with socket.socket(fileno=control_fd) as control:
        if content := control.recv(MAX_MESSAGE_BYTES):
            order = decode_control_order(content)
            assert isinstance(order, LoadOrder)
            model = _load(order, control)
            if model is not None:
                _serve_slots(model, control)
    os._exit(0)  # slots may be stuck in a run


def _load(order: LoadOrder, control: socket.socket) -> LoadedModel | None:
    spec = ModelSpec(
        order.name, Path(order.path), order.threads, True, order.optimisation,  # type: ignore[arg-type]
        order.warm_up, order.digest, order.providers,
    )  # fmt: skip
    limit_bytes = 0
    try:
        import onnxruntime  # noqa: F401 - its own memory is none of the model's

        limit_bytes = _limit_bytes(spec.path) if order.limit_bytes is None else order.limit_bytes
        data_bytes = limit_bytes + _data_bytes() + (order.threads + _SLOTS) * _STACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
        model = load_model(spec)
        inputs = tuple(each.tensor for each in model.accepted)
        reply = encode(
            LoadedReply(model.digest, inputs, model.outputs, model.manifest.results(), model.left_out, model.notes)
        )
        if len(reply) > MAX_MESSAGE_BYTES:
            raise InferenceError(f"model {order.name!r}: its signature takes {len(reply)} bytes: shorten its names")
    except (MeshError, MemoryError, ImportError) as error:
        why = f"model {order.name!r}: {error!r}" if not isinstance(error, MeshError) else str(error)
        if is_about_memory(error):
            why += f"; 'memory_limit_mib' allows it {limit_bytes >> 20} MiB"
        control.send(encode(RefusedReply(why[:_MAX_WHY])))
        return None
    control.send(reply)
    return model


def _limit_bytes(path: Path) -> int:
    """What a model may take whose configuration does not say it: what its manifest says, or else enough to load it,
    when its weights are in memory up to three times, and to compute."""
    try:
        if (memory_mib := read_manifest(path).memory_mib) is not None:
            return memory_mib << 20
        if path.stat().st_size > MAX_MODEL_BYTES:
            return DEFAULT_LIMIT_BYTES  # loading it says what is wrong
        return DEFAULT_LIMIT_BYTES + 4 * size_with_weights(path)
    except (OSError, ModelInvalid):
        return DEFAULT_LIMIT_BYTES  # loading it says what is wrong


def _data_bytes() -> int:
    """What counts for ``RLIMIT_DATA`` now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _serve_slots(model: LoadedModel, control: socket.socket) -> None:
    slots: dict[int, _Slot] = {}
    while True:
        content, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 1)
        if not content:
            return
        match decode_control_order(content):
            case SlotOrder(slot=number):
                slots[number] = _Slot(model, socket.socket(fileno=descriptors[0]))
            case CancelOrder(slot=number, run=run):
                slots[number].cancel(run)
            case CedeOrder(slot=number, run=run):
                slots[number].cede(run)
            case LoadOrder():
                raise AssertionError("one model for each process")


class _Slot:
    """A thread that computes one order after the other."""

    def __init__(self, model: LoadedModel, orders: socket.socket) -> None:
        self._model, self._orders = model, orders
        self._segment: Segment | None = None
        self._lock = threading.Lock()
        self._run, self._cancelled_run, self._ceded_run = -1, -1, -1
        self._cancellation = Cancellation()
        threading.Thread(target=self._work, name="slot", daemon=True).start()

    def cancel(self, run: int) -> None:
        """End that run, whether it is under way or has not come yet."""
        with self._lock:
            self._cancelled_run = max(self._cancelled_run, run)
            if run == self._run:
                self._cancellation.cancel()

    def cede(self, run: int) -> None:
        """Begin no further run of that order."""
        with self._lock:
            self._ceded_run = max(self._ceded_run, run)
            if run == self._run:
                self._cancellation.cede()

    def _work(self) -> None:
        with self._orders:
            while (order := self._next_order()) is not None:
                assert isinstance(order, RunOrder)
                with self._lock:
                    self._run, self._cancellation = order.run, Cancellation()
                    if self._cancelled_run >= order.run:
                        self._cancellation.cancel()
                    if self._ceded_run >= order.run:
                        self._cancellation.cede()
                self._reply(self._answer(order))
                del order
                if self._segment is not None and self._segment.size_bytes > KEPT_BYTES:
                    self._segment = None  # so does the node

    def _next_order(self) -> RunOrder | RoomOrder | None:
        content, descriptors, _, _ = socket.recv_fds(self._orders, MAX_MESSAGE_BYTES, 1)
        if not content:
            return None
        for descriptor in descriptors:
            self._segment = Segment(descriptor)
            self._segment.close_descriptor()
        return decode_slot_order(content)

    def _reply(self, reply: SlotReply) -> None:
        try:
            self._orders.send(encode(reply))
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def _answer(self, order: RunOrder) -> SlotReply:
        segment = self._segment
        assert segment is not None
        each = len(order.inputs) // order.runs
        inputs: list[Mapping[str, NDArray[Any]]] = [
            {placed.name: segment.view(placed) for placed in order.inputs[run * each : (run + 1) * each]}
            for run in range(order.runs)
        ]
        started_ns, used_ns = time.monotonic_ns(), time.process_time_ns()
        try:
            outputs = list(chain.from_iterable(self._model.run_each(inputs, order.outputs, self._cancellation)))
        except InputInvalid as error:
            return FailureReply("invalid", str(error)[:_MAX_WHY])
        except Exception as error:  # noqa: BLE001 - whatever it is, the node waits for an answer
            why = str(error) if isinstance(error, InferenceError) else repr(error)
            return FailureReply("memory" if is_about_memory(error) else "failed", why[:_MAX_WHY])
        compute_ns = min(time.monotonic_ns() - started_ns, time.process_time_ns() - used_ns)
        if size_of(outputs, order.used_bytes) <= segment.size_bytes:
            return RunReply(segment.put(outputs, order.used_bytes), compute_ns)
        del inputs, segment
        self._segment = None
        self._reply(RoomReply(size_of(outputs)))
        if self._next_order() is None:
            os._exit(0)
        assert self._segment is not None
        return RunReply(self._segment.put(outputs, 0), compute_ns)
