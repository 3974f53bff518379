"""What one end of a local connection still has to send: straight out when the socket takes it, else a bounded queue.

The rules are those of a neighbour's lane (``protocols.queues``): control frames first, then readings by priority; when
the other end is slow the oldest readings of the lowest priority fall, counted, and nobody waits. Readings gather to
frames of up to 64 while the socket is full, and never otherwise. Without a pipe everything waits.

Any thread may call any method. ``flush`` belongs to the thread that watches the socket.
"""

import threading
import time
from collections.abc import Callable

from meshnode.local.pipe import Pipe
from protocols import limits
from protocols.codec import frame_of_encoded_readings
from protocols.ids import NodeId
from protocols.queues import NEVER, Drops, LaneQueue


class Outgoing:
    """The sending half of a connection."""

    def __init__(self, name: str, drops: Drops) -> None:
        """``drops`` counts what falls, under the peer ``name``; only this object may touch it, under ``lock``."""
        self.lock = threading.Lock()
        self.drops = drops
        self._name = name
        self._queue = LaneQueue(NodeId(name), drops)
        self._pipe: Pipe | None = None
        self._watch: Callable[[bool], None] = _unwatched
        self._drained: list[bytes] = []

    def attach(self, pipe: Pipe, watch: Callable[[bool], None]) -> None:
        """Send through ``pipe``; ``watch(True)`` asks for :meth:`flush` once its socket takes bytes, False ends that.

        Nothing leaves before the first :meth:`flush`: a greeting can be sent directly until then.
        """
        with self.lock:
            self._pipe, self._watch = pipe, watch

    def detach(self) -> None:
        """The pipe is gone. Readings wait for the next one; control frames concerned this one and go with it."""
        with self.lock:
            if self._pipe is not None and self._pipe.backed_up:
                self.drops.count(self._name, "", "link_lost")
            self._pipe, self._watch = None, _unwatched
            self._queue.clear_control()
            self._drained.clear()

    def clear(self, reason: str) -> None:
        """Nobody will take what waits."""
        with self.lock:
            self._queue.clear(reason)

    @property
    def waiting_readings(self) -> int:
        """Readings that wait."""
        return self._queue.waiting_readings

    def send_reading(self, key: str, parcel: bytes, priority: int, lifespan_ms: int, conflate: bool = False) -> bool:
        """Send one encoded parcel, or have it wait. False: dropped, and counted.

        ``lifespan_ms`` is what is left of it; 0: it never expires.
        """
        with self.lock:
            pipe = self._pipe
            if pipe is not None and not self._queue and not pipe.backed_up:
                if pipe.try_send(frame_of_encoded_readings([parcel])):
                    if pipe.backed_up:
                        self._watch(True)
                    return True
            expires_ns = time.monotonic_ns() + lifespan_ms * limits.MS if lifespan_ms else NEVER
            kept = self._queue.put_reading(key, parcel, priority, expires_ns, conflate)
            self._watch(True)
            return kept

    def send_control(self, frame: bytes) -> None:
        """Send a frame before all readings that wait, or have it wait.

        :raises BoundExceeded: when ``MAX_CONTROL_FRAMES`` wait.
        """
        with self.lock:
            pipe = self._pipe
            if pipe is not None and not self._queue and not pipe.backed_up and pipe.try_send(frame):
                if pipe.backed_up:
                    self._watch(True)
                return
            self._queue.put_control(frame)
            self._watch(True)

    def send_when_drained(self, frame: bytes) -> None:
        """Send a frame after everything that waits now. :raises BoundExceeded: when ``MAX_CONTROL_FRAMES`` wait."""
        with self.lock:
            if len(self._drained) >= limits.MAX_CONTROL_FRAMES:
                raise BoundExceeded(f"{self._name}: {len(self._drained)} flushes wait already")
            if self._queue or self._pipe is None or self._pipe.backed_up or not self._pipe.try_send(frame):
                self._drained.append(frame)
            if self._queue or self._drained or (self._pipe is not None and self._pipe.backed_up):
                self._watch(True)

    def flush(self) -> None:
        """The socket takes bytes: send what waits, as far as it goes."""
        with self.lock:
            pipe = self._pipe
            if pipe is None:
                return
            while pipe.flush():
                frame = self._queue.take(time.monotonic_ns())
                if frame is None and self._drained:
                    frame = self._drained.pop(0)
                if frame is None:
                    self._watch(False)
                    return
                ...


def _unwatched(_wanted: bool) -> None:
    return
