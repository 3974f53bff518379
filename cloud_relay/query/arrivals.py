"""Records in the order in which they were stored, for those who follow them.

The number of a record is that of its row, and it keeps it in a pack. The store has one writer and gives no number
twice, so numbers only grow, and who has seen a number has seen all below it that retention left.
"""

import sqlite3
from typing import Final, NamedTuple

import numpy as np

from cloud_relay.query.packed import one_moment, selected, wanted_streams
from cloud_relay.query.searching import StoredRecord, stored_record
from cloud_relay.query.selection import FILTERS, LAST_UTC_NS, Query
from cloud_relay.query.sources import all_filters, prepare
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.packs.tables import newest_number

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
    behind: int
    """Records that were stored after it, of whatever kind; a store may stop to count beyond what streams care for."""
    deleted: int = 0
    """How many numbers up to ``reached`` are those of records that retention has deleted, whatever they were."""


def arrivals_after(
    db: sqlite3.Connection, query: Query, number: int, *, up_to: int = LAST_UTC_NS, most_records: int = MAX_ARRIVALS,
    most_bytes: int = MAX_BYTES, cache: PackCache | None = None,
) -> RecordArrivals:  # fmt: skip
    """The next records that a query selects, with numbers up to another one. ``since``, ``until``, its limit and its
    order don't count. It ends at so many records or bytes, of which it may have as many as one look finds. ``cache`` is
    that of the store for all questions."""
    prepare(db)
    most_records, most_bytes = min(most_records, MAX_ARRIVALS), min(most_bytes, MAX_BYTES)
    with one_moment(db, cache) as packed:
        newest = newest_number(db)
        reached, size_bytes = max(min(number + MAX_EXAMINED, newest, up_to), number), 0
        records: list[tuple[int, StoredRecord]] = []
        for found in (*_packed_numbers(packed, query, number, reached), *_rows(db, packed, query, number, reached)):
            records.append((found, stored_record(db, found, packed)))
            size_bytes += records[-1][1].size_bytes
            if size_bytes >= most_bytes or len(records) >= most_records:
                reached = found
                break
        return RecordArrivals(records, reached, newest, newest - reached, _deleted(packed, number, reached))


def _deleted(packed: PackReader, number: int, reached: int) -> int:
    """How many numbers after one and up to another are in no pack, although they were."""
    end, there = min(reached, packed.up_to), 0
    if number >= end:
        return 0
    for entry in packed.entries:
        first, last = max(entry.first_number, number + 1), min(entry.last_number, end)
        if first > last:
            continue
        if entry.records == entry.last_number - entry.first_number + 1:
            there += last - first + 1
        elif (first, last) == (entry.first_number, entry.last_number):
            there += entry.records
        else:
            numbers = packed.opened(entry).number
            there += int(np.count_nonzero((numbers >= first) & (numbers <= last)))
    return end - number - there


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
            numbers = pack.number[selected(pack, query, 0, entry.records, wanted_streams(pack, query))]
            found += np.sort(numbers[(numbers > number) & (numbers <= reached)]).tolist()
    return found[:MAX_ARRIVALS]
