"""The split models of this node: which plan is in force for each, and which requests follow it.

The life of a plan:

    looked at (every ``LOOK_NS``) ──▶ MakePlans ──▶ the best plans ──▶ MakeStages ──▶ neighbours make stages ready
        ▲                                                                                      │
        └────────────── in force (epoch n) ◀── the one that was fastest when timed ◀── each is timed

Rules:

1. A plan takes the place of another only for more than a fifth of predicted gain and after ``DWELL_NS``, or at once
   when the one in force can't run any more. Epochs only grow. Requests under way end by the plan that they began with.
2. The best three plans are timed with inputs of zeros before one is in force: predictions of stages are off by up to a
   quarter.
3. A request follows the plan only when that is predicted to be clearly faster than the whole model anywhere it may run,
   or when the whole can't run in time at all. It is never slower because there is a plan.
4. Inputs of a private model never leave this node: neither the whole nor its first stage goes to a neighbour.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.reach import Reach
from protocols.base.time import NEVER
from protocols.inference.asking import Asking
from protocols.inference.costs import Demand
from protocols.inference.events import Answered, Decided
from protocols.inference.offers import OfferTable
from protocols.inference.placement import LocalModel
from protocols.inference.split.choosing import best, fits, is_faster
from protocols.inference.split.devices import Devices
from protocols.inference.split.drafts import Draft, InForce, SplitState
from protocols.inference.split.events import (
    KeepStages,
    MakePlans,
    MakeStages,
    SplitModel,
    Stage,
    StageRange,
    stage_name,
)
from protocols.inference.split.lending import Lending
from protocols.inference.split.pipelines import Pipelines, PlannedStage, StagedPlan
from protocols.inference.split.plan import Plan, price
from protocols.inference.split.replanning import is_worthwhile
from protocols.inference.split.views import HelperView, PlanState, PlanView, SplitView, StageView
from protocols.links.drops import Drops
from protocols.wire.inference import StageState
from protocols.wire.tensors import NamedTensor

LOOK_NS: Final = limits.SECOND
"""How often neighbours and costs are looked at."""
PLAN_EVERY_NS: Final = 10 * limits.SECOND
"""How often plans are made when nobody came or left."""
MAX_TIMED: Final = 3
TRIALS: Final = 3
"""Runs by which a plan is timed; the first only warms up."""
TRIAL_BUDGET_NS: Final = 30 * limits.SECOND
READY_TIMEOUT_NS: Final = 180 * limits.SECOND
"""A plan whose stages are not ready by then is given up. 100 MB take as long at 5 Mb/s."""


class Splitting:
    """See the module."""

    def __init__(
        self, node: NodeId, access: AccessTable, asking: Asking, models: Mapping[str, LocalModel], offers: OfferTable,
        reachable: Callable[[int], list[Reach]], drops: Drops, decided: Decided, numbers: Iterator[int],
    ) -> None:  # fmt: skip
        """``models``: those that are loaded here now."""
        self._node, self._asking, self._offers, self._decided = node, asking, offers, decided
        self._splits: dict[str, SplitState] = {}
        self.lending = Lending(drops, decided)
        self.devices = Devices(node, access, asking, models, offers, reachable, self.lending)
        self.pipelines = Pipelines(asking, numbers)
        self._epoch = 0

    # --- models ----------------------------------------------------------------------------------------------------
    def set_model(self, model: SplitModel, now: int) -> None:
        """A model may be split. What was known of one of that name is forgotten."""
        self.forget_model(model.name)
        self._splits[model.name] = SplitState(model, now)
        self._offers.add_stage(model.name, model.digest, model.signature)  # it may be here in parts only
        candidates = self._asking.candidates
        if model.private:
            candidates.private = candidates.private | {model.name}

    def forget_model(self, name: str) -> None:
        """A model is no longer split. It stays private if it was."""
        split = self._splits.pop(name, None)
        if split is not None:
            self._offers.forget_stage(name)
            self._forget_stages(split, ())

    # --- requests --------------------------------------------------------------------------------------------------
    def begin(
        self, model: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int, hedge: bool,
        now: int,
    ) -> int | None:  # fmt: skip
        """Start a request as a pipeline, and return its number; None: the whole model should compute it."""
        split = self._splits.get(model)
        staged = None if split is None else split.force.staged if split.force is not None else split.last
        if split is None or staged is None:
            return None
        if len(self.pipelines.piped) >= limits.MAX_PENDING_REQUESTS // 2:
            return None
        if self._asking.digest_of(model) not in (None, staged.digest) or not fits(split.model, inputs):
            return None
        if not is_faster(self._asking, staged, inputs, budget_ns, now):
            return None
        number, answers = self.pipelines.begin(staged, inputs, outputs, budget_ns, hedge, now)
        self._decided.events += answers
        return number

    def abandon(self, number: int, now: int) -> bool:
        """The caller no longer wants an answer. Returns whether it was a pipeline."""
        return self.pipelines.abandon(number, now)

    def note_trials(self, now: int) -> None:
        """Take up the times of trials that have ended."""
        ended, self.pipelines.ended = self.pipelines.ended, []
        for staged, answered in ended:
            self._timed(staged, answered, now)

    # --- plans -----------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Look at the neighbours, make plans, and time them."""
        self.lending.handle_timer(now)
        self._decided.events += self.pipelines.handle_timer(now)
        for split in self._splits.values():
            if now >= split.look_ns:
                split.look_ns = now + LOOK_NS
                self._look(split, now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        looks_ns = (split.look_ns for split in self._splits.values())
        return min(self.pipelines.next_timer_at(), *looks_ns) if self._splits else NEVER

    def _look(self, split: SplitState, now: int) -> None:
        home, neighbours = self.devices.home(split.model), self.devices.neighbours(split.model, split.stages, now)
        in_reach = tuple(sorted(neighbour.node for neighbour in neighbours))
        if split.force is not None and self._still(split, split.force.plan, now) is None:
            self._leave(split)
            split.made_ns = -NEVER
        due = in_reach != split.known or now - split.made_ns >= PLAN_EVERY_NS
        if due and not split.planning and not split.drafts and not split.plans:
            split.planning, split.known, split.made_ns = True, in_reach, now
            model = split.model
            self._decided.effects.append(MakePlans(
                model.name, model.profile, home, neighbours, model.goal, model.private or model.first_at_home
            ))  # fmt: skip
        if split.drafts:
            self._make_ready(split, now)
        if split.force is not None:
            self._want(split.force.staged, now)
        if split.is_untidy and not split.drafts and not split.plans:
            self._tidy(split)

    def _still(self, split: SplitState, plan: Plan, now: int) -> Plan | None:
        """The plan with what it costs now; None: it can't run any more."""
        neighbours = self.devices.neighbours(split.model, split.stages, now, doubtful=True)
        return price(split.model.profile, self.devices.home(split.model), neighbours, plan.stages)

    def _want(self, staged: StagedPlan, now: int) -> None:
        """Have neighbours make their stages ready, and keep them ready."""
        for planned in staged.stages:
            if planned.node != self._node:
                self.lending.want(planned.node, planned.stage.digest, now)

    def planned(self, name: str, plans: Sequence[Plan], now: int) -> None:
        """The driver has made plans, best first; none: it can't."""
        split = self._splits.get(name)
        if split is None or not split.planning:
            return
        split.planning = False
        divided = [plan for plan in plans if len(plan.stages) > 1][:MAX_TIMED]
        if not divided:
            return
        if split.force is not None:
            still, since_ns = self._still(split, split.force.plan, now), now - split.force.since_ns
            if still is not None and not is_worthwhile(divided[0], still, split.model.goal, since_ns):
                return
        split.plans, split.since_ns, split.passed = divided, now, []
        for plan in divided:
            self._make(split, plan, False)

    def _make(self, split: SplitState, plan: Plan, spare: bool) -> None:
        """Have the driver make the stages of a plan. ``spare``: this node loads those of neighbours too, so that it can
        go on from a boundary when one is lost."""
        ranges = {StageRange(stage.first, stage.last): stage.node for stage in plan.stages}
        here = tuple(range_ for range_, node in ranges.items() if spare or node == self._node)
        self._decided.effects.append(MakeStages(split.model.name, tuple(ranges), here))

    def stages_made(
        self, name: str, ranges: Sequence[StageRange], stages: Sequence[tuple[StageRange, Stage]], now: int
    ) -> None:  # fmt: skip
        """The driver has done :class:`~.events.MakeStages` with these ranges. Stages that are missing can't be made."""
        split = self._splits.get(name)
        if split is None:
            return
        wanted = [(placed.first, placed.last) for placed in ranges]
        plan = next((each for each in split.plans if [(p.first, p.last) for p in each.stages] == wanted), None)
        if plan is None:  # these are the spare ones of a plan in force
            return
        split.plans.remove(plan)
        made = dict(stages)
        if all(StageRange(placed.first, placed.last) in made for placed in plan.stages):
            for range_, stage in made.items():
                split.stages[range_] = stage
                self._offers.add_stage(stage_name(name, stage.digest), stage.digest, stage.signature)
                if split.model.private and range_.first < 0:  # a neighbour that has the same file may offer it
                    self._asking.candidates.private |= {stage_name(name, stage.digest)}
                if stage.content:
                    self.lending.add(name, split.model.digest, stage)
            split.drafts.append(Draft(plan, self._staged(split, plan, made)))
        split.since_ns = now
        self._make_ready(split, now)

    def _staged(self, split: SplitState, plan: Plan, made: Mapping[StageRange, Stage]) -> StagedPlan:
        self._epoch += 1
        model, boundaries = split.model, split.model.profile.boundaries
        planned = []
        for placed in plan.stages:
            stage = made[StageRange(placed.first, placed.last)]
            name, size_bytes = stage_name(model.name, stage.digest), boundaries[placed.first + 1].given_bytes
            planned.append(PlannedStage(name, stage, placed.node, size_bytes, StageRange(placed.first, placed.last)))
        outputs = tuple(each.name for each in model.signature.outputs)
        return StagedPlan(model.name, model.digest, self._epoch, tuple(planned), outputs)

    def _make_ready(self, split: SplitState, now: int) -> None:
        """Have neighbours make stages ready, and time the first plan that is ready and was not timed."""
        for draft in split.drafts:
            self._want(draft.staged, now)
        if any(draft.under_way for draft in split.drafts):
            return
        waiting = [draft for draft in split.drafts if not draft.failed and len(draft.times_ns) < TRIALS]
        ready = next((draft for draft in waiting if self._is_ready(draft)), None)
        if ready is not None:
            ready.under_way = True
            self.pipelines.begin(
                ready.staged, split.model.samples, (), TRIAL_BUDGET_NS, False, now, trial=True
            )  # fmt: skip
            return
        for draft in waiting:
            if refusals := self._refusals(draft, now):
                draft.fail(refusals[0])
            elif now - split.since_ns >= READY_TIMEOUT_NS:
                draft.fail(f"its stages were not ready within {READY_TIMEOUT_NS // limits.SECOND} s")
        timed = [draft for draft in split.drafts if not draft.failed and len(draft.times_ns) >= TRIALS]
        if split.drafts and not split.plans and all(draft.failed or draft in timed for draft in split.drafts):
            self._adopt(split, timed, now)
        elif split.force is None and timed:  # better than none, until the others are timed too
            self._put_in_force(split, timed[0], now)

    def _is_ready(self, draft: Draft) -> bool:
        return all(
            planned.node == self._node or self.lending.is_ready(planned.node, planned.stage.digest)
            for planned in draft.staged.stages
        )

    def _refusals(self, draft: Draft, now: int) -> list[str]:
        return [
            f"{planned.node}: {why}" for planned in draft.staged.stages
            if planned.node != self._node and (why := self.lending.why_refused(planned.node, draft.staged.model, now))
        ]  # fmt: skip

    def _timed(self, staged: StagedPlan, answered: Answered, now: int) -> None:
        """A trial has ended."""
        split = self._splits.get(staged.model)
        draft = next((draft for draft in split.drafts if draft.staged is staged), None) if split is not None else None
        if split is None or draft is None:
            return
        draft.under_way = False
        followed = [part.node for part in answered.parts] == [planned.node for planned in staged.stages]
        if answered.winner is None:
            draft.fail(f"a trial failed: {answered.detail or answered.failure}")
        elif not followed:
            draft.fail("in a trial, another node took over a stage")
        else:
            draft.times_ns.append(answered.took_ns)
        self._make_ready(split, now)

    def _adopt(self, split: SplitState, timed: Sequence[Draft], now: int) -> None:
        """Put the plan in force that was fastest when it was timed, and forget the stages of the others."""
        split.passed, split.drafts = split.drafts, []
        if timed:
            goal = split.model.goal
            best = min(timed, key=lambda draft: draft.timed_ns if goal == "latency" else draft.plan.period_ns)
            for draft in timed:
                draft.why = "another plan was faster" if goal == "latency" else "another plan gives more results"
            split.passed.remove(best)
            self._put_in_force(split, best, now)
        self._tidy(split)

    def _put_in_force(self, split: SplitState, draft: Draft, now: int) -> None:
        split.force, split.last = InForce(draft.plan, draft.staged, draft.timed_ns, now), None
        self._make(split, draft.plan, bool(split.model.run_ns))

    def _leave(self, split: SplitState) -> None:
        """A node of the plan in force can't be asked any more, so this node runs all its stages."""
        if split.force is not None:
            if split.model.run_ns:
                self._make(split, split.force.plan, True)
            split.last, split.force, split.is_untidy = split.force.staged, None, True

    def _tidy(self, split: SplitState) -> None:
        """Forget the stages that neither the plan in force nor requests under way need."""
        under_way = [staged for staged in self.pipelines.followed() if staged.model == split.model.name]
        force = split.force.staged if split.force is not None else split.last
        split.is_untidy = any(staged is not force for staged in under_way)
        needed = [*under_way, force] if force is not None else under_way
        self._forget_stages(split, {planned.range for staged in needed for planned in staged.stages})
        names = frozenset(stage_name(split.model.name, stage.digest) for stage in split.stages.values())
        self._decided.effects.append(KeepStages(split.model.name, names))

    def _forget_stages(self, split: SplitState, needed: Collection[StageRange]) -> None:
        gone = [split.stages.pop(range_) for range_ in list(split.stages) if range_ not in needed]
        every = {stage.digest for other in self._splits.values() for stage in other.stages.values()}
        for stage in gone:
            self._offers.forget_stage(stage_name(split.model.name, stage.digest))
            if stage.digest not in every:  # what is called ready there would be believed to be offered
                self.lending.forget(stage.digest)

    # --- stages at neighbours --------------------------------------------------------------------------------------
    def told(self, frame: StageState, source: NodeId, now: int) -> None:
        """A neighbour says how a stage of this node stands there."""
        if not self.lending.told(frame, source, now):
            return
        for split in self._splits.values():
            if any(stage.digest == frame.digest for stage in split.stages.values()):
                name = stage_name(split.model.name, frame.digest)
                if frame.state == "ready":
                    self._offers.stage_ready(source, name, frame.compute_us, now)
                else:
                    self._offers.stage_lost(source, name)
                split.look_ns = now

    def neighbour_met(self, node: NodeId, role: Role) -> None:
        """A neighbour can be asked."""
        self.devices.roles[node] = role

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone: plans that need it are not followed any more."""
        self.devices.roles.pop(node, None)
        self.lending.neighbour_gone(node)
        for split in self._splits.values():
            if split.force is not None and any(planned.node == node for planned in split.force.staged.stages):
                self._leave(split)
            split.look_ns = now

    # --- for people ------------------------------------------------------------------------------------------------
    def views(self) -> list[PlanView]:
        """The plans in force, and those that are being made ready."""
        return [view for split in self._splits.values() for view in self._plans(split) if view.state != "passed over"]

    def describe(self, now: int) -> list[SplitView]:
        """All that is known of the models that are split."""
        found = []
        for split in self._splits.values():
            model, size_bytes = split.model, sum(len(named.tensor.data) for named in split.model.samples)
            whole = best(self._asking, model.name, Demand(model.digest, size_bytes), None, TRIAL_BUDGET_NS, now)
            found.append(SplitView(
                model.name, model.digest, model.goal, model.private, len(model.profile.cuts), model.run_ns,
                whole.node if whole is not None else None, whole.expected_ns if whole is not None else 0,
                tuple(self._plans(split)), tuple(self._helpers(split, now)),
            ))  # fmt: skip
        return found

    def _plans(self, split: SplitState) -> Iterator[PlanView]:
        force = split.force
        if force is not None:
            yield self._view(split, force.staged, force.plan, "in force", force.timed_ns)
        for draft in split.drafts:
            if force is None or draft.staged is not force.staged:
                yield self._view(split, draft.staged, draft.plan, "waiting", draft.timed_ns, draft.why)
        for draft in split.passed:
            yield self._view(split, draft.staged, draft.plan, "passed over", draft.timed_ns, draft.why)

    def _helpers(self, split: SplitState, now: int) -> Iterator[HelperView]:
        for helper, why_not in self.devices.all(split.model, split.stages, now):
            yield HelperView(
                helper.node, helper.whole_ns, helper.round_trip_ns, helper.up_bytes_per_s, helper.down_bytes_per_s,
                helper.queue_ns, helper.overhead_ns, why_not, self.lending.last_refusal(helper.node, split.model.name),
            )  # fmt: skip

    def _view(
        self, split: SplitState, staged: StagedPlan, plan: Plan, state: PlanState, timed_ns: int, why: str = ""
    ) -> PlanView:  # fmt: skip
        boundaries, stages = split.model.profile.boundaries, []
        for planned in staged.stages:
            before, after = boundaries[planned.range.first + 1], boundaries[planned.range.last + 1]
            loan, detail = self.lending.state(planned.node, planned.stage.digest)
            stages.append(StageView(
                planned.range.first, planned.range.last, planned.node, after.share - before.share, before.given_bytes,
                after.size_bytes, "here" if planned.node == self._node else loan, detail,
            ))  # fmt: skip
        return PlanView(
            staged.model, staged.epoch, state, tuple(stages), plan.latency_ns, timed_ns, plan.period_ns, why
        )  # fmt: skip

    def counters(self) -> dict[str, int]:
        """Counters by name; they only grow."""
        return {**self.pipelines.counters, "plan_epoch": self._epoch}
