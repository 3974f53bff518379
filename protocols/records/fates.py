"""Ranges of records that ended undelivered, kept until the relay has been told."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import Final, Literal

from protocols.base.limits import MAX_FATES_PER_BATCH
from protocols.wire.records import Fate

LostState = Literal["expired", "evicted", "refused"]

MAX_FATE_RANGES: Final = 4 * MAX_FATES_PER_BATCH
"""Ranges that are kept apart by state while the relay is away. When there are more, a record that ends beside a range
of expired or evicted records takes the state of that range. Months without a relay could otherwise fill memory with
alternating ranges."""


class FateRanges:
    """Disjoint ranges of sequences, in order. Adjacent ranges of one state are one range."""

    def __init__(self, fates: Iterable[Fate] = ()) -> None:
        self._ranges = {fate.first: fate for fate in fates}
        self._firsts = sorted(self._ranges)
        self._changes: dict[int, Fate | None] = {}

    def __len__(self) -> int:
        return len(self._firsts)

    def in_order(self, most: int | None = None) -> list[Fate]:
        """The ranges, or the first ``most`` of them."""
        return [self._ranges[first] for first in self._firsts[:most]]

    def changes(self) -> dict[int, Fate | None]:
        """What changed since :meth:`changes_saved`, by first sequence: a range to write, or None for one to delete."""
        return self._changes

    def changes_saved(self) -> None:
        """All of :meth:`changes` is in storage."""
        self._changes = {}

    def add(self, sequence: int, state: LostState) -> LostState:
        """Note that a record ended in this state. Returns the state that it counts as, see :data:`MAX_FATE_RANGES`."""
        at = bisect_right(self._firsts, sequence)
        left = self._ranges[self._firsts[at - 1]] if at else None
        if left is not None and left.last != sequence - 1:
            left = None
        right = self._ranges.get(sequence + 1)
        if len(self._firsts) >= MAX_FATE_RANGES and state != "refused":
            state = next((f.state for f in (left, right) if f is not None and f.state != "refused"), state)
        first = last = sequence
        if left is not None and left.state == state:
            first = left.first
        if right is not None and right.state == state:
            last = right.last
            self._drop(right.first)
        self._put(Fate(first, last, state))
        return state

    def forget(self, told: Fate) -> None:
        """Forget a range that the relay knows. The range may have grown at either end since it was sent, and what was
        added stays."""
        at = bisect_right(self._firsts, told.first) - 1
        if at < 0:
            return
        held = self._ranges[self._firsts[at]]
        if held.last < told.last or held.state != told.state:
            return
        self._drop(held.first)
        if held.first < told.first:
            self._put(Fate(held.first, told.first - 1, held.state))
        if held.last > told.last:
            self._put(Fate(told.last + 1, held.last, held.state))

    def shifted(self, shift: int) -> "FateRanges":
        """The same ranges, each ``shift`` sequences higher, as if they had been read from storage."""
        return FateRanges(Fate(fate.first + shift, fate.last + shift, fate.state) for fate in self._ranges.values())

    def _put(self, fate: Fate) -> None:
        if fate.first not in self._ranges:
            insort(self._firsts, fate.first)
        self._ranges[fate.first] = fate
        self._changes[fate.first] = fate

    def _drop(self, first: int) -> None:
        del self._ranges[first]
        del self._firsts[bisect_left(self._firsts, first)]
        self._changes[first] = None
