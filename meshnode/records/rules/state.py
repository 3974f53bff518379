"""Keeps the open windows of rules over restarts.

An SQLite file in the state folder has a row for each open window and partition, and is brought up to date every second
in which something changed (write-ahead log, ``synchronous=NORMAL``: a loss of power may cost the last moments, which
are counted). Only rows that changed are written.

A small file beside it holds the number of readings in open windows at every moment, in memory that the kernel writes
back: it survives SIGKILL. So a node that was killed knows how many readings are in none of the windows that it finds
saved, and counts them as lost. After a loss of power it may know fewer.

A file that is damaged, or that another version wrote, is replaced by a new one; what was in it is lost and told.
"""

import logging
import mmap
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from meshnode.identity.private_files import create_private, narrow_database
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.records.windows.rule import WindowRule
from protocols.records.windows.saving import SavedState, WindowTally

_log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
"""How often windows are saved."""
_SLICE: Final = 256
"""How many rows are turned into bytes under the recorder's lock at once: about 2 ms."""
_APPLICATION_ID: Final = 0x6D6E7275
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE windows (rule TEXT NOT NULL, row TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (rule, row)) WITHOUT ROWID;
CREATE TABLE rules (rule TEXT PRIMARY KEY, meaning BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), utc_ns INTEGER NOT NULL, clean INTEGER NOT NULL);
"""
_COUNT: Final = struct.Struct("<Q")


class WindowState:
    """The saved windows of some rules. Its methods block: call them off the event loop."""

    def __init__(self, folder: Path, rules: Sequence[WindowRule], lock: AbstractContextManager[object]) -> None:
        """``lock`` is held while rules are looked at, and while they take readings."""
        self._path, self._rules, self._lock = folder / "rules.sqlite", tuple(rules), lock
        self._count_path = folder / "rules.held"
        self._db: sqlite3.Connection | None = None
        self._counted: mmap.mmap | None = None
        self._writing = threading.Lock()
        self._unsaved: dict[tuple[str, str], bytes | None] = {}
        """Rows that are not in the file yet."""
        self._tally, self._stored = WindowTally(), 0
        for rule in self._rules:
            rule.share(self._tally)
        self.lost = 0
        """Readings in windows that were not saved before the node was killed."""
        self.trouble = ""
        """Why windows can't be saved; empty: they can."""

    # --- opened ------------------------------------------------------------------------------------------------------
    def open(self, now: MonotonicNs, utc_now: UtcNs) -> None:
        """Give the rules the windows of the life before. A file that can't be used is replaced, or is a trouble."""
        try:
            self._open(now, utc_now)
        except (sqlite3.Error, OSError, LocalProtocolError, msgspec.MsgspecError) as error:
            self._close()
            if isinstance(error, sqlite3.OperationalError | OSError):
                self.trouble = f"windows of rules can't be saved in {self._path} ({error}): free the disk or the file"
                _log.warning("%s", self.trouble)
                return
            _log.warning("the windows of rules in %s can't be read (%s): they are lost", self._path, error)
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            try:
                self._open(now, utc_now)
            except (sqlite3.Error, OSError) as again:
                self._close()
                self.trouble = f"windows of rules can't be saved in {self._path} ({again}): free the disk or the file"

    def _open(self, now: MonotonicNs, utc_now: UtcNs) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_private(self._path)
        db = self._db = sqlite3.connect(self._path, isolation_level=None, timeout=2.0, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
            db.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT;")
        found = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
        if found != (_APPLICATION_ID, _VERSION):
            raise LocalProtocolError(f"it is another program's or another version's ({found[0]:#x}, {found[1]})")
        narrow_database(self._path)
        self._counted = self._open_count()
        self._restore(db, now, utc_now)
        self.save(utc_now)

    def _open_count(self) -> mmap.mmap:
        create_private(self._count_path)
        with self._count_path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < _COUNT.size:
                file.truncate(_COUNT.size)
            return mmap.mmap(file.fileno(), _COUNT.size)

    def _restore(self, db: sqlite3.Connection, now: MonotonicNs, utc_now: UtcNs) -> None:
        row = db.execute("SELECT utc_ns, clean FROM state").fetchone()
        state = SavedState(utc_now, True) if row is None else SavedState(row[0], bool(row[1]))
        meanings = dict(db.execute("SELECT rule, meaning FROM rules").fetchall())
        known = {rule.name: _meaning(rule) for rule in self._rules}
        for rule in self._rules:
            if meanings.get(rule.name) == known[rule.name]:  # otherwise its windows are of another kind now
                with closing(db.execute("SELECT data FROM windows WHERE rule = ?", (rule.name,))) as rows:
                    rule.restore((data for (data,) in rows), state, now, utc_now)
        db.execute("BEGIN IMMEDIATE")
        for name, meaning in meanings.items():
            if known.get(name) != meaning:
                db.execute("DELETE FROM windows WHERE rule = ?", (name,))
        db.execute("DELETE FROM rules")
        db.executemany("INSERT INTO rules VALUES (?, ?)", known.items())
        db.execute("COMMIT")
        assert self._counted is not None, "it was opened"
        if not state.clean:
            self.lost = max(0, _COUNT.unpack_from(self._counted)[0] - self._tally.held)
        self._write_count(self._tally.held)

    # --- saved -------------------------------------------------------------------------------------------------------
    def count(self) -> None:
        """Note how many readings are in open windows, or in derived ones that may not be stored. Under the lock."""
        self._write_count(self._tally.held + self._tally.gone - self._stored)

    def stored(self) -> None:
        """What was derived so far is in the outbox. Under the lock."""
        self._stored = self._tally.gone
        self.count()

    @property
    def has_changed(self) -> bool:
        """Whether there is something to save."""
        return bool(self._unsaved) or any(rule.has_changed for rule in self._rules)

    def save(self, utc_now: UtcNs, clean: bool = False) -> None:
        """Write what has changed. A disk that fails is a trouble, and the next call tries again."""
        with self._writing:
            if self._db is not None:
                self._save(self._db, utc_now, clean)

    def _save(self, db: sqlite3.Connection, utc_now: UtcNs, clean: bool) -> None:
        for rule in self._rules:
            for name, data in self._changed(rule):
                self._unsaved[rule.name, name] = data
        try:
            db.execute("BEGIN IMMEDIATE")
            for (rule_name, name), data in self._unsaved.items():
                if data is None:
                    db.execute("DELETE FROM windows WHERE rule = ? AND row = ?", (rule_name, name))
                else:
                    db.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", (rule_name, name, data))
            db.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?)", (utc_now, clean))
            db.execute("COMMIT")
            self._unsaved.clear()
            self.trouble = ""
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if not self.trouble:
                _log.warning("windows of rules were not saved: %s", error)
            self.trouble = f"windows of rules can't be saved in {self._path} ({error}): free the disk"

    def _changed(self, rule: WindowRule) -> Iterator[tuple[str, bytes | None]]:
        while True:
            with self._lock:
                rows = rule.changed(_SLICE)
            yield from rows
            if len(rows) < _SLICE:
                return

    def close(self, utc_now: UtcNs) -> None:
        """Save everything for the last time."""
        self.save(utc_now, clean=True)
        with self._writing:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        with self._lock:
            counted, self._counted = self._counted, None
        if counted is not None:
            counted.close()

    def _write_count(self, taken: int) -> None:
        if self._counted is not None and not self._counted.closed:
            _COUNT.pack_into(self._counted, 0, taken)


def _meaning(rule: WindowRule) -> bytes:
    """What makes saved windows of a rule useless when it changes."""
    return blake2b(repr((rule.window, rule.functions.names)).encode(), digest_size=16).digest()
