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

    def __init__(
        self, profile: Profile, home: Home | OwnerOnly, neighbours: Sequence[StageCandidate], first_at_home: bool
    ) -> None:  # fmt: skip
        """``first_at_home``: no neighbour is given an input of the model."""
        boundaries = profile.boundaries
        self.home, self.end = len(neighbours), len(boundaries) - 1
        self.given = [boundary.given_bytes for boundary in boundaries]
        self.taken = [boundary.size_bytes for boundary in boundaries]
        """What a stage is given that begins at a boundary, and what is taken from a stage that ends there, in bytes."""
        self.weights = [boundary.weight_bytes for boundary in boundaries]
        self.fixed_ns = [there.fixed_ns for there in neighbours]
        self.up_ns = [[transfer_ns(size, there.up_bytes_per_s) for size in self.given] for there in neighbours]
        self.down_ns = [[transfer_ns(size, there.down_bytes_per_s) for size in self.taken] for there in neighbours]
        self.started_ns = [[started_ns(boundary, there.whole_ns) for boundary in boundaries] for there in neighbours]
        self.ends = [self._ends(there.memory_bytes) for there in neighbours]
        shown = [first == 0 or boundary.inputs_bytes > 0 for first, boundary in enumerate(boundaries)]
        if first_at_home:
            self.ends = [[[] if shown[first] else ends for first, ends in enumerate(there)] for there in self.ends]
        self.home_queue_ns = self.home_memory_bytes = 0
        if isinstance(home, Home):
            self.started_ns.append([started_ns(boundary, home.whole_ns) for boundary in boundaries])
            self.ends.append(self._ends(home.memory_bytes))
            self.home_queue_ns = home.queue_ns
            if home.memory_bytes < self.weights[-1] + max(*self.given, *self.taken):  # or else it holds whatever comes
                self.home_memory_bytes = home.memory_bytes
        else:
            self.started_ns.append([0] * len(boundaries))
            self.ends.append([[] for _ in boundaries])

    def _ends(self, memory_bytes: int) -> list[list[int]]:
        """The stages that fit into ``memory_bytes``; 0: all."""
        weights, given, taken = self.weights, self.given, self.taken
        return [
            [
                last for last in range(first + 1, self.end + 1)
                if not memory_bytes or weights[last] - weights[first] + max(given[first], taken[last]) <= memory_bytes
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
