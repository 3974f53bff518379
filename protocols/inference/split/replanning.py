"""When another plan takes the place of the one in force.

Figures of links and nodes change all the time. Whoever followed each of them would load and unload stages for nothing.
So another plan is adopted only when it is predicted to be better by more than one in ``GAIN_PART`` parts, and the last
change is ``DWELL_NS`` ago. A plan that can't run any more is replaced at once.
"""

from typing import Final

from protocols.base import limits
from protocols.inference.split.plan import Goal, Plan

GAIN_PART: Final = 5
DWELL_NS: Final = 10 * limits.SECOND
"""How long a plan that can run is kept at least. To load the stages of a plan takes seconds."""


def is_worthwhile(best: Plan, still: Plan, goal: Goal, since_ns: int) -> bool:
    """Whether to change plans.

    ``still``: the plan in force with what it costs by the same figures as ``best``
    (:func:`protocols.inference.split.plan.price`). ``since_ns``: how long it has been in force.
    """
    if best.stages == still.stages or since_ns < DWELL_NS:
        return False
    cost_ns = still.cost_ns(goal)
    return (cost_ns - best.cost_ns(goal)) * GAIN_PART > cost_ns
