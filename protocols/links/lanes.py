"""The queues of all neighbours, and the open lanes that take from them.

:meth:`Lanes.taken` gives the driver the queues that got something, so that it flushes their lanes. A bulk lane is
dialled when something waits for it: :attr:`Lanes.wanted` names the neighbours for which that is the case.
"""

from protocols.base import limits
from protocols.base.errors import BoundExceeded, ValueUnsupported
from protocols.base.ids import Lane, NodeId
from protocols.links.drops import Drops
from protocols.links.flow import SLOW_NS, Sample
from protocols.links.pace import Pace
from protocols.links.queues import TENSOR_PRIORITY, LaneQueue
from protocols.links.room import READINGS_NS, BackgroundRoom
from protocols.wire.codec import encode_frame
from protocols.wire.frame import Frame
from protocols.wire.membership import Heartbeat


class Queues:
    """The queues of both lanes of one neighbour."""

    __slots__ = ("bulk", "realtime")

    def __init__(
        self, node: NodeId, drops: Drops, max_readings: int, pace: Pace | None = None,
        room: BackgroundRoom | None = None,
    ) -> None:  # fmt: skip
        self.realtime = LaneQueue(node, drops, max_readings, pace=pace)
        self.bulk = LaneQueue(node, drops, max_readings, TENSOR_PRIORITY, room=room)

    @property
    def waiting_readings(self) -> int:
        """Readings that wait on both lanes together."""
        return self.realtime.waiting_readings + self.bulk.waiting_readings

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait on both lanes together."""
        return self.realtime.waiting_bytes + self.bulk.waiting_bytes


class Lanes:
    """All queues, by neighbour and by dial."""

    def __init__(self, drops: Drops, max_readings: int) -> None:
        """``max_readings``: how many readings may wait in one queue."""
        self.touched: list[LaneQueue] = []
        """The queues that got something since :meth:`taken`. Each is listed once, and marked as ``touched``."""
        self.wanted: list[NodeId] = []
        """The neighbours for which something waits on a bulk lane that is not open, until :meth:`to_dial`."""
        self.may_wait = False
        """Whether something may wait for a bulk lane that is not open."""
        self.of_dial: dict[int, LaneQueue] = {}
        """The queues of open lanes, by dial id."""
        self.pace = Pace()
        """How fast this node may send on all realtime lanes together …"""
        self.room = BackgroundRoom()
        """… and how much of the background on all bulk lanes."""
        self.of_node: dict[NodeId, Queues] = {}
        self.shared: LaneQueue | None = None
        """The queue of what goes once to all who listen; None: nothing does."""
        self._drops, self._max_readings = drops, max_readings

    def queues_of(self, node: NodeId) -> Queues:
        """Return the queues of a neighbour, and make them when there are none yet."""
        queues = self.of_node.get(node)
        if queues is None:
            queues = self.of_node[node] = Queues(node, self._drops, self._max_readings, self.pace, self.room)
        return queues

    def opened(self, dial: int, node: NodeId, lane: Lane) -> LaneQueue:
        """Note that a lane is open. Returns its queue."""
        queues = self.queues_of(node)
        queue = self.of_dial[dial] = queues.realtime if lane is Lane.REALTIME else queues.bulk
        queue.dial, queue.link, queue.delay_ns = dial, None, 0
        if lane is Lane.REALTIME:
            self.pace.opened(node)
        return queue

    def closed(self, dial: int) -> None:
        """Note that a lane is not open any more. What waits for it stays."""
        queue = self.of_dial.pop(dial, None)
        if queue is not None and queue.dial == dial:
            queue.dial, queue.link = 0, None
            self.may_wait = True
            queues = self.of_node.get(queue.peer)
            if queues is None or queues.realtime is queue:
                self.pace.forget(queue.peer)

    def forget(self, node: NodeId, reason: str) -> None:
        """Drop what waits for a neighbour that is gone, and count it as ``reason``."""
        queues = self.of_node.pop(node, None)
        if queues is not None:
            queues.realtime.clear(reason)
            queues.bulk.clear(reason)
            self.closed(queues.realtime.dial)
            self.closed(queues.bulk.dial)

    def put(self, node: NodeId, frame: Frame) -> bool:
        """Queue a control frame for a neighbour. Returns False when the neighbour has no queues, does not take frames,
        or can't be sent this one."""
        queues = self.of_node.get(node)
        if queues is None:
            return False
        try:
            data = encode_frame(frame)
            is_bulk = frame.background or len(data) > limits.BULK_THRESHOLD_BYTES
            queue = queues.bulk if is_bulk else queues.realtime
            if type(frame) is Heartbeat:
                queue.put_heartbeat(data)
            elif frame.background:
                queue.put_background(data)
            elif frame.replaces:
                queue.put_latest(type(frame).__name__, data)
            else:
                queue.put_control(data)
        except (BoundExceeded, ValueUnsupported):
            return False
        self.touch(queue)
        return True

    def touch(self, queue: LaneQueue) -> None:
        """Note that something was put into a queue."""
        if not queue.touched:
            queue.touched = True
            self.touched.append(queue)
        if not queue.dial:
            self._want(queue)

    def want_again(self) -> None:
        """Ask again for bulk lanes that failed or could not be dialled before."""
        if self.may_wait:
            self.may_wait = False
            for queues in self.of_node.values():
                if queues.bulk.waiting_bytes and not queues.bulk.dial:
                    self._want(queues.bulk)

    def _want(self, queue: LaneQueue) -> None:
        queues = self.of_node.get(queue.peer)
        if queues is not None and queue is queues.bulk:
            self.wanted.append(queue.peer)

    def to_dial(self) -> list[NodeId]:
        """Take the neighbours out of :attr:`wanted`."""
        self.may_wait = True  # the dial may fail
        wanted = self.wanted[:]
        self.wanted.clear()
        return wanted

    def taken(self) -> list[LaneQueue]:
        """Take the queues that got something to send since the last call. Without a ``dial`` one has no open lane."""
        if not self.touched:
            return []
        lanes = self.touched[:]
        self.touched.clear()
        for lane in lanes:
            lane.touched = False
        return lanes

    def is_realtime(self, dial: int) -> bool:
        """Whether an open lane is the realtime lane of its neighbour."""
        queue = self.of_dial.get(dial)
        queues = None if queue is None else self.of_node.get(queue.peer)
        return queues is not None and queues.realtime is queue

    def take_along(self, dial: int, size_bytes: int, now: int) -> list[bytes]:
        """Take what goes in one segment with a frame of an open lane; see :meth:`LaneQueue.take_along`."""
        queue = self.of_dial.get(dial)
        return [] if queue is None else queue.take_along(size_bytes, now)

    def waits(self, dial: int) -> bool:
        """Whether anything waits for an open lane."""
        queue = self.of_dial.get(dial)
        return queue is not None and bool(queue)

    # --- the pace --------------------------------------------------------------------------------------------------
    def confirmed(self, dial: int, sample: Sample, now: int) -> None:
        """Note what a look at an open lane has shown."""
        queue = self.of_dial.get(dial)
        if queue is not None and self.is_realtime(dial):
            queue.delay_ns = SLOW_NS if sample[0] > SLOW_NS else 0
            self.pace.sampled(queue.peer, sample, now)
            self.room.sampled(queue.peer, sample, now - queue.readings_ns < READINGS_NS, now)

    def handle_timer(self, now: int) -> None:
        """Touch the lanes whose turn it is, and ask again for bulk lanes."""
        self.want_again()
        self.pace.lanes = len(self.of_node)
        for node in self.pace.turns(now):
            queues = self.of_node.get(node)
            if queues is not None:
                self.touch(queues.realtime)
            elif self.shared is not None:
                self.touch(self.shared)
        for node in self.room.ready(now):
            queues = self.of_node.get(node)
            if queues is not None:
                self.touch(queues.bulk)

    def next_turn_at(self) -> int:
        """When it is the turn of a lane at the latest."""
        return min(self.pace.next_turn_at(), self.room.next_turn_at())

    def most_waiting(self) -> tuple[int, int]:
        """The most readings, and the most bytes, that wait for one neighbour."""
        readings = size_bytes = 0
        for queues in self.of_node.values():
            readings = max(readings, queues.waiting_readings)
            size_bytes = max(size_bytes, queues.waiting_bytes)
        return readings, size_bytes
