"""What became of readings: deliveries, results of puts, and deadlines that were missed."""

from msgspec import Struct

from protocols.base.effects import Event
from protocols.wire.readings import Reading

Delivery = tuple[tuple[int, ...], Reading]
"""Numbers of local subscriptions, and a reading for them. It is a plain tuple, because each reading makes one."""


class DeadlineMissed(Event, frozen=True):
    """No reading of a stream came within the deadline of a subscription."""

    subscription: int
    origin: str
    key: str


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
