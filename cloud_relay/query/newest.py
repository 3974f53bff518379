"""The newest record of each key.

``key``, ``origin`` and ``rule`` say whose newest record is looked for. ``since``, ``box`` and ``min_quality`` then say
which of these are shown: what is in a box is there now, and not what was there once. Keys come in the order of their
bytes, and a page goes on after the last key of the page before.
"""

import sqlite3
import time
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Final

from cloud_relay.query.packed import newest_of_stream, one_moment
from cloud_relay.query.searching import (
    COLUMNS,
    MAX_PAGE_BYTES,
    PATIENCE_S,
    RECORD_ROWS,
    RecordPage,
    StoredRecord,
    packed_record,
    record_of_row,
)
from cloud_relay.query.selection import FILTERS, MAX_PAGE_RECORDS, Box, Query, shape_of_key
from cloud_relay.query.sources import SqlCondition, stream_names
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.schema import INDEXED_VERSION, store_version
from protocols.base.errors import InvalidKey, LocalProtocolError, StorageError
from protocols.base.keys import checked_key, matches

NEWEST_FILTERS: Final = tuple(name for name in FILTERS if name != "until")
_NEWEST_OF_STREAM: Final = (
    f"{RECORD_ROWS} INDEXED BY records_in_streams WHERE key = ? AND origin = ?"
    " AND event_utc_ns = ? AND (?4 IS NULL OR rule = ?4) AND rowid > ?5 ORDER BY sequence DESC LIMIT 1"
)
_SEQUENCE: Final = COLUMNS.index("sequence")


def newest_page(
    db: sqlite3.Connection, query: Query, after_key: str | None = None, patience_s: float = PATIENCE_S,
    cache: PackCache | None = None,
) -> RecordPage:  # fmt: skip
    """The newest record of each key of a question, which has neither ``until`` nor ``after``. The cursor is a key.
    ``cache`` is that of the store for all questions.

    :raises StorageError: the store is of an earlier version.
    """
    if store_version(db) < INDEXED_VERSION:
        raise StorageError("the store is of an earlier version and knows no newest records: start the relay once")
    ends_s = time.monotonic() + patience_s
    limit, size_bytes = min(query.limit, MAX_PAGE_RECORDS), 0
    records: list[StoredRecord] = []
    with one_moment(db, cache) as packed:
        for key, newest in _newest_streams(db, query, after_key):
            record = None if newest is None else _newest_record(db, packed, newest, query.rule)
            if record is not None and is_shown(record, query):
                records.append(record)
                size_bytes += record.size_bytes
            if len(records) >= limit or size_bytes >= MAX_PAGE_BYTES or time.monotonic() > ends_s:
                return RecordPage(records, key)
    return RecordPage(records, None)


def key_cursor(text: str) -> str:
    """The key that a cursor is. :raises LocalProtocolError: it is none."""
    try:
        checked_key(shape_of_key(text))  # it is only compared, so a key of a newer Unicode may be one
    except InvalidKey as error:
        raise LocalProtocolError(f"cursor {text[:60]!r} is not one that a page had: give it unchanged") from error
    return text


def _newest_streams(
    db: sqlite3.Connection, query: Query, after: str | None
) -> Iterator[tuple[str, tuple[str, str, int] | None]]:
    """Each key, in order, and of its streams the one with the newest record: its key, node and time. None: the key is
    not asked for, and whoever looks may end here, because nodes may have invented many."""
    asked = stream_names(query)
    if after is not None:
        asked &= SqlCondition("key > ?", (after,))
    rows = db.execute(
        f"SELECT key, origin, newest_utc_ns FROM streams WHERE {asked.text} ORDER BY key",  # noqa: S608 - our texts
        asked.values,
    )
    for key, streams in groupby(rows, key=itemgetter(0)):
        is_asked = query.key is None or matches(query.key, key)
        yield key, max(streams, key=itemgetter(2, 1)) if is_asked else None


def _newest_record(
    db: sqlite3.Connection, packed: PackReader, stream: tuple[str, str, int], rule: str | None
) -> StoredRecord | None:
    row = db.execute(_NEWEST_OF_STREAM, (*stream, rule, packed.up_to)).fetchone()
    found = newest_of_stream(db, packed, stream, rule)
    if found is not None:
        pack, at = found
        if row is None or pack.place(at)[2] > row[_SEQUENCE]:
            return packed_record(db, pack.record(at))
    return None if row is None else record_of_row(row)


def is_shown(record: StoredRecord, query: Query) -> bool:
    """Whether the newest record of a key is one that a question wants to see."""
    fields = record.fields
    if query.since_utc_ns is not None and fields["event_utc_ns"] < query.since_utc_ns:
        return False
    if query.min_quality is not None and fields["quality"] < query.min_quality:
        return False
    return query.box is None or _contains(query.box, fields["latitude_deg"], fields["longitude_deg"])


def _contains(box: Box, latitude_deg: float, longitude_deg: float) -> bool:
    if not box.south <= latitude_deg <= box.north:
        return False
    return abs(latitude_deg) == 90 or any(west <= longitude_deg <= east for west, east in box.spans())
