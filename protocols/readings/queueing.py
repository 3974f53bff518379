"""How readings get into the queues of neighbours, except for the loop that ``Router.publish`` writes out itself.

A reading that a neighbour does not get, because of its rate limit or because its signature is not held, is counted.
What was published fits a frame, with its signature if it has hops, so putting it into one again can't fail.
"""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.readings.signing.authorship import Authorship
from protocols.readings.signing.held import Signed
from protocols.readings.streams import Peer, Route, one_hop_less
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import Reading, expiry_utc_ns

_BULK_THRESHOLD_BYTES: Final = limits.BULK_THRESHOLD_BYTES


class Queueing:
    """Puts the readings of one router into the queues."""

    __slots__ = ("_authorship", "_drops", "_node", "_touched", "_wanted", "forwarded")

    def __init__(
        self, node: NodeId, drops: Drops, touched: list[LaneQueue], wanted: list[NodeId], authorship: Authorship
    ) -> None:  # fmt: skip
        """``touched``, ``wanted`` and ``authorship`` are those of the router."""
        self._node = node
        self._drops, self._touched, self._wanted, self._authorship = drops, touched, wanted, authorship
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
        self, peer: Peer, reading: Reading, data: bytes, conflate: bool, every: bool, now: int, utc_now: int,
        count: int = 1,
    ) -> bool:  # fmt: skip
        """Queue the frame ``data`` of ``count`` readings, whose newest is ``reading``. False: it was dropped."""
        expires_ns = NEVER
        if reading.lifespan_ms:
            expires_ns = now + expiry_utc_ns(reading) - utc_now
        queue = self.bulk_of(peer) if len(data) > _BULK_THRESHOLD_BYTES else peer.realtime
        if not queue.touched:
            queue.touched = True
            self._touched.append(queue)
        origin = "" if reading.origin == self._node else reading.origin
        return queue.put_reading(reading.key, data, reading.priority, expires_ns, conflate, every, count, origin)

    def put_parcels(self, route: Route, parcels: list[tuple[bytes, list[Reading]]], now: int, utc_now: int) -> int:
        """Queue for one neighbour what was published together. Returns how many readings were queued."""
        peer, queued = route.peer, 0
        for data, readings in parcels:
            if len(readings) == 1 or not (route.min_interval_ns or route.conflate):
                if route.min_interval_ns and not self.is_due(route, readings[0].key, now):
                    continue
                if self.put(peer, readings[-1], data, route.conflate, route.every, now, utc_now, len(readings)):
                    queued += len(readings)
                continue
            if readings[-1].hops:
                queued += self._put_newest(route, readings, now, utc_now)
                continue
            for reading in readings:
                if route.min_interval_ns and not self.is_due(route, reading.key, now):
                    continue
                alone = encode_alone(reading)
                queued += self.put(peer, reading, alone, route.conflate, route.every, now, utc_now)
        return queued

    def _put_newest(self, route: Route, readings: list[Reading], now: int, utc_now: int) -> bool:
        """Queue the newest of readings that were signed together, for a neighbour that does not want all of them. It
        costs one more signature instead of one for each."""
        newest = readings[-1]
        if route.min_interval_ns and not self.is_due(route, newest.key, now):
            self._drops.count(route.peer.node, newest.key, "rate_limited", len(readings) - 1)
            return False
        self._drops.count(
            route.peer.node, newest.key, "rate_limited" if route.min_interval_ns else "conflated", len(readings) - 1
        )
        data = self._encoded_again(newest, route.peer.node, now)
        return data is not None and self.put(route.peer, newest, data, route.conflate, route.every, now, utc_now)

    def put_past(self, peer: Peer, reading: Reading, now: int, utc_now: int) -> None:
        """Queue a last known value for a neighbour that has just asked for it, with the hops that are left."""
        data = self._encoded_again(reading, peer.node, now)
        if data is not None:
            self.put(peer, reading, data, False, False, now, utc_now)

    def pass_on(
        self, routes: tuple[Route, ...], newest: Reading, count: int, signed: Signed, now: int, utc_now: int
    ) -> None:  # fmt: skip
        """Queue a signed parcel of ``count`` readings for further neighbours, with one hop less. The signature is
        checked only if some neighbour wants them."""
        passed_on = one_hop_less(newest)
        data: bytes | None = None
        for route in routes:
            node = route.peer.node
            if node == signed.source or node == newest.origin:
                continue
            if route.min_interval_ns and not self.is_due(route, newest.key, now):
                continue
            if data is None:
                data = self._authorship.passed_on(passed_on, signed, now)
                if data is None:
                    break
            conflate = route.conflate and count == 1
            self.forwarded += count * self.put(
                route.peer, passed_on, data, conflate, route.every, now, utc_now, count
            )  # fmt: skip

    def _encoded_again(self, reading: Reading, peer: NodeId, now: int) -> bytes | None:
        """The frame of a reading that is already known. None: a neighbour can't get it, which is counted."""
        data = self._authorship.encoded(reading, now)
        if data is None:
            self._drops.count(peer, reading.key, "unsigned")
        return data
