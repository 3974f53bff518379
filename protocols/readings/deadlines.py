"""Which streams must not fall silent, and until when.

A subscription with a deadline watches every stream that it matches. A stream that misses the deadline is reported once
for each silence; its next reading starts the watch anew. At most ``MAX_DEADLINES`` are watched. Who pays for a stream
pays for its watches, and the largest holder gives way. A watch that gives way is reported as missed, because nobody
would notice the silence otherwise.
"""

from heapq import heapify, heappop, heappush

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.readings.events import DeadlineMissed
from protocols.readings.streams import LocalSubscription, Stream

_Watch = tuple[int, str, str]
"""The number of a subscription, and the origin and the key of a stream."""


class Deadlines:
    """The deadlines of one router. It looks into the router's tables and changes only ``Stream.missed``."""

    __slots__ = (
        "_due", "_events", "_first_hand", "_gave_way_ns", "_hearsay", "_heap", "_rows", "_slices_due_ns",
        "_subscriptions", "due_ns",
    )  # fmt: skip

    def __init__(
        self, subscriptions: dict[int, LocalSubscription], first_hand: dict[tuple[str, str], Stream],
        hearsay: dict[tuple[str, str], Stream],
    ) -> None:  # fmt: skip
        """``hearsay`` counts only for subscriptions with hops."""
        self._subscriptions, self._first_hand, self._hearsay = subscriptions, first_hand, hearsay
        self.due_ns = NEVER
        """When :meth:`missed` may have something to report, or :meth:`plan` said that something is due; ``NEVER`` when
        nothing is."""
        self._slices_due_ns = NEVER
        self._gave_way_ns = NEVER  # since when a watch that gave way has to be told
        self._heap: list[tuple[int, _Watch]] = []  # with entries of watches that gave way; `_due` knows which count
        self._due: dict[_Watch, int] = {}
        self._rows: SharedRows[NodeId, _Watch] = SharedRows()
        self._events: list[DeadlineMissed] = []

    def __len__(self) -> int:
        return len(self._due)

    def watch(self, number: int, stream: Stream, due_ns: int, now: int) -> None:
        """Expect a reading of ``stream`` before ``due_ns``. Does nothing when that subscription watches it already."""
        watch = (number, stream.origin, stream.key)
        if watch in self._due:
            return
        while len(self._due) >= limits.MAX_DEADLINES:
            self._give_way(self._rows.next_to_go(), now)
        self._due[watch] = due_ns
        self._rows.add(stream.payer, watch)
        heappush(self._heap, (due_ns, watch))
        if len(self._heap) > 2 * limits.MAX_DEADLINES:
            self._heap = [(due, one) for one, due in self._due.items()]
            heapify(self._heap)
        self.due_ns = min(self.due_ns, due_ns)

    def watch_again(self, stream: Stream, now: int) -> None:
        """A stream that had missed deadlines has a reading again."""
        missed, stream.missed = stream.missed, ()
        for number in missed:
            subscription = self._subscriptions.get(number)
            if subscription is not None:
                self.watch(number, stream, now + subscription.quality.deadline_ns, now)

    def forget(self, number: int, stream: Stream) -> None:
        """A subscription that ended watches a stream no more. Its watches of streams that are gone end when they are
        due."""
        watch = (number, stream.origin, stream.key)
        if watch in self._due:
            self._end(watch)

    def disown(self, node: NodeId, heir: NodeId) -> None:
        """``heir`` pays from now on for what ``node`` has paid for, unless that is much."""
        if self._rows.shares.held(node) <= limits.MAX_DISOWNED:
            self._rows.move_all(node, heir)

    def missed(self, now: int) -> list[DeadlineMissed]:
        """The deadlines that have passed without a reading, up to ``MAX_DEADLINES_AT_ONCE``; then :attr:`due_ns` is not
        later than ``now``. A stream that is not known any more has missed them."""
        for _ in range(limits.MAX_DEADLINES_AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                break
            due_ns, watch = heappop(self._heap)
            if self._due.get(watch) == due_ns:
                self._is_due(watch, now)
        self._gave_way_ns = NEVER
        self.plan(self._slices_due_ns)
        events, self._events = self._events, []
        return events

    def plan(self, slices_due_ns: int) -> None:
        """Note when the router has something else to do. It is kept here because :attr:`due_ns` is read with every
        reading, and a comparison there costs 5 % of it."""
        self._slices_due_ns = slices_due_ns
        self.due_ns = min(self._heap[0][0] if self._heap else NEVER, slices_due_ns, self._gave_way_ns)

    def _is_due(self, watch: _Watch, now: int) -> None:
        number, origin, key = watch
        subscription = self._subscriptions.get(number)
        if subscription is None:
            self._end(watch)
            return
        deadline_ns = subscription.quality.deadline_ns
        latest_ns = max((stream.last_ns for stream in self._streams(subscription, origin, key)), default=-NEVER)
        if latest_ns + deadline_ns > now:
            self._due[watch] = latest_ns + deadline_ns
            heappush(self._heap, (latest_ns + deadline_ns, watch))
        else:
            self._report(watch)

    def _streams(self, subscription: LocalSubscription, origin: str, key: str) -> list[Stream]:
        """What is known of a stream, as far as it counts for a subscription."""
        known = [self._first_hand.get((origin, key))]
        if subscription.quality.hops:
            known.append(self._hearsay.get((origin, key)))
        return [stream for stream in known if stream is not None]

    def _give_way(self, watch: _Watch, now: int) -> None:
        if watch[0] in self._subscriptions:
            self._report(watch)
            self._gave_way_ns = min(self._gave_way_ns, now)
            self.due_ns = min(self.due_ns, now)
        else:
            self._end(watch)

    def _report(self, watch: _Watch) -> None:
        number, origin, key = watch
        self._end(watch)
        self._events.append(DeadlineMissed(number, origin, key))
        for stream in self._streams(self._subscriptions[number], origin, key):
            stream.missed = (*stream.missed, number)

    def _end(self, watch: _Watch) -> None:
        del self._due[watch]
        self._rows.remove(watch)
