"""The outbox: records for the relay, on disk until their fate is known to it. The storage of
``protocols.records.ledger``.

A record that :meth:`Outbox.put` returned for survives SIGKILL and loss of power: SQLite, write-ahead log,
``synchronous=FULL``. Puts that meet share one transaction. What the ledger decides is written with the next transaction
at the latest; when that is lost in a crash the records concerned are simply offered again, and the relay takes each
only once. So a full disk stops new records, with a :class:`StorageError`, and nothing else.

One process at a time: the file is locked while it is open. All methods belong to the event loop that opened it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import aiosqlite
from msgspec import Raw

from protocols.base.errors import BoundExceeded, LocalProtocolError, StorageError
from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_BATCH_RECORDS, MAX_RECORD_BYTES, MAX_TEXT_CHARS, MS
from protocols.records.ledger import BatchPlan, Counters, Ledger, LedgerEntry
from protocols.wire.records import Acknowledgement, Fate, Record

RECORD_OVERHEAD_BYTES = 64
"""Counted for a record beside its reading and rule: row, keys and index pages."""
MAX_WAITING_RECORDS = 8_192
"""Records waiting for a commit. Beyond, the disk is slower than the sensors, and waiting longer would not help."""
MAX_GROUP_RECORDS = 512
"""Records in one transaction: bounds what a full ledger can exceed its bounds by until the next one."""
_APPLICATION_ID = 0x6D6E6F62
_VERSION = 1
_FULL = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN))

_SCHEMA = """
CREATE TABLE ledger (one INTEGER PRIMARY KEY CHECK (one = 1), first_sequence INTEGER NOT NULL,
    next_sequence INTEGER NOT NULL, delivered INTEGER NOT NULL, expired INTEGER NOT NULL, evicted INTEGER NOT NULL,
    refused INTEGER NOT NULL, introduced INTEGER NOT NULL);
CREATE TABLE records (sequence INTEGER PRIMARY KEY, rule TEXT NOT NULL, priority INTEGER NOT NULL,
    expires_utc_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL, reading BLOB NOT NULL);
CREATE TABLE fates (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, state TEXT NOT NULL);
"""


class Curated(NamedTuple):
    """A record before it has a sequence."""

    rule: str
    """Name of the rule that chose it."""
    reading: bytes
    """Result of ``codec.encode_reading``."""
    priority: int = 3
    """0 to 7; the lowest is evicted first."""
    lifespan_ms: int = 0
    """Expires when not delivered this long after the put; 0: never."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What to send to the relay next; settle it with one of the methods of the outbox that take it."""

    plan: BatchPlan
    records: tuple[Record, ...]
    """With the reading as the encoded bytes that were put."""

    @property
    def fates(self) -> tuple[Fate, ...]:
        """Ranges of records that will never be delivered."""
        return self.plan.fates

    @property
    def next_sequence(self) -> int:
        """The sequence of the next record."""
        return self.plan.next_sequence


class _Put(NamedTuple):
    records: Sequence[Curated]
    done: asyncio.Future[list[int]]


class Outbox:
    """Records that wait for the relay. ``async with Outbox.open(path, …) as outbox:``"""

    def __init__(self, path: Path, max_records: int, max_bytes: int, clock: Callable[[], int]) -> None:
        self._path = path
        self._max_records, self._max_bytes = max_records, max_bytes
        self._clock = clock
        self._lock = asyncio.Lock()
        self._puts: list[_Put] = []
        self._waiting = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._failed_puts = self._failed_saves = 0
        self._uncertain = False
        self._db: aiosqlite.Connection
        self._ledger: Ledger
        self._writer: asyncio.Task[None]

    @classmethod
    def open(cls, path: Path | str, max_records: int, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> Self:
        """An outbox in the file ``path``, created if missing; opened by ``async with``.

        ``max_records`` and ``max_bytes`` bound what waits, not the file, which grows to somewhat more and is reused.
        ``clock`` gives UTC nanoseconds.

        :raises StorageError: on entering: the file can't be used; says why and the way out.
        """
        return cls(Path(path), max_records, max_bytes, clock)

    async def __aenter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = await aiosqlite.connect(self._path, isolation_level=None, timeout=1.0)
        except (OSError, sqlite3.Error) as error:
            raise self._storage_error(error, "can't be opened") from error
        try:
            await self._prepare()
            self._ledger = await self._read_back()
        except BaseException as error:
            await self._db.close()
            if isinstance(error, sqlite3.Error | LocalProtocolError | ValueError | TypeError | OverflowError):
                raise self._storage_error(error, "can't be opened") from error
            raise
        self._writer = asyncio.create_task(self._write_puts(), name="outbox")
        self._changed.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._lock:  # a transaction under way is finished, what waits behind it is turned away
            self._writer.cancel()
        with suppress(asyncio.CancelledError):
            await self._writer
        for put in self._puts:
            if not put.done.done():
                put.done.set_exception(StorageError(f"the outbox {self._path} was closed before the record was stored"))
        self._puts.clear()
        await self._save()
        await self._db.close()

    # --- records in ------------------------------------------------------------------------------------------------
    async def put(self, *records: Curated) -> list[int]:
        """Store records and return their sequences once they are on disk: all of them or none.

        When a bound is reached the record of the lowest priority is evicted, of those the oldest; it may be this one.

        :raises StorageError: the disk is full or fails; nothing was stored and later puts may succeed.
        :raises BoundExceeded: a record is too large, or more than ``MAX_WAITING_RECORDS`` wait for the disk.
        """
        for record in records:
            if len(record.reading) > MAX_RECORD_BYTES:
                raise BoundExceeded(
                    f"a record of {len(record.reading)} bytes by rule {record.rule!r} is too large: "
                    f"at most {MAX_RECORD_BYTES}"
                )
            if not 0 <= record.priority <= 7 or len(record.rule) > MAX_TEXT_CHARS or record.lifespan_ms < 0:
                raise BoundExceeded(
                    f"a record by rule {record.rule[:80]!r} has priority {record.priority} and lifespan_ms "
                    f"{record.lifespan_ms}: use a priority of 0 to 7, a lifespan of 0 or more and at most "
                    f"{MAX_TEXT_CHARS} characters for the rule"
                )
        if not records:
            return []
        if len(records) > MAX_GROUP_RECORDS or self._waiting + len(records) > MAX_WAITING_RECORDS:
            raise BoundExceeded(
                f"{len(records)} more records for {self._path}, where {self._waiting} wait for the disk: put at most "
                f"{MAX_GROUP_RECORDS} at once, slower or with a longer min_interval"
            )
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._puts.append(_Put(records, done))
        self._waiting += len(records)
        self._wake.set()
        return await done

    async def _write_puts(self) -> None:
        while True:
            await self._wake.wait()
            async with self._lock:
                group: list[_Put] = []
                count = 0
                while self._puts and count + len(self._puts[0].records) <= MAX_GROUP_RECORDS:
                    count += len(self._puts[0].records)
                    group.append(self._puts.pop(0))
                if not self._puts:
                    self._wake.clear()
                await self._write_group(group)
                self._waiting -= count

    async def _write_group(self, group: list[_Put]) -> None:
        now = self._clock()
        rows: list[tuple[int, str, int, int, int, bytes]] = []
        try:
            await self._settle()
            sequence = self._ledger.next_sequence
            for record in (record for put in group for record in put.records):
                expires = now + record.lifespan_ms * MS if record.lifespan_ms else 0
                size_bytes = len(record.reading) + len(record.rule) + RECORD_OVERHEAD_BYTES
                rows.append((sequence + len(rows), record.rule, record.priority, expires, size_bytes, record.reading))
            await self._transact(rows)
        except (sqlite3.Error, OSError) as error:
            for put in group:
                self._failed_puts += len(put.records)
                if not put.done.done():
                    put.done.set_exception(self._storage_error(error, f"did not take {len(put.records)} records"))
                    put.done.exception()  # a caller that was cancelled meanwhile is no news
            return
        except BaseException:
            for put in group:
                put.done.cancel()
            raise
        for _, _, priority, expires, size_bytes, _ in rows:
            self._ledger.issue(size_bytes, priority, expires, UtcNs(now))
        for put in group:
            if not put.done.done():
                put.done.set_result(list(range(sequence, sequence + len(put.records))))
            sequence += len(put.records)
        self._changed.set()

    # --- batches out -----------------------------------------------------------------------------------------------
    async def wait(self) -> None:
        """Return when there may be something to send: after a put, and once after opening."""
        await self._changed.wait()
        self._changed.clear()

    async def next_upload(self, max_records: int = MAX_BATCH_RECORDS) -> Upload | None:
        """The next records and fates for the relay, or None. One at a time: settle it before asking again.

        :raises StorageError: the file can't be read.
        """
        async with self._lock:
            plan = self._ledger.next_batch(UtcNs(self._clock()), max_records)
            if plan is None:
                return None
            try:
                records = await self._read_records(plan.sequences)
            except (sqlite3.Error, StorageError) as error:
                self._ledger.abandoned()
                raise self._storage_error(error, "can't be read") from error
            except BaseException:
                self._ledger.abandoned()
                raise
            return Upload(plan, records)

    async def acknowledge(self, upload: Upload, answer: Acknowledgement) -> int:
        """Settle: the relay has it. Returns how many of its records ended (0 of some: the relay named none of them)."""
        async with self._lock:
            ended = self._ledger.acknowledged(upload.plan, answer)
            await self._save()
            return ended

    async def abandon(self) -> None:
        """Settle: no answer came; it will be offered again."""
        async with self._lock:
            self._ledger.abandoned()

    async def refuse(self, upload: Upload) -> None:
        """Settle: the relay can't read these records and never will."""
        async with self._lock:
            for sequence in upload.plan.sequences:
                self._ledger.refuse(sequence)
            await self._save()

    async def renumber(self, first_sequence: int) -> bool:
        """Settle: this outbox is new, but the relay knows records of this node below ``first_sequence``: go on there.

        Records that wait get new sequences. False: the relay knows this outbox, so another node uses this node's name.

        :raises StorageError: the disk is full or fails; nothing changed.
        """
        async with self._lock:
            self._ledger.abandoned()
            counters = self._ledger.counters()
            shift = first_sequence - counters.first_sequence
            if counters.introduced or shift <= 0:
                return False
            try:
                await self._transact([])
                await self._db.execute("BEGIN IMMEDIATE")
                await self._db.execute("UPDATE records SET sequence = -(sequence + ?)", (shift,))
                await self._db.execute("UPDATE records SET sequence = -sequence")
                await self._db.execute("UPDATE fates SET first = -(first + ?), last = last + ?", (shift, shift))
                await self._db.execute("UPDATE fates SET first = -first")
                await self._db.execute(
                    "UPDATE ledger SET first_sequence = first_sequence + ?, next_sequence = next_sequence + ?",
                    (shift, shift),
                )
                await self._db.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                await self._roll_back()
                raise self._storage_error(error, "could not be renumbered") from error
            return self._ledger.renumber(first_sequence)

    async def introduce(self) -> None:
        """The relay acknowledged that this outbox begins at its first sequence.

        :raises StorageError: the disk is full or fails; it has to be asked again.
        """
        async with self._lock:
            self._ledger.introduce()
            try:
                await self._transact([])
            except (sqlite3.Error, OSError) as error:
                self._ledger.introduce(known=False)
                raise self._storage_error(error, "could not note that the relay knows it") from error

    async def expire(self) -> int:
        """End records whose lifespan is over; cheap enough for once a second. Returns how many ended."""
        async with self._lock:
            ended = self._ledger.expire(UtcNs(self._clock()))
            if ended:
                await self._save()
            return ended

    def statistics(self) -> dict[str, int]:
        """The ledger's account, records that the disk did not take (``failed_puts``) and accounts that it did not take
        yet (``failed_saves``)."""
        return self._ledger.statistics() | {"failed_puts": self._failed_puts, "failed_saves": self._failed_saves}

    @property
    def first_sequence(self) -> int:
        """The sequence of the first record that was ever put."""
        return self._ledger.counters().first_sequence

    @property
    def introduced(self) -> bool:
        """Whether the relay knows this outbox. Until then no record may be sent: see :meth:`renumber`."""
        return self._ledger.counters().introduced

    @property
    def pending(self) -> int:
        """Records that wait for the relay."""
        return self._ledger.pending

    # --- SQLite ----------------------------------------------------------------------------------------------------
    async def _prepare(self) -> None:
        db = self._db
        # exclusive: no shared-memory file, and a second process on this file is told at once
        await db.execute("PRAGMA locking_mode = EXCLUSIVE")
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        await db.execute("PRAGMA journal_size_limit = 4194304")
        await db.execute("PRAGMA cache_size = -1024")
        await db.execute("BEGIN IMMEDIATE")
        version, application = await self._number("PRAGMA user_version"), await self._number("PRAGMA application_id")
        tables = await self._number("SELECT count(*) FROM sqlite_schema")
        if tables == 0 and version == 0:
            for statement in _SCHEMA.split(";"):
                await db.execute(statement)
            await db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            await db.execute(f"PRAGMA user_version = {_VERSION}")
            await db.execute("INSERT INTO ledger VALUES (1, ?, ?, ?, ?, ?, ?, ?)", astuple(Counters()))
        elif application != _APPLICATION_ID:
            raise StorageError(f"{self._path} is another program's database: name another file for the outbox")
        elif version != _VERSION:
            raise StorageError(
                f"the outbox {self._path} has version {version}, this program knows {_VERSION}: start the newer program"
            )
        await db.execute("COMMIT")

    async def _read_back(self) -> Ledger:
        counters = await self._fetch(
            "SELECT first_sequence, next_sequence, delivered, expired, evicted, refused, introduced FROM ledger"
        )
        if len(counters) != 1:
            raise sqlite3.DatabaseError("the ledger's row is missing")
        first, following, delivered, expired, evicted, refused, introduced = counters[0]
        entries = await self._fetch(
            "SELECT sequence, size_bytes, priority, expires_utc_ns FROM records ORDER BY sequence"
        )
        fates = await self._fetch("SELECT first, last, state FROM fates ORDER BY first")
        return Ledger(
            self._max_records,
            self._max_bytes,
            Counters(first, following, delivered, expired, evicted, refused, bool(introduced)),
            (LedgerEntry(*row) for row in entries),
            (Fate(*row) for row in fates),
        )

    async def _read_records(self, sequences: tuple[int, ...]) -> tuple[Record, ...]:
        if not sequences:
            return ()
        wanted = frozenset(sequences)
        marks = ",".join("?" * len(sequences))
        rows = await self._fetch(
            f"SELECT sequence, rule, reading FROM records WHERE sequence IN ({marks}) ORDER BY sequence",  # noqa: S608 - marks only
            sequences,
        )
        records = tuple(Record(row[0], row[1], Raw(row[2])) for row in rows if row[0] in wanted)
        if len(records) != len(sequences):
            raise StorageError(f"{len(sequences) - len(records)} pending records are missing in {self._path}")
        return records

    async def _fetch(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        return list(await self._db.execute_fetchall(statement, tuple(values)))

    async def _number(self, statement: str) -> int:
        return int((await self._fetch(statement))[0][0])

    async def _settle(self) -> None:
        """After an interrupted transaction: find out whether it happened."""
        if self._uncertain:
            self._ledger = await self._read_back()
            self._uncertain = False

    async def _transact(self, new_rows: list[tuple[int, str, int, int, int, bytes]]) -> None:
        """Write what the ledger decided and ``new_rows``, all or nothing."""
        await self._settle()
        changes = self._ledger.changes()
        counters = self._ledger.counters()
        db = self._db
        try:
            await db.execute("BEGIN IMMEDIATE")
            if changes.removed:
                await db.executemany("DELETE FROM records WHERE sequence = ?", [(s,) for s in changes.removed])
            gone = [(first,) for first, fate in changes.fates.items() if fate is None]
            if gone:
                await db.executemany("DELETE FROM fates WHERE first = ?", gone)
            kept = [(fate.first, fate.last, fate.state) for fate in changes.fates.values() if fate is not None]
            if kept:
                await db.executemany("INSERT OR REPLACE INTO fates VALUES (?, ?, ?)", kept)
            if new_rows:
                await db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", new_rows)
            first, following, *ended = astuple(counters)
            await db.execute(
                "UPDATE ledger SET first_sequence = ?, next_sequence = ?, delivered = ?, expired = ?, evicted = ?,"
                " refused = ?, introduced = ?",
                (first, following + len(new_rows), *ended),
            )
            await db.execute("COMMIT")
        except (sqlite3.Error, OSError):
            await self._roll_back()
            raise
        except BaseException:
            # cancelled: the thread of SQLite goes on, so the commit may have happened; only the file knows
            self._uncertain = bool(new_rows)
            await self._roll_back()
            raise
        self._ledger.changes_saved()

    async def _save(self) -> None:
        """Write what the ledger decided; what the disk doesn't take now goes with the next transaction."""
        try:
            await self._transact([])
        except (sqlite3.Error, OSError):
            self._failed_saves += 1

    async def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            await self._db.rollback()

    def _storage_error(self, error: Exception, happened: str) -> StorageError:
        if isinstance(error, StorageError):
            return error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            way_out = "another process uses it: give each node its own state_dir"
        elif isinstance(error, OSError) or code in _FULL:
            way_out = "free space on that disk and check that the folder is writable"
        else:
            way_out = (
                "the file is damaged: move it away and start again; the node goes on with a new one, and the audit at "
                "the relay will name the records that were in it"
            )
        return StorageError(f"the outbox {self._path} {happened}: {error}; {way_out}")
