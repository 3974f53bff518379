"""The history on disk: a folder of segments, the newest of which is appended to and the oldest of which goes first.

Segments rather than one database with incremental vacuum: deleting rows rewrites the pages of each index that they are
in, which costs a flash memory as much as writing them did, and leaves the size of the file to chance. Removing a file
costs nothing and gives back all of its bytes (decision 36).

Invariants:
- after each call of :meth:`append` and :meth:`tidy` all files of the folder have at most ``max_bytes`` together, as
  measured, unless what is not ours takes more;
- no reading is older than ``keep_ns``;
- one process at a time writes a folder; it holds a lock on ``lock``.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from meshnode.history.contents import OTHERS, Selection
from meshnode.history.merging import Row, RowSource, merged
from meshnode.history.query import EncodedPage, HistoryQuery, cursor_of
from meshnode.history.segment import MAX_ROWS, HistorySegment, KeptReading, SegmentForeign, SegmentReader, copied
from meshnode.identity.private_files import create_private, make_private_folder
from protocols.base.errors import RemoteProtocolError, StorageError
from protocols.wire.parcels import decode_untrusted_reading

_log = logging.getLogger(__name__)
FOLDER: Final = "history"
"""The folder of the history inside the state folder of a node."""
_SHARES: Final = 16
"""A segment takes at most one of so many shares of the space, and of the time."""
_PARTS: Final = 4
"""A transaction takes at most one of so many parts of a segment."""
MAX_TRANSACTION_ROWS: Final = 4_096
MAX_DAMAGED: Final = 2
"""Damaged segments on disk, for a person to look into."""
PATIENCE_S: Final = 0.05
"""How long rows are looked at for one page."""
_LOOKS: Final = 64
"""Rows between two looks at the clock."""
_MAX_PAGE_BYTES: Final = 4 * 1024 * 1024


class HistoryStore:
    """One folder. All methods belong to one thread, except :meth:`find`, which may be called from any."""

    def __init__(self, folder: Path, max_bytes: int, keep_ns: int) -> None:
        self.folder, self._max_bytes, self._keep_ns = folder, max_bytes, keep_ns
        self._segment_bytes = max_bytes // _SHARES
        self.max_reading_bytes = self._segment_bytes // _PARTS
        """Readings above this are not kept."""
        self._lock = threading.Lock()
        self._segments: tuple[HistorySegment, ...] = ()
        """Oldest first; the last one may be appended to. Replaced as a whole, under the lock."""
        self._last_number = 0
        self._last_name = 0
        self._lock_file: int | None = None
        self.size_bytes = 0
        """What the files took when they were last measured."""
        self.damaged: list[tuple[Path, str]] = []
        """Segments that were found damaged in this life: where they are now, and what was found."""
        self.foreign: list[str] = []
        """What was left alone, and why."""

    @property
    def rows(self) -> int:
        """Readings in it."""
        return sum(segment.contents.rows for segment in self._segments)

    @property
    def last_number(self) -> int:
        """The number of the newest reading in it."""
        return self._last_number

    @property
    def is_open(self) -> bool:
        """Whether it can be appended to."""
        return self._lock_file is not None

    # --- opening -----------------------------------------------------------------------------------------------------
    def open(self, utc_now: int) -> None:
        """Take the folder, made if missing, with what is in it.

        :raises StorageError: another process uses it. :raises OSError, sqlite3.Error: the disk fails.
        """
        make_private_folder(self.folder)
        self._lock_file = locked(self.folder, fcntl.LOCK_EX)
        try:
            self._load()
            self.tidy(utc_now)
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        found: list[HistorySegment] = []
        self.foreign.clear()
        for path in sorted(self.folder.glob("*.sqlite")):
            with suppress(ValueError):
                self._last_name = max(self._last_name, int(path.stem))
            segment = HistorySegment(path)
            try:
                if not segment.load():
                    segment.remove()
                    continue
                if not segment.is_sealed:
                    segment.open_for_writing()
            except SegmentForeign as error:
                self.foreign.append(str(error))
            except sqlite3.DatabaseError as error:
                segment.close()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_aside(segment, str(error))
            else:
                found.append(segment)
        self._last_number = max((segment.last_number for segment in found), default=0)
        self._segments = tuple(found)
        self._finish_sealing()

    def open_for_reading(self, scratch: Path) -> None:
        """Look at the folder of a node that does not run, and change nothing. ``scratch``: a folder for copies.

        :raises StorageError: a node uses it, or there is none. :raises OSError, sqlite3.Error: the disk fails.
        """
        if not (self.folder / "lock").exists():
            raise StorageError(f"there is no history in {self.folder}: name the state_dir of a node with [history]")
        self._lock_file = locked(self.folder, fcntl.LOCK_SH)
        found: list[HistorySegment] = []
        for path in sorted(self.folder.glob("*.sqlite")):
            segment = copied(HistorySegment(path), scratch)
            try:
                if segment.load():
                    found.append(segment)
            except SegmentForeign as error:
                self.foreign.append(str(error))
            except sqlite3.DatabaseError as error:
                self.foreign.append(f"{path} is damaged ({error}): start the node, which moves it aside")
        self._segments = tuple(found)

    def close(self) -> None:
        """Close what is open."""
        for segment in self._segments:
            segment.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # --- writing -----------------------------------------------------------------------------------------------------
    def append(self, readings: Sequence[KeptReading], utc_now: int) -> None:
        """Write readings in a few transactions, and have the oldest go. :raises OSError, sqlite3.Error: those of the
        transaction that failed, and those behind it, were not written."""
        group: list[KeptReading] = []
        size_bytes = 0
        for kept in readings:
            size_bytes += len(kept.encoded)
            if group and (size_bytes > self.max_reading_bytes or len(group) >= MAX_TRANSACTION_ROWS):
                self._append(group, utc_now)
                group, size_bytes = [], len(kept.encoded)
            group.append(kept)
        if group:
            self._append(group, utc_now)

    def _append(self, group: Sequence[KeptReading], utc_now: int) -> None:
        segment = self._writable(len(group), utc_now)
        try:
            segment.append(group, self._last_number + 1)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # a new one is begun for the next
            with self._lock:
                self._segments = self._segments[:-1]
            segment.close()
            self._move_aside(segment, str(error))
            raise
        self._last_number += len(group)
        self._keep_bounds()

    def _writable(self, rows: int, utc_now: int) -> HistorySegment:
        """The segment that is appended to, a new one if the last is full."""
        last = self._segments[-1] if self._segments else None
        if last is not None and not last.is_sealed:
            is_full = last.contents.rows + rows > MAX_ROWS or last.size_bytes() > self._segment_bytes // 2
            if not (is_full or last.is_complete or self._is_over(last, utc_now)):
                return last
            last.seal()
            self._keep_bounds()
        self._finish_sealing()
        self._last_name += 1
        segment = HistorySegment(self.folder / f"{self._last_name:08}.sqlite", utc_now)
        try:
            segment.create()
        except BaseException:
            with suppress(OSError):
                segment.remove()
            raise
        with self._lock:
            self._segments = (*self._segments, segment)
        return segment

    def _finish_sealing(self) -> None:
        """Seal those whose log was being read when they were to be sealed."""
        for segment in self._segments[:-1]:
            if not segment.is_sealed:
                segment.seal()

    def _is_over(self, segment: HistorySegment, utc_now: int) -> bool:
        return utc_now - segment.begun_utc_ns >= self._keep_ns // _SHARES

    def clock_was_set(self, step_ns: int) -> None:
        """The clock was set forward by so much, or back if negative: what is there is as old as it was.

        :raises OSError, sqlite3.Error: the disk fails.
        """
        for segment in self._segments:
            segment.clock_was_set(step_ns)

    def tidy(self, utc_now: int) -> None:
        """Have go what is too old. :raises OSError, sqlite3.Error: the disk fails."""
        for segment in self._segments:
            segment.begun_utc_ns = min(segment.begun_utc_ns, utc_now)  # a clock that was set back must not keep it
        if self._segments and not self._segments[-1].is_sealed and self._is_over(self._segments[-1], utc_now):
            self._segments[-1].seal()
        while self._segments and self._segments[0].begun_utc_ns < utc_now - self._keep_ns:
            self._remove_oldest()
        self._keep_bounds()

    def _keep_bounds(self) -> None:
        """Measure, and have the oldest go while there would be no room for a further transaction and for sealing."""
        while self._measure() > self._max_bytes - self._segment_bytes and len(self._segments) > 1:
            self._remove_oldest()

    def _measure(self) -> int:
        size_bytes = sum(segment.size_bytes() for segment in self._segments)
        for path in self._damaged_files():
            with suppress(OSError):
                size_bytes += path.stat().st_size
        self.size_bytes = size_bytes
        return size_bytes

    def _remove_oldest(self) -> None:
        with self._lock:
            oldest, self._segments = self._segments[0], self._segments[1:]
        oldest.remove()

    # --- damage ------------------------------------------------------------------------------------------------------
    def _damaged_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.sqlite.damaged-*"))

    def _move_aside(self, segment: HistorySegment, what: str) -> None:
        """Move a damaged file out of the way."""
        path = segment.path
        target = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        _log.error("the segment %s of the history is damaged (%s)", path, what)
        try:
            kept = self._damaged_files()
            for old in kept[: max(0, len(kept) + 1 - MAX_DAMAGED)]:
                old.unlink()
            path.rename(target)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            _log.error("it can't be moved: %s", error)
            target = path
        self.damaged.append((target, what))

    def found_damaged(self, segment: HistorySegment, what: str) -> None:
        """Go on without a segment. Called by whoever reads."""
        with self._lock:
            if segment not in self._segments or not segment.is_sealed:
                return  # it has gone meanwhile, or is being written: whoever writes will find out
            self._segments = tuple(other for other in self._segments if other is not segment)
        self._move_aside(segment, what)

    # --- questions ---------------------------------------------------------------------------------------------------
    def find(
        self, query: HistoryQuery, permits: Callable[[str], bool] | None = None, patience_s: float = PATIENCE_S
    ) -> EncodedPage:
        """A page. ``permits``: whether who asks may have readings on a key; None: all of them.

        :raises StorageError: the disk fails.
        """
        ends_s = time.monotonic() + patience_s
        selection = Selection(query, permits)
        try:
            with ExitStack() as closing:
                return self._find(selection, closing, ends_s)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"the history in {self.folder} can't be read: {error}; look at that disk") from error

    def _find(self, selection: Selection, closing: ExitStack, ends_s: float) -> EncodedPage:
        query = selection.query
        newest_first, box = query.newest_first, query.box
        low, high = selection.bounds
        looks: dict[int, _Look] = {}
        sources = []
        for index, segment in enumerate(self._segments):
            contents = segment.contents
            if contents.rows and contents.last_ns >= low[0] and contents.first_ns <= high[0]:
                looks[index] = look = _Look(self, segment, selection, closing)
                bound_ns = contents.last_ns if newest_first else contents.first_ns
                if not segment.is_sealed:
                    bound_ns = high[0] if newest_first else low[0]  # it may grow meanwhile
                sources.append(RowSource(bound_ns, look.rows, look))
        found: list[bytes] = []
        size_bytes = 0
        for looked, (row, look) in enumerate(merged(sources, newest_first), 1):
            if (box is None or box.contains(row[3], row[4])) and look.wants(row[2]):
                body = look.body(row[1])
                if body is not None and (row[2] != OTHERS or _answers(selection, body)):
                    found.append(body)
                    size_bytes += len(body)
            is_full = len(found) >= query.limit or size_bytes >= _MAX_PAGE_BYTES
            if is_full or (looked % _LOOKS == 0 and time.monotonic() >= ends_s):
                return EncodedPage(found, cursor_of((row[0], row[1])))
        return EncodedPage(found, None)


class _Look:
    """One segment, as one question looks at it. A segment that has gone has no rows; one that is damaged has those
    before the damage."""

    def __init__(self, store: HistoryStore, segment: HistorySegment, selection: Selection, closing: ExitStack) -> None:
        self._store, self._segment, self._selection, self._closing = store, segment, selection, closing
        self._reader: SegmentReader | None = None
        self._wanted: dict[int, bool] = {}

    def rows(self) -> Iterator[Row]:
        """Opens it."""
        try:
            matching = self._segment.contents.matching(self._selection)
            if not matching or not self._segment.path.exists():
                return
            self._reader = reader = self._segment.reader()
            self._closing.callback(reader.close)
            yield from reader.rows(self._selection, matching)
        except sqlite3.Error as error:
            self._failed(error)

    def wants(self, stream: int) -> bool:
        """Whether readings of a stream may answer the question."""
        wanted = self._wanted.get(stream)
        if wanted is None:
            summary = self._segment.contents.streams[stream]
            wanted = self._wanted[stream] = stream == OTHERS or self._selection.wants(summary.key, summary.origin)
        return wanted

    def body(self, number: int) -> bytes | None:
        """A reading; None: it is damaged."""
        assert self._reader is not None, "it gave the row"
        try:
            return self._reader.body(number)
        except sqlite3.Error as error:
            self._failed(error)
            return None

    def _failed(self, error: sqlite3.Error) -> None:
        if not isinstance(error, sqlite3.OperationalError) and self._segment.is_sealed:
            self._store.found_damaged(self._segment, str(error))
        elif self._segment.path.exists():
            raise error


def _answers(selection: Selection, body: bytes) -> bool:
    """Whether a reading whose stream has no summary answers a question."""
    try:
        reading = decode_untrusted_reading(body)
    except RemoteProtocolError:
        return False
    return selection.wants(reading.key, reading.origin)


def locked(folder: Path, how: int) -> int:
    """Lock a folder; returns the descriptor that holds the lock. :raises StorageError: another process holds it.

    :raises OSError: the folder can't be used.
    """
    path = folder / "lock"
    if how == fcntl.LOCK_EX:
        create_private(path)
    descriptor = os.open(path, (os.O_RDWR if how == fcntl.LOCK_EX else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StorageError(
            f"the history {folder} is in use by another process: ask that node, or give each node its own state_dir"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
