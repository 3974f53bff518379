"""What a machine decides: effects for its driver to perform, and events for whoever uses the node.

Both are closed unions; drivers match on them with ``assert_never``.
"""

from typing import Literal

from msgspec import Struct

from protocols.base.ids import Incarnation, NodeId, Role
from protocols.wire.readings import Reading
from protocols.wire.tensors import NamedTensor


# --- effects -------------------------------------------------------------------------------------------------------
class Dial(Struct, frozen=True):
    """Open a lane to an inbox; answer with ``lane_opened`` or ``lane_closed`` of the same ``dial``."""

    dial: int
    host: str
    port: int
    timeout_ns: int


class HangUp(Struct, frozen=True):
    """Close a dialled lane; no answer expected."""

    dial: int


class ClosePipe(Struct, frozen=True):
    """Close a pipe into our inbox; ``inbound_closed`` follows."""

    pipe: int


class Compute(Struct, frozen=True):
    """Run a model here; answer with ``computed`` of the same ``run``."""

    run: int
    model: str
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[str, ...]
    budget_ns: int


class CancelCompute(Struct, frozen=True):
    """The result of a run is no longer wanted; ``computed`` may still follow and is ignored."""

    run: int


Effect = Dial | HangUp | ClosePipe | Compute | CancelCompute


# --- events --------------------------------------------------------------------------------------------------------
class NeighbourMet(Struct, frozen=True):
    """Both directions of a link are authenticated and open."""

    node: NodeId
    role: Role
    incarnation: Incarnation
    took_ns: int
    """Since the first sign of it: its advert, or its Hello."""


class NeighbourSuspected(Struct, frozen=True):
    """Silent, or its pipes are gone."""

    node: NodeId
    because: str


class NeighbourRefuted(Struct, frozen=True):
    """A suspected neighbour proved that it lives."""

    node: NodeId


class NeighbourDead(Struct, frozen=True):
    """Silent for too long. ``silent_ns`` since its last frame."""

    node: NodeId
    silent_ns: int


class NeighbourLeft(Struct, frozen=True):
    """Said goodbye."""

    node: NodeId
    reason: str


class PeerRefused(Struct, frozen=True):
    """Somebody was turned away, or turned us away."""

    who: str
    code: str
    detail: str


class DuplicateIdentity(Struct, frozen=True):
    """Another node uses this id: ours, or that of a live neighbour."""

    node: NodeId
    ours: bool
    host: str


class DeadlineMissed(Struct, frozen=True):
    """No reading of a stream came within the deadline of a subscription."""

    subscription: int
    origin: str
    key: str


class RunReport(Struct, frozen=True):
    """One attempt at an inference."""

    node: NodeId
    outcome: Literal["done", "busy", "unknown", "invalid", "late", "failed", "dead", "cancelled"]
    took_ns: int
    """From decision to outcome, as the caller saw it."""
    queued_us: int = 0
    compute_us: int = 0
    detail: str = ""


class Answered(Struct, frozen=True):
    """An own request ended. ``winner`` is None when it failed; ``failure`` then names the kind of error."""

    request: int
    winner: RunReport | None
    outputs: tuple[NamedTensor, ...]
    attempts: tuple[RunReport, ...]
    took_ns: int
    failure: Literal["", "unknown", "invalid", "late", "failed"] = ""
    detail: str = ""


class EntryAccepted(Struct, frozen=True):
    """A signed entry, new or newer than what was held, is held now."""

    author: NodeId
    kind: str
    version: int
    source: NodeId
    """The neighbour it came from; this node for its own."""
    age_ns: int
    """Since it was signed."""


class EntryRefused(Struct, frozen=True):
    """A neighbour handed over an entry that is forged or malformed, or its author made two of one version. Told once
    a minute and neighbour."""

    source: NodeId
    author: str
    kind: str
    version: int
    because: Literal["forged", "malformed", "equivocation"]


Event = (
    NeighbourMet
    | NeighbourSuspected
    | NeighbourRefuted
    | NeighbourDead
    | NeighbourLeft
    | PeerRefused
    | DuplicateIdentity
    | DeadlineMissed
    | Answered
    | EntryAccepted
    | EntryRefused
)


Delivery = tuple[tuple[int, ...], Reading]
"""Numbers of local subscriptions, and a reading for them. A plain tuple: one is made for each reading that comes."""


class Put(Struct, frozen=True, gc=False):
    """What became of one published reading."""

    sequence: int
    local: int
    """Subscriptions of this node that got it."""
    queued: int
    """Neighbours it was queued for."""
    dropped: int
    """Neighbours that want it and do not get it, by rate limit or full queue; the counters say which."""


class PutMany(Struct, frozen=True, gc=False):
    """What became of readings that were published together."""

    first_sequence: int
    count: int
    """They have ``first_sequence`` and the ``count - 1`` that follow."""
    queued: int
    """Over all neighbours that want them."""
    dropped: int
    """The same, of those that do not get them; the counters say why."""
