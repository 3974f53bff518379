"""A lane on an NNG socket: one dialled connection to one inbox."""

import threading
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Protocol

from meshnode.links.nng.connections import Dialled, unconfirmed_bytes_of
from meshnode.links.nng.contract import PushSocket
from meshnode.links.transport import Address
from meshnode.links.unconfirmed import frames_in
from protocols.base.errors import BoundExceeded
from protocols.base.ids import PeerIdentity
from protocols.base.limits import MAX_FRAME_BYTES
from protocols.links.flow import Sample


class LaneState(Enum):
    """The state of a lane."""

    DIALLING = auto()
    OPEN = auto()
    FINISHED = auto()


class Links(Protocol):
    """What a lane asks of the links that it belongs to."""

    def post(self, task: Callable[[], None]) -> None:
        """Have the I/O thread run ``task``, in order."""

    def arm(self, descriptor: int) -> None:
        """Have ``lane_writable`` called once when the socket of that descriptor takes a frame. Under the lock of an
        open lane."""

    def linger(self, lane: "NngLane") -> None:
        """Release a finished lane once its last frame is on its way, on the I/O thread."""


class NngLane:
    """See ``OutgoingLane``. ``judged`` and ``pipe`` belong to the library's callbacks, ``state`` to ``lock``."""

    def __init__(self, links: Links, address: Address, greeting: Callable[[], bytes], ends_ns: int) -> None:
        self._links = links
        self.address = address
        self.greeting = greeting
        self.identity: PeerIdentity | None = None
        self.judged = self.overdue = False
        self.pipe = 0
        self.ends: Dialled | None = None
        """Both ends of its connection; None before it has one, or if the library does not tell."""
        self.push: PushSocket | None = None
        self.ways = 1
        """How many addresses it tries."""
        self.lock = threading.Lock()
        self.state = LaneState.DIALLING
        self.armed = False
        self.sample: Sample | None = None
        self.frames_sent = 0
        self.bytes_sent = 0
        self.ends_ns = ends_ns

    def try_send(self, frame: bytes, along: Sequence[bytes] = ()) -> bool:
        """See ``OutgoingLane.try_send``."""
        assert not along, "no pace begins on nng"
        if len(frame) > MAX_FRAME_BYTES:
            raise BoundExceeded(f"a frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}: split it")
        with self.lock:
            push = self.push
            if self.state is not LaneState.OPEN or push is None:
                return False
            if push.try_send(frame):
                self.frames_sent += 1
                self.bytes_sent += len(frame)
                return True
            self._arm(push)
            return False

    def is_full(self, now: int) -> bool:
        """See ``OutgoingLane.is_full``."""
        return False

    def hurry(self) -> None:
        """See ``OutgoingLane.hurry``."""

    def watch(self, waits: bool) -> None:
        """See ``OutgoingLane.watch``. There is nothing to learn."""

    def notify(self) -> None:
        """See ``OutgoingLane.notify``."""
        with self.lock:
            if self.state is LaneState.OPEN and self.push is not None:
                self._arm(self.push)

    def _arm(self, push: PushSocket) -> None:
        if not self.armed:
            self.armed = True
            self._links.arm(push.descriptor)

    def greet(self, frame: bytes) -> bool:
        """Send the first frame and open the lane. False: the lane is finished, or its pipe is gone already."""
        with self.lock:
            if self.state is not LaneState.DIALLING or self.push is None or not self.push.try_send(frame):
                return False
            self.frames_sent += 1
            self.bytes_sent += len(frame)
            self.state = LaneState.OPEN
            return True

    def finish(self) -> bool:
        """Take no more frames. False: the lane was finished already."""
        with self.lock:
            was, self.state = self.state, LaneState.FINISHED
            return was is not LaneState.FINISHED

    def close(self) -> None:
        """Close it; idempotent."""
        if self.finish():
            self._links.post(partial(self._links.linger, self))

    def abandon(self) -> int:
        """See ``OutgoingLane.abandon``. The library may hold one more frame."""
        is_open = self.state is LaneState.OPEN
        size_bytes = unconfirmed_bytes_of(self.ends) if is_open and self.ends is not None else 0
        self.close()
        return frames_in(size_bytes, self.frames_sent, self.bytes_sent)
