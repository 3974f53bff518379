"""What became of readings: deliveries, results of puts, and deadlines that were missed."""

from typing import Literal

from msgspec import Struct

from protocols.base.effects import Event
from protocols.base.ids import NodeId
from protocols.wire.readings import Reading

Delivery = tuple[tuple[int, ...], Reading]
"""Numbers of local subscriptions, and a reading for them. It is a plain tuple, because each reading makes one."""


class DeadlineMissed(Event, frozen=True):
    """No reading of a stream came within the deadline of a subscription."""

    subscription: int
    origin: str
    key: str


class ReadingRefused(Event, frozen=True):
    """A neighbour sent a signed reading that its author did not sign, or that is malformed. It is reported at most once
    a minute for each neighbour."""

    source: NodeId
    """The neighbour, which is to blame: whoever passes a reading on must check it first."""
    origin: str
    """Who is said to be the author. It has nothing to do with it."""
    key: str
    because: Literal["forged", "malformed"]


class Put(Struct, frozen=True, gc=False):
    """What became of one published reading."""

    sequence: int
    local: int
    """How many subscriptions of this node got it."""
    queued: int
    """How many neighbours it was queued for."""
    dropped: int
    """How many neighbours want it and do not get it, for a rate limit or a full queue. The counters say which."""


class PutMany(Struct, frozen=True, gc=False):
    """What became of readings that were published together."""

    first_sequence: int
    count: int
    """They have the sequence ``first_sequence`` and the ``count - 1`` that follow."""
    queued: int
    """Readings queued, summed over all neighbours that want them."""
    dropped: int
    """Readings not queued, summed in the same way. The counters say why."""
