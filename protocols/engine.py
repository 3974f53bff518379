"""One node: the machines composed, and the only door for drivers.

A driver tells the engine what happened, then performs ``outgoing()`` and hands on ``events()``. Machines never call
each other; what one decides and another must know is carried here. Frames for a neighbour wait in the engine until the
driver takes them with ``next_frame``: backpressure is a frame not taken.

Not thread-safe: a driver with threads holds one lock around every call. No call blocks or calls back.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import BoundExceeded, RemoteProtocolError, UnknownFrame, ValueUnsupported
from protocols.base.ids import Incarnation, Lane, NodeId, PeerIdentity
from protocols.base.time import NEVER
from protocols.events import (
    Delivery,
    Effect,
    Event,
    HangUp,
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    Put,
    PutMany,
)
from protocols.gossip.entries import EntryView, Stored
from protocols.gossip.machine import Gossip
from protocols.inference.machine import Inference
from protocols.inference.placement import LocalModel, Neighbourhood
from protocols.links.queues import Drops, LaneQueue, Queues
from protocols.membership.machine import Membership, Neighbour, State
from protocols.membership.peer_view import PeerView as PeerView  # noqa: PLC0414 -- handed on
from protocols.readings.machine import Router
from protocols.readings.streams import Peer
from protocols.settings import NodeSettings, Quality
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame, readings_in_own_frame, untrusted_other_major
from protocols.wire.gossip import GossipDigest, GossipEntries, GossipHave, GossipPull
from protocols.wire.inference import InferAnswer, InferRequest, Offers
from protocols.wire.membership import Heartbeat, Hello
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings
from protocols.wire.registry import NodeFrame
from protocols.wire.tensors import NamedTensor

OFFER_INTERVAL_NS: Final = 100 * limits.MS
"""Changes of load are told at most this often."""
_ALIVE: Final = State.ALIVE  # looked up once: an enumeration is slow at it
_SUSPECT: Final = State.SUSPECT
_READINGS: Final = Readings  # as for these; compiled code finds them at once
_HEARTBEAT: Final = Heartbeat


class Engine:
    """The protocol of one node. All instants are monotonic nanoseconds unless they are called ``utc``."""

    def __init__(
        self, settings: NodeSettings, random: Random,
        decode: Callable[[bytes | bytearray], NodeFrame] = decode_untrusted_node_frame,
    ) -> None:  # fmt: skip
        """``decode``: for a driver that knows that it has decoded the same bytes before; errors as the default's.

        :raises InvalidKey: when an access rule has no valid key expression.
        """
        self.settings = settings
        self._decode = decode
        self.drops = Drops()
        access = AccessTable(settings.access)
        self._membership = Membership(
            settings.mesh, settings.node, settings.incarnation, settings.inbox_port, settings.membership, random
        )  # fmt: skip
        self._readings = Router(settings.node, settings.role, settings.incarnation << 32, access, self.drops)
        self._inference = Inference(settings.node, access, self._neighbourhood)
        self._gossip = Gossip(settings.node, settings.incarnation, settings.seal, settings.gossip, random)
        self._queues: dict[NodeId, Queues] = {}
        self._queue_of: dict[int, LaneQueue] = {}
        """By open dial."""
        self._neighbour_of = self._membership.neighbour_of
        self._more = False
        """Something was decided beside lanes to flush."""
        self._bulk_waits = False
        """Something may wait for a bulk lane that is not open."""
        self._lives: dict[NodeId, Incarnation] = {}
        self._present: set[NodeId] = set()
        self._clock_uncertainty_ns = settings.clock_uncertainty_ns
        self._offers_due_ns = NEVER
        self._offers_sent_ns = -NEVER
        self._events: list[Event] = []
        self._touched = self._readings.touched
        self._frames_received = 0
        self._counters = {
            "pipes_opened": 0, "frames_malformed": 0, "frames_unknown": 0, "frames_undeliverable": 0,
        }  # fmt: skip

    def listening_on(self, port: int) -> None:
        """The inbox has a port now, other than the one of the settings."""
        self._membership.inbox_port = port

    # --- what happened on the links --------------------------------------------------------------------------------
    def hint(self, name: str, node: NodeId | None, addresses: tuple[tuple[str, int], ...], now: int) -> None:
        """Somebody may be at one of ``addresses`` ((host, port) pairs): an advert, or a seed (``node`` None)."""
        self._membership.hint(name, node, addresses, now)

    def withdraw(self, name: str) -> None:
        """A hint was taken back."""
        self._membership.withdraw(name)

    def duplicate_hint(self, host: str) -> None:
        """An advert carries our own id and another incarnation."""
        self._membership.duplicate_hint(host)

    def admit(self, identity: PeerIdentity, now: int) -> str | None:
        """Whether this certificate may have a link: None, or why not."""
        return self._membership.admit(identity, now)

    def refused_before_identity(self, who: str, detail: str, now: int) -> None:
        """A handshake failed or named nobody."""
        self._membership.refused_before_identity(who, detail, now)

    def inbound_opened(self, pipe: int, identity: PeerIdentity, host: str, now: int) -> None:
        """An admitted pipe into our inbox."""
        self._counters["pipes_opened"] += 1
        self._membership.inbound_opened(pipe, identity, host, now)

    def inbound_closed(self, pipe: int, now: int) -> None:
        """That pipe is gone."""
        self._membership.inbound_closed(pipe, now)
        self._carry(now)

    def greeting(self, dial: int) -> bytes:
        """The first frame of a dialled lane."""
        return encode_frame(self._membership.greeting(dial))

    def lane_opened(self, dial: int, identity: PeerIdentity, now: int) -> None:
        """A lane has taken its greeting."""
        self._membership.lane_opened(dial, identity, now)
        reached = self._membership.lane_of(dial)
        if reached is not None:
            node, lane = reached
            queues = self._queues_of(node)
            queue = self._queue_of[dial] = queues.realtime if lane is Lane.REALTIME else queues.bulk
            queue.dial, queue.link = dial, None
            if lane is Lane.REALTIME:
                if queues.bulk:
                    self._membership.want_bulk(node)
                self._put(node, self._readings.interest_for(node), now)
                self._put(node, self._inference.offers(), now)
            self._flush(queue)
        self._carry(now)

    def lane_closed(self, dial: int, reason: str, refused: bool, now: int) -> None:
        """A lane is finished, or never came to be."""
        self._membership.lane_closed(dial, reason, refused, now)
        self._lane_gone(dial)
        self._carry(now)

    def _lane_gone(self, dial: int) -> None:
        queue = self._queue_of.pop(dial, None)
        if queue is not None and queue.dial == dial:
            queue.dial, queue.link = 0, None
            self._bulk_waits = True

    def receive(self, data: bytes | bytearray, pipe: int, now: int, utc_now: int) -> list[Delivery]:
        """One frame from a pipe; returns the readings in it that are wanted here."""
        self._frames_received += 1
        try:
            frame = self._decode(data)
        except UnknownFrame:
            self._counters["frames_unknown"] += 1
            self._more = True
            return []
        except RemoteProtocolError as error:
            major = untrusted_other_major(data)
            if major is None:
                self._counters["frames_malformed"] += 1
                self._membership.malformed(pipe, str(error), now)
            else:
                self._membership.receive_other_major(major, pipe, now)
            self._carry(now)
            self._more = True
            return []
        neighbour = self._neighbour_of.get(pipe)
        if neighbour is not None:
            if type(frame) is _READINGS:
                neighbour.last_heard_ns = now
                if neighbour.state is _SUSPECT:
                    self._membership.refute(neighbour, now)
                    self._carry(now)
                    self._more = True
                uncertainty_ns = self._clock_uncertainty_ns
                deliveries = self._readings.accept(frame.readings, neighbour, now, utc_now, uncertainty_ns)
                if self._touched:
                    self._look_for_lanes()
                return deliveries
            if type(frame) is _HEARTBEAT and neighbour.state is _ALIVE:
                if self._membership.heartbeat(frame, neighbour, now):
                    self._more = True
                    self._carry(now)
                return []
        self._more = True
        neighbour = self._membership.receive(frame, pipe, now)
        if neighbour is not None:
            self._receive_control(frame, neighbour, now, utc_now)
        self._carry(now)
        return []

    def _receive_control(self, frame: NodeFrame, neighbour: Neighbour, now: int, utc_now: int) -> None:
        if type(frame) is GossipDigest:  # as most are
            self._gossip.receive(frame, neighbour.node, neighbour.role, now)
            return
        match frame:
            case Hello():
                self._joined(neighbour, now)
            case Interest():
                if self._readings.receive_interest(frame, neighbour.node, now, utc_now):
                    self._tell_interest(now)
            case Heartbeat():
                pass
            case GossipHave() | GossipPull() | GossipEntries():
                self._gossip.receive(frame, neighbour.node, neighbour.role, now)
            case _:
                self._inference.receive(frame, neighbour.node, neighbour.role, now)

    def _joined(self, neighbour: Neighbour, now: int) -> None:
        """A Hello was accepted: the first of a life makes a clean start."""
        node, before = neighbour.node, self._lives.get(neighbour.node)
        if node in self._present and before == neighbour.incarnation:
            return
        if node in self._present:
            self._gone(node, "restarted", now)
        if before is not None and neighbour.incarnation < before:
            self._readings.forget_origin(node)
        if len(self._lives) >= limits.MAX_CACHED_KEYS:  # nodes ever met; a forgotten one may at worst seem stale
            self._lives = {known: life for known, life in self._lives.items() if known in self._present}
        self._lives[node] = neighbour.incarnation
        self._present.add(node)
        queues = self._queues_of(node)
        self._readings.add_peer(Peer(node, neighbour.role, queues.realtime, queues.bulk))
        self._tell_interest(now, only=node)

    def _gone(self, node: NodeId, reason: str, now: int) -> None:
        queues = self._queues.pop(node, None)
        if queues is not None:
            queues.realtime.clear(reason)
            queues.bulk.clear(reason)
            self._lane_gone(queues.realtime.dial)
            self._lane_gone(queues.bulk.dial)
            neighbour = self._membership.neighbours.get(node)
            if neighbour is not None:
                neighbour.queue = None
        self._present.discard(node)
        self._inference.neighbour_gone(node, now)
        self._gossip.gone(node, now)
        if self._readings.remove_peer(node):
            self._tell_interest(now)

    # --- queues ----------------------------------------------------------------------------------------------------
    def next_frame(self, dial: int, now: int) -> bytes | None:
        """The next frame for an open lane, None when nothing waits. A frame taken is the driver's."""
        queue = self._queue_of.get(dial)
        return None if queue is None else queue.take(now)

    def frame_lost(self, dial: int, frame: bytes, why: str) -> None:
        """A frame that was taken could not be sent: the lane went first. Counts the readings in it."""
        reached = self._membership.lane_of(dial)
        self.drops.count(reached[0] if reached is not None else "", "", why, readings_in_own_frame(frame))

    def lane_drained(self, dial: int, size_bytes: int, took_ns: int) -> None:
        """A frame that was handed over when the lane had just become free was on its way after ``took_ns``."""
        reached = self._membership.lane_of(dial)
        if reached is not None:
            self._inference.transferred(reached[0], size_bytes, took_ns)

    def _queues_of(self, node: NodeId) -> Queues:
        queues = self._queues.get(node)
        if queues is None:
            queues = self._queues[node] = Queues(node, self.drops, self.settings.max_queue_readings)
        neighbour = self._membership.neighbours.get(node)
        if neighbour is not None:
            neighbour.queue = queues.realtime
        return queues

    def _put(self, node: NodeId, frame: NodeFrame, now: int) -> None:
        neighbour = self._membership.neighbours.get(node)
        queues = self._queues.get(node)
        if neighbour is None or queues is None:
            self._undeliverable(node, frame, now)
            return
        try:
            data = encode_frame(frame)
            if type(frame) is Heartbeat:
                queues.realtime.put_heartbeat(data)
                bulk = False
            else:
                bulk = len(data) > limits.BULK_THRESHOLD_BYTES
                queue = queues.bulk if bulk else queues.realtime
                if type(frame) is Interest or type(frame) is Offers:  # each replaces what was said before
                    queue.put_latest(type(frame).__name__, data)
                else:
                    queue.put_control(data)
        except (BoundExceeded, ValueUnsupported):
            self._undeliverable(node, frame, now)
            return
        self._flush(queues.bulk if bulk else queues.realtime)

    def _undeliverable(self, node: NodeId, frame: NodeFrame, now: int) -> None:
        self._counters["frames_undeliverable"] += 1
        if type(frame) is InferRequest:
            self._inference.undeliverable(node, frame, now)
        elif type(frame) is InferAnswer and frame.outputs:  # its caller need not wait for a deadline to learn that
            detail = f"{self.settings.node} computed it, but the answer is too large or the link is stuck"
            self._put(node, InferAnswer(frame.request, "failed", detail=detail), now)

    def _flush(self, queue: LaneQueue) -> None:
        if not queue.touched:
            queue.touched = True
            self._touched.append(queue)
        if not queue.dial:
            self._want_lane(queue)

    def _look_for_lanes(self) -> None:
        """Readings were put into queues."""
        for queue in self._touched:
            if not queue.dial:
                self._want_lane(queue)

    def _want_lane(self, queue: LaneQueue) -> None:
        queues = self._queues.get(queue.peer)
        if queues is not None and queue is queues.bulk:
            self._membership.want_bulk(queue.peer)
            self._more = self._bulk_waits = True

    def _tell_interest(self, now: int, only: NodeId | None = None) -> None:
        for node in [only] if only is not None else sorted(self._present):
            neighbour = self._membership.neighbours.get(node)
            if neighbour is not None and neighbour.realtime:
                self._put(node, self._readings.interest_for(node), now)

    def _tell_offers(self, now: int) -> None:
        self._offers_due_ns, self._offers_sent_ns = NEVER, now
        offers = self._inference.offers()
        for node in sorted(self._present):
            neighbour = self._membership.neighbours.get(node)
            if neighbour is not None and neighbour.realtime:
                self._put(node, offers, now)

    def _carry(self, now: int) -> None:
        """Carry decisions from machine to machine until none is left; each round empties what it carries."""
        membership, inference, gossip = self._membership, self._inference, self._gossip
        if membership.touched:
            for queue in membership.touched:
                self._flush(queue)
            membership.touched.clear()
        while membership.has_news() or inference.has_messages() or gossip.has_news():
            events = membership.events()
            messages = [*membership.messages(), *inference.messages(), *gossip.messages()]
            self._events.extend(gossip.events())
            for event in events:
                if type(event) is NeighbourDead or type(event) is NeighbourLeft:
                    self._gone(event.node, "neighbour_gone", now)
                elif type(event) is NeighbourMet:
                    gossip.contact(event.node, event.role, now)
            self._events.extend(events)
            for node, frame in messages:
                self._put(node, frame, now)
        self._look_for_lanes()

    # --- readings --------------------------------------------------------------------------------------------------
    def publish(
        self, key: str, value: object, where: Position | None, when: EventTime | None, how: Provenance | None,
        priority: int, lifespan_ms: int, hops: int, now: int, utc_now: int,
    ) -> tuple[Put, Delivery | None]:  # fmt: skip
        """Publish one value of this node; see :meth:`protocols.readings.machine.Router.publish` for the errors."""
        result = self._readings.publish(key, value, where, when, how, priority, lifespan_ms, hops, now, utc_now)
        self._look_for_lanes()
        return result

    def publish_many(
        self, key: str, values: Sequence[object], where: Position | None, whens: Sequence[EventTime],
        how: Provenance | None, priority: int, lifespan_ms: int, hops: int, now: int, utc_now: int,
    ) -> tuple[PutMany, list[Delivery]]:  # fmt: skip
        """Publish several values of one key; see :meth:`protocols.readings.machine.Router.publish_many`."""
        result = self._readings.publish_many(key, values, where, whens, how, priority, lifespan_ms, hops, now, utc_now)
        self._look_for_lanes()
        return result

    def subscribe(self, expression: str, quality: Quality, now: int) -> tuple[int, list[Reading]]:
        """Add a local subscription: its number, and the values it starts with."""
        number, past = self._readings.subscribe(expression, quality, now)
        self._tell_interest(now)
        return number, past

    def unsubscribe(self, number: int, now: int) -> None:
        """Remove a local subscription."""
        self._readings.unsubscribe(number)
        self._tell_interest(now)

    def wanted_by(self, expression: str) -> list[NodeId]:
        """Neighbours that asked for some key which ``expression`` matches."""
        return self._readings.wanted_by(expression)

    # --- inference -------------------------------------------------------------------------------------------------
    def set_models(self, models: tuple[LocalModel, ...], now: int) -> None:
        """What is loaded here and what it costs now."""
        if self._inference.set_models(models) and self._offers_due_ns == NEVER:
            self._offers_due_ns = max(now, self._offers_sent_ns + OFFER_INTERVAL_NS)

    def ask(
        self, model: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int, hedge: bool,
        now: int,
    ) -> int:  # fmt: skip
        """Have a model computed here or at a neighbour; one ``Answered`` follows. Errors as ``Inference.ask``."""
        number = self._inference.ask(model, inputs, outputs, budget_ns, hedge, now)
        self._carry(now)
        return number

    def abandon(self, request: int, now: int) -> None:
        """The caller no longer wants the answer."""
        self._inference.abandon(request, now)
        self._carry(now)

    def computed(self, run: int, answer: InferAnswer, now: int) -> None:
        """A ``Compute`` ended; ``answer.request`` is ignored."""
        self._inference.computed(run, answer, now)
        self._carry(now)

    def _neighbourhood(self) -> list[Neighbourhood]:
        return [
            Neighbourhood(n.node, n.round_trip_ns)
            for n in self._membership.neighbours.values()
            if n.state is _ALIVE and n.met and n.realtime
        ]

    # --- gossip ----------------------------------------------------------------------------------------------------
    def gossip_put(self, kind: str, body: bytes, lifetime_s: int, now: int) -> int:
        """Author an entry that spreads to all, or raise its version. Returns the version; errors as ``Gossip.put``."""
        version = self._gossip.put(kind, body, lifetime_s, now)
        self._carry(now)
        return version

    def gossip_entries(self, now: int) -> list[EntryView]:
        """Every entry held, by author and kind."""
        return self._gossip.entries(now)

    def gossip_version(self, author: str, kind: str) -> int:
        """The version held of an entry; 0: none."""
        return self._gossip.version(author, kind)

    @property
    def gossip_root(self) -> int:
        """Equal in two engines that hold the same entries."""
        return self._gossip.root

    def gossip_stored(self, now: int) -> list[Stored]:
        """Entries to keep over a restart."""
        return self._gossip.stored(now)

    def gossip_restore(self, stored: list[Stored], now: int) -> None:
        """Entries kept by a former life; they are checked again."""
        self._gossip.restore(stored, now)
        self._carry(now)

    # --- time, effects, events -------------------------------------------------------------------------------------
    def handle_timer(self, now: int, receiving_since_ns: int | None = None) -> None:
        """Do what is due. ``receiving_since_ns``: since when a callback has held up the receiving thread."""
        membership = self._membership
        membership.handle_timer(now, receiving_since_ns)
        if self._bulk_waits:
            self._bulk_waits = False
            for node, queues in self._queues.items():
                if queues.bulk.waiting_bytes and not queues.bulk.dial:  # it failed, or could not be dialled before
                    membership.want_bulk(node)
                    self._bulk_waits = True
        self._readings.handle_timer(now)
        self._inference.handle_timer(now)
        self._gossip.handle_timer(now)
        if now >= self._offers_due_ns:
            self._tell_offers(now)
        self._carry(now)
        if membership.forgot:
            membership.forgot = False
            for node in [node for node in self._queues if node not in membership.neighbours]:
                self._gone(node, "neighbour_gone", now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next, at the latest."""
        due_ns = min(self._membership.next_timer_at(), self._offers_due_ns)
        due_ns = min(due_ns, self._readings.next_timer_at())
        due_ns = min(due_ns, self._inference.next_timer_at())
        return min(due_ns, self._gossip.next_timer_at())

    def deadline_at(self) -> int:
        """The next deadline of a subscription: the one timer that a reading can bring forward. Cheap."""
        return self._readings.next_timer_at()

    def leave(self, reason: str, now: int) -> None:
        """Say goodbye; flush the lanes, then close."""
        self._membership.leave(reason)
        self._carry(now)

    def flushes(self) -> list[LaneQueue] | None:
        """The hot path's short form of all below and :meth:`next_timer_at` after a reading was published or a frame
        received: :meth:`lanes`, or None when there may be more to do. A reading may have moved :meth:`deadline_at`."""
        return None if self._more else self.lanes()

    def is_settled(self) -> bool:
        """Whether :meth:`flushes` has nothing to say."""
        return not (self._more or self._touched)

    def lanes(self) -> list[LaneQueue]:
        """What has got something to send since the last call; those without a ``dial`` are not open."""
        if not self._touched:
            return []
        lanes = self._touched[:]
        self._touched.clear()
        for lane in lanes:
            lane.touched = False
        return lanes

    def outgoing(self) -> list[Effect]:
        """What to do before lanes are flushed, decided since the last call."""
        effects: list[Effect] = []
        if self._membership.has_outgoing():
            effects.extend(self._membership.outgoing())
            for effect in effects:
                if type(effect) is HangUp:  # the driver does not tell of the end of a lane that it was told to close
                    self._lane_gone(effect.dial)
        if self._inference.has_outgoing():
            effects.extend(self._inference.outgoing())
        self._more = False
        return effects

    def events(self) -> list[Event]:
        """What the application should know, since the last call."""
        events, self._events = self._events, []
        events.extend(self._readings.events())
        if self._inference.has_events():
            events.extend(self._inference.events())
        return events

    # --- for people ------------------------------------------------------------------------------------------------
    def is_alive(self, node: NodeId) -> bool:
        """Whether a neighbour was met and lives, for all that is known."""
        neighbour = self._membership.neighbours.get(node)
        return neighbour is not None and neighbour.met and neighbour.state is _ALIVE

    def neighbours(self) -> list[Neighbour]:
        """Everybody known, as membership has them: to be looked at, not changed. Costs far less than :meth:`peers`."""
        return list(self._membership.neighbours.values())

    def most_waiting(self) -> tuple[int, int]:
        """The most readings, and the most bytes, that wait for one neighbour."""
        readings = size_bytes = 0
        for queues in self._queues.values():
            readings = max(readings, queues.realtime.waiting_readings + queues.bulk.waiting_readings)
            size_bytes = max(size_bytes, queues.realtime.waiting_bytes + queues.bulk.waiting_bytes)
        return readings, size_bytes

    def peers(self, now: int) -> list[PeerView]:
        """Everybody known, dead ones included for ``FORGET_DEAD_NS``."""
        views = []
        for n in sorted(self._membership.neighbours.values(), key=lambda neighbour: neighbour.node):
            queues = self._queues.get(n.node)
            views.append(PeerView(
                n.node, n.role, n.state, n.incarnation, n.met, n.round_trip_ns, now - n.last_heard_ns, n.heard_by_peer,
                n.lanes, len(n.inbound),
                queues.realtime.waiting_readings + queues.bulk.waiting_readings if queues else 0,
                queues.realtime.waiting_bytes + queues.bulk.waiting_bytes if queues else 0,
                self._inference.offers_of(n.node), round(self._inference.throughput_of(n.node), 1),
            ))  # fmt: skip
        return views

    def statistics(self) -> dict[str, int]:
        """Counters by name; they only grow."""
        return {
            "frames_received": self._frames_received,
            **self._counters,
            **self._membership.counters,
            **{f"readings_{name}": value for name, value in self._readings.counters.items()},
            **{f"inference_{name}": value for name, value in self._inference.counters.items()},
            **{f"gossip_{name}": value for name, value in self._gossip.counters.items()},
            "gossip_entries_held": len(self._gossip),
            "drops": self.drops.total,
        }
