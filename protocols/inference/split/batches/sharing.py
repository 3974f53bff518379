"""Who gets shards of a batch, and how large they are.

Rules:

1. A node has at most one shard more than it runs at a time: the next one is there when the last one ends, and speed
   decides by itself who gets how many.
2. A node gets a shard only if it is predicted to be done with it before the others together are done with everything
   that is left. So no neighbour makes a batch slower than it would be without it, and neither does this node.
3. Neighbours that are distrusted, doubtful or not permitted get none, and no neighbour gets inputs of a private model.
   When nobody else can run the model, doubtful ones are better than nothing.
4. A model that takes any number of rows has about ``SHARDS_EACH`` shards for each node, all of one size, unless they
   would be too short to be worth their overhead.
5. A model that takes a fixed number of rows at a time has shards of several runs, since a run gives the same bits
   whatever runs stand beside it. A node gets as many as take it ``RUNS_NS``, and fewer towards the end of the batch,
   when all have to be done at the same time.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.asking import Asking
from protocols.inference.costs import Demand, Services
from protocols.inference.loads import OwnQueue
from protocols.inference.placement import Candidate
from protocols.inference.requests import OwnRequest
from protocols.inference.serving import MAX_SERVED_PER_NEIGHBOUR
from protocols.inference.split.batches.rows import MAX_SHARDS, Rows

SHARDS_EACH: Final = 8
"""A node that is done with its last shard while another one has just begun its own waits for a sixteenth of the whole
time, on average …"""
LEAST_SHARD_NS: Final = 5 * limits.MS
"""… but a shard takes at least this long, because it costs about half a millisecond of processor time on each side …"""
LEAST_SHARD_FACTOR: Final = 2
"""… and so many times as long as the way to the quickest neighbour and back, so that the second shard is there before
the first one ends."""
MAX_SHARD_BYTES: Final = 4 * 1024 * 1024
"""Inputs of one shard, unless one row has more, and outputs of one with several runs. Nothing overtakes a frame, and
these take 0.3 s at 100 Mb/s."""
RUNS_NS: Final = 200 * limits.MS
"""A shard costs about 1 ms of processor time on both sides, however many runs it has, and several times as much on a
small board. On the other hand, whoever is lost takes with it what it has begun."""
LAST_SHARE: Final = 4
"""Of the rows that wait, a shard has at most one in this many for each run that goes on at the same time."""


class AbleNode(NamedTuple):
    """A node that can run shards of a batch. Times are nanoseconds."""

    node: NodeId
    first_ns: int
    """From now to the end of the first run of a shard, if it gets one now."""
    run_ns: int
    """Of each further run of the same shard."""
    pace_ns: int
    """From the end of one run to the next, if it always has shards."""
    places: int
    """How many more it may have."""
    is_idle: bool
    """Whether it would begin at once, as far as the batch is concerned."""
    workers: int = 1
    """How many runs go on there at the same time."""
    most_runs: int = 1
    """How many runs a shard for it may have."""
    runs: int = 1
    """How many its next one should have."""

    @property
    def done_ns(self) -> int:
        """From now to the end of its next shard."""
        return self.done_with_ns(self.runs)

    def done_with_ns(self, runs: int) -> int:
        """From now to the end of a shard of so many runs, if it gets one now."""
        return self.first_ns + (runs - 1) * self.run_ns

    def with_one_more(self, runs: int) -> "AbleNode":
        """The same node when it has got one more, of so many runs."""
        return self._replace(first_ns=self.first_ns + runs * self.pace_ns, places=self.places - 1, is_idle=False)


class Sharing:
    """What is known of the nodes that can run shards."""

    def __init__(self, node: NodeId, asking: Asking, services: Services, own_queue: OwnQueue) -> None:
        """``services``: what runs on this node have taken."""
        self._node, self._asking, self._services, self._own_queue = node, asking, services, own_queue

    def size(self, model: str, digest: str, rows: Rows, budget_ns: int, now: int) -> int:
        """How many rows a shard should have; of a model that takes a fixed number of them, each of its runs."""
        if rows.unit:
            return rows.unit
        here, there = self._candidates(model, Demand(digest, rows.shard_bytes(1)), now + budget_ns, now)
        both = [here, *there] if here is not None else there
        least_ns = LEAST_SHARD_NS
        if there:
            quickest = min(there, key=lambda candidate: candidate.expected_ns)
            least_ns = max(least_ns, LEAST_SHARD_FACTOR * _way_ns(quickest))
        paces = [self._asking.costs.pace_ns(candidate.node, digest, now) for candidate in there]
        row_ns = (self._services.pace_ns(digest, now) or min(filter(None, paces), default=0)) * rows.row_bytes
        if not row_ns:  # nobody has run it lately; what nodes say of themselves was for one row or more
            row_ns = min((candidate.service_ns for candidate in both), default=0)
        size = max(ceil(rows.count / (SHARDS_EACH * max(len(both), 1))), ceil(least_ns / row_ns) if row_ns else 1)
        fitting = max((MAX_SHARD_BYTES - rows.same_bytes) // max(rows.row_bytes, 1), 1)
        return max(min(size, rows.count, fitting), ceil(rows.count / MAX_SHARDS))

    def able(
        self, model: str, demand: Demand, busy: Mapping[NodeId, int], deadline_ns: int, now: int
    ) -> list[AbleNode]:  # fmt: skip
        """The nodes that can run a shard. ``demand``: that of one run. ``busy``: how many shards of the batch nodes
        have; those that are not in it have none."""
        here, there = self._candidates(model, demand, deadline_ns, now)
        able = []
        if here is not None:
            workers, has = self._own_queue.workers, busy.get(self._node, 0)
            first_ns = max(here.expected_ns, (has // workers + 1) * here.service_ns)  # the last ones may not be queued
            able.append(_able(here, first_ns, here.service_ns, workers, has, limits.MAX_REQUEST_RUNS))
        for candidate in there:
            workers, has = self._asking.loads.workers_of(candidate.node), busy.get(candidate.node, 0)
            run_ns = max(candidate.service_ns, _way_ns(candidate))
            most = self._asking.candidates.most_runs(candidate.node)
            able.append(_able(candidate, candidate.expected_ns, run_ns, workers, has, most))
        return able

    def _candidates(
        self, model: str, demand: Demand, deadline_ns: int, now: int
    ) -> tuple[Candidate | None, list[Candidate]]:  # fmt: skip
        """What is predicted for this node and for the neighbours that may get shards."""
        probe = OwnRequest(0, model, demand.digest, (), (), now, deadline_ns - now, False)
        here, there = self._asking.candidates.both(probe, model, demand, now)
        sure = [candidate for candidate in there if not candidate.doubtful]
        return here, sure or (there if here is None else [])


def with_runs(able: Sequence[AbleNode], waiting: int, most: int) -> list[AbleNode]:
    """The same nodes, with how many runs their next shards should have. ``waiting``: how many runs wait. ``most``: how
    many a shard may have, whoever gets it."""
    share = ceil(waiting / (LAST_SHARE * max(sum(each.workers for each in able), 1)))
    most = min(most, share)
    return [
        each._replace(runs=max(min(most, each.most_runs, RUNS_NS // max(each.run_ns, 1)), 1)) for each in able
    ]  # fmt: skip


def next_node(able: Sequence[AbleNode], left: int) -> AbleNode | None:
    """Who should get the next shard; None: nobody now. ``left``: how many runs have not ended."""
    for each in in_order([each for each in able if each.places > 0]):
        others = [other for other in able if other is not each]
        if not others:
            return each
        speed = sum(1 / other.pace_ns for other in others)
        if each.done_ns <= max(min(other.done_ns for other in others), left / speed):
            return each
    return None


def in_order(able: Sequence[AbleNode]) -> list[AbleNode]:
    """The one that would be done first comes first."""
    return sorted(able, key=lambda each: (each.done_ns, each.node))


def _able(candidate: Candidate, first_ns: int, run_ns: int, workers: int, has: int, most_runs: int) -> AbleNode:
    places = min(workers + 1, MAX_SERVED_PER_NEIGHBOUR) - has
    pace_ns = max(run_ns // workers, 1)
    return AbleNode(candidate.node, first_ns, run_ns, pace_ns, places, has < workers, workers, most_runs)


def _way_ns(candidate: Candidate) -> int:
    """What a shard at a neighbour takes beside the run and the waiting for it."""
    return max(candidate.expected_ns - candidate.queue_ns - candidate.service_ns, 0)
