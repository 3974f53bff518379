"""A plan is replaced for a clear gain, and not too often."""

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.inference.split.plan import Goal, PlacedStage, Plan
from protocols.inference.split.replanning import DWELL_NS, is_worthwhile

HOME, RSU = NodeId("home"), NodeId("rsu-1")


def undivided(node: NodeId, latency_ms: float, period_ms: float = 50) -> Plan:
    """All at one node."""
    return Plan((PlacedStage(-1, 3, node),), int(latency_ms * MS), int(period_ms * MS))


@pytest.mark.parametrize(("best_ms", "changes"), [(81, False), (80, False), (79.9, True)])
def test_plan_changes_only_for_more_than_a_fifth(best_ms: float, changes: bool) -> None:
    """Predictions are noisy, and stages have to be loaded."""
    assert is_worthwhile(undivided(RSU, best_ms), undivided(HOME, 100), "latency", 60 * SECOND) == changes


@pytest.mark.parametrize(("goal", "changes"), [("latency", False), ("throughput", True)])
def test_plan_changes_for_what_the_goal_counts(goal: Goal, changes: bool) -> None:
    """A plan for a stream is worth its period, even when each request takes longer."""
    assert is_worthwhile(undivided(RSU, 120, 20), undivided(HOME, 100, 100), goal, 60 * SECOND) == changes


@pytest.mark.parametrize(("since_ns", "changes"), [(DWELL_NS - 1, False), (DWELL_NS, True)])
def test_plan_that_can_run_is_kept_for_the_dwell(since_ns: int, changes: bool) -> None:
    """A radio that wavers would otherwise have stages loaded and unloaded all the time."""
    assert is_worthwhile(undivided(RSU, 1), undivided(HOME, 100), "latency", since_ns) == changes


def test_same_stages_are_no_other_plan() -> None:
    """Only its figures have changed."""
    assert not is_worthwhile(undivided(RSU, 1), undivided(RSU, 100), "latency", 60 * SECOND)
