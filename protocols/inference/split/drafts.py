"""What a node knows of a model that it splits: its plan in force, those that are being made ready, and their stages."""

from msgspec import Struct

from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.inference.split.events import SplitModel, Stage, StageRange
from protocols.inference.split.pipelines import StagedPlan
from protocols.inference.split.plan import Plan


class Draft:
    """A plan whose stages are made, and what its trials took."""

    __slots__ = ("failed", "plan", "staged", "times_ns", "under_way", "why")

    def __init__(self, plan: Plan, staged: StagedPlan) -> None:
        self.plan, self.staged = plan, staged
        self.times_ns: list[int] = []
        self.failed = self.under_way = False
        self.why = ""
        """Why it failed, or waits."""

    def fail(self, why: str) -> None:
        """It will not be in force."""
        self.failed, self.why = True, why

    @property
    def timed_ns(self) -> int:
        """The shortest trial but the first, which only warms up; 0: there was none."""
        return min(self.times_ns[1:], default=0)


class InForce(Struct, frozen=True):
    """The plan that requests follow."""

    plan: Plan
    staged: StagedPlan
    timed_ns: int
    since_ns: int


class SplitState:
    """One model that is split."""

    __slots__ = (
        "drafts", "force", "is_untidy", "known", "last", "look_ns", "made_ns", "model", "passed", "planning", "plans",
        "since_ns", "stages",
    )  # fmt: skip

    def __init__(self, model: SplitModel, now: int) -> None:
        self.model = model
        self.look_ns = now
        """When to look at neighbours and costs again."""
        self.made_ns = -NEVER
        """When plans were made last."""
        self.known: tuple[NodeId, ...] | None = None
        """Who was in reach when they were made."""
        self.planning = False
        self.plans: list[Plan] = []
        """Those whose stages are being made."""
        self.stages: dict[StageRange, Stage] = {}
        """Those that are made, of all plans."""
        self.drafts: list[Draft] = []
        self.since_ns = now
        """Since when the drafts are made ready."""
        self.force: InForce | None = None
        self.last: StagedPlan | None = None
        """The plan that was in force until one of its nodes could not be asked any more. This node runs all of its
        stages until another plan is in force."""
        self.passed: list[Draft] = []
        """Those of the last time that others were preferred to, for people."""
        self.is_untidy = False
        """Whether stages are loaded here only because requests under way need them."""
