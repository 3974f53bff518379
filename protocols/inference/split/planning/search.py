"""Best-first search over the beginnings of plans.

A beginning is a number of stages from the model's inputs on. Each has a lower bound of what any plan that begins so
costs: what it has cost so far, and the least that the rest can cost
(:mod:`protocols.inference.split.planning.remaining`). The search always continues the beginning with the least bound,
so plans come out in the order of their costs, as in A* (Hart, Nilsson and Raphael, 1968).

Three sums are limited. The period is no less than the time for which a request takes the processor at home, and no less
than that for which it takes the owner's interface; and home has so much memory. The least rest of each sum alone says
little, because a plan that is good for one is bad for another. The least rest of a weighted sum of them is known
exactly, and a plan that keeps all limits keeps any weighted sum of the limits (Lagrange). The search takes the largest
of a few such bounds.

A beginning is not continued after as many others as plans are wanted have reached the same boundary, with the same
neighbours left, at no higher costs of any kind: each plan with it would have that many others before it.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import NamedTuple

from msgspec import Struct

from protocols.inference.split.planning.remaining import Remaining
from protocols.inference.split.planning.tables import Ends, Tables


class Bounds(Struct, frozen=True):
    """What leads a search."""

    ends: Ends
    """The stages that may be placed."""
    latency: Remaining
    others: tuple[Remaining, ...]
    """Of weighted sums of which more is known than of latency alone."""
    by_period: bool = False
    """Whether plans come in the order of their period, or else in that of their latency."""
    least_period_ns: int = 0
    """No plan has a shorter period."""
    most_period_ns: int = 0
    """No plan with a longer period is looked for. It matters only for plans in the order of their period."""


class Beginning(NamedTuple):
    """Stages from the model's inputs to a boundary."""

    boundary: int
    left: int
    """The neighbours that have no stage, as bits."""
    home_last: bool
    latency_ns: int
    longest_ns: int
    """The longest service at a neighbour."""
    home_ns: int
    """How long a request takes the processor at home …"""
    interface_ns: int
    """… and the owner's interface."""
    home_weights: int
    home_largest: int
    """What home has to hold, in bytes: weights, and the largest boundary of its stages."""
    stages: int
    node: int
    before: "Beginning | None"
    """It without its last stage, which is at ``node``; None: it has no stage."""

    @property
    def period_ns(self) -> int:
        """The time between two results, if nothing else followed."""
        return max(self.longest_ns, self.home_ns, self.interface_ns)

    def placed(self) -> list[tuple[int, int, int]]:
        """First boundary, last boundary and node of each stage."""
        if self.before is None:
            return []
        return [*self.before.placed(), (self.before.boundary, self.boundary, self.node)]


class SearchResult(NamedTuple):
    """What came of a search."""

    plans: list[Beginning]
    """Whole ones, best first."""
    gave_up: bool = False
    """Whether there may be others."""


def best(tables: Tables, bounds: Bounds, most: int, patience: int) -> SearchResult:
    """The best whole plans, best first, at most ``most`` of them: by latency, or by period and then by latency.
    ``patience``: how many beginnings are continued before the search gives up."""
    return _search(tables, bounds, most, patience, exact=True)


def good(tables: Tables, bounds: Bounds, most: int) -> list[Beginning]:
    """Some plans, soon: of the beginnings that reach the same boundary with the same neighbours left, only the first
    ``most`` are continued. Better plans may be missed."""
    return _search(tables, bounds, most, patience=-1, exact=False).plans


def _search(tables: Tables, bounds: Bounds, most: int, patience: int, *, exact: bool) -> SearchResult:
    found: list[Beginning] = []
    settled: dict[tuple[int, int, bool], list[tuple[int, ...]]] = {}
    numbers = count()
    waiting: list[tuple[float, float, int, int, Beginning]] = []
    for neighbours in range(1 << tables.home):
        start = Beginning(0, neighbours, False, 0, 0, 0, 0, 0, 0, 0, -1, None)
        costs_ns = _least_costs(tables, start, bounds)
        if costs_ns is not None:
            heappush(waiting, (*costs_ns, tables.end, next(numbers), start))
    while waiting and len(found) < most:
        beginning = heappop(waiting)[-1]
        if beginning.boundary == tables.end:
            found.append(beginning)
            continue
        others = settled.setdefault(beginning[:3], [])
        costs = _costs(tables, beginning, bounds) if exact else ()
        if sum(all(map(int.__le__, other, costs)) for other in others) >= most:
            continue
        others.append(costs)
        if not patience:
            return SearchResult(found, gave_up=True)
        patience -= 1
        for longer in _continued(tables, beginning, bounds.ends):
            costs_ns = _least_costs(tables, longer, bounds)
            if costs_ns is not None:
                heappush(waiting, (*costs_ns, tables.end - longer.boundary, next(numbers), longer))
    return SearchResult(found)


def _costs(tables: Tables, beginning: Beginning, bounds: Bounds) -> tuple[int, ...]:
    """All that the costs of a plan with that beginning depend on."""
    costs: tuple[int, ...] = (beginning.latency_ns,)
    if tables.home_memory_bytes:
        costs = (*costs, beginning.home_weights, beginning.home_largest)
    if bounds.by_period:
        longest_ns = max(beginning.longest_ns, bounds.least_period_ns)
        costs = (*costs, longest_ns, beginning.home_ns, beginning.interface_ns)
    return costs


def _least_costs(tables: Tables, beginning: Beginning, bounds: Bounds) -> tuple[float, float] | None:
    """The least period and latency of any plan with that beginning, the period 0 where it does not matter; None: there
    is no such plan, or none that is looked for."""
    boundary, left, home_last = beginning[:3]
    latency_ns = beginning.latency_ns + bounds.latency.after(boundary, left, home_last)
    period_ns: float = max(beginning.period_ns, bounds.least_period_ns) if bounds.by_period else 0
    if latency_ns == inf or period_ns > bounds.most_period_ns:
        return None
    excess_bytes = beginning.home_weights + beginning.home_largest - tables.home_memory_bytes
    for rest in bounds.others:
        of_latency, of_home, of_interface, of_memory = rest.weights
        least = rest.after(boundary, left, home_last) + of_latency * beginning.latency_ns
        least += of_home * beginning.home_ns + of_interface * beginning.interface_ns + of_memory * excess_bytes
        if of_latency:
            latency_ns = max(latency_ns, -(-least // of_latency))
        elif least > (of_home + of_interface) * period_ns:
            if least > (of_home + of_interface) * bounds.most_period_ns:
                return None  # neither of them: home has too little memory
            period_ns = -(-least // (of_home + of_interface))
    return period_ns, latency_ns


def _continued(tables: Tables, beginning: Beginning, ends: Ends) -> Iterator[Beginning]:
    """The beginning with one stage more."""
    boundary, left, home_last, latency_ns, longest_ns, home_ns, interface_ns, weights, largest, stages = beginning[:10]
    home = tables.home
    if not home_last:
        started, given = tables.started_ns[home], tables.given[boundary]
        for last in ends[home][boundary]:
            service_ns = started[last] - started[boundary]
            yield Beginning(
                last, left, True, latency_ns + tables.home_queue_ns + service_ns, longest_ns, home_ns + service_ns,
                interface_ns, weights + tables.weights[last] - tables.weights[boundary],
                max(largest, given, tables.taken[last]), stages + 1, home, beginning,
            )  # fmt: skip
    for node in range(home):
        if left >> node & 1:
            started, up_ns, down_ns = tables.started_ns[node], tables.up_ns[node][boundary], tables.down_ns[node]
            for last in ends[node][boundary]:
                service_ns, link_ns = started[last] - started[boundary], up_ns + down_ns[last]
                yield Beginning(
                    last, left ^ 1 << node, False, latency_ns + tables.fixed_ns[node] + link_ns + service_ns,
                    max(longest_ns, service_ns), home_ns, interface_ns + link_ns, weights, largest, stages + 1, node,
                    beginning,
                )  # fmt: skip
