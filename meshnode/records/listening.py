"""The subscriptions of rules to readings of neighbours: each reading is handed on once, however many want it."""

import threading
from collections.abc import Callable, Sequence

from meshnode.readings.subscriptions import Subscription
from protocols.wire.readings import Reading


class NeighbourReadings:
    """See the module."""

    def __init__(self, node: str, take: Callable[[Reading], None]) -> None:
        """``take`` is called with each reading, on the thread that received it."""
        self._node, self._take = node, take
        self._subscribe: Callable[..., Subscription] | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._last = threading.local()

    def open(self, subscribe: Callable[..., Subscription]) -> None:
        """Subscriptions can be made from now on. ``subscribe`` is that of the node."""
        self._subscribe = subscribe

    def want(self, expressions: Sequence[str]) -> None:
        """Listen to these too."""
        if self._subscribe is not None:
            for expression in expressions:
                if expression not in self._subscriptions:
                    self._subscriptions[expression] = self._subscribe(
                        expression, callback=self._heard, own=False, history=False
                    )

    def want_only(self, expressions: Sequence[str]) -> None:
        """Listen to nothing else any more."""
        for expression in self._subscriptions.keys() - set(expressions):
            self._subscriptions.pop(expression).close()

    def _heard(self, reading: Reading) -> None:
        """A reading comes once for each expression that it matches, one right after the other."""
        last = self._last  # of this thread
        if reading.origin != self._node and reading is not getattr(last, "reading", None):
            last.reading = reading
            self._take(reading)
