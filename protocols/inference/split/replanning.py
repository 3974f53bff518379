"""Which plan is in force, and when another one takes its place.

Figures of links and nodes change all the time. Whoever followed each of them would load and unload stages for nothing.
So another plan is adopted only when it is predicted to be better by more than ``GAIN_SHARE`` and the last change is
``DWELL_NS`` ago, or at once when the plan in force can't run any more.
"""

from typing import Final

from msgspec import Struct

from protocols.base import limits
from protocols.inference.split.plan import Goal, Plan

GAIN_SHARE: Final = 5
"""What is gained must be more than one in so many parts of what the plan in force costs now."""
DWELL_NS: Final = 10 * limits.SECOND
"""How long a plan that can run is kept at least. To load the stages of a plan takes seconds."""


class AdoptedPlan(Struct, frozen=True):
    """A plan in force."""

    epoch: int
    """Grows with each plan that is adopted, so that a stage of an earlier one is told apart."""
    plan: Plan
    """With the costs that were predicted when it was adopted."""
    since_ns: int


class Replanning:
    """The plan in force for one model; at first none."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._epoch = 0
        self.adopted: AdoptedPlan | None = None
        """None: no plan can run."""

    def consider(self, best: Plan | None, still: Plan | None, now: int) -> AdoptedPlan | None:
        """Adopt the best plan if that is worthwhile, and return the plan in force.

        ``best``: what the planner found; None: there is no plan. ``still``: the plan in force with what it costs by the
        same figures (:func:`protocols.inference.split.plan.price`); None: it can't run any more, or there is none.
        """
        if best is None:
            if still is None:
                self.adopted = None
        elif self.adopted is None or still is None or self._is_worthwhile(best, still, self.adopted, now):
            self._epoch += 1
            self.adopted = AdoptedPlan(self._epoch, best, now)
        return self.adopted

    def _is_worthwhile(self, best: Plan, still: Plan, adopted: AdoptedPlan, now: int) -> bool:
        if best.stages == adopted.plan.stages or now - adopted.since_ns < DWELL_NS:
            return False
        cost_ns = still.cost_ns(self._goal)
        return (cost_ns - best.cost_ns(self._goal)) * GAIN_SHARE > cost_ns
