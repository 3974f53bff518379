"""Keeps the open windows of rules over restarts.

An SQLite file in the state folder has a row for each open window and partition, and is brought up to date every second
in which something changed (write-ahead log, ``synchronous=NORMAL``). Only rows that changed are written.

A small file beside it holds two numbers at every moment, in memory that the kernel writes back, so that they survive
SIGKILL: how many readings are in open windows, and when the last window was over that was derived. So a node that was
killed gives up the windows that it had derived since they were saved, and knows how many readings are in none of the
windows that are left: these it counts as lost. After a loss of power the numbers may be some seconds old, and a window
may be derived again.

A file that is damaged, or that another version wrote, is replaced by a new one. Each row has a digest, because a
sketch out of damaged bytes would end the process: a damaged row is left out, and its readings are lost and counted.
"""

import logging
import mmap
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
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
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), clean INTEGER NOT NULL);
"""
_MARKS: Final = struct.Struct("<QQ")
"""How many readings are held, and when the last window was over that was derived."""
_DIGEST_BYTES: Final = 8


class WindowState:
    """The saved windows of some rules. Its methods block: call them off the event loop."""

    def __init__(self, folder: Path, rules: Sequence[WindowRule], lock: AbstractContextManager[object]) -> None:
        """``lock`` is held while rules are looked at, and while they take readings."""
        self._path, self._rules, self._lock = folder / "rules.sqlite", tuple(rules), lock
        self._count_path = folder / "rules.marks"
        self._db: sqlite3.Connection | None = None
        self._counted: mmap.mmap | None = None
        self._writing = threading.Lock()
        self._unsaved: dict[tuple[str, str], bytes | None] = {}
        """Rows that are not in the file yet, and those in it that are gone."""
        self._stored_rows: set[tuple[str, str]] = set()
        """Rows that are in the file."""
        self._tally, self._stored = WindowTally(), 0
        for rule in self._rules:
            rule.share(self._tally)
        self._exchanged: set[str] = set()
        """Names of rules that came or went since windows were saved last."""
        self._unwanted: set[str] = set()
        """Those whose windows of before have to be removed from the file."""
        self.lost = 0
        """Readings in windows that were not saved before the node was killed, or whose rules were taken away."""
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
        self.save()

    def _open_count(self) -> mmap.mmap:
        create_private(self._count_path)
        with self._count_path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < _MARKS.size:
                file.truncate(_MARKS.size)
            return mmap.mmap(file.fileno(), _MARKS.size)

    def _restore(self, db: sqlite3.Connection, now: MonotonicNs, utc_now: UtcNs) -> None:
        row = db.execute("SELECT clean FROM state").fetchone()
        assert self._counted is not None, "it was opened"
        held, derived_ns = _MARKS.unpack_from(self._counted)
        clean = row is None or bool(row[0])
        state = SavedState(0 if row is None else derived_ns, clean)
        meanings = dict(db.execute("SELECT rule, meaning FROM rules").fetchall())
        known = _meanings(self._rules)
        for rule in self._rules:
            if meanings.get(rule.name) == known[rule.name]:  # otherwise its windows are of another kind now
                with closing(db.execute("SELECT row, data FROM windows WHERE rule = ?", (rule.name,))) as rows:
                    self._restore_rows(rule, rows, state, now, utc_now)
            rule.track(True)
        db.execute("BEGIN IMMEDIATE")
        for name, meaning in meanings.items():
            if known.get(name) != meaning:
                db.execute("DELETE FROM windows WHERE rule = ?", (name,))
        db.execute("DELETE FROM rules")
        db.executemany("INSERT INTO rules VALUES (?, ?)", known.items())
        db.execute("COMMIT")
        self._tally.derived_ns = derived_ns
        self.lost = 0 if row is None else max(0, held - self._tally.held)
        self.count()

    def _restore_rows(
        self, rule: WindowRule, rows: Iterable[tuple[str, bytes]], state: SavedState, now: MonotonicNs, utc_now: UtcNs
    ) -> None:  # fmt: skip
        damaged = 0
        for name, data in rows:
            self._stored_rows.add((rule.name, name))
            is_whole = data[:_DIGEST_BYTES] == _digest(data[_DIGEST_BYTES:])
            try:
                if is_whole:
                    rule.restore([data[_DIGEST_BYTES:]], state, now, utc_now)
            except LocalProtocolError:  # another version wrote it
                is_whole = False
            if not is_whole:
                damaged += 1
                self._unsaved[rule.name, name] = None
        if damaged:
            _log.warning("%d windows of rule %r in %s are damaged: they are lost", damaged, rule.name, self._path)

    # --- saved -------------------------------------------------------------------------------------------------------
    def count(self) -> None:
        """Note how many readings are in open windows, or in derived ones that may not be stored, and when the last
        derived one was over. Under the lock, before what was derived goes on."""
        if self._counted is not None and not self._counted.closed:
            tally = self._tally
            _MARKS.pack_into(self._counted, 0, tally.held + tally.gone - self._stored, tally.derived_ns)

    def stored(self) -> None:
        """What was derived so far is in the outbox. Under the lock."""
        self._stored = self._tally.gone
        self.count()

    def exchange(self, rules: Sequence[WindowRule]) -> None:
        """Other rules are used from now on. Those that were used before and stay are the same objects. Under the lock,
        once it is open; the file follows with the next :meth:`save`."""
        before, self._rules = self._rules, tuple(rules)
        for rule in before:
            if rule not in rules:
                self._exchanged.add(rule.name)
                rule.track(False)
                self.lost += rule.give_up()
        for rule in rules:
            if rule not in before:
                self._exchanged.add(rule.name)
                rule.share(self._tally)
                rule.track(self._db is not None)
        self.count()

    @property
    def has_changed(self) -> bool:
        """Whether there is something to save."""
        return bool(self._unsaved or self._exchanged or self._unwanted) or any(rule.has_changed for rule in self._rules)

    def save(self, clean: bool = False) -> None:
        """Write what has changed. A disk that fails is a trouble, and the next call tries again."""
        with self._writing:
            if self._db is not None:
                self._save(self._db, clean)

    def _save(self, db: sqlite3.Connection, clean: bool) -> None:
        rules = self._forget_exchanged()
        for rule in rules:
            for name, data in self._changed(rule):
                place = rule.name, name
                if data is not None:
                    self._unsaved[place] = _digest(data) + data
                elif place in self._stored_rows:
                    self._unsaved[place] = None
                else:
                    self._unsaved.pop(place, None)
        try:
            db.execute("BEGIN IMMEDIATE")
            if self._unwanted:
                db.executemany("DELETE FROM windows WHERE rule = ?", [(name,) for name in self._unwanted])
                db.execute("DELETE FROM rules")
                db.executemany("INSERT INTO rules VALUES (?, ?)", _meanings(rules).items())
            for (rule_name, name), data in self._unsaved.items():
                if data is None:
                    db.execute("DELETE FROM windows WHERE rule = ? AND row = ?", (rule_name, name))
                else:
                    db.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", (rule_name, name, data))
            db.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (clean,))
            db.execute("COMMIT")
            for place, data in self._unsaved.items():
                (self._stored_rows.discard if data is None else self._stored_rows.add)(place)
            self._unsaved.clear()
            self._unwanted.clear()
            self.trouble = ""
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if not self.trouble:
                _log.warning("windows of rules were not saved: %s", error)
            self.trouble = f"windows of rules can't be saved in {self._path} ({error}): free the disk"

    def _forget_exchanged(self) -> Sequence[WindowRule]:
        """Have the windows removed that rules had which are gone. Returns the rules that are used now."""
        with self._lock:
            rules, exchanged, self._exchanged = self._rules, self._exchanged, set()
        if exchanged:
            self._unsaved = {place: data for place, data in self._unsaved.items() if place[0] not in exchanged}
            self._stored_rows = {place for place in self._stored_rows if place[0] not in exchanged}
            self._unwanted |= exchanged
        return rules

    def _changed(self, rule: WindowRule) -> Iterator[tuple[str, bytes | None]]:
        while True:
            with self._lock:
                rows = rule.changed(_SLICE)
            yield from rows
            if len(rows) < _SLICE:
                return

    def close(self) -> None:
        """Save everything for the last time."""
        self.save(clean=True)
        with self._writing:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        for rule in self._rules:
            with self._lock:
                rule.track(False)  # nobody would take what changes
        with self._lock:
            counted, self._counted = self._counted, None
        if counted is not None:
            counted.close()


def _meanings(rules: Iterable[WindowRule]) -> dict[str, bytes]:
    """What makes saved windows of rules useless when it changes, by the names of the rules."""
    return {rule.name: blake2b(rule.definition.encode(), digest_size=16).digest() for rule in rules}


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
