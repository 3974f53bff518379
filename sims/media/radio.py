"""The model of the air: what distance, a shared channel, the link layer of 802.11 and TCP do to frames of nodes.

Every transmission waits for those that its sender has not finished, and for the channel. It takes its airtime, the
latency of the scenario and a jitter. Whether it arrives is one draw against the delivery share of the distance
(:mod:`sims.media.pathloss`), the scenario's loss, and collisions (:mod:`sims.media.airtime`; the ``ideal`` model has
none):

- a datagram has one attempt;
- a unicast frame has ``1 + retries`` attempts, each of which costs airtime;
- a message on a stream is one or several such frames, and TCP sends again what all attempts lost
  (:mod:`sims.media.tcp`). When that takes longer than a second, the stream stands still.

The draw that decides also gives the jitter, so the common case costs one random number. The number of failed attempts
is geometric, and drawn at once by inversion.

A sender occupies the channel with its frames, and with the acknowledgements that others send for them. As long as there
is room, the two don't wait for one another: the sender's transmitter is busy with the frame, and the receiver's with
TCP's acknowledgement. On a full channel the sender's share pays for both, and for repeated frames and handshakes.

Queues: datagrams and frames that would wait longer than 100 ms for their own sender are dropped. Messages of one
segment pass those of several, as ``fq_codel`` (the default of Linux under 802.11) lets flows with little to send pass;
they wait for the one frame that is on the air. Messages of several segments wait for everything. On a full channel,
where such a queue may never end, both kinds have half of the sender's share each.

What is known of a pair is kept until one of the two has gone ``STEP_M`` (:mod:`sims.media.cells`). Shadowing belongs to
a pair, is the same both ways, and changes with the ground that its ends cover: ``exp(-distance / decorrelation)`` of it
stays (Gudmundson, 1991; TR 36.885).
"""

import math
from random import Random
from typing import Final

from protocols.base.limits import MS
from sims.media.airtime import ACKNOWLEDGED_NS, Channel, Transmitter, airtime_ns, hidden_share
from sims.media.cells import Cells
from sims.media.contract import Places
from sims.media.pathloss import delivery_of, range_m
from sims.media.tcp import (
    ARP_FLIGHTS,
    HANDSHAKE_BYTES,
    LONGEST_CONNECT_NS,
    PATIENCE_NS,
    SEGMENT_BYTES,
    TCP_IP_BYTES,
    TLS_BYTES,
    growth_ns,
    lone_stall_ns,
    message_stall_ns,
    segments_of,
    syn_stall_ns,
)
from sims.scenario import file as scenario

LEAST_SHARE: Final = 1e-3
"""The share of frames that has to arrive for a pair to be in reach of one another."""
LONGEST_QUEUE_NS: Final = 100 * MS
STEP_M: Final = 5.0
"""How far a node goes before its distances are measured anew. The logistic curves fall over 30 to 45 m, so 5 m shift
them by 0.04 where they are steepest. GNSS receivers err as much."""
_STEPS_A_SHADOW: Final = 4
"""A step is at most this part of the shadow's decorrelation distance. Three quarters of the shadow outlive it, and the
rest changes more than the path loss does on that way."""
_MOST: Final = 0.7
"""When more than this share of all nodes moved, forgetting all pairs costs less than finding those of the movers."""
MAX_PAIRS: Final = 1_000_000
"""After this many measurements all pairs are forgotten, so that no more than this are kept: about 200 MB."""
_LONE_BYTES: Final = SEGMENT_BYTES - TLS_BYTES
"""The most that one segment takes from a program."""
_REPEATED_SLOWLY: Final = ARP_FLIGHTS + 2
"""The flights of a connection whose loss costs a second."""
_TINY: Final = 1e-18


class _Pair:
    """What lies between two nodes. It is the same both ways."""

    __slots__ = ("failure", "hidden", "stale")

    def __init__(self, failure: float, hidden: float, stale: bool = False) -> None:
        self.stale = stale
        """Whether one of them has moved since."""
        self.failure = failure
        """The share of the attempts that fail for distance and loss."""
        self.hidden = hidden
        """The share of the receiver's surroundings that is hidden from the sender."""


_OUT_OF_REACH: Final = _Pair(1.0, 0.0, True)


class Way:
    """The way from one node to another, for callers that send much there: see :meth:`Air.way`."""

    __slots__ = ("air", "far", "pair", "receiver", "sender")

    def __init__(self, sender: int, receiver: int, air: Transmitter, far: Transmitter) -> None:
        self.sender, self.receiver, self.air, self.far, self.pair = sender, receiver, air, far, _OUT_OF_REACH


def _nobody(node: int) -> list[int]:
    return []


class Air:
    """The air between all nodes. Its methods are those of :class:`sims.media.contract.Links`."""

    def __init__(self, radio: scenario.Radio, places: Places, random: Random) -> None:
        self._draw, self._random = random.random, random
        self._delivery = delivery_of(radio)
        self.range_m = radio.range_m or range_m(self._delivery)
        """Nothing is heard beyond it."""
        self.cells = Cells(places, self.range_m, min(STEP_M, self._delivery.decorrelation_m / _STEPS_A_SHADOW))
        nodes = len(places.xs_m)
        self._stride = nodes + 1
        self._pairs: list[dict[int, _Pair]] = [{} for _ in range(nodes)]
        """What lies between nodes, by sender and receiver."""
        self._measured = 0
        self._resolved: set[int] = set()
        """The pairs that know each other's link-layer addresses. The set is looked into, but never gone through."""
        self._shadows: dict[int, tuple[float, float, float, float, float]] = {}
        self._channel = Channel(nodes, self.cells.neighbours if radio.shared else _nobody)
        self._air = self._channel.transmitters
        self._latency_ns = int(radio.latency_ms * MS)
        self._jitter_ns = int(radio.jitter_ms * MS)
        self._collisions = radio.shared and radio.model != "ideal"
        self._kept = 1.0 - radio.loss
        self._attempts = radio.retries + 1
        self._rate_mbps = radio.bit_rate_mbps
        segment_bytes = range(TCP_IP_BYTES + TLS_BYTES, TCP_IP_BYTES + SEGMENT_BYTES + 1)
        self._lone_ns = [airtime_ns(size_bytes, self._rate_mbps) for size_bytes in segment_bytes]
        """The airtime of a stream's message of one segment, by its size."""
        self._full_ns = self._lone_ns[-1]
        self._confirmed_ns = ACKNOWLEDGED_NS + airtime_ns(TCP_IP_BYTES, self._rate_mbps) + ACKNOWLEDGED_NS
        """Airtime behind each segment that is alone, for its acknowledgements by 802.11 and by TCP."""
        self._back_ns = airtime_ns(TCP_IP_BYTES, self._rate_mbps) + ACKNOWLEDGED_NS
        self._cast: tuple[int, int, int, int | None] = (-1, 0, 0, None)

    # --- places ----------------------------------------------------------------------------------------------------
    def moved(self) -> list[int]:
        """Take in that the places may have changed. Returns the nodes whose distances, or whose neighbours' distances,
        may be others now."""
        touched = self.cells.moved()
        if len(self.cells.movers) > _MOST * len(self._pairs):
            self._forget_pairs()
        else:
            for node in self.cells.movers:
                for other, pair in self._pairs[node].items():
                    pair.stale = True
                    if other != node:
                        del self._pairs[other][node]
                self._pairs[node] = {}
        if len(self._shadows) > MAX_PAIRS:
            self._shadows.clear()
        return touched

    def neighbours(self, node: int) -> list[int]:
        """Nodes within range, in order."""
        return self.cells.neighbours(node)

    def delivery_share(self, sender: int, receiver: int) -> float:
        """The share of single attempts that would arrive now on a quiet channel."""
        return 1.0 - self._pair(sender, receiver).failure

    def busy_share(self, node: int, now_ns: int) -> float:
        """See :class:`sims.media.contract.Links`."""
        if now_ns >= self._channel.turn_ns:
            self._channel.turn(now_ns)
        return self._channel.busy_share(node)

    def _pair(self, sender: int, receiver: int) -> _Pair:
        pair = self._pairs[sender].get(receiver)
        if pair is None:
            self._measured += 2
            if self._measured > MAX_PAIRS:
                self._measured = 2
                self._forget_pairs()
            pair = self._measure(sender, receiver)
            self._pairs[sender][receiver] = self._pairs[receiver][sender] = pair
        return pair

    def _forget_pairs(self) -> None:
        for pairs in self._pairs:
            for pair in pairs.values():
                pair.stale = True
            pairs.clear()

    def _measure(self, sender: int, receiver: int) -> _Pair:
        places = self.cells
        if not (places.present[sender] and places.present[receiver]):
            return _OUT_OF_REACH
        distance_m = math.hypot(
            places.xs_m[sender] - places.xs_m[receiver], places.ys_m[sender] - places.ys_m[receiver]
        )
        if distance_m > self.range_m:
            return _OUT_OF_REACH
        shadow_db = self._shadow_db(min(sender, receiver), max(sender, receiver)) if self._delivery.sigma_db else 0.0
        share = self._delivery.share(distance_m, shadow_db) * self._kept
        if share < LEAST_SHARE:
            return _OUT_OF_REACH
        return _Pair(1.0 - share, hidden_share(distance_m / self.range_m) if self._collisions else 0.0)

    def _shadow_db(self, one: int, other: int) -> float:
        key = one * self._stride + other
        places, sigma_db = self.cells, self._delivery.sigma_db
        x_m, y_m, other_x_m, other_y_m = places.xs_m[one], places.ys_m[one], places.xs_m[other], places.ys_m[other]
        known = self._shadows.get(key)
        if known is None:
            shadow_db = self._random.gauss(0.0, sigma_db)
        else:
            shadow_db, *was = known
            covered_m = math.hypot(x_m - was[0], y_m - was[1]) + math.hypot(other_x_m - was[2], other_y_m - was[3])
            if not covered_m:
                return shadow_db
            stays = math.exp(-covered_m / self._delivery.decorrelation_m)
            shadow_db = stays * shadow_db + math.sqrt(1 - stays * stays) * self._random.gauss(0.0, sigma_db)
        self._shadows[key] = (shadow_db, x_m, y_m, other_x_m, other_y_m)
        return shadow_db

    # --- the channel -----------------------------------------------------------------------------------------------
    def _heard(self, node: int, now_ns: int) -> Transmitter:
        """The transmitter of a node, once it is known what it heard of the channel."""
        if now_ns >= self._channel.turn_ns:
            self._channel.turn(now_ns)
        air = self._air[node]
        if not air.known:
            self._channel.hear(node)
        return air

    def _sender(self, node: int, now_ns: int) -> Transmitter:
        """The transmitter of a node that is about to send."""
        if now_ns >= self._channel.turn_ns:
            self._channel.turn(now_ns)
        air = self._air[node]
        if air.sent_ns >= air.look_ns:
            self._channel.look(node)
        return air

    def _failure(self, pair: _Pair, receiver: int, now_ns: int) -> float:
        """The share of single attempts that fail, collisions included."""
        collided = self._heard(receiver, now_ns).collided * pair.hidden
        return 1.0 - (1.0 - pair.failure) * math.exp(-collided) if collided else pair.failure

    def _send(self, air: Transmitter, airtime: int, now_ns: int) -> int | None:
        """When a packet leaves the air whose queue is bounded; None when it was dropped."""
        free_ns = air.free_ns
        if free_ns - now_ns > LONGEST_QUEUE_NS:
            return None
        air.sent_ns += airtime
        air.free_ns = gone_ns = max(free_ns, now_ns) + int(airtime * air.stretch)
        return gone_ns

    # --- datagrams and frames --------------------------------------------------------------------------------------
    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """See :class:`sims.media.contract.Links`."""
        air = self._sender(sender, now_ns)
        gone_ns = self._send(air, airtime_ns(size_bytes, self._rate_mbps), now_ns)
        if gone_ns is None:
            return now_ns, []
        draw, pair, failure = self._draw, self._pair, self._failure
        heard = [
            receiver
            for receiver in self.neighbours(sender)
            if draw() >= failure(pair(sender, receiver), receiver, now_ns)
        ]
        return gone_ns + self._latency_ns + int(draw() * (self._jitter_ns + air.wait_ns)), heard

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        pair = self._pair(sender, receiver)
        air = self._sender(sender, now_ns)
        if self._cast[:3] != (sender, size_bytes, now_ns):
            gone_ns = self._send(air, airtime_ns(size_bytes, self._rate_mbps), now_ns)
            self._cast = (sender, size_bytes, now_ns, gone_ns)
        gone_ns = self._cast[3]
        failure = self._failure(pair, receiver, now_ns)
        chance = self._draw()
        if gone_ns is None or chance < failure:
            return None
        spread_ns = self._jitter_ns + air.wait_ns
        return gone_ns + self._latency_ns + int((chance - failure) / (1 - failure) * spread_ns)

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        pair = self._pair(sender, receiver)
        failed = self._attempts if pair is _OUT_OF_REACH else self._failed(self._failure(pair, receiver, now_ns))
        air = self._sender(sender, now_ns)
        airtime = airtime_ns(size_bytes, self._rate_mbps) + ACKNOWLEDGED_NS
        gone_ns = self._send(air, airtime * (min(failed, self._attempts - 1) + 1), now_ns)
        if gone_ns is None or failed >= self._attempts:
            return None
        return gone_ns + self._latency_ns + int(self._draw() * (self._jitter_ns + air.wait_ns))

    def _failed(self, failure: float) -> int:
        """How many attempts fail before one succeeds."""
        chance = self._draw()
        return 0 if chance >= failure else int(math.log(max(chance, _TINY)) / math.log(failure))

    # --- streams ---------------------------------------------------------------------------------------------------
    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`sims.media.contract.Links`."""
        return self.stream_along_ns(self.way(sender, receiver), size_bytes, now_ns)

    def way(self, sender: int, receiver: int) -> Way:
        """The way between two nodes, for any number of calls of :meth:`stream_along_ns`."""
        return Way(sender, receiver, self._air[sender], self._air[receiver])

    def stream_along_ns(self, way: Way, size_bytes: int, now_ns: int) -> int | None:
        """As :meth:`stream_ns`. This is the hottest function of the simulator, so it calls few others."""
        pair = way.pair
        if pair.stale:
            pair = way.pair = self._pair(way.sender, way.receiver)
        failure = pair.failure
        if failure >= 1.0:
            return None
        if now_ns >= self._channel.turn_ns:
            self._channel.turn(now_ns)
        air, far = way.air, way.far
        if air.sent_ns >= air.look_ns:
            self._channel.look(way.sender)
        hidden = pair.hidden
        if hidden:
            if not far.known:
                self._channel.hear(way.receiver)
            if far.collided:
                failure = 1.0 - (1.0 - failure) * math.exp(-far.collided * hidden)
        if size_bytes > _LONE_BYTES:
            return self._burst_ns(air, size_bytes, failure, now_ns)
        airtime = self._lone_ns[size_bytes]
        air.sent_ns += airtime + self._confirmed_ns
        free_ns = air.free_ns
        if free_ns < now_ns:  # noqa: PLR1730  max() takes three times as long
            free_ns = now_ns
        if air.full:
            free_ns = self._share_ns(air, airtime, free_ns, now_ns)
        else:
            free_ns += airtime
            if air.bulk_free_ns > now_ns:
                air.bulk_free_ns += airtime
                free_ns += self._full_ns
            air.free_ns = free_ns + ACKNOWLEDGED_NS
            back_ns = far.free_ns  # its TCP acknowledges, and what it sends itself waits for that
            if back_ns < now_ns:  # noqa: PLR1730  as above
                back_ns = now_ns
            far.free_ns = back_ns + self._back_ns
        chance = self._draw()
        if chance < failure:
            late_ns = self._late_ns(air, airtime, chance, failure)
            if late_ns > PATIENCE_NS:
                return None
            free_ns += late_ns
            chance = failure + (1.0 - failure) * self._draw()
        spread_ns = self._jitter_ns + air.wait_ns
        return free_ns + self._latency_ns + int((chance - failure) / (1.0 - failure) * spread_ns)

    def _share_ns(self, air: Transmitter, airtime: int, free_ns: int, now_ns: int) -> int:
        """When a segment that is alone leaves a transmitter that is free at ``free_ns``, on a channel that is full.

        Its acknowledgements are part of the sender's share, because TCP sends no more than is acknowledged. They are
        not part of the receiver's: whoever hears from many would have no share left, or send beyond it. A large message
        and those that pass it have half of the share each.
        """
        taken_ns = int((airtime + self._confirmed_ns) * air.stretch)
        if air.bulk_free_ns > now_ns:
            if air.bulk_free_ns > free_ns:
                beside_ns = taken_ns if free_ns > now_ns else max(taken_ns, self._full_ns)  # of the frame on the air
                free_ns += min(air.bulk_free_ns - free_ns, beside_ns)
            air.bulk_free_ns += taken_ns
        air.free_ns = free_ns + taken_ns
        return air.free_ns - self._confirmed_ns

    def _bulk_share_ns(self, air: Transmitter, airtime: int, now_ns: int) -> int:
        """As :meth:`_share_ns`, for a message of several segments, whose ``airtime`` includes its acknowledgements."""
        taken_ns = int(airtime * air.stretch)
        begun_ns = max(air.bulk_free_ns, now_ns)
        passing_ns = min(max(air.free_ns - begun_ns, 0), taken_ns)
        air.free_ns += passing_ns
        air.bulk_free_ns = begun_ns + taken_ns + passing_ns
        return air.bulk_free_ns

    def _round_trip_ns(self, airtime: int) -> int:
        return 2 * self._latency_ns + self._jitter_ns + airtime + self._confirmed_ns

    def _late_ns(self, air: Transmitter, airtime: int, chance: float, failure: float, *, first: bool = False) -> int:
        """How much later a segment arrives that failed at first. ``first``: it opens a connection."""
        failed = int(math.log(max(chance, _TINY)) / math.log(failure))
        lost, again = divmod(failed, self._attempts)
        # What was lost altogether is sent again much later, one at a time: one packet's attempts are in this window.
        repeated_ns = min(failed, self._attempts) * airtime
        air.sent_ns += repeated_ns
        if air.full:
            air.free_ns += int(repeated_ns * air.stretch)
        late_ns = int(again * (airtime + ACKNOWLEDGED_NS) * air.stretch)
        if lost:
            round_trip_ns = self._round_trip_ns(airtime)
            late_ns += syn_stall_ns(lost) if first else lone_stall_ns(lost, round_trip_ns, self._draw())
        return late_ns

    def _burst_ns(self, air: Transmitter, size_bytes: int, failure: float, now_ns: int) -> int | None:
        """When a message of several segments arrives; None when the stream stands still."""
        segments = segments_of(size_bytes)
        lost = failure**self._attempts
        attempts = (1.0 - lost) / (1.0 - failure)
        frame_ns = int((self._full_ns + ACKNOWLEDGED_NS) * attempts)
        total_ns, confirmed_ns = segments * frame_ns, segments // 2 * self._confirmed_ns
        air.sent_ns += total_ns + confirmed_ns
        if air.full:
            gone_ns = self._bulk_share_ns(air, total_ns + confirmed_ns, now_ns)
        else:
            air.bulk_free_ns = gone_ns = max(now_ns, air.free_ns, air.bulk_free_ns) + total_ns
        round_trip_ns = self._round_trip_ns(frame_ns)
        gone_ns += growth_ns(segments, int(frame_ns * air.stretch), round_trip_ns)
        stall_ns = message_stall_ns(segments, lost, round_trip_ns, self._draw)
        if stall_ns > PATIENCE_NS:
            return None
        gone_ns += stall_ns
        return gone_ns + self._latency_ns + int(self._draw() * (self._jitter_ns + air.wait_ns))

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """See :class:`sims.media.contract.Links`. The flights of a handshake don't reserve the transmitters ahead of
        time. Two nodes that have not met before first ask for the other's link-layer address (ARP), which is repeated
        as slowly as a SYN."""
        pair = self._pair(sender, receiver)
        if pair is _OUT_OF_REACH:
            return None
        ends = (sender, receiver)
        key = min(ends) * self._stride + max(ends)
        elapsed_ns = 0
        flights = len(HANDSHAKE_BYTES) if answers else ARP_FLIGHTS + 2
        for flight in range(ARP_FLIGHTS if key in self._resolved else 0, flights):
            away, size_bytes = flight & 1, HANDSHAKE_BYTES[flight]
            air = self._sender(ends[away], now_ns)
            failure = self._failure(pair, ends[1 - away], now_ns)
            airtime = airtime_ns(size_bytes, self._rate_mbps)
            air.sent_ns += airtime + ACKNOWLEDGED_NS
            taken_ns = int((airtime + ACKNOWLEDGED_NS) * air.stretch)
            if air.full:  # it waits behind what this end has to send
                elapsed_ns = max(elapsed_ns, air.free_ns - now_ns)
                air.free_ns = max(air.free_ns, now_ns) + taken_ns
            elapsed_ns += taken_ns - ACKNOWLEDGED_NS + self._latency_ns
            elapsed_ns += int(self._draw() * (self._jitter_ns + air.wait_ns))
            chance = self._draw()
            if chance < failure:
                elapsed_ns += self._late_ns(air, airtime, chance, failure, first=flight < _REPEATED_SLOWLY)
        if elapsed_ns >= LONGEST_CONNECT_NS:
            return None
        if len(self._resolved) >= MAX_PAIRS:
            self._resolved.clear()
        self._resolved.add(key)
        return now_ns + elapsed_ns
