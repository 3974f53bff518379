"""The effects and events of carrying, and what its parts decide together."""

from typing import Final

from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId
from protocols.machine import Message
from protocols.records.ledger import BatchPlan
from protocols.wire.carrying.contents import RelayKey

INTRODUCTION: Final = BatchPlan((), (), 0)
"""Stands for the batch without records that introduces a ledger."""


# --- effects: of a node that hands records over -----------------------------------------------------------------------
class SealBatch(Effect, frozen=True):
    """Plan the next batch with ``Ledger.batch_to_hand_over``, or the introduction of a ledger that the relay does not
    know, seal it, and report with :meth:`Carrying.sealed` or :meth:`Carrying.nothing_sealed`."""

    key: RelayKey
    key_id: bytes
    handed: tuple[tuple[int, int], ...]
    """The first and the last sequence of each batch that is on its way, in order."""
    is_introducing: bool
    """Whether the introduction is on its way."""


class CheckReply(Effect, frozen=True):
    """Check what a relay is said to have signed, tell the ledger, and report with :meth:`Carrying.reply_checked`."""

    carrier: NodeId
    sealed: bytes
    """The id of the batch."""
    reply: bytes
    plan: BatchPlan | None
    """What was in it; None: a former life of this node made it, or it is no longer known."""


# --- effects: of a carrier --------------------------------------------------------------------------------------------
class KeepSealed(Effect, frozen=True):
    """Keep a sealed batch over restarts; :meth:`Carrying.lost` tells when that is not possible."""

    sealed: bytes
    """Its id."""
    node: NodeId
    key: bytes
    data: bytes


class KeepReply(Effect, frozen=True):
    """Keep a reply in place of the batch that it is about."""

    sealed: bytes
    node: NodeId
    key: bytes
    reply: bytes


class ForgetSealed(Effect, frozen=True):
    """Remove what is kept of a batch."""

    sealed: bytes


class UploadSealed(Effect, frozen=True):
    """Bring a sealed batch to the relay, and report with :meth:`Carrying.uploaded`. There is one at a time."""

    sealed: bytes
    node: NodeId
    key: bytes


# --- events -----------------------------------------------------------------------------------------------------------
class BatchHandedOver(Event, frozen=True):
    """A neighbour has taken a sealed batch of this node."""

    carrier: NodeId
    records: int


class ReplyBrought(Event, frozen=True):
    """A neighbour brought what the relay says of a batch of this node."""

    carrier: NodeId
    is_believed: bool
    detail: str


class CarriedBatchRefused(Event, frozen=True):
    """The relay does not take a batch that this node carried. What is wrong is the fault of the node that made it."""

    node: NodeId
    code: str


class CarryingDecisions:
    """What the parts of the machine have decided and nobody has taken yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.effects: list[Effect] = []
        self.events: list[Event] = []
