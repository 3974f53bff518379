"""An inference that this node wants, and its attempts."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.inference.costs import Demand
from protocols.inference.events import RunReport
from protocols.inference.placement import Candidate
from protocols.inference.signature import runs_in
from protocols.wire.tensors import NamedTensor

HEDGE_SLACK_NS: Final = 1 * limits.MS
"""A run is late when it takes longer than the 95th percentile of its prediction by a tenth and this. Without the tenth,
half of the hedges went to runs that were about to end."""
GUESS_SLACK_NS: Final = 5 * limits.MS
"""A run of which only a claim is known, or that this node does, is late when it takes half as much again and this."""
STALLED_FACTOR: Final = 2
"""One run in twenty is late, by definition. A node stalls when a run takes this many times as long as that."""
HEDGE_SHARE: Final = 20
"""At most one in so many requests is hedged, over time …"""
MAX_HEDGES_SAVED: Final = 5
"""… and so many at once, after a time in which none had to be."""


class Hedges:
    """The budget of hedges: each request earns a part of one, so that a slow mesh is not asked twice for everything."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts = HEDGE_SHARE

    @property
    def left(self) -> int:
        """How many there may be now."""
        return self._parts // HEDGE_SHARE

    def earn(self) -> None:
        """Note one more request."""
        self._parts = min(self._parts + 1, MAX_HEDGES_SAVED * HEDGE_SHARE)

    def spend(self) -> None:
        """Note one more hedge."""
        self._parts -= HEDGE_SHARE


class OwnRun:
    """One attempt at a request, under way."""

    __slots__ = (
        "candidate", "denied", "digest", "hedged", "late_at", "model", "node", "number", "stalled_at",
        "demand", "started_ns",
    )  # fmt: skip

    def __init__(self, number: int, request: "OwnRequest", candidate: Candidate, here: bool, now: int) -> None:
        """``here``: whether this node computes it."""
        self.number, self.node, self.candidate, self.started_ns = number, candidate.node, candidate, now
        self.model, self.digest, self.demand = request.model, request.digest, request.demand
        late_ns = (candidate.late_ns or candidate.p95_ns) * 11 // 10 + HEDGE_SLACK_NS
        if here or not candidate.proven:  # it can't be lost here, and of one that is not proven only claims are known
            late_ns = max(late_ns, candidate.expected_ns * 3 // 2 + GUESS_SLACK_NS)
        self.late_at = now + late_ns
        """When the next candidate should start beside it."""
        self.stalled_at = now + STALLED_FACTOR * late_ns * 2**request.rounds
        """When it is so late that its node seems to stall. Whoever is asked again gets twice the time: a mesh that is
        slow as a whole would otherwise begin the same runs for ever, and end none."""
        self.hedged = self.denied = False
        """Whether it was late, and whether there was no hedge for it then."""


class OwnRequest:
    """A request, the runs under way for it, and the attempts that have ended."""

    __slots__ = (
        "asked_digest", "asked_model", "asked_ns", "attempts", "deadline_ns", "digest", "given_up", "hedge", "hopeless",
        "inputs", "model", "number", "outputs", "planned", "rescue_at", "rounds", "runs", "size_bytes", "times",
        "tried",
    )  # fmt: skip

    def __init__(
        self, number: int, model: str, digest: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], now: int,
        budget_ns: int, hedge: bool, planned: NodeId | None = None,
    ) -> None:  # fmt: skip
        """``planned``: the node that a plan for the parts of a larger request gives it to, if that node can do it."""
        self.planned = planned
        self.number, self.inputs, self.outputs = number, inputs, outputs
        self.asked_model, self.asked_digest = model, digest
        self.model, self.digest = model, digest
        """The model that is run, which may be smaller than the one that was asked for."""
        self.asked_ns, self.deadline_ns, self.hedge = now, now + budget_ns, hedge
        self.size_bytes, self.times = sum(len(named.tensor.data) for named in inputs), runs_in(inputs)
        """``times``: how many runs of the model it asks for."""
        self.hopeless: Candidate | None = None
        """The quickest of those who could not make the deadline, when that was last looked at."""
        self.rescue_at = NEVER
        """When this node has to begin at the latest, whatever becomes of the runs elsewhere."""
        self.runs: dict[int, OwnRun] = {}
        self.tried: set[NodeId] = set()
        self.given_up: set[NodeId] = set()
        """Those of them whose run seemed to stall. They may be tried again when nobody else is left."""
        self.rounds = 0
        """How often nobody else was left."""
        self.attempts: list[RunReport] = []

    def begin_anew(self, digest: str | None) -> None:
        """No run of it is under way. ``digest``: the file that the name means now. A release may have taken the place
        of the one that was asked for, and then who did not have that may have this."""
        if digest is not None and digest != self.asked_digest:
            self.asked_digest = digest
            self.tried.clear()
        self.model, self.digest = self.asked_model, self.asked_digest

    def try_again(self) -> bool:
        """Let those be tried again that were given up. Returns whether there are any."""
        again, self.given_up = self.given_up, set()
        self.tried -= again
        self.rounds += bool(again)
        return bool(again)

    def why_hopeless(self, now: int) -> str:
        """Why nobody can make the deadline; empty: somebody might have."""
        if self.hopeless is None:
            return ""
        left_ms, needed_ms = max(self.deadline_ns - now, 0) / limits.MS, self.hopeless.soonest_ns / limits.MS
        return (
            f"{self.model!r} needs at least {needed_ms:.1f} ms at {self.hopeless.node}, and {left_ms:.1f} ms are left: "
            "give it a later deadline, or ask for less at a time"
        )

    @property
    def demand(self) -> Demand:
        """What decides its cost."""
        return Demand(self.digest, self.size_bytes, self.times)
