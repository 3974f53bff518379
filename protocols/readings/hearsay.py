"""Readings that a neighbour passes on for their origin.

Only the neighbour that passed a reading on vouches for it. So hearsay is accepted only where this node asked for it:
for subscriptions with hops, and for the wants of other neighbours that may travel further. It is never delivered to
a subscription without hops, and it never counts for an origin that is a neighbour itself.
"""

from collections.abc import Callable

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import InvalidKey, InvalidName
from protocols.base.ids import NodeId, node_id
from protocols.base.keys import checked_key
from protocols.links.queues import Drops
from protocols.readings.events import Delivery
from protocols.readings.interest import decide_routes, decide_subscribers
from protocols.readings.queueing import Queueing
from protocols.readings.streams import LocalSubscription, Peer, Stream
from protocols.readings.table import StreamTable
from protocols.readings.work import Work
from protocols.wire.readings import Reading


class Hearsay:
    """Accepts hearsay for one router, whose tables it shares."""

    def __init__(
        self, node: NodeId, access: AccessTable, table: StreamTable, peers: dict[NodeId, Peer],
        subscriptions: dict[int, LocalSubscription], drops: Drops, queueing: Queueing, work: Work,
        limited: Callable[[Stream, int], list[int]],
    ) -> None:  # fmt: skip
        """``limited`` says which subscriptions with a rate limit get a reading of a stream now."""
        self._node, self._access, self._table, self._peers = node, access, table, peers
        self._subscriptions, self._drops, self._queueing, self._limited = subscriptions, drops, queueing, limited
        self._work = work

    def accept(
        self, reading: Reading, source: NodeId, version: int, now: int, utc_now: int, uncertainty_ns: int
    ) -> Delivery | None:
        """Take a reading whose origin is not ``source``. Returns what to deliver here. ``version`` is that of the
        router."""
        origin, key = reading.origin, reading.key
        if origin == self._node:
            self._drops.count(source, key, "echo")
            return None
        if origin in self._peers:  # what it says of itself counts
            self._drops.count(source, key, "stale")
            return None
        stream = self._table.hearsay.get((origin, key))
        if stream is None or stream.version != version:
            stream = self._admit(stream, reading, source, version, now)
            if stream is None:
                return None
        if reading.sequence <= stream.newest:
            self._drops.count(source, key, "stale")
            return None
        lifespan_ms, when = reading.lifespan_ms, reading.when
        if lifespan_ms and utc_now > when.utc_ns + when.uncertainty_ns + lifespan_ms * limits.MS + uncertainty_ns:
            self._drops.count(source, key, "expired")
            return None
        self._table.charge(stream, source)
        self._table.note(stream, reading, 0, now)
        if reading.hops and stream.routes:
            self._queueing.pass_on(stream.routes, reading, source, now, utc_now)
        numbers = stream.numbers if not stream.limited else (*stream.numbers, *self._limited(stream, now))
        return (numbers, reading) if numbers else None

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

    def _admit(self, stream: Stream | None, reading: Reading, source: NodeId, version: int, now: int) -> Stream | None:
        """The stream of a reading, decided anew. None when it is not accepted, which is counted."""
        origin, key = reading.origin, reading.key
        if not self._work.is_allowed(self._peers.get(source), stream is None, routes=True, now=now):
            self._drops.count(source, "*", "over_rate")
            return None
        fresh = stream
        if fresh is None:
            try:
                checked_key(key)
                node = node_id(origin)  # a wildcard as origin would match every access rule
            except (InvalidKey, InvalidName):
                self._drops.count(source, "*", "invalid_key")
                return None
            if not self._access.permits_origin(node, key):
                self._drops.count(source, key, "denied")
                return None
            fresh = Stream(origin, key, source, is_hearsay=True)
        if not fresh.is_decided:
            far = [subscription for subscription in self._subscriptions.values() if subscription.quality.hops]
            decide_subscribers(fresh, far, own=False)
            fresh.is_decided = True
        decide_routes(fresh, self._peers.values(), version, own=False)
        if not (fresh.numbers or fresh.limited or any(r.hops > 1 and r.peer.node != source for r in fresh.routes)):
            self._drops.count(source, key, "unasked")
            if stream is not None:
                self._table.drop(stream)
            return None
        if stream is None:
            known = self._table.first_hand.get((origin, key))
            if known is not None:
                fresh.newest = known.newest
            self._table.keep(fresh, now)
        fresh.version = version
        return fresh
