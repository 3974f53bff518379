"""Records in the order in which they were stored, for those who follow them.

The number of a record is that of its row. The store has one writer and deletes nothing, so numbers only grow, and who
has seen a number has seen all below it.
"""

import sqlite3
from typing import Final, NamedTuple

from cloud_relay.query.searching import StoredRecord, stored_record
from cloud_relay.query.selection import FILTERS, Query
from cloud_relay.query.sources import all_filters, prepare

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
    return int(db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()[0])


def arrivals_after(db: sqlite3.Connection, query: Query, number: int) -> RecordArrivals:
    """The next records that a query selects. ``since``, ``until``, its limit and its order don't count."""
    prepare(db)
    newest = newest_number(db)
    reached, size_bytes = min(number + MAX_EXAMINED, newest), 0
    wanted = all_filters(query)
    rows = db.execute(
        f"SELECT rowid FROM records NOT INDEXED WHERE rowid > ? AND rowid <= ? AND {wanted.text}"  # noqa: S608 - our texts
        " ORDER BY rowid LIMIT ?",
        (number, reached, *wanted.values, MAX_ARRIVALS),
    ).fetchall()
    records: list[tuple[int, StoredRecord]] = []
    for (found,) in rows:
        records.append((found, stored_record(db, found)))
        size_bytes += records[-1][1].size_bytes
        if size_bytes >= MAX_BYTES or len(records) == MAX_ARRIVALS:
            return RecordArrivals(records, found, newest)
    return RecordArrivals(records, max(reached, number), newest)
