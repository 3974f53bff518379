"""Which sequences the readings of one life of a node have: they begin where its incarnation says.

The incarnations up to :data:`TURN` are 2^32 sequences apart, because nodes began that way, and the later ones 2^29. So
sequences go on growing over every restart, and stay below 2^63 until the year 2115. See ADR 22.

The versions of the gossip entries of a life begin at its first sequence without the lowest 12 bits. So a version says
in which life it was signed, and which sequences this life may have.

A life may publish more than the sequences up to the next incarnation. Whoever keeps the incarnation on disk must then
keep :func:`incarnation_at` of the sequences in use, so that the next life begins above them.
"""

from typing import Final

TURN: Final = 1_800_000_000
"""2027-01-15 in seconds since 1970, the last incarnation of the older scheme."""
_OLDER_BITS: Final = 32
_LATER_BITS: Final = 29
_TURN_SEQUENCE: Final = TURN << _OLDER_BITS
_VERSION_SHIFT: Final = _OLDER_BITS - 20
MAX_SEQUENCE: Final = (1 << 63) - 1
"""The largest sequence that the store of a relay can hold."""
MAX_INCARNATION: Final = TURN + ((1 << 63) - _TURN_SEQUENCE >> _LATER_BITS) - 1
"""The last incarnation all of whose sequences are valid; as seconds since 1970 it is in 2115."""


def first_sequence(incarnation: int) -> int:
    """The first sequence of a life. It is above :data:`MAX_SEQUENCE` for incarnations that are not valid."""
    if incarnation <= TURN:
        return incarnation << _OLDER_BITS
    return _TURN_SEQUENCE + ((incarnation - TURN) << _LATER_BITS)


def incarnation_at(sequence: int) -> int:
    """The largest incarnation whose sequences begin at ``sequence`` or below."""
    if sequence < _TURN_SEQUENCE:
        return sequence >> _OLDER_BITS
    return TURN + ((sequence - _TURN_SEQUENCE) >> _LATER_BITS)


def first_version(incarnation: int) -> int:
    """The version of the first gossip entry of each kind that a life signs."""
    return first_sequence(incarnation) >> _VERSION_SHIFT


def incarnation_of_version(version: int) -> int:
    """The life in which a gossip entry of this version was signed."""
    return incarnation_at(version << _VERSION_SHIFT)
