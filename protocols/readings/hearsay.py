"""Readings that a neighbour passes on for their origin, which has signed them.

Hearsay is accepted only where this node asked for it: for subscriptions with hops, and for the wants of other
neighbours that may travel further. It is never delivered to a subscription without hops, and it never counts for an
origin that is a neighbour itself. What is not asked for, old or expired is refused before its signature is checked.
"""

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import InvalidKey, InvalidName
from protocols.base.ids import NodeId, node_id
from protocols.base.keys import checked_key
from protocols.base.sequences import MAX_SEQUENCE
from protocols.links.drops import Drops
from protocols.readings.events import Delivery
from protocols.readings.interest import decide_routes, decide_subscribers
from protocols.readings.queueing import Queueing
from protocols.readings.signing.authorship import Authorship
from protocols.readings.streams import LocalSubscription, Peer, Stream, due_now
from protocols.readings.table import StreamTable
from protocols.readings.work import Work
from protocols.wire.readings import Reading, SignedReadings


class Hearsay:
    """Accepts hearsay for one router, whose tables it shares."""

    def __init__(
        self, node: NodeId, access: AccessTable, table: StreamTable, peers: dict[NodeId, Peer],
        subscriptions: dict[int, LocalSubscription], drops: Drops, queueing: Queueing, work: Work,
        authorship: Authorship,
    ) -> None:  # fmt: skip
        self._node, self._access, self._table, self._peers = node, access, table, peers
        self._subscriptions, self._drops, self._queueing = subscriptions, drops, queueing
        self._work, self._authorship = work, authorship

    def accept(
        self, frame: SignedReadings, readings: tuple[Reading, ...], source: NodeId, version: int, now: int,
        utc_now: int, uncertainty_ns: int,
    ) -> list[Delivery]:  # fmt: skip
        """Take the readings of a parcel whose origin is not ``source``, and pass it on. Returns what to deliver here.
        ``version`` is that of the router."""
        newest, latest_utc_ns = readings[-1], utc_now - uncertainty_ns
        key, origin = newest.key, newest.origin
        stream = self._table.hearsay.get((origin, key))
        refused = self._refusal(stream, newest, latest_utc_ns)
        if refused:
            self._drops.count(source, "*" if stream is None else key, refused, len(readings))
            return []
        is_new = stream is None
        if stream is None or stream.version != version:
            stream = self._decided(stream, newest, source, version, now, len(readings))
            if stream is None:
                return []
        if not self._is_proven(stream, newest, frame, source, now, len(readings)):
            if not is_new and not stream.permitted:
                self._table.drop(stream)
            return []
        if is_new:
            known = self._table.first_hand.get((origin, key))
            if known is not None and known.newest <= MAX_SEQUENCE:
                stream.newest = known.newest
            self._table.keep(stream, now)
        self._table.charge(stream, source)
        deliveries = self._deliveries(stream, readings, source, now, latest_utc_ns)
        if newest.hops and stream.newest == newest.sequence:
            signed = self._authorship.keep(frame, newest, source, proven=True)
            self._queueing.pass_on(stream.routes, newest, len(readings), signed, now, utc_now)
        return deliveries

    def _refusal(self, stream: Stream | None, newest: Reading, latest_utc_ns: int) -> str:
        """Why a parcel need not be looked at; empty: it must be."""
        if newest.origin == self._node:
            return "echo"
        if newest.origin in self._peers:  # what it says of itself counts
            return "stale"
        if (stream is not None and newest.sequence <= stream.newest) or newest.sequence > MAX_SEQUENCE:
            return "stale"
        return "expired" if latest_utc_ns > _ends_utc_ns(newest) else ""

    def _deliveries(
        self, stream: Stream, readings: tuple[Reading, ...], source: NodeId, now: int, latest_utc_ns: int
    ) -> list[Delivery]:  # fmt: skip
        deliveries: list[Delivery] = []
        for reading in readings:
            if reading.sequence <= stream.newest:
                self._drops.count(source, stream.key, "stale")
                continue
            if latest_utc_ns > _ends_utc_ns(reading):
                self._drops.count(source, stream.key, "expired")
                continue
            self._table.note(stream, reading, 0, now)
            numbers = stream.numbers if not stream.limited else (*stream.numbers, *due_now(stream, now, self._drops))
            if numbers:
                deliveries.append((numbers, reading))
        return deliveries

    def _is_proven(
        self, stream: Stream, newest: Reading, frame: SignedReadings, source: NodeId, now: int, count: int
    ) -> bool:  # fmt: skip
        """Whether the origin has signed a parcel, and its role lets it publish on the key. If not, it is counted."""
        origin = NodeId(newest.origin)
        role = self._authorship.proven_role(newest, frame, source, now, count)
        if role is None:
            return False
        if stream.role is not role:
            stream.role = role
            stream.permitted = self._access.permits_publish(role, origin, newest.key)
        if not stream.permitted:
            self._drops.count(source, newest.key, "denied", count)
        return stream.permitted

    def is_late(self, reading: Reading, peer: Peer, now: int) -> bool:
        """Whether a reading from its origin, a neighbour that came just now, is not newer than what others passed on.
        Otherwise nothing that they said counts any more."""
        copies = self._table.hearsay.get((reading.origin, reading.key))
        if copies is None:
            return False
        if reading.sequence <= copies.newest and now - peer.since_ns < limits.MEETING_NS:
            return True
        self._table.drop(copies)
        return False

    def _decided(
        self, stream: Stream | None, newest: Reading, source: NodeId, version: int, now: int, count: int
    ) -> Stream | None:  # fmt: skip
        """The stream of a parcel, decided anew, except whether its origin may publish. None when it is not accepted,
        which is counted. A new stream is not in the table yet."""
        origin, key = newest.origin, newest.key
        if not self._work.is_allowed(self._peers.get(source), stream is None, routes=True, now=now):
            self._drops.count(source, "*", "over_rate", count)
            return None
        fresh = stream
        if fresh is None:
            try:
                checked_key(key)
                node_id(origin)  # a wildcard as origin would match every access rule
            except (InvalidKey, InvalidName):
                self._drops.count(source, "*", "invalid_key", count)
                return None
            fresh = Stream(origin, key, source, is_hearsay=True)
        if not fresh.is_decided:
            far = [subscription for subscription in self._subscriptions.values() if subscription.quality.hops]
            decide_subscribers(fresh, far, own=False)
            fresh.is_decided = True
        decide_routes(fresh, self._peers.values(), version, own=False)
        if not (fresh.numbers or fresh.limited or any(r.hops > 1 and r.peer.node != source for r in fresh.routes)):
            self._drops.count(source, key, "unasked", count)
            if stream is not None:
                self._table.drop(stream)
            return None
        fresh.version = version
        return fresh


def _ends_utc_ns(reading: Reading) -> int:
    """When a reading that is passed on becomes worthless. One without a lifespan is passed on for
    ``MAX_LIFESPAN_MS``, so that nobody can replay it for ever."""
    when = reading.when
    return when.utc_ns + when.uncertainty_ns + (reading.lifespan_ms or limits.MAX_LIFESPAN_MS) * limits.MS
