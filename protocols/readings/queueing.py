"""How readings get into the queues of neighbours, except for the loop that ``Router.publish`` writes out itself.

A reading that a neighbour does not get, because of its rate limit or because it is too large for a frame, is counted.
"""

from typing import Final

from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.queues import Drops, LaneQueue
from protocols.readings.streams import Peer, Route, expiry_utc_ns, one_hop_less
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import Reading

_BULK_THRESHOLD_BYTES: Final = limits.BULK_THRESHOLD_BYTES


class Queueing:
    """Puts the readings of one router into the queues."""

    __slots__ = ("_drops", "_touched", "_wanted", "forwarded")

    def __init__(self, drops: Drops, touched: list[LaneQueue], wanted: list[NodeId]) -> None:
        """``touched`` and ``wanted`` are those of the router."""
        self._drops, self._touched, self._wanted = drops, touched, wanted
        self.forwarded = 0
        """How many times a reading of another node was queued for a neighbour."""

    def bulk_of(self, peer: Peer) -> LaneQueue:
        """The queue of a neighbour's bulk lane, which is dialled when it is not open."""
        if not peer.bulk.dial:
            self._wanted.append(peer.node)
        return peer.bulk

    def is_due(self, route: Route, key: str, now: int) -> bool:
        """Whether the rate limit of a route lets a reading pass now. If so, the reading counts towards the limit."""
        if now - route.last_ns < route.min_interval_ns:
            self._drops.count(route.peer.node, key, "rate_limited")
            return False
        route.last_ns = now
        return True

    def put(
        self, peer: Peer, reading: Reading, data: bytes, conflate: bool, now: int, utc_now: int, count: int = 1
    ) -> bool:
        """Queue the frame ``data`` of ``count`` readings, whose newest is ``reading``. False: it was dropped."""
        expires_ns = NEVER
        if reading.lifespan_ms:
            expires_ns = now + expiry_utc_ns(reading) - utc_now
        queue = self.bulk_of(peer) if len(data) > _BULK_THRESHOLD_BYTES else peer.realtime
        if not queue.touched:
            queue.touched = True
            self._touched.append(queue)
        return queue.put_reading(reading.key, data, reading.priority, expires_ns, conflate, count)

    def put_parcels(self, route: Route, parcels: list[tuple[bytes, list[Reading]]], now: int, utc_now: int) -> int:
        """Queue for one neighbour what was published together. Returns how many readings were queued."""
        peer, queued = route.peer, 0
        for data, readings in parcels:
            if len(readings) == 1 or not (route.min_interval_ns or route.conflate):
                if route.min_interval_ns and not self.is_due(route, readings[0].key, now):
                    continue
                if self.put(peer, readings[-1], data, route.conflate, now, utc_now, len(readings)):
                    queued += len(readings)
                continue
            for reading in readings:
                if route.min_interval_ns and not self.is_due(route, reading.key, now):
                    continue
                queued += self.put(peer, reading, encode_alone(reading), route.conflate, now, utc_now)
        return queued

    def put_past(self, peer: Peer, reading: Reading, now: int, utc_now: int) -> None:
        """Queue a last known value for a neighbour that has just asked for it."""
        data = self._encoded_again(reading, peer.node)
        if data is not None:
            self.put(peer, reading, data, False, now, utc_now)

    def pass_on(self, routes: tuple[Route, ...], reading: Reading, source: NodeId, now: int, utc_now: int) -> None:
        """Queue a reading from ``source`` for further neighbours, with one hop less."""
        passed_on = one_hop_less(reading)
        data: bytes | None = None
        for route in routes:
            node = route.peer.node
            if node == source or node == reading.origin:
                continue
            if data is None:
                data = self._encoded_again(passed_on, node)
                if data is None:
                    break
            if route.min_interval_ns and not self.is_due(route, reading.key, now):
                continue
            self.forwarded += self.put(route.peer, passed_on, data, route.conflate, now, utc_now)

    def _encoded_again(self, reading: Reading, peer: NodeId) -> bytes | None:
        """The reading, encoded again to be passed on. None: it is now too large for a frame, which is counted. It can
        grow, because numbers of single precision are encoded in double precision here."""
        try:
            return encode_alone(reading)
        except ValueUnsupported:
            self._drops.count(peer, reading.key, "too_large")
            return None
