"""The file of an outbox: an SQLite database with the ledger's account, the records that wait and the untold fates.

Each method that writes is one transaction, all of it or nothing. What was written survives SIGKILL and loss of power
(write-ahead log, ``synchronous=FULL``). The file is locked while it is open, so that two processes can't use it.
"""

import fcntl
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import astuple
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import aiosqlite
from msgspec import Raw

from meshnode.identity.private_files import create_private, narrow_database
from protocols.base.errors import StorageError
from protocols.records.egress.passed import PolicyMark
from protocols.records.ledger import Changes, Counters
from protocols.records.pending import LedgerEntry
from protocols.wire.records import Fate, Record

_APPLICATION_ID: Final = 0x6D6E6F62
_VERSION: Final = 3
_FULL: Final = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN))

_DAMAGED: Final = frozenset((0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT,
                             sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_NOTADB))  # fmt: skip
"""What SQLite says when it does not find what was written. 0: it was found here, or is no error of SQLite."""

_OWN_FOLDER: Final = "give each node its own state_dir"
_LOCK_BEGINS: Final = 0x40000000
_LOCK_BYTES: Final = 512
"""The bytes of a database file that SQLite locks; see ``PENDING_BYTE`` in its documentation of the file format."""

_SCHEMA: Final = """
CREATE TABLE ledger (one INTEGER PRIMARY KEY CHECK (one = 1), first_sequence INTEGER NOT NULL,
    next_sequence INTEGER NOT NULL, delivered INTEGER NOT NULL, expired INTEGER NOT NULL, evicted INTEGER NOT NULL,
    refused INTEGER NOT NULL, introduced INTEGER NOT NULL);
CREATE TABLE records (sequence INTEGER PRIMARY KEY, rule TEXT NOT NULL, priority INTEGER NOT NULL,
    expires_utc_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL, reading BLOB NOT NULL,
    payer TEXT NOT NULL DEFAULT '');
CREATE TABLE fates (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, state TEXT NOT NULL);
"""
_POLICIES: Final = "CREATE TABLE policies (first INTEGER PRIMARY KEY, digest BLOB NOT NULL)"
"""Versions 1 and 2 did not know which egress policy their records passed."""

_SEALED: Final = "CREATE TABLE sealed (id BLOB PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID"
"""The batches that were made for neighbours, by the id of their sealed bytes, with their last sequence. Earlier
versions had none."""

_PAYERS: Final = "ALTER TABLE records ADD COLUMN payer TEXT NOT NULL DEFAULT ''"
"""Version 1 did not know whose readings its records are, so all count as those of this node."""

RecordRow = tuple[int, str, int, int, int, bytes, str]
"""The columns of a record, from ``sequence`` to ``payer``."""


class OutboxDamaged(StorageError):
    """The file is not what was written; a new one has to be begun."""

    def __init__(self, message: str, what: str) -> None:
        """``what``: the damage alone, as it was found."""
        super().__init__(message)
        self.what = what


class StoredLedger(NamedTuple):
    """What the file knows of a ledger, as ``Ledger.restore`` takes it."""

    counters: Counters
    pending: list[LedgerEntry]
    fates: list[Fate]
    policies: list[PolicyMark]


class OutboxFile:
    """One open file. All methods belong to the event loop that opened it and raise ``sqlite3.Error`` or ``OSError``
    when the disk fails; :meth:`storage_error` says what to do about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: aiosqlite.Connection

    async def open(self) -> StoredLedger:
        """Open the file, created if missing. :raises StorageError: it is another program's or in use."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_private(self.path)
        self._db = await aiosqlite.connect(self.path, isolation_level=None, timeout=1.0)
        try:
            await self._prepare()
            narrow_database(self.path)
            return await self.read_ledger()
        except BaseException:
            await self._db.close()
            raise

    async def close(self) -> None:
        """Close the file."""
        await self._db.close()

    def check(self) -> None:
        """Look whether a file that no node uses now could be opened, and change nothing.

        SQLite makes files beside one that it reads together with its log, for the user who reads: perhaps another one
        than the node's, which could not open them then. So it reads a copy.

        :raises StorageError: it could not; says why.
        """
        if not self.path.exists():
            return
        log = self.path.with_name(f"{self.path.name}-wal")
        try:
            if self._is_locked():
                raise StorageError(f"the outbox {self.path} can't be opened: another process uses it: {_OWN_FOLDER}")
            if not log.exists() or not log.stat().st_size:
                self._look(self.path, "immutable=1")
                return
            with TemporaryDirectory(prefix="meshnode-") as folder:
                for file in (self.path, log):
                    copyfile(file, Path(folder, file.name))
                self._look(Path(folder, self.path.name), "mode=rw")
        except (sqlite3.Error, OSError) as error:
            raise self.storage_error(error, "can't be opened") from error

    def _is_locked(self) -> bool:
        """Whether another process writes the file, or keeps others from it, by the bytes that SQLite locks."""
        with self.path.open("rb") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, _LOCK_BYTES, _LOCK_BEGINS)
            except BlockingIOError:
                return True
        return False

    def _look(self, file: Path, how: str) -> None:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True)) as db:
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            self._check_kind(tables, version, application)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def _check_kind(self, tables: int, version: int, application: int) -> None:
        """:raises StorageError: the file is not an outbox that this program knows."""
        if tables == 0 and version == 0:
            return
        if application != _APPLICATION_ID:
            raise StorageError(f"{self.path} is another program's database: name another file for the outbox")
        if not 1 <= version <= _VERSION:
            raise StorageError(
                f"the outbox {self.path} has version {version}, this program knows {_VERSION}: start the newer program"
            )

    async def _prepare(self) -> None:
        db = self._db
        # exclusive: no shared-memory file, and a second process on this file is told at once
        await db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._check_kind(*await self._kind())  # before anything is written: it may be somebody else's
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        await db.execute("PRAGMA journal_size_limit = 4194304")
        await db.execute("PRAGMA cache_size = -1024")
        await db.execute("BEGIN IMMEDIATE")
        tables, version, _ = await self._kind()
        if tables == 0 and version == 0:
            for statement in _SCHEMA.split(";"):
                await db.execute(statement)
            await db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            await db.execute("INSERT INTO ledger VALUES (1, ?, ?, ?, ?, ?, ?, ?)", astuple(Counters()))
        elif version == 1:
            await db.execute(_PAYERS)
        if version < _VERSION:
            await db.execute(_POLICIES)
            await db.execute(_SEALED)
            await db.execute(f"PRAGMA user_version = {_VERSION}")
        await db.execute("COMMIT")

    # --- reading ---------------------------------------------------------------------------------------------------
    async def read_ledger(self) -> StoredLedger:
        """What was written last."""
        counters = await self._fetch(
            "SELECT first_sequence, next_sequence, delivered, expired, evicted, refused, introduced FROM ledger"
        )
        if len(counters) != 1:
            raise sqlite3.DatabaseError("the ledger's row is missing")
        first, following, delivered, expired, evicted, refused, introduced = counters[0]
        entries = await self._fetch(
            "SELECT sequence, size_bytes, priority, expires_utc_ns, payer FROM records ORDER BY sequence"
        )
        fates = await self._fetch("SELECT first, last, state FROM fates ORDER BY first")
        policies = await self._fetch("SELECT first, digest FROM policies ORDER BY first")
        return StoredLedger(
            Counters(first, following, delivered, expired, evicted, refused, bool(introduced)),
            [LedgerEntry(*row) for row in entries],
            [Fate(*row) for row in fates],
            [PolicyMark(first, bytes(digest)) for first, digest in policies],
        )

    async def read_records(self, sequences: Sequence[int]) -> tuple[Record, ...]:
        """The records with these sequences, in order. :raises sqlite3.DatabaseError: also when one is missing.

        :raises TypeError, ValueError: a column is not what was written.
        """
        if not sequences:
            return ()
        marks = ",".join("?" * len(sequences))
        rows = await self._fetch(
            f"SELECT sequence, rule, reading FROM records WHERE sequence IN ({marks}) ORDER BY sequence",  # noqa: S608 - marks only
            sequences,
        )
        if len(rows) != len(sequences):
            raise sqlite3.DatabaseError(f"{len(sequences) - len(rows)} pending records are missing")
        return tuple(Record(sequence, rule, Raw(reading)) for sequence, rule, reading in rows)

    async def has_sealed(self, sealed: bytes) -> bool:
        """Whether a batch was noted by :meth:`write_sealed`, and some of its records may still wait."""
        return bool(await self._fetch("SELECT 1 FROM sealed WHERE id = ?", (sealed,)))

    async def _fetch(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        return list(await self._db.execute_fetchall(statement, tuple(values)))

    async def _kind(self) -> tuple[int, int, int]:
        """How many tables it has, its version, and whose it is."""
        tables = await self._number("SELECT count(*) FROM sqlite_schema")
        return tables, await self._number("PRAGMA user_version"), await self._number("PRAGMA application_id")

    async def _number(self, statement: str) -> int:
        return int((await self._fetch(statement))[0][0])

    # --- writing ---------------------------------------------------------------------------------------------------
    async def write(self, changes: Changes, counters: Counters, new: Sequence[RecordRow] = (), shift: int = 0) -> None:
        """Write what the ledger decided and ``new`` records, then add ``shift`` to every sequence.

        When this is cancelled, the thread of SQLite goes on: only :meth:`read_ledger` knows then whether it happened.
        """
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
            if changes.policies is not None:
                await db.execute("DELETE FROM policies")
                await db.executemany("INSERT INTO policies VALUES (?, ?)", changes.policies)
            if new:
                await db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", new)
            first, following, *ended = astuple(counters)
            await db.execute(
                "UPDATE ledger SET first_sequence = ?, next_sequence = ?, delivered = ?, expired = ?, evicted = ?,"
                " refused = ?, introduced = ?",
                (first + shift, following + len(new) + shift, *ended),
            )
            if shift:
                await self._shift(shift)
            await db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                await db.rollback()
            raise

    async def write_sealed(self, sealed: bytes, last: int, first_pending: int) -> None:
        """Note a batch with records up to ``last``, and forget those of which no record waits any more."""
        try:
            await self._db.execute("BEGIN IMMEDIATE")
            await self._db.execute("DELETE FROM sealed WHERE last < ?", (first_pending,))
            await self._db.execute("INSERT OR REPLACE INTO sealed VALUES (?, ?)", (sealed, last))
            await self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                await self._db.rollback()
            raise

    async def write_expiries(self, entries: Sequence[LedgerEntry]) -> None:
        """Write again when these records expire. Doing it twice does no harm."""
        try:
            await self._db.execute("BEGIN IMMEDIATE")
            await self._db.executemany(
                "UPDATE records SET expires_utc_ns = ? WHERE sequence = ?",
                [(entry.expires_utc_ns, entry.sequence) for entry in entries],
            )
            await self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                await self._db.rollback()
            raise

    async def _shift(self, shift: int) -> None:
        """Add ``shift`` by way of negative numbers, because sequences must be unique at every moment."""
        await self._db.execute("UPDATE records SET sequence = -(sequence + ?)", (shift,))
        await self._db.execute("UPDATE records SET sequence = -sequence")
        await self._db.execute("UPDATE fates SET first = -(first + ?), last = last + ?", (shift, shift))
        await self._db.execute("UPDATE fates SET first = -first")
        await self._db.execute("UPDATE policies SET first = -(first + ?)", (shift,))
        await self._db.execute("UPDATE policies SET first = -first")

    # --- errors ----------------------------------------------------------------------------------------------------
    def storage_error(self, error: Exception, happened: str) -> StorageError:
        """What to tell a person: what happened to the outbox, why, and the way out. It is an :class:`OutboxDamaged`
        when the file is damaged."""
        if isinstance(error, StorageError):
            return error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            way_out = f"another process uses it: {_OWN_FOLDER}"
        elif isinstance(error, OSError) or code in _FULL:
            way_out = "free space on that disk and check that the folder is writable"
        elif code not in _DAMAGED:
            way_out = "it is tried again"
        else:
            return OutboxDamaged(
                f"the outbox {self.path} {happened}: {error}; the file is damaged: move it away; the node goes on with "
                "a new one, and the audit at the relay will name the records that were in it",
                str(error),
            )
        return StorageError(f"the outbox {self.path} {happened}: {error}; {way_out}")
