"""Runs the engine in a process: one lock, two clocks, and the threads that call it.

Threads: the transport's receiving thread and I/O thread, a timer thread of our own, and whoever publishes. Rules:

1. Every call into the engine is made under ``_lock``; the transport and user code are never called under it.
2. How frames leave it is the business of :mod:`meshnode.outbound`.
3. User callbacks run on the thread that received (or published) the reading; what they raise is logged and counted.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

from meshnode.links.transport import FailedLink, OutgoingLane, Transport
from meshnode.outbound import Outbound
from protocols.base import limits
from protocols.base.effects import Effect, Event
from protocols.base.ids import PeerIdentity
from protocols.engine import Engine
from protocols.machine import Machine
from protocols.membership.events import ClosePipe, Dial, HangUp
from protocols.readings.events import Delivery, Put, PutMany
from protocols.readings.publication import Publication
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.readings import EventTime, Position, Reading

_log = logging.getLogger(__name__)
_GOODBYE_S = 0.3
"""How long a leaving node tries to hand its goodbyes to busy links."""

_T = TypeVar("_T")
ReadingCallback = Callable[[Reading], object]


class Driver:
    """Runs one engine. Implements ``TransportObserver``."""

    def __init__(
        self,
        settings: NodeSettings,
        random: Random,
        on_event: Callable[[Event], None],
        performers: Mapping[type[Effect], Callable[[Any], None]],
        machines: Iterable[Machine] = (),
    ) -> None:
        """``performers`` gives the function for each class of effect that machines other than membership have. They
        and ``on_event`` are called on any thread and must not block. ``machines`` are those of further capabilities.

        :raises: as :class:`Engine`.
        """
        self.engine = Engine(settings, random, machines=machines)
        self._on_event = on_event
        self._lock = threading.Lock()
        self._outbound = Outbound(self.engine, self._lock)
        self._performers: dict[type[Effect], Callable[[Any], None]] = {
            **performers, Dial: self._outbound.dial, HangUp: self._outbound.hang_up, ClosePipe: self._close_pipe,
        }  # fmt: skip
        self._pace, self._room = self.engine.lanes.pace, self.engine.lanes.room
        self._transport: Transport
        self._handlers: dict[int, ReadingCallback] = {}
        self._in_turn = threading.RLock() if self.engine.datagrams is not None else None
        """Readings that come on links and in datagrams are delivered one after the other, so each stream in order."""
        self._timer_due_ns = 0
        self._timer_wake = threading.Event()
        self._closing = False
        self._timer = threading.Thread(target=self._keep_time, name="meshnode-timer", daemon=True)
        self.callbacks_failed = 0

    # --- life ------------------------------------------------------------------------------------------------------
    def start(self, transport: Transport, host: str, port: int) -> int:
        """Start the timer thread, listen and return the port. It may be called again when it raised.

        :raises TransportError: as ``Transport.listen``. All that needs no neighbours works then.
        """
        self._transport = self._outbound.transport = transport  # before it listens: a neighbour may come in at once
        if not self._timer.is_alive():
            self._timer.start()
        port = transport.listen(host, port)
        with self._lock:
            self.engine.membership.inbox_port = port
        return port

    def close(self, reason: str) -> None:
        """Say goodbye, end every link and the timer thread. Idempotent; nothing happens before :meth:`start`."""
        if self._closing or self._timer.ident is None:
            return
        self.begin(lambda engine, _: engine.lanes.pace.end())
        self.act(lambda engine, _: engine.membership.leave(reason))
        deadline = time.monotonic() + _GOODBYE_S
        while time.monotonic() < deadline and any(link.in_hand is not None for link in self._outbound.links()):
            for link in self._outbound.links():
                self._outbound.flush(link)
            time.sleep(0.005)
        self._closing = True
        self._timer_wake.set()
        self._timer.join(5)
        self._transport.close()

    # --- calls from the node ---------------------------------------------------------------------------------------
    def act(self, call: Callable[[Engine, int], _T]) -> _T:
        """Run ``call(engine, now)`` from any thread, then carry out what the engine decided. What ``call`` raises goes
        to the caller."""
        result = self.begin(call)
        self.settle()
        return result

    def begin(self, call: Callable[[Engine, int], _T]) -> _T:
        """Like :meth:`act`, but leave the decisions to a later :meth:`settle`, so that the caller can note the result
        before they take effect."""
        with self._lock:
            now = time.monotonic_ns()
            result = call(self.engine, now)
            self.engine.carry(now)
        return result

    def look(self, call: Callable[[Engine, int], _T]) -> _T:
        """Read something from the engine; ``call`` must decide nothing and be quick."""
        with self._lock:
            return call(self.engine, time.monotonic_ns())

    def publish(
        self, publication: Publication, value: object, where: Position | None, when: EventTime | None, utc_now: int
    ) -> tuple[Put, bytes]:
        """Publish from any thread; returns the reading encoded too. See
        :meth:`protocols.readings.machine.Router.publish`, also for the errors."""
        now = time.monotonic_ns()
        engine = self.engine
        with self._lock:
            put, delivery, alone = engine.readings.publish(publication, value, where, when, now, utc_now)
            flushes = engine.flushes()
            sooner = engine.readings.next_timer_at() < self._timer_due_ns
        if flushes is None:
            self.settle()
        else:
            for lane in flushes:
                self._outbound.kick(lane.dial, now)
            if sooner or self._pace.active or self._in_turn is not None:  # the pace may have begun just now
                self._set_timer()
        if delivery is not None:
            self._deliver((delivery,))
        return put, alone

    def publish_many(
        self, publication: Publication, values: Sequence[object], where: Position | None, whens: Sequence[EventTime],
        utc_now: int,
    ) -> PutMany:  # fmt: skip
        """Publish several values from any thread; see :meth:`protocols.readings.machine.Router.publish_many`."""
        now = time.monotonic_ns()
        with self._lock:
            put, deliveries = self.engine.readings.publish_many(publication, values, where, whens, now, utc_now)
            flushes = self.engine.flushes()
            sooner = self.engine.readings.next_timer_at() < self._timer_due_ns
        if flushes is None:
            self.settle()
        else:
            for lane in flushes:
                self._outbound.kick(lane.dial, now, put.count)
            if sooner or self._pace.active or self._in_turn is not None:  # the pace may have begun just now
                self._set_timer()
        if deliveries:
            self._deliver(deliveries)
        return put

    def subscribe(self, expression: str, quality: Quality, callback: ReadingCallback) -> int:
        """Call ``callback`` for the last known values, on this thread, and then for every new reading."""
        with self._lock:
            now = time.monotonic_ns()
            number, past = self.engine.readings.subscribe(expression, quality, now)
            self._handlers[number] = callback
            self.engine.carry(now)
        self._deliver(((number,), reading) for reading in past)
        self.settle()
        return number

    def unsubscribe(self, number: int) -> None:
        """Deliver nothing new; a callback that has begun, or was about to, may still run once."""
        self._handlers.pop(number, None)
        self.act(lambda engine, _: engine.readings.unsubscribe(number))

    def statistics(self) -> dict[str, int]:
        """Counters of the engine, the links and the callbacks; and ``pace_frames_per_s``, while the node keeps one."""
        with self._lock:
            counters, pace = self.engine.statistics(), self.engine.lanes.pace
            if pace.active:
                counters["pace_frames_per_s"] = round(pace.rate)
        counters.update({f"link_{name}": value for name, value in self._transport.statistics().items()})
        counters["callbacks_failed"] = self.callbacks_failed
        return counters

    def cast_with(self, send: Callable[[bytes], object] | None) -> None:
        """Send datagrams to all who listen with ``send``, from any thread. None: there is no socket any more."""
        self._outbound.send_datagram = send

    def link_failures(self) -> list[FailedLink]:
        """See ``Transport.failures``."""
        return self._transport.failures()

    # --- TransportObserver -----------------------------------------------------------------------------------------
    def admit(
        self, identity: PeerIdentity | None, detail: str, lane: OutgoingLane | None, remote_host: str
    ) -> str | None:
        """Why a pipe must be closed after its handshake; None: it may stay. The next settle reports the events."""
        now = time.monotonic_ns()
        with self._lock:
            if self._closing:
                return "this node is leaving"
            if identity is None:
                self.engine.membership.refused_before_identity(remote_host, detail, now)
                reason: str | None = detail
            else:
                reason = self.engine.membership.admit(identity, now)
        if reason is not None:
            if lane is not None:
                self._outbound.refused.add(lane)
            self._timer_wake.set()  # its thread reports the refusal
        return reason

    def inbound_opened(self, pipe: int, identity: PeerIdentity, remote_host: str) -> None:
        """Tell the engine of a new pipe, before the pipe's first frame."""
        # the engine may want to close it, when there are too many
        self.act(lambda engine, now: engine.membership.inbound_opened(pipe, identity, remote_host, now))

    def inbound_closed(self, pipe: int) -> None:
        """Tell the engine that a pipe has closed, which may start a suspicion."""
        self.act(lambda engine, now: engine.inbound_closed(pipe, now))

    def frame_received(self, pipe: int, frame: bytes | bytearray) -> None:
        """The hot path: decode, accept, call back, forward."""
        if self._in_turn is not None:
            with self._in_turn:
                self._take_in(pipe, frame)
        else:
            self._take_in(pipe, frame)

    def _take_in(self, pipe: int, frame: bytes | bytearray) -> None:
        engine = self.engine
        now = time.monotonic_ns()
        with self._lock:
            deliveries = engine.receive(frame, pipe, now, time.time_ns())
            flushes = engine.flushes()
            sooner = engine.readings.next_timer_at() < self._timer_due_ns
        for lane in flushes or ():  # others first: a callback may take its time
            self._outbound.kick(lane.dial, now)
        if deliveries:
            self._deliver(deliveries)
        if flushes is None:
            self.settle()
        elif sooner or self._pace.active:
            self._set_timer()

    def datagram_received(self, datagram: bytes, host: str) -> None:
        """As :meth:`frame_received`, for a datagram of anybody, on a thread of its own."""
        engine, in_turn = self.engine, self._in_turn
        if engine.datagrams is None or in_turn is None:
            return
        with in_turn:
            now = time.monotonic_ns()
            with self._lock:
                uncertainty_ns = engine.clock_uncertainty_ns
                deliveries, has_news = engine.datagrams.receive(datagram, host, now, time.time_ns(), uncertainty_ns)
                if has_news:
                    engine.carry(now)
                flushes = None if has_news else engine.flushes()
            for lane in flushes or ():
                self._outbound.kick(lane.dial, now)
            if deliveries:
                self._deliver(deliveries)
        if flushes is None:  # not in turn: the links' thread may wait for its turn, and hold what settling needs
            self.settle()

    def lane_opened(self, lane: OutgoingLane, identity: PeerIdentity) -> None:
        """Let other frames follow the greeting, which has been sent."""
        link = self._outbound.link_of(lane)
        if link is None:
            return
        link.opened, link.peer = True, identity.node
        self.begin(lambda engine, now: engine.lane_opened(link.dial, identity, now))
        link.replaceable = self.look(lambda engine, _: engine.lanes.is_realtime(link.dial))
        if link.replaceable:
            lane.hurry()
        self.settle()

    def lane_closed(self, lane: OutgoingLane, reason: str) -> None:
        """Tell the engine, which decides whether to dial again."""
        link = self._outbound.link_of(lane)
        if link is None:
            return
        self._outbound.forget(link)
        refused = lane in self._outbound.refused
        self._outbound.refused.discard(lane)
        self._outbound.abandon(link)
        self.act(lambda engine, now: engine.lane_closed(link.dial, reason, refused, now))

    def lane_writable(self, lane: OutgoingLane) -> None:
        """Send everything that waited for the lane."""
        link = self._outbound.link_of(lane)
        if link is not None:
            self._outbound.flush(link)
            if self._pace.active or self._room.is_awaited:
                self._set_timer()

    # --- effects ---------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Perform effects and report events until the engine has no more, then set the timer."""
        while True:
            with self._lock:
                lanes, effects, events = self.engine.lanes.taken(), self.engine.outgoing(), self.engine.events()
            if not lanes and not effects and not events:
                break
            for effect in effects:
                self._performers[type(effect)](effect)  # a machine without a performer is a bug of its part
            for lane in lanes:
                self._outbound.kick(lane.dial, time.monotonic_ns())
            self._report(events)
        self._set_timer()

    def _close_pipe(self, effect: ClosePipe) -> None:
        self._transport.close_pipe(effect.pipe)

    def _report(self, events: list[Event]) -> None:
        for event in events:
            try:
                self._on_event(event)
            except Exception:  # noqa: BLE001 - one listener's bug must not keep the others from knowing
                _log.exception("a listener failed on %s", event)

    def _deliver(self, deliveries: Iterable[Delivery]) -> None:
        handlers = self._handlers
        for numbers, reading in deliveries:
            for number in numbers:
                handler = handlers.get(number)
                if handler is not None:
                    try:
                        handler(reading)
                    except Exception:  # noqa: BLE001 - whatever an application does, receiving goes on
                        self._failed(reading)

    def _failed(self, reading: Reading) -> None:
        """Count a callback that has just raised, and log it if the count is a power of two."""
        self.callbacks_failed += 1
        # 1, 2, 4, 8 …: a broken callback can't fill a disk
        if self.callbacks_failed & (self.callbacks_failed - 1) == 0:
            _log.exception("a callback failed on %s (%d failures so far)", reading.key, self.callbacks_failed)

    # --- time ------------------------------------------------------------------------------------------------------
    def _set_timer(self) -> None:
        with self._lock:
            due_ns = self.engine.next_timer_at()
        if due_ns < self._timer_due_ns:
            self._timer_due_ns = due_ns
            self._timer_wake.set()

    def _keep_time(self) -> None:
        while not self._closing:
            with self._lock:
                self._timer_due_ns = self.engine.next_timer_at()
            wait_s = (self._timer_due_ns - time.monotonic_ns()) / limits.SECOND
            if wait_s > 0:
                self._timer_wake.wait(min(wait_s, 3_600.0))
                self._timer_wake.clear()
            if self._closing:
                return
            try:
                self._tick()
            except Exception:  # noqa: BLE001 - without this thread the node would be dead to its neighbours
                _log.exception("the timer of the node failed; it goes on")

    def _tick(self) -> None:
        receiving_since_ns = self._transport.receiving_since_ns()
        with self._lock:
            now = time.monotonic_ns()
            if self.engine.next_timer_at() <= now:
                self.engine.handle_timer(now, receiving_since_ns)
        self.settle()
