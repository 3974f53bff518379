"""Requests that run as a pipeline: the stages of a model one after the other, each on the node that the plan names.

Each stage is a request of its own to :class:`~protocols.inference.asking.Asking`, with what is left of the deadline. So
it is hedged, given to another node when its own dies, and checked as any request is. This node keeps every tensor until
the last answer: a stage that is lost begins again from the boundary before it and not from the start.

When nobody can run a stage any more, the whole model is computed instead, if somebody may and can do that in time.
Otherwise the stage is tried again every ``RETRY_NS`` until the deadline: this node may be loading it, and neighbours
come back. After that the caller learns which stage failed and why.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.inference.asking import Asking
from protocols.inference.events import Answered, PartReport, RunReport
from protocols.inference.split.events import Stage, StageRange
from protocols.wire.tensors import NamedTensor


class PlannedStage(Struct, frozen=True):
    """A stage of a plan, and who runs it."""

    name: str
    """By which it is asked for."""
    stage: Stage
    node: NodeId
    input_bytes: int
    """Of its inputs, by the description of the model."""
    range: StageRange


class StagedPlan(Struct, frozen=True):
    """A plan whose stages are made."""

    model: str
    digest: str
    epoch: int
    stages: tuple[PlannedStage, ...]
    outputs: tuple[str, ...]
    """All outputs of the model."""


class _Piped:
    """A request that runs as a pipeline."""

    __slots__ = (
        "asked_ns", "attempts", "at", "child", "deadline_ns", "have", "hedge", "inputs", "lost", "number", "outputs",
        "part_ns", "parts", "retry_at", "staged", "trial", "whole", "why",
    )  # fmt: skip

    def __init__(
        self, number: int, staged: StagedPlan, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], now: int,
        budget_ns: int, hedge: bool, trial: bool,
    ) -> None:  # fmt: skip
        self.number, self.staged, self.inputs, self.outputs = number, staged, inputs, outputs
        self.asked_ns, self.deadline_ns, self.hedge, self.trial = now, now + budget_ns, hedge, trial
        self.have = {named.name: named for named in inputs}
        """Every tensor that is there: the inputs, and what the stages so far have given."""
        self.at = 0
        """The stage that is under way."""
        self.part_ns = now
        """Since when."""
        self.child = 0
        self.retry_at = NEVER
        """When the stage is tried again that nobody could run."""
        self.lost = 0
        """Runs of the stage that gave no result."""
        self.why = ""
        """Why nobody could run the stage."""
        self.whole = False
        """Whether the child computes the whole model instead of a stage."""
        self.attempts: list[RunReport] = []
        self.parts: list[PartReport] = []


RETRY_NS: Final = 200 * limits.MS
MAX_PIPED: Final = 128
"""Pipelines under way. Each keeps its inputs and boundaries."""


class Pipelines:
    """The pipelines under way."""

    def __init__(self, asking: Asking, numbers: Iterator[int]) -> None:
        self._asking, self._numbers = asking, numbers
        self.piped: dict[int, _Piped] = {}
        self._of_child: dict[int, _Piped] = {}
        self.ended: list[tuple[StagedPlan, Answered]] = []
        """Trials that have ended."""
        self.counters = {"piped": 0, "piped_failed": 0, "stages_replayed": 0, "fell_back_whole": 0}

    def begin(
        self, staged: StagedPlan, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int,
        hedge: bool, now: int, trial: bool = False,
    ) -> tuple[int, list[Answered]]:  # fmt: skip
        """Start a pipeline. Returns its number, and its answer if it ended at once.

        ``trial``: whether it only measures the plan. Its end is told by :attr:`ended`.

        :raises BoundExceeded: with ``MAX_PIPED`` under way.
        """
        if len(self.piped) >= MAX_PIPED:
            raise BoundExceeded(f"{MAX_PIPED} pipelines are in flight: wait for answers")
        number = next(self._numbers)
        piped = self.piped[number] = _Piped(number, staged, inputs, outputs, now, budget_ns, hedge, trial)
        self.counters["piped"] += not trial
        return number, self._proceed(piped, now)

    def owns(self, child: int) -> bool:
        """Whether a request is a stage of a pipeline."""
        return child in self._of_child

    def child_ended(self, event: Answered, now: int) -> list[Answered]:
        """A stage has ended. Returns the answer of the pipeline if it has ended with it."""
        piped = self._of_child.pop(event.request)
        piped.attempts += event.attempts
        piped.lost += sum(attempt.outcome != "done" for attempt in event.attempts)
        if event.winner is None:
            return self._failed(piped, event, now)
        if piped.whole:
            return self._end(piped, event.outputs, event.winner, now)
        stage, winner = piped.staged.stages[piped.at], event.winner
        replays, piped.lost = piped.lost, 0
        self.counters["stages_replayed"] += replays
        piped.parts.append(PartReport(
            "stage", piped.at, winner.node, now - piped.part_ns, winner.queued_us, winner.compute_us,
            _size_bytes([piped.have[name] for name in stage.stage.inputs]), _size_bytes(event.outputs), replays,
        ))  # fmt: skip
        for named in event.outputs:
            piped.have[named.name] = named
        piped.at += 1
        piped.part_ns = now
        if piped.at == len(piped.staged.stages):
            return self._end(piped, tuple(piped.have[name] for name in self._wanted(piped)), winner, now)
        return self._proceed(piped, now)

    def _wanted(self, piped: _Piped) -> Sequence[str]:
        return piped.outputs or piped.staged.outputs

    def _proceed(self, piped: _Piped, now: int) -> list[Answered]:
        """Start the next stage."""
        planned = piped.staged.stages[piped.at]
        missing = next((name for name in planned.stage.inputs if name not in piped.have), None)
        if missing is not None:
            why = f"the input {missing!r} of model {piped.staged.model!r} is missing"
            return self._give_up(piped, "invalid", why, now)
        inputs = tuple(piped.have[name] for name in planned.stage.inputs)
        return self._ask(piped, planned.name, inputs, planned.stage.outputs, planned.node, now)

    def _ask(
        self, piped: _Piped, model: str, inputs: tuple[NamedTensor, ...], outputs: Sequence[str],
        node: NodeId | None, now: int,
    ) -> list[Answered]:  # fmt: skip
        budget_ns = max(piped.deadline_ns - now, 0)
        try:
            child = self._asking.ask(model, inputs, tuple(outputs), budget_ns, piped.hedge, now, node)
        except (BoundExceeded, ModelUnknown) as error:
            return self._without(piped, "failed", str(error), now)
        piped.child = child
        self._of_child[child] = piped
        return []

    def _failed(self, piped: _Piped, event: Answered, now: int) -> list[Answered]:
        """A run of a stage, or of the whole in its place, has ended without a result."""
        if event.failure == "invalid":
            return self._give_up(piped, event.failure, event.detail, now)
        return self._without(piped, event.failure or "failed", event.detail, now)

    def _without(self, piped: _Piped, failure: str, detail: str, now: int) -> list[Answered]:
        """Nobody can run the stage, or the whole in its place."""
        if piped.trial or now >= piped.deadline_ns:
            return self._give_up(piped, failure, detail, now)
        if piped.whole:
            piped.whole = False
            piped.retry_at = min(now + RETRY_NS, piped.deadline_ns)
            piped.why = detail if failure == "late" else piped.why
            return []
        piped.whole, piped.why = True, detail
        self.counters["fell_back_whole"] += 1
        return self._ask(piped, piped.staged.model, piped.inputs, piped.outputs, None, now)

    def handle_timer(self, now: int) -> list[Answered]:
        """Try stages again. Returns the answers of pipelines that have ended."""
        ended: list[Answered] = []
        for piped in list(self.piped.values()):
            if now >= piped.retry_at:
                piped.retry_at = NEVER
                if now >= piped.deadline_ns:
                    ended += self._give_up(piped, "late", f"{piped.why}, and its deadline is over", now)
                else:
                    ended += self._proceed(piped, now)
        return ended

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min((piped.retry_at for piped in self.piped.values()), default=NEVER)

    def _give_up(self, piped: _Piped, failure: str, detail: str, now: int) -> list[Answered]:
        self.counters["piped_failed"] += not piped.trial
        count = len(piped.staged.stages)
        where = "" if piped.whole else f"stage {piped.at + 1} of {count} of {piped.staged.model!r}: "
        return self._tell(piped, Answered(
            piped.number, None, (), tuple(piped.attempts), now - piped.asked_ns, failure, f"{where}{detail}",  # type: ignore[arg-type]
            piped.staged.model, tuple(piped.parts),
        ))  # fmt: skip

    def _end(
        self, piped: _Piped, outputs: tuple[NamedTensor, ...], winner: RunReport, now: int
    ) -> list[Answered]:  # fmt: skip
        parts = () if piped.whole else tuple(piped.parts)
        if parts:  # of several, the caller is told the sums
            winner = RunReport(
                winner.node, "done", now - piped.asked_ns, sum(part.queued_us for part in parts),
                sum(part.compute_us for part in parts),
            )  # fmt: skip
        return self._tell(piped, Answered(
            piped.number, winner, outputs, tuple(piped.attempts), now - piped.asked_ns, model=piped.staged.model,
            parts=parts,
        ))  # fmt: skip

    def _tell(self, piped: _Piped, answered: Answered) -> list[Answered]:
        del self.piped[piped.number]
        if piped.trial:
            self.ended.append((piped.staged, answered))
            return []
        return [answered]

    def abandon(self, number: int, now: int) -> bool:
        """The caller no longer wants the answer. Returns whether it was a pipeline."""
        piped = self.piped.pop(number, None)
        if piped is None:
            return False
        if self._of_child.pop(piped.child, None) is not None:
            self._asking.abandon(piped.child, now)
        return True

    def followed(self) -> list[StagedPlan]:
        """The plans that requests under way follow, each once."""
        return list({piped.staged.epoch: piped.staged for piped in self.piped.values()}.values())

    def under_way(self) -> Mapping[int, int]:
        """The stage that each pipeline is at, by number of the request."""
        return {number: piped.at for number, piped in self.piped.items()}


def _size_bytes(tensors: Sequence[NamedTensor]) -> int:
    return sum(len(named.tensor.data) for named in tensors)
