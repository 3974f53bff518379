"""Packs older rows of the store in the background.

A thread of its own reads rows, which never change, and makes the blocks of a pack. Whatever it writes it hands to the
writer of the store in slices, each a transaction of its own that takes some ten milliseconds, and the writer takes
batches between any two of them. The order of the slices is the whole argument: blocks, what the tables say of them, the
row in ``packs``, by which the pack counts and the rows do not, and then the rows are deleted. A relay that is killed
between any two of them has each record once, and the next one takes away what is left.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from cloud_relay.store.packs.bodies import PackableRecord
from cloud_relay.store.packs.making import PackMaker
from cloud_relay.store.packs.tables import (
    MAX_PACK_BYTES,
    MAX_PACK_RECORDS,
    PART_BITS,
    packed_up_to,
    place_of,
)
from protocols.base.limits import SECOND

Job = Callable[[sqlite3.Connection], Any]
"""A slice of work, within a transaction of the writer."""

_SLICE_BYTES: Final = 512 * 1024
"""Blocks that are written at once. A block alone may be larger by a little."""
_SLICE_ROWS: Final = 1_000
"""Rows of tables that are written at once."""
_SLICE_DELETED: Final = (64, 256)
"""Rows of records that are deleted at once, at least and at most: each is in four indexes, and takes 6 to 9 µs."""
_SLICE_PAGES: Final = (32, 128)
"""Pages that are given back at once, at least and at most: each is moved, and takes 30 µs in a large store."""
SLICE_S: Final = 0.01
"""What a slice should take. One that took longer is followed by one of half its size, and each other one by one that is
a little larger: the more a slice has to do, the likelier it has to wait for a processor in its midst."""
_FREE_SHARE: Final = 8
"""Free pages are given back to the disk once they are more than one in so many, because new rows need them again."""
_FREE_PAGES: Final = 2_048
"""So many are always kept: 8 MiB."""
_ROWS: Final = (
    "SELECT records.number, records.origin, records.sequence, rule, received_utc_ns, encoded,"
    " coalesce(receipt, 0), coalesce(place, 0), key, sensing_origin, reading_sequence, value, latitude_deg,"
    " longitude_deg, accuracy_m, altitude_m, heading_deg, event_utc_ns, uncertainty_ns, sensor, unit, quality,"
    " calibration, lineage, priority, lifespan_ms FROM records LEFT JOIN receipted USING (origin, sequence)"
    " WHERE records.number = ?"
)


@dataclass(frozen=True, slots=True)
class PackingPolicy:
    """Which rows are packed. A row is due for one reason or the other."""

    after_s: float = 86_400.0
    """Rows that were received so long ago are due."""
    beyond_rows: int = 262_144
    """Rows are due while there are so many newer ones."""
    span_s: float = 86_400.0
    """Rows of a pack were received within such a time, so that retention can drop it as a whole."""
    pack_records: int = MAX_PACK_RECORDS
    """Records of a pack, at most."""
    clock: Callable[[], int] = time.time_ns
    """UTC nanoseconds."""


@dataclass(slots=True)
class _Begun:
    """The rows of the pack that fills."""

    up_to: int
    """Rows up to this number are in packs."""
    first: int = 0
    last: int = 0
    records: int = 0
    size_bytes: int = 0
    first_utc_ns: int = 0
    """When the first of them was received."""

    def add(self, number: int, received_utc_ns: int, encoded_bytes: int) -> None:
        """Add the next row."""
        if not self.records:
            self.first, self.first_utc_ns = number, received_utc_ns
        self.last = number
        self.records += 1
        self.size_bytes += encoded_bytes


class Packer:
    """Packs due rows. All but :meth:`end` is for one thread."""

    def __init__(
        self, open_reading: Callable[[], sqlite3.Connection], write: Callable[[Job], "Future[Any]"],
        policy: PackingPolicy,
    ) -> None:  # fmt: skip
        """``write`` hands a slice to the writer of the store."""
        self._open, self._write_slice, self._policy = open_reading, write, policy
        self._ended = threading.Event()
        self._begun: _Begun | None = None
        self.has_remains = True
        """Whether there may be rows and blocks that nobody needs."""
        self.packs = self.packed = 0
        """Packs that were made, and their records."""

    def end(self) -> None:
        """Write nothing more. May be called from any thread, and is noticed after the slice that is under way."""
        self._ended.set()

    def pack_once(self) -> bool:
        """Make one pack if one is due. Returns whether it was made.

        :raises StorageError, sqlite3.Error: the store can't be read or written. What was written counts for nothing.
        """
        with closing(self._open()) as db:
            if self.has_remains:
                self.clear_remains(db)
            db.execute("BEGIN")  # receipts that come while the pack is made are not in it, and are not deleted then
            try:
                numbers = self._due(db)
                if numbers is None:
                    return False
                self.has_remains = True
                made = self._make(db, *numbers)
            finally:
                db.execute("COMMIT")
            if made:
                self.clear_remains(db)
                self.give_back(db)
            return made

    # --- which rows ------------------------------------------------------------------------------------------------
    def _due(self, db: sqlite3.Connection) -> tuple[int, int] | None:
        """The first and the last number of the rows of the next pack; None: not yet.

        Rows never change, so a look goes on where the one before it ended: a pack fills for hours, and a look at all of
        its rows takes 30 ms of a processor.
        """
        policy, up_to = self._policy, packed_up_to(db)
        if self._begun is None or self._begun.up_to != up_to:
            self._begun = _Begun(up_to)
        begun = self._begun
        (newest,) = db.execute("SELECT coalesce(max(number), 0) FROM records").fetchone()
        old_utc_ns = policy.clock() - int(policy.after_s * SECOND)
        span_ns, is_full = int(policy.span_s * SECOND), False
        rows = db.execute(
            "SELECT number, received_utc_ns, length(encoded) FROM records NOT INDEXED WHERE number > ? ORDER BY number",
            (max(up_to, begun.last),),
        )
        for number, received_utc_ns, encoded_bytes in rows:
            if received_utc_ns > old_utc_ns and number > newest - policy.beyond_rows:
                break
            if begun.records and (
                begun.records >= policy.pack_records
                or abs(received_utc_ns - begun.first_utc_ns) > span_ns
                or begun.size_bytes + encoded_bytes > MAX_PACK_BYTES
            ):
                is_full = True
                break
            begun.add(number, received_utc_ns, encoded_bytes)
        rows.close()
        is_overdue = begun.records > 0 and begun.first_utc_ns < old_utc_ns - int(policy.after_s * SECOND)
        return (begun.first, begun.last) if is_full or is_overdue else None

    # --- one pack --------------------------------------------------------------------------------------------------
    def _make(self, db: sqlite3.Connection, first: int, last: int) -> bool:
        (pack,) = db.execute("SELECT coalesce(max(pack), 0) + 1 FROM packs").fetchone()
        content = next_content(db)
        order = db.execute(
            "SELECT number FROM records NOT INDEXED WHERE number BETWEEN ? AND ? ORDER BY event_utc_ns, origin,"
            " sequence", (first, last),
        ).fetchall()  # fmt: skip
        first_number = packed_up_to(db) + 1
        maker = PackMaker()
        records = (_packable(db.execute(_ROWS, number).fetchone()) for number in order)
        if not self.write_blocks(content, maker.blocks(records)):
            return False
        streams = [(*part[:3], pack, *part[3:]) for part in maker.streams()]
        ranges = [(*part[:3], pack, 0, part.receipted) for part in maker.ranges()]
        entry = maker.entry(pack, content, first_number, last)
        statement = f"INSERT INTO packs VALUES ({','.join('?' * len(entry))})"  # noqa: S608 - marks only
        done = (
            self._insert("INSERT INTO pack_streams VALUES (?, ?, ?, ?, ?, ?)", streams)
            and self._insert("INSERT INTO pack_ranges VALUES (?, ?, ?, ?, ?, ?)", ranges)
            and self._insert(statement, [tuple(entry)])
        )
        if done:
            self.packs += 1
            self.packed += entry.records
        return done

    def write_blocks(self, content: int, blocks: Iterable[tuple[int, bytes]]) -> bool:
        """Write blocks in slices. Returns whether all were written: the relay may be ending."""
        waiting: list[tuple[int, bytes]] = []
        size_bytes = 0
        for part, data in blocks:
            waiting.append((place_of(content, part), data))
            size_bytes += len(data)
            if size_bytes >= _SLICE_BYTES:
                if not self._insert("INSERT INTO pack_blocks VALUES (?, ?)", waiting):
                    return False
                waiting, size_bytes = [], 0
        return self._insert("INSERT INTO pack_blocks VALUES (?, ?)", waiting)

    def _insert(self, statement: str, rows: list[Any]) -> bool:
        left = iter(rows)
        while slice_ := list(islice(left, _SLICE_ROWS)):
            if not self.write(_inserting(statement, slice_)):
                return False
        return not self._ended.is_set()

    def write(self, job: Job) -> bool:
        """Have the writer do a slice, and wait. Returns whether it was done: the relay may be ending.

        :raises StorageError: it failed; nothing of it is there.
        """
        if self._ended.is_set():
            return False
        self._write_slice(job).result()
        return True

    # --- what is left over -----------------------------------------------------------------------------------------
    def clear_remains(self, db: sqlite3.Connection) -> None:
        """Delete the rows of packed records, and what is left of packs that were not finished."""
        up_to = packed_up_to(db)
        (last_receipt,) = db.execute("SELECT coalesce(max(last_receipt), 0) FROM packs").fetchone()
        pace = _Pace(*_SLICE_DELETED)
        while (first := db.execute("SELECT min(number) FROM records").fetchone()[0]) is not None and first <= up_to:
            if not self.write(pace.timed(_delete_rows(first, min(first + pace.size - 1, up_to), last_receipt))):
                return
        (newest,) = db.execute("SELECT coalesce(max(pack), 0) FROM packs").fetchone()
        for table in ("pack_streams", "pack_ranges"):
            while db.execute(f"SELECT 1 FROM {table} WHERE pack > ? LIMIT 1", (newest,)).fetchone():  # noqa: S608
                if not self.write(_delete_unfinished(table, newest)):
                    return
        for content in unused_contents(db):
            if not self.delete_blocks(db, content):
                return
        self.has_remains = False

    def delete_blocks(self, db: sqlite3.Connection, content: int) -> bool:
        """Delete blocks in slices. Returns whether all are gone."""
        first, end = place_of(content, 0), place_of(content + 1, 0)
        chosen = "SELECT place FROM pack_blocks WHERE place >= ? AND place < ? LIMIT 32"
        statement = f"DELETE FROM pack_blocks WHERE place IN ({chosen})"  # noqa: S608 - our text
        while db.execute(chosen, (first, end)).fetchone():
            if not self.write(lambda writing: writing.execute(statement, (first, end))):
                return False
        return True

    def give_back(self, db: sqlite3.Connection) -> None:
        """Give free pages back to the disk, if there are many."""
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if free <= max(_FREE_PAGES, pages // _FREE_SHARE) or db.execute("PRAGMA auto_vacuum").fetchone() != (2,):
            return
        pace, left = _Pace(*_SLICE_PAGES), free - _FREE_PAGES
        while left > 0:
            size = min(pace.size, left)
            left -= size
            if not self.write(pace.timed(_give_back_pages(size))):
                return


def next_content(db: sqlite3.Connection) -> int:
    """A number for the blocks of a new pack."""
    named, placed = db.execute(
        "SELECT (SELECT max(content) FROM packs), (SELECT max(place) FROM pack_blocks)"
    ).fetchone()
    return 1 + max(named or 0, (placed or 0) >> PART_BITS)


def unused_contents(db: sqlite3.Connection) -> list[int]:
    """The numbers of blocks that no pack has."""
    used = {content for (content,) in db.execute("SELECT content FROM packs WHERE records > 0")}
    found: list[int] = []
    content = 0
    while True:
        (place,) = db.execute("SELECT min(place) FROM pack_blocks WHERE place >= ?", (place_of(content, 0),)).fetchone()
        if place is None:
            return found
        content = place >> PART_BITS
        if content not in used:
            found.append(content)
        content += 1


def _packable(row: tuple[Any, ...]) -> PackableRecord:
    number, origin, sequence, rule, received_utc_ns, encoded, receipt, place, *rest = row
    return PackableRecord(number, origin, sequence, rule, tuple(rest), received_utc_ns, encoded, receipt, place)


def _inserting(statement: str, rows: list[Any]) -> Job:
    return lambda db: db.executemany(statement, rows)


class _Pace:
    """How much a slice takes, by how long those before it took."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.size = least

    def timed(self, job: Job) -> Job:
        """A slice of that size. The time that it waits for its turn does not count."""

        def slice_(db: sqlite3.Connection) -> None:
            began_s = time.monotonic()
            job(db)
            if time.monotonic() - began_s > SLICE_S:
                self.size = max(self._least, self.size // 2)
            else:
                self.size = min(self._most, self.size + self._least // 4)

        return slice_


def _delete_rows(first: int, last: int, last_receipt: int) -> Job:
    """Deletes rows that are in packs. Receipts that came after their pack was made are in no pack, and stay."""

    def delete(db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM receipted WHERE receipt <= ? AND (origin, sequence) IN"
            " (SELECT origin, sequence FROM records NOT INDEXED WHERE number BETWEEN ? AND ?)",
            (last_receipt, first, last),
        )
        db.execute("DELETE FROM records WHERE number BETWEEN ? AND ?", (first, last))

    return delete


def _give_back_pages(pages: int) -> Job:
    def give_back(db: sqlite3.Connection) -> None:
        for _ in range(pages):  # the statement gives one page back each time it is stepped, and sqlite3 steps once
            db.execute("PRAGMA incremental_vacuum(1)")

    return give_back


def _delete_unfinished(table: str, newest: int) -> Job:
    wanted = f"SELECT {{}} FROM {table} WHERE pack > ? LIMIT {_SLICE_ROWS}"  # noqa: S608 - our tables
    columns = "key, origin, rule, pack" if table == "pack_streams" else "origin, first"
    statement = f"DELETE FROM {table} WHERE ({columns}) IN ({wanted.format(columns)})"  # noqa: S608 - our tables
    return lambda db: db.execute(statement, (newest,))
