"""The lanes that a node has dialled, and how the engine's frames are sent on them.

1. A frame leaves a neighbour's queue only under that link's lock, so frames of one link keep their order whichever
   thread sends them.
2. A lone reading is sent at once, on the thread that publishes it. Readings gather only in a burst (``_BURST``
   readings, each within ``_BURST_GAP_NS`` of the one before) and on a link that did not take a frame. They gather until
   the I/O thread, which is notified at once, gets to them or until they fill a frame. While a callback runs nothing
   gathers, because with some transports the I/O thread runs the callback. There is no other batching.
"""

import threading
import time
from collections.abc import Callable, Sequence

from meshnode.links.transport import Address, OutgoingLane, Transport
from protocols.base import limits
from protocols.datagrams.audience import SHARED_DIAL
from protocols.engine import Engine
from protocols.membership.events import Dial, HangUp
from protocols.wire.codec import encode_frame

_FULL = limits.MAX_READINGS_PER_FRAME
_BURST = 4
_BURST_GAP_NS = 20_000
"""The time from having sent one reading to publishing the next, within a burst. A loop that only publishes needs 5 µs.
The answer to a neighbour's answer comes 30 µs later at the earliest, and must not be taken for a burst."""
_PAUSE_NS = 500_000
"""A longer gap ends a burst; shorter ones (another thread had the interpreter) only weaken it."""


class Link:
    """A dialled lane and the frame it did not take."""

    __slots__ = (
        "along", "burst", "dial", "draining", "gathered", "in_hand", "kicked_ns", "lane", "lock", "opened", "peer",
        "replaceable",
    )  # fmt: skip

    def __init__(self, dial: int) -> None:
        self.dial = dial
        self.lane: OutgoingLane | None = None
        self.lock = threading.Lock()
        self.in_hand: bytes | None = None
        self.along: Sequence[bytes] = ()
        """What goes along with the frame in hand."""
        self.draining: tuple[int, int] | None = None  # size of a frame that waited, and when the lane took it
        self.opened = False
        self.peer = ""
        """Whose inbox it is; empty before it opened."""
        self.replaceable = False
        """Whether what waits for it may be replaced by what is newer, so that as little as possible should be under
        way: it is the realtime lane."""
        self.kicked_ns = 0
        self.burst = 0
        self.gathered = 0


class Outbound:
    """The dialled lanes of one engine. It calls the engine under ``lock``."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        self._engine, self._lock, self._pace = engine, lock, engine.lanes.pace
        self.transport: Transport
        self._links: dict[int, Link] = {}
        self._by_lane: dict[OutgoingLane, Link] = {}
        self._dialling = threading.Lock()
        self._casting = threading.Lock()  # so that datagrams leave in the order of their counters
        self.send_datagram: Callable[[bytes], object] | None = None
        """Sends a datagram to all who listen; None: there is no socket."""
        self.refused: set[OutgoingLane] = set()
        """Lanes whose peer this node refused when its handshake was done."""

    def links(self) -> list[Link]:
        """Every dialled lane, open or not."""
        return list(self._links.values())

    def kick(self, dial: int, now: int, readings: int = 1) -> None:
        """Send what waits for a link, or let it gather in a burst. Threads race on the counters, which only guide."""
        link = self._links.get(dial)
        if link is None:
            if dial == SHARED_DIAL:
                self.cast()
            return
        gap_ns = now - link.kicked_ns
        if gap_ns < _BURST_GAP_NS:
            link.burst = min(link.burst + 1, 2 * _BURST)
        elif link.burst:
            link.burst = link.burst - 1 if gap_ns < _PAUSE_NS else 0
        link.gathered += readings
        # While the receiving thread runs a callback, there may be no free thread to notify.
        alone = link.burst < _BURST or self.transport.receiving_since_ns() is not None
        if link.gathered >= _FULL or (alone and link.in_hand is None):
            self.flush(link)
            now = time.monotonic_ns()  # after the send, whose duration says nothing about the publisher's pace
        elif link.gathered == readings and link.in_hand is None and link.lane is not None:
            link.lane.notify()
        link.kicked_ns = now

    def flush(self, link: Link) -> None:
        """Send as much of what waits for a link as it takes."""
        lane, pace = link.lane, self._pace
        if lane is None or not link.opened:
            return
        with link.lock:
            while True:
                frame, waits = link.in_hand, True
                waited = frame is not None
                if frame is None:
                    # Before looking: a thread that queues something after the look must find 0 and notify the lane.
                    link.gathered = 0
                    now = time.monotonic_ns()
                    full = link.replaceable and lane.is_full(now) and not pace.ended
                    sample = lane.sample
                    with self._lock:
                        if sample is not None:
                            lane.sample = None
                            self._engine.lanes.confirmed(link.dial, sample, now)
                        frame = self._engine.next_frame(link.dial, now, full)
                        link.along = ()
                        if pace.active and frame is not None and link.replaceable:
                            link.along = self._engine.lanes.take_along(link.dial, len(frame), now)
                        waits = (full or frame is not None) and self._engine.lanes.waits(link.dial)
                    if frame is None:
                        if waits or (pace.active and link.replaceable):
                            lane.watch(waits)
                        return
                if not lane.try_send(frame, link.along):
                    link.in_hand = frame
                    return
                link.in_hand = None
                if waited or link.draining is not None:
                    self._note_pace(link, len(frame) if waited else None)
                elif not waits and not pace.active:
                    return  # it was the last; whoever has queued something since found ``gathered`` at 0

    def cast(self) -> None:
        """Send all that waits for those who listen."""
        datagrams, send = self._engine.datagrams, self.send_datagram
        if datagrams is None or send is None:
            return
        with self._casting:
            while True:
                with self._lock:
                    datagram = datagrams.next(time.monotonic_ns(), time.time_ns())
                if datagram is None:
                    return
                send(datagram)

    def _note_pace(self, link: Link, size_bytes: int | None) -> None:
        """The lane has just taken a frame of ``size_bytes`` that had to wait for it, so the one before has drained.
        None: the frame did not have to wait, so it is not known since when the lane was free."""
        now, before = time.monotonic_ns(), link.draining
        link.draining = None if size_bytes is None else (size_bytes, now)
        if before is not None and size_bytes is not None:
            with self._lock:
                self._engine.lane_drained(link.dial, before[0], now - before[1])

    def dial(self, effect: Dial) -> None:
        """Open a lane."""
        link = Link(effect.dial)

        def greeting() -> bytes:
            with self._lock:
                hello = self._engine.membership.greeting(effect.dial)
            return encode_frame(hello)

        with self._dialling:  # a notice about the lane may come before dial() has returned it
            lane = self.transport.dial(Address(effect.host, effect.port), greeting, effect.timeout_ns / limits.SECOND)
            link.lane = lane
            self._links[effect.dial] = link
            self._by_lane[lane] = link

    def link_of(self, lane: OutgoingLane) -> Link | None:
        """The link of a lane; None when it is closed."""
        with self._dialling:
            return self._by_lane.get(lane)

    def forget(self, link: Link) -> None:
        """Forget the link of a closed lane, so that nothing more is sent on it."""
        with self._dialling:
            self._links.pop(link.dial, None)
            if link.lane is not None:
                self._by_lane.pop(link.lane, None)

    def abandon(self, link: Link) -> None:
        """Drop and count the frame in hand of a link that is gone."""
        with link.lock:
            frames = [link.in_hand, *link.along] if link.in_hand is not None else []
            link.in_hand, link.opened = None, False
        for frame in frames:
            with self._lock:
                self._engine.frame_lost(link.dial, frame, "link_lost", link.peer)

    def hang_up(self, effect: HangUp) -> None:
        """Close a lane."""
        gone = self._links.get(effect.dial)
        if gone is not None:
            self.forget(gone)
            lane = gone.lane
            if lane is not None:
                self.refused.discard(lane)
                if not effect.lost:
                    lane.close()
                elif frames := lane.abandon():
                    with self._lock:
                        self._engine.drops.count(gone.peer, "", "unconfirmed", frames)
            self.abandon(gone)
