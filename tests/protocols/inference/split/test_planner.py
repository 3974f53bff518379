"""The planner finds the best plans, and no plan that breaks a rule."""

from itertools import product
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import NodeId
from protocols.inference.split import planner
from protocols.inference.split.plan import CutPoint, Goal, Home, OwnerOnly, Profile, StageCandidate, price
from protocols.inference.split.planner import plans
from tests.protocols.inference.split.enumeration import HOME, Problem, costs, every_plan, problems
from tests.tools.strategies import MODEST, THOROUGH

GOALS: tuple[Goal, ...] = ("latency", "throughput")
A, B = NodeId("a"), NodeId("b")


def assert_best(problem: Problem, goal: Goal, first_at_home: bool, most: int) -> None:
    """What the planner finds are the best of all plans."""
    every = {plan.stages: plan for plan in every_plan(problem, first_at_home)}
    found = plans(*problem, goal, first_at_home=first_at_home, most=most)
    assert [costs(plan, goal) for plan in found] == sorted(costs(plan, goal) for plan in every.values())[:most]
    assert len({plan.stages for plan in found}) == len(found)
    for plan in found:
        assert plan == every[plan.stages] == price(*problem, plan.stages)


@THOROUGH
@given(problems(max_cuts=4, max_neighbours=3), st.sampled_from(GOALS), st.booleans(), st.integers(1, 4))
def test_plans_of_small_problems_are_the_best_of_all(
    problem: Problem, goal: Goal, first_at_home: bool, most: int
) -> None:
    """A bound that is too high by a nanosecond would hide the best plan, and nobody would notice."""
    assert_best(problem, goal, first_at_home, most)


@MODEST
@given(problems(max_cuts=12, max_neighbours=2), st.sampled_from(GOALS), st.booleans())
def test_plans_of_long_models_are_the_best_of_all(problem: Problem, goal: Goal, first_at_home: bool) -> None:
    """Home has up to three stages there."""
    assert_best(problem, goal, first_at_home, 3)


@MODEST
@given(problems(max_cuts=6, max_neighbours=3), st.booleans())
def test_plans_by_period_are_the_best_of_all_when_the_search_gives_up_early(
    problem: Problem, first_at_home: bool
) -> None:
    """The limit is then lowered and raised again many times."""
    with patch.object(planner, "MANY", 1):
        assert_best(problem, "throughput", first_at_home, 3)


@MODEST
@given(problems(max_cuts=6, max_neighbours=3), st.sampled_from(GOALS), st.booleans())
def test_plans_are_still_plans_when_the_search_is_cut_short(problem: Problem, goal: Goal, first_at_home: bool) -> None:
    """Figures that make the search long must not leave a node without a plan, or with one that breaks the rules."""
    every = {plan.stages: plan for plan in every_plan(problem, first_at_home)}
    with patch.object(planner, "TOO_MANY", 1), patch.object(planner, "MANY", 1):
        found = plans(*problem, goal, first_at_home=first_at_home)
    assert [plan for plan in found if plan != every.get(plan.stages)] == []
    assert found == sorted(found, key=lambda plan: costs(plan, goal))
    assert len({plan.stages for plan in found}) == len(found)
    assert found or not every or getattr(problem[1], "memory_bytes", 0), "only the memory at home can be misjudged"


def test_plans_of_every_tiny_problem_are_the_best_of_all() -> None:
    """Random draws could leave a corner out: each combination of fast and slow, near and far, roomy and cramped."""
    profile = Profile(8, 2, (CutPoint(4, 0.25, 3), CutPoint(1, 0.5, 5)), 10)
    homes = [OwnerOnly(HOME), *(Home(HOME, whole, 0, memory) for whole, memory in product((16, 160), (0, 8, 17)))]
    rates = (1e9, 1e9 / 16)
    for home, whole, up, down, memory in product(homes, (16, 64), rates, rates, (0, 9)):
        there = (StageCandidate(A, whole, 1, up, down, 0, 0, memory), StageCandidate(B, 32, 2, 5e8, 5e8, 3, 1, 10))
        for goal, first_at_home, neighbours in product(GOALS, (False, True), (there[:0], there[:1], there)):
            assert_best((profile, home, neighbours), goal, first_at_home, 3)
