"""Counts of numbers in bins of equal relative width, from which percentiles are told.

A bin is what the sign, the exponent and the first bits of the fraction of an IEEE 754 double say, so it is found by a
shift of 64 bits and is the same on every processor. At level 6 a factor of two has 64 bins. When more than
``MAX_BINS`` bins have numbers, neighbours are joined, which is one level less. The level is thus the finest at which
all numbers that were ever added fit, whatever their order and however they were split: adding and merging commute.

Source: the idea of DDSketch (Masson, Rim, Lee, 2019) with the uniform collapse of UDDSketch (Epicoco et al., 2020), and
the bins of HdrHistogram.
"""

import struct
from typing import Final

FINEST_LEVEL: Final = 6
MAX_BINS: Final = 1_024
"""A group takes at most 10 KB. Numbers of one sign between 0.001 and 60 fit at the finest level."""
COARSEST_LEVEL: Final = -2
"""At this one all doubles have no more than ``MAX_BINS`` bins."""
_CENTRE: Final = 1_024 << FINEST_LEVEL
"""The bin of 2.0. Indexes are told from there, so that common ones are small. It stays even at each level."""
_FRACTION_BITS: Final = 52
_MAGNITUDE: Final = (1 << 63) - 1

Bins = dict[int, int]
"""How many numbers are in a bin, by its index. A greater index has greater numbers."""


def add_to_bins(bins: Bins, level: int, numbers: list[float]) -> int:
    """Count finite numbers. Returns the level afterwards."""
    shift = _FRACTION_BITS - level
    centre = _CENTRE >> (FINEST_LEVEL - level)
    count = len(numbers)
    for bits in struct.unpack(f"<{count}q", struct.pack(f"<{count}d", *numbers)):
        index = (bits >> shift if bits >= 0 else ~((bits & _MAGNITUDE) >> shift)) - centre
        bins[index] = bins.get(index, 0) + 1
    return _fitted(bins, level)


def merge_bins(bins: Bins, level: int, others: Bins, others_level: int) -> int:
    """Add the counts of other bins to ``bins``. Returns the level afterwards."""
    if others_level < level:
        _join(bins, level - others_level)
    steps = max(0, others_level - level)
    for index, count in others.items():
        bins[index >> steps] = bins.get(index >> steps, 0) + count
    return _fitted(bins, min(level, others_level))


def number_at(bins: Bins, level: int, rank: int) -> float:
    """The middle of the bin that has the number of a rank, from 1 on, in ascending order. It is off by at most
    :func:`relative_error` of that number. The bin around 0 has numbers below 1e-306 and is told as 0."""
    seen = 0
    for index in sorted(bins):
        seen += bins[index]
        if seen >= rank:
            return _middle(index, level)
    raise AssertionError(f"{rank} is above {seen}, the count of all bins")


def relative_error(level: int) -> float:
    """By which part of itself a number is at most away from the middle of its bin."""
    return 2.0 ** -(level + 1) if level >= 0 else (2.0**2.0**-level - 1) / 2


def _fitted(bins: Bins, level: int) -> int:
    while len(bins) > MAX_BINS:
        _join(bins, 1)
        level -= 1
    return level


def _join(bins: Bins, levels: int) -> None:
    """Join neighbours. A shift joins negative bins as it joins positive ones, because ``~a >> 1 == ~(a >> 1)``."""
    finer = list(bins.items())
    bins.clear()
    for index, count in finer:
        bins[index >> levels] = bins.get(index >> levels, 0) + count


def _middle(index: int, level: int) -> float:
    raw = index + (_CENTRE >> (FINEST_LEVEL - level))
    magnitude = raw if raw >= 0 else ~raw
    if magnitude == 0:
        return 0.0
    shift = _FRACTION_BITS - level
    low, high = _double(magnitude << shift), _double(min((magnitude + 1) << shift, (0x7FF << _FRACTION_BITS) - 1))
    middle = low / 2 + high / 2
    return middle if raw >= 0 else -middle


def _double(bits: int) -> float:
    found: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return found
