"""Pages of records, and the newest of each key.

A page is bounded in records, in bytes and in the time that is spent looking for them. It may have fewer records than
were asked for, even none, and still be followed by another one; only a page without a cursor is the last. Records are
never changed, so whoever goes on until there is no cursor gets each record that was there at the beginning exactly
once, unless retention deleted it meanwhile.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from cloud_relay.query.packed import one_moment
from cloud_relay.query.selection import MAX_PAGE_RECORDS, Query, cursor_of, place_of
from cloud_relay.query.sources import merged_steps, prepare
from cloud_relay.query.steps import NOTHING, OPENING
from cloud_relay.store.packs.bodies import PackableRecord
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import PackReader

COLUMNS: Final = (
    "origin", "sequence", "rule", "key", "sensing_origin", "reading_sequence", "value", "latitude_deg", "longitude_deg",
    "accuracy_m", "altitude_m", "heading_deg", "event_utc_ns", "uncertainty_ns", "sensor", "unit", "quality",
    "calibration", "lineage", "priority", "lifespan_ms", "received_utc_ns", "has_receipt",
)  # fmt: skip
"""The columns of a result, in order. ``value`` and ``lineage`` are JSON. ``has_receipt``: whether the record can be
proved, see :mod:`cloud_relay.query.proofs`."""
PATIENCE_S: Final = 0.5
"""How long a page may be looked for."""
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A page ends after the record that reaches it. Values in memory and in JSON take up to ten times as much."""

RECORD_ROWS: Final = (
    f"SELECT {', '.join(COLUMNS[:-1])}, EXISTS (SELECT 1 FROM receipted WHERE receipted.origin = records.origin"  # noqa: S608 - constants only
    " AND receipted.sequence = records.sequence) AS has_receipt, encoded FROM records"
)
"""What :func:`record_of_row` takes; which rows has to follow."""
_ROW: Final = f"{RECORD_ROWS} WHERE rowid = ?"


class StoredRecord(NamedTuple):
    """A record as the store has it."""

    fields: dict[str, Any]
    """By the names in ``COLUMNS``. ``value`` and ``lineage`` are JSON texts."""
    encoded: bytes
    """The reading in the bytes of its node."""

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return len(self.encoded) + len(self.fields["value"]) + 512


class RecordPage(NamedTuple):
    """An answer."""

    records: list[StoredRecord]
    cursor: str | None
    """What to ask for the next page with; None: there is none."""


def find_page(
    db: sqlite3.Connection, query: Query, patience_s: float = PATIENCE_S, cache: PackCache | None = None
) -> RecordPage:
    """One page. It has at least one record, or comes at least one chunk further, however short the patience is.
    ``cache`` is that of the store for all questions."""
    ends_s = time.monotonic() + patience_s
    prepare(db)
    limit, size_bytes = min(query.limit, MAX_PAGE_RECORDS), 0
    records: list[StoredRecord] = []
    with one_moment(db, cache) as packed:
        for step in merged_steps(db, query, packed):
            if step.number == OPENING:
                continue
            if step.number != NOTHING:
                records.append(stored_record(db, step.number, packed))
                size_bytes += records[-1].size_bytes
            full = len(records) >= limit or size_bytes >= MAX_PAGE_BYTES
            if full or time.monotonic() > ends_s:
                return RecordPage(records, cursor_of(step.place))
    return RecordPage(records, None)


def stored_record(db: sqlite3.Connection, number: int, packed: PackReader) -> StoredRecord:
    """The record with a number, of the moment of ``packed``."""
    if number > packed.up_to:
        return record_of_row(db.execute(_ROW, (number,)).fetchone())
    record = packed.with_number(number)
    assert record is not None, "its step was of the same moment"
    return packed_record(db, record)


def record_of_row(row: tuple[Any, ...]) -> StoredRecord:
    """A record of a row of :data:`RECORD_ROWS`."""
    fields = dict(zip(COLUMNS, row, strict=False))
    fields["has_receipt"] = bool(fields["has_receipt"])
    return StoredRecord(fields, row[-1])


def packed_record(db: sqlite3.Connection, record: PackableRecord) -> StoredRecord:
    """A record of a pack. A receipt may have come after it was packed."""
    name = (record.origin, record.sequence)
    has_receipt = record.receipt > 0 or _is_receipted(db, name)
    columns = (*name, record.rule, *record.row, record.received_utc_ns, has_receipt)
    return StoredRecord(dict(zip(COLUMNS, columns, strict=True)), record.encoded)


def _is_receipted(db: sqlite3.Connection, name: tuple[str, int]) -> bool:
    return db.execute("SELECT 1 FROM receipted WHERE origin = ? AND sequence = ?", name).fetchone() is not None


def records_of_pages(find: Callable[[Query], RecordPage], query: Query) -> Iterator[StoredRecord]:
    """All records of a question, at most ``query.limit``, of pages that ``find`` finds."""
    left, after = query.limit, query.after
    while left > 0:
        page = find(replace(query, limit=min(left, MAX_PAGE_RECORDS), after=after))
        yield from page.records
        left -= len(page.records)
        if page.cursor is None:
            return
        after = place_of(page.cursor)


def parsed_fields(record: StoredRecord) -> dict[str, Any]:
    """The fields of a record, with ``value`` and ``lineage`` parsed."""
    return record.fields | {
        "value": msgspec.json.decode(record.fields["value"]),
        "lineage": msgspec.json.decode(record.fields["lineage"]),
    }
