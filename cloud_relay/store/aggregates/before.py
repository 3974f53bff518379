"""The records that a new aggregate is filled from, slice by slice, in the order of their numbers.

This is all that aggregates want of how records are stored. Numbers only grow, and no number is given twice. A record
keeps its number in a pack, and the rows up to the highest number in a pack are remains that nobody looks at.
"""

import logging
import sqlite3
from typing import Final, NamedTuple

import numpy as np

from cloud_relay.aggregates.grouping import AggregateRecord
from cloud_relay.store.packs.bodies import PackableRecord
from cloud_relay.store.packs.reading import OpenPack, PackDamaged, PackReader
from cloud_relay.store.rows import (
    EVENT_COLUMN,
    KEY_COLUMN,
    LATITUDE_COLUMN,
    LONGITUDE_COLUMN,
    UNIT_COLUMN,
    VALUE_COLUMN,
)

_AFTER: Final = (
    "SELECT rowid, origin, rule, key, unit, latitude_deg, longitude_deg, event_utc_ns, received_utc_ns, value, encoded"
    " FROM records NOT INDEXED WHERE rowid > ? AND rowid <= ? ORDER BY rowid"
)
_log = logging.getLogger(__name__)


class RecordSlice(NamedTuple):
    """Records that follow a number."""

    records: list[AggregateRecord]
    reached: int
    """No record up to this number is left out, but for those that can't be read."""
    unreadable: int = 0
    """Records of a damaged pack, at most, which is passed over."""


def slice_after(db: sqlite3.Connection, number: int, up_to: int, most_records: int, most_bytes: int) -> RecordSlice:
    """The next records with numbers above ``number`` and up to another one, as many as a slice may have, or one."""
    packed = PackReader(db)
    for entry in packed.entries:
        if entry.last_number > number and entry.first_number <= up_to:
            try:
                return _of_pack(packed.opened(entry), number, up_to, most_records, most_bytes)
            except PackDamaged as error:
                _log.error("%d records are not in aggregates that are filled now: %s", entry.records, error)
                return RecordSlice([], min(entry.last_number, up_to), entry.records)
    return _of_rows(db, max(number, packed.up_to), up_to, most_records, most_bytes)


def _of_rows(db: sqlite3.Connection, number: int, up_to: int, most_records: int, most_bytes: int) -> RecordSlice:
    records: list[AggregateRecord] = []
    size_bytes = 0
    for found, *fields in db.execute(_AFTER, (number, up_to)):
        records.append(AggregateRecord(*fields))
        size_bytes += _size_bytes(records[-1])
        if len(records) >= most_records or size_bytes >= most_bytes:
            return RecordSlice(records, found)
    return RecordSlice(records, up_to)


def _of_pack(pack: OpenPack, number: int, up_to: int, most_records: int, most_bytes: int) -> RecordSlice:
    """A slice is read in the order of the pack, so each of its bodies is expanded once, however late records came. It
    is read again with fewer records if they are too large."""
    end = min(pack.entry.last_number, up_to)
    positions = np.flatnonzero((pack.number > number) & (pack.number <= end))
    positions = positions[np.argsort(pack.number[positions])]
    most = most_records
    while True:
        chosen = positions[:most]
        records = _read(pack, np.sort(chosen), most_bytes)
        if len(records) == len(chosen):
            return RecordSlice(records, end if len(chosen) == len(positions) else int(pack.number[chosen[-1]]))
        most = max(len(records) // 2, 1)


def _read(
    pack: OpenPack, positions: "np.ndarray[tuple[int], np.dtype[np.int64]]", most_bytes: int
) -> list[AggregateRecord]:
    """The records at some positions, or the first of them, as many as may be read at once."""
    records: list[AggregateRecord] = []
    size_bytes = 0
    for at in positions.tolist():
        if size_bytes >= most_bytes:
            break
        records.append(_aggregate_record(pack.record(at)))
        size_bytes += _size_bytes(records[-1])
    return records


def _aggregate_record(record: PackableRecord) -> AggregateRecord:
    row = record.row
    return AggregateRecord(
        record.origin, record.rule, row[KEY_COLUMN], row[UNIT_COLUMN], row[LATITUDE_COLUMN], row[LONGITUDE_COLUMN],
        row[EVENT_COLUMN], record.received_utc_ns, row[VALUE_COLUMN], record.encoded,
    )  # fmt: skip


def _size_bytes(record: AggregateRecord) -> int:
    return len(record.value) + len(record.encoded)
