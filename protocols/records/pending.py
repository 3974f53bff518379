"""The records of a ledger that wait, kept as columns of numbers. One costs about 40 bytes; its content is in storage.

Each record has a payer: the node that sensed its reading, or ``OWN``. Which record is evicted is decided by payer: own
records give way only while they are ``OWN_SHARE`` of what waits or more, and among other nodes the one that holds most
gives way. Of that payer, the oldest record of the lowest priority goes. So other nodes can fill what is free, and push
out at most a quarter, however many keys they invent.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Final

from protocols.base.ids import UtcNs
from protocols.base.shares import Shares

OWN: Final = ""
"""The payer of records whose readings were sensed here."""
OWN_SHARE: Final = 0.75
OTHERS: Final = "*"
"""The payer of the records of all nodes beyond ``MAX_PAYERS``, together."""
MAX_PAYERS: Final = 256
"""Nodes whose shares are counted apart: each eviction looks at each of them."""
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
    payer: str = OWN
    """The node whose reading it is; ``OWN``: this one."""


class PendingRecords:
    """Records in order of their sequence. Those of a batch under way can be pinned, and are then never evicted."""

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        """``entries``: in order of sequence."""
        self._sequences, self._sizes = array("Q"), array("I")
        self._priorities, self._expiries = array("B"), array("Q")
        self._payers: list[str] = []
        self._head = 0
        """The first row that may wait."""
        self._records: Shares[str] = Shares()
        self._bytes: Shares[str] = Shares()
        self._queues: dict[tuple[str, int], _EvictionQueue] = {}
        """By payer and priority."""
        self._names: dict[str, str] = {}
        """Nodes that pay for themselves."""
        self._pinned: frozenset[int] = frozenset()
        for entry in entries:
            self.append(entry)

    @property
    def count(self) -> int:
        """How many records wait."""
        return self._records.total

    @property
    def size_bytes(self) -> int:
        """How many bytes wait."""
        return self._bytes.total

    def append(self, entry: LedgerEntry) -> None:
        """Add a record whose sequence is above all others."""
        payer = self._payer(entry.payer)
        self._sequences.append(entry.sequence)
        self._sizes.append(entry.size_bytes)
        self._priorities.append(entry.priority)
        self._expiries.append(entry.expires_utc_ns)
        self._payers.append(payer)
        self._records.add(payer)
        self._bytes.add(payer, entry.size_bytes)
        self._queue(payer, entry.priority).append(entry.sequence)

    def remove(self, sequence: int) -> str | None:
        """Remove a record, and return its payer. None: it does not wait."""
        row = bisect_left(self._sequences, sequence, self._head)
        if row == len(self._sequences) or self._sequences[row] != sequence or self._priorities[row] == _GONE:
            return None
        payer, priority = self._payers[row], self._priorities[row]
        self._records.remove(payer)
        self._bytes.remove(payer, self._sizes[row])
        if payer != OWN and not self._records.held(payer):
            self._names.pop(payer, None)
        self._priorities[row] = _GONE
        if self._queue(payer, priority).remove(sequence):
            del self._queues[payer, priority]
        while self._head < len(self._priorities) and self._priorities[self._head] == _GONE:
            self._head += 1
        return payer

    def oldest_first(self, least_priority: int = 0) -> Iterator[LedgerEntry]:
        """Every record of at least that priority. The caller may remove what it was given."""
        if least_priority:
            queues = [queue for (_, priority), queue in self._queues.items() if priority >= least_priority]
            for sequence in merge(*queues):
                yield self._entry(bisect_left(self._sequences, sequence, self._head))
            return
        for row in range(self._head, len(self._sequences)):
            if self._priorities[row] != _GONE:
                yield self._entry(row)

    def _entry(self, row: int) -> LedgerEntry:
        return LedgerEntry(
            self._sequences[row], self._sizes[row], self._priorities[row], self._expiries[row], self._payers[row]
        )

    def holds(self, least_priority: int) -> bool:
        """Whether a record of at least that priority waits."""
        return any(priority >= least_priority for _, priority in self._queues)

    def expired(self, now: UtcNs) -> list[int]:
        """Sequences of the records whose lifespan is over and that are not pinned."""
        return [
            self._sequences[row]
            for row in range(self._head, len(self._sequences))
            if 0 < self._expiries[row] <= now
            and self._priorities[row] != _GONE
            and self._sequences[row] not in self._pinned
        ]

    def least_valuable(self, in_bytes: bool) -> int | None:
        """The sequence of the record to evict next, by the rule of the module. Shares count in records, or
        ``in_bytes``. None when all are pinned."""
        shares = self._bytes if in_bytes else self._records
        own = shares.held(OWN)
        if own == shares.total:
            return self._least_valuable_of(OWN)
        others = [payer for payer in shares.payers() if payer != OWN]
        largest = max(others, key=shares.held)
        first, second = (OWN, largest) if own >= OWN_SHARE * shares.total else (largest, OWN)
        for payer in (first, second, *others):  # beyond the first two only while a batch pins all of theirs
            if (sequence := self._least_valuable_of(payer)) is not None:
                return sequence
        return None

    def _least_valuable_of(self, payer: str) -> int | None:
        for priority in range(_PRIORITIES):
            queue = self._queues.get((payer, priority))
            if queue is not None:
                for sequence in queue:
                    if sequence not in self._pinned:
                        return sequence
        return None

    @property
    def has_pinned(self) -> bool:
        """Whether a batch with records is under way."""
        return bool(self._pinned)

    def pin(self, sequences: Iterable[int]) -> None:
        """Note that these records are under way."""
        self._pinned = frozenset(sequences)

    def unpin(self) -> None:
        """Note that no record is under way."""
        self._pinned = frozenset()
        self.compact()

    def compact(self) -> None:
        """Give back the memory of rows that are gone, when there are many."""
        if len(self._sequences) <= 2 * self.count + _SPARE_ROWS:
            return
        kept = [row for row in range(self._head, len(self._sequences)) if self._priorities[row] != _GONE]
        self._sequences = array("Q", (self._sequences[row] for row in kept))
        self._sizes = array("I", (self._sizes[row] for row in kept))
        self._expiries = array("Q", (self._expiries[row] for row in kept))
        self._priorities = array("B", (self._priorities[row] for row in kept))
        self._payers = [self._payers[row] for row in kept]
        self._head = 0
        self._make_queues()

    def expire_later(self, step_ns: int) -> None:
        """Add ``step_ns``, which may be negative, to the time at which each record expires."""
        self._expiries = array("Q", (max(1, expires + step_ns) if expires else 0 for expires in self._expiries))

    def expire_by(self, latest_utc_ns: UtcNs) -> None:
        """Let no record that expires do so after ``latest_utc_ns``."""
        self._expiries = array("Q", (min(expires, latest_utc_ns) for expires in self._expiries))

    def shift(self, shift: int) -> None:
        """Add ``shift`` to every sequence."""
        self._sequences = array("Q", (sequence + shift for sequence in self._sequences))
        self._make_queues()

    def _make_queues(self) -> None:
        self._queues = {}
        for sequence, payer, priority in zip(self._sequences, self._payers, self._priorities, strict=True):
            if priority != _GONE:
                self._queue(payer, priority).append(sequence)

    def _queue(self, payer: str, priority: int) -> "_EvictionQueue":
        queue = self._queues.get((payer, priority))
        if queue is None:
            queue = self._queues[payer, priority] = _EvictionQueue()
        return queue

    def _payer(self, node: str) -> str:
        """Who pays for a record of ``node``; always the same string, so that columns share it."""
        if node == OWN:
            return OWN
        known = self._names.get(node)
        if known is None:
            if len(self._names) >= MAX_PAYERS:
                return OTHERS
            known = self._names[node] = node
        return known


class _EvictionQueue:
    """The sequences of the records of one payer and priority that wait, oldest first."""

    __slots__ = ("_head", "_sequences")

    def __init__(self) -> None:
        self._sequences = array("Q")
        self._head = 0

    def __iter__(self) -> Iterator[int]:
        for at in range(self._head, len(self._sequences)):
            yield self._sequences[at]

    def append(self, sequence: int) -> None:
        self._sequences.append(sequence)

    def remove(self, sequence: int) -> bool:
        """Remove a sequence that is there. Returns whether it was the last one."""
        if self._sequences[self._head] != sequence:
            del self._sequences[bisect_left(self._sequences, sequence, self._head)]
            return False
        self._head += 1
        if self._head > _SPARE_ROWS and 2 * self._head > len(self._sequences):
            del self._sequences[: self._head]
            self._head = 0
        return self._head == len(self._sequences)
