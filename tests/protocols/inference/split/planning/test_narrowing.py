"""Of many cuts and neighbours those are kept that a good plan would use."""

from random import Random

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS
from protocols.inference.split.plan import CutPoint, Goal, Home, OwnerOnly, Profile, StageCandidate, price
from protocols.inference.split.planner import plans
from protocols.inference.split.planning.narrowing import MAX_CUTS, MAX_STAGE_NEIGHBOURS, fewer_cuts, fewer_neighbours

HOME = Home(NodeId("me"), 400 * MS)


def even(sizes: list[int]) -> Profile:
    """Cuts at equal distances."""
    count = len(sizes) + 1
    cuts = tuple(CutPoint(size, (index + 1) / count, index) for index, size in enumerate(sizes))
    return Profile(600_000, 1_000, cuts, len(sizes))


def there(number: int, whole_ms: int, bytes_per_s: float = 1e8, memory_bytes: int = 0) -> StageCandidate:
    """A neighbour at a distance of 2 ms."""
    return StageCandidate(
        NodeId(f"n-{number:02}"), whole_ms * MS, 2 * MS, bytes_per_s, bytes_per_s, memory_bytes=memory_bytes
    )


def test_fewer_cuts_of_few_are_all() -> None:
    """The search is exact for them."""
    profile = even([5] * MAX_CUTS)
    assert fewer_cuts(profile) == (profile, list(range(MAX_CUTS)))


def test_fewer_cuts_drop_the_larger_of_two_that_are_close() -> None:
    """Whoever divides the model nearly there sends less."""
    sizes = [100] * (MAX_CUTS + 3)
    sizes[7] = sizes[20] = 1
    cuts = list(even(sizes).cuts)
    for index in (7, 20, 30):  # moved close to the one before
        cuts[index] = CutPoint(cuts[index].size_bytes, cuts[index - 1].share + 1e-4, cuts[index - 1].weight_bytes)
    _, kept = fewer_cuts(Profile(600_000, 1_000, tuple(cuts), len(sizes)))
    assert len(kept) == MAX_CUTS
    dropped = set(range(len(sizes))) - set(kept)
    assert {6, 19} < dropped, "the smaller ones stay"
    assert len(dropped & {29, 30}) == 1, "one of two equal ones stays"


def test_fewer_cuts_keep_those_between_which_much_weight_lies() -> None:
    """They take no time to compute, and only they let a small node have a part of a large layer."""
    sizes = [100] * (MAX_CUTS + 5)
    sizes[9] = sizes[10] = 50
    cuts = list(even(sizes).cuts)
    cuts[10] = CutPoint(50, cuts[9].share + 1e-6, cuts[10].weight_bytes)
    cuts[10:] = [CutPoint(cut.size_bytes, cut.share, cut.weight_bytes + 1_000) for cut in cuts[10:]]
    _, kept = fewer_cuts(Profile(600_000, 1_000, tuple(cuts), 2_000))
    assert {9, 10} <= set(kept)


def test_plans_of_a_model_with_many_cuts_name_cuts_of_the_whole_model() -> None:
    """An index that counts kept cuts only would cut somewhere else."""
    sizes = [1_000_000] * 90
    sizes[44] = 10
    profile, neighbours = even(sizes), [there(1, 40, 1e6)]
    found = plans(profile, HOME, neighbours, "latency", first_at_home=True)
    assert (found[0].stages[0].last, found[0].stages[1].first) == (44, 44)
    assert all(price(profile, HOME, neighbours, plan.stages) == plan for plan in found)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("home", [HOME, OwnerOnly(NodeId("me"))])
def test_fewer_neighbours_are_the_fast_ones_that_can_be_reached(home: Home | OwnerOnly, goal: Goal) -> None:
    """Wherever they stand in the list."""
    useful = [there(number, 50 + number) for number in (3, 8, 11, 15, 19)]
    slow = [there(number, 3_000) for number in (0, 4, 12)]
    far = [there(number, 10, 1e3) for number in (1, 5, 13)]
    cramped = [there(number, 10, memory_bytes=100) for number in (2, 6, 14)]
    neighbours = sorted([*useful, *slow, *far, *cramped], key=lambda candidate: candidate.node)
    profile = even([100_000] * 10)
    assert fewer_neighbours(profile, home, neighbours, goal, first_at_home=False) == useful
    found = plans(profile, home, neighbours, goal, first_at_home=False)
    assert found == plans(profile, home, useful, goal, first_at_home=False)
    assert found


def test_fewer_neighbours_that_may_not_see_the_inputs_are_judged_by_what_they_may_compute() -> None:
    """A fast one behind a narrow link is good for the whole model, and bad for what comes behind a large cut."""
    profile = Profile(1_000, 1_000, (CutPoint(10_000_000, 0.1, 0),), 0)
    narrow = [there(number, 10 + number, 1e6) for number in range(5)]
    wide = [there(number, 300, 1e9) for number in range(5, 10)]
    assert fewer_neighbours(profile, HOME, [*narrow, *wide], "latency", first_at_home=False) == narrow
    assert fewer_neighbours(profile, HOME, [*narrow, *wide], "latency", first_at_home=True) == wide


def test_plans_with_many_neighbours_and_cuts_are_found_within_bounds() -> None:
    """As many as a node can have, and the largest model that was seen: more than any search could go through."""
    random = Random(1)
    profile = even([random.randrange(1_000, 1_000_000) for _ in range(444)])
    neighbours = [there(number, random.randrange(40, 800), random.uniform(1e5, 1e8)) for number in range(64)]
    for goal in ("latency", "throughput"):
        found = plans(profile, HOME, neighbours, goal, first_at_home=True)
        assert len(found) == 3
        nodes = {stage.node for plan in found for stage in plan.stages} - {HOME.node}
        assert 0 < len(nodes) <= MAX_STAGE_NEIGHBOURS
        assert all(price(profile, HOME, neighbours, plan.stages) == plan for plan in found)
