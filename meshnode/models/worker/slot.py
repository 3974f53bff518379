"""A slot: a socket and a piece of shared memory, by which one run after the other goes to a worker process.

Whoever waits for a run watches over it: the waiting thread notices that the process has died, that the deadline has
passed, and that a run does not end although it was told to. So an idle process costs no processor time, and a model
that hangs is noticed without a thread that looks around.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from meshnode.models.model import Cancellation
from meshnode.models.worker.losses import Loss, WorkerLost
from meshnode.models.worker.messages import (
    MAX_MESSAGE_BYTES,
    PlacedTensor,
    RoomOrder,
    RoomReply,
    RunOrder,
    SlotReply,
    decode_slot_reply,
    encode,
)
from meshnode.models.worker.segment import Segment, size_of
from protocols.base.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOOK_S: Final = 0.25
"""How often a thread that waits for a long run looks whether the run was cancelled."""


class SlotOwner(Protocol):
    """The process that a slot leads to."""

    def cancel(self, slot: int, run: int) -> None:
        """Tell it to end that run."""

    def cede(self, slot: int, run: int) -> None:
        """Tell it to begin no further run of that order."""

    def end(self, loss: Loss, why: str) -> WorkerLost:
        """End it, and return what is raised then."""

    def how_it_ended(self) -> WorkerLost:
        """Why it is gone, when it is known to be gone."""


class Slot:
    """A socket and a segment, for one run at a time."""

    def __init__(self, process: SlotOwner, number: int, connection: socket.socket) -> None:
        self.number, self.run = number, 0
        self.segment: Segment | None = None
        self.connection = connection
        self._process = process
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def exchange(
        self, inputs: "Sequence[tuple[str, NDArray[Any]]]", runs: int, wanted: tuple[str, ...], watch: "RunWatch"
    ) -> SlotReply:
        """Have one run computed, or several. The reply is a ``RunReply`` or a ``FailureReply``."""
        used_bytes = size_of(inputs)
        if self.segment is None or self.segment.size_bytes < used_bytes:
            self.segment = Segment.make(used_bytes)
        self._send(RunOrder(self.run, runs, self.segment.put(inputs, 0), wanted, used_bytes), self.segment)
        reply = self._wait(watch)
        if isinstance(reply, RoomReply):
            try:
                self.segment = Segment.make(reply.size_bytes)
            except InferenceError:
                raise self._process.end("grew", f"gave outputs of {reply.size_bytes} bytes") from None
            self._send(RoomOrder(), self.segment)
            reply = self._wait(watch)
        return reply

    def copies(self, outputs: tuple[PlacedTensor, ...]) -> "list[tuple[str, NDArray[Any]]]":
        """The outputs of the last run, for the caller to keep."""
        assert self.segment is not None
        return [(placed.name, self.segment.view(placed).copy()) for placed in outputs]

    def _send(self, order: RunOrder | RoomOrder, segment: Segment) -> None:
        """Send an order, and the segment if the process does not have it yet."""
        try:
            if segment.descriptor is None:
                self.connection.send(encode(order))
            else:
                socket.send_fds(self.connection, [encode(order)], (segment.descriptor,))
        except ConnectionError:
            raise self._process.how_it_ended() from None
        finally:
            segment.close_descriptor()

    def _wait(self, watch: "RunWatch") -> SlotReply:
        while not self._poll.poll(watch.look() * 1e3):
            pass
        try:
            content = self.connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            content = b""
        if not content:
            raise self._process.how_it_ended()
        return decode_slot_reply(content)


class RunWatch:
    """What the thread that waits for a run looks at meanwhile. A :class:`Cancellation` sets its ``terminate``, as it
    would that of ONNX Runtime's ``RunOptions``."""

    def __init__(self, process: SlotOwner, slot: Slot, cancel: Cancellation, held_up_s: float, grace_s: float) -> None:
        slot.run += 1
        self._process, self._slot, self._run, self._cancel = process, slot.number, slot.run, cancel
        now_s = time.monotonic()
        self._held_up_at_s = now_s + held_up_s
        self._late_at_s = cancel.deadline_ns / 1e9
        self._grace_s = grace_s
        self._told_at_s: float | None = None
        self._told_held_up = False
        self.late = False
        """Whether the run was told to end because its deadline had passed."""

    @property
    def terminate(self) -> bool:
        """Whether the run was told to end."""
        return self._told_at_s is not None

    @terminate.setter
    def terminate(self, _: bool) -> None:
        if self._told_at_s is None:
            self._told_at_s = time.monotonic()
            self._process.cancel(self._slot, self._run)

    def cede(self) -> None:
        """Tell the process to begin no further run."""
        self._process.cede(self._slot, self._run)

    def look(self) -> float:
        """Do what is due, and return how long the caller may wait for the reply, in seconds.

        :raises WorkerLost: the run did not end although it was told to; its process was ended.
        """
        now_s = time.monotonic()
        next_s = now_s + _LOOK_S
        if not self._told_held_up:
            if now_s >= self._held_up_at_s:
                self._told_held_up = True
                self._cancel.held_up()
            else:
                next_s = min(next_s, self._held_up_at_s)
        if self._told_at_s is None and now_s >= self._late_at_s:
            self.late = True
            self.terminate = True
        ends_s = self._late_at_s if self._told_at_s is None else self._told_at_s + self._grace_s
        if now_s >= ends_s:
            since = "its deadline" if self.late else "it was cancelled"
            raise self._process.end("hung", f"was ended because a run went on for {self._grace_s:.1f} s after {since}")
        return min(next_s, ends_s) - now_s
