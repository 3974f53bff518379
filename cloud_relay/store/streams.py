"""The table ``streams`` of the store: for each key, node and rule, how many records there are and when the newest was
sensed.

It is gathered while a transaction takes batches and written once at its end, so 256 records of one stream cost as much
as one. A record that comes again is not counted again, because only records that were stored are noted.
"""

import sqlite3
from typing import Final

from cloud_relay.store.rows import EVENT_COLUMN, KEY_COLUMN, Row

_NOTE: Final = (
    "INSERT INTO streams VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET records = records + excluded.records,"
    " newest_utc_ns = max(newest_utc_ns, excluded.newest_utc_ns)"
)


class StreamCounts:
    """Belongs to the thread that writes the store. What it notes becomes part of the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._noted: dict[tuple[str, str, str], tuple[int, int]] = {}

    def note(self, origin: str, rule: str, row: Row) -> None:
        """Note a record that was stored just now."""
        name = (row[KEY_COLUMN], origin, rule)
        count, newest_utc_ns = self._noted.get(name, (0, 0))
        self._noted[name] = count + 1, max(newest_utc_ns, row[EVENT_COLUMN])

    def write(self) -> None:
        """Write what was noted."""
        self._db.executemany(_NOTE, [(*name, *noted) for name, noted in self._noted.items()])
        self._noted.clear()

    def rolled_back(self) -> None:
        """Forget what was noted in a transaction that did not happen."""
        self._noted.clear()
