"""Readings as rows of the store.

SQLite can't hold integers beyond 63 bits, numbers that are not finite or values without a JSON form. Records with them
are refused here one by one, so that an odd record never holds up the others of its batch.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import msgspec

from protocols.base.errors import RemoteProtocolError
from protocols.base.limits import MAX_RECORD_BYTES
from protocols.wire.readings import Reading
from protocols.wire.tensors import Tensor

MAX_INTEGER: Final = 2**63 - 1
"""The largest integer that SQLite holds."""

Row = tuple[Any, ...]
KEY_COLUMN: Final = 0
VALUE_COLUMN: Final = 3
LATITUDE_COLUMN: Final = 4
LONGITUDE_COLUMN: Final = 5
EVENT_COLUMN: Final = 9
UNIT_COLUMN: Final = 12
QUALITY_COLUMN: Final = 13
"""Where a row has the key, the value, the place, the time of sensing, the unit and the quality."""

_PLAIN: Final = frozenset((type(None), bool, int, float, str))
"""Types of values that JSON has a form for, and that hold no other value."""


@dataclass(slots=True)
class Cost:
    """What the values of a batch cost beyond their bytes."""

    containers: int = 0
    """Lists and dicts. One takes a byte on the wire, and a microsecond here."""


class RecordUnsuitable(RemoteProtocolError):
    """The store can't hold a record. The message is the reason that its node is told."""


def row_of(reading: Reading, encoded: bytes, cost: Cost) -> Row:
    """The columns of a reading from ``key`` to ``lifespan_ms``. What it took is added to ``cost``.

    :raises RecordUnsuitable: when the store can't hold them; says why.
    """
    where, when, how = reading.where, reading.when, reading.how
    if len(encoded) > MAX_RECORD_BYTES:
        raise RecordUnsuitable(f"{len(encoded)} bytes are too large for a record of {MAX_RECORD_BYTES}")
    if max(reading.sequence, when.utc_ns, when.uncertainty_ns) > MAX_INTEGER:
        raise RecordUnsuitable("sequence, time or uncertainty has more than 63 bits")
    numbers = (
        where.latitude_deg,
        where.longitude_deg,
        where.accuracy_m,
        where.altitude_m,
        where.heading_deg,
        how.quality,
    )
    if not all(number is None or isfinite(number) for number in numbers):
        raise RecordUnsuitable("position or quality is not a finite number")
    try:
        value = msgspec.json.encode(_described(reading.value, cost)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RecordUnsuitable(f"the value has no JSON form: {str(error)[:120]}") from error
    return (
        reading.key,
        reading.origin,
        reading.sequence,
        value,
        where.latitude_deg,
        where.longitude_deg,
        where.accuracy_m,
        where.altitude_m,
        where.heading_deg,
        when.utc_ns,
        when.uncertainty_ns,
        how.sensor,
        how.unit,
        how.quality,
        how.calibration,
        msgspec.json.encode(how.lineage).decode(),
        reading.priority,
        reading.lifespan_ms,
    )


def _described(value: Any, cost: Cost) -> Any:
    """The value with each tensor replaced by its type and shape; the encoded bytes have its elements."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Tensor:
        return {"tensor": {"dtype": value.dtype, "shape": value.shape}}
    cost.containers += 1
    if kind is dict:
        return {key: inner if type(inner) in _PLAIN else _described(inner, cost) for key, inner in value.items()}
    if kind is list:
        return [inner if type(inner) in _PLAIN else _described(inner, cost) for inner in value]
    return value
