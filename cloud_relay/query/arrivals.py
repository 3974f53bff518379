"""Records in the order in which they were stored, for those who follow them.

The number of a record is that of its row, and it keeps it in a pack. The store has one writer and gives no number
twice, so numbers only grow, and who has seen a number has seen all below it that retention left.
"""

import sqlite3
from typing import Final, NamedTuple

import numpy as np

from cloud_relay.query.packed import one_moment, selected
from cloud_relay.query.searching import StoredRecord, stored_record
from cloud_relay.query.selection import FILTERS, Query
from cloud_relay.query.sources import all_filters, prepare
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.packs.tables import packed_up_to

STREAM_FILTERS: Final = tuple(name for name in FILTERS if name not in ("since", "until"))
MAX_EXAMINED: Final = 16_384
"""Rows that one look goes through."""
MAX_ARRIVALS: Final = 256
MAX_BYTES: Final = 1024 * 1024


class RecordArrivals(NamedTuple):
    """What one look found."""

    records: list[tuple[int, StoredRecord]]
    """With their numbers."""
    reached: int
    """No record up to this number is missing. Go on after it."""
    newest: int
    """The highest number that there is."""


def newest_number(db: sqlite3.Connection) -> int:
    """The number of the record that was stored last; 0: there is none."""
    (newest,) = db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()
    return max(int(newest), packed_up_to(db))


def arrivals_after(db: sqlite3.Connection, query: Query, number: int) -> RecordArrivals:
    """The next records that a query selects. ``since``, ``until``, its limit and its order don't count."""
    prepare(db)
    with one_moment(db) as packed:
        newest = newest_number(db)
        reached, size_bytes = min(number + MAX_EXAMINED, newest), 0
        records: list[tuple[int, StoredRecord]] = []
        for found in (*_packed_numbers(packed, query, number, reached), *_rows(db, packed, query, number, reached)):
            records.append((found, stored_record(db, found, packed)))
            size_bytes += records[-1][1].size_bytes
            if size_bytes >= MAX_BYTES or len(records) == MAX_ARRIVALS:
                return RecordArrivals(records, found, newest)
        return RecordArrivals(records, max(reached, number), newest)


def _rows(db: sqlite3.Connection, packed: PackReader, query: Query, number: int, reached: int) -> list[int]:
    wanted = all_filters(query)
    rows = db.execute(
        f"SELECT rowid FROM records NOT INDEXED WHERE rowid > ? AND rowid <= ? AND {wanted.text}"  # noqa: S608 - our texts
        " ORDER BY rowid LIMIT ?",
        (max(number, packed.up_to), reached, *wanted.values, MAX_ARRIVALS),
    )
    return [found for (found,) in rows]


def _packed_numbers(packed: PackReader, query: Query, number: int, reached: int) -> list[int]:
    """The numbers of packed records, in order."""
    found: list[int] = []
    if number >= packed.up_to:
        return found
    for entry in packed.entries:
        if entry.last_number > number and entry.first_number <= reached and len(found) < MAX_ARRIVALS:
            pack = packed.opened(entry)
            numbers = pack.number[selected(pack, query, 0, entry.records)]
            found += np.sort(numbers[(numbers > number) & (numbers <= reached)]).tolist()
    return found[:MAX_ARRIVALS]
