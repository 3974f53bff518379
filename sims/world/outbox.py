"""The outbox of a simulated node: the ledger of real nodes, and a disk that takes all of a transaction or nothing.

Follows ``meshnode.records.outbox`` step by step. A commit takes no time here, so a crash never falls into one; but what
a full disk did not take is undone by a crash, as in a real node: records that the relay acknowledged are offered again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from msgspec import Raw

from protocols.base.errors import StorageError
from protocols.base.ids import UtcNs
from protocols.base.limits import MS
from protocols.records.ledger import BatchPlan, Counters, Ledger, LedgerEntry
from protocols.wire.records import Acknowledgement, Fate, Record

RECORD_OVERHEAD_BYTES: Final = 64
"""Counted for a record beside its reading and rule, as in a real outbox."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""That wait in an outbox: the default of real nodes."""


class Row(NamedTuple):
    """A record on disk."""

    rule: str
    reading: bytes
    priority: int
    expires_utc_ns: int
    size_bytes: int
    made_ns: int
    """Virtual time."""


class Upload(NamedTuple):
    """What to send to the relay next."""

    plan: BatchPlan
    records: tuple[Record, ...]


class Disk:
    """What outlives the process."""

    def __init__(self) -> None:
        self.full = False
        self.rows: dict[int, Row] = {}
        """By sequence, in order."""
        self._counters = Counters()
        self._fates: dict[int, Fate] = {}

    def write(self, ledger: Ledger, rows: Sequence[Row] = ()) -> None:
        """One transaction: what the ledger decided, and new records. :raises StorageError: there is no space."""
        if self.full:
            raise StorageError("the disk is full")
        changes, counters = ledger.changes(), ledger.counters()
        for sequence in changes.removed:
            self.rows.pop(sequence, None)
        for first, fate in changes.fates.items():
            if fate is None:
                self._fates.pop(first, None)
            else:
                self._fates[first] = fate
        for sequence, row in enumerate(rows, counters.next_sequence):
            self.rows[sequence] = row
        self._counters = replace(counters, next_sequence=counters.next_sequence + len(rows))
        ledger.changes_saved()

    def renumber(self, shift: int) -> None:
        """Add ``shift`` to all sequences. :raises StorageError: there is no space."""
        if self.full:
            raise StorageError("the disk is full")
        self.rows = {sequence + shift: row for sequence, row in self.rows.items()}
        moved = [Fate(fate.first + shift, fate.last + shift, fate.state) for fate in self._fates.values()]
        self._fates = {fate.first: fate for fate in moved}
        counters = self._counters
        self._counters = replace(
            counters, first_sequence=counters.first_sequence + shift, next_sequence=counters.next_sequence + shift
        )

    def read(self, max_records: int) -> Ledger:
        """The ledger that was written. :raises LocalProtocolError: it does not add up."""
        entries = (
            LedgerEntry(sequence, row.size_bytes, row.priority, row.expires_utc_ns)
            for sequence, row in self.rows.items()
        )
        fates = [self._fates[first] for first in sorted(self._fates)]
        return Ledger(max_records, MAX_BYTES, self._counters, entries, fates)


class Outbox:
    """Of one life of a node."""

    def __init__(self, disk: Disk, ledger: Ledger) -> None:
        """``ledger``: what :meth:`Disk.read` of that disk gave."""
        self.disk, self.ledger = disk, ledger

    @property
    def introduced(self) -> bool:
        """Whether the relay knows this outbox."""
        return self.ledger.counters().introduced

    @property
    def first_sequence(self) -> int:
        """Of the first record that was ever put."""
        return self.ledger.counters().first_sequence

    def put(self, rule: str, reading: bytes, priority: int, lifespan_ms: int, utc_ns: UtcNs, made_ns: int) -> int:
        """Store a record and return its sequence. :raises StorageError: the disk is full; nothing was stored."""
        expires_utc_ns = utc_ns + lifespan_ms * MS if lifespan_ms else 0
        size_bytes = len(reading) + len(rule) + RECORD_OVERHEAD_BYTES
        self.disk.write(self.ledger, (Row(rule, reading, priority, expires_utc_ns, size_bytes, made_ns),))
        return self.ledger.issue(size_bytes, priority, expires_utc_ns, utc_ns)

    def next_upload(self, utc_ns: UtcNs) -> Upload | None:
        """What to send next, to be settled before the next; None: nothing."""
        plan = self.ledger.next_batch(utc_ns)
        if plan is None:
            return None
        rows = self.disk.rows
        return Upload(plan, tuple(
            Record(sequence, rows[sequence].rule, Raw(rows[sequence].reading))
            for sequence in plan.sequences
        ))  # fmt: skip

    def acknowledge(self, plan: BatchPlan, answer: Acknowledgement) -> int:
        """Settle: the relay has it. Returns how many records ended."""
        ended = self.ledger.acknowledged(plan, answer)
        self.save()
        return ended

    def abandon(self) -> None:
        """Settle: no answer came."""
        self.ledger.abandoned()

    def introduce(self) -> None:
        """The relay knows this outbox. :raises StorageError: the disk is full."""
        self.ledger.introduce()
        try:
            self.disk.write(self.ledger)
        except StorageError:
            self.ledger.introduce(known=False)
            raise

    def renumber(self, first_sequence: int) -> bool:
        """Go on where the relay stands; see :meth:`protocols.records.ledger.Ledger.renumber`.

        :raises StorageError: the disk is full; nothing changed.
        """
        self.ledger.abandoned()
        shift = first_sequence - self.first_sequence
        if self.introduced or shift <= 0:
            return False
        self.disk.write(self.ledger)
        self.disk.renumber(shift)
        return self.ledger.renumber(first_sequence)

    def expire(self, utc_ns: UtcNs) -> None:
        """End records whose lifespan is over."""
        if self.ledger.expire(utc_ns):
            self.save()

    def save(self) -> None:
        """Write what the ledger decided; what a full disk doesn't take now goes with the next transaction."""
        if not self.disk.full:
            self.disk.write(self.ledger)
