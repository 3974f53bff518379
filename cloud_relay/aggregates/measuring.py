"""The number that an aggregate takes of a reading.

Equal numbers have one form, whichever type their node sent: a float, or an integer where no float is equal to it. There
is no negative zero. So the least of some numbers is the same thing in any order.
"""

from enum import Enum
from math import isfinite, isnan
from typing import Any, Final

import msgspec

from protocols.base.errors import MeshError
from protocols.wire.parcels import decode_untrusted_reading

_BEGINNINGS: Final = frozenset("-0123456789")


class Unmeasured(Enum):
    """Why a reading has no number. The values are places in a list of counts."""

    NAN = 0
    INFINITE = 1
    MISSING = 2
    """The field is not there."""
    OTHER = 3
    """A truth value, a text, nothing, or something that is not a single value."""


Number = float | int
Measured = Number | Unmeasured


def measured(value: str, encoded: bytes, field: tuple[str, ...]) -> Measured:
    """The number in the field of a reading. ``value`` is its value as the store's JSON, ``encoded`` its own bytes."""
    if not field and value[0] in _BEGINNINGS:
        return _plain(float(value) if "." in value or "e" in value else int(value))
    if not field and value != "null":
        return Unmeasured.OTHER
    return _number(_field(_whole(value, encoded), field))


def _whole(value: str, encoded: bytes) -> Any:
    """The value as its node sent it: JSON has no NaN, and no tensors."""
    try:
        return decode_untrusted_reading(encoded).value
    except MeshError:
        return msgspec.json.decode(value)


def _field(value: Any, field: tuple[str, ...]) -> Any:
    for chunk in field:
        if isinstance(value, dict) and chunk in value:
            value = value[chunk]
        elif isinstance(value, list) and chunk.isascii() and chunk.isdigit() and int(chunk) < len(value):
            value = value[int(chunk)]
        else:
            return Unmeasured.MISSING
    return value


def _number(value: Any) -> Measured:
    kind = type(value)
    if kind is int:
        return _plain(value)
    if kind is float:
        if isfinite(value):
            return _plain(value)
        return Unmeasured.NAN if isnan(value) else Unmeasured.INFINITE
    return Unmeasured.MISSING if value is Unmeasured.MISSING else Unmeasured.OTHER


def _plain(number: Number) -> Number:
    as_float = number + 0.0  # of -0.0 it is 0.0
    return as_float if as_float == number else number
