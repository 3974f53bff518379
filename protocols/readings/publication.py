"""A publication is what all readings of one publisher share. It is checked once. Its readings become parcels for the
queues."""

from msgspec import Struct

from protocols.base import limits
from protocols.base.errors import ContextMissing, ValueUnsupported
from protocols.base.keys import checked_key
from protocols.readings.streams import IMMUTABLE, check_time
from protocols.wire.parcels import decode_alone, encode_alone, encode_together
from protocols.wire.readings import EventTime, Position, Provenance, Reading, check_position, check_provenance


class Publication(Struct, frozen=True):
    """Key, context and quality of service, made by :func:`checked_publication`, so that every publication is valid."""

    key: str
    how: Provenance
    where: Position | None = None
    """Where readings are sensed that are put without a place of their own."""
    priority: int = 3
    """7 is the most urgent."""
    lifespan_ms: int = 0
    """A reading is worthless this long after it was sensed; 0: never."""
    hops: int = 0
    """How many nodes may pass it on, one after the other."""


def checked_publication(
    key: str, how: Provenance | None, where: Position | None = None, priority: int = 3, lifespan_ms: int = 0,
    hops: int = 0,
) -> Publication:  # fmt: skip
    """Check the parts of a publication and make it.

    :raises InvalidKey: when ``key`` is not one. :raises ContextMissing: without ``how``.
    :raises ValueUnsupported: when a number or a text is out of its range; NaN is.
    """
    checked_key(key)
    if how is None:
        raise ContextMissing(f"a reading of {key!r} has no how: say what senses it, in which unit. Pass how=")
    check_provenance(how)
    if where is not None:
        check_position(where)
    if not (0 <= priority <= 7 and 0 <= lifespan_ms <= limits.MAX_LIFESPAN_MS and 0 <= hops <= limits.MAX_HOPS):
        raise ValueUnsupported(
            f"priority {priority}, lifespan_ms {lifespan_ms} or hops {hops} is out of range: use 0 to 7, "
            f"0 to {limits.MAX_LIFESPAN_MS} and 0 to {limits.MAX_HOPS}"
        )
    return Publication(key, how, where, priority, lifespan_ms, hops)


def checked_context(key: str, where: Position | None, when: EventTime | None, known: Position | None) -> Position:
    """Check where and when a reading on ``key`` was sensed. ``known``: a position that was checked before. Returns
    ``where``. :raises ContextMissing: without one of them. :raises ValueUnsupported: when one is out of range."""
    if where is None:
        raise _without(key, "where", "Set [node] position, or pass where=")
    if where is not known:
        check_position(where)
    if when is None:
        raise _without(key, "when", "Pass when=")
    check_time(when)
    return where


def _without(key: str, what: str, advice: str) -> ContextMissing:
    """The error for a reading on ``key`` that lacks ``what``."""
    return ContextMissing(
        f"a reading on {key!r} has no {what!r}: a value without its context is of no use to others. {advice}"
    )


def parcels_of(readings: list[Reading]) -> list[tuple[bytes, list[Reading]]]:
    """Encode readings for the queues. Small plain values share frames; each other value has a frame of its own.

    :raises ValueUnsupported: when a value can't be encoded.
    """
    parcels: list[tuple[bytes, list[Reading]]] = []
    for at in range(0, len(readings), limits.MAX_READINGS_PER_FRAME):
        part = readings[at : at + limits.MAX_READINGS_PER_FRAME]
        if all(type(reading.value) in IMMUTABLE for reading in part) and _are_small(part):
            data = encode_together(part)
            if len(data) <= limits.BULK_THRESHOLD_BYTES:
                parcels.append((data, part))
                continue
        for reading in part:
            data = encode_alone(reading)
            parcels.append((data, [reading if type(reading.value) in IMMUTABLE else decode_alone(data)]))
    return parcels


def _are_small(readings: list[Reading]) -> bool:
    """Whether their texts and bytes together fit the realtime lane. It is checked before they are encoded, because
    encoding them for nothing would hold up other work."""
    sizes = (len(reading.value) for reading in readings if type(reading.value) in (str, bytes))
    return sum(sizes) <= limits.BULK_THRESHOLD_BYTES
