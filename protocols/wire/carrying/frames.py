"""Frames of batches that a neighbour carries to the relay.

A node seals a :class:`~protocols.wire.carrying.contents.Carriage` to the key of a relay, which the relay publishes as
an entry of gossip. A neighbour carries the sealed bytes and can read none of them. The relay signs what became of the
batch (:class:`~protocols.wire.carrying.contents.SignedReply`), and the neighbour brings that back.
"""

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from protocols.base import limits
from protocols.wire.carrying.contents import KeyId, SealedId
from protocols.wire.fields import Count, Id, Text, check_untrusted_id
from protocols.wire.frame import Frame, SmallFrame

_Sealed = Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_SEALED_BYTES)]
_Reply = Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_REPLY_BYTES)]


# --- between nodes ---------------------------------------------------------------------------------------------------
class CarrierOffer(SmallFrame, frozen=True, array_like=True, gc=False, tag=27):
    """Says that the sender reaches a relay, and carries batches to it. It replaces what the sender said before. (Since
    1.7.)"""

    replaces: ClassVar[bool] = True

    key: Annotated[bytes, Meta(max_length=limits.SEALING_KEY_ID_BYTES)]
    """The id of the relay's key; empty: the sender carries nothing now."""
    room_bytes: Count
    """How much it takes of the receiver at most, beside what it has of it."""


class SealedBatch(SmallFrame, frozen=True, array_like=True, gc=False, tag=28):
    """Gives a sealed batch of the sender's own to a neighbour that carries it. (Since 1.7.)"""

    background: ClassVar[bool] = True

    key: KeyId
    """The key that it is sealed to."""
    sealed: _Sealed


class SealedState(SmallFrame, frozen=True, array_like=True, gc=False, tag=29):
    """Says what becomes of a sealed batch, or of the reply to it. (Since 1.7.)"""

    sealed: SealedId
    state: Text
    """From the carrier: ``taken``, ``full``, ``forbidden``, ``unable`` (it does not reach that relay) or ``dropped``.
    From the node that made the batch: ``known`` (it has the reply). Other words count as ``unable``."""


class RelayReply(SmallFrame, frozen=True, array_like=True, gc=False, tag=30):
    """Brings the relay's reply to a sealed batch of the receiver. (Since 1.7.)"""

    sealed: SealedId
    reply: _Reply
    """A :class:`~protocols.wire.carrying.contents.SignedReply`."""


CarryingFrame = CarrierOffer | SealedBatch | SealedState | RelayReply
FRAMES: Final[tuple[type[Frame], ...]] = (CarrierOffer, SealedBatch, SealedState, RelayReply)


# --- between a node and the relay ------------------------------------------------------------------------------------
class RelayKeyAsked(Frame, frozen=True, array_like=True, gc=False, tag=71):
    """From node to relay: which is your sealing key? (Since 1.7.)"""


class RelayKeyTold(Frame, frozen=True, array_like=True, gc=False, tag=72):
    """From relay to node: the entry of gossip that publishes the key. (Since 1.7.)"""

    age_ms: Count
    """Time since it was signed."""
    entry: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_ENTRY_BYTES)]


class CarriedBatch(Frame, frozen=True, array_like=True, gc=False, tag=73):
    """From node to relay: a sealed batch of another node. (Since 1.7.)"""

    node: Id
    """The node that gave it."""
    key: KeyId
    sealed: _Sealed

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when ``node`` is not an id."""
        check_untrusted_id(self.node)


class CarriedReply(Frame, frozen=True, array_like=True, gc=False, tag=74):
    """From relay to node: what became of a sealed batch, to be brought to the node that made it. (Since 1.7.)"""

    reply: _Reply


RELAY_FRAMES: Final[tuple[type[Frame], ...]] = (RelayKeyAsked, RelayKeyTold, CarriedBatch, CarriedReply)
