"""The effects and events of inference: runs on this node, and answers to requests."""

from typing import Literal

from msgspec import Struct

from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId
from protocols.machine import Message
from protocols.wire.inference import InferCancel, InferRequest
from protocols.wire.tensors import NamedTensor


class RunReport(Struct, frozen=True):
    """One attempt at an inference."""

    node: NodeId
    outcome: Literal["done", "busy", "unknown", "invalid", "late", "failed", "dead", "cancelled"]
    took_ns: int
    """Time from the decision to ask the node until the outcome was known to the caller."""
    queued_us: int = 0
    compute_us: int = 0
    detail: str = ""


class PartReport(Struct, frozen=True):
    """One part of a request that was divided: a stage of its model, or a shard of its batch."""

    kind: Literal["stage", "shard"]
    index: int
    """Its place among the parts, from 0."""
    node: NodeId
    """Who computed it."""
    took_ns: int
    """From the decision to start it until its result was there."""
    queued_us: int
    compute_us: int
    input_bytes: int
    output_bytes: int
    replays: int = 0
    """How many further runs of it were begun, because one was late, lost or failed."""
    size: int = 0
    """The rows of the batch that a shard has; 0 for a stage."""


class Compute(Effect, frozen=True):
    """Run a model here; report the result with ``computed`` of the same ``run``."""

    run: int
    model: str
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[str, ...]
    budget_ns: int
    asked_by: NodeId | None = None
    """The neighbour that wants it; None: this node does. Own runs go first."""
    digest: str = ""
    """The file that is meant; empty: whichever has the name now."""


class CancelCompute(Effect, frozen=True):
    """The result of a run is no longer wanted; ``computed`` may still follow and is ignored."""

    run: int


class TellRelay(Effect, frozen=True):
    """Send a frame to the relay. For a request, exactly one ``relay_answered`` follows, unless it is cancelled."""

    frame: InferRequest | InferCancel


class Answered(Event, frozen=True):
    """A request of this node ended. ``winner`` is None when it failed; ``failure`` then names the kind of error."""

    request: int
    winner: RunReport | None
    outputs: tuple[NamedTensor, ...]
    attempts: tuple[RunReport, ...]
    took_ns: int
    failure: Literal["", "unknown", "invalid", "late", "failed"] = ""
    detail: str = ""
    model: str = ""
    """The model that ran: the one that was asked for, or the smaller one that took its place."""
    parts: tuple[PartReport, ...] = ()
    """Who computed which part, when the request was divided."""


class Decided:
    """What was decided and the driver has not taken yet, in the order in which it was decided."""

    __slots__ = ("effects", "events", "messages", "relay")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.messages: list[Message] = []
        self.events: list[Answered] = []
        self.relay: NodeId | None = None
        """What the relay is called among those that compute; None: there is none in reach."""

    def tell(self, node: NodeId, frame: InferRequest | InferCancel) -> None:
        """Send a frame about a run to a neighbour, or to the relay."""
        if node == self.relay:
            self.effects.append(TellRelay(frame))
        else:
            self.messages.append((node, frame))
