"""A segment of the history: one SQLite file, which is appended to, then sealed, and at last removed as a whole.

While it is appended to, it has no index, so that each group of readings is written to the end of two tables and nowhere
else. Sealing builds both indexes at once, in order, and the summaries of its streams. From then on the file never
changes. So a flash memory is written few times for each reading, and removing the oldest readings writes nothing.

A write-ahead log makes each group whole or not there (``synchronous=NORMAL``: a loss of power may cost the groups since
the last checkpoint, SIGKILL none). A sealed file has no log and is opened as immutable, so reading it makes no files
beside it.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from shutil import copyfile
from typing import Final, NamedTuple

from meshnode.history.contents import Placed, SegmentContents, Selection, StreamSummary
from meshnode.history.merging import Row, RowSource, merged
from meshnode.history.query import MAX_LIMIT, Place
from meshnode.identity.private_files import create_private, narrow_database
from protocols.base.errors import StorageError

MAX_ROWS: Final = 65_536
"""Of one segment. A question looks at each row of the one that has no index yet, which takes 10 ms."""
_APPLICATION_ID: Final = 0x6D6E6869
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE segment (one INTEGER PRIMARY KEY CHECK (one = 1), begun_utc_ns INTEGER NOT NULL, sealed INTEGER NOT NULL);
CREATE TABLE streams (stream INTEGER PRIMARY KEY, key TEXT NOT NULL, origin TEXT NOT NULL);
CREATE TABLE summaries (stream INTEGER PRIMARY KEY, rows INTEGER NOT NULL, first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL, south_deg REAL NOT NULL, west_deg REAL NOT NULL, north_deg REAL NOT NULL,
    east_deg REAL NOT NULL);
CREATE TABLE heads (number INTEGER PRIMARY KEY, stream INTEGER NOT NULL, utc_ns INTEGER NOT NULL,
    latitude_deg REAL NOT NULL, longitude_deg REAL NOT NULL);
CREATE TABLE bodies (number INTEGER PRIMARY KEY, reading BLOB NOT NULL);
"""
_INDEXES: Final = (
    "CREATE INDEX by_stream ON heads (stream, utc_ns, number, latitude_deg, longitude_deg)",
    "CREATE INDEX by_time ON heads (utc_ns, number, stream, latitude_deg, longitude_deg)",
)
_SUMMARISED: Final = (
    "SELECT stream, count(*), min(utc_ns), max(utc_ns), min(latitude_deg), min(longitude_deg), max(latitude_deg),"
    " max(longitude_deg) FROM heads GROUP BY stream"
)
_COLUMNS: Final = "SELECT utc_ns, number, stream, latitude_deg, longitude_deg FROM heads"
_BETWEEN: Final = "utc_ns >= ? AND utc_ns <= ? AND (utc_ns, number) > (?, ?) AND (utc_ns, number) < (?, ?)"
_OPENING_ROWS: Final = 10
"""What it costs to open the rows of one stream, in rows of a scan."""


class SegmentForeign(StorageError):
    """The file is another program's, or a newer version's: it is left alone."""


class KeptReading(NamedTuple):
    """A reading on its way into a segment."""

    key: str
    origin: str
    placed: Placed
    encoded: bytes


class HistorySegment:
    """One file. :meth:`append` and :meth:`seal` belong to one thread; others may read through :meth:`reader`. Methods
    raise ``sqlite3.Error`` or ``OSError`` when the disk fails."""

    def __init__(self, path: Path, begun_utc_ns: int = 0) -> None:
        self.path = path
        self.begun_utc_ns = self.written_utc_ns = begun_utc_ns
        """When its first reading came, or earlier: as it counts, and as it is written. It counts as begun at the time
        of a clock that is behind that."""
        self.contents = SegmentContents()
        self.last_number = 0
        self.is_sealed = False
        self.is_complete = False
        """Whether it has its indexes and summaries, and gets no more readings. It may still have a log."""
        self._has_log = False
        """Whether it is read together with its write-ahead log."""
        self._db: sqlite3.Connection | None = None

    # --- opening -----------------------------------------------------------------------------------------------------
    def create(self) -> None:
        """Make the file, which is not there yet, and open it for writing."""
        create_private(self.path)
        db = self._connect()
        marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
        db.executescript(f"BEGIN; {_SCHEMA} {marks}")
        db.execute("INSERT INTO segment VALUES (1, ?, 0)", (self.begun_utc_ns,))
        db.execute("COMMIT")
        narrow_database(self.path)

    def load(self) -> bool:
        """Look what a file has that was written before. False: nothing, because it was never finished.

        :raises SegmentForeign: it is not a segment that this program knows; nothing was changed.
        :raises sqlite3.DatabaseError: it is damaged.
        """
        self._has_log = bool(_size_of(self.path.with_name(f"{self.path.name}-wal")))
        with closing(self._read_only()) as db:
            if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
                return False
            self._load(db)
        return True

    def _load(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
        if found != (_APPLICATION_ID, _VERSION):
            raise SegmentForeign(
                f"{self.path} is another program's or another version's database ({found[0]:#x}, {found[1]}): move it "
                "away"
            )
        row = db.execute("SELECT begun_utc_ns, sealed FROM segment").fetchone()
        if row is None:
            raise sqlite3.DatabaseError("the row of the segment is missing")
        self.begun_utc_ns = self.written_utc_ns = int(row[0])
        self.is_complete = bool(row[1])
        self.is_sealed = self.is_complete and not self._has_log  # otherwise sealing was not finished
        for stream, key, origin in db.execute("SELECT stream, key, origin FROM streams ORDER BY stream"):
            self.contents.name(key, origin, stream)
        for stream, rows, first_ns, last_ns, south, west, north, east in db.execute(
            "SELECT * FROM summaries" if row[1] else _SUMMARISED
        ):
            if stream not in self.contents.streams:
                raise sqlite3.DatabaseError(f"the stream {stream} is missing")
            self.contents.add(stream, (first_ns, south, west), rows)
            self.contents.add(stream, (last_ns, north, east), 0)
        self.last_number = int(db.execute("SELECT coalesce(max(number), 0) FROM heads").fetchone()[0])

    def open_for_writing(self) -> None:
        """Go on with a file that is not sealed. :raises sqlite3.DatabaseError: it is damaged."""
        db = self._connect()
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("the file is malformed")
        narrow_database(self.path)

    def _connect(self) -> sqlite3.Connection:
        self._has_log = True
        db = self._db = sqlite3.connect(self.path, isolation_level=None, timeout=2.0, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 250")
        db.execute("PRAGMA journal_size_limit = 1048576")
        db.execute("PRAGMA cache_size = -2048")
        db.execute("PRAGMA temp_store = MEMORY")
        return db

    # --- writing -----------------------------------------------------------------------------------------------------
    def append(self, readings: Sequence[KeptReading], first_number: int) -> None:
        """Write readings, all of them or none. They get numbers from ``first_number`` on."""
        db, contents = self._db, self.contents
        assert db is not None, "it is open for writing"
        named: list[int] = []
        heads: list[tuple[int, int, int, float, float]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for number, kept in enumerate(readings, first_number):
                stream = contents.stream_of(kept.key, kept.origin)
                if stream is None:
                    stream = contents.name(kept.key, kept.origin)
                    named.append(stream)
                    db.execute("INSERT INTO streams VALUES (?, ?, ?)", (stream, kept.key, kept.origin))
                heads.append((number, stream, *kept.placed))
            db.executemany("INSERT INTO heads VALUES (?, ?, ?, ?, ?)", heads)
            bodies = ((number, kept.encoded) for number, kept in enumerate(readings, first_number))
            db.executemany("INSERT INTO bodies VALUES (?, ?)", bodies)
            db.execute("COMMIT")
        except BaseException:
            contents.forget(named)
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            raise
        for _, stream, *placed in heads:
            contents.add(stream, (placed[0], placed[1], placed[2]))  # type: ignore[arg-type]
        self.last_number = first_number + len(readings) - 1

    def clock_was_set(self, step_ns: int) -> None:
        """Keep its age, or have that again which it had by a clock that was right."""
        if self.begun_utc_ns < self.written_utc_ns:  # the clock was behind: of a computer that keeps no time, say
            self.begun_utc_ns = min(self.written_utc_ns, self.begun_utc_ns + step_ns)
            return
        self.begun_utc_ns += step_ns
        self.written_utc_ns += step_ns
        if self._db is not None and not self.is_complete:
            self._db.execute("UPDATE segment SET begun_utc_ns = ?", (self.written_utc_ns,))

    def seal(self) -> bool:
        """Build the indexes, and close the file for good. False: somebody reads the log, so it has to be tried again,
        which does no harm."""
        db = self._db
        assert db is not None, "it is open for writing"
        self.is_complete = bool(db.execute("SELECT sealed FROM segment").fetchone()[0])
        if not self.is_complete:
            try:
                db.execute("BEGIN IMMEDIATE")
                for statement in _INDEXES:
                    db.execute(statement)
                db.executemany(
                    "INSERT INTO summaries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(s.stream, *s.values) for s in self.contents.streams.values() if s.rows],
                )
                db.execute("UPDATE segment SET sealed = 1")
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    with suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            self.is_complete = True
        if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            return False
        db.close()
        self._db = None
        self._has_log, self.is_sealed = False, True
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return True

    def close(self) -> None:
        """Close the file; it can be opened again and goes on."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def remove(self) -> None:
        """Remove the file. Who reads it reads on. :raises OSError: it can't be removed."""
        self.close()
        self.path.unlink(missing_ok=True)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """What it and its log take on the disk."""
        return sum(_size_of(self.path.with_name(self.path.name + suffix)) for suffix in ("", "-wal", "-shm"))

    # --- reading -----------------------------------------------------------------------------------------------------
    def reader(self) -> "SegmentReader":
        """A look at what was written so far. :raises sqlite3.Error: it can't be read."""
        is_sealed = self.is_sealed
        return SegmentReader(self._read_only(), self.contents, is_sealed)

    def _read_only(self) -> sqlite3.Connection:
        how = "mode=ro" if self._has_log else "mode=ro&immutable=1"
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?{how}", uri=True, timeout=0.2, check_same_thread=False)


class SegmentReader:
    """Reads one segment for one question."""

    def __init__(self, db: sqlite3.Connection, contents: SegmentContents, is_sealed: bool) -> None:
        self._db, self._contents, self._is_sealed = db, contents, is_sealed

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def rows(self, selection: Selection, matching: Sequence[StreamSummary]) -> Iterator[Row]:
        """Rows in the order of the question: time, number, stream, latitude and longitude. All of the ``matching``
        streams that answer it are among them; others may be, too."""
        streams = [summary.stream for summary in matching]
        if not self._is_sealed:
            return self._unsealed_rows(selection, streams)
        rows = sum(summary.rows for summary in matching)
        scanned = min(self._contents.rows, selection.query.limit * self._contents.rows // rows)
        is_cheap = selection.query.box is None and scanned <= _OPENING_ROWS * len(streams)
        if is_cheap or not selection.may_open(len(streams)):
            return self._scanned_rows(selection)
        newest_first = selection.query.newest_first
        sources = (
            RowSource(
                min(summary.last_ns, selection.bounds.high[0]) if newest_first
                else max(summary.first_ns, selection.bounds.low[0]),
                lambda stream=summary.stream: self._stream_rows(selection, stream), None,  # type: ignore[misc]
            )
            for summary in matching
        )  # fmt: skip
        return (row for row, _ in merged(sources, newest_first))

    def body(self, number: int) -> bytes:
        """The reading of a row."""
        row = self._db.execute("SELECT reading FROM bodies WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"the reading {number} is missing")
        return bytes(row[0])

    def _stream_rows(self, selection: Selection, stream: int) -> Iterator[Row]:
        statement = f"{_COLUMNS} INDEXED BY by_stream WHERE stream = ? AND {_BETWEEN} {_order(selection)}"
        return self._db.execute(statement, (stream, *_edges(selection)))

    def _scanned_rows(self, selection: Selection) -> Iterator[Row]:
        return self._db.execute(
            f"{_COLUMNS} INDEXED BY by_time WHERE {_BETWEEN} {_order(selection)}", _edges(selection)
        )

    def _unsealed_rows(self, selection: Selection, streams: list[int]) -> Iterator[Row]:
        """Rows of a segment without index, as many at a time as the question asks for.

        To sort all of them would take 30 ms. So the rows that came last (or first) are looked at before: the oldest (or
        newest) of as many as are wanted is a bound, beyond which no row can be among those that are wanted."""
        wanted, values = self._wanted(selection, streams)
        # Not fewer for a small question: rows of OTHERS may have to be looked at by the thousand.
        newest_first, most = selection.query.newest_first, max(selection.query.limit, MAX_LIMIT) + 1
        last: Place | None = None
        while True:
            edges = _edges(selection, last)
            came = "ORDER BY number DESC" if newest_first else "ORDER BY number"
            statement = f"{_COLUMNS} WHERE {_BETWEEN}{wanted} {came} LIMIT {most}"
            bounding = self._db.execute(statement, (*edges, *values)).fetchall()
            if len(bounding) == most:
                times = [row[0] for row in bounding]
                edges = (min(times), *edges[1:]) if newest_first else (edges[0], max(times), *edges[2:])
            statement = f"{_COLUMNS} WHERE {_BETWEEN}{wanted} {_order(selection)} LIMIT {most}"
            rows = self._db.execute(statement, (*edges, *values)).fetchall()
            yield from rows
            if len(rows) < most:
                return
            last = rows[-1][0], rows[-1][1]

    def _wanted(self, selection: Selection, streams: list[int]) -> tuple[str, tuple[float, ...]]:
        """The condition on streams and places, with its values."""
        wanted, values = "", ()
        if len(streams) + 1 < len(self._contents.streams):  # beyond OTHERS, which may be empty
            wanted = f" AND stream IN ({','.join(map(str, streams))})"
        box = selection.query.box
        if box is None:
            return wanted, values
        joint = "AND" if box.west_deg <= box.east_deg else "OR"
        wanted += f" AND latitude_deg BETWEEN ? AND ? AND (longitude_deg >= ? {joint} longitude_deg <= ?)"
        return wanted, (box.south_deg, box.north_deg, box.west_deg, box.east_deg)


def _order(selection: Selection) -> str:
    return "ORDER BY utc_ns DESC, number DESC" if selection.query.newest_first else "ORDER BY utc_ns, number"


def _edges(selection: Selection, after: Place | None = None) -> tuple[int, ...]:
    low, high = selection.bounds
    if after is not None:
        low, high = (low, after) if selection.query.newest_first else (after, high)
    return (max(low[0], 0), high[0], *low, *high)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def copied(segment: HistorySegment, folder: Path) -> HistorySegment:
    """The same segment, copied into ``folder`` if it has a log: SQLite makes files beside one that it reads together
    with its log, for the user who reads, and the node could not open them then."""
    log = segment.path.with_name(f"{segment.path.name}-wal")
    if not _size_of(log):
        return segment
    for file in (segment.path, log):
        copyfile(file, folder / file.name)
    return HistorySegment(folder / segment.path.name)
