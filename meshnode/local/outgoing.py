"""What one end of a local connection sends: at once when the socket takes it, else by a bounded queue.

The rules are those of a neighbour's lane (``protocols.links.queues``): control frames go first, then readings by
priority. When the other end is slow, the oldest readings of the lowest priority are dropped and counted, and nobody
waits. Readings gather to frames of up to 64 only while the socket is full. Without a pipe they wait for the next one.

Any thread may call any method; ``flush`` belongs to the thread that watches the socket.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from meshnode.local.pipe import Pipe
from protocols.base import limits
from protocols.base.errors import BoundExceeded
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.wire.parcels import frame_of_encoded_readings


class Outgoing:
    """The sending half of a connection."""

    def __init__(self, name: str, drops: Drops) -> None:
        """``drops`` counts what is dropped, under the peer ``name``; whoever else reads it holds ``lock``."""
        self.lock = threading.Lock()
        self.drops = drops
        self._name = name
        self._readings = LaneQueue(NodeId(name), drops)
        self._gathered: bytes | None = None  # a frame of readings that the socket did not take
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._last: deque[bytes] = deque()
        self._pipe: Pipe | None = None
        self._watch: Callable[[bool], None] = _unwatched

    def attach(self, pipe: Pipe, watch: Callable[[bool], None]) -> None:
        """Send through ``pipe`` from now on. ``watch(True)`` asks for :meth:`flush` when its socket takes bytes."""
        with self.lock:
            self._pipe, self._watch = pipe, watch
            watch(True)

    def detach(self) -> None:
        """The pipe is gone. Readings wait for the next one; control frames are discarded, because they concerned it."""
        with self.lock:
            if self._pipe is not None and self._pipe.backed_up:
                self.drops.count(self._name, "", "link_lost")
            self._pipe, self._watch = None, _unwatched
            self._control.clear()
            self._control_bytes = 0
            self._last.clear()

    def clear(self, reason: str) -> None:
        """Discard and count what waits, because nobody will take it."""
        with self.lock:
            if self._gathered is not None:
                self._gathered = None
                self.drops.count(self._name, "", reason)
            self._readings.clear(reason)

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        with self.lock:
            return self._clear

    @property
    def waiting_readings(self) -> int:
        """How many readings wait, read without the lock: a figure for people."""
        return self._readings.waiting_readings

    def send_reading(self, key: str, parcel: bytes, priority: int, lifespan_ms: int, conflate: bool = False) -> bool:
        """Send one encoded parcel, or have it wait. False: dropped, and counted.

        ``lifespan_ms``: what is left of it; 0: it never expires.
        """
        with self.lock:
            frame = frame_of_encoded_readings([parcel])
            if self._clear and self._sent(frame):
                return True
            expires_ns = time.monotonic_ns() + lifespan_ms * limits.MS if lifespan_ms else NEVER
            kept = self._readings.put_reading(key, frame, priority, expires_ns, conflate)
            self._watch(True)
            return kept

    def send_control(self, frame: bytes) -> bool:
        """Send a frame before all readings that wait, or have it wait. False: there is no pipe.

        :raises BoundExceeded: when the other end has not taken ``MAX_CONTROL_FRAMES`` before, or too many bytes.
        """
        with self.lock:
            if self._pipe is None:
                return False
            if not self._clear or not self._sent(frame):
                self._bounded(len(self._control), self._control_bytes + len(frame))
                self._control.append(frame)
                self._control_bytes += len(frame)
                self._watch(True)
            return True

    def send_last(self, frame: bytes) -> bool:
        """Send a frame after everything that waits now. False: there is no pipe.

        :raises BoundExceeded: when ``MAX_CONTROL_FRAMES`` of them wait.
        """
        with self.lock:
            if self._pipe is None:
                return False
            if not self._clear or not self._sent(frame):
                self._bounded(len(self._last), 0)
                self._last.append(frame)
                self._watch(True)
            return True

    def _bounded(self, count: int, size_bytes: int) -> None:
        if count >= limits.MAX_CONTROL_FRAMES or size_bytes > limits.MAX_QUEUE_BYTES:
            self.drops.count(self._name, "", "control_queue_full")
            raise BoundExceeded(f"{self._name} does not take frames: {count} wait. Ask for less at once")

    @property
    def _clear(self) -> bool:
        return (
            self._pipe is not None
            and not self._pipe.backed_up
            and self._gathered is None
            and not (self._control or self._readings or self._last)
        )

    def _sent(self, frame: bytes) -> bool:
        pipe = self._pipe
        if pipe is None or not pipe.try_send(frame):
            return False
        if pipe.backed_up:
            self._watch(True)
        return True

    def flush(self) -> None:
        """The socket takes bytes: send as much as it takes of what waits."""
        with self.lock:
            pipe = self._pipe
            while pipe is not None and pipe.flush():
                if self._control:
                    if not pipe.try_send(self._control[0]):
                        return
                    self._control_bytes -= len(self._control.popleft())
                    continue
                if self._gathered is None:
                    self._gathered = self._readings.take(time.monotonic_ns())
                if self._gathered is not None:
                    if not pipe.try_send(self._gathered):
                        return
                    self._gathered = None
                    continue
                if not self._last:
                    self._watch(False)
                    return
                if not pipe.try_send(self._last[0]):
                    return
                self._last.popleft()


def _unwatched(_wanted: bool) -> None:
    return
