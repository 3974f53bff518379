"""Subscribing to a key expression: what a node and an application that is connected to one have in common."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from meshnode.readings.subscriptions import Subscription
from protocols.base import limits
from protocols.base.errors import LocalProtocolError
from protocols.base.keys import checked_expression
from protocols.readings.quality import Quality
from protocols.wire.readings import Reading

ReadingCallback = Callable[[Reading], object]


class Subscribing(ABC):
    """Makes subscriptions."""

    loop: asyncio.AbstractEventLoop

    @abstractmethod
    def require_open(self) -> None:
        """:raises LocalProtocolError: outside ``async with``."""

    @abstractmethod
    def _subscribe(
        self, expression: str, quality: Quality, subscription: Subscription, callback: ReadingCallback
    ) -> Callable[[], None]:
        """Deliver to ``callback`` on behalf of ``subscription``; returns a function that ends it."""

    def subscribe(
        self, expression: str, callback: ReadingCallback | None = None, *, deadline_ms: int = 0,
        max_rate_hz: float = 0.0, conflate: bool = False, history: bool = True, hops: int = 0, own: bool = True,
        depth: int = 1_024, every: bool = False,
    ) -> Subscription:  # fmt: skip
        """Readings whose key matches ``expression`` (``veh/*/speed``, ``rsu/**``), of this node and of neighbours.

        Without ``callback``: iterate over the result with ``async for``; at most ``depth`` readings wait.
        With ``callback``: it runs on the receiving thread and holds up all receiving while it runs.

        ``deadline_ms``: count streams that are silent for longer. ``max_rate_hz``: the most readings of a stream per
        second; the publisher leaves out the others. ``conflate``: keep only the newest of the waiting readings of a
        key. ``history``: begin with the last known values. ``hops``: how many times neighbours pass the subscription on
        to theirs. ``own``: deliver this node's readings too. ``every``: where a link carries less than is published,
        have all readings wait for it, up to the bounds of its queue and their lifespan, and not only the newest.

        :raises InvalidKey: when ``expression`` is not one. :raises BoundExceeded: with too many subscriptions open.
        :raises LocalProtocolError: for a number that is out of range, or with both ``conflate`` and ``every``.
        """
        if max_rate_hz < 0 or deadline_ms < 0 or depth < 1 or not 0 <= hops <= limits.MAX_HOPS:
            raise LocalProtocolError(
                f"max_rate_hz {max_rate_hz}, deadline_ms {deadline_ms}, depth {depth} or hops {hops} is out of range"
            )
        self.require_open()
        checked_expression(expression)
        quality = Quality(
            deadline_ns=deadline_ms * limits.MS, min_interval_ns=int(limits.SECOND / max_rate_hz) if max_rate_hz else 0,
            conflate=conflate, history=history, hops=hops, own=own, every=every,
        )  # fmt: skip
        subscription = Subscription(expression, depth, conflate, None if callback is not None else self.loop)
        subscription.bind(self._subscribe(expression, quality, subscription, callback or subscription.take))
        return subscription
