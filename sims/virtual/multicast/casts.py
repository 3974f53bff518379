"""Multicast datagrams of simulated nodes: on the air once, and lost or heard at each receiver by itself.

The kernel and the radio of a node hold no more than what leaves within ``_WINDOW_NS``, and everything else waits in its
engine. Nobody acknowledges a datagram, so nothing is sent again (IEEE 802.11-2020, 10.2.7).

Keys, tags and signatures have the sizes of real ones. They are as good among simulated nodes, because none of these
guesses them, and cheap: a datagram is opened and decoded once for all its receivers.
"""

import hashlib
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.multicast.seal import DatagramSeal, OwnKey
from protocols.wire.multicast.datagrams import HEAD_BYTES, TAG_BYTES, Body, untrusted_body
from protocols.wire.parcels import readings_in_own_frame
from sims.virtual.frames import END, SharedDecoder
from sims.virtual.node import SimNode
from sims.virtual.simulation import Simulation

UDP_IP_BYTES: Final = 28
_WINDOW_NS: Final = 20 * limits.MS
_SIGNATURE_BYTES: Final = 71
"""The mean of ECDSA signatures in ASN.1 DER."""
_CHECK_COST: Final = 1
"""How much longer than another frame a datagram takes, because of its signature: 62 µs, where others take 80 µs."""
_MOST_NOTES: Final = 256


class Casts:
    """The datagrams of a simulation."""

    def __init__(self, simulation: Simulation, decoder: SharedDecoder) -> None:
        self._simulation, self._decoder = simulation, decoder
        self._private: dict[bytes, bytes] = {}
        self._gone_ns: dict[int, int] = {}
        """When the last datagram of a node was heard, by number."""
        self._waits: set[int] = set()
        self._datagram, self._body, self._arriving = b"", Body(0, False, b"", b""), END
        self.cast = self.heard = 0
        self.readings_lost = 0
        """How many readings a listener did not hear."""
        self.readings_under_way = 0

    # --- seals -----------------------------------------------------------------------------------------------------
    def seal(self, random: Random) -> DatagramSeal:
        """What one node seals and checks with. ``random`` makes its keys."""
        return DatagramSeal(
            lambda: self._new_key(random), lambda data: hashlib.sha256(data).digest(),
            lambda secret, _, head, body: body + secret, self._open, self._has_signed,
        )  # fmt: skip

    def _new_key(self, random: Random) -> OwnKey:
        private, public = random.randbytes(32), random.randbytes(33)
        self._private[public] = private
        secret = random.randbytes(limits.DATAGRAM_SECRET_BYTES)
        return OwnKey(secret, public, lambda statement: _signature(private, statement))

    def _open(self, secret: bytes, nonce: bytes, datagram: bytes) -> Body | None:
        del nonce
        if datagram[-TAG_BYTES:] != secret:
            return None
        if datagram is not self._datagram:
            body = untrusted_body(datagram[HEAD_BYTES:-TAG_BYTES])
            if body is None:
                return None
            self._datagram, self._body = datagram, body
            self._arriving = self._decoder.frame_of(body.frame, "") if body.frame else END
        self._decoder.arriving = self._arriving
        return self._body

    def _has_signed(self, public: bytes, statement: bytes, signature: bytes) -> bool:
        private = self._private.get(public)
        return private is not None and _signature(private, statement) == signature

    # --- datagrams -------------------------------------------------------------------------------------------------
    def flush(self, node: SimNode) -> None:
        """Send what an engine has for all listeners, as far as its radio takes it."""
        simulation, engine = self._simulation, node.engine
        now, local = simulation.now, node.local(simulation.now)
        if engine.datagrams is None:
            return
        while True:
            gone_ns = self._gone_ns.get(node.number, 0)
            full = gone_ns > now + _WINDOW_NS
            datagram = engine.datagrams.next(local, local + node.utc_less_mono_ns, full)
            if datagram is None:
                break
            self.send(node, datagram)
        if full and engine.lanes.shared and node.number not in self._waits:
            self._waits.add(node.number)
            simulation.push(gone_ns - _WINDOW_NS, self._flush_again, (node, engine))
        if engine.next_timer_at() != NEVER:
            simulation.arm(node)

    def _flush_again(self, waiting: tuple[SimNode, object]) -> None:
        node, engine = waiting
        self._waits.discard(node.number)
        if node.running and node.engine is engine:
            self.flush(node)

    def send(self, node: SimNode, datagram: bytes) -> None:
        """Put a datagram on the air of a node's host."""
        simulation = self._simulation
        self.cast += 1
        at_ns, receivers = simulation.links.multicast_ns(node.number, len(datagram) + UDP_IP_BYTES, simulation.now)
        self._gone_ns[node.number] = max(at_ns, self._gone_ns.get(node.number, 0))
        readings = _readings_in(datagram)
        if readings and node.engine.datagrams is not None:
            listeners = {simulation.nodes[name].number for name in node.engine.datagrams.audience.listeners}
            self.readings_lost += readings * len(listeners.difference(receivers))
        if receivers:
            self.readings_under_way += readings * len(receivers)
            simulation.push(at_ns, self._arrive, (node, datagram, receivers))

    def _arrive(self, arriving: tuple[SimNode, bytes, list[int]]) -> None:
        sender, datagram, receivers = arriving
        simulation = self._simulation
        for number in receivers:
            node = simulation.numbered[number]
            if not node.running:
                self.readings_under_way -= _readings_in(datagram)
            else:
                simulation.when_awake(node, simulation.now, self._take, (node, sender, datagram))

    def _take(self, coming: tuple[SimNode, SimNode, bytes]) -> None:
        """A node takes in one datagram."""
        node, sender, datagram = coming
        simulation, engine, now = self._simulation, node.engine, self._simulation.now
        local = node.local(now)
        if engine.datagrams is None:
            return
        deliveries, has_news = engine.datagrams.receive(
            datagram, sender.name, local, local + node.utc_less_mono_ns, engine.clock_uncertainty_ns
        )
        self.heard += 1
        self.readings_under_way -= _readings_in(datagram)
        node.note_heard(sender.name, now)
        if node.frame_ns:
            node.stalled_until_ns = max(now, node.stalled_until_ns) + (1 + _CHECK_COST) * node.frame_ns
            if simulation.processors is not None:
                simulation.processors.occupy(now, node.frame_ns, _CHECK_COST * node.frame_ns)
        for _, reading in deliveries:
            node.arrived.append((now, simulation.issue_in(self._arriving, reading)))
        if has_news:
            engine.carry(local)
            simulation.perform(node)
        elif not engine.is_settled():
            simulation.perform(node)
        elif node.attentive and engine.readings.next_timer_at() != NEVER:
            simulation.arm(node)
        if node.arrived and (node.prompt or len(node.arrived) >= _MOST_NOTES):
            simulation.look(node)


def _readings_in(datagram: bytes) -> int:
    """How many readings a datagram of a simulated node carries."""
    body = untrusted_body(datagram[HEAD_BYTES:-TAG_BYTES])
    return readings_in_own_frame(body.frame) if body is not None and body.frame else 0


def _signature(private: bytes, statement: bytes) -> bytes:
    return hashlib.blake2b(statement, key=private, digest_size=64).digest() + bytes(_SIGNATURE_BYTES - 64)
