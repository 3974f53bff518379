"""What goes out once for all neighbours who listen, and what goes to each of them on its link.

A stream is shared when two or more listeners want it, everybody who can open what is shared may read it, and nobody of
those listeners asked for every reading: a datagram that is lost is not sent again. The listeners are one route then,
with all their wants taken together, whose queue is that of the audience. Where they differ they get more, and their own
subscriptions leave out what is too much. All other neighbours have routes of their own, as without an audience.
"""

from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.links.drops import Drops
from protocols.links.pace import EVERYBODY, Pace
from protocols.links.queues import LaneQueue
from protocols.membership.crowd import CROWD
from protocols.readings.streams import Peer, Route, Stream

SHARED_DIAL: Final = -1
"""The dial id of the queue for all; dials have positive ones."""
_CHANNEL_FRAMES_PER_S: Final = 1_300
"""What a channel of 6 Mb/s carries, acknowledgements included."""


class _DropsOfAll(Drops):
    """Counts what is dropped in the queue for all once for each listener."""

    def __init__(self, drops: Drops) -> None:
        super().__init__()
        self._drops, self.listeners = drops, 1

    def count(self, peer: str, key: str, reason: str, number: int = 1) -> None:
        """See :meth:`Drops.count`."""
        self._drops.count(peer, key, reason, number * self.listeners)


class Audience:
    """The neighbours that hear what is sent once for all, and the queue for them.

    They share a channel, which says nothing of how full it is: what goes to each of them on its link is little beside
    readings, and a pace follows frames on links. But whatever each node of a crowd tells each other one at about the
    same time fills a channel for a second, and hazards wait behind it in the radio of their sender. So that has to be
    spread (:attr:`gap_ns`).
    """

    def __init__(self, access: AccessTable, drops: Drops, max_readings: int, pace: Pace) -> None:
        self._access, self._drops = access, _DropsOfAll(drops)
        self.lane = LaneQueue(
            EVERYBODY, self._drops, max_readings, pace=pace, frame_bytes=limits.MAX_SHARED_FRAME_BYTES
        )
        self.lane.dial = SHARED_DIAL
        self._peer = Peer(EVERYBODY, Role.VEHICLE, self.lane, self.lane)
        self.listeners: frozenset[NodeId] = frozenset()
        self._known: dict[NodeId, tuple[Role, bool]] = {}
        """The role of each holder, and whether that may read everything."""
        self.holders: dict[NodeId, Role] = {}
        """Everybody who can open what is sent, with the role by which they may read."""

    def changed(self, listeners: frozenset[NodeId], holders: dict[NodeId, Role]) -> bool:
        """Take in who hears and who can open what is sent from now on. What waits was put there for those before, so
        it does not go out when somebody is to have the key who may not read everything. Returns whether that is so."""
        before, self._known, is_narrower = self._known, {}, False
        for node, role in holders.items():
            known = before.get(node)
            if known is None or known[0] is not role:
                known = (role, self._access.permits_subscribe(role, node, "**"))
                is_narrower = is_narrower or not known[1]
            self._known[node] = known
        if is_narrower:
            self.lane.clear("audience_changed")
        self.listeners, self.holders = listeners, holders
        self._drops.listeners = max(1, len(listeners))
        return is_narrower

    @property
    def gap_ns(self) -> int:
        """How far apart two frames on one link would be if this node and all listeners filled a channel with frames to
        each other; 0: they are no crowd."""
        others = len(self.listeners)
        return others * (others + 1) * SECOND // _CHANNEL_FRAMES_PER_S if others >= CROWD else 0

    def decide(self, stream: Stream) -> None:
        """Decide which routes of a stream of this node become one. Its own routes were just decided."""
        stream.shared = ()
        if len(self.listeners) < 2:
            return
        together, alone, wants = 0, [], []
        for route in stream.routes:
            if route.every or route.peer.node not in self.listeners:
                alone.append(route)
            else:
                together += 1
                wants.extend(route.wants)
        if together < 2 or not self._all_may_read(stream.key):
            return
        shared = Route(self._peer, wants)
        shared.count = together
        stream.shared = (shared, *alone)

    def _all_may_read(self, key: str) -> bool:
        for node, role in self.holders.items():
            known = self._known.get(node)
            reads_all = known is not None and known[0] is role and known[1]
            if not reads_all and not self._access.permits_subscribe(role, node, key):
                return False
        return True
