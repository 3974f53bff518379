"""The records of one sink, in the order in which they were stored.

A sink has no queue: what comes next is read from the store, so one that was away for a week takes as much memory as one
that is abreast. This is the only module of the package that reads the store.
"""

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from cloud_relay.query.arrivals import RecordArrivals, arrivals_after
from cloud_relay.query.selection import LAST_UTC_NS, Query
from cloud_relay.sinks.contract import Portion
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.schema import open_for_reading, storage_error

MAX_PORTION_BYTES: Final = 16 * 1024 * 1024
"""Of the records of one portion as the store has them. In Python's memory they take about four times as much."""
_CACHE_BYTES: Final = 8 * 1024 * 1024
"""Of packs that are kept from one look to the next, which mostly is at the same pack."""


class Extended(NamedTuple):
    """A portion after a look."""

    portion: Portion
    whole: bool
    """It takes no more: it has as many records or bytes as it may, or it reached its limit."""
    newest: int
    """The highest number that there is."""


class RecordReader:
    """Reads the store for one sink. Belongs to the thread that made it."""

    def __init__(self, store: Path, query: Query) -> None:
        self._store, self._query = store, query
        self._db: sqlite3.Connection | None = None
        self._cache = PackCache(_CACHE_BYTES)

    def newest(self) -> int:
        """The number of the record that was stored last; 0: there is none.

        :raises StorageError: the store can't be read.
        """
        try:
            return newest_number(self._opened())
        except sqlite3.DatabaseError as error:
            self.close()
            raise storage_error(self._store, error) from error

    def extend(self, portion: Portion, most_records: int, limit: int | None) -> "Extended":
        """The portion with the records that one look finds after it, up to the number ``limit``, if there is one.

        :raises StorageError: the store can't be read.
        """
        size_bytes = sum(record.size_bytes for _, record in portion.records)
        up_to = LAST_UTC_NS if limit is None else limit
        found = self._look(portion.last, up_to, most_records - len(portion.records), MAX_PORTION_BYTES - size_bytes)
        records = portion.records + found.records
        size_bytes += sum(record.size_bytes for _, record in found.records)
        extended = Portion(portion.first, found.reached, records, portion.deleted + found.deleted)
        is_whole = len(records) >= most_records or size_bytes >= MAX_PORTION_BYTES or found.reached >= up_to
        return Extended(extended, is_whole, found.newest)

    def close(self) -> None:
        """Let go of the store. It is opened again when something is read."""
        if self._db is not None:
            self._db.close()
            self._db = None
            self._cache = PackCache(_CACHE_BYTES)  # it may be another file then

    def _look(self, after: int, up_to: int, most_records: int, most_bytes: int) -> RecordArrivals:
        try:
            return arrivals_after(
                self._opened(), self._query, after, up_to=up_to, most_records=most_records, most_bytes=most_bytes,
                cache=self._cache,
            )  # fmt: skip
        except sqlite3.DatabaseError as error:
            self.close()
            raise storage_error(self._store, error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = open_for_reading(self._store)
        return self._db
