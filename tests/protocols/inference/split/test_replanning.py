"""A plan is replaced for a clear gain, and at once when it can't run any more."""

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.inference.split.plan import Goal, PlacedStage, Plan
from protocols.inference.split.replanning import DWELL_NS, AdoptedPlan, Replanning

HOME, RSU = NodeId("home"), NodeId("rsu-1")


def undivided(node: NodeId, latency_ms: float, period_ms: float = 50) -> Plan:
    """All at one node."""
    return Plan((PlacedStage(-1, 3, node),), int(latency_ms * MS), int(period_ms * MS))


def test_replanning_adopts_the_first_plan_at_once() -> None:
    """There is nothing to compare it with."""
    replanning = Replanning("latency")
    assert replanning.consider(None, None, 0) is None
    assert replanning.consider(undivided(HOME, 100), None, 5) == AdoptedPlan(1, undivided(HOME, 100), 5)


@pytest.mark.parametrize(("best_ms", "changes"), [(81, False), (80, False), (79.9, True)])
def test_replanning_changes_plans_only_for_more_than_a_fifth(best_ms: float, changes: bool) -> None:
    """Predictions are noisy, and stages have to be loaded."""
    replanning = Replanning("latency")
    replanning.consider(undivided(HOME, 50), None, 0)
    adopted = replanning.consider(undivided(RSU, best_ms), undivided(HOME, 100), 60 * SECOND)
    assert adopted is not None
    assert (adopted.epoch == 2) == changes, "the costs of now are compared, not those of the day of adoption"


@pytest.mark.parametrize(("goal", "changes"), [("latency", False), ("throughput", True)])
def test_replanning_counts_what_the_goal_counts(goal: Goal, changes: bool) -> None:
    """A plan for a stream is worth its period, even when each request takes longer."""
    replanning = Replanning(goal)
    replanning.consider(undivided(HOME, 100, 100), None, 0)
    adopted = replanning.consider(undivided(RSU, 120, 20), undivided(HOME, 100, 100), 60 * SECOND)
    assert adopted is not None
    assert (adopted.plan.stages[0].node == RSU) == changes


def test_replanning_keeps_a_plan_that_can_run_for_the_dwell() -> None:
    """A radio that wavers would otherwise have stages loaded and unloaded all the time."""
    replanning = Replanning("latency")
    replanning.consider(undivided(HOME, 100), None, 7)
    slow, fast = undivided(HOME, 100), undivided(RSU, 1)
    for now, epoch in ((7 + DWELL_NS - 1, 1), (7 + DWELL_NS, 2)):
        adopted = replanning.consider(fast, slow, now)
        assert adopted is not None
        assert adopted.epoch == epoch


def test_replanning_leaves_a_plan_that_can_not_run_at_once() -> None:
    """Requests would fail until the dwell ends."""
    replanning = Replanning("latency")
    replanning.consider(undivided(RSU, 10), None, 0)
    assert replanning.consider(undivided(HOME, 100), None, 1) == AdoptedPlan(2, undivided(HOME, 100), 1)


def test_replanning_without_a_plan_that_can_run_has_none_and_counts_epochs_on() -> None:
    """A stage of an epoch that was used twice could answer for a plan that is gone."""
    replanning = Replanning("latency")
    replanning.consider(undivided(RSU, 10), None, 0)
    assert replanning.consider(None, None, 1) is None
    assert replanning.adopted is None
    assert replanning.consider(undivided(RSU, 10), None, 2) == AdoptedPlan(2, undivided(RSU, 10), 2)


def test_replanning_keeps_a_plan_that_can_run_when_the_planner_finds_none() -> None:
    """The planner looks at fewer cuts than a plan may have."""
    replanning = Replanning("latency")
    adopted = replanning.consider(undivided(RSU, 10), None, 0)
    assert replanning.consider(None, undivided(RSU, 10), 1) is adopted


def test_replanning_does_not_count_the_same_stages_as_a_change() -> None:
    """Whatever they cost now."""
    replanning = Replanning("latency")
    adopted = replanning.consider(undivided(RSU, 100), None, 0)
    assert replanning.consider(undivided(RSU, 10), undivided(RSU, 100), 60 * SECOND) is adopted
