"""A virtual-time driver: many engines, one heap of events, one seed.

Invariants: virtual time never goes back; events of one instant run in the order they were scheduled; nothing here
depends on the wall clock, on hash order or on threads, so that a seed names one history exactly.

Links are streams: frames on one pipe arrive in order, none is lost. A frame takes the delay of its link, and on a link
with a rate also its size, one frame after the other. A crash resets the pipes of a node, as a kernel does. A cut link
stalls: frames and resets wait until it heals. A stalled node (a starved process) does nothing until its stall is over:
no timer, no receiving, no handshake. Left out for now: loss of datagrams, radio and roads.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from protocols import limits
from protocols.engine import Engine, NodeSettings
from protocols.events import CancelCompute, ClosePipe, Compute, Delivery, Dial, Event, Flush, HangUp
from protocols.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.membership import Settings
from protocols.messages import EventTime, InferAnswer, Position, Provenance, Reading
from protocols.readings import Put, Quality

EPOCH_UTC_NS = 1_700_000_000 * limits.SECOND
MESH = MeshName("sim")
_WINDOW_FRAMES = 64
"""Frames under way on one pipe before the sender is held back."""


@dataclass(slots=True)
class _Pipe:
    """One direction of one link: a lane of ``sender`` into the inbox of ``receiver``."""

    number: int
    sender: "SimNode"
    dial: int
    receiver: "SimNode"
    open: bool = True
    under_way: deque[bytes] = field(default_factory=deque)
    in_hand: bytes | None = None


@dataclass(slots=True)
class SimNode:
    """A node in virtual time and what it saw."""

    name: NodeId
    role: Role
    engine: Engine
    lives: int = 1
    running: bool = True
    dialled: dict[int, _Pipe] = field(default_factory=dict)
    inbound: dict[int, _Pipe] = field(default_factory=dict)
    timer_ns: int | None = None
    events: list[tuple[int, Event]] = field(default_factory=list)
    received: list[tuple[int, Reading]] = field(default_factory=list)
    on_reading: Callable[[Reading], None] | None = None
    """Takes readings instead of ``received``, which would hold all of a long run."""
    compute_ns: int = 50 * limits.MS
    runs: set[int] = field(default_factory=set)
    stalled_until_ns: int = 0
    heard_ns: dict[NodeId, int] = field(default_factory=dict)
    """When the last frame of another node came in."""


@dataclass(slots=True)
class _Link:
    """One direction between two nodes, shared by its pipes."""

    delay_ns: int
    bytes_per_s: int = 0
    """0: frames take no time to send."""
    free_ns: int = 0

    def arrival_ns(self, size_bytes: int, now: int) -> int:
        if self.bytes_per_s:
            self.free_ns = max(self.free_ns, now) + size_bytes * limits.SECOND // self.bytes_per_s
            return self.free_ns + self.delay_ns
        return now + self.delay_ns


class SimDriver:
    """Runs engines against each other."""

    def __init__(
        self,
        seed: int,
        delay_ns: int = limits.MS,
        settings: Settings | None = None,
        max_queue_readings: int = limits.MAX_QUEUE_READINGS,
    ) -> None:
        """``delay_ns``: one way, every link that :meth:`shape` does not change."""
        self.random = Random(seed)
        self.now = 0
        self.delay_ns = delay_ns
        self.nodes: dict[NodeId, SimNode] = {}
        self.events_run = 0
        self._settings = settings or Settings()
        self._max_queue_readings = max_queue_readings
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._pipes = 0
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._links: dict[tuple[NodeId, NodeId], _Link] = {}
        self._held: list[Callable[[], None]] = []
        self._digest = hashlib.sha256()

    # --- building --------------------------------------------------------------------------------------------------
    def add(self, name: str, role: Role = Role.VEHICLE) -> SimNode:
        """A node that starts now. Its inbox is at (``name``, 7000)."""
        node = SimNode(NodeId(name), role, self._engine(NodeId(name), role, 1))
        self.nodes[node.name] = node
        self._arm(node)
        return node

    def _engine(self, name: NodeId, role: Role, life: int) -> Engine:
        settings = NodeSettings(
            MESH, name, role, Incarnation(1_000 + life), 7000, membership=self._settings,
            max_queue_readings=self._max_queue_readings,
        )  # fmt: skip
        return Engine(settings, Random(self.random.random()))

    def meet(self, *names: str) -> None:
        """Each of ``names`` (all when empty) hears the adverts of the others, now."""
        chosen = [self.nodes[NodeId(name)] for name in names] or list(self.nodes.values())
        for node in chosen:
            if not node.running:
                continue
            for other in chosen:
                if other is not node and other.running:
                    node.engine.hint(other.name, other.name, ((other.name, 7000),), self.now)
            self._perform(node)

    # --- faults ----------------------------------------------------------------------------------------------------
    def kill(self, name: str) -> None:
        """The process ends without a word; its kernel resets the pipes."""
        node = self.nodes[NodeId(name)]
        node.running = False
        for pipe in [*node.dialled.values(), *node.inbound.values()]:
            self._reset(pipe)
        node.dialled.clear()
        node.inbound.clear()

    def leave(self, name: str, reason: str = "stopped") -> None:
        """The node says goodbye; its process ends once that was sent."""
        node = self.nodes[NodeId(name)]
        engine = node.engine
        self.act(node, lambda engine, now: engine.leave(reason, now))
        self._after(2 * self.delay_ns, lambda: self.kill(name) if node.engine is engine else None)

    def restart(self, name: str) -> None:
        """A killed node starts its next life with nothing remembered but its incarnation."""
        node = self.nodes[NodeId(name)]
        node.lives += 1
        node.stalled_until_ns = 0
        node.runs.clear()
        node.heard_ns.clear()
        node.engine, node.running, node.timer_ns = self._engine(node.name, node.role, node.lives), True, None
        self._arm(node)

    def cut(self, left: str, right: str) -> None:
        """Nothing passes between two nodes until :meth:`heal`; their pipes stay."""
        self._cut |= {(NodeId(left), NodeId(right)), (NodeId(right), NodeId(left))}

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Nothing passes from ``sender`` to ``receiver`` until :meth:`heal`."""
        self._cut.add((NodeId(sender), NodeId(receiver)))

    def stall(self, name: str, duration_ns: int) -> None:
        """The process gets no CPU for ``duration_ns``: its timers are late and what is sent to it waits."""
        node = self.nodes[NodeId(name)]
        node.stalled_until_ns = max(node.stalled_until_ns, self.now + duration_ns)

    def shape(self, sender: str, receiver: str, delay_ns: int, bytes_per_s: int = 0) -> None:
        """From now on what ``sender`` sends to ``receiver`` takes so long; 0 bytes a second: no limit."""
        self._links[NodeId(sender), NodeId(receiver)] = _Link(delay_ns, bytes_per_s)

    def heal(self) -> None:
        """All cuts end; what waited arrives."""
        self._cut.clear()
        held, self._held = self._held, []
        for action in held:
            self._after(self.delay_ns, action)
        for node in self.nodes.values():
            for pipe in list(node.dialled.values()):
                for _ in range(len(pipe.under_way)):
                    self._later(pipe.receiver, self.delay_ns, lambda pipe=pipe: self._arrive(pipe))  # type: ignore[misc]

    # --- using a node ----------------------------------------------------------------------------------------------
    def publish(
        self, name: str, key: str, value: object, lifespan_ms: int = 0, priority: int = 3, hops: int = 0
    ) -> Put:
        """A node publishes one reading."""
        node = self.nodes[NodeId(name)]
        utc_ns = EPOCH_UTC_NS + self.now
        put, delivery = node.engine.publish(
            key, value, Position(48.77, 11.42, 1.0), EventTime(utc_ns, limits.MS), Provenance("sim", "1"), priority,
            lifespan_ms, hops, self.now, utc_ns,
        )  # fmt: skip
        if delivery is not None:
            self._deliver(node, delivery)
        self._perform(node)
        return put

    def subscribe(self, name: str, expression: str, quality: Quality | None = None) -> int:
        """A node subscribes; what arrives is in its ``received``."""
        node = self.nodes[NodeId(name)]
        number, past = node.engine.subscribe(expression, quality or Quality(), self.now)
        node.received.extend((self.now, reading) for reading in past)
        self._perform(node)
        return number

    def act(self, node: SimNode, action: Callable[[Engine, int], object]) -> None:
        """Do something with an engine and perform what it decides."""
        action(node.engine, self.now)
        self._perform(node)

    # --- running ---------------------------------------------------------------------------------------------------
    def run_for(self, duration_ns: int) -> None:
        """Advance virtual time."""
        self.run_until(self.now + duration_ns)

    def run_until(self, instant_ns: int) -> None:
        """Run everything due up to ``instant_ns``."""
        while self._heap and self._heap[0][0] <= instant_ns:
            due_ns, _, action = heappop(self._heap)
            self.now = due_ns
            self.events_run += 1
            action()
        self.now = instant_ns

    def digest(self) -> str:
        """Of every event and reading so far: the same for the same seed."""
        return self._digest.hexdigest()

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self._after(delay_ns, action)

    def _after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._heap, (self.now + delay_ns, self._number, action))

    def _later(self, node: SimNode, delay_ns: int, action: Callable[[], None]) -> None:
        """Something that needs the CPU of ``node``: it waits for the end of a stall."""

        def when_awake() -> None:
            if node.stalled_until_ns > self.now:
                self._after(node.stalled_until_ns - self.now, when_awake)
            else:
                action()

        self._after(delay_ns, when_awake)

    def _is_cut(self, one: SimNode, other: SimNode) -> bool:
        return (one.name, other.name) in self._cut or (other.name, one.name) in self._cut

    def _arm(self, node: SimNode) -> None:
        due_ns = max(node.engine.next_timer_at(), self.now)
        if due_ns >= 1 << 62 or (node.timer_ns is not None and node.timer_ns <= due_ns):
            return
        node.timer_ns = due_ns
        engine = node.engine

        def ring() -> None:
            if node.engine is engine and node.running and node.timer_ns == due_ns:  # not superseded by a sooner one
                node.timer_ns = None
                engine.handle_timer(self.now)
                self._perform(node)

        self._later(node, due_ns - self.now, ring)

    def _perform(self, node: SimNode) -> None:
        engine = node.engine
        while effects := engine.outgoing():
            for effect in effects:
                match effect:
                    case Dial():
                        self._dial(node, effect)
                    case HangUp():
                        pipe = node.dialled.pop(effect.dial, None)
                        if pipe is not None:
                            self._reset(pipe, tell_sender=False)
                    case ClosePipe():
                        pipe = node.inbound.get(effect.pipe)
                        if pipe is not None:
                            self._reset(pipe)
                    case Flush():
                        pipe = node.dialled.get(effect.dial)
                        if pipe is not None:
                            self._flush(pipe)
                    case Compute():
                        self._compute(node, effect)
                    case CancelCompute():
                        node.runs.discard(effect.run)
        for event in engine.events():
            node.events.append((self.now, event))
            self._digest.update(f"{self.now} {node.name} {event!r}\n".encode())
        self._arm(node)

    def _dial(self, node: SimNode, effect: Dial) -> None:
        engine = node.engine
        target = self.nodes.get(NodeId(effect.host))

        def fail(reason: str, refused: bool = False) -> None:
            if node.engine is engine and node.running:
                engine.lane_closed(effect.dial, reason, refused, self.now)
                self._perform(node)

        def connect() -> None:
            if not node.running or node.engine is not engine:
                return
            if target is None or self._is_cut(node, target):
                self._later(node, effect.timeout_ns, lambda: fail("no connection in time"))
                return
            if target.running and target.stalled_until_ns > self.now:  # its kernel accepts, nobody shakes hands
                awake_ns = target.stalled_until_ns - self.now
                if awake_ns >= effect.timeout_ns:
                    self._later(node, effect.timeout_ns, lambda: fail("no handshake in time"))
                else:
                    self._later(node, awake_ns, connect)
                return
            if not target.running:
                fail("connection refused")
                return
            mine = PeerIdentity(MESH, node.role, node.name)
            theirs = PeerIdentity(MESH, target.role, target.name)
            refused = engine.admit(theirs, self.now) or target.engine.admit(mine, self.now)
            if refused:
                fail(refused, True)
                return
            self._pipes += 1
            pipe = _Pipe(self._pipes, node, effect.dial, target)
            node.dialled[effect.dial] = target.inbound[pipe.number] = pipe
            target.engine.inbound_opened(pipe.number, mine, node.name, self.now)
            self._send(pipe, engine.greeting(effect.dial))
            engine.lane_opened(effect.dial, theirs, self.now)
            self._perform(node)
            self._perform(target)

        self._later(node, 5 * self.delay_ns, connect)  # TCP, TLS 1.3 and NNG's headers: five one-way trips

    def _flush(self, pipe: _Pipe) -> None:
        sender = pipe.sender
        while pipe.open and len(pipe.under_way) < _WINDOW_FRAMES:
            frame = sender.engine.next_frame(pipe.dial, self.now)
            if frame is None:
                return
            self._send(pipe, frame)

    def _send(self, pipe: _Pipe, frame: bytes) -> None:
        pipe.under_way.append(frame)
        link = self._links.get((pipe.sender.name, pipe.receiver.name))
        arrival_ns = link.arrival_ns(len(frame), self.now) if link is not None else self.now + self.delay_ns
        self._later(pipe.receiver, arrival_ns - self.now, lambda: self._arrive(pipe))

    def _arrive(self, pipe: _Pipe) -> None:
        receiver = pipe.receiver
        stalled = (pipe.sender.name, receiver.name) in self._cut
        if stalled or not pipe.open or not pipe.under_way:
            return
        frame = pipe.under_way.popleft()
        receiver.heard_ns[pipe.sender.name] = self.now
        utc_ns = EPOCH_UTC_NS + self.now
        for delivery in receiver.engine.receive(frame, pipe.number, self.now, utc_ns):
            self._deliver(receiver, delivery)
        self._perform(receiver)
        if pipe.sender.running:
            self._flush(pipe)

    def _deliver(self, node: SimNode, delivery: Delivery) -> None:
        reading = delivery.reading
        self._digest.update(f"{self.now} {node.name} {reading.origin} {reading.key} {reading.sequence}\n".encode())
        if node.on_reading is not None:
            node.on_reading(reading)
        else:
            node.received.append((self.now, reading))

    def _compute(self, node: SimNode, effect: Compute) -> None:
        engine = node.engine
        node.runs.add(effect.run)

        def done() -> None:
            if node.engine is engine and node.running and effect.run in node.runs:
                node.runs.discard(effect.run)
                answer = InferAnswer(0, "done", effect.inputs, 0, node.compute_ns // 1_000)
                engine.computed(effect.run, answer, self.now)
                self._perform(node)

        self._later(node, node.compute_ns, done)

    def _reset(self, pipe: _Pipe, tell_sender: bool = True) -> None:
        """Both ends learn of it one delay later, as from a TCP reset."""
        if not pipe.open:
            return
        pipe.open = False
        sender, receiver = pipe.sender, pipe.receiver
        sender_engine, receiver_engine = sender.engine, receiver.engine

        def tell_dialler() -> None:
            if tell_sender and sender.running and sender.engine is sender_engine:
                sender.dialled.pop(pipe.dial, None)
                sender.engine.lane_closed(pipe.dial, "the peer closed it", False, self.now)
                self._perform(sender)

        def tell_listener() -> None:
            if receiver.running and receiver.engine is receiver_engine:
                receiver.inbound.pop(pipe.number, None)
                receiver.engine.inbound_closed(pipe.number, self.now)
                self._perform(receiver)

        def arrive() -> None:
            if self._is_cut(sender, receiver):
                self._held.append(arrive)
                return
            self._later(sender, 0, tell_dialler)
            self._later(receiver, 0, tell_listener)

        self._after(self.delay_ns, arrive)
