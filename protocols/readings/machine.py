"""The routing table of readings: who wants what, who gets it, and what happened to the rest.

:meth:`Router.publish` and :meth:`Router.accept` are the hot path. Everything that can be decided per (origin, key) is
decided once and kept in a :class:`Stream`. A change of interests makes these decisions stale by raising a version
number: own subscriptions have one, and all interests together have another.

Rules:
1. A reading goes only to neighbours whose Interest matches its key, never back to its source or its origin.
2. Within a stream only larger sequences are accepted: duplicates and late-comers are dropped and counted as ``stale``.
3. A reading older than its lifespan, by the sum of both clocks' uncertainties, is dropped and counted as ``expired``.
4. The access table decides who may be the origin of a key; what it denies is dropped and counted as ``denied``, and
   takes no place in any table.
5. While a stream comes directly from its origin, copies of it from others are ``stale``. Only the neighbour that passed
   a copy on vouches for it, so a copy must not silence its origin by a made-up sequence.
6. The value that is kept and delivered is the value that was sent, even if its publisher changes it afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import BoundExceeded, ContextMissing, InvalidKey, InvalidName, NotPermitted, ValueUnsupported
from protocols.base.ids import NodeId, Role, node_id
from protocols.base.keys import checked_expression, checked_key, intersects, matches
from protocols.base.time import NEVER
from protocols.links.queues import Drops, LaneQueue
from protocols.readings.cache import SMALL, SMALL_BYTES, LastValues
from protocols.readings.deadlines import Deadlines
from protocols.readings.events import DeadlineMissed, Delivery, Put, PutMany, ReadingRefused
from protocols.readings.forwarding import Forwarding
from protocols.readings.interest import decide_routes, decide_subscribers, permitted_wants, wants_to_ask_for
from protocols.readings.publication import Publication
from protocols.readings.quality import Quality
from protocols.readings.queueing import Queueing
from protocols.readings.signing.authorship import Authorship, of_nobody
from protocols.readings.signing.seal import Certified, ReadingSeal
from protocols.readings.streams import (
    IMMUTABLE,
    LocalSubscription,
    Peer,
    Stream,
    check_time,
    expiry_utc_ns,
    one_hop_less,
    parcels_of,
)
from protocols.wire.parcels import decode_alone, encode_alone
from protocols.wire.readings import FRAMES, EventTime, Interest, Position, Reading, SignedReadings, check_position

_HEARSAY_LEAD: Final = 1_024
"""How far copies may run ahead of their origin. Copies that are further ahead were made up, and the origin is right."""
_MS: Final = limits.MS
_BULK_THRESHOLD_BYTES: Final = limits.BULK_THRESHOLD_BYTES


class Router:
    """The machine of one node. The engine calls it directly, because nothing is as frequent. Of
    :class:`~protocols.machine.Machine` it has the parts that concern readings."""

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
        self._node, self._role, self._sequence, self._access, self._drops = node, role, first_sequence, access, drops
        self._streams: dict[tuple[str, str], Stream] = {}
        self._peers: dict[NodeId, Peer] = {}
        self._subscriptions: dict[int, LocalSubscription] = {}
        self._next_subscription = 1
        self._version = self._numbers_version = 0
        self._interest_version = 0
        self._last_values = LastValues()
        self._deadlines = Deadlines(self._subscriptions, self._streams)
        self._checked_where: Position | None = None
        self.interest_changed = False
        """Whether neighbours must be told :meth:`interest_for` them again. The caller that does it clears this."""
        self._events: list[DeadlineMissed] = []
        self._touched = touched
        self._authorship = Authorship(node, drops, seal, certificate_of)
        self._queueing = Queueing(drops, touched, wanted, self._authorship)
        self._forwarding = Forwarding(
            node, self._streams, self._peers, drops, self._authorship, self._queueing
        )  # fmt: skip
        self._published = self._accepted = self._delivered = self._forwarded = 0

    def counters(self) -> dict[str, int]:
        """Counters by name, which only grow."""
        return {
            "published": self._published, "accepted": self._accepted, "delivered": self._delivered,
            "forwarded": self._forwarded, **self._authorship.counters(),
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
        self._subscriptions[number] = LocalSubscription(number, expression, quality)
        self._version += 1
        self._numbers_version += 1
        self.interest_changed = True
        past = []
        for stream in self._streams.values():
            if matches(expression, stream.key):
                if quality.deadline_ns:
                    self._deadlines.watch(number, stream, max(now, stream.last_ns) + quality.deadline_ns)
                if quality.history and stream.last is not None and (quality.own or stream.origin != self._node):
                    past.append(stream.last)
        return number, past

    def unsubscribe(self, number: int) -> None:
        """Remove a subscription. Unknown numbers are ignored."""
        if self._subscriptions.pop(number, None) is not None:
            self._version += 1
            self._numbers_version += 1
            self.interest_changed = True

    def interest_for(self, peer: NodeId) -> Interest:
        """What to ask of ``peer``: own subscriptions, and what other neighbours asked this node to ask for."""
        self._interest_version += 1
        others = (wanted for other in self._peers.values() if other.node != peer for wanted in other.wants)
        return Interest(self._interest_version, wants_to_ask_for(self._subscriptions.values(), others))

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
        if peer is not None and any(want.hops for want in peer.wants):
            self.interest_changed = True

    def forget_origin(self, node: NodeId) -> None:
        """Forget the streams of a node that began a new life, because its sequences may be smaller now."""
        for stream in [s for s in self._streams.values() if s.origin == node]:
            self._drop_stream(stream)

    def receive_interest(self, interest: Interest, node: NodeId, now: int, utc_now: int) -> None:
        """Note what a neighbour wants. Other neighbours may have to be asked on its behalf."""
        peer = self._peers.get(node)
        if peer is None or interest.version <= peer.interest_version:  # a large one was overtaken
            return
        peer.interest_version = interest.version
        before, wants = peer.wants, permitted_wants(interest, node, peer.role, self._access, self._drops)
        if before == wants:
            return
        peer.wants = wants
        self._version += 1
        old = {want.expression for want in before}
        fresh = [want.expression for want in wants if want.history and want.expression not in old]
        if fresh:
            self._send_history(peer, fresh, now, utc_now)
        if any(want.hops for want in (*before, *wants)):
            self.interest_changed = True

    def _send_history(self, peer: Peer, expressions: list[str], now: int, utc_now: int) -> None:
        for stream in list(self._streams.values()):
            reading = stream.last
            if reading is None or stream.origin == peer.node:
                continue
            own = stream.origin == self._node
            if (own or reading.hops) and any(matches(expression, stream.key) for expression in expressions):
                if not reading.lifespan_ms or utc_now < expiry_utc_ns(reading):
                    self._queueing.put_past(peer, reading if own else one_hop_less(reading), now, utc_now)

    # --- the hot path ----------------------------------------------------------------------------------------------
    def publish(
        self, publication: Publication, value: object, where: Position | None, when: EventTime | None, now: int,
        utc_now: int,
    ) -> tuple[Put, Delivery | None, bytes]:  # fmt: skip
        """Publish one value of this node. ``where``: None for the position of the publication. The last item that it
        returns is the result of ``encode_alone``, so that a caller that keeps the reading need not encode it again.

        :raises NotPermitted: when the access table denies it. :raises ContextMissing: without where or when.
        :raises ValueUnsupported: when ``value`` can't travel, or a number of its context is out of range (NaN is).
        """
        if where is None:
            where = publication.where
        stream = self._own_stream(publication, where, when, now)
        key, priority, lifespan_ms = publication.key, publication.priority, publication.lifespan_ms
        sequence = self._sequence
        reading = Reading(
            key, self._node, sequence, value, where, when, publication.how, priority, lifespan_ms,  # type: ignore[arg-type]
            publication.hops,
        )  # fmt: skip
        data = encode_alone(reading)
        sent = data if not publication.hops or not stream.routes else self._authorship.sign(reading, data)
        kind = type(value)
        if kind not in IMMUTABLE:
            reading = decode_alone(data)
        self._sequence = sequence + 1
        if stream.held_bytes == len(data) and not stream.missed and kind in SMALL:
            stream.newest, stream.last, stream.last_ns = sequence, reading, now
        else:
            self._note(stream, reading, len(data), now)
        self._published += 1
        queued = dropped = 0
        if stream.routes:
            touched, bulk = self._touched, len(sent) > _BULK_THRESHOLD_BYTES
            expires_ns = now + expiry_utc_ns(reading) - utc_now if lifespan_ms else NEVER
            for route in stream.routes:
                if route.min_interval_ns and not self._queueing.is_due(route, key, now):
                    dropped += 1
                    continue
                queue = self._queueing.bulk_of(route.peer) if bulk else route.peer.realtime
                if not queue.touched:
                    queue.touched = True
                    touched.append(queue)
                if queue.put_reading(key, sent, priority, expires_ns, route.conflate):
                    queued += 1
                else:
                    dropped += 1
        numbers = stream.numbers if not stream.limited else (*stream.numbers, *self._limited(stream, now))
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
        first = self._sequence
        readings = [
            Reading(key, self._node, sequence, value, where, when, how, priority, lifespan_ms, hops)  # type: ignore[arg-type]
            for sequence, (value, when) in enumerate(zip(values, whens, strict=True), first)
        ]
        parcels = parcels_of(readings)
        if hops and stream.routes:
            parcels = [(self._authorship.sign(parcel[-1], data), parcel) for data, parcel in parcels]
        self._sequence = first + len(readings)
        kept = [reading for parcel in parcels for reading in parcel[1]]
        self._note(stream, kept[-1], 0, now)
        self._published += len(kept)
        queued = 0
        for route in stream.routes:
            queued += self._queueing.put_parcels(route, parcels, now, utc_now)
        deliveries: list[Delivery] = []
        for reading in kept if stream.numbers or stream.limited else ():
            numbers = stream.numbers if not stream.limited else (*stream.numbers, *self._limited(stream, now))
            if numbers:
                deliveries.append((numbers, reading))
        return PutMany(first, len(kept), queued, len(kept) * len(stream.routes) - queued), deliveries

    def _own_stream(self, publication: Publication, where: Position | None, when: EventTime | None, now: int) -> Stream:
        """The stream that a publication goes to. It raises what :meth:`publish` raises, except for the value."""
        key = publication.key
        if where is None:
            raise _without(key, "where", "Set [node] position, or pass where=")
        if where is not self._checked_where:
            check_position(where)
            self._checked_where = where
        if when is None:
            raise _without(key, "when", "Pass when=")
        check_time(when)
        stream = self._streams.get((self._node, key))
        if stream is None:
            stream = self._keep_stream(Stream(self._node, key), now)
        if stream.version != self._version:
            self._decide(stream, self._role)
        if stream.routes_version != self._version:
            decide_routes(stream, self._peers.values(), self._version)
        if not stream.permitted:
            raise NotPermitted(f"the access table does not let {self._role.value} {self._node} publish on {key!r}")
        return stream

    def accept(  # noqa: C901, PLR0912  # calls cost too much here
        self, readings: tuple[Reading, ...], source: NodeId, source_role: Role, now: int, utc_now: int,
        uncertainty_ns: int, proven: Role | None = None,
    ) -> list[Delivery]:  # fmt: skip
        """Take readings from a neighbour. ``proven``: the role of their origin, if it is another node and has signed
        them. Returns what to deliver here."""
        deliveries: list[Delivery] = []
        peer = self._peers.get(source)
        stream = peer.recent if peer is not None else None  # most often it is the same again
        for reading in readings:
            key, origin, sequence, value = reading.key, reading.origin, reading.sequence, reading.value
            if stream is None or key != stream.key or origin != stream.origin or stream.version != self._version:
                stream = self._streams.get((origin, key))
                if stream is None or stream.version != self._version:
                    stream = self._admit(stream, reading, source, source_role, proven, now)
                    if stream is None:
                        continue
            if origin == source:
                if stream.direct is not peer:
                    stream.direct = peer
                    if sequence + _HEARSAY_LEAD < stream.newest:
                        stream.newest = -1
            elif origin == self._node:
                self._drops.count(source, key, "echo")
                continue
            elif proven is None:
                self._drops.count(source, key, "unsigned")
                continue
            elif stream.direct is not None and stream.direct is self._peers.get(NodeId(origin)):
                self._drops.count(source, key, "stale")
                continue
            if sequence <= stream.newest:
                self._drops.count(source, key, "stale")
                continue
            lifespan_ms, when = reading.lifespan_ms, reading.when
            if lifespan_ms and utc_now > when.utc_ns + when.uncertainty_ns + lifespan_ms * _MS + uncertainty_ns:
                self._drops.count(source, key, "expired")
                continue
            kind = type(value)
            held_bytes = SMALL_BYTES if kind in SMALL else len(value) if kind is bytes else -1
            if held_bytes == stream.held_bytes and not stream.missed:
                stream.newest, stream.last, stream.last_ns = sequence, reading, now
            else:
                self._note(stream, reading, 0, now)
            numbers = stream.numbers if not stream.limited else (*stream.numbers, *self._limited(stream, now))
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
        parcel = self._forwarding.take(frame, source, now, utc_now - uncertainty_ns)
        if parcel is None:
            return []
        deliveries = self.accept(parcel.readings, source, source_role, now, utc_now, uncertainty_ns, parcel.proven)
        self._forwarded += self._forwarding.pass_on(parcel, self._version, now, utc_now)
        return deliveries

    def _admit(
        self, stream: Stream | None, reading: Reading, source: NodeId, source_role: Role, proven: Role | None, now: int
    ) -> Stream | None:
        """The stream of a reading from ``source``, decided anew. None when access denies it, which is counted."""
        if reading.origin == self._node:
            self._drops.count(source, reading.key if stream is not None else "*", "echo")
            return None
        if stream is None:
            try:
                checked_key(reading.key)
                node_id(reading.origin)  # a wildcard as origin would match every access rule
            except (InvalidKey, InvalidName):
                self._drops.count(source, "*", "invalid_key")
                return None
            fresh = Stream(reading.origin, reading.key)
        else:
            fresh = stream
        if reading.origin != source and proven is None:
            self._drops.count(source, "*" if stream is None else reading.key, "unsigned")
            return None
        self._decide(fresh, source_role if reading.origin == source else proven)
        if not fresh.permitted:
            self._drops.count(source, reading.key, "denied")
            if stream is not None:
                self._drop_stream(stream)
            return None
        if stream is None:
            self._keep_stream(fresh, now)
        return fresh

    def _note(self, stream: Stream, reading: Reading, size_bytes: int, now: int) -> None:
        """Keep the newest reading of a stream. ``size_bytes``: of the encoded reading; 0: it is not known."""
        stream.newest, stream.last_ns = reading.sequence, now
        if stream.missed:
            self._deadlines.watch_again(stream, now)
        self._last_values.keep(stream, reading, size_bytes)

    def _limited(self, stream: Stream, now: int) -> list[int]:
        due = []
        for subscription in stream.limited:
            last_ns = stream.limited_last.get(subscription.number, -NEVER)
            if now - last_ns >= subscription.quality.min_interval_ns:
                stream.limited_last[subscription.number] = now
                due.append(subscription.number)
            else:
                self._drops.count("", stream.key, "rate_limited")
        return due

    # --- decisions kept per stream ---------------------------------------------------------------------------------
    def _keep_stream(self, stream: Stream, now: int) -> Stream:
        if len(self._streams) >= limits.MAX_STREAMS:
            self._drop_stream(next(iter(self._streams.values())))
        self._streams[stream.origin, stream.key] = stream
        stream.last_ns = now
        for subscription in self._subscriptions.values():
            if subscription.quality.deadline_ns and matches(subscription.expression, stream.key):
                self._deadlines.watch(subscription.number, stream, now + subscription.quality.deadline_ns)
        return stream

    def _drop_stream(self, stream: Stream) -> None:
        del self._streams[stream.origin, stream.key]
        stream.version = -1  # a neighbour may have it as its most recent one
        self._last_values.forget(stream)

    def _decide(self, stream: Stream, role: Role | None) -> None:
        """Decide anew all but the routes. ``role``: that of the origin when the caller knows it."""
        origin = NodeId(stream.origin)
        if role is None and origin in self._peers:
            role = self._peers[origin].role
        if role is not stream.role or stream.version < 0:  # the table of access itself never changes
            stream.role = role
            if role is not None:
                stream.permitted = self._access.permits_publish(role, origin, stream.key)
            else:
                stream.permitted = self._access.permits_origin(origin, stream.key)
        if stream.numbers_version != self._numbers_version:
            decide_subscribers(stream, self._subscriptions.values(), origin == self._node)
            stream.numbers_version = self._numbers_version
        stream.version = self._version

    def wanted_by(self, expression: str) -> list[NodeId]:
        """Neighbours that want some key which ``expression`` matches."""
        return [p.node for p in self._peers.values() if any(intersects(w.expression, expression) for w in p.wants)]

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Report streams that missed a deadline."""
        if self._deadlines.due_ns <= now:
            self._events.extend(self._deadlines.missed(now))

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest."""
        return self._deadlines.due_ns

    def events(self) -> list[DeadlineMissed | ReadingRefused]:
        """Events decided since the last call."""
        events: list[DeadlineMissed | ReadingRefused] = [*self._events, *self._authorship.events]
        self._events.clear()
        self._authorship.events.clear()
        return events


def _without(key: str, what: str, advice: str) -> ContextMissing:
    return ContextMissing(
        f"a reading on {key!r} has no {what!r}: a value without its context is of no use to others. {advice}"
    )
