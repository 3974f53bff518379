"""The least that the rest of a plan can cost, from each boundary on and for each set of neighbours that are left.

It is dynamic programming over subsets (Held and Karp, 1962), from the end of the model backwards. What a stage at a
neighbour costs is a sum of what depends on its beginning and what depends on its end, so for each set, neighbour and
beginning the ends that the stage may have are compared in one call: 80 × 41 calls for five neighbours and 40 cuts. The
memory that one stage takes is respected, and that of all stages at home together is not.
"""

from collections.abc import Callable
from math import inf
from operator import add
from typing import NamedTuple

from msgspec import Struct

from protocols.inference.split.planning.tables import Ends, Tables


class Weights(NamedTuple):
    """How much each of the four sums counts that stages add to."""

    latency: int = 0
    home: int = 0
    """The nanoseconds for which the processor at home is taken."""
    interface: int = 0
    """The nanoseconds for which the owner's interface is taken."""
    memory: int = 0
    """The bytes of weights at home."""


class Remaining(Struct, frozen=True):
    """The least costs from a boundary on, by the set of neighbours that are left (as bits) and by boundary; ``inf``: it
    can't be done."""

    weights: Weights
    neighbour_next: list[list[float]]
    """With the next stage at a neighbour …"""
    any_next: list[list[float]]
    """… or wherever it costs less."""

    def after(self, boundary: int, left: int, home_last: bool) -> float:
        """From ``boundary`` on, when the stage before it is at home or is not: two stages at home in a row are one."""
        return (self.neighbour_next if home_last else self.any_next)[left][boundary]

    def whole(self, neighbours: int) -> float:
        """Of a plan with just these neighbours, as bits."""
        return self.any_next[neighbours][0]


def least(tables: Tables, ends: Ends, weights: Weights) -> Remaining:
    """The least weighted costs over all ways to place the rest of a model."""
    home, boundaries = tables.home, range(tables.end + 1)
    begin, finish, home_until = _begin(tables, weights), _finish(tables, weights), _home_until(tables, weights)
    smallest = [[_smallest_of(lasts) for lasts in by_first] for by_first in ends]
    found = Remaining(weights, [], [])
    for left in range(1 << home):
        neighbour_next = [inf] * tables.end + [inf if left else 0.0]
        for node in range(home):
            if left >> node & 1:
                through = list(map(add, finish[node], found.any_next[left ^ 1 << node]))
                costs = [begin[node][first] + smallest[node][first](through) for first in boundaries]
                neighbour_next = list(map(min, neighbour_next, costs))
        through = list(map(add, home_until, neighbour_next))
        home_next = [
            weights.latency * tables.home_queue_ns - home_until[first] + smallest[home][first](through)
            for first in boundaries
        ]
        found.neighbour_next.append(neighbour_next)
        found.any_next.append(list(map(min, home_next, neighbour_next)))
    return found


def _begin(tables: Tables, weights: Weights) -> list[list[int]]:
    """What a stage at a neighbour costs by its first boundary …"""
    links = weights.latency + weights.interface
    return [
        [weights.latency * (fixed - started) + links * up for started, up in zip(starteds, ups, strict=True)]
        for fixed, starteds, ups in zip(tables.fixed_ns, tables.started_ns, tables.up_ns, strict=False)
    ]


def _finish(tables: Tables, weights: Weights) -> list[list[int]]:
    """… and by its last boundary."""
    links = weights.latency + weights.interface
    return [
        [weights.latency * started + links * down for started, down in zip(starteds, downs, strict=True)]
        for starteds, downs in zip(tables.started_ns, tables.down_ns, strict=False)
    ]


def _home_until(tables: Tables, weights: Weights) -> list[int]:
    """What stages at home cost up to a boundary, beside waiting."""
    times = weights.latency + weights.home
    return [
        times * started + weights.memory * held
        for started, held in zip(tables.started_ns[tables.home], tables.weights, strict=True)
    ]


def _smallest_of(places: list[int]) -> Callable[[list[float]], float]:
    """What finds the smallest number at some places of a list."""
    if not places:
        return lambda numbers: inf
    begin, end = places[0], places[-1] + 1
    if end - begin == len(places):  # three times as fast
        return lambda numbers: min(numbers[begin:end])
    return lambda numbers: min([numbers[place] for place in places])
