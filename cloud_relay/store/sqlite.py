"""The relay's store: SQLite with one writing thread.

Batches that arrive while a transaction is under way share the next one, one batch of each node at a time, and nobody is
answered before it is on disk.
The store uses a plain thread with ``sqlite3``, and not aiosqlite as the outbox does. Batches arrive on the responder's
threads, which wait for the commit anyway, and an event loop in between would only add two changes of thread to each.

``INSERT OR IGNORE`` on (origin, sequence) decides what is stored, so a batch may come any number of times. The same
name with other bytes is a conflict: the first record is kept, and the second is refused and counted.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.store.aggregates.keeping import KeptAggregates
from cloud_relay.store.contract import StorableBatch, StorableRecord
from cloud_relay.store.fates import FateTable
from cloud_relay.store.packs.known import KnownAs, KnownRecords
from cloud_relay.store.packs.packing import Job
from cloud_relay.store.packs.reading import PackDamaged
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.receipts import ReceiptTable
from cloud_relay.store.retaining import TOO_MANY_GAPS
from cloud_relay.store.schema import open_for_writing, storage_error
from cloud_relay.store.streams import StreamCounts
from cloud_relay.store.turns import Turns
from protocols.base.errors import StorageError
from protocols.wire.records import Acknowledgement, Fate, RefusedRecord, RelayRefusal

MAX_WAITING_BATCHES = 64
"""Batches that wait between the responder and the disk, of at most 1 MiB each."""
MAX_GROUP_BATCHES = 16
"""Batches in one transaction, each of another node. It bounds how long the first of them waits."""
_log = logging.getLogger(__name__)
_INSERT = f"INSERT OR IGNORE INTO records VALUES ({','.join('?' * 24)})"  # noqa: S608 - marks only


_HELD = (KnownAs.SAME, KnownAs.PROVEN, KnownAs.DELETED)
_PROVEN = (KnownAs.PROVEN, KnownAs.DELETED)


class Store:
    """A :class:`~cloud_relay.store.contract.RecordStore`. The package ``cloud_relay.query`` reads it."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], int] = time.time_ns,
        aggregates: Sequence[AggregateDefinition] | None = None,
    ) -> None:
        """Open or create the store in ``path``. ``clock`` gives UTC nanoseconds. ``aggregates`` are kept from now on,
        and others are dropped; None: those that the store has.

        :raises StorageError: when it can't be used; says why and the way out.
        """
        self._path = path
        self._clock = clock
        self._db = open_for_writing(path)
        self._turns: Turns[tuple[StorableBatch | Job, Future[Any]]] = Turns(MAX_WAITING_BATCHES)
        self._fates = FateTable(self._db)
        self._receipts = ReceiptTable(self._db)
        self._streams = StreamCounts(self._db)
        self._packed = KnownRecords(self._db)
        try:
            self._aggregates = KeptAggregates(self._db, path, aggregates, clock())
            self._next_number = newest_number(self._db) + 1
        except sqlite3.Error as error:
            self._db.close()
            raise storage_error(path, error) from error
        self._stored = self._repeated = self._conflicts = self._failures = 0
        self.at_commit: Callable[[], None] = lambda: None
        """Called on the writing thread whenever records were stored."""
        self.at_end: Callable[[float, bool], None] = lambda took_s, done: None
        """Called on the writing thread when a transaction has ended, with how long it took and whether it is on disk.
        """
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="store")
        self._thread.start()

    def submit(self, batch: StorableBatch) -> "Future[Acknowledgement | RelayRefusal]":
        """Queue a batch. The result comes when it is on disk. It is a StorageError when the disk fails, or when the
        queue is full and the batch gave way.

        :raises StorageError: when the store is closed.
        """
        return self._queued(batch.origin, batch)

    def maintain(self, job: Job) -> "Future[Any]":
        """Queue a slice of work on the store, which has a transaction of its own between those of batches. It should
        take some ten milliseconds.

        :raises StorageError: when the store is closed.
        """
        return self._queued("", job)  # its turn is that of a node without a name

    def _queued(self, origin: str, item: StorableBatch | Job) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            left = self._turns.put(origin, (item, done))
        except ValueError as error:
            raise StorageError("the store is closed: send the batch again later") from error
        if left is not None:
            left[1].set_exception(
                StorageError(f"the store is {MAX_WAITING_BATCHES} batches behind: send the batch again later")
            )
        return done

    def statistics(self) -> dict[str, int]:
        """Counts since the start: records stored, records that came again, conflicts, failed transactions, batches that
        gave way in a full queue, fates that were not noted whole because a bound was reached, times that filling
        aggregates failed, and records that can't be read for it; and batches that wait now."""
        return {
            "stored": self._stored,
            "repeated": self._repeated,
            "conflicts": self._conflicts,
            "failures": self._failures,
            "batches_gave_way": self._turns.gave_way,
            "batches_waiting": self._turns.waiting,
            "fates_beyond_bounds": self._fates.beyond_bounds,
            "aggregate_failures": self._aggregates.failures,
            "aggregate_unreadable": self._aggregates.unreadable,
        }

    def close(self) -> None:
        """Finish what is queued and close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._turns.close()
            self._thread.join()
            self._db.close()

    # --- the writing thread ----------------------------------------------------------------------------------------
    def _write(self) -> None:
        while (group := self._turns.take(MAX_GROUP_BATCHES, self._aggregates.pause_s)) != []:
            if group is not None:
                self._carry_out(group)
            if self._aggregates.pause_s == 0 and self._aggregates.work():
                self._tell()

    def _carry_out(self, group: "list[tuple[StorableBatch | Job, Future[Any]]]") -> None:
        batches = []
        for item, done in group:
            if isinstance(item, StorableBatch):
                batches.append((item, done))
            else:
                self._work(item, done)
        if batches:
            self._commit(batches)

    def _work(self, job: Job, done: "Future[Any]") -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = job(self._db)
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - who asked for it is told, and the thread goes on
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.rollback()
            done.set_exception(storage_error(self._path, error))
            return
        done.set_result(result)

    def _commit(self, group: list[tuple[StorableBatch, "Future[Acknowledgement | RelayRefusal]"]]) -> None:
        before = (self._stored, self._repeated, self._conflicts, self._next_number)
        began_s = time.monotonic()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers = [self._take(batch) for batch, _ in group]
            self._streams.write()
            self._aggregates.write()
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told and the thread goes on
            self._stored, self._repeated, self._conflicts, self._next_number = before
            self._failures += 1
            self._fates.rolled_back()
            self._streams.rolled_back()
            self._aggregates.rolled_back()
            with suppress(sqlite3.Error):  # else this thread would end, and every later batch would wait for it
                if self._db.in_transaction:
                    self._db.rollback()
            for _, done in group:
                done.set_exception(storage_error(self._path, error))
            self.at_end(time.monotonic() - began_s, False)
            return
        self.at_end(time.monotonic() - began_s, True)
        for (_, done), answer in zip(group, answers, strict=True):
            done.set_result(answer)
        if self._stored > before[0]:
            self._tell()

    def _tell(self) -> None:
        try:
            self.at_commit()
        except Exception:  # noqa: BLE001 - this thread must go on, or every later batch would wait for it
            _log.exception("not everybody was told of what was stored: this is a bug of the relay")

    def _take(self, batch: StorableBatch) -> Acknowledgement | RelayRefusal:
        now = self._clock()
        if batch.wrong_receipt:
            self._receipts.note_wrong(batch.origin, batch.wrong_receipt, now)
            return RelayRefusal("receipt", batch.wrong_receipt)
        try:
            packed = self._packed.verdicts(batch.origin, batch.records)
        except PackDamaged as error:
            _log.error("a batch of %s is not taken: %s", batch.origin, error)
            return RelayRefusal("storage", "the relay can't read what it has of these records")
        following, incarnation = batch.next_sequence, batch.incarnation
        known = self._db.execute(
            "SELECT next_sequence, incarnation FROM origins WHERE origin = ?", (batch.origin,)
        ).fetchone()
        if known is not None and following < known[0]:
            if (
                not batch.carried or batch.is_empty or self._contradicts(batch, packed)
            ):  # an empty one asks where to begin
                return RelayRefusal("sequence", str(known[0]))
            following, incarnation = known[0], max(incarnation, known[1])
        self._db.execute(
            "INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?)", (batch.origin, following, incarnation, now)
        )
        stored: list[int] = []
        refused, unsuitable = list(batch.refused), list(batch.refused)
        is_full = self._packed.is_full(batch.origin)
        for record in batch.records:
            name = (batch.origin, record.sequence)
            verdict = packed.get(record.sequence) if packed else None
            if verdict is KnownAs.LATER:
                continue
            if verdict is None and is_full and not self._packed.touches(*name):
                unsuitable.append(RefusedRecord(record.sequence, TOO_MANY_GAPS))
                refused.append(unsuitable[-1])
                continue
            if verdict is None and self._is_inserted(name, record, now):
                self._stored += 1
                self._streams.note(batch.origin, record.rule, record.row)
                self._aggregates.note(batch.origin, record.rule, record.row, now, record.encoded)
            elif verdict in _HELD or (verdict is None and self._holds(name, record)):
                self._repeated += 1
            else:
                self._conflicts += 1
                self._db.execute(
                    "INSERT INTO conflicts VALUES (?, ?, 1, ?)"
                    " ON CONFLICT DO UPDATE SET times = times + 1, last_utc_ns = excluded.last_utc_ns",
                    (*name, now),
                )
                refused.append(RefusedRecord(record.sequence, "conflict: another record has this sequence"))
                continue
            stored.append(record.sequence)
        if batch.receipt is not None:
            unproven = [sequence for sequence in stored if packed.get(sequence) not in _PROVEN] if packed else stored
            self._receipts.keep(batch.origin, batch.receipt, unproven, now)
        if unsuitable or batch.fates:
            never = (Fate(record.sequence, record.sequence, "refused") for record in unsuitable)
            self._fates.note(batch.origin, chain(never, batch.fates))
        return Acknowledgement(tuple(stored), tuple(refused))

    def _is_inserted(self, name: tuple[str, int], record: StorableRecord, now: int) -> bool:
        values = (*name, record.rule, *record.row, now, record.encoded, self._next_number)
        if self._db.execute(_INSERT, values).rowcount != 1:
            return False
        self._next_number += 1
        return True

    def _contradicts(self, batch: StorableBatch, packed: Mapping[int, KnownAs]) -> bool:
        """Whether a batch that comes late has other records than the store under some of its sequences. It was not on
        the road then: its node has gone back to an earlier outbox, and would lose these records as conflicts."""
        if KnownAs.OTHER in packed.values():
            return True
        for record in batch.records:
            name = (batch.origin, record.sequence)
            held = self._db.execute("SELECT 1 FROM records WHERE origin = ? AND sequence = ?", name).fetchone()
            if held is not None and not self._holds(name, record):
                return True
        return False

    def _holds(self, name: tuple[str, int], record: StorableRecord) -> bool:
        held = self._db.execute("SELECT rule, encoded FROM records WHERE origin = ? AND sequence = ?", name).fetchone()
        return bool(held == (record.rule, record.encoded))
