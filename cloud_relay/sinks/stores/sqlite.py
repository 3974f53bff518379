"""The store of one sink in SQLite, which one relay has for itself. The progress is a file beside it.

Numbers have no gaps but those that retention leaves, so a difference of two is about the number of records.
"""

import sqlite3
from pathlib import Path
from typing import Final

from cloud_relay.query.arrivals import RecordArrivals, arrivals_after
from cloud_relay.query.selection import LAST_UTC_NS, Query
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import ProgressFile, SinkProgress
from cloud_relay.sinks.stores.contract import Extended, Skip, extended, room_bytes
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.schema import open_for_reading, storage_error

_CACHE_BYTES: Final = 8 * 1024 * 1024
"""Of packs that are kept from one look to the next, which mostly is at the same pack."""


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

    def extend(self, portion: Portion, most_records: int, limit: int | None) -> Extended:
        """The portion with the records that one look finds after it, up to the number ``limit``, if there is one.

        :raises StorageError: the store can't be read.
        """
        up_to = LAST_UTC_NS if limit is None else limit
        found = self._look(portion.last, up_to, most_records - len(portion.records), room_bytes(portion.records))
        return extended(portion, found, most_records, limit, found.deleted > 0)

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


class SqliteSinkStore(RecordReader):
    """A :class:`~cloud_relay.sinks.stores.contract.SinkStore`. The sink is ours: the folder of ``file`` is locked."""

    is_held = True

    def __init__(self, store: Path, query: Query, file: ProgressFile) -> None:
        super().__init__(store, query)
        self._file = file

    def give_way(self) -> None:
        """There is no other relay."""

    def load(self) -> SinkProgress | None:
        """What is in the file."""
        return self._file.load()

    def save(self, progress: SinkProgress) -> None:
        """Have it in the file."""
        self._file.save(progress)

    def take(self) -> bool:
        """It is ours already."""
        return True

    def behind(self, position: int) -> int:
        """How many numbers were given after one."""
        return max(self.newest() - position, 0)

    def between(self, position: int, up_to: int) -> int:
        """How many numbers there are."""
        return up_to - position

    def skip(self, position: int, most_behind: int) -> Skip | None:
        """What has to be left out."""
        number = self.newest() - most_behind
        return Skip(number, number - position) if number > position else None
