"""The driver of a simulation: many engines in virtual time, and one seed that names one history exactly.

A medium (:class:`~sims.media.contract.Links`) decides what takes how long, :mod:`sims.virtual.pipes` what is on the
pipes, :mod:`sims.virtual.connections` how pipes come and go, and :mod:`sims.virtual.processes` when a node gets to do
something. The driver builds nodes, harms them, uses them, lets time pass, and performs what their engines decide.
"""

import hashlib
from collections.abc import Callable, Sequence
from heapq import heappop
from random import Random

import msgspec

from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.ids import Incarnation, NodeId, PeerIdentity, Role
from protocols.base.time import NEVER
from protocols.engine import Engine
from protocols.inference.events import CancelCompute, Compute
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
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.inference import InferAnswer
from protocols.wire.readings import EventTime, Position, Provenance
from sims.media.contract import Links
from sims.media.wires import Wires
from sims.virtual.arrivals import Arrival
from sims.virtual.capability import Capability, decoder_of
from sims.virtual.inbox import clear
from sims.virtual.node import EPOCH_UTC_NS, MESH, SimNode
from sims.virtual.processes import Processes
from sims.virtual.processors import Processors
from sims.virtual.simulation import Observer

__all__ = ["EPOCH_UTC_NS", "MESH", "Arrival", "Observer", "SimDriver", "SimNode"]

_encode_note = msgspec.msgpack.Encoder().encode


class SimDriver(Processes):
    """Runs many engines against each other."""

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
        capabilities: Sequence[Capability] = (),
    ) -> None:
        """``links``: the medium; None means wires on which everything takes ``delay_ns`` one way, unless :meth:`shape`
        and :meth:`cut` change that. ``observer``: None means that nodes keep what they see. ``adjust`` changes the
        settings of each life. ``processors``: the processors that all nodes share, which have to be attentive then;
        None gives each node its own. ``capabilities``: what all nodes have beside the capabilities of every node."""
        wires = Wires(delay_ns)
        decode = decoder_of(capabilities) if capabilities else decode_untrusted_node_frame
        super().__init__(links or wires, observer, processors, decode)
        self._capabilities = tuple(capabilities)
        self._performers = {kind: perform for one in capabilities for kind, perform in one.performers.items()}
        self.random = Random(seed)
        self.delay_ns = delay_ns
        self.wires = wires
        self.events_run = 0
        self._adjust = adjust
        self._settings = settings or MembershipSettings()
        self._max_queue_readings = max_queue_readings
        self._digest = hashlib.sha256()

    # --- building --------------------------------------------------------------------------------------------------
    def add(self, name: str, role: Role = Role.VEHICLE) -> SimNode:
        """Add a node that starts now. Its inbox is at (``name``, 7000)."""
        node = self.prepare(name, role)
        self.start(node)
        return node

    def prepare(self, name: str, role: Role) -> SimNode:
        """Add a node that does not run yet; its clocks and costs may be set before :meth:`start`."""
        identity = PeerIdentity(MESH, role, NodeId(name))
        node = SimNode(len(self.numbered), identity, self._engine(NodeId(name), role, Incarnation(1_001)))
        node.running = False
        self.nodes[node.name] = node
        self.decoder.same(node.name)
        self.numbered.append(node)
        self.wires.nodes = len(self.numbered)
        return node

    def start(self, node: SimNode) -> None:
        """The next life of a node begins now."""
        node.running, node.started_ns = True, self.now
        self.observer.life_began(node)
        self.arm(node)

    def _engine(self, name: NodeId, role: Role, incarnation: Incarnation) -> Engine:
        settings = NodeSettings(
            MESH, name, role, incarnation, 7000, membership=self._settings,
            max_queue_readings=self._max_queue_readings,
        )  # fmt: skip
        if self._adjust is not None:
            settings = self._adjust(settings)
        machines = [one.machine(settings) for one in self._capabilities if one.machine is not None]
        return Engine(settings, Random(self.random.random()), self.decoder, machines)

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
        self.take_in(node, self.now)
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
        for waiting in (node.dialled, node.inbound, node.attempts, node.backlog, node.runs, node.suspects):
            waiting.clear()
        clear(node)
        node.timer_ns, node.suspects_any = None, False

    def leave(self, name: str, reason: str = "stopped") -> None:
        """The node says goodbye; its process ends once the goodbye was sent."""
        node = self.nodes[NodeId(name)]
        engine = node.engine
        engine.lanes.pace.end()
        self.act(node, lambda engine, now: engine.membership.leave(reason))
        self.at(2 * self.delay_ns, lambda: self.kill(name) if node.engine is engine else None)

    def restart(self, name: str, incarnation: Incarnation | None = None) -> None:
        """A killed node starts its next life. It remembers nothing but its incarnation (None: one more than before)."""
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
        """All cuts end, and what waited goes on at once."""
        self.wires.heal()
        for pipe in list(self.pipes.standing.values()):
            self.pipes.resume(pipe)
        for pipe in list(self.connections.resets.values()):
            self.connections.send_reset(pipe)

    def stall(self, name: str, duration_ns: int) -> None:
        """The process gets no CPU for ``duration_ns``: its timers are late, and what is sent to it waits."""
        node = self.nodes[NodeId(name)]
        self.take_in(node, self.now)
        node.stalled_until_ns = max(node.stalled_until_ns, self.now + duration_ns)

    def shape(self, sender: str, receiver: str, delay_ns: int, bytes_per_s: int = 0) -> None:
        """From now on a frame from ``sender`` to ``receiver`` takes ``delay_ns``, and at ``bytes_per_s`` the time for
        its bytes on top; 0 bytes a second means no limit."""
        self.wires.shape(
            self.nodes[NodeId(sender)].number, self.nodes[NodeId(receiver)].number, delay_ns, bytes_per_s
        )  # fmt: skip

    # --- using a node ----------------------------------------------------------------------------------------------
    def publish(
        self, name: str, key: str, value: object, lifespan_ms: int = 0, priority: int = 3, hops: int = 0
    ) -> Put:
        """A node publishes one reading from a place that does not matter."""
        node = self.nodes[NodeId(name)]
        self.take_in(node, self.now)
        publication = checked_publication(
            key, Provenance("sim", "1"), Position(48.77, 11.42, 1.0), priority, lifespan_ms, hops
        )
        return self.publish_at(node, publication, value, None)

    def publish_at(self, node: SimNode, publication: Publication, value: object, where: Position | None) -> Put:
        """A node that has taken in its frames publishes one reading. Errors as ``Router.publish``."""
        engine = node.engine
        local = node.local(self.now)
        utc_ns = local + node.utc_less_mono_ns
        when = EventTime(utc_ns, limits.MS)
        put, delivery, _ = engine.readings.publish(publication, value, where, when, local, utc_ns)
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
        """A node subscribes; what arrives is in its ``received``. Returns the number of the subscription."""
        node = self.nodes[NodeId(name)]
        self.take_in(node, self.now)
        local = node.local(self.now)
        number, past = node.engine.readings.subscribe(expression, quality or Quality(), local)
        node.engine.carry(local)
        node.arrived.extend([(self.now, self.issue_of(reading)) for reading in past])
        self.perform(node)
        return number

    def act(self, node: SimNode, action: Callable[[Engine, int], object]) -> None:
        """Call a machine of a node: ``action(engine, now)`` with the node's own time. Then perform what the engine
        decides."""
        self.take_in(node, self.now)
        local = node.local(self.now)
        action(node.engine, local)
        node.engine.carry(local)
        self.perform(node)

    # --- running ---------------------------------------------------------------------------------------------------
    def run_for(self, duration_ns: int) -> None:
        """Let virtual time advance by ``duration_ns``."""
        self.run_until(self.now + duration_ns)

    def run_until(self, instant_ns: int) -> None:
        """Run everything that is due up to ``instant_ns``. Arrivals of an instant come before everything else that is
        due then."""
        soon, slices, pipes = self._soon, self._slices, self.pipes
        ticks, woken = pipes.ticks, pipes.woken
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
                self.wake(woken.pop(due_ns))
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
        """A hash of every event and reading so far. It is the same for the same seed, however often it was asked for
        meanwhile."""
        self.settle()
        digest = self._digest.copy()
        for node in self.numbered:
            digest.update(node.mark.to_bytes(8, signed=True))
        return digest.hexdigest()

    def note(self, what: object) -> None:
        """Take something that happened beside the engines into the digest."""
        self._digest.update(_encode_note(what))

    # --- what an engine decides ------------------------------------------------------------------------------------
    def perform(self, node: SimNode) -> None:
        """See :class:`sims.virtual.simulation.Simulation`."""
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
                elif kind is Compute or kind is CancelCompute:
                    self._compute(node, effect)  # type: ignore[arg-type]
                else:
                    self._performers[kind](node, effect)
            self.pipes.flush(node, lanes)
            if events and node.arrived:
                self.tell(node)
            for event in events:
                self._note_suspicion(node, event)
                self._digest.update(_encode_note((self.now, node.number, type(event).__name__, event)))
                self.observer.event(node, event)
        self.arm(node)

    def _note_suspicion(self, node: SimNode, event: Event) -> None:
        if type(event) is NeighbourSuspected:
            self.pipes.attend(node, event.node)
            node.suspects.add(event.node)
            node.suspects_any = True
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
