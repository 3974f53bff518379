"""Which cuts and which neighbours are worth a search when there are too many.

- Of the two neighbouring cuts that differ least in what lies before them, the one that is larger goes, until there are
  few enough. What lies before a cut is its share of the run time and its share of the weights; the larger difference
  counts. A cut that is smaller than those around it stays to the end.
- The neighbours are kept that give the cheapest plans when each of them is alone with the home and computes one stage,
  while the home, whatever its memory is, computes the rest. An owner that can't compute is taken for as slow as the
  slowest neighbour.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from protocols.inference.split.plan import Goal, Home, OwnerOnly, Profile, StageCandidate, started_ns
from protocols.inference.split.planning.tables import Tables

MAX_CUTS: Final = 40
MAX_STAGE_NEIGHBOURS: Final = 5
"""The search grows with 2 to the power of this, and with the square of the number of cuts."""


def fewer_cuts(profile: Profile) -> tuple[Profile, list[int]]:
    """The profile with at most ``MAX_CUTS`` cuts, and their indices in the whole one."""
    kept = list(range(len(profile.cuts)))
    differences = [_difference(profile, one, other) for one, other in pairwise(kept)]
    while len(kept) > MAX_CUTS:
        at = differences.index(min(differences))
        if profile.cuts[kept[at]].given_bytes <= profile.cuts[kept[at + 1]].given_bytes:
            at += 1
        del kept[at]
        around = slice(max(at - 1, 0), at + 1)
        differences[around] = [_difference(profile, one, other) for one, other in pairwise(kept[around])]
    cuts = tuple(profile.cuts[index] for index in kept)
    return Profile(profile.input_bytes, profile.output_bytes, cuts, profile.weight_bytes), kept


def _difference(profile: Profile, one: int, other: int) -> float:
    """How much of the model lies between two cuts, 0 to 1."""
    before, after = profile.cuts[one], profile.cuts[other]
    weights = (after.weight_bytes - before.weight_bytes) / max(profile.weight_bytes, 1)
    return max(after.share - before.share, weights)


def fewer_neighbours(
    profile: Profile, home: Home | OwnerOnly, neighbours: Sequence[StageCandidate], goal: Goal, first_at_home: bool
) -> list[StageCandidate]:
    """The most promising ``MAX_STAGE_NEIGHBOURS`` of those that can hold a stage, in the order in which they came."""
    whole_ns = home.whole_ns if isinstance(home, Home) else max((there.whole_ns for there in neighbours), default=0)
    at_home = [started_ns(boundary, whole_ns) for boundary in profile.boundaries]
    tables = Tables(profile, home, neighbours, first_at_home)
    able = [number for number in range(len(neighbours)) if any(tables.ends[number])]
    if len(able) > MAX_STAGE_NEIGHBOURS:
        costs = {number: _with_home(tables, number, at_home, goal) for number in able}
        able = sorted(sorted(able, key=costs.__getitem__)[:MAX_STAGE_NEIGHBOURS])
    return [neighbours[number] for number in able]


def _with_home(tables: Tables, number: int, at_home: list[int], goal: Goal) -> tuple[int, int]:
    """What the best stage at a neighbour costs together with the rest at home, as the goal counts and as latency."""
    best: list[tuple[int, int]] = []
    started, up_ns, down_ns = tables.started_ns[number], tables.up_ns[number], tables.down_ns[number]
    for first, lasts in enumerate(tables.ends[number]):
        for last in lasts:
            rest_ns = at_home[-1] - at_home[last] + at_home[first]
            service_ns, link_ns = started[last] - started[first], up_ns[first] + down_ns[last]
            latency_ns = rest_ns + service_ns + link_ns + tables.fixed_ns[number]
            cost_ns = latency_ns if goal == "latency" else max(rest_ns, service_ns, link_ns)
            best.append((cost_ns, latency_ns))
    return min(best)
