"""What new keys and new wants may cost: each neighbour has an allowance, and each frame a bound.

Costs are counted in steps of matching; see :mod:`protocols.readings.matching`. A decision is charged before it is made,
with what it costs at most.
"""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.readings.streams import LocalSubscription, Peer

_WATCH_STEPS: Final = 8
"""What it costs to watch a deadline."""


class Work:
    """The work that one router does for neighbours."""

    __slots__ = ("_frame_ns", "_payer", "_peers", "left_in_frame", "subscriptions_steps")

    def __init__(self, peers: dict[NodeId, Peer]) -> None:
        self._peers = peers
        self._frame_ns = -1
        self._payer: Peer | None = None
        self.left_in_frame = limits.MATCHING_STEPS_PER_FRAME
        """The steps that are left for the frame that is being accepted."""
        self.subscriptions_steps = 0
        """What matching a key with all subscriptions of this node costs."""

    def subscribed(self, subscription: LocalSubscription) -> None:
        """Count a new subscription in."""
        self.subscriptions_steps += _steps(subscription)

    def unsubscribed(self, subscription: LocalSubscription) -> None:
        """Count a subscription that ended out."""
        self.subscriptions_steps -= _steps(subscription)

    def is_allowed(self, payer: Peer | None, is_new: bool, routes: bool, now: int) -> bool:
        """Whether decisions about a stream may be made now; if so, ``payer`` pays. ``is_new``: who gets the stream here
        is decided too. ``routes``: which neighbours get it is decided."""
        if not self._has_steps(payer, now):
            return False
        steps = limits.NEW_STREAM_STEPS + self.subscriptions_steps if is_new else 0
        if routes:
            steps += sum([peer.steps for peer in self._peers.values()])
        if payer is not None and payer.work.left(now) < min(steps, limits.MAX_MATCHING_BURST):
            return False
        self.left_in_frame -= steps
        if payer is not None:
            payer.work.fine(steps)
        return True

    def _has_steps(self, payer: Peer | None, now: int) -> bool:
        """Whether steps are left for the frame that is being accepted. Frames of one neighbour at one instant count as
        one."""
        if now != self._frame_ns or payer is not self._payer:
            self._frame_ns, self._payer, self.left_in_frame = now, payer, limits.MATCHING_STEPS_PER_FRAME
        return self.left_in_frame > 0

    def may_watch(self, payer: Peer | None, number: int, now: int) -> bool:
        """Whether the frame may start ``number`` deadlines anew."""
        if not self._has_steps(payer, now):
            return False
        self.left_in_frame -= number * _WATCH_STEPS
        return True


def _steps(subscription: LocalSubscription) -> int:
    """What a subscription costs for each new key."""
    return subscription.pattern.steps + (_WATCH_STEPS if subscription.quality.deadline_ns else 0)
