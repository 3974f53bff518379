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
from protocols.links.drops import Drops
from protocols.links.pace import EVERYBODY, Pace
from protocols.links.queues import LaneQueue
from protocols.readings.streams import Peer, Route, Stream

SHARED_DIAL: Final = -1
"""The dial id of the queue for all; dials have positive ones."""


class _DropsOfAll(Drops):
    """Counts what is dropped in the queue for all once for each listener."""

    def __init__(self, drops: Drops) -> None:
        super().__init__()
        self._drops, self.listeners = drops, 1

    def count(self, peer: str, key: str, reason: str, number: int = 1) -> None:
        """See :meth:`Drops.count`."""
        self._drops.count(peer, key, reason, number * self.listeners)


class Audience:
    """The neighbours that hear what is sent once for all, and the queue for them."""

    def __init__(self, access: AccessTable, drops: Drops, max_readings: int, pace: Pace) -> None:
        self._access, self._drops = access, _DropsOfAll(drops)
        self.lane = LaneQueue(
            EVERYBODY, self._drops, max_readings, pace=pace, frame_bytes=limits.MAX_SHARED_FRAME_BYTES
        )
        self.lane.dial = SHARED_DIAL
        self._peer = Peer(EVERYBODY, Role.VEHICLE, self.lane, self.lane)
        self.listeners: frozenset[NodeId] = frozenset()
        self._known: frozenset[NodeId] = frozenset()
        self.holders: dict[NodeId, Role] = {}
        """Everybody who can open what is sent, with the role by which they may read."""

    def changed(self, listeners: frozenset[NodeId], holders: dict[NodeId, Role]) -> bool:
        """Take in who hears and who can open what is sent from now on. What waits was put there for those before, so
        it does not go out when somebody is to have the key who may not read everything. Returns whether that is so."""
        new = [(node, role) for node, role in holders.items() if node not in self._known]
        is_narrower = not all(self._access.permits_subscribe(role, node, "**") for node, role in new)
        if is_narrower:
            self.lane.clear("audience_changed")
        self.listeners, self.holders, self._known = listeners, holders, frozenset(holders)
        self._drops.listeners = max(1, len(listeners))
        return is_narrower

    def decide(self, stream: Stream) -> None:
        """Decide which routes of a stream of this node become one. Its own routes were just decided."""
        stream.shared = ()
        if len(self.listeners) < 2:
            return
        together = [route for route in stream.routes if route.peer.node in self.listeners and not route.every]
        if len(together) < 2 or not all(
            self._access.permits_subscribe(role, node, stream.key) for node, role in self.holders.items()
        ):
            return
        shared = Route(self._peer, [want for route in together for want in route.wants])
        shared.count = len(together)
        stream.shared = (shared, *[route for route in stream.routes if route not in together])
