"""The engine composes the machines of one node, and drivers reach them through it.

A driver tells the engine what happened, then performs ``outgoing()`` and hands on ``events()``. A caller that calls a
machine directly, as in ``engine.inference.ask(...)``, calls :meth:`Engine.carry` next: machines never call each other,
and ``carry`` takes what one machine decides to the others that must know it. Frames for a neighbour wait in the engine
until the driver takes them with ``next_frame``. A driver applies backpressure by not taking frames.

Readings and heartbeats are nearly all frames, and have a short way of their own (``readings.publish`` needs no
``carry``). Every other frame goes to the machine that declares it.

The engine is not thread-safe: a driver with threads holds one lock around every call. No call blocks or calls back.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final, TypeVar

from protocols.access import AccessTable
from protocols.base.effects import Effect, Event
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import Lane, NodeId, PeerIdentity
from protocols.base.limits import FREE_READINGS_BYTES
from protocols.datagrams.carrying import datagrams_of
from protocols.gossip.carrying import carry_entries, kinds_heard
from protocols.gossip.machine import Gossip
from protocols.inference.machine import Inference
from protocols.links.drops import Drops
from protocols.links.lanes import Lanes
from protocols.links.queues import LaneQueue
from protocols.machine import Machine, Message, by_frame, machine_of
from protocols.membership.events import HangUp, NeighbourDead, NeighbourLeft, NeighbourMet
from protocols.membership.lives import Lives
from protocols.membership.machine import Membership
from protocols.membership.neighbour import Neighbour, State
from protocols.peers import PeerView, totals, views
from protocols.readings.events import Delivery
from protocols.readings.machine import Router
from protocols.readings.streams import Peer
from protocols.settings import NodeSettings
from protocols.wire.codec import NODE_FRAME_SET, node_frames
from protocols.wire.frame import Frame
from protocols.wire.membership import Heartbeat, Hello
from protocols.wire.parcels import readings_in_own_frame
from protocols.wire.readings import Interest, Readings, SignedReadings

_M = TypeVar("_M")
_ALIVE: Final = State.ALIVE  # looked up once, because looking into an enumeration is slow
_SUSPECT: Final = State.SUSPECT
_READINGS: Final = Readings  # looked up once as well: compiled code then needs no look into a module
_HEARTBEAT: Final = Heartbeat


class Engine:
    """The protocol of one node. All instants are monotonic nanoseconds unless they are called ``utc``."""

    def __init__(
        self, settings: NodeSettings, random: Random, decode: Callable[[bytes | bytearray], Frame] | None = None,
        machines: Iterable[Machine] = (),
    ) -> None:  # fmt: skip
        """``decode`` is for a driver that knows when it has decoded the same bytes before. It raises the errors of
        :func:`~protocols.wire.codec.decode_untrusted_node_frame`. ``machines`` are those of further capabilities.

        :raises InvalidKey: when an access rule has no valid key expression.
        :raises LocalProtocolError: when two machines have the same name, or declare the same frame or the same number.
        """
        self.settings = settings
        self.drops = Drops()
        self.lanes = Lanes(self.drops, settings.max_queue_readings)
        access = AccessTable(settings.access)
        self.membership = Membership(
            settings.mesh, settings.node, settings.incarnation, settings.inbox_port, settings.membership, random,
            self.drops,
        )  # fmt: skip
        self.gossip = Gossip(settings.node, settings.incarnation, settings.seal, settings.gossip, random)
        self.datagrams = datagrams_of(settings, access, self.drops, self.lanes, self.membership, self.gossip, decode)
        self.readings = Router(
            settings.node, settings.role, settings.first_sequence, access, self.drops, self.lanes.touched,
            self.lanes.wanted, settings.reading_seal, self.gossip.certificate_of,
        )  # fmt: skip
        self.inference = Inference(settings.node, access, self.membership.reachable, self.drops, random)
        further = (*machines, *(() if self.datagrams is None else self.datagrams.serve(self.readings)))
        self._machines: tuple[Machine, ...] = (self.inference, self.gossip, *further)
        self.gossip.heard_kinds = kinds_heard(self._machines)
        self._machine_of = by_frame(self._machines)
        frames = tuple(frame for machine in further for frame in machine.frames)
        known = node_frames(frames) if frames else NODE_FRAME_SET
        self._decode = known.decode_untrusted if decode is None else decode
        self._neighbour_of, self._heartbeats = self.membership.neighbour_of, self.membership.heartbeats
        self._queue_of, self._has_overdrawn = self.lanes.of_dial, self.membership.refusals.has_overdrawn
        self._touched, self._wanted = self.lanes.touched, self.lanes.wanted
        self._more = False  # whether something was decided other than lanes to flush
        self._lives = Lives()
        self.clock_uncertainty_ns = settings.clock_uncertainty_ns
        """Half width of the interval around this node's clock that holds the true time. It may change at any time."""
        self._events: list[Event] = []
        self._frames_received = self._frames_undeliverable = 0

    def machine(self, kind: type[_M]) -> _M:
        """Return the machine of that class. :raises LocalProtocolError: when there is none."""
        return machine_of(self._machines, kind)

    # --- what happened on the links --------------------------------------------------------------------------------
    def inbound_closed(self, pipe: int, now: int) -> None:
        """Note that a pipe into our inbox is gone."""
        self.membership.inbound_closed(pipe, now)
        self.carry(now)

    def lane_opened(self, dial: int, identity: PeerIdentity, now: int) -> None:
        """Note that a dialled lane is open and has accepted our Hello."""
        self.membership.lane_opened(dial, identity, now)
        if (reached := self.membership.lane_of(dial)) is not None:
            node, lane = reached
            self._link(node)
            queue = self.lanes.opened(dial, node, lane)
            if lane is Lane.REALTIME:
                if self.lanes.queues_of(node).bulk:
                    self.membership.want_bulk(node)
                self._put(node, self.readings.interest_for(node), now)
                for machine in self._machines:
                    for frame in machine.greetings():
                        self._put(node, frame, now)
            self.lanes.touch(queue)
        self.carry(now)

    def lane_closed(self, dial: int, reason: str, refused: bool, now: int) -> None:
        """Note that a lane was closed, or could not be opened."""
        self.membership.lane_closed(dial, reason, refused, now)
        self.lanes.closed(dial)
        self.carry(now)

    def receive(self, data: bytes | bytearray, pipe: int, now: int, utc_now: int) -> list[Delivery]:
        """Take one frame from a pipe. Returns the readings in it that local subscriptions want."""
        self._frames_received += 1
        neighbour = self._neighbour_of.get(pipe)
        is_large = len(data) > FREE_READINGS_BYTES
        if is_large and neighbour and neighbour.in_debt and self._has_overdrawn(neighbour, data, now):
            return []
        try:
            frame = self._decode(data)
        except RemoteProtocolError as error:
            self.membership.receive_unreadable(error, data, pipe, now)
            self.carry(now)
            self._more = True
            return []
        if neighbour is not None:
            if type(frame) is _READINGS or type(frame) is SignedReadings:
                neighbour.last_heard_ns = now
                if neighbour.state is _SUSPECT:
                    self.membership.refute(neighbour, now)
                    self.carry(now)
                    self._more = True
                sender, role, uncertainty_ns = neighbour.node, neighbour.role, self.clock_uncertainty_ns
                if type(frame) is _READINGS:
                    if is_large:
                        self.membership.refusals.charge(neighbour, frame, now)
                    return self.readings.accept(frame.readings, sender, role, now, utc_now, uncertainty_ns)
                if type(frame) is SignedReadings:
                    return self.readings.accept_signed(frame, sender, role, now, utc_now, uncertainty_ns)
            if type(frame) is _HEARTBEAT and neighbour.state is _ALIVE:
                if self._heartbeats.receive(frame, neighbour, now):
                    self._more = True
                    self.carry(now)
                return []
        self._more = True
        neighbour = self.membership.receive(frame, pipe, now)
        if neighbour is not None and type(frame) is not _HEARTBEAT:
            self._dispatch(frame, neighbour, pipe, now, utc_now)
        self.carry(now)
        return []

    def _dispatch(self, frame: Frame, neighbour: Neighbour, pipe: int, now: int, utc_now: int) -> None:
        """Give a control frame of a neighbour to the machine that declares it, unless the neighbour sends too many."""
        node, machine, may_cost = neighbour.node, self._machine_of.get(type(frame)), self.membership.refusals.may_cost
        if type(frame) is Hello:  # membership has accepted it, and only the first of a life causes work
            self._joined(neighbour, now)
        elif (machine is not None and machine.expects(frame, node)) or may_cost(node, pipe, now):
            if machine is not None:
                machine.receive(frame, node, neighbour.role, now)
            elif type(frame) is Interest:
                self.readings.receive_interest(frame, node, now, utc_now)

    def _joined(self, neighbour: Neighbour, now: int) -> None:
        """A Hello was accepted. The first one of a new life clears what was kept for the life before."""
        node, incarnation = neighbour.node, neighbour.incarnation
        if self._lives.is_present(node, incarnation, neighbour.role):
            return
        if node in self._lives.present:
            self._gone(node, "restarted", now)
        if (other_life := self._lives.begin(node, incarnation, neighbour.role)) is not None:
            self.readings.forget_origin(node, other_life)
        self._link(node)
        queues = self.lanes.queues_of(node)
        self.readings.add_peer(Peer(node, neighbour.role, queues.realtime, queues.bulk, now))
        if neighbour.realtime:
            self._put(node, self.readings.interest_for(node), now)

    def _link(self, node: NodeId) -> None:
        """Let membership put heartbeats for a neighbour into its queue."""
        if (neighbour := self.membership.neighbours.get(node)) is not None:
            neighbour.queue = self.lanes.queues_of(node).realtime

    def _gone(self, node: NodeId, reason: str, now: int) -> None:
        self.lanes.forget(node, reason)
        if (neighbour := self.membership.neighbours.get(node)) is not None:
            neighbour.queue = None
        self._lives.present.discard(node)
        for machine in self._machines:
            machine.neighbour_gone(node, now)
        self.readings.remove_peer(node)

    # --- lanes -----------------------------------------------------------------------------------------------------
    def next_frame(self, dial: int, now: int, full: bool = False) -> bytes | None:
        """Take the next frame for an open lane; see :meth:`LaneQueue.take`. A frame that was taken is not kept here."""
        return None if (queue := self._queue_of.get(dial)) is None else queue.take(now, full)

    def frame_lost(self, dial: int, frame: bytes, why: str, peer: str = "") -> None:
        """Count the readings in a frame that was taken and could not be sent, because its lane was closed. ``peer``:
        who it was for, in case the engine itself had the lane closed."""
        queue = self._queue_of.get(dial)
        self.drops.count(queue.peer if queue is not None else peer, "", why, readings_in_own_frame(frame))

    def lane_drained(self, dial: int, size_bytes: int, took_ns: int) -> None:
        """Note that the link took ``took_ns`` for a frame that was handed over when the lane had just become free."""
        if (queue := self._queue_of.get(dial)) is not None:
            self.inference.transferred(queue.peer, size_bytes, took_ns)

    def _put(self, node: NodeId, frame: Frame, now: int) -> None:
        if node in self.membership.neighbours and self.lanes.put(node, frame):
            return
        self._frames_undeliverable += 1
        if (machine := self._machine_of.get(type(frame))) is not None:
            machine.undeliverable(node, frame, now)

    def _dial_bulk(self) -> None:
        """Dial the bulk lanes for which something waits."""
        for node in self.lanes.to_dial():
            self.membership.want_bulk(node)
        self._more = True

    def _reached(self) -> list[NodeId]:
        """Whoever has been greeted, even if it has not said Hello: what the greetings said may have changed since."""
        return [node for node, neighbour in sorted(self.membership.neighbours.items()) if neighbour.realtime]

    def carry(self, now: int) -> None:
        """Carry decisions from machine to machine until none is left. Each round empties what it carries."""
        membership = self.membership
        if self._heartbeats.touched:
            for queue in self._heartbeats.touched:
                self.lanes.touch(queue)
            self._heartbeats.touched.clear()
        if self._heartbeats.flooding:
            self.membership.refusals.end_floods(self._heartbeats.flooding, now)
        if self.readings.interest_changed:
            self._tell_interest(now)
        while (news := [machine for machine in self._machines if machine.has_news()]) or membership.has_news():
            self.readings.next_sequence = max(self.readings.next_sequence, self.gossip.own.first_sequence)
            carry_entries(self.gossip, self._machines, now)
            events = membership.events()
            messages: list[Message] = [*membership.messages()]
            for machine in news:
                messages.extend(machine.messages())
                self._events.extend(machine.events())
            self._tell_of_neighbours(events, now)
            for node, frame in messages:
                for reached in [node] if node is not None else self._reached():
                    self._put(reached, frame, now)
            if self.datagrams is not None:
                self.datagrams.carry()
            if self.readings.interest_changed:
                self._tell_interest(now)
        if self._wanted:
            self._dial_bulk()

    def _tell_of_neighbours(self, events: Sequence[Event], now: int) -> None:
        for event in events:
            if type(event) is NeighbourDead or type(event) is NeighbourLeft:
                self._gone(event.node, "neighbour_gone", now)
            elif type(event) is NeighbourMet:
                for machine in self._machines:
                    machine.neighbour_met(event.node, event.role, now)
        self._events.extend(events)

    def _tell_interest(self, now: int) -> None:
        for node in self.readings.untold(self._reached(), now):
            self._put(node, self.readings.interest_for(node), now)

    # --- time, effects, events -------------------------------------------------------------------------------------
    def handle_timer(self, now: int, receiving_since_ns: int | None = None) -> None:
        """Do what is due. ``receiving_since_ns``: since when a callback has been holding up the receiving thread."""
        if others_due := now >= self._due_without_turns():  # turns alone are due all the time on a full channel
            self._heartbeats.gap_ns = self.gossip.gap_ns = self.lanes.pace.gap_ns()
            self._heartbeats.line_ns = self.lanes.pace.line_ns()
            self.membership.handle_timer(now, receiving_since_ns)
        self.lanes.handle_timer(now)
        if others_due:
            self.readings.handle_timer(now)
            for machine in self._machines:
                machine.handle_timer(now)
        if self.datagrams is not None:
            self.datagrams.touch()
        self.carry(now)
        if self.membership.forgot:
            self.membership.forgot = False
            for node in [node for node in self.lanes.of_node if node not in self.membership.neighbours]:
                self._gone(node, "neighbour_gone", now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next, at the latest."""
        return min(self._due_without_turns(), self.lanes.next_turn_at())

    def _due_without_turns(self) -> int:
        dues_ns = [machine.next_timer_at() for machine in self._machines]
        return min(self.membership.next_timer_at(), self.readings.next_timer_at(), *dues_ns)

    def flushes(self) -> list[LaneQueue] | None:
        """The queues to flush after a reading was published or a frame was received. None: there may be effects and
        events too. Otherwise, of all timers, only ``readings.next_timer_at()`` may be earlier than before."""
        if self._wanted:
            self._dial_bulk()
        return None if self._more else self.lanes.taken()

    def is_settled(self) -> bool:
        """Whether :meth:`flushes` would return an empty list."""
        return not (self._more or self._touched)

    def outgoing(self) -> list[Effect]:
        """The effects to perform before lanes are flushed, decided since the last call."""
        effects: list[Effect] = [*self.membership.outgoing()] if self.membership.has_outgoing() else []
        for effect in effects:
            if type(effect) is HangUp:  # the driver does not report the end of a lane that it was told to close
                self.lanes.closed(effect.dial)
        for machine in self._machines:
            effects.extend(machine.outgoing())
        self._more = False
        return effects

    def events(self) -> list[Event]:
        """The events that the application should know of, since the last call."""
        events, self._events = [*self._events, *self.readings.events()], []
        return events

    # --- for people ------------------------------------------------------------------------------------------------
    def peers(self, now: int) -> list[PeerView]:
        """All neighbours known; dead ones are listed for ``FORGET_DEAD_NS``."""
        return views(self.membership, self.lanes, self.inference, now)

    def statistics(self) -> dict[str, int]:
        """Counters by name, where those of a machine begin with its name. They only grow, except gauges of parts."""
        counters = {"frames_received": self._frames_received, "frames_undeliverable": self._frames_undeliverable}
        return {**counters, **totals(self.membership, self.readings, self._machines, self.drops, self.lanes)}
