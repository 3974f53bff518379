"""The best ways to divide a model among the owner of a request and its neighbours.

For a short latency the search (:mod:`protocols.inference.split.planning.search`) runs once. For a short period the
stages that may be placed depend on the period: none may take longer. So the range of possible periods is first narrowed
by bisection, with lower bounds alone, and then searched with a limit that is raised until enough plans are below it.

The result is exact for five neighbours and 40 cuts. Of more, the most promising are kept
(:mod:`protocols.inference.split.planning.narrowing`). docs/adr/0030 has the times that it takes; call it outside the
engine's lock.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from protocols.inference.split.plan import Goal, Home, OwnerOnly, PlacedStage, Plan, Profile, StageCandidate
from protocols.inference.split.planning.narrowing import fewer_cuts, fewer_neighbours
from protocols.inference.split.planning.remaining import Remaining, Weights, least
from protocols.inference.split.planning.search import FOREVER, Beginning, Bounds, best
from protocols.inference.split.planning.tables import Ends, Tables

UNIT: Final = 1 << 20
"""A weight of 1, so that a nanosecond and a byte can be weighed against each other by whole numbers."""
MEMORY: Final = Weights(memory=1)
"""What shows that the memory at home is too small."""
MEANS: Final = tuple(Weights(home=home * UNIT, interface=(4 - home) * UNIT) for home in range(5))
"""How the processor at home and the owner's interface are weighted in lower bounds of the period."""
QUICK_MEANS: Final = MEANS[1:4]
"""The same while the range of periods is narrowed."""
NARROW_SHARE: Final = 64
"""The range of periods is narrow when it is one in so many parts of the period."""
WIDENED: Final = 2
"""By how much the range grows when there are too few plans in it."""
MANY: Final = 1_000
PRICES: Final = tuple(2.0**exponent for exponent in range(-6, 7))
"""What memory at home may be worth, in parts of the time that its weights are computed there."""
BEST_PRICES: Final = 3
"""Of these prices, how many lead the search."""


def plans(
    profile: Profile, home: Home | OwnerOnly, neighbours: Sequence[StageCandidate], goal: Goal, *,
    first_at_home: bool, most: int = 3,
) -> list[Plan]:  # fmt: skip
    """The best plans, best first, at most ``most`` of them; none when the model fits nowhere.

    Plans that divide nothing are among those that are compared. Each neighbour has at most one stage. Of plans with the
    same period the one with the shortest latency is best. ``first_at_home``: the model's inputs don't leave home, so
    the first stage is there. No two of ``home`` and ``neighbours`` are the same node.
    """
    fewer, kept = fewer_cuts(profile)
    there = fewer_neighbours(fewer, home, neighbours, goal, first_at_home)
    tables = Tables(fewer, home, there)
    found = best(tables, _by_latency(tables, first_at_home), first_at_home, most).plans
    if goal == "throughput":
        found = _by_period(tables, found, first_at_home, most)
    cuts = [-1, *kept, len(profile.cuts)]
    nodes = [*(neighbour.node for neighbour in there), home.node]
    return [
        Plan(
            tuple(PlacedStage(cuts[first], cuts[last], nodes[node]) for first, last, node in whole.placed()),
            whole.latency_ns, whole.period_ns,
        )
        for whole in found
    ]  # fmt: skip


def _by_latency(tables: Tables, first_at_home: bool) -> Bounds:
    """What leads to short latencies."""
    others: list[Remaining] = []
    if tables.home_memory_bytes:
        others = [least(tables, tables.ends, MEMORY)]
        others += _priced(tables, tables.ends, Weights(latency=UNIT), first_at_home)[:BEST_PRICES]
    return Bounds(tables.ends, least(tables, tables.ends, Weights(latency=1)), tuple(others))


def _priced(tables: Tables, ends: Ends, weights: Weights, first_at_home: bool) -> list[Remaining]:
    """The least costs with several prices of the memory at home, that with the highest lower bound first."""
    ns_a_byte = tables.started_ns[tables.home][-1] / max(tables.weights[-1], 1)
    rests = [least(tables, ends, weights._replace(memory=int(price * ns_a_byte * UNIT))) for price in PRICES]
    return sorted(rests, key=lambda rest: -_above(tables, rest, first_at_home))


def _above(tables: Tables, rest: Remaining, first_at_home: bool) -> float:
    """A lower bound of a weighted sum without memory: whatever a plan saves of memory is paid for."""
    return rest.whole(first_at_home) - rest.weights.memory * tables.home_memory_bytes


def _by_period(tables: Tables, quickest: list[Beginning], first_at_home: bool, most: int) -> list[Beginning]:
    """The plans with the shortest periods. ``quickest``: those with the shortest latencies, which show what periods can
    be reached."""
    if len(quickest) < most:  # there are no others
        return sorted(quickest, key=lambda whole: (whole.period_ns, whole.latency_ns))
    reached_ns = max(whole.period_ns for whole in quickest)
    sums: tuple[Weights, ...] = (MEMORY,) if tables.home_memory_bytes else ()
    missed_ns, limit_ns = _narrowed(tables, -1, reached_ns, (*sums, *QUICK_MEANS), first_at_home)
    if tables.home_memory_bytes:
        price = _priced(tables, tables.ends_within(limit_ns), QUICK_MEANS[1], first_at_home)[0].weights.memory
        sums += tuple(mean._replace(memory=price) for mean in QUICK_MEANS)
        missed_ns, limit_ns = _narrowed(tables, missed_ns, reached_ns, sums, first_at_home)
    least_ns, refuted_ns, open_ns = missed_ns + 1, missed_ns, reached_ns
    range_ns = limit_ns - missed_ns
    while True:
        limit_ns = min(refuted_ns + range_ns, open_ns)
        is_narrow = limit_ns - refuted_ns <= max(limit_ns // NARROW_SHARE, 1)
        ends = tables.ends_within(limit_ns)
        others = tuple(least(tables, ends, weights) for weights in (*sums, *MEANS))
        bounds = Bounds(ends, least(tables, ends, Weights(latency=1)), others, True, least_ns, limit_ns)
        found = best(tables, bounds, first_at_home, most, FOREVER if is_narrow else MANY)
        if len(found.plans) == most:
            return found.plans
        if found.gave_up:
            open_ns, range_ns = limit_ns, max((limit_ns - refuted_ns) // 2, 1)
        else:
            refuted_ns, range_ns = limit_ns, range_ns * WIDENED
            if limit_ns == open_ns:
                open_ns = reached_ns
            if not found.plans:
                least_ns = limit_ns + 1


def _narrowed(
    tables: Tables, missed_ns: int, reached_ns: int, sums: Iterable[Weights], first_at_home: bool
) -> tuple[int, int]:
    """A period that is shorter than that of any plan, and a longer one that bounds don't exclude. ``missed_ns``,
    ``reached_ns``: such periods that are known."""
    while reached_ns - missed_ns > max(reached_ns // NARROW_SHARE, 1):
        middle_ns = (missed_ns + reached_ns) // 2
        ends = tables.ends_within(middle_ns)
        if any(
            _above(tables, least(tables, ends, weights), first_at_home) > middle_ns * (weights.home + weights.interface)
            for weights in sums
        ):
            missed_ns = middle_ns
        else:
            reached_ns = middle_ns
    return missed_ns, reached_ns
