"""The disk of a simulated node: takes all of a transaction or nothing, and outlives the process.

It stands for the file of a real outbox (``meshnode.records.outbox_file``); the ledger that decides what is written is
that of real nodes. A commit takes no time here, so a crash never falls into one. What a full disk did not take is
undone by a crash, as in a real node: records that the relay acknowledged are offered again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from msgspec import Raw

from protocols.base.errors import StorageError
from protocols.base.ids import UtcNs
from protocols.records.curated import Curated
from protocols.records.ledger import Counters, Ledger
from protocols.records.pending import LedgerEntry
from protocols.wire.records import Fate, Record

MAX_BYTES: Final = 256 * 1024 * 1024
"""The most bytes that wait in an outbox: the default of real nodes."""


class StoredRecord(NamedTuple):
    """A record on disk."""

    record: Curated
    entry: LedgerEntry
    """Its sequence is the one under which it was written first."""
    made_ns: int
    """Virtual time."""


class Disk:
    """Records, and the account of them."""

    def __init__(self) -> None:
        self.full = False
        self.records: dict[int, StoredRecord] = {}
        """Records that wait, by sequence and in its order."""
        self._counters = Counters()
        self._fates: dict[int, Fate] = {}

    def put(self, ledger: Ledger, record: Curated, utc_now: UtcNs, made_ns: int) -> int:
        """Store a record and return its sequence. :raises StorageError: the disk is full; nothing was stored."""
        entries = ledger.upcoming((record,), utc_now)
        self.write(ledger, [StoredRecord(record, entry, made_ns) for entry in entries])
        ledger.issue_all(entries, utc_now)
        return entries[0].sequence

    def read_ledger(self, max_records: int) -> Ledger:
        """The ledger that was written last. :raises LocalProtocolError: it does not add up."""
        entries = (replace(stored.entry, sequence=sequence) for sequence, stored in self.records.items())
        fates = [self._fates[first] for first in sorted(self._fates)]
        return Ledger(max_records, MAX_BYTES, self._counters, entries, fates)

    def read_records(self, sequences: Sequence[int]) -> tuple[Record, ...]:
        """The records with these sequences."""
        stored = ((sequence, self.records[sequence].record) for sequence in sequences)
        return tuple(Record(sequence, record.rule, Raw(record.reading)) for sequence, record in stored)

    def write(self, ledger: Ledger, new: Sequence[StoredRecord] = (), shift: int = 0) -> None:
        """One transaction: what the ledger decided and ``new`` records; then ``shift`` is added to every sequence.

        :raises StorageError: the disk is full; nothing was written.
        """
        if self.full:
            raise StorageError("the disk is full")
        changes, counters = ledger.changes(), ledger.counters()
        for sequence in changes.removed:
            self.records.pop(sequence, None)
        for first, fate in changes.fates.items():
            if fate is None:
                self._fates.pop(first, None)
            else:
                self._fates[first] = fate
        for stored in new:
            self.records[stored.entry.sequence] = stored
        if shift:
            self.records = {sequence + shift: stored for sequence, stored in self.records.items()}
            moved = [Fate(fate.first + shift, fate.last + shift, fate.state) for fate in self._fates.values()]
            self._fates = {fate.first: fate for fate in moved}
        self._counters = replace(
            counters, first_sequence=counters.first_sequence + shift,
            next_sequence=counters.next_sequence + len(new) + shift,
        )  # fmt: skip
        ledger.changes_saved()
