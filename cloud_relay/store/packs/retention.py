"""What retention takes away: packed records that are older than a rule lets them be, and the oldest ones beyond a size.

The age of a record counts from when the relay received it, by the relay's own clock, so no clock of a node decides what
is kept. Records go pack by pack: a stream leaves a pack once the newest record of the pack is old enough. So a record
may stay a little longer than its rule says, never shorter; packs are made short enough for that to be an eighth at
most, or a minute.

What is left of a deleted record is its sequence: it counts as deleted and not as lost, and if it comes again it is
acknowledged and not stored again. A receipt stays as long as a record of its time may need it.
"""

import sqlite3
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple

from cloud_relay.store.packs.bodies import PackableRecord
from cloud_relay.store.packs.making import PackMaker
from cloud_relay.store.packs.packing import Job, PackingPolicy, next_content
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.packs.tables import GONE, PackEntry, place_of
from cloud_relay.store.retaining import BEYOND_AGE, BEYOND_SIZE, RetentionPolicy
from cloud_relay.store.rows import KEY_COLUMN
from protocols.base.limits import SECOND

LATENESS: Final = 8
"""A record stays at most one in so many parts longer than its rule says."""
MIN_SPAN_S: Final = 60.0
"""Packs are not made shorter than this, or rules about seconds would make one of each few records."""
_SLICE_ROWS: Final = 256
"""Streams and ranges that leave at once: a stream takes 30 µs."""
_SLICE_CHANGES: Final = 4_096
"""Ranges and receipts that change in the slice by which a pack that was written again counts: 4 µs each."""


def packing_for(retention: RetentionPolicy, policy: PackingPolicy) -> PackingPolicy:
    """A policy that packs early enough for the rules, in packs that are short enough."""
    least_ns = retention.least_age_ns
    if least_ns is None:
        return policy
    least_s = least_ns / SECOND
    span_s = min(policy.span_s, max(least_s / LATENESS, MIN_SPAN_S))
    return replace(policy, after_s=min(policy.after_s, least_s / 2), span_s=span_s)


class Removal(NamedTuple):
    """What leaves one pack."""

    entry: PackEntry
    streams: frozenset[tuple[str, str, str]]
    """Key, node and rule of what leaves it."""
    records: int
    size_bytes: int
    """About what the disk gets back."""
    why: str

    @property
    def is_whole(self) -> bool:
        """Whether the pack goes as a whole."""
        return self.records == self.entry.records


def removals(db: sqlite3.Connection, policy: RetentionPolicy, now_utc_ns: int) -> Iterator[Removal]:
    """What retention would delete now, oldest packs first, read from one moment of the store.

    :raises sqlite3.Error: the store can't be read.
    """
    excess_bytes = 0 if policy.max_bytes is None else used_bytes(db) - policy.max_bytes
    max_age_ns: dict[str, int | None] = {}
    least_ns = policy.least_age_ns
    for entry in PackReader(db).entries:
        age_ns = now_utc_ns - entry.last_received_utc_ns
        if excess_bytes > 0:
            size_bytes = pack_bytes(db, entry)
            excess_bytes -= size_bytes
            why = BEYOND_SIZE
            yield Removal(entry, frozenset(_streams_of(db, entry)), entry.records, size_bytes, why)
        elif least_ns is not None and age_ns >= least_ns:
            names = _streams_of(db, entry)
            for key in {key for key, _, _ in names} - max_age_ns.keys():
                max_age_ns[key] = policy.max_age_ns(key)
            old = frozenset(
                name for name in names if (most_ns := max_age_ns[name[0]]) is not None and age_ns >= most_ns
            )
            if old:
                records = sum(names[name] for name in old)
                size_bytes = pack_bytes(db, entry) * records // entry.records
                yield Removal(entry, old, records, size_bytes, BEYOND_AGE)


def used_bytes(db: sqlite3.Connection) -> int:
    """The bytes of the store's file that hold something."""
    pages, free, size_bytes = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size_bytes)


def pack_bytes(db: sqlite3.Connection, entry: PackEntry) -> int:
    """The bytes of the blocks of a pack and of the receipts of its time."""
    blocks, receipts = db.execute(
        "SELECT (SELECT total(length(data)) FROM pack_blocks WHERE place >= ? AND place < ?),"
        " (SELECT total(length(receipt) + length(leaves)) FROM receipts WHERE number BETWEEN ? AND ?)",
        (place_of(entry.content, 0), place_of(entry.content + 1, 0), entry.first_receipt, entry.last_receipt),
    ).fetchone()
    return int(blocks + receipts)


def _streams_of(db: sqlite3.Connection, entry: PackEntry) -> dict[tuple[str, str, str], int]:
    rows = db.execute("SELECT key, origin, rule, records FROM pack_streams WHERE pack = ?", (entry.pack,))
    return {(key, origin, rule): records for key, origin, rule, records in rows}


# --- deleting --------------------------------------------------------------------------------------------------------
class Remover:
    """Deletes what retention names, in slices of the writer. ``write`` does a slice and says whether it was done."""

    def __init__(
        self, db: sqlite3.Connection, write: Callable[[Job], bool],
        write_blocks: Callable[[int, Iterable[tuple[int, bytes]]], bool],
    ) -> None:  # fmt: skip
        """``db`` is for reading."""
        self._db, self._write, self._write_blocks = db, write, write_blocks

    def remove(self, removal: Removal) -> bool:
        """Delete what leaves a pack. Returns whether it was done."""
        if removal.is_whole:
            pack = removal.entry.pack
            return self._write(lambda db: db.execute("UPDATE packs SET records = 0 WHERE pack = ?", (pack,)))
        return self._rewrite(removal)

    def resume(self) -> bool:
        """Go on where a relay that was killed left off. Returns whether all is done.

        :raises PackDamaged: a pack that was being written again can't be read.
        """
        unsettled = self._db.execute(
            "SELECT * FROM packs WHERE records > 0 AND records <"
            " (SELECT total(records) FROM pack_streams WHERE pack_streams.pack = packs.pack)"
        ).fetchall()
        for entry in map(PackEntry._make, unsettled):
            kept = _Kept()
            for record in PackReader(self._db).every(entry):
                kept.note(record)
            if not self._follow(entry.pack, kept):
                return False
        return self.settle()

    def settle(self) -> bool:
        """Let the tables follow packs that are gone."""
        packs = self._db.execute(
            "SELECT * FROM packs WHERE records = 0 AND (pack IN (SELECT pack FROM pack_ranges)"
            " OR pack IN (SELECT pack FROM pack_streams))"
        ).fetchall()
        if not self._forget_receipts(list(map(PackEntry._make, packs))):
            return False
        for entry in map(PackEntry._make, packs):
            if not (self._repeated(_leave_streams, entry.pack) and self._repeated(_leave_ranges, entry.pack)):
                return False
        return self._write(lambda db: db.execute(_FORGET_PACKS)) if packs else True

    def _repeated(self, step: "Callable[[sqlite3.Connection, int, _Done], None]", pack: int) -> bool:
        """Do a step, slice by slice, until it is done. Returns whether it is."""
        done = _Done()
        while not done.is_done:
            if not self._write(lambda db: step(db, pack, done)):
                return False
        return True

    def _forget_receipts(self, gone: list[PackEntry]) -> bool:
        """Delete the receipts of packs that are gone which no record needs any more. Returns whether it was done.

        There is no index by receipt: it would cost each record that is stored, and one look at ``receipted`` serves all
        packs that are gone.
        """
        numbers = {
            number
            for entry in gone
            for (number,) in self._db.execute(
                "SELECT number FROM receipts WHERE number BETWEEN ? AND ?", (entry.first_receipt, entry.last_receipt)
            )
        }
        for first, last in self._db.execute("SELECT first_receipt, last_receipt FROM packs WHERE records > 0"):
            numbers = {number for number in numbers if not first <= number <= last} if numbers else numbers
        if not numbers:
            return True
        needed = self._db.execute(
            "SELECT DISTINCT receipt FROM receipted WHERE receipt BETWEEN ? AND ?", (min(numbers), max(numbers))
        )
        unneeded = sorted(numbers.difference(number for (number,) in needed))
        return self._in_slices([(number,) for number in unneeded], _delete_receipts)

    def _rewrite(self, removal: Removal) -> bool:
        """Write a pack again without the streams that leave it: at once, or if very many ranges of sequences change, in
        portions, each with a slice of the writer that is short and after which all counts are right."""
        entry = removal.entry
        while True:
            kept, leaving = _Kept(), self._leaving(entry.pack)
            maker, content = PackMaker(), next_content(self._db)
            staying = self._staying(entry, removal.streams, leaving, kept)
            if not self._write_blocks(content, maker.blocks(staying)):
                return False
            entry = maker.entry(entry.pack, content, entry.first_number, entry.last_number)
            if not self._write(_exchange(entry, leaving)):
                return False
            if not leaving.has_rest:
                return self._follow(entry.pack, kept)

    def _staying(
        self, entry: PackEntry, streams: frozenset[tuple[str, str, str]], leaving: "_Leaving", kept: "_Kept"
    ) -> Iterator[PackableRecord]:
        for record in PackReader(self._db).every(entry):
            if (record.row[KEY_COLUMN], record.origin, record.rule) not in streams or not leaving.takes(record):
                kept.note(record)
                yield record

    def _leaving(self, pack: int) -> "_Leaving":
        rows = self._db.execute("SELECT origin, first, last FROM pack_ranges WHERE pack = ?", (pack,)).fetchall()
        ranges: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for origin, first, last in rows:
            ranges[origin].append((first, last))
        late = {
            (origin, sequence)
            for origin, own in ranges.items()
            for (sequence,) in self._db.execute(
                "SELECT sequence FROM receipted WHERE origin = ? AND sequence BETWEEN ? AND ?",
                (origin, min(own)[0], max(own)[1]),
            )
        }
        return _Leaving(ranges, late)

    def _follow(self, pack: int, kept: "_Kept") -> bool:
        """Let the streams follow a pack that has fewer records than before, and forget receipts that came while it was
        written. Returns whether it was done."""
        ranges = self._db.execute("SELECT origin, first, last FROM pack_ranges WHERE pack = ?", (pack,))
        gone = [
            (origin, sequence)
            for origin, first, last in ranges
            for sequence in range(first, last + 1)
            if (origin, sequence) not in kept.names
        ]
        streams = self._db.execute("SELECT key, origin, rule FROM pack_streams WHERE pack = ?", (pack,)).fetchall()
        left = [name for name in streams if name not in kept.streams]
        return self._in_slices(
            gone, lambda db, some: db.executemany("DELETE FROM receipted WHERE origin = ? AND sequence = ?", some)
        ) and self._in_slices(left, partial(_leave_stream_by_stream, pack))

    def _in_slices(self, rows: list[Any], write: Callable[[sqlite3.Connection, list[Any]], Any]) -> bool:
        """Write rows, slice by slice. Returns whether it was done."""
        for at in range(0, len(rows), _SLICE_ROWS):
            if not self._write(partial(_written, write, rows[at : at + _SLICE_ROWS])):
                return False
        return True


class _Kept:
    """What a pack still has."""

    def __init__(self) -> None:
        self.streams: set[tuple[str, str, str]] = set()
        self.names: set[tuple[str, int]] = set()
        """Origin and sequence."""

    def note(self, record: PackableRecord) -> None:
        """Note a record."""
        self.streams.add((record.row[KEY_COLUMN], record.origin, record.rule))
        self.names.add((record.origin, record.sequence))


class _Leaving:
    """What leaves a pack in one slice of the writer: no more than it can note in a short time."""

    def __init__(self, ranges: Mapping[str, list[tuple[int, int]]], late: set[tuple[str, int]]) -> None:
        """``ranges``: first and last sequence of those of each node that are or were in the pack. ``late``: records
        whose receipt is not in it."""
        self._ranges = {origin: sorted(own) for origin, own in ranges.items()}
        self._late = late
        self._records, self._receipted = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
        self.late: list[tuple[str, int]] = []
        """Records that leave whose receipt came later."""
        self.has_rest = False
        """Whether some have to wait for the next slice."""

    def takes(self, record: PackableRecord) -> bool:
        """Let a record leave, if it may."""
        own = self._ranges[record.origin]
        first, _ = own[bisect_right(own, record.sequence, key=itemgetter(0)) - 1]
        place, name = (record.origin, first), (record.origin, record.sequence)
        changes = (place not in self._records) + (name in self._late)
        if changes and len(self._records) + len(self.late) + changes > _SLICE_CHANGES:
            self.has_rest = True
            return False
        self._records[place] += 1
        self._receipted[place] += record.receipt > 0
        if name in self._late:
            self.late.append(name)
        return True

    def counts(self) -> list[tuple[int, int, str, int]]:
        """How many records leave each range, how many of them with a receipt in the pack, origin and first sequence."""
        return [(count, self._receipted[place], *place) for place, count in self._records.items()]


def _exchange(entry: PackEntry, leaving: _Leaving) -> Job:
    """Let the new blocks of a pack count."""
    values = (entry.content, *entry[4:12], entry.pack)  # records to best_quality

    def exchange(db: sqlite3.Connection) -> None:
        db.execute(
            "UPDATE packs SET content = ?, records = ?, oldest_utc_ns = ?, newest_utc_ns = ?, south = ?, west = ?,"
            " north = ?, east = ?, best_quality = ? WHERE pack = ?", values,
        )  # fmt: skip
        db.executemany(
            "UPDATE pack_ranges SET deleted = deleted + ?, receipted = receipted - ? WHERE origin = ? AND first = ?",
            leaving.counts(),
        )
        db.executemany("DELETE FROM receipted WHERE origin = ? AND sequence = ?", leaving.late)

    return exchange


def _written(write: Callable[[sqlite3.Connection, list[Any]], Any], rows: list[Any], db: sqlite3.Connection) -> None:
    write(db, rows)


def _delete_receipts(db: sqlite3.Connection, numbers: list[tuple[int]]) -> None:
    db.executemany("DELETE FROM receipts WHERE number = ?", numbers)


_FORGET_PACKS: Final = (
    "DELETE FROM packs WHERE records = 0 AND pack < (SELECT max(pack) FROM packs)"
    " AND pack NOT IN (SELECT pack FROM pack_ranges)"
)
"""The newest one stays: it says which numbers were given."""


@dataclass(slots=True)
class _Done:
    is_done: bool = False


def _leave_streams(db: sqlite3.Connection, pack: int, done: _Done) -> None:
    names = db.execute(
        "SELECT key, origin, rule FROM pack_streams WHERE pack = ? LIMIT ?", (pack, _SLICE_ROWS)
    ).fetchall()
    _leave_stream_by_stream(pack, db, names)
    done.is_done = len(names) < _SLICE_ROWS


def _leave_stream_by_stream(pack: int, db: sqlite3.Connection, names: list[tuple[str, str, str]]) -> None:
    for name in names:
        _leave_stream(db, pack, name)


def _leave_stream(db: sqlite3.Connection, pack: int, name: tuple[str, str, str]) -> None:
    """A stream leaves a pack: it has fewer records then, perhaps none, and its newest may be another one."""
    named = "key = ? AND origin = ? AND rule = ?"
    left = db.execute(f"SELECT records, newest_utc_ns FROM pack_streams WHERE {named} AND pack = ?", (*name, pack))  # noqa: S608
    records, newest_utc_ns = left.fetchone() or (0, -1)
    db.execute(f"DELETE FROM pack_streams WHERE {named} AND pack = ?", (*name, pack))  # noqa: S608 - our text
    known = db.execute(f"SELECT records, newest_utc_ns FROM streams WHERE {named}", name).fetchone()  # noqa: S608
    if known is None:
        return
    if known[0] <= records:
        db.execute(f"DELETE FROM streams WHERE {named}", name)  # noqa: S608 - our text
        return
    newest = known[1]
    if newest == newest_utc_ns:
        newest = db.execute(
            f"SELECT max(coalesce((SELECT max(newest_utc_ns) FROM pack_streams WHERE {named}), 0), coalesce((SELECT"  # noqa: S608
            " event_utc_ns FROM records INDEXED BY records_in_streams WHERE key = ? AND origin = ? AND rule = ?"
            " ORDER BY event_utc_ns DESC LIMIT 1), 0))",
            (*name, *name),
        ).fetchone()[0]
    db.execute(
        f"UPDATE streams SET records = records - ?, newest_utc_ns = ? WHERE {named}", (records, newest, *name)  # noqa: S608
    )  # fmt: skip


def _leave_ranges(db: sqlite3.Connection, pack: int, done: _Done) -> None:
    """Sequences of a pack that is gone become part of those that are gone."""
    rows = db.execute(
        "SELECT origin, first, last FROM pack_ranges WHERE pack = ? LIMIT ?", (pack, _SLICE_ROWS)
    ).fetchall()
    for origin, first, last in rows:
        db.execute("DELETE FROM receipted WHERE origin = ? AND sequence BETWEEN ? AND ?", (origin, first, last))
        beside = db.execute(
            "SELECT first, last FROM pack_ranges WHERE origin = ? AND pack = ? AND (last = ? OR first = ?)"
            " AND first BETWEEN coalesce((SELECT max(first) FROM pack_ranges WHERE origin = ? AND first < ?), 0) AND ?",
            (origin, GONE, first - 1, last + 1, origin, first, last + 1),
        ).fetchall()
        low = min([first, *(near_first for near_first, _ in beside)])
        high = max([last, *(near_last for _, near_last in beside)])
        db.executemany(
            "DELETE FROM pack_ranges WHERE origin = ? AND first = ?",
            [(origin, first), *((origin, near_first) for near_first, _ in beside)],
        )
        db.execute(
            "INSERT INTO pack_ranges VALUES (?, ?, ?, ?, ?, 0)", (origin, low, high, GONE, high - low + 1)
        )  # fmt: skip
    done.is_done = len(rows) < _SLICE_ROWS
