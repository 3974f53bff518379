"""The records of a ledger that wait, kept as columns of numbers. One costs 21 bytes; its content is in storage."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from protocols.base.ids import UtcNs

_GONE: Final = 255
"""The priority of a row whose record does not wait any more."""
_PRIORITIES: Final = 8
_SPARE_ROWS: Final = 1_024
"""The columns are made anew when more rows are gone than records wait, and this many on top."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the ledger knows about a pending record."""

    sequence: int
    size_bytes: int
    priority: int
    expires_utc_ns: int
    """0: never."""


class PendingRecords:
    """Records in order of their sequence. Those of a batch under way can be pinned, and are then never evicted."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        """``entries``: in order of sequence."""
        self.count = self.size_bytes = 0
        self._sequences, self._sizes = array("Q"), array("I")
        self._priorities, self._expiries = array("B"), array("Q")
        self._head = 0
        """The first row that may wait."""
        self._cursors = [0] * _PRIORITIES
        """By priority: no row before it can be evicted."""
        self._pinned: frozenset[int] = frozenset()
        self._passed_over = False
        """Whether a cursor went past a pinned record."""
        for entry in entries:
            self.append(entry)

    def append(self, entry: LedgerEntry) -> None:
        """Add a record whose sequence is above all others."""
        self._sequences.append(entry.sequence)
        self._sizes.append(entry.size_bytes)
        self._priorities.append(entry.priority)
        self._expiries.append(entry.expires_utc_ns)
        self.count += 1
        self.size_bytes += entry.size_bytes

    def remove(self, sequence: int) -> bool:
        """Remove a record. False: it does not wait."""
        row = bisect_left(self._sequences, sequence, self._head)
        if row == len(self._sequences) or self._sequences[row] != sequence or self._priorities[row] == _GONE:
            return False
        self.count -= 1
        self.size_bytes -= self._sizes[row]
        self._priorities[row] = _GONE
        while self._head < len(self._priorities) and self._priorities[self._head] == _GONE:
            self._head += 1
        return True

    def oldest_first(self) -> Iterator[LedgerEntry]:
        """Every record. The caller may remove what it was given."""
        for row in range(self._head, len(self._sequences)):
            if self._priorities[row] != _GONE:
                yield LedgerEntry(
                    self._sequences[row], self._sizes[row], self._priorities[row], self._expiries[row]
                )  # fmt: skip

    def expired(self, now: UtcNs) -> list[int]:
        """Sequences of the records whose lifespan is over and that are not pinned."""
        return [
            self._sequences[row]
            for row in range(self._head, len(self._sequences))
            if 0 < self._expiries[row] <= now
            and self._priorities[row] != _GONE
            and self._sequences[row] not in self._pinned
        ]

    def least_valuable(self) -> int | None:
        """The sequence of the record to evict next: the oldest of the lowest priority. None when all are pinned."""
        for priority in range(_PRIORITIES):
            row = max(self._cursors[priority], self._head)
            while row < len(self._priorities):
                if self._priorities[row] == priority:
                    if self._sequences[row] not in self._pinned:
                        break
                    self._passed_over = True
                row += 1
            self._cursors[priority] = row
            if row < len(self._priorities):
                return self._sequences[row]
        return None

    @property
    def has_pinned(self) -> bool:
        """Whether a batch with records is under way."""
        return bool(self._pinned)

    def pin(self, sequences: Iterable[int]) -> None:
        """Note that these records are under way."""
        self._pinned = frozenset(sequences)

    def unpin(self) -> None:
        """Note that no record is under way. Eviction looks again at those that it passed over."""
        self._pinned = frozenset()
        self.compact()
        if self._passed_over:
            self._passed_over = False
            self._cursors = [self._head] * _PRIORITIES

    def compact(self) -> None:
        """Give back the memory of rows that are gone, when there are many."""
        if len(self._sequences) <= 2 * self.count + _SPARE_ROWS:
            return
        kept = [row for row in range(self._head, len(self._sequences)) if self._priorities[row] != _GONE]
        self._sequences = array("Q", (self._sequences[row] for row in kept))
        self._sizes = array("I", (self._sizes[row] for row in kept))
        self._expiries = array("Q", (self._expiries[row] for row in kept))
        self._priorities = array("B", (self._priorities[row] for row in kept))
        self._head = 0
        self._cursors = [0] * _PRIORITIES

    def shift(self, shift: int) -> None:
        """Add ``shift`` to every sequence."""
        self._sequences = array("Q", (sequence + shift for sequence in self._sequences))
