"""How long a run would wait at each neighbour: by its reports, which grow old, and by the runs that it has of ours.

A neighbour says how long the next run would wait there, in its offers and with each answer. What waited there at that
time is done after that time, so a report shrinks as it grows old. Runs that were sent since are not in it. And whatever
it says, runs of ours that it has not answered are before the next one.
"""

from typing import Final, NamedTuple

from protocols.base.allowance import Allowance
from protocols.base.durations import MAX_DURATION_NS
from protocols.base.ids import NodeId

ASKED_PER_S: Final = 900
MAX_ASKED_BURST: Final = 900
"""Requests to one neighbour: it looks at a thousand frames a second, cancellations included, and drops the others."""
MAX_WORKERS: Final = 64
"""Runs at the same time; whoever claims more is not believed."""
USUAL_GAIN: Final = 16
"""The inverse gain of the mean of reports: a neighbour is usually idle when it was so for a dozen answers."""


class _Sent(NamedTuple):
    at_ns: int
    service_ns: int


class _Load:
    __slots__ = ("allowance", "at_ns", "queue_ns", "sent", "usual_ns", "workers")

    def __init__(self) -> None:
        self.queue_ns = self.at_ns = self.usual_ns = 0
        self.workers = 1
        self.allowance = Allowance(ASKED_PER_S, MAX_ASKED_BURST, 0)
        self.sent: dict[int, _Sent] = {}


class OwnQueue:
    """What this node knows of its own queue grows old too: the shell tells it only when a run is queued or ends."""

    __slots__ = ("_at_ns", "workers")

    def __init__(self) -> None:
        self._at_ns = 0
        self.workers = 1
        """How many runs go on here at the same time."""

    def told(self, now: int) -> None:
        """The models of this node, with their queues, were told."""
        self._at_ns = now

    def left_ns(self, queue_ns: int, now: int) -> int:
        """What is left of a queue that was told then."""
        return max(queue_ns - (now - self._at_ns), 0)


class Loads:
    """The loads of neighbours; bounded by the neighbours and by the requests under way."""

    def __init__(self) -> None:
        self._of: dict[NodeId, _Load] = {}

    def reported(self, node: NodeId, queue_us: int, now: int, workers: int | None = None) -> None:
        """A neighbour says how long the next run would wait, and how many runs it does at a time."""
        load = self._of.setdefault(node, _Load())
        load.queue_ns, load.at_ns = min(queue_us * 1_000, MAX_DURATION_NS), now
        load.usual_ns += (load.queue_ns - load.usual_ns) // USUAL_GAIN
        if workers is not None:
            load.workers = min(max(workers, 1), MAX_WORKERS)

    def sent(self, node: NodeId, run: int, service_ns: int, now: int) -> None:
        """A run of ours goes to a neighbour, and is expected to take ``service_ns`` there."""
        load = self._of.setdefault(node, _Load())
        load.sent[run] = _Sent(now, service_ns)
        load.allowance.take(now)

    def may_ask(self, node: NodeId, now: int) -> bool:
        """Whether a neighbour would look at one more request now."""
        load = self._of.get(node)
        return load is None or load.allowance.left(now) >= 1

    def ended(self, node: NodeId, run: int) -> None:
        """A run of ours is no longer there."""
        load = self._of.get(node)
        if load is not None:
            load.sent.pop(run, None)

    def workers_of(self, node: NodeId) -> int:
        """How many runs a neighbour does at a time."""
        load = self._of.get(node)
        return load.workers if load is not None else 1

    def usual_ns(self, node: NodeId) -> int:
        """How long runs wait there usually, by the mean of the reports."""
        load = self._of.get(node)
        return load.usual_ns if load is not None else 0

    def queue_ns(self, node: NodeId, now: int) -> int:
        """How long a run that is sent now would wait."""
        load = self._of.get(node)
        if load is None:
            return 0
        reported_ns = max(load.queue_ns - (now - load.at_ns), 0)
        ours = load.sent.values()
        since_ns = sum(sent.service_ns for sent in ours if sent.at_ns >= load.at_ns)
        unanswered_ns = sum(max(sent.service_ns - (now - sent.at_ns), 0) for sent in ours)
        if len(ours) < load.workers:
            return reported_ns
        return max(reported_ns + since_ns // load.workers, unanswered_ns // load.workers)

    def forget(self, node: NodeId) -> None:
        """A neighbour is gone."""
        self._of.pop(node, None)
