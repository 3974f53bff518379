"""Sends one datagram to all neighbours who listen, where a link to each would carry the same frame once for each.

Readings wait in one queue for all listeners (:mod:`protocols.datagrams.audience`). The driver takes a frame from it,
:meth:`Multicast.sealed` makes a datagram of it, and the driver puts that on a multicast group that no router passes on.
A receiver hands what comes in to :meth:`Multicast.open_untrusted`. Keys, reports and what was missed travel on the
mutual-TLS links.

Rules:

1. A node believes a datagram only by a key that its sender handed over on its own link, and only with the signature of
   that key: other holders of the key are no authors.
2. Whoever has not said that it hears the datagrams gets its readings on its link, and so does whoever hears them no
   more. Silence is no consent.
3. A guarded frame (:mod:`protocols.multicast.sending`) that a listener missed is sent to it on its link.
4. A beacon is cast when nothing else was, so a datagram proves life as a heartbeat does, and a listener notices soon
   that it hears nothing.
5. Only a datagram that is newer than all before it proves life: an older one may have been held back by anybody.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.machine import Machine, Message
from protocols.multicast.hearing import DatagramReceiver
from protocols.multicast.seal import DatagramSeal
from protocols.multicast.sending import CastFrame, DatagramSender
from protocols.wire.frame import Frame
from protocols.wire.multicast.frames import FRAMES, Heard, SenderKey

BEACON_NS: Final = 250 * limits.MS
"""As often as heartbeats, so that a listener is suspected no sooner than without datagrams."""
_LONE_BEACON_NS: Final = 2 * limits.SECOND
"""While nobody listens: an access point may let multicast through later."""
_LOOK_NS: Final = 200 * limits.MS


class Multicast(Machine):
    """The machine of one node."""

    name: ClassVar[str] = "multicast"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES

    def __init__(self, node: NodeId, seal: DatagramSeal) -> None:
        self._sender = DatagramSender(node, seal)
        self._hearing = DatagramReceiver(seal)
        self._look_ns = NEVER
        self._again: list[bytes] = []
        self._hurried: list[NodeId] = []
        self.beacon_is_due = False
        """Whether the queue for all has to be touched although nothing waits in it."""

    # --- neighbours ------------------------------------------------------------------------------------------------
    def receive(self, frame: Any, source: NodeId, role: Role, now: int) -> None:
        """See :class:`~protocols.machine.Machine`."""
        if type(frame) is SenderKey:
            self._hearing.key_handed(frame, source, now)
            self._look_ns = min(self._look_ns, now + _LOOK_NS)
        elif type(frame) is Heard:
            self._sender.heard(frame, source, now)

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """Hand the key to a neighbour."""
        self._sender.neighbour_met(node, role, now)
        self._look_ns = min(self._look_ns, now + _LOOK_NS)

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """Forget a neighbour."""
        self._sender.neighbour_gone(node)
        self._hearing.forget(node)

    # --- datagrams -------------------------------------------------------------------------------------------------
    def sealed(self, frame: bytes | None, now: int, utc_now: int) -> bytes | None:
        """The datagram for a frame that waited for all listeners. None for the frame: nothing waited, and the datagram
        is a frame of a stream that stopped, or a beacon if one is due. None: there is nothing to send."""
        if frame is None and self._again:
            frame = self._again.pop()
        if frame is None:
            if not self.beacon_is_due:
                return None
            frame = b""
        self.beacon_is_due = bool(self._again)
        return self._sender.datagram(frame, now, utc_now)

    def open_untrusted(self, datagram: bytes, host: str, now: int) -> tuple[NodeId, bytes, bool] | None:
        """See :meth:`~protocols.multicast.hearing.DatagramReceiver.untrusted`."""
        if self._sender.is_own(datagram):  # it came back to its own host
            return None
        return self._hearing.untrusted(datagram, host, now)

    @property
    def listeners(self) -> frozenset[NodeId]:
        """The neighbours that hear this node."""
        return self._sender.listeners

    @property
    def holders(self) -> dict[NodeId, Role]:
        """The nodes that can open its datagrams."""
        return self._sender.holders

    def audience_changed(self) -> bool:
        """Whether listeners or holders have changed since the last call."""
        changed, self._sender.is_changed = self._sender.is_changed, False
        return changed

    def forget_frames(self) -> None:
        """Cast nothing again: somebody holds the key now who may not read what was cast before."""
        self._sender.forget_frames()
        self._again.clear()

    def repairs(self) -> list[tuple[NodeId, CastFrame]]:
        """Frames to send to single neighbours on their links, decided since the last call."""
        repairs, self._sender.repairs = self._sender.repairs, []
        return repairs

    # --- decisions -------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Cast a beacon, report, and look who is heard."""
        sender = self._sender
        if now >= self._look_ns:
            if now - self._look_ns > limits.LOCAL_STALL_NS:
                self._hearing.forgive(now)
            self._look_ns = now + _LOOK_NS
            self._hearing.look(now)
            self._again.extend(sender.look(now))
        elif now >= self._hearing.ask_ns:
            self._hearing.look(now)
        if self._again or now >= self._beacon_ns():
            self.beacon_is_due = True

    def _beacon_ns(self) -> int:
        """When a beacon is due."""
        sender = self._sender
        if not sender.met:
            return NEVER
        pause_ns = BEACON_NS if sender.listeners else _LONE_BEACON_NS
        return min(max(sender.cast_ns, 0) + pause_ns, sender.soon_ns)

    def next_timer_at(self) -> int:
        """See :class:`~protocols.machine.Machine`."""
        if self.beacon_is_due:
            return min(self._look_ns, self._hearing.ask_ns)
        return min(self._look_ns, self._hearing.ask_ns, self._beacon_ns())

    def has_news(self) -> bool:
        """See :class:`~protocols.machine.Machine`."""
        sender = self._sender
        return bool(sender.handed or self._hearing.reports or sender.repairs or sender.is_changed)

    def messages(self) -> Sequence[Message]:
        """Keys and reports."""
        messages: list[Message] = [*self._sender.handed, *self._hearing.reports]
        self._hurried.extend(node for node, _ in messages if node is not None)
        self._sender.handed.clear()
        self._hearing.reports.clear()
        return messages

    def hurried(self) -> list[NodeId]:
        """The neighbours to whom keys or reports go, decided since the last call."""
        hurried, self._hurried = self._hurried, []
        return hurried

    def counters(self) -> dict[str, int]:
        """See :class:`~protocols.machine.Machine`. ``listeners`` and ``heard_nodes`` go up and down."""
        sender, hearing = self._sender, self._hearing
        return {
            "cast": sender.cast, "cast_bytes": sender.cast_bytes, "beacons": sender.beacons,
            "repaired": sender.repaired, "repairs_over_rate": sender.over_rate, "listeners": len(sender.listeners),
            "heard": hearing.heard, "heard_nodes": hearing.sources, "missed": hearing.missed,
            "deafened": hearing.deafened, "strangers": hearing.strangers, "replayed": hearing.replayed,
            "broken": hearing.broken, "forged": hearing.forged, "over_rate": hearing.over_rate,
        }  # fmt: skip
