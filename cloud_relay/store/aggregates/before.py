"""The records that a new aggregate is filled from, in the order of their numbers.

This is all that aggregates want of how records are stored. Numbers only grow, and no number is given twice.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

from cloud_relay.aggregates.grouping import AggregateRecord

_AFTER: Final = (
    "SELECT rowid, origin, rule, key, unit, latitude_deg, longitude_deg, event_utc_ns, received_utc_ns, value, encoded"
    " FROM records NOT INDEXED WHERE rowid > ? AND rowid <= ? ORDER BY rowid"
)


def newest_number(db: sqlite3.Connection) -> int:
    """The number of the record that was stored last; 0: there is none."""
    return int(db.execute("SELECT coalesce(max(rowid), 0) FROM records").fetchone()[0])


def records_after(db: sqlite3.Connection, number: int, up_to: int) -> Iterator[tuple[int, AggregateRecord]]:
    """The records with numbers above ``number`` and up to another one, with their numbers, in order."""
    for found, *fields in db.execute(_AFTER, (number, up_to)):
        yield found, AggregateRecord(*fields)
