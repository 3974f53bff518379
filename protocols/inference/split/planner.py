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
from protocols.inference.split.planning.search import Beginning, Bounds, best, good
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
MANY: Final = 500
"""Beginnings that are continued before a range of periods is taken for too wide. They take about as long as the bounds
of a smaller range."""
TOO_MANY: Final = 20_000
"""Beginnings that are continued before the search is no longer exact, so that no figures of neighbours can keep a node
busy for longer than some seconds. No problem with figures like real ones came near it."""
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
    the first stage is there, and so is each that begins at a cut behind which inputs are used. No two of ``home`` and
    ``neighbours`` are the same node.
    """
    fewer, kept = fewer_cuts(profile)
    there = fewer_neighbours(fewer, home, neighbours, goal, first_at_home)
    tables = Tables(fewer, home, there, first_at_home)
    found = _by_latency(tables, most)
    if goal == "throughput":
        found = _by_period(tables, found, most)
    cuts = [-1, *kept, len(profile.cuts)]
    nodes = [*(neighbour.node for neighbour in there), home.node]
    return [
        Plan(
            tuple(PlacedStage(cuts[first], cuts[last], nodes[node]) for first, last, node in whole.placed()),
            whole.latency_ns, whole.period_ns,
        )
        for whole in found
    ]  # fmt: skip


def _by_latency(tables: Tables, most: int) -> list[Beginning]:
    """The plans with the shortest latencies."""
    others: list[Remaining] = []
    if tables.home_memory_bytes:
        others = [least(tables, tables.ends, MEMORY)]
        others += _priced(tables, tables.ends, Weights(latency=UNIT))[:BEST_PRICES]
    bounds = Bounds(tables.ends, least(tables, tables.ends, Weights(latency=1)), tuple(others))
    found = best(tables, bounds, most, TOO_MANY)
    if not found.gave_up:
        return found.plans
    return _first(sorted([*found.plans, *good(tables, bounds, most)], key=lambda whole: whole.latency_ns), most)


def _first(plans_: Iterable[Beginning], most: int) -> list[Beginning]:
    """The first ``most`` different ones."""
    return list({tuple(whole.placed()): whole for whole in plans_}.values())[:most]


def _priced(tables: Tables, ends: Ends, weights: Weights) -> list[Remaining]:
    """The least costs with several prices of the memory at home, that with the highest lower bound first."""
    ns_a_byte = tables.started_ns[tables.home][-1] / max(tables.weights[-1], 1)
    rests = [least(tables, ends, weights._replace(memory=int(price * ns_a_byte * UNIT))) for price in PRICES]
    return sorted(rests, key=lambda rest: -min(_above(tables, rest, chosen) for chosen in range(1 << tables.home)))


def _above(tables: Tables, rest: Remaining, neighbours: int) -> float:
    """A lower bound of a weighted sum without memory, for plans with just these neighbours: whatever a plan saves of
    memory is paid for."""
    return rest.whole(neighbours) - rest.weights.memory * tables.home_memory_bytes


def _by_period(tables: Tables, quickest: list[Beginning], most: int) -> list[Beginning]:
    """The plans with the shortest periods. ``quickest``: those with the shortest latencies, which show what periods can
    be reached."""
    if len(quickest) < most:  # there are no others
        return sorted(quickest, key=_period_first)
    reached_ns = max(whole.period_ns for whole in quickest)
    sums: tuple[Weights, ...] = (MEMORY,) if tables.home_memory_bytes else ()
    missed_ns, limit_ns = _narrowed(tables, -1, reached_ns, (*sums, *QUICK_MEANS))
    if tables.home_memory_bytes:
        price = _priced(tables, tables.ends_within(limit_ns), QUICK_MEANS[1])[0].weights.memory
        sums += tuple(mean._replace(memory=price) for mean in QUICK_MEANS)
    least_ns, refuted_ns, open_ns = missed_ns + 1, missed_ns, reached_ns
    range_ns = limit_ns - missed_ns
    while True:
        limit_ns = min(refuted_ns + range_ns, open_ns)
        is_narrow = limit_ns - refuted_ns <= max(limit_ns // NARROW_SHARE, 1)
        ends = tables.ends_within(limit_ns)
        others = tuple(least(tables, ends, weights) for weights in (*sums, *MEANS))
        bounds = Bounds(ends, least(tables, ends, Weights(latency=1)), others, True, least_ns, limit_ns)
        found = best(tables, bounds, most, TOO_MANY if is_narrow else MANY)
        if len(found.plans) == most:
            return found.plans
        if found.gave_up and is_narrow:
            known = [*found.plans, *good(tables, bounds, most), *quickest]
            return _first(sorted(known, key=_period_first), most)
        if found.gave_up:
            open_ns, range_ns = limit_ns, max((limit_ns - refuted_ns) // 2, 1)
        else:
            assert limit_ns < reached_ns, "these plans are known"
            refuted_ns, range_ns = limit_ns, range_ns * WIDENED
            if limit_ns == open_ns:
                open_ns = reached_ns
            if not found.plans:
                least_ns = limit_ns + 1


def _period_first(whole: Beginning) -> tuple[int, int]:
    return whole.period_ns, whole.latency_ns


def _narrowed(tables: Tables, missed_ns: int, reached_ns: int, sums: Iterable[Weights]) -> tuple[int, int]:
    """A period that is shorter than that of any plan, and a longer one that bounds don't exclude. ``missed_ns``,
    ``reached_ns``: such periods that are known."""
    while reached_ns - missed_ns > max(reached_ns // NARROW_SHARE, 1):
        middle_ns = (missed_ns + reached_ns) // 2
        if _may_be_reached(tables, middle_ns, sums):
            reached_ns = middle_ns
        else:
            missed_ns = middle_ns
    return missed_ns, reached_ns


def _may_be_reached(tables: Tables, period_ns: int, sums: Iterable[Weights]) -> bool:
    """Whether there are neighbours with whom bounds do not exclude a period."""
    ends, chosen = tables.ends_within(period_ns), list(range(1 << tables.home))
    for weights in sums:
        rest, most = least(tables, ends, weights), period_ns * (weights.home + weights.interface)
        chosen = [neighbours for neighbours in chosen if _above(tables, rest, neighbours) <= most]
        if not chosen:
            break
    return bool(chosen)
