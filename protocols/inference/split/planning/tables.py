"""A problem of planning by numbers, made once, so that the search only adds.

Boundaries are 0 (the model's inputs) to ``end`` (its outputs). Computing nodes are 0 to ``home`` - 1, the neighbours,
and ``home``.
"""

from bisect import bisect_right
from collections.abc import Sequence

from protocols.inference.split.plan import Home, OwnerOnly, Profile, StageCandidate, started_ns, transfer_ns

Ends = list[list[list[int]]]
"""By computing node and first boundary: the last boundaries that a stage there may have, ascending."""


class Tables:
    """What stages cost and need, by node and boundary."""

    def __init__(self, profile: Profile, home: Home | OwnerOnly, neighbours: Sequence[StageCandidate]) -> None:
        boundaries = profile.boundaries
        self.home, self.end = len(neighbours), len(boundaries) - 1
        self.sizes = [boundary.size_bytes for boundary in boundaries]
        self.weights = [boundary.weight_bytes for boundary in boundaries]
        self.fixed_ns = [there.fixed_ns for there in neighbours]
        self.up_ns = [[transfer_ns(size, there.up_bytes_per_s) for size in self.sizes] for there in neighbours]
        self.down_ns = [[transfer_ns(size, there.down_bytes_per_s) for size in self.sizes] for there in neighbours]
        self.started_ns = [[started_ns(boundary, there.whole_ns) for boundary in boundaries] for there in neighbours]
        self.ends = [self._ends(there.memory_bytes) for there in neighbours]
        self.home_queue_ns = self.home_memory_bytes = 0
        if isinstance(home, Home):
            self.started_ns.append([started_ns(boundary, home.whole_ns) for boundary in boundaries])
            self.ends.append(self._ends(home.memory_bytes))
            self.home_queue_ns = home.queue_ns
            if home.memory_bytes < self.weights[-1] + max(self.sizes):  # otherwise it holds whatever comes
                self.home_memory_bytes = home.memory_bytes
        else:
            self.started_ns.append([0] * len(boundaries))
            self.ends.append([[] for _ in boundaries])

    def _ends(self, memory_bytes: int) -> list[list[int]]:
        """The stages that fit into ``memory_bytes``; 0: all."""
        weights, sizes = self.weights, self.sizes
        return [
            [
                last for last in range(first + 1, self.end + 1)
                if not memory_bytes or weights[last] - weights[first] + max(sizes[first], sizes[last]) <= memory_bytes
            ]
            for first in range(self.end + 1)
        ]  # fmt: skip

    def ends_within(self, service_ns: int) -> Ends:
        """The ends of stages that take no longer than ``service_ns``."""
        return [
            [
                lasts[: bisect_right(lasts, service_ns + started[first], key=started.__getitem__)]
                for first, lasts in enumerate(by_first)
            ]
            for started, by_first in zip(self.started_ns, self.ends, strict=True)
        ]
