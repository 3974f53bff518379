"""The routing table of readings: who wants what, who gets it, and what happened to the rest.

:meth:`Router.publish` and :meth:`Router.accept` are the hot path. Everything that can be decided per (origin, key) is
decided once and kept in a :class:`Stream`. A change of interests makes these decisions stale by raising a version
number: own subscriptions have one, and all interests together have another.

Rules:
1. A reading goes only to neighbours whose Interest matches its key, never back to its source or its origin. A reading
   of another node goes only to those that asked for it with hops.
2. Within a stream only larger sequences are accepted: duplicates and late-comers are dropped and counted as ``stale``.
3. A reading older than its lifespan, by the sum of both clocks' uncertainties, is dropped and counted as ``expired``.
4. The access table decides who may be the origin of a key; what it denies is dropped and counted as ``denied``, and
   takes no place in any table.
5. What a neighbour says of itself counts, and what others say about it never does (``stale``). Hearsay about nodes that
   are no neighbours is accepted where it was asked for; see :mod:`protocols.readings.hearsay`.
6. The value that is kept and delivered is the value that was sent, even if its publisher changes it afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import BoundExceeded, InvalidKey, NotPermitted, ValueUnsupported
from protocols.base.ids import NodeId, Role
from protocols.base.keys import checked_expression, checked_key, intersects
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.readings.cache import SMALL, SMALL_SIZE
from protocols.readings.events import DeadlineMissed, Delivery, Put, PutMany, ReadingRefused
from protocols.readings.hearsay import Hearsay
from protocols.readings.history import History, newly_wanted
from protocols.readings.interest import (
    Interests,
    TakenUp,
    Uptake,
    add_subscriber,
    decide_routes,
    decide_subscribers,
    remove_subscriber,
    share_wants,
    wants_to_ask_for,
)
from protocols.readings.publication import Publication, checked_context, parcels_of
from protocols.readings.quality import Quality
from protocols.readings.queueing import Queueing
from protocols.readings.signing.authorship import Authorship, of_nobody
from protocols.readings.signing.seal import Certified, ReadingSeal
from protocols.readings.streams import IMMUTABLE, LocalSubscription, Peer, Stream, check_time, due_now
from protocols.readings.table import StreamTable
from protocols.readings.work import Work
from protocols.wire.parcels import decode_alone, encode_alone
from protocols.wire.readings import FRAMES, EventTime, Interest, Position, Reading, SignedReadings, expiry_utc_ns

_MS: Final = limits.MS
_BULK_THRESHOLD_BYTES: Final = limits.BULK_THRESHOLD_BYTES
_MAX_SHARED_BYTES: Final = limits.MAX_SHARED_FRAME_BYTES


class Router:
    """The machine of one node. The engine calls it directly, because nothing is as frequent."""

    name: Final = "readings"
    frames: Final = FRAMES

    def __init__(
        self, node: NodeId, role: Role, first_sequence: int, access: AccessTable, drops: Drops,
        touched: list[LaneQueue], wanted: list[NodeId], seal: ReadingSeal | None = None,
        certificate_of: Callable[[NodeId], Certified | None] = of_nobody,
    ) -> None:  # fmt: skip
        """``first_sequence`` must be above all sequences that earlier lives of this node have used. The router appends
        to ``touched`` the queues into which it puts something; each is listed once, because it is marked. It appends to
        ``wanted`` the neighbours for whom something waits on a bulk lane that is not open. ``seal`` and
        ``certificate_of``: see :class:`~protocols.readings.signing.authorship.Authorship`."""
        self._node, self._role, self._access, self._drops = node, role, access, drops
        self.next_sequence = first_sequence
        self._peers: dict[NodeId, Peer] = {}
        self._subscriptions: dict[int, LocalSubscription] = {}
        self._next_subscription = 1
        self._version = 0
        self.share: Callable[[Stream], None] | None = None  # see protocols.datagrams.audience
        self._table = StreamTable(self._subscriptions)
        self._streams, self._deadlines = self._table.first_hand, self._table.deadlines
        self._checked_where: Position | None = None
        self.interest_changed = False
        """Whether neighbours must be told :meth:`interest_for` them again; see :meth:`untold`."""
        self._interests, self._uptake = Interests(), Uptake(access, drops)
        self._events: list[DeadlineMissed] = []
        self._touched = touched
        self._authorship = Authorship(node, drops, seal, certificate_of)
        self._queueing = Queueing(node, drops, touched, wanted, self._authorship)
        self._work = Work(self._peers)
        self._hearsay = Hearsay(
            node, access, self._table, self._peers, self._subscriptions, drops, self._queueing, self._work,
            self._authorship,
        )  # fmt: skip
        self._history = History(node, self._queueing)
        self._published = self._accepted = self._delivered = 0

    def counters(self) -> dict[str, int]:
        """Counters by name, which only grow."""
        return {
            "published": self._published, "accepted": self._accepted, "delivered": self._delivered,
            "forwarded": self._queueing.forwarded, **self._authorship.counters(),
        }  # fmt: skip

    # --- subscriptions ---------------------------------------------------------------------------------------------
    def subscribe(self, expression: str, quality: Quality, now: int) -> tuple[int, list[Reading]]:
        """Add a subscription. Returns its number, and the last known values that it starts with.

        :raises InvalidKey: when ``expression`` is not a valid key expression.
        :raises BoundExceeded: beyond ``MAX_SUBSCRIPTIONS``.
        """
        checked_expression(expression)
        if len(self._subscriptions) >= limits.MAX_SUBSCRIPTIONS:
            raise BoundExceeded(
                f"{limits.MAX_SUBSCRIPTIONS} subscriptions are open: close some, or use a wider expression"
            )
        number, self._next_subscription = self._next_subscription, self._next_subscription + 1
        subscription = LocalSubscription(number, expression, quality)
        self._subscriptions[number] = subscription
        self._work.subscribed(subscription)
        self._change_interest()
        past = []
        for stream in self._table.all():
            own = stream.origin == self._node
            if (stream.is_hearsay and not quality.hops) or not subscription.pattern.matches(
                stream.key, stream.key.split("/")
            ):
                continue
            if quality.deadline_ns:
                self._deadlines.watch(number, stream, max(now, stream.last_ns) + quality.deadline_ns, now)
            if quality.own or not own:
                add_subscriber(stream, subscription)
                if quality.history and stream.last is not None:
                    past.append(stream.last)
        return number, past

    def unsubscribe(self, number: int) -> None:
        """Remove a subscription. Unknown numbers are ignored."""
        subscription = self._subscriptions.pop(number, None)
        if subscription is not None:
            self._work.unsubscribed(subscription)
            for stream in self._table.all():
                remove_subscriber(stream, subscription)
                self._deadlines.forget(number, stream)
            self._change_interest()

    def interest_for(self, peer: NodeId) -> Interest:
        """What to ask of ``peer``: own subscriptions, and what other neighbours asked this node to ask for."""
        others = {other.node: other.passed_on for other in self._peers.values() if other.node != peer}
        wants, without_place = wants_to_ask_for(self._subscriptions.values(), others)
        for node, count in without_place.items():
            known = self._peers[node].without_place
            if count > known:
                self._drops.count(node, "*", "interest_full", count - known)
                self._peers[node].without_place = count
        return Interest(self._interests.tell(peer), wants)

    def untold(self, reached: list[NodeId], now: int) -> list[NodeId]:
        """Those of ``reached`` to tell now that the interest has changed. When they are many, the others follow."""
        self.interest_changed = False
        wants = len(self._subscriptions) + sum([len(peer.passed_on) for peer in self._peers.values()])
        untold = self._interests.untold(reached, wants, now)
        self._plan()
        return untold

    def _change_interest(self) -> None:
        self.interest_changed = True
        self._interests.change()

    # --- neighbours ------------------------------------------------------------------------------------------------
    def add_peer(self, peer: Peer) -> None:
        """Add a neighbour. It wants nothing until its Interest comes."""
        self.remove_peer(peer.node)
        self._peers[peer.node] = peer
        self._version += 1

    def remove_peer(self, node: NodeId) -> None:
        """Remove a neighbour that is gone."""
        peer = self._peers.pop(node, None)
        self._version += 1
        self._history.forget(node)
        self._table.disown(node)
        self._interests.forget(node)
        self._uptake.forget(node)
        if peer is not None and (share_wants(self._peers.values(), self._drops) or peer.passed_on):
            self._change_interest()

    def audience_changed(self) -> None:
        """Note that others hear what is sent once for all, so that routes are decided anew."""
        self._version += 1

    def forget_origin(self, node: NodeId, sequence: int) -> None:
        """Forget what a node said in other lives, as :meth:`StreamTable.forget_origin` does."""
        self._table.forget_origin(node, sequence)

    def receive_interest(self, interest: Interest, node: NodeId, now: int, utc_now: int) -> None:
        """Note what a neighbour wants. Other neighbours may have to be asked on its behalf."""
        peer = self._peers.get(node)
        if peer is None:
            return
        if (taken := self._uptake.receive(interest, peer, now, utc_now)) is not None:
            self._hold(taken, now)
        self._plan()

    def _hold(self, taken: TakenUp, now: int) -> None:
        """Let an Interest count. What follows from a large one has calls of its own."""
        peer = taken.peer
        before, passed_on = peer.held, [other.passed_on for other in self._peers.values()]
        peer.asked, peer.without_place = taken.asked, 0
        if not share_wants(self._peers.values(), self._drops):
            return
        self._version += 1
        wanted = newly_wanted(before, peer.held)
        if wanted.own or wanted.others:
            self._history.ask(peer, wanted, self._table.all(), now, taken.utc_now)
            if taken.at_once:
                self._history.serve(now)
        if passed_on != [other.passed_on for other in self._peers.values()]:  # others may have given way
            self._interests.change()
            if taken.at_once:
                self.interest_changed = True
            else:
                self._interests.due_ns = now

    # --- the hot path ----------------------------------------------------------------------------------------------
    def publish(
        self, publication: Publication, value: object, where: Position | None, when: EventTime | None, now: int,
        utc_now: int,
    ) -> tuple[Put, Delivery | None, bytes]:  # fmt: skip
        """Publish one value of this node. ``where``: None for the position of the publication. The last item that it
        returns is the result of ``encode_alone``, so that a caller that keeps the reading need not encode it again.

        :raises NotPermitted: when the access table denies it. :raises ContextMissing: without where or when.
        :raises ValueUnsupported: when ``value`` can't travel (with hops, whether or not a neighbour is there), or a
            number of its context is out of range (NaN is).
        """
        if where is None:
            where = publication.where
        stream = self._own_stream(publication, where, when, now)
        key, priority, lifespan_ms = publication.key, publication.priority, publication.lifespan_ms
        sequence = self.next_sequence
        reading = Reading(
            key, self._node, sequence, value, where, when, publication.how, priority, lifespan_ms,  # type: ignore[arg-type]
            publication.hops,
        )  # fmt: skip
        data = encode_alone(reading)
        sent = data if not publication.hops else self._authorship.sign(reading, data, bool(stream.routes))
        kind = type(value)
        if kind not in IMMUTABLE:
            reading = decode_alone(data)
        self.next_sequence = sequence + 1
        if stream.size == len(data) and not stream.missed and (kind in SMALL or kind is bytes is stream.kind):
            stream.newest, stream.last, stream.last_ns = sequence, reading, now
        else:
            self._table.note(stream, reading, len(data), now)
        self._published += 1
        queued = dropped = 0
        if stream.routes:
            touched, bulk = self._touched, len(sent) > _BULK_THRESHOLD_BYTES
            expires_ns = now + expiry_utc_ns(reading) - utc_now if lifespan_ms else NEVER
            for route in stream.routes if not stream.shared or len(sent) > _MAX_SHARED_BYTES else stream.shared:
                if route.min_interval_ns and not self._queueing.is_due(route, key, now):
                    dropped += route.count
                    continue
                queue = self._queueing.bulk_of(route.peer) if bulk else route.realtime
                if not queue.touched:
                    queue.touched = True
                    touched.append(queue)
                if queue.put_reading(key, sent, priority, expires_ns, route.conflate, route.every):
                    queued += route.count
                else:
                    dropped += route.count
        numbers = stream.numbers if not stream.limited else (*stream.numbers, *due_now(stream, now, self._drops))
        return Put(sequence, len(numbers), queued, dropped), (numbers, reading) if numbers else None, data

    def publish_many(
        self, publication: Publication, values: Sequence[object], where: Position | None, whens: Sequence[EventTime],
        now: int, utc_now: int,
    ) -> tuple[PutMany, list[Delivery]]:  # fmt: skip
        """Publish several values of one publication, oldest first, each with its own time. If one of them raises, none
        is published.

        What is the same for all is decided once, and neighbours without a rate limit get them in common frames.

        :raises: as :meth:`publish`.
        """
        if len(values) == 0 or len(values) != len(whens):
            raise ValueUnsupported(f"{len(values)} values with {len(whens)} times: pass one or more, with a time each")
        if where is None:
            where = publication.where
        stream = self._own_stream(publication, where, whens[0], now)
        key, how = publication.key, publication.how
        priority, lifespan_ms, hops = publication.priority, publication.lifespan_ms, publication.hops
        checked = whens[0]
        for when in whens:
            if when is not checked:  # most often all have the same time
                check_time(when)
        first = self.next_sequence
        readings = [
            Reading(key, self._node, sequence, value, where, when, how, priority, lifespan_ms, hops)  # type: ignore[arg-type]
            for sequence, (value, when) in enumerate(zip(values, whens, strict=True), first)
        ]
        parcels = parcels_of(readings)
        if hops:
            is_wanted = bool(stream.routes)
            parcels = [(self._authorship.sign(parcel[-1], data, is_wanted), parcel) for data, parcel in parcels]
        self.next_sequence = first + len(readings)
        kept, queued = [reading for parcel in parcels for reading in parcel[1]], 0
        self._table.note(stream, kept[-1], 0, now)
        self._published += len(kept)
        largest = max([len(data) for data, _ in parcels]) if stream.shared else 0
        for route in stream.routes if not stream.shared or largest > _MAX_SHARED_BYTES else stream.shared:
            queued += route.count * self._queueing.put_parcels(route, parcels, now, utc_now)
        deliveries: list[Delivery] = []
        for reading in kept if stream.numbers or stream.limited else ():
            numbers = stream.numbers if not stream.limited else (*stream.numbers, *due_now(stream, now, self._drops))
            if numbers:
                deliveries.append((numbers, reading))
        return PutMany(first, len(kept), queued, len(kept) * len(stream.routes) - queued), deliveries

    def _own_stream(self, publication: Publication, where: Position | None, when: EventTime | None, now: int) -> Stream:
        """The stream that a publication goes to. It raises what :meth:`publish` raises, except for the value."""
        key = publication.key
        self._checked_where = checked_context(key, where, when, self._checked_where)
        stream = self._streams.get((self._node, key))
        if stream is None:
            stream = Stream(self._node, key, self._node)
            self._table.keep(stream, now)
        if stream.version != self._version:
            self._decide(stream, self._role)
        if stream.routes_version != self._version:
            decide_routes(stream, self._peers.values(), self._version, own=True)
            if self.share is not None:
                self.share(stream)
        if not stream.permitted:
            raise NotPermitted(f"the access table does not let {self._role.value} {self._node} publish on {key!r}")
        return stream

    def accept(  # calls cost too much here
        self, readings: tuple[Reading, ...], source: NodeId, source_role: Role, now: int, utc_now: int,
        uncertainty_ns: int,
    ) -> list[Delivery]:  # fmt: skip
        """Take readings of a neighbour itself, without a signature. Returns what to deliver here."""
        deliveries: list[Delivery] = []
        peer = self._peers.get(source)
        stream = None if peer is None else peer.recent  # most often it is the same again
        for reading in readings:
            key, origin, sequence, value = reading.key, reading.origin, reading.sequence, reading.value
            if origin != source:
                self._drops.count(source, "*", "echo" if origin == self._node else "unsigned")
                continue
            if stream is None or key != stream.key or stream.version != self._version:
                stream = self._streams.get((origin, key))
                if stream is None or stream.version != self._version:
                    stream = self._admit(stream, reading, source, source_role, peer, now)
                    if stream is None:
                        continue
            if sequence <= stream.newest:
                self._drops.count(source, key, "stale")
                continue
            lifespan_ms, when = reading.lifespan_ms, reading.when
            if lifespan_ms and utc_now > when.utc_ns + when.uncertainty_ns + lifespan_ms * _MS + uncertainty_ns:
                self._drops.count(source, key, "expired")
                continue
            kind = type(value)
            size = SMALL_SIZE if kind in SMALL else len(value) if kind is bytes else -2
            how = reading.how
            if size == stream.size and not stream.missed and (how is stream.how or how == stream.how):
                stream.newest, stream.last, stream.last_ns = sequence, reading, now
            else:
                if stream.missed and not self._work.may_watch(peer, len(stream.missed), now):
                    self._drops.count(source, key, "over_rate")
                    continue
                self._table.note(stream, reading, 0, now)
            numbers = stream.numbers if not stream.limited else (*stream.numbers, *due_now(stream, now, self._drops))
            if numbers:
                deliveries.append((numbers, reading))
        if peer is not None:
            peer.recent = stream
        self._accepted += len(readings)
        self._delivered += len(deliveries)
        return deliveries

    def accept_signed(
        self, frame: SignedReadings, source: NodeId, source_role: Role, now: int, utc_now: int, uncertainty_ns: int
    ) -> list[Delivery]:  # fmt: skip
        """Take a signed parcel from a neighbour. Returns what to deliver here; what is passed on to others is queued.
        Readings of the neighbour itself are delivered without a check of the signature."""
        readings = self._authorship.untrusted_readings(frame, source, now)
        if not readings:
            return []
        newest, version = readings[-1], self._version
        if newest.origin != source:
            deliveries = self._hearsay.accept(frame, readings, source, version, now, utc_now, uncertainty_ns)
            self._accepted += len(readings)
            self._delivered += len(deliveries)
            return deliveries
        stream = self._streams.get((source, newest.key))
        before = -1 if stream is None else stream.newest
        deliveries = self.accept(readings, source, source_role, now, utc_now, uncertainty_ns)
        stream = self._streams.get((source, newest.key))
        if newest.hops and stream is not None and before < stream.newest == newest.sequence:
            if stream.routes_version != version:
                self._decide_routes(stream, self._peers.get(source), now)
            signed = self._authorship.keep(frame, newest, source, proven=False)
            self._queueing.pass_on(stream.routes, newest, len(readings), signed, now, utc_now)
        return deliveries

    def _admit(
        self, stream: Stream | None, reading: Reading, source: NodeId, source_role: Role, peer: Peer | None, now: int
    ) -> Stream | None:
        """The stream of a reading of ``source`` itself, decided anew. None when access denies it, which is counted."""
        if stream is None:
            if not self._work.is_allowed(peer, is_new=True, routes=False, now=now):
                self._drops.count(source, "*", "over_rate")
                return None
            try:
                checked_key(reading.key)
            except InvalidKey:
                self._drops.count(source, "*", "invalid_key")
                return None
            fresh = Stream(source, reading.key, source)
        else:
            fresh = stream
        self._decide(fresh, source_role)
        if not fresh.permitted:
            self._drops.count(source, reading.key, "denied")
            if stream is not None:
                self._table.drop(stream)
            return None
        if stream is None:
            self._table.keep(fresh, now)
        self._table.charge(fresh, source)
        if peer is not None and self._hearsay.is_late(reading, peer, now):
            near = [subscription for subscription in self._subscriptions.values() if not subscription.quality.hops]
            decide_subscribers(fresh, near, own=False)
            fresh.version, fresh.is_decided = -1, False  # the next reading is decided anew
        return fresh

    # --- decisions kept per stream ---------------------------------------------------------------------------------
    def _decide(self, stream: Stream, role: Role) -> None:
        """Decide anew all but the routes. ``role``: that of the origin."""
        origin = NodeId(stream.origin)
        if role is not stream.role or stream.version < 0:  # the table of access itself never changes
            stream.role = role
            stream.permitted = self._access.permits_publish(role, origin, stream.key)
        if not stream.is_decided:
            decide_subscribers(stream, self._subscriptions.values(), origin == self._node)
            stream.is_decided = True
        stream.version = self._version

    def _decide_routes(self, stream: Stream, payer: Peer | None, now: int) -> None:
        """Decide anew which neighbours get a stream of a neighbour, unless its allowance is used up. Then the decision
        before holds on."""
        if self._work.is_allowed(payer, is_new=False, routes=True, now=now):
            decide_routes(stream, self._peers.values(), self._version, own=False)
        elif stream.routes_version < 0:
            self._drops.count(stream.origin, stream.key, "over_rate")
        else:  # nobody empties the queues of neighbours that are gone
            stream.routes = tuple(route for route in stream.routes if self._peers.get(route.peer.node) is route.peer)

    def wanted_by(self, expression: str) -> list[NodeId]:
        """Neighbours that want some key which ``expression`` matches."""
        return [
            p.node for p in self._peers.values() if any(intersects(one.want.expression, expression) for one in p.held)
        ]

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Report streams that missed a deadline, and do one part of what was put off. The next part has another call,
        so that readings come between."""
        if self._deadlines.due_ns > now:
            return
        self._events.extend(self._deadlines.missed(now))
        if self._history.due_ns <= now:
            self._history.serve(now)
        elif self._interests.due_ns <= now:
            self._interests.due_ns = NEVER
            self.interest_changed = True
        elif self._uptake.due_ns <= now and (taken := self._uptake.go_on(self._peers, now)) is not None:
            self._hold(taken, now)
        self._plan(now + _MS)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest."""
        return self._deadlines.due_ns

    def _plan(self, earliest_ns: int = -NEVER) -> None:
        """Note when the next of what was put off is due."""
        self._deadlines.plan(max(earliest_ns, min(self._history.due_ns, self._uptake.due_ns, self._interests.due_ns)))

    def events(self) -> list[DeadlineMissed | ReadingRefused]:
        """Events decided since the last call."""
        events: list[DeadlineMissed | ReadingRefused] = [*self._events, *self._authorship.events]
        self._events.clear()
        self._authorship.events.clear()
        return events
