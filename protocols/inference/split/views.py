"""Plans as people and programs see them: who runs what, how that stands there, and why it is so."""

from typing import Literal

from msgspec import Struct

from protocols.base.ids import NodeId
from protocols.inference.split.lending import LoanState
from protocols.inference.split.plan import Goal

PlanState = Literal["waiting", "in force", "passed over"]
"""Of a plan: its stages are being made ready or timed, or requests follow it, or another one was preferred."""


class StageView(Struct, frozen=True):
    """A stage of a plan."""

    first: int
    """The cut before it; -1: it begins with the inputs of the model."""
    last: int
    """The cut after it; the number of cuts: it ends with the outputs of the model."""
    node: NodeId
    share: float
    """The part of the model's run time that it takes, 0 to 1."""
    input_bytes: int
    output_bytes: int
    state: Literal["here"] | LoanState
    """Whether this node runs it, or how it stands at the neighbour that is to run it."""
    detail: str = ""
    """What the neighbour said of it."""


class PlanView(Struct, frozen=True):
    """A plan of a model that is split."""

    model: str
    epoch: int
    state: PlanState
    stages: tuple[StageView, ...]
    predicted_ns: int
    """The time of one request, as it was predicted when the plan was made."""
    timed_ns: int
    """The same as it was measured on inputs of zeros; 0: it was not."""
    period_ns: int
    """The time between two results of a stream, as predicted."""
    why: str = ""
    """Why it waits or was passed over."""


class HelperView(Struct, frozen=True):
    """A neighbour in reach, as plans take it."""

    node: NodeId
    whole_ns: int
    """The time of the whole model there."""
    round_trip_ns: int
    up_bytes_per_s: float
    down_bytes_per_s: float
    queue_ns: int
    overhead_ns: int
    why_not: str = ""
    """Why it gets no stage now; empty: it may get one."""
    refused: str = ""
    """What it said when it refused a stage the last time; empty: it has not, or has since taken it."""


class SplitView(Struct, frozen=True):
    """A model that is split."""

    model: str
    digest: str
    goal: Goal
    private: bool
    """Whether its inputs must not leave this node."""
    cuts: int
    """Where plans may cut it."""
    run_ns: int
    """The time of the whole on this node; 0: it can't run it."""
    whole_on: NodeId | None
    """Who would run the whole fastest now; None: nobody."""
    whole_ns: int
    """And how long that is predicted to take."""
    plans: tuple[PlanView, ...]
    """The one in force first, then those that are being made ready, then those that were passed over."""
    helpers: tuple[HelperView, ...]


class HostedView(Struct, frozen=True):
    """A stage that this node runs for neighbours."""

    model: str
    digest: str
    state: str
    asked_by: tuple[NodeId, ...]
    """Those in reach that want it."""
    payer: NodeId
    """The neighbour that its place is counted for."""
    size_bytes: int
    have_bytes: int
    """What has come of it."""
    compute_ns: int
    idle_ns: int
    """Since it was last used or asked for."""
