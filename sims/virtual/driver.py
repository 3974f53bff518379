"""A virtual-time driver: many engines, one heap of events, one seed.

Invariants: virtual time never goes back; events of one instant run in the order they were scheduled; nothing here
depends on the wall clock, on hash order or on threads, so that a seed names one history exactly.

What a medium does to time is the business of a :class:`~sims.media.contract.Links`; what is on the pipes that of
:mod:`sims.virtual.pipes`; how they come and go that of :mod:`sims.virtual.connections`.
"""

import hashlib
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from random import Random
from typing import Any, Final, Protocol

import msgspec

from protocols.base import limits
from protocols.base.ids import Incarnation, NodeId, PeerIdentity, Role
from protocols.base.time import NEVER
from protocols.engine import Engine
from protocols.inference.events import CancelCompute, Compute
from protocols.machine import Event
from protocols.membership.events import (
    ClosePipe,
    Dial,
    HangUp,
    NeighbourDead,
    NeighbourLeft,
    NeighbourRefuted,
    NeighbourSuspected,
)
from protocols.membership.settings import MembershipSettings
from protocols.readings.events import Put
from protocols.readings.publication import Publication, checked_publication
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.inference import InferAnswer
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from sims.media.contract import Links
from sims.media.wires import Wires
from sims.virtual.connections import Connections
from sims.virtual.node import EPOCH_UTC_NS, MESH, Arrival, Issue, Pipe, Series, SimNode, marked
from sims.virtual.pipes import Pipes
from sims.virtual.processors import Processors

__all__ = ["EPOCH_UTC_NS", "MESH", "Arrival", "Observer", "SimDriver", "SimNode"]

_encode_note = msgspec.msgpack.Encoder().encode


_Due = tuple[int, int, Callable[[Any], None], Any]
"""When, in which order of those of one instant, and what is called with what."""
_SLICE_NS: Final = limits.MS


class Observer(Protocol):
    """Whoever watches a run. Called at once; must not call the driver back."""

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        """Readings reached the subscriptions of a node, in this order. Told late, but before the next event of that
        node, before any crash or new life, and, of what came before its end, by :meth:`SimDriver.run_until`."""

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

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        for at_ns, issue in arrivals:
            if node.on_reading is not None:
                node.on_reading(issue.reading)
            else:
                node.received.append((at_ns, issue.reading))

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
        settings: MembershipSettings | None = None,
        max_queue_readings: int = limits.MAX_QUEUE_READINGS,
        links: Links | None = None,
        observer: Observer | None = None,
        adjust: Callable[[NodeSettings], NodeSettings] | None = None,
        processors: Processors | None = None,
    ) -> None:
        """``links``: the medium; None: wires on which everything takes ``delay_ns`` one way, unless :meth:`shape` and
        :meth:`cut` change that. ``observer``: None: nodes keep what they see. ``adjust`` the settings of each life.
        ``processors``: that all nodes share; they have to be attentive then. None: each has its own."""
        self.random = Random(seed)
        self.now = 0
        self.delay_ns = delay_ns
        self.wires = Wires(delay_ns)
        self.links: Links = links or self.wires
        self.nodes: dict[NodeId, SimNode] = {}
        self.numbered: list[SimNode] = []
        self.events_run = 0
        self.processors = processors
        self.observer: Observer = observer or _Keep(self)
        self._adjust = adjust
        self._settings = settings or MembershipSettings()
        self._max_queue_readings = max_queue_readings
        # What is due soon, as a heap, and what is due later, by slices of time: a heap of all would be all over memory.
        self._soon: list[_Due] = []
        self._slice = -1
        self._later: dict[int, list[_Due]] = {}
        self._slices: list[int] = []
        self._number = 0
        self._series: dict[tuple[str, str], Series] = {}
        self._digest = hashlib.sha256()
        self.pipes = Pipes(self)
        self.connections = Connections(self, self.pipes)

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
        self.pipes.decoder.same(node.name)
        self.numbered.append(node)
        self.wires.nodes = len(self.numbered)
        return node

    def start(self, node: SimNode) -> None:
        """Its next life begins now."""
        node.running, node.started_ns = True, self.now
        self.observer.life_began(node)
        self._arm(node)

    def _engine(self, name: NodeId, role: Role, incarnation: Incarnation) -> Engine:
        settings = NodeSettings(
            MESH, name, role, incarnation, 7000, membership=self._settings,
            max_queue_readings=self._max_queue_readings,
        )  # fmt: skip
        if self._adjust is not None:
            settings = self._adjust(settings)
        return Engine(settings, Random(self.random.random()), decode=self.pipes.decoder)

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
        self.pipes.take_in(node, self.now)
        node.engine.membership.hint(advertised, advertised, ((host, 7000),), node.local(self.now))
        self.perform(node)

    # --- faults ----------------------------------------------------------------------------------------------------
    def kill(self, name: str) -> None:
        """The process ends without a word; its kernel resets the pipes."""
        self.settle()
        node = self.nodes[NodeId(name)]
        node.running = False
        for pipe in list(node.dialled.values()):
            self.connections.close_sender(pipe)
        for pipe in list(node.inbound.values()):
            self.connections.close_receiver(pipe)
        for waiting in (node.dialled, node.inbound, node.attempts, node.backlog, node.inbox, node.runs, node.suspects):
            waiting.clear()
        node.timer_ns, node.suspects_any = None, False

    def leave(self, name: str, reason: str = "stopped") -> None:
        """The node says goodbye; its process ends once that was sent."""
        node = self.nodes[NodeId(name)]
        engine = node.engine
        self.act(node, lambda engine, now: engine.membership.leave(reason))
        self.at(2 * self.delay_ns, lambda: self.kill(name) if node.engine is engine else None)

    def restart(self, name: str, incarnation: Incarnation | None = None) -> None:
        """A killed node starts its next life with nothing remembered but its incarnation (None: one more)."""
        self.settle()
        node = self.nodes[NodeId(name)]
        node.lives += 1
        node.stalled_until_ns = 0
        node.forget()
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
        for pipe in list(self.pipes.standing.values()):
            self.pipes.resume(pipe)
        for pipe in list(self.connections.resets.values()):
            self.connections.send_reset(pipe)

    def stall(self, name: str, duration_ns: int) -> None:
        """The process gets no CPU for ``duration_ns``: its timers are late and what is sent to it waits."""
        node = self.nodes[NodeId(name)]
        self.pipes.take_in(node, self.now)
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
        node = self.nodes[NodeId(name)]
        self.pipes.take_in(node, self.now)
        publication = checked_publication(
            key, Provenance("sim", "1"), Position(48.77, 11.42, 1.0), priority, lifespan_ms, hops
        )
        return self.publish_at(node, publication, value, None)

    def publish_at(self, node: SimNode, publication: Publication, value: object, where: Position | None) -> Put:
        """A node that has taken in what came publishes one reading. Errors as ``Router.publish``."""
        engine = node.engine
        local = node.local(self.now)
        utc_ns = local + node.utc_less_mono_ns
        put, delivery = engine.readings.publish(publication, value, where, EventTime(utc_ns, limits.MS), local, utc_ns)
        node.note_sent(put.sequence, self.now)
        if delivery is not None:
            node.arrived.append((self.now, self.issue_of(delivery[1])))
        flushes = engine.flushes()
        if flushes is None:
            self.perform(node)
        else:
            self.pipes.flush(node, flushes, lone=True, calm=not publication.hops)
            if node.attentive and engine.readings.next_timer_at() != NEVER:
                self.arm_deadline(node)
        return put

    def subscribe(self, name: str, expression: str, quality: Quality | None = None) -> int:
        """A node subscribes; what arrives is in its ``received``."""
        node = self.nodes[NodeId(name)]
        self.pipes.take_in(node, self.now)
        local = node.local(self.now)
        number, past = node.engine.readings.subscribe(expression, quality or Quality(), local)
        node.engine.carry(local)
        node.arrived.extend([(self.now, self.issue_of(reading)) for reading in past])
        self.perform(node)
        return number

    def act(self, node: SimNode, action: Callable[[Engine, int], object]) -> None:
        """Do something with an engine, at its own time, and perform what it decides."""
        self.pipes.take_in(node, self.now)
        local = node.local(self.now)
        action(node.engine, local)
        node.engine.carry(local)
        self.perform(node)

    # --- running ---------------------------------------------------------------------------------------------------
    def run_for(self, duration_ns: int) -> None:
        """Advance virtual time."""
        self.run_until(self.now + duration_ns)

    def run_until(self, instant_ns: int) -> None:
        """Run everything due up to ``instant_ns``. Arrivals of an instant come before all else that is due then."""
        soon, slices, pipes = self._soon, self._slices, self.pipes
        ticks, woken, wake = pipes.ticks, pipes.woken, pipes.wake
        ran, later_ns = 0, instant_ns + 1
        while True:
            if not soon and slices:
                self._next_slice()
            due_ns = soon[0][0] if soon else later_ns
            if ticks and ticks[0] <= due_ns:
                due_ns = ticks[0]
                if due_ns > instant_ns:
                    break
                self.now = heappop(ticks)
                wake(woken.pop(due_ns))
            elif due_ns > instant_ns:
                break
            else:
                self.now, _, handler, argument = heappop(soon)
                handler(argument)
            ran += 1
        self.events_run += ran
        self.now = instant_ns
        self.settle()

    def digest(self) -> str:
        """Of every event and reading so far: the same for the same seed, whenever it was looked at meanwhile."""
        self.settle()
        digest = self._digest.copy()
        for node in self.numbered:
            digest.update(node.mark.to_bytes(8, signed=True))
        return digest.hexdigest()

    def note(self, what: object) -> None:
        """Take something that happened beside the engines into the digest."""
        self._digest.update(_encode_note(what))

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self.push(self.now + delay_ns, _call, action)

    def push(self, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``."""
        self._number += 1
        due = due_ns, self._number, handler, argument
        number = due_ns // _SLICE_NS
        if number <= self._slice:
            heappush(self._soon, due)
            return
        later = self._later.get(number)
        if later is not None:
            later.append(due)
        else:
            self._later[number] = [due]
            heappush(self._slices, number)

    def _next_slice(self) -> None:
        self._slice = heappop(self._slices)
        self._soon.extend(self._later.pop(self._slice))
        heapify(self._soon)

    def when_awake(self, node: SimNode, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``, or when the process of ``node`` has CPU again; not at all if it
        was killed by then."""
        self.push(due_ns, self._awake, (node, node.lives, handler, argument))

    def _awake(self, waiting: tuple[SimNode, int, Callable[[Any], None], Any]) -> None:
        node, life, handler, argument = waiting
        if node.running and node.lives == life:
            if self.is_awake(node):
                handler(argument)
            else:
                self.wait(node, handler, argument)

    def is_awake(self, node: SimNode) -> bool:
        """Whether a node has CPU, once it has taken in what has come."""
        self.pipes.take_in(node, self.now)
        if self.processors is not None:
            node.stalled_until_ns = max(node.stalled_until_ns, self.processors.free_ns)
        return node.stalled_until_ns <= self.now

    def wait(self, node: SimNode, handler: Callable[[Any], None] | None, argument: Any) -> None:
        """Put something in line for the CPU of a node, behind all that has come."""
        if not node.backlog:
            self.push(node.stalled_until_ns, self._wake, node)
        node.backlog.append((self.now, handler, argument))

    def _wake(self, node: SimNode) -> None:
        backlog = node.backlog
        while backlog and self.pipes.take_in(node, backlog[0][0], awakes=True) and node.stalled_until_ns <= self.now:
            _, handler, argument = backlog.popleft()
            if handler is not None:
                handler(argument)
        if backlog:
            self.push(max(node.stalled_until_ns, self.now), self._wake, node)

    def settle(self) -> None:
        """Every node takes in what has come, and whoever watches is told."""
        for node in self.numbered:
            self.look(node)

    def look(self, node: SimNode) -> None:
        """One node takes in what came before this instant, from which nothing follows, and whoever watches is told."""
        if node.inbox:
            self.pipes.take_in(node, self.now - 1)
        if node.arrived:
            self.tell(node)

    def tell(self, node: SimNode) -> None:
        """Take the arrivals at a node since the last time into its mark, and tell whoever watches."""
        arrivals = node.arrived[:]
        node.arrived.clear()
        mark = node.mark
        for at_ns, issue in arrivals:
            mark = marked(mark, at_ns, issue)
        node.mark = mark
        self.observer.delivered(node, arrivals)

    def issue_of(self, reading: Reading) -> Issue:
        """A reading as those who watch know it; one of them should serve all nodes that it reaches."""
        name = reading.origin, reading.key
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = Series(*name)
        node = self.nodes.get(NodeId(reading.origin))
        if node is None:
            return Issue(reading, series, -1, -1)
        return Issue(reading, series, node.number, node.sent_at(reading.sequence), node.followed)

    # --- what an engine decides ------------------------------------------------------------------------------------
    def _arm(self, node: SimNode) -> None:
        due_local = node.engine.next_timer_at()
        if due_local >= NEVER:
            return
        due_ns = max(node.virtual(due_local), self.now)
        if node.timer_ns is None or due_ns < node.timer_ns:
            node.timer_ns = due_ns
            self.push(due_ns, self._ring, (node, node.lives, due_ns))

    def arm_deadline(self, node: SimNode) -> None:
        """After a reading: only the deadline of a subscription may have come nearer."""
        if node.timer_ns is None or node.virtual(node.engine.readings.next_timer_at()) < node.timer_ns:
            self._arm(node)

    def _ring(self, ringing: tuple[SimNode, int, int]) -> None:
        node, life, due_ns = ringing
        if node.timer_ns != due_ns or node.lives != life or not node.running:  # superseded by a sooner one
            return
        if self.is_awake(node):
            self._ring_now(ringing)
        else:
            self.wait(node, self._ring_now, ringing)

    def _ring_now(self, ringing: tuple[SimNode, int, int]) -> None:
        node, life, due_ns = ringing
        if node.timer_ns != due_ns or node.lives != life or not node.running:  # by what came before it
            return
        node.timer_ns = None
        if node.frame_ns:
            node.stalled_until_ns = self.now + node.frame_ns
            if self.processors is not None:
                self.processors.occupy(self.now, node.frame_ns)
        node.engine.handle_timer(node.local(self.now))
        self.perform(node)

    def perform(self, node: SimNode) -> None:
        """Do what its engine has decided, hand on its events, and set its timer."""
        engine = node.engine
        while True:
            lanes, effects, events = engine.lanes.taken(), engine.outgoing(), engine.events()
            if not lanes and not effects and not events:
                break
            for effect in effects:
                kind = type(effect)
                if kind is Dial:
                    self.connections.dial(node, effect)  # type: ignore[arg-type]
                elif kind is HangUp:
                    node.attempts.pop(effect.dial, None)  # type: ignore[attr-defined]
                    pipe = node.dialled.pop(effect.dial, None)  # type: ignore[attr-defined]
                    if pipe is not None:
                        self.connections.close_sender(pipe)
                elif kind is ClosePipe:
                    pipe = node.drop_inbound(effect.pipe)  # type: ignore[attr-defined]
                    if pipe is not None:
                        self.connections.close_receiver(pipe)
                        self.when_awake(node, self.now, self.connections.tell_listener, pipe)
                else:
                    self._compute(node, effect)  # type: ignore[arg-type]
            self.pipes.flush(node, lanes)
            if events and node.arrived:
                self.tell(node)
            for event in events:
                self._note_suspicion(node, event)
                self._digest.update(_encode_note((self.now, node.number, type(event).__name__, event)))
                self.observer.event(node, event)
        self._arm(node)

    def _note_suspicion(self, node: SimNode, event: Event) -> None:
        if type(event) is NeighbourSuspected:
            node.suspects.add(event.node)
            node.suspects_any = True
            self.pipes.attend(node)
        elif type(event) in (NeighbourRefuted, NeighbourDead, NeighbourLeft):
            node.suspects.discard(event.node)  # type: ignore[attr-defined]
            node.suspects_any = bool(node.suspects)

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
            self.act(node, lambda engine, now: engine.inference.computed(effect.run, answer, now))


def _call(action: Callable[[], None]) -> None:
    action()
