"""A virtual-time driver: many engines, one heap of events, one seed.

Invariants: virtual time never goes back; events of one instant run in the order they were scheduled; nothing here
depends on the wall clock, on hash order or on threads, so that a seed names one history exactly.

Links are streams: frames on one pipe arrive in order, none is lost, and what is late holds up what is behind it. While
the ends are out of reach a stream stands still, and it goes on when TCP tries again (RFC 6298: after 200 ms, doubled
each time, as Linux does). A crash resets the pipes of a node, as a kernel does. What a medium does to time is the
business of a :class:`~sims.links.Links`.

Speed: arrivals are put on a grid of ``TICK_NS``, and everything that arrives in one tick anywhere is one entry of the
heap, so that a broadcast costs one. The hot path asks an engine for lanes to flush only, and for all the rest when it
says that there is something. A frame that many receive is decoded once.
"""

import hashlib
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

import msgspec

from protocols import limits
from protocols.codec import decode_untrusted_node_frame, readings_in_own_frame
from protocols.engine import Engine, NodeSettings
from protocols.errors import RemoteProtocolError
from protocols.events import CancelCompute, ClosePipe, Compute, Delivery, Dial, Event, Flush, HangUp
from protocols.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.membership import Settings
from protocols.messages import EventTime, Heartbeat, Hello, InferAnswer, NodeFrame, Position, Provenance, Readings
from protocols.queues import NEVER
from protocols.streams import Put, Quality
from sims.links import Links
from sims.node import EPOCH_UTC_NS, Attempt, Pipe, SimNode
from sims.wires import Wires

__all__ = ["EPOCH_UTC_NS", "MESH", "TICK_NS", "Observer", "SimDriver", "SimNode"]

MESH = MeshName("sim")
TICK_NS = 50_000
"""Arrivals are rounded up to this: a fiftieth of the usual latency of a radio, and a hundredth of a beacon's."""
_LENGTH_BYTES = 8
"""NNG's length before each frame."""
_END_BYTES = 0
_WINDOW_FRAMES = 64
"""Frames under way on one pipe before the sender is held back."""
_FIRST_RETRY_NS = 200 * limits.MS
_LONGEST_RETRY_NS = 120 * limits.SECOND
_BREAK_NS = 924 * limits.SECOND
"""Linux gives up a connection after so long (tcp_retries2 = 15) …"""
_ORPHAN_NS = 50 * limits.SECOND
"""… and one whose process is gone after so long (tcp_orphan_retries = 8)."""
_SYN_INTERVAL_NS = limits.SECOND
"""Linux since 6.5 sends the first SYNs once a second; a dial takes no longer than a few."""
_NOTES = 4_096
_SHARED_FRAMES = 4_096
_SHARED_FRAME_BYTES = 4_096
_READINGS_TAG = 6
_encode_notes = msgspec.msgpack.Encoder().encode


class Observer(Protocol):
    """Whoever watches a run. Called at once; must not call the driver back."""

    def delivered(self, node: SimNode, delivery: Delivery) -> None:
        """A reading for subscriptions of ``node``. Hot."""

    def event(self, node: SimNode, event: Event) -> None:
        """The engine told its driver something."""

    def frame_accepted(self, node: SimNode, pipe: Pipe) -> None:
        """The engine took readings from a frame: the first on this pipe, and each of an unverified one."""

    def life_began(self, node: SimNode) -> None:
        """A fresh engine, that nothing has happened to."""


class _Keep:
    """Keeps what nodes see, for small runs."""

    def __init__(self, driver: "SimDriver") -> None:
        self._driver = driver

    def delivered(self, node: SimNode, delivery: Delivery) -> None:
        if node.on_reading is not None:
            node.on_reading(delivery.reading)
        else:
            node.received.append((self._driver.now, delivery.reading))

    def event(self, node: SimNode, event: Event) -> None:
        node.events.append((self._driver.now, event))

    def frame_accepted(self, node: SimNode, pipe: Pipe) -> None:
        pass

    def life_began(self, node: SimNode) -> None:
        pass


class SimDriver:
    """Runs engines against each other."""

    def __init__(
        self,
        seed: int,
        delay_ns: int = limits.MS,
        settings: Settings | None = None,
        max_queue_readings: int = limits.MAX_QUEUE_READINGS,
        links: Links | None = None,
        observer: Observer | None = None,
        adjust: Callable[[NodeSettings], NodeSettings] | None = None,
    ) -> None:
        """``links``: the medium; None: wires on which everything takes ``delay_ns`` one way, unless :meth:`shape` and
        :meth:`cut` change that. ``observer``: None: nodes keep what they see. ``adjust`` the settings of each life."""
        self.random = Random(seed)
        self.now = 0
        self.delay_ns = delay_ns
        self.wires = Wires(delay_ns)
        self.links: Links = links or self.wires
        self.nodes: dict[NodeId, SimNode] = {}
        self.numbered: list[SimNode] = []
        self.events_run = 0
        self.frames = 0
        """Received by engines."""
        self.readings_lost = 0
        """In frames on pipes when these broke, which no engine could count."""
        self._observer: Observer = observer or _Keep(self)
        self._delivered, self._stream_ns = self._observer.delivered, self.links.stream_ns  # looked up once
        self._frame: NodeFrame | None = None  # the last one decoded
        self._adjust = adjust
        self._settings = settings or Settings()
        self._max_queue_readings = max_queue_readings
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._number = 0
        self._pipes = 0
        self._batches: dict[int, list[Pipe]] = {}
        self._standing: dict[int, Pipe] = {}  # pipes that stand still
        self._resets: dict[int, Pipe] = {}  # pipes whose senders don't know yet that they are closed
        self._shared: dict[bytes | bytearray, NodeFrame] = {}
        self._digest = hashlib.sha256()
        self._notes: list[tuple[Any, ...]] = []

    # --- building --------------------------------------------------------------------------------------------------
    def add(self, name: str, role: Role = Role.VEHICLE) -> SimNode:
        """A node that starts now. Its inbox is at (``name``, 7000)."""
        node = self.prepare(name, role)
        self.start(node)
        return node

    def prepare(self, name: str, role: Role) -> SimNode:
        """A node that does not run yet; clocks and costs may be set before :meth:`start`."""
        identity = PeerIdentity(MESH, role, NodeId(name))
        node = SimNode(len(self.numbered), identity, self._engine(NodeId(name), role, Incarnation(1_001)))
        node.running = False
        self.nodes[node.name] = node
        self.numbered.append(node)
        self.wires.nodes = len(self.numbered)
        return node

    def start(self, node: SimNode) -> None:
        """Its first life begins now."""
        node.running, node.started_ns = True, self.now
        self._observer.life_began(node)
        self._arm(node)

    def _engine(self, name: NodeId, role: Role, incarnation: Incarnation) -> Engine:
        settings = NodeSettings(
            MESH, name, role, incarnation, 7000, membership=self._settings,
            max_queue_readings=self._max_queue_readings,
        )  # fmt: skip
        if self._adjust is not None:
            settings = self._adjust(settings)
        return Engine(settings, Random(self.random.random()), decode=self._decode)

    def _decode(self, data: bytes | bytearray) -> NodeFrame:
        """Neighbours get the same bytes, and frames are frozen: one of them serves all."""
        frame = self._shared.get(data)
        if frame is None:
            frame = decode_untrusted_node_frame(data)
            if len(data) <= _SHARED_FRAME_BYTES and type(frame) is Readings:
                if len(self._shared) >= _SHARED_FRAMES:
                    self._shared.clear()
                self._shared[data] = frame
        self._frame = frame
        return frame

    def meet(self, *names: str) -> None:
        """Each of ``names`` (all when empty) hears the adverts of the others, now."""
        chosen = [self.nodes[NodeId(name)] for name in names] or list(self.nodes.values())
        for node in chosen:
            if not node.running:
                continue
            for other in chosen:
                if other is not node and other.running:
                    self.hint(node, other.name, other.name)

    def hint(self, node: SimNode, advertised: NodeId, host: str) -> None:
        """A node hears an advert: ``advertised`` is said to be at ``host``."""
        node.engine.hint(advertised, advertised, ((host, 7000),), node.local(self.now))
        self._perform(node)

    # --- faults ----------------------------------------------------------------------------------------------------
    def kill(self, name: str) -> None:
        """The process ends without a word; its kernel resets the pipes."""
        node = self.nodes[NodeId(name)]
        node.running = False
        for pipe in list(node.dialled.values()):
            self._close_sender(pipe)
        for pipe in list(node.inbound.values()):
            self._close_receiver(pipe)
        for waiting in (node.dialled, node.inbound, node.attempts, node.backlog, node.runs):
            waiting.clear()
        node.timer_ns = None

    def leave(self, name: str, reason: str = "stopped") -> None:
        """The node says goodbye; its process ends once that was sent."""
        node = self.nodes[NodeId(name)]
        engine = node.engine
        self.act(node, lambda engine, now: engine.leave(reason, now))
        self.at(2 * self.delay_ns, lambda: self.kill(name) if node.engine is engine else None)

    def restart(self, name: str, incarnation: Incarnation | None = None) -> None:
        """A killed node starts its next life with nothing remembered but its incarnation (None: one more)."""
        node = self.nodes[NodeId(name)]
        node.lives += 1
        node.stalled_until_ns = 0
        node.heard_ns.clear()
        node.engine = self._engine(node.name, node.role, incarnation or Incarnation(1_000 + node.lives))
        self.start(node)

    def cut(self, left: str, right: str) -> None:
        """Nothing passes between two nodes until :meth:`heal`; their pipes stay."""
        self.cut_one_way(left, right)
        self.cut_one_way(right, left)

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Nothing passes from ``sender`` to ``receiver`` until :meth:`heal`."""
        self.wires.cut(self.nodes[NodeId(sender)].number, self.nodes[NodeId(receiver)].number)

    def heal(self) -> None:
        """All cuts end; what waited goes on at once."""
        self.wires.heal()
        for pipe in list(self._standing.values()):
            self._resume(pipe)
        for pipe in list(self._resets.values()):
            self._send_reset(pipe)

    def stall(self, name: str, duration_ns: int) -> None:
        """The process gets no CPU for ``duration_ns``: its timers are late and what is sent to it waits."""
        node = self.nodes[NodeId(name)]
        node.stalled_until_ns = max(node.stalled_until_ns, self.now + duration_ns)

    def shape(self, sender: str, receiver: str, delay_ns: int, bytes_per_s: int = 0) -> None:
        """From now on what ``sender`` sends to ``receiver`` takes so long; 0 bytes a second: no limit."""
        self.wires.shape(
            self.nodes[NodeId(sender)].number, self.nodes[NodeId(receiver)].number, delay_ns, bytes_per_s
        )  # fmt: skip

    # --- using a node ----------------------------------------------------------------------------------------------
    def publish(
        self, name: str, key: str, value: object, lifespan_ms: int = 0, priority: int = 3, hops: int = 0
    ) -> Put:
        """A node publishes one reading, at a place that does not matter."""
        return self.publish_at(
            self.nodes[NodeId(name)], key, value, Position(48.77, 11.42, 1.0), Provenance("sim", "1"), priority,
            lifespan_ms, hops,
        )  # fmt: skip

    def publish_at(
        self, node: SimNode, key: str, value: object, where: Position, how: Provenance, priority: int, lifespan_ms: int,
        hops: int,
    ) -> Put:  # fmt: skip
        """A node publishes one reading. Errors as ``Engine.publish``."""
        engine = node.engine
        local = node.local(self.now)
        utc_ns = local + node.utc_less_mono_ns
        put, delivery = engine.publish(
            key, value, where, EventTime(utc_ns, limits.MS), how, priority, lifespan_ms, hops, local, utc_ns
        )
        if delivery is not None:
            self._deliver(node, delivery)
        flushes = engine.flushes()
        if flushes is None:
            self._perform(node)
        else:
            for dial in flushes:
                pipe = node.dialled.get(dial)
                if pipe is not None:
                    self._flush(pipe)
            if engine.deadline_at() != NEVER:
                self._arm_deadline(node)
        return put

    def subscribe(self, name: str, expression: str, quality: Quality | None = None) -> int:
        """A node subscribes; what arrives is in its ``received``."""
        node = self.nodes[NodeId(name)]
        number, past = node.engine.subscribe(expression, quality or Quality(), node.local(self.now))
        for reading in past:
            self._deliver(node, Delivery((number,), reading))
        self._perform(node)
        return number

    def act(self, node: SimNode, action: Callable[[Engine, int], object]) -> None:
        """Do something with an engine, at its own time, and perform what it decides."""
        action(node.engine, node.local(self.now))
        self._perform(node)

    # --- running ---------------------------------------------------------------------------------------------------
    def run_for(self, duration_ns: int) -> None:
        """Advance virtual time."""
        self.run_until(self.now + duration_ns)

    def run_until(self, instant_ns: int) -> None:
        """Run everything due up to ``instant_ns``."""
        heap, ran = self._heap, 0
        while heap and heap[0][0] <= instant_ns:
            self.now, _, handler, argument = heappop(heap)
            ran += 1
            handler(argument)
        self.events_run += ran
        self.now = instant_ns

    def digest(self) -> str:
        """Of every event and reading so far: the same for the same seed."""
        self._note()
        return self._digest.hexdigest()

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self.push(self.now + delay_ns, _call, action)

    def push(self, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``."""
        self._number += 1
        heappush(self._heap, (due_ns, self._number, handler, argument))

    def when_awake(self, node: SimNode, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``, or when the process of ``node`` has CPU again; not at all if it
        was killed by then."""
        self.push(due_ns, self._awake, (node, node.lives, handler, argument))

    def _awake(self, waiting: tuple[SimNode, int, Callable[[Any], None], Any]) -> None:
        node, life, handler, argument = waiting
        if not node.running or node.lives != life:
            return
        if node.stalled_until_ns > self.now:
            self._wait(node, handler, argument)
        else:
            handler(argument)

    def _wait(self, node: SimNode, handler: Callable[[Any], None], argument: Any) -> None:
        """Put something in line for the CPU of a node."""
        if not node.backlog:
            self.push(node.stalled_until_ns, self._wake, node)
        node.backlog.append((handler, argument))

    def _wake(self, node: SimNode) -> None:
        backlog = node.backlog
        while backlog and node.stalled_until_ns <= self.now:
            handler, argument = backlog.popleft()
            handler(argument)
        if backlog:
            self.push(node.stalled_until_ns, self._wake, node)

    def _note(self) -> None:
        self._digest.update(_encode_notes(self._notes))
        self._notes.clear()

    # --- what an engine decides ------------------------------------------------------------------------------------
    def _arm(self, node: SimNode) -> None:
        due_local = node.engine.next_timer_at()
        if due_local >= 1 << 62:
            return
        due_ns = max(node.virtual(due_local), self.now)
        if node.timer_ns is None or due_ns < node.timer_ns:
            node.timer_ns = due_ns
            self.push(due_ns, self._ring, (node, node.lives, due_ns))

    def _arm_deadline(self, node: SimNode) -> None:
        """After a reading: only the deadline of a subscription may have come nearer."""
        if node.timer_ns is None or node.virtual(node.engine.deadline_at()) < node.timer_ns:
            self._arm(node)

    def _ring(self, ringing: tuple[SimNode, int, int]) -> None:
        node, life, due_ns = ringing
        if node.timer_ns != due_ns or node.lives != life or not node.running:  # superseded by a sooner one
            return
        if node.stalled_until_ns > self.now:
            self._wait(node, self._ring, ringing)
            return
        node.timer_ns = None
        if node.frame_ns:
            node.stalled_until_ns = self.now + node.frame_ns
        node.engine.handle_timer(node.local(self.now))
        self._perform(node)

    def _perform(self, node: SimNode) -> None:
        engine = node.engine
        while True:
            effects, events = engine.outgoing(), engine.events()
            if not effects and not events:
                break
            for effect in effects:
                kind = type(effect)
                if kind is Flush:
                    pipe = node.dialled.get(effect.dial)  # type: ignore[union-attr]
                    if pipe is not None:
                        self._flush(pipe)
                elif kind is Dial:
                    self._dial(node, effect)  # type: ignore[arg-type]
                elif kind is HangUp:
                    node.attempts.pop(effect.dial, None)  # type: ignore[union-attr]
                    pipe = node.dialled.pop(effect.dial, None)  # type: ignore[union-attr]
                    if pipe is not None:
                        self._close_sender(pipe)
                elif kind is ClosePipe:
                    pipe = node.inbound.pop(effect.pipe, None)  # type: ignore[union-attr]
                    if pipe is not None:
                        self._close_receiver(pipe)
                        self.when_awake(node, self.now, self._tell_listener, pipe)
                else:
                    self._compute(node, effect)  # type: ignore[arg-type]
            for event in events:
                self._notes.append((self.now, node.number, repr(event)))
                self._observer.event(node, event)
        self._arm(node)

    def _deliver(self, node: SimNode, delivery: Delivery) -> None:
        reading = delivery.reading
        self._notes.append((self.now, node.number, reading.origin, reading.sequence))
        if len(self._notes) >= _NOTES:
            self._note()
        self._delivered(node, delivery)

    def _compute(self, node: SimNode, effect: Compute | CancelCompute) -> None:
        if node.compute is not None:
            node.compute(effect)
        elif type(effect) is Compute:
            node.runs.add(effect.run)
            self.when_awake(node, self.now + node.compute_ns, self._computed, (node, effect))
        else:
            node.runs.discard(effect.run)

    def _computed(self, ran: tuple[SimNode, Compute]) -> None:
        node, effect = ran
        if effect.run in node.runs:
            node.runs.discard(effect.run)
            answer = InferAnswer(0, "done", effect.inputs, 0, node.compute_ns // 1_000)
            node.engine.computed(effect.run, answer, node.local(self.now))
            self._perform(node)

    # --- connections -----------------------------------------------------------------------------------------------
    def _dial(self, node: SimNode, effect: Dial) -> None:
        attempt = Attempt(node, effect.dial, effect.host, self.now + effect.timeout_ns)
        node.attempts[effect.dial] = attempt
        self._try(attempt)

    def _try(self, attempt: Attempt) -> None:
        """Send a SYN; another one later if nobody can hear it."""
        node = attempt.node
        if node.attempts.get(attempt.dial) is not attempt:
            return
        target = self.nodes.get(NodeId(attempt.host))
        at_ns = None if target is None else self.links.connect_ns(node.number, target.number, self.now)
        if at_ns is None:
            again_ns = self.now + _SYN_INTERVAL_NS
            if again_ns < attempt.deadline_ns:
                self.push(again_ns, self._try, attempt)
            else:
                self.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no connection in time"))
        elif at_ns < attempt.deadline_ns:
            self.push(at_ns, self._shake_hands, attempt)
        else:
            self.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no handshake in time"))

    def _fail(self, failed: tuple[Attempt, str], refused: bool = False) -> None:
        attempt, reason = failed
        node = attempt.node
        if node.attempts.get(attempt.dial) is attempt:
            del node.attempts[attempt.dial]
            node.engine.lane_closed(attempt.dial, reason, refused, node.local(self.now))
            self._perform(node)

    def _shake_hands(self, attempt: Attempt) -> None:
        """The trips are over; what remains is the work of both ends, which waits for their CPU."""
        node, target, now = attempt.node, self.nodes[NodeId(attempt.host)], self.now
        if node.attempts.get(attempt.dial) is not attempt:
            return
        if not target.running:
            self.when_awake(node, now, self._fail, (attempt, "connection refused"))
            return
        done_ns = now
        for end in (node, target):
            if end.stalled_until_ns > now or end.handshake_ns:
                end_ns = max(now, end.stalled_until_ns) + end.handshake_ns
                if end.handshake_ns:
                    end.stalled_until_ns = end_ns
                done_ns = max(done_ns, end_ns)
        if done_ns >= attempt.deadline_ns:  # its kernel accepts, nobody shakes hands
            self.when_awake(node, attempt.deadline_ns, self._fail, (attempt, "no handshake in time"))
        elif done_ns > now:
            self.when_awake(node, done_ns, self._open, attempt)
        else:
            self._open(attempt)

    def _open(self, attempt: Attempt) -> None:
        node, target, dial = attempt.node, self.nodes[NodeId(attempt.host)], attempt.dial
        if node.attempts.get(dial) is not attempt:
            return
        if not target.running:
            self._fail((attempt, "connection refused"))
            return
        local = node.local(self.now)
        refused = node.engine.admit(target.identity, local)
        pipe = None if refused else self.accept(node, dial, target, node.identity)
        if pipe is None:
            self._fail((attempt, refused or "refused by the peer"), True)
            return
        del node.attempts[dial]
        node.dialled[dial] = pipe
        self._send(pipe, node.engine.greeting(dial))
        node.engine.lane_opened(dial, target.identity, local)
        self._perform(node)

    def accept(self, host: SimNode, dial: int, target: SimNode, identity: PeerIdentity) -> Pipe | None:
        """A pipe from a process on ``host`` with that identity into the inbox of ``target``, if that lets it in."""
        local = target.local(self.now)
        refused = target.engine.admit(identity, local)
        pipe = None
        if not refused:
            self._pipes += 1
            pipe = Pipe(self._pipes, host, dial, target, identity)
            target.inbound[pipe.number] = pipe
            target.engine.inbound_opened(pipe.number, identity, host.name, local)
        self._perform(target)
        return pipe

    def knock(self, host: SimNode, target: SimNode, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        """A process on ``host`` that is no node opens a pipe and sends ``frames``, if it is let in."""
        at_ns = self.links.connect_ns(host.number, target.number, self.now)
        if at_ns is not None:
            self.push(at_ns, self._knocked, (host, target, identity, frames))

    def _knocked(self, knock: tuple[SimNode, SimNode, PeerIdentity, Sequence[bytes]]) -> None:
        host, target, identity, frames = knock
        if target.running:
            pipe = self.accept(host, 0, target, identity)
            if pipe is not None:
                for frame in frames:
                    self._send(pipe, frame)

    def slip_in(self, node: SimNode, frame: bytes) -> None:
        """A node sends a frame to all its neighbours that its engine knows nothing of."""
        told: dict[int, None] = {}
        for pipe in node.dialled.values():
            if pipe.receiver.number not in told:
                told[pipe.receiver.number] = None
                self._send(pipe, frame)

    def _close_sender(self, pipe: Pipe) -> None:
        """The sender's end is closed; its kernel sends what it has, and then that it is the end."""
        if pipe.sends:
            pipe.sends = False
            if pipe.hears:
                self._send(pipe, None)
            else:
                self.count_lost(pipe)

    def _close_receiver(self, pipe: Pipe) -> None:
        """The receiver's end is closed: what is under way is lost, and the sender is told, as by a TCP reset."""
        if pipe.hears:
            pipe.hears = False
            self.count_lost(pipe)
            self._standing.pop(pipe.number, None)
            if pipe.sends:
                pipe.stalled_ns, pipe.wait_ns = self.now, _FIRST_RETRY_NS
                self._send_reset(pipe)

    def count_lost(self, pipe: Pipe) -> None:
        """What is on a pipe will never arrive."""
        for frame in (*pipe.under_way, *pipe.held):
            if frame is not None and len(frame) > 2 and frame[1] == _READINGS_TAG:
                self.readings_lost += readings_in_own_frame(frame)
        pipe.under_way.clear()
        pipe.held.clear()

    def _send_reset(self, pipe: Pipe) -> None:
        if not pipe.sends:
            self._resets.pop(pipe.number, None)
            return
        at_ns = self.links.stream_ns(pipe.receiver.number, pipe.sender.number, _END_BYTES, self.now)
        if at_ns is not None:
            self._resets.pop(pipe.number, None)
            self.when_awake(pipe.sender, at_ns, self._tell_dialler, pipe)
        elif self.now - pipe.stalled_ns < _BREAK_NS:  # it learns of it when it sends something again
            self._resets[pipe.number] = pipe
            self._retry(pipe, self._send_reset)

    def _tell_dialler(self, pipe: Pipe) -> None:
        if pipe.sends:
            pipe.sends = False
            self.count_lost(pipe)
            node = pipe.sender
            if node.dialled.pop(pipe.dial, None) is not None:
                node.engine.lane_closed(pipe.dial, "the peer closed it", False, node.local(self.now))
                self._perform(node)

    def _tell_listener(self, pipe: Pipe) -> None:
        node = pipe.receiver
        pipe.hears = False
        node.inbound.pop(pipe.number, None)
        node.engine.inbound_closed(pipe.number, node.local(self.now))
        self._perform(node)

    # --- streams ---------------------------------------------------------------------------------------------------
    def _flush(self, pipe: Pipe) -> None:
        """Send what the engine has for a lane, as far as the window is open."""
        if not pipe.sends:
            return
        sender = pipe.sender
        next_frame, dial, send = sender.engine.next_frame, pipe.dial, self._send
        local = self.now + sender.offset_ns if not sender.drift_ppb else sender.local(self.now)
        for _ in range(_WINDOW_FRAMES - len(pipe.under_way) - len(pipe.held)):
            frame = next_frame(dial, local)
            if frame is None:
                pipe.full = False
                return
            send(pipe, frame)
        pipe.full = True

    def _send(self, pipe: Pipe, frame: bytes | None) -> None:
        """Put a frame, or the end, on its way, behind all that is. Hot."""
        if pipe.held or not pipe.hears:
            pipe.held.append(frame)
            if not pipe.hears:  # the sender does not know yet that nobody takes it
                self.count_lost(pipe)
            return
        size_bytes = len(frame) + _LENGTH_BYTES if frame is not None else 0
        at_ns = self._stream_ns(pipe.from_number, pipe.to_number, size_bytes, self.now)
        if at_ns is None:
            self._stand_still(pipe, frame)
            return
        at_ns += pipe.cost_ns
        if at_ns < pipe.last_ns:
            at_ns = pipe.last_ns
        else:
            pipe.last_ns = at_ns
        pipe.under_way.append(frame)
        tick_ns = at_ns - at_ns % -TICK_NS
        batch = self._batches.get(tick_ns)
        if batch is not None:
            batch.append(pipe)
        else:
            self._batches[tick_ns] = [pipe]
            self._number += 1
            heappush(self._heap, (tick_ns, self._number, self._arrive, tick_ns))

    def _stand_still(self, pipe: Pipe, frame: bytes | None) -> None:
        pipe.held.append(frame)
        pipe.stalled_ns, pipe.wait_ns = self.now, _FIRST_RETRY_NS
        self._standing[pipe.number] = pipe
        self._retry(pipe, self._resume_later)

    def _retry(self, pipe: Pipe, action: Callable[[Pipe], None]) -> None:
        self.push(self.now + pipe.wait_ns, action, pipe)
        pipe.wait_ns = min(2 * pipe.wait_ns, _LONGEST_RETRY_NS)

    def _resume_later(self, pipe: Pipe) -> None:
        if pipe.number not in self._standing or self._resume(pipe):
            return
        if self.now - pipe.stalled_ns < (_BREAK_NS if pipe.sends else _ORPHAN_NS):
            self._retry(pipe, self._resume_later)
            return
        del self._standing[pipe.number]
        self.count_lost(pipe)
        if pipe.sends:
            self.when_awake(pipe.sender, self.now, self._tell_dialler, pipe)

    def _resume(self, pipe: Pipe) -> bool:
        """Send again what stands still. False: it still does."""
        sender, receiver, held = pipe.sender, pipe.receiver, pipe.held
        if self.links.stream_ns(sender.number, receiver.number, _END_BYTES, self.now) is None:
            return False
        del self._standing[pipe.number]
        frames = list(held)
        held.clear()
        for frame in frames:
            self._send(pipe, frame)
        if pipe.full and not pipe.held and sender.running:
            self._flush(pipe)
        return True

    def _arrive(self, tick_ns: int) -> None:
        """All frames that arrive in a tick, in the order they were sent."""
        take = self._take
        for pipe in self._batches.pop(tick_ns):
            if pipe.hears:
                if pipe.receiver.stalled_until_ns > tick_ns:
                    self._wait(pipe.receiver, take, pipe)
                else:
                    take(pipe)

    def _take(self, pipe: Pipe) -> None:
        """The receiver takes the next frame of a pipe. Hot."""
        if not pipe.hears or not pipe.under_way:
            return
        data = pipe.under_way.popleft()
        if data is None:
            self._tell_listener(pipe)
            return
        node, now = pipe.receiver, self.now
        engine = node.engine
        node.heard_ns[pipe.from_name] = now
        if not pipe.greeted:
            self._greeted(pipe, data)
        local = now + node.offset_ns if not node.drift_ppb else node.local(now)
        self.frames += 1
        self._frame = None
        deliveries = engine.receive(data, pipe.number, local, local + node.utc_less_mono_ns)
        if node.frame_ns:
            node.stalled_until_ns = now + node.frame_ns
        if deliveries:
            if not pipe.used or not pipe.verified:
                pipe.used = True
                self._observer.frame_accepted(node, pipe)
            notes, delivered, number = self._notes, self._delivered, node.number
            for delivery in deliveries:
                reading = delivery.reading
                notes.append((now, number, reading.origin, reading.sequence))
                delivered(node, delivery)
            if len(notes) >= _NOTES:
                self._note()
        frame = self._frame
        kind = type(frame)
        calm = kind is Readings or (kind is Heartbeat and not frame.suspects)  # type: ignore[union-attr]
        if not calm or engine.eventful:  # these two bring no timer forward but a deadline
            self._perform(node)
        else:
            flushes = engine.flushes()
            if flushes:
                for dial in flushes:
                    onward = node.dialled.get(dial)
                    if onward is not None:
                        self._flush(onward)
            elif flushes is None:
                self._perform(node)
            if engine.deadline_at() != NEVER:
                self._arm_deadline(node)
        if pipe.full and pipe.sends:
            if pipe.sender.stalled_until_ns > now:
                self._wait(pipe.sender, self._flush, pipe)
            else:
                self._flush(pipe)

    def _greeted(self, pipe: Pipe, frame: bytes) -> None:
        pipe.greeted = True
        identity = pipe.identity
        try:
            hello = decode_untrusted_node_frame(frame)
        except RemoteProtocolError:
            return
        pipe.verified = identity.mesh == MESH and type(hello) is Hello and hello.node == identity.node


def _call(action: Callable[[], None]) -> None:
    action()
