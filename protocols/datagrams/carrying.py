"""Datagrams to all neighbours who listen, as part of an engine: which machines they concern, and in which order.

A driver that has a multicast socket hands what comes in to :meth:`Datagrams.receive`, and then calls ``carry`` of the
engine when it is told to. When the queue with the dial ``SHARED_DIAL`` has to be flushed, it sends what
:meth:`Datagrams.next` returns until that is nothing.
"""

from collections.abc import Callable

from protocols.access import AccessTable
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId
from protocols.datagrams.audience import Audience
from protocols.gossip.machine import Gossip
from protocols.links.drops import Drops
from protocols.links.lanes import Lanes
from protocols.machine import Machine
from protocols.membership.machine import Membership
from protocols.membership.neighbour import State
from protocols.multicast.machine import Multicast
from protocols.multicast.seal import DatagramSeal
from protocols.multicast.sending import CastFrame
from protocols.readings.events import Delivery
from protocols.readings.machine import Router
from protocols.settings import NodeSettings
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.frame import Frame
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import Readings, SignedReadings

_Decode = Callable[[bytes | bytearray], Frame]


class Datagrams:
    """The datagrams of one engine. Instants as in the engine."""

    def __init__(
        self, settings: NodeSettings, seal: DatagramSeal, access: AccessTable, drops: Drops, lanes: Lanes,
        membership: Membership, gossip: Gossip, decode: _Decode,
    ) -> None:  # fmt: skip
        self._drops, self._lanes, self._membership, self._gossip = drops, lanes, membership, gossip
        self._decode = decode
        self.audience = Audience(access, drops, settings.max_queue_readings, lanes.pace)
        lanes.shared = self.audience.lane
        self.machine = Multicast(settings.node, seal)
        self._readings: Router | None = None

    def serve(self, readings: Router) -> tuple[Machine, ...]:
        """Hand what comes to ``readings``. Returns the machines to add to those of the engine."""
        self._readings, readings.share = readings, self.audience.decide
        return (self.machine,)

    def receive(
        self, datagram: bytes, host: str, now: int, utc_now: int, uncertainty_ns: int
    ) -> tuple[list[Delivery], bool]:
        """Take a datagram of anybody, which seems to come from ``host``. ``uncertainty_ns``: that of this node's clock
        now. Returns the readings in it that local subscriptions want, and whether decisions have to be carried. What no
        neighbour made is dropped and counted."""
        opened, readings = self.machine.open_untrusted(datagram, host, now), self._readings
        if opened is None or readings is None:
            return [], False
        node, data, is_new = opened
        has_news = self.machine.has_news()
        neighbour = self._membership.neighbours.get(node)
        if neighbour is None or neighbour.state not in (State.ALIVE, State.SUSPECT):
            return [], has_news
        if is_new:
            neighbour.last_heard_ns = now
            if neighbour.state is State.SUSPECT:
                self._membership.refute(neighbour, now)
                has_news = True
        if not data:
            return [], has_news
        try:
            frame = self._decode(data)
        except RemoteProtocolError:
            frame = None
        role = neighbour.role
        if type(frame) is Readings:
            return readings.accept(frame.readings, node, role, now, utc_now, uncertainty_ns), has_news
        if type(frame) is SignedReadings:
            return readings.accept_signed(frame, node, role, now, utc_now, uncertainty_ns), has_news
        self._drops.count(node, "*", "malformed")
        return [], has_news

    def next(self, now: int, utc_now: int, full: bool = False) -> bytes | None:
        """The next datagram to all listeners. None: nothing may go now. ``full``: the radio takes nothing but urgent
        readings."""
        datagram = self.machine.sealed(self.audience.lane.take(now, full), now, utc_now)
        if datagram is not None:
            self._membership.heartbeats.cast_ns = now
        return datagram

    def carry(self) -> None:
        """Let readings know who listens, send what listeners have missed, and let keys and reports pass the pace: each
        saves as many turns as readings would take until it comes."""
        machine, audience, lanes = self.machine, self.audience, self._lanes
        for node in machine.hurried():
            if (queues := lanes.of_node.get(node)) is not None:
                lanes.pace.opened(node)
                queues.realtime.hurried = True
        if machine.audience_changed() and self._readings is not None:
            if audience.changed(machine.listeners, machine.holders):
                machine.forget_frames()
            self._membership.heartbeats.listeners = audience.listeners
            self._gossip.crowd_gap_ns = audience.gap_ns
            self._readings.audience_changed()
        for node, kept in machine.repairs():
            self._send_again(node, kept)

    def _send_again(self, node: NodeId, kept: CastFrame) -> None:
        """Queue what a neighbour has missed, as far as it asked for it and may read it."""
        queues, readings = self._lanes.of_node.get(node), self._readings
        if queues is None or readings is None:
            return
        wanted = {key for key in kept.keys if node in readings.wanted_by(key)}
        queue = queues.realtime
        if len(wanted) == len(kept.keys):
            queue.put_reading(kept.keys[0], kept.frame, kept.priority, kept.expires_ns, False, True, kept.readings)
        elif wanted and type(frame := self._decode(kept.frame)) is Readings:
            for reading in frame.readings:
                if reading.key in wanted:
                    alone = encode_alone(reading)
                    queue.put_reading(reading.key, alone, reading.priority, kept.expires_ns, False, True)
        self._lanes.touch(queue)

    def touch(self) -> None:
        """Have the queue for all flushed if a beacon is due."""
        if self.machine.beacon_is_due:
            self._lanes.touch(self.audience.lane)


def datagrams_of(
    settings: NodeSettings, access: AccessTable, drops: Drops, lanes: Lanes, membership: Membership,
    gossip: Gossip, decode: _Decode | None,
) -> Datagrams | None:  # fmt: skip
    """The datagrams of an engine with those parts; None: it has none."""
    seal = settings.datagram_seal
    if seal is None:
        return None
    return Datagrams(settings, seal, access, drops, lanes, membership, gossip, decode or decode_untrusted_node_frame)
