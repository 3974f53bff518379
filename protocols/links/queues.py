"""The queue of frames and readings that wait for one lane of one neighbour.

They leave in this order: the heartbeat, then control frames in the order they came, then readings by priority, the
oldest of a priority first, then frames of the background, as far as they have room (:mod:`protocols.links.room`). A
frame of ``put_latest`` replaces the frame of its kind that still waits.

A lane is *behind* when it has not taken all that waits for ``BEHIND_NS``, until nothing waits any more. Of what waits
then, only the newest reading of a stream is sent, in the place of the oldest, so what is sent is new and every stream
gets its turn. Readings that were put with ``every`` stay, as those do that were published together. Readings of the
priorities from ``URGENT`` on are not left out either, and pass a lane that is full. While the node has to keep a pace
(:mod:`protocols.links.pace`), frames wait for their turn: the heartbeat, then what ``put_latest`` has, then readings
three times in four and other control frames once.
Invariants: every bound of ``limits`` holds after each call; whatever is dropped is reported to ``Drops``;
a frame is taken only when the link accepts it, so a slow neighbour costs memory up to the bound and nothing else.
"""

from collections import deque
from itertools import chain
from typing import Final

from protocols.base import limits
from protocols.base.errors import BoundExceeded
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.pace import Pace
from protocols.links.room import BackgroundRoom
from protocols.links.shortfall import Shortfall
from protocols.wire.parcels import can_be_joined, frame_of_alone

_MOST_URGENT: Final = 7
URGENT: Final = 6
"""Readings of this priority and above pass a full lane, and are not left out when it is behind."""
BEHIND_NS: Final = 50 * limits.MS
"""A lane may need so long to take a burst, before older readings give way to newer ones of their stream."""
_SLOW_FRAME_BYTES: Final = 1_300
"""Readings that go together on a lane that is behind fit one segment: nothing urgent overtakes a frame."""
_SMALL_BYTES: Final = 150
"""Control frames that are larger wait for a turn of their own: a segment that takes long keeps urgent ones waiting."""
_MANY: Final = 256
"""From so many readings on, and twice as many as were left the last time, older ones are left out before their turn
comes. So this costs each reading little, however many keys there are."""
_TURNS: Final = 4
"""While both wait for their turn, one in so many is for a control frame."""
_MAX_BYTES: Final = limits.MAX_QUEUE_BYTES
_NO_PACE: Final = Pace()
"""Nothing is told to it, so it never begins."""
TENSOR_PRIORITY: Final = 3
"""Tensors evict readings of the default priority and below. When a tensor finds no room because more urgent readings
wait, the node that asked for the inference learns it at once and asks another neighbour."""


class _Waiting:
    """One reading, or several readings of one key that were published together and already form a frame."""

    __slots__ = ("count", "data", "every", "expires_ns", "key", "origin", "priority")

    def __init__(
        self, key: str, data: bytes, expires_ns: int, priority: int, count: int, origin: str, every: bool
    ) -> None:  # fmt: skip
        self.key, self.data, self.expires_ns, self.priority, self.count = key, data, expires_ns, priority, count
        self.origin, self.every = origin, every


class LaneQueue:
    """The frames and readings that wait for one lane."""

    def __init__(
        self,
        peer: NodeId,
        drops: Drops,
        max_readings: int = limits.MAX_QUEUE_READINGS,
        control_priority: int = _MOST_URGENT,
        pace: Pace | None = None,
        room: BackgroundRoom | None = None,
        frame_bytes: int = limits.MAX_REALTIME_FRAME_BYTES,
    ) -> None:
        """Frames of :meth:`put_control` evict readings up to ``control_priority``. ``pace``: that of the node; None for
        a lane that does not keep one. ``frame_bytes``: how large frames of several readings become."""
        # What each reading needs comes first, so that it lies together in memory when it is compiled.
        self.dial = 0
        """The dial id of the open lane that it is for; 0: no lane is open."""
        self.link: object = None
        """What the driver puts here for that lane, so that it finds it at once."""
        self.touched = False
        """Whether the driver has yet to be told that something waits."""
        self._pace = _NO_PACE if pace is None else pace
        self._room, self._frame_bytes = room, frame_bytes
        self._behind_ns = 0  # since when something waits that the lane did not take; 0: it took all
        self._many = _MANY  # from how many on older readings are left out before their turn comes
        self._newer = False  # whether a reading for which older ones may give way came since they were left out last
        self._controls = 0  # how many frames wait in _control and _latest
        self._heartbeat: bytes | None = None
        self._heartbeat_asks = False
        # The reading that came to an empty queue, which is most often taken at once. No other reading waits beside it,
        # so waiting_readings is how many were published together as one.
        self._lone: bytes | None = None
        self._lone_key = self._lone_origin = ""
        self._lone_expires_ns = self._lone_priority = 0
        self._lone_every = False
        self.waiting_readings = 0
        self.waiting_bytes = 0
        self._max_readings = max_readings
        self.taken_ns = self.readings_ns = -NEVER
        """When readings were last taken, or any frame while the node kept a pace; and when readings were."""
        self.is_behind = False
        """Whether older readings of a stream are left out."""
        self.shortfall = Shortfall()
        """What is sent and left out while not all that waits may go at once."""
        self.delay_ns = 0
        """How long a frame is assumed to be on its way: what expires earlier is not sent, unless it is urgent."""
        self.hurried = False
        """Whether what :meth:`put_latest` has goes along before all else that waits."""
        self._turn = 0
        self.peer, self._drops = peer, drops
        self._control: deque[bytes] = deque()
        self._latest: dict[str, bytes] = {}
        self._readings: tuple[deque[_Waiting], ...] = ()  # eight as soon as they are needed; most links never need them
        self._highest = 0  # no reading of a higher priority waits
        self._bytes = [0] * 8  # bytes of the waiting readings, by priority
        self._control_priority = control_priority
        self._background: deque[bytes] = deque()
        self._newest: dict[tuple[str, str], _Waiting] = {}  # conflated readings by stream: a newer one replaces them

    def __bool__(self) -> bool:
        return bool(self.waiting_readings or self._controls or self._heartbeat is not None or self._background)

    def _waits(self) -> bool:
        """Whether anything waits but frames of the background, which do not make a lane behind."""
        return bool(self.waiting_readings or self._controls or self._heartbeat is not None)

    def put_heartbeat(self, frame: bytes, asks: bool = False) -> None:
        """Queue a heartbeat in place of one that still waits: only the newest is worth sending, unless the one that
        waits ``asks`` for an answer."""
        if asks or self._heartbeat is None or not self._heartbeat_asks:
            self._heartbeat, self._heartbeat_asks = frame, asks

    def put_control(self, frame: bytes) -> None:
        """Queue a control frame. Readings up to ``control_priority`` are evicted to make room for it.

        :raises BoundExceeded: when ``MAX_CONTROL_FRAMES`` wait already, or too many bytes that may not be evicted.
        """
        if len(self._control) >= limits.MAX_CONTROL_FRAMES or not self._make_room(len(frame), self._control_priority):
            self._drops.count(self.peer, "", "control_queue_full")
            raise BoundExceeded(f"{self.peer} does not take frames: {len(self._control)} wait")
        self._control.append(frame)
        self._controls += 1
        self.waiting_bytes += len(frame)

    def put_latest(self, kind: str, frame: bytes) -> None:
        """Queue a frame in place of one of its ``kind`` that still waits. ``MAX_CONTROL_FRAMES`` does not apply to it,
        and it evicts readings of every priority.

        :raises BoundExceeded: when too many bytes wait.
        """
        self.waiting_bytes -= len(self._latest.pop(kind, b""))
        self._controls = len(self._control) + len(self._latest)
        if not self._make_room(len(frame), _MOST_URGENT):
            self._drops.count(self.peer, "", "control_queue_full")
            raise BoundExceeded(f"{self.peer} does not take frames: {self.waiting_bytes} bytes wait")
        self._latest[kind] = frame
        self._controls = len(self._control) + len(self._latest)
        self.waiting_bytes += len(frame)

    def put_background(self, frame: bytes) -> None:
        """Queue a frame that goes when nothing else waits. It evicts nothing, and few of them may wait.

        :raises BoundExceeded: when ``MAX_BACKGROUND_FRAMES`` wait, or there is no room.
        """
        if (
            len(self._background) >= limits.MAX_BACKGROUND_FRAMES
            or self.waiting_bytes + len(frame) > limits.MAX_QUEUE_BYTES
        ):
            self._drops.count(self.peer, "", "background_full")
            raise BoundExceeded(f"{self.peer} does not take frames: {len(self._background)} of the background wait")
        self._background.append(frame)
        self.waiting_bytes += len(frame)

    def put_reading(
        self, key: str, data: bytes, priority: int, expires_ns: int, conflate: bool, every: bool = False,
        count: int = 1, origin: str = "",
    ) -> bool:  # fmt: skip
        """Queue a result of ``encode_alone`` or ``encode_signed``, or of ``encode_together`` with ``count`` readings.
        Several readings in one frame are not conflated. ``every``: it gives way to no newer one while the lane is
        behind. ``origin``: the node that published it; empty for this node. Returns False when it was dropped at once,
        which is counted."""
        if not self.waiting_readings and not conflate:
            waiting_bytes = self.waiting_bytes + len(data)
            if waiting_bytes <= _MAX_BYTES and count <= self._max_readings:
                self._lone, self._lone_key, self._lone_expires_ns = data, key, expires_ns
                self._lone_priority, self._lone_every, self._lone_origin = priority, every, origin
                self.waiting_readings, self.waiting_bytes = count, waiting_bytes
                return True
        if self._lone is not None or not self._readings:
            self._line_up()
        if conflate:
            older = self._newest.get((origin, key))
            if older is not None:
                self._drops.count(self.peer, key, "conflated")
                if older.priority == priority and len(data) <= len(older.data):
                    growth_bytes = len(data) - len(older.data)
                    self.waiting_bytes += growth_bytes
                    self._bytes[priority] += growth_bytes
                    older.data, older.expires_ns = data, expires_ns
                    return True
                self._readings[older.priority].remove(older)
                self._forget(older)
        if count > 1 and not self._has_places(count, priority):
            self._drops.count(self.peer, key, "queue_full", count)
            return False
        while self.waiting_readings + count > self._max_readings:
            if not self._evict(priority):
                self._drops.count(self.peer, key, "queue_full", count)
                return False
        if self.waiting_bytes + len(data) > limits.MAX_QUEUE_BYTES and not self._make_room(len(data), priority):
            self._drops.count(self.peer, key, "queue_full", count)
            return False
        waiting = _Waiting(key, data, expires_ns, priority, count, origin, every)
        if not every:
            self._newer = True
        if conflate:
            self._newest[origin, key] = waiting
        self._readings[priority].append(waiting)
        if priority > self._highest:  # noqa: PLR1730 - max() would cost a call for each reading
            self._highest = priority
        self.waiting_readings += count
        self.waiting_bytes += len(data)
        self._bytes[priority] += len(data)
        return True

    def _line_up(self) -> None:
        """Put the lone reading in line, because it is not alone any more."""
        if not self._readings:
            self._readings = tuple(deque() for _ in range(8))
        if self._lone is not None:
            data, priority = self._lone, self._lone_priority
            self._lone = None
            self._readings[priority].append(_Waiting(
                self._lone_key, data, self._lone_expires_ns, priority, self.waiting_readings, self._lone_origin,
                self._lone_every,
            ))  # fmt: skip
            self._highest = max(self._highest, priority)
            self._bytes[priority] += len(data)

    def _has_places(self, count: int, priority: int) -> bool:
        """Whether evicting readings up to ``priority`` would be enough. If it is not, none of them should be lost."""
        excess = self.waiting_readings + count - self._max_readings
        for readings in self._readings[: priority + 1] if excess > 0 else ():
            for waiting in readings:
                excess -= waiting.count
                if excess <= 0:
                    return True
        return excess <= 0

    def _make_room(self, size_bytes: int, priority: int) -> bool:
        """Evict readings up to ``priority`` until ``size_bytes`` fit, or none when that would not be enough."""
        excess_bytes = self.waiting_bytes + size_bytes - limits.MAX_QUEUE_BYTES
        if excess_bytes <= 0:
            return True
        self._line_up()
        if sum(self._bytes[: priority + 1]) < excess_bytes:
            return False
        while self.waiting_bytes + size_bytes > limits.MAX_QUEUE_BYTES:
            self._evict(priority)
        return True

    def _evict(self, below_or_equal: int) -> bool:
        """Drop the oldest reading of the lowest priority. False: only more urgent readings wait."""
        for readings in self._readings[: below_or_equal + 1]:
            if readings:
                evicted = self._pop(readings)
                self._drops.count(self.peer, evicted.key, "queue_full", evicted.count)
                return True
        return False

    def _pop(self, readings: deque[_Waiting]) -> _Waiting:
        waiting = readings.popleft()
        self._forget(waiting)
        return waiting

    def _forget(self, waiting: _Waiting) -> None:
        if self._newest and self._newest.get((waiting.origin, waiting.key)) is waiting:
            del self._newest[waiting.origin, waiting.key]
        self.waiting_readings -= waiting.count
        self.waiting_bytes -= len(waiting.data)
        self._bytes[waiting.priority] -= len(waiting.data)

    def take(self, now: int, full: bool = False) -> bytes | None:
        """Take the next frame to send; None when nothing waits that may go now. ``full``: the lane takes nothing but
        urgent readings."""
        if full or self._behind_ns or self._pace.active:
            return self._take_behind(now, full)
        return self._take_next(now)

    def _take_behind(self, now: int, full: bool) -> bytes | None:
        """As :meth:`take`, when not all that waits may go at once."""
        if not self._waits():
            self._behind_ns, self.is_behind = 0, False
            return None if full else self._take_background(now)
        if self.waiting_readings:
            if self._lone is not None or not self._readings:
                self._line_up()
            urgent = self._join(now, now, URGENT, _SLOW_FRAME_BYTES)
            if urgent is not None:
                self._pace.sent(self.peer, now, not self._controls)
                self.shortfall.sent(now)
                return urgent
        if full or (self._pace.active and not self._pace.take_turn(self.peer, now)):
            if not self._behind_ns:
                self._behind_ns = max(now, 1)
            elif now - self._behind_ns >= BEHIND_NS:
                self.is_behind = True
                if self.waiting_readings >= self._many:
                    self._leave_out_older(now)
            return None
        if self.is_behind and self._newer:
            self._leave_out_older(now)
        frame = self._take_in_turn(now) if self._pace.active and self._heartbeat is None else self._take_next(now)
        self.taken_ns = now
        if frame is not None:
            self.shortfall.sent(now)
            if len(frame) > _SLOW_FRAME_BYTES // 2:
                self._pace.took_long(len(frame))
        if not self._waits():
            self._behind_ns, self.is_behind = 0, False
        return frame

    def take_along(self, size_bytes: int, now: int) -> list[bytes]:
        """Take what goes in one segment with a frame of ``size_bytes`` that was taken just now, while the node keeps a
        pace: a segment costs a channel more than what is in it."""
        along: list[bytes] = []
        room_bytes = _SLOW_FRAME_BYTES - size_bytes
        for kind in list(self._latest) if self.hurried else ():
            if len(self._latest[kind]) <= min(room_bytes, _SMALL_BYTES):
                along.append(self._latest.pop(kind))
                self._controls -= 1
                self.waiting_bytes -= len(along[-1])
                room_bytes -= len(along[-1])
        self.hurried = False
        if self._heartbeat is not None and len(self._heartbeat) <= room_bytes:
            along.append(self._heartbeat)
            room_bytes -= len(self._heartbeat)
            self._heartbeat = None
        if self.is_behind and self._newer and self._pace.is_least:
            self._leave_out_older(now)
        if self.waiting_readings and 0 < self._next_reading_bytes() <= room_bytes:
            joined = self._take_readings(now, room_bytes)
            if joined is not None:
                along.append(joined)
                room_bytes -= len(joined)
        while self._controls:
            frame = self._control[0] if self._control else next(iter(self._latest.values()))
            if len(frame) > min(room_bytes, _SMALL_BYTES):
                break
            along.append(self._take_control())
            room_bytes -= len(frame)
        if not self._waits():
            self._behind_ns, self.is_behind = 0, False
        return along

    def _next_reading_bytes(self) -> int:
        """The size of the reading that goes next."""
        if self._lone is not None:
            return len(self._lone)
        return next((len(readings[0].data) for readings in reversed(self._readings) if readings), 0)

    def _take_in_turn(self, now: int) -> bytes | None:
        """The frame whose turn it is, while the node keeps a pace."""
        if self._latest:  # rare, and nothing flows before a neighbour knows what is wanted
            self._controls -= 1
            frame = self._latest.pop(next(iter(self._latest)))
            self.waiting_bytes -= len(frame)
            return frame
        self._turn = (self._turn + 1) % _TURNS
        if self._turn and self.waiting_readings:
            return self._take_readings(now) or self._take_next(now)  # all readings may have expired
        return self._take_next(now)

    def _leave_out_older(self, now: int) -> None:
        """Of each stream, keep the newest reading in the place of the oldest. Readings that were published together, or
        of which every one is wanted, stay, and what is newer stays behind them."""
        for priority in range(URGENT):
            readings = self._readings[priority] if self._readings else ()
            place_of: dict[tuple[str, str], int] = {}
            places: list[_Waiting] = []
            for waiting in readings:
                stream = waiting.origin, waiting.key
                if waiting.every or waiting.count > 1:
                    place_of.pop(stream, None)
                    places.append(waiting)
                    continue
                place = place_of.get(stream)
                if place is None:
                    place_of[stream] = len(places)
                    places.append(waiting)
                else:
                    older, places[place] = places[place], waiting
                    self._forget(older)
                    self._drops.count(self.peer, older.key, "conflated")
            if len(places) < len(readings):
                self.shortfall.leave_out(len(readings) - len(places), now)
                self._readings[priority].clear()
                self._readings[priority].extend(places)
        self._newer = False
        self._many = max(_MANY, 2 * self.waiting_readings)

    def _take_next(self, now: int) -> bytes | None:
        if self._heartbeat is not None:
            frame, self._heartbeat = self._heartbeat, None
            return frame
        if self._controls:
            return self._take_control()
        return self._take_readings(now) or self._take_background(now)

    def _take_background(self, now: int) -> bytes | None:
        if not self._background:
            return None
        if self._room is not None and not self._room.take(self.peer, len(self._background[0]), now):
            return None
        frame = self._background.popleft()
        self.waiting_bytes -= len(frame)
        return frame

    def _take_control(self) -> bytes:
        self._controls -= 1
        frame = self._control.popleft() if self._control else self._latest.pop(next(iter(self._latest)))
        self.waiting_bytes -= len(frame)
        return frame

    def _take_readings(self, now: int, room_bytes: int = limits.MAX_FRAME_BYTES) -> bytes | None:
        if self._lone is not None:
            frame = self._lone
            self._lone = None
            self.waiting_bytes -= len(frame)
            if self._lone_expires_ns <= now + self.delay_ns:
                self._drops.count(self.peer, self._lone_key, "expired_in_queue", self.waiting_readings)
                self.waiting_readings = 0
                return None
            self.waiting_readings = 0
            self.taken_ns = self.readings_ns = now
            return frame
        if not self.waiting_readings:
            return None
        room_bytes = min(room_bytes, _SLOW_FRAME_BYTES if self.is_behind else self._frame_bytes)
        joined = self._join(now, now + self.delay_ns, 0, room_bytes)
        if not self.waiting_readings:
            self._highest = 0
        return joined

    def _join(self, now: int, arrival_ns: int, least: int, room_bytes: int) -> bytes | None:
        """Take the readings of priority ``least`` and above that go together, as many as there is room for, and leave
        out what has expired by ``arrival_ns``. Readings are in line, none is lone."""
        batch: list[bytes] = []
        for priority in range(self._highest, least - 1, -1):
            readings = self._readings[priority]
            while readings and len(batch) < limits.MAX_READINGS_PER_FRAME:
                waiting = readings[0]
                if waiting.expires_ns <= arrival_ns:
                    self._drops.count(self.peer, self._pop(readings).key, "expired_in_queue", waiting.count)
                    continue
                room_bytes -= len(waiting.data)
                whole = waiting.count > 1 or not can_be_joined(waiting.data)
                if batch and (room_bytes < 0 or whole):
                    self.taken_ns = self.readings_ns = now
                    return frame_of_alone(batch)
                batch.append(self._pop(readings).data)
                if whole:
                    self.taken_ns = self.readings_ns = now
                    return batch[0]
        if not batch:
            return None
        self.taken_ns = self.readings_ns = now
        return frame_of_alone(batch)

    def clear(self, reason: str) -> None:
        """Drop and count everything that waits, because the neighbour is gone."""
        if self._lone is not None:
            self._line_up()
        for waiting in chain.from_iterable(self._readings):
            self._drops.count(self.peer, waiting.key, reason, waiting.count)
        if others := self._controls + len(self._background):
            self._drops.count(self.peer, "", reason, others)
            self._controls = 0
        for readings in self._readings:
            readings.clear()
        self._newest.clear()
        self._control.clear()
        self._latest.clear()
        self._background.clear()
        if self._room is not None:
            self._room.forget(self.peer)
        self._heartbeat = None
        self._bytes = [0] * 8
        self.waiting_readings = self.waiting_bytes = 0
