"""What became of readings: deliveries, what a put says, and deadlines that were missed."""

from msgspec import Struct

from protocols.machine import Event
from protocols.wire.readings import Reading

Delivery = tuple[tuple[int, ...], Reading]
"""Numbers of local subscriptions, and a reading for them. A plain tuple: one is made for each reading that comes."""


class DeadlineMissed(Event, frozen=True):
    """No reading of a stream came within the deadline of a subscription."""

    subscription: int
    origin: str
    key: str


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
