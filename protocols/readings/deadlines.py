"""Which streams must not fall silent, and until when.

A subscription with a deadline watches every stream that it matches. A stream that misses the deadline is reported once
for each silence; its next reading starts the watch anew.
"""

from heapq import heappop, heappush

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.readings.events import DeadlineMissed
from protocols.readings.streams import LocalSubscription, Stream


class Deadlines:
    """The deadlines of one router. It looks into the router's tables and changes only ``Stream.missed``."""

    __slots__ = ("_first_hand", "_hearsay", "_heap", "_subscriptions", "_watched", "due_ns")

    def __init__(
        self, subscriptions: dict[int, LocalSubscription], first_hand: dict[tuple[str, str], Stream],
        hearsay: dict[tuple[str, str], Stream],
    ) -> None:  # fmt: skip
        """``hearsay`` counts only for subscriptions with hops."""
        self._subscriptions, self._first_hand, self._hearsay = subscriptions, first_hand, hearsay
        self.due_ns = NEVER
        """When :meth:`missed` may have something to report; ``NEVER`` when nothing is watched."""
        self._heap: list[tuple[int, int, str, str]] = []
        self._watched: set[tuple[int, str, str]] = set()

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, number: int, stream: Stream, due_ns: int) -> None:
        """Expect a reading of ``stream`` before ``due_ns``. Does nothing when that subscription watches it already, or
        when ``MAX_STREAMS`` are watched."""
        watched = (number, stream.origin, stream.key)
        if len(self._heap) < limits.MAX_STREAMS and watched not in self._watched:
            self._watched.add(watched)
            heappush(self._heap, (due_ns, *watched))
            self.due_ns = self._heap[0][0]

    def watch_again(self, stream: Stream, now: int) -> None:
        """A stream that had missed deadlines has a reading again."""
        missed, stream.missed = stream.missed, ()
        for number in missed:
            subscription = self._subscriptions.get(number)
            if subscription is not None:
                self.watch(number, stream, now + subscription.quality.deadline_ns)

    def missed(self, now: int) -> list[DeadlineMissed]:
        """The deadlines that have passed without a reading. A stream that is not known any more has missed them."""
        events = []
        while self._heap and self._heap[0][0] <= now:
            _, number, origin, key = heappop(self._heap)
            self._watched.discard((number, origin, key))
            subscription = self._subscriptions.get(number)
            if subscription is None:
                continue
            streams = [self._first_hand.get((origin, key))]
            if subscription.quality.hops:
                streams.append(self._hearsay.get((origin, key)))
            known = [stream for stream in streams if stream is not None]
            deadline_ns = subscription.quality.deadline_ns
            latest = max(known, key=lambda stream: stream.last_ns, default=None)
            if latest is not None and latest.last_ns + deadline_ns > now:
                self.watch(number, latest, latest.last_ns + deadline_ns)
                continue
            events.append(DeadlineMissed(number, origin, key))
            for stream in known:
                stream.missed = (*stream.missed, number)
        self.due_ns = self._heap[0][0] if self._heap else NEVER
        return events
