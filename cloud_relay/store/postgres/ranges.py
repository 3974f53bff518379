"""Ranges of sequences of one origin that were all stored once, of which those without a row were deleted.

A record that retention deletes becomes part of a range together with its neighbours, deleted or not, as far as each was
stored. So an honest node has a range only where a loss lies between two deliveries, whichever of its keys are kept.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple


class StoredRange(NamedTuple):
    """From the first to the last sequence, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many sequences it has."""
        return self.last - self.first + 1


def gaps_between(known: Iterable[StoredRange], deleted: Iterable[int]) -> list[StoredRange]:
    """What lies between deleted records and what is next to them: if all of it is stored, they become one range.

    ``known`` has, for each deleted record, the range that begins last up to it and the one that begins first after it.
    """
    return [gap for _, gap in _runs(known, deleted, ()) if gap is not None]


def joined_ranges(
    known: Iterable[StoredRange], deleted: Iterable[int], stored: Collection[StoredRange]
) -> list[StoredRange]:
    """The ranges, in order, once these records are deleted. ``stored`` are the gaps of which each record is there."""
    runs: list[StoredRange] = []
    for run, gap in _runs(known, deleted, stored):
        runs.append(run)
        assert gap not in stored, "runs beside a gap that is stored are one"
    return runs


def _runs(
    known: Iterable[StoredRange], deleted: Iterable[int], stored: Collection[StoredRange]
) -> Iterator[tuple[StoredRange, StoredRange | None]]:
    """Ranges that can't be joined, each with the gap after it, if one of those beside the gap is a deleted record."""
    pieces = sorted([
        *((StoredRange(*one), False) for one in known),
        *((StoredRange(one, one), True) for one in deleted),
    ])  # fmt: skip
    if not pieces:
        return
    (first, last), ends_new = pieces[0]
    for (begin, end), is_new in pieces[1:]:
        gap = StoredRange(last + 1, begin - 1)
        is_asked = gap.length > 0 and (ends_new or is_new)
        if gap.length > 0 and not (is_asked and gap in stored):
            yield StoredRange(first, last), gap if is_asked else None
            first, last, ends_new = begin, end, is_new
        elif end > last:
            last, ends_new = end, is_new
    yield StoredRange(first, last), None
