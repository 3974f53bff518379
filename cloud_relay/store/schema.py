"""The tables of the relay's store, and how the file is opened.

The table ``records`` holds each record once, by origin and sequence, with its whole context in columns and the
reading's own bytes in ``encoded``. ``fates`` holds disjoint ranges of records that will never come. ``origins`` holds
the next sequence of each node. ``receipts`` holds what nodes signed, ``receipted`` which record is at which place of
which receipt, ``certificates`` who signed, and ``wrong_receipts`` whose receipts were refused. ``streams`` says for
each key, node and rule how many records there are and when the newest was sensed. Kept aggregates are in tables of
their own, see :mod:`cloud_relay.store.aggregates.tables`. Older records leave ``records`` for packs, see
:mod:`cloud_relay.store.packs.tables`. Texts and blobs are stored as
authenticated nodes sent them, and nothing in them ever becomes part of a statement.

Three indexes serve queries: by key and node, by time, and by cell of a grid on the earth, each in the order in which
records are shown and with their places, so that a query looks at a row of the table only when it may be shown.
"""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloud_relay.store.aggregates.tables import TABLES as AGGREGATES
from cloud_relay.store.packs.tables import PACKS
from meshnode.identity.private_files import create_private, narrow_database
from protocols.base.errors import StorageError

APPLICATION_ID = 0x6D6E7273
INDEXED_VERSION: Final = 3
"""From this one on a store has what :mod:`cloud_relay.query.sources` needs to be fast."""
AGGREGATES_VERSION: Final = 4
"""From this one on a store has the tables of kept aggregates."""
CELLS_PER_DEGREE: Final = 100
CELLS_AROUND: Final = 360 * CELLS_PER_DEGREE + 1
"""Cells in a circle of latitude; the last one is for 180° itself."""
CELL: Final = (
    f"(CAST((latitude_deg + 90.0) * {CELLS_PER_DEGREE} AS INTEGER) * {CELLS_AROUND}"
    f" + CAST((longitude_deg + 180.0) * {CELLS_PER_DEGREE} AS INTEGER))"
)
"""The number of the cell that a record is in: 1.1 km from south to north and at most as much from west to east. SQLite
uses the index only for exactly this text."""

SCHEMA = """
CREATE TABLE records (
    origin TEXT NOT NULL, sequence INTEGER NOT NULL, rule TEXT NOT NULL,
    key TEXT NOT NULL, sensing_origin TEXT NOT NULL, reading_sequence INTEGER NOT NULL, value TEXT NOT NULL,
    latitude_deg REAL NOT NULL, longitude_deg REAL NOT NULL, accuracy_m REAL NOT NULL,
    altitude_m REAL, heading_deg REAL,
    event_utc_ns INTEGER NOT NULL, uncertainty_ns INTEGER NOT NULL,
    sensor TEXT NOT NULL, unit TEXT NOT NULL, quality REAL NOT NULL, calibration TEXT NOT NULL, lineage TEXT NOT NULL,
    priority INTEGER NOT NULL, lifespan_ms INTEGER NOT NULL, received_utc_ns INTEGER NOT NULL, encoded BLOB NOT NULL,
    number INTEGER PRIMARY KEY, UNIQUE (origin, sequence));
CREATE TABLE fates (
    origin TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (origin, first)) WITHOUT ROWID;
CREATE TABLE conflicts (
    origin TEXT NOT NULL, sequence INTEGER NOT NULL, times INTEGER NOT NULL, last_utc_ns INTEGER NOT NULL,
    PRIMARY KEY (origin, sequence)) WITHOUT ROWID;
CREATE TABLE origins (
    origin TEXT NOT NULL PRIMARY KEY, next_sequence INTEGER NOT NULL, incarnation INTEGER NOT NULL,
    last_utc_ns INTEGER NOT NULL) WITHOUT ROWID
"""

RECEIPTS = """
CREATE TABLE receipts (
    number INTEGER PRIMARY KEY, origin TEXT NOT NULL, receipt BLOB NOT NULL, leaves BLOB NOT NULL,
    received_utc_ns INTEGER NOT NULL);
CREATE TABLE receipted (
    origin TEXT NOT NULL, sequence INTEGER NOT NULL, receipt INTEGER NOT NULL, place INTEGER NOT NULL,
    PRIMARY KEY (origin, sequence)) WITHOUT ROWID;
CREATE TABLE certificates (
    origin TEXT NOT NULL, id BLOB NOT NULL, certificate BLOB NOT NULL, PRIMARY KEY (origin, id)) WITHOUT ROWID;
CREATE TABLE wrong_receipts (
    origin TEXT NOT NULL PRIMARY KEY, times INTEGER NOT NULL, last_utc_ns INTEGER NOT NULL, why TEXT NOT NULL)
    WITHOUT ROWID
"""
"""What version 1 did not have."""

SEARCHING = f"""
CREATE TABLE streams (
    key TEXT NOT NULL, origin TEXT NOT NULL, rule TEXT NOT NULL, records INTEGER NOT NULL,
    newest_utc_ns INTEGER NOT NULL, PRIMARY KEY (key, origin, rule)) WITHOUT ROWID;
CREATE INDEX streams_by_origin ON streams (origin);
CREATE INDEX records_in_streams ON records
    (key, origin, event_utc_ns, sequence, latitude_deg, longitude_deg);
CREATE INDEX records_in_time ON records (event_utc_ns, origin, sequence, latitude_deg, longitude_deg);
CREATE INDEX records_in_cells ON records
    ({CELL}, event_utc_ns, origin, sequence, latitude_deg, longitude_deg)
"""
"""What version 2 did not have."""
_REPLACED = """
DROP INDEX IF EXISTS records_by_key;
DROP INDEX IF EXISTS records_by_time;
DROP INDEX IF EXISTS records_by_place
"""
_KNOWN_STREAMS = """
INSERT INTO streams SELECT key, origin, rule, count(*), max(event_utc_ns) FROM records GROUP BY key, origin, rule
"""
_log = logging.getLogger(__name__)


def _add_receipts(db: sqlite3.Connection) -> None:
    _make(db, RECEIPTS)


def _add_searching(db: sqlite3.Connection) -> None:
    _make(db, _REPLACED, SEARCHING, _KNOWN_STREAMS)


def _number_rows(db: sqlite3.Connection) -> None:
    """Let the number of a row be a column. Numbers without one may change whenever somebody calls ``VACUUM``, and the
    streams of records go on by them. What is on disk is the same in both forms, so only the text of the schema is
    changed, as the documentation of ``PRAGMA writable_schema`` allows: a copy would need as much space again."""
    (text,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'records'").fetchone()
    before, after = "PRIMARY KEY (origin, sequence)", "number INTEGER PRIMARY KEY, UNIQUE (origin, sequence)"
    if before not in text:
        return
    (counter,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute("PRAGMA writable_schema = ON")
    try:
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'records'", (text.replace(before, after),))
        db.execute(f"PRAGMA schema_version = {counter + 1}")
    finally:
        db.execute("PRAGMA writable_schema = RESET")


def _add_aggregates(db: sqlite3.Connection) -> None:
    _make(db, AGGREGATES)


def _add_packs(db: sqlite3.Connection) -> None:
    _make(db, PACKS)


STEPS: Final[tuple[tuple[int, Callable[[sqlite3.Connection], None]], ...]] = (
    (2, _add_receipts),
    (3, _add_searching),
    (4, _number_rows),
    (4, _add_aggregates),
    (4, _add_packs),
)
"""What a store of an earlier version lacks: each step with the version that it leads to, in order. Several steps may
lead to one version. A new store takes all of them. A step is part of the transaction that opens the store."""
VERSION: Final = STEPS[-1][0]
SHOWN_EMPTY: Final[tuple[tuple[int, str], ...]] = ((2, RECEIPTS), (4, PACKS))
"""Tables that an earlier store is read with as if they were empty, with the version that has them."""

_FULL = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN))


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The store in ``path``, created if missing. One thread at a time may use it. Only its owner may read the file.

    A commit is on disk when it returns (write-ahead log, ``synchronous=FULL``). Readers don't disturb it.

    :raises StorageError: when it can't be used; says why and the way out.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_private(path)
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise storage_error(path, error) from error
    try:
        if not path.stat().st_size:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that what is deleted can be given back to the disk
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("BEGIN IMMEDIATE")
        if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            _make(db, SCHEMA)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _take_steps(db, 1)
        elif (version := _checked_version(db, path)) < VERSION:
            _tell_of_indexing(db, path, version)
            _take_steps(db, version)
        db.execute("COMMIT")
        _touch(db)
        narrow_database(path)
    except sqlite3.Error as error:
        db.close()
        raise storage_error(path, error) from error
    except StorageError:
        db.close()
        raise
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A store for reading, which a relay may be writing. One of version 1 looks as if it had no receipts. Questions to
    one without :data:`SEARCHING` are answered slowly.

    :raises StorageError: when it is missing or can't be read.
    """
    if not path.is_file():
        raise StorageError(f"the store {path} does not exist: start the relay once, or name the right file")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    except sqlite3.Error as error:
        raise storage_error(path, error) from error
    try:
        version = _checked_version(db, path)
        for since, tables in SHOWN_EMPTY:
            if version < since:
                _make(db, _temporary(tables))
    except sqlite3.Error as error:
        db.close()
        raise storage_error(path, error) from error
    except StorageError:
        db.close()
        raise
    return db


def storage_error(path: Path, error: Exception) -> StorageError:
    """An error that says what SQLite said, and the way out."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        way_out = "another process is writing to it: run one relay on a store"
    elif isinstance(error, OSError) or code in _FULL:
        way_out = "free space on that disk and check that the folder is writable"
    else:
        way_out = "the file is damaged or not a store: restore a copy, or name another file"
    return StorageError(f"the store {path} can't be used: {error}; {way_out}")


def store_version(db: sqlite3.Connection) -> int:
    """The version of an open store."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _tell_of_indexing(db: sqlite3.Connection, path: Path, version: int) -> None:
    if version >= INDEXED_VERSION:
        return
    many = db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()[0]
    _log.warning(
        "the store %s is of version %d: its %d records are indexed anew, about ten seconds for each million; nodes "
        "wait meanwhile, and keep their records", path, version, many,
    )  # fmt: skip


def _take_steps(db: sqlite3.Connection, version: int) -> None:
    """Lead a store of a version to the newest one, in the transaction that is open."""
    for leads_to, step in STEPS:
        if leads_to > version:
            step(db)
    db.execute(f"PRAGMA user_version = {VERSION}")


def _touch(db: sqlite3.Connection) -> None:
    """Read a row of each table, so that a store whose pages are not what was written does not start. Reading
    all of it could take hours; damage elsewhere is found when what is there is needed, and refuses the batch.

    :raises sqlite3.Error: it is damaged.
    """
    for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        db.execute(f'SELECT * FROM "{table}" LIMIT 1').fetchone()  # noqa: S608 - its own tables


def _make(db: sqlite3.Connection, *schemas: str) -> None:
    for schema in schemas:
        for statement in schema.split(";"):
            db.execute(statement)


def _temporary(tables: str) -> str:
    return tables.replace("CREATE TABLE", "CREATE TEMP TABLE").replace(
        "CREATE INDEX IF NOT EXISTS ", "CREATE INDEX IF NOT EXISTS temp."
    )


def _checked_version(db: sqlite3.Connection, path: Path) -> int:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StorageError(f"{path} is not a relay's store: name another file")
    version = store_version(db)
    if not 1 <= version <= VERSION:
        raise StorageError(
            f"the store {path} has version {version}, this program knows {VERSION}: start the newer program"
        )
    return version
