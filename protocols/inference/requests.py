"""An inference that this node wants, and its attempts."""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.events import RunReport
from protocols.inference.placement import Candidate
from protocols.wire.tensors import NamedTensor

HEDGE_FACTOR: Final = 1.5
"""A run is late when it takes this much longer than predicted …"""
HEDGE_SLACK_NS: Final = 5 * limits.MS
"""… and this much more."""


class OwnRun:
    """One attempt at a request, under way."""

    __slots__ = ("expected_ns", "hedged", "node", "number", "started_ns")

    def __init__(self, number: int, candidate: Candidate, now: int) -> None:
        self.number, self.node, self.expected_ns, self.started_ns = number, candidate.node, candidate.expected_ns, now
        self.hedged = False

    @property
    def late_at(self) -> int:
        """When the next candidate should start beside it."""
        return self.started_ns + int(self.expected_ns * HEDGE_FACTOR) + HEDGE_SLACK_NS


class OwnRequest:
    """A request, the runs under way for it, and the attempts that have ended."""

    __slots__ = (
        "asked_ns", "attempts", "deadline_ns", "digest", "hedge", "inputs", "model", "number", "outputs", "runs",
        "size_bytes", "tried",
    )  # fmt: skip

    def __init__(
        self, number: int, model: str, digest: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], now: int,
        budget_ns: int, hedge: bool,
    ) -> None:  # fmt: skip
        self.number, self.model, self.digest, self.inputs, self.outputs = number, model, digest, inputs, outputs
        self.asked_ns, self.deadline_ns, self.hedge = now, now + budget_ns, hedge
        self.size_bytes = sum(len(named.tensor.data) for named in inputs)
        self.runs: dict[int, OwnRun] = {}
        self.tried: set[NodeId] = set()
        self.attempts: list[RunReport] = []
