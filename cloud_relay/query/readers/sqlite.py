"""Questions to a store in SQLite: each function of this package, on one connection."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_relay.metrics.stored import StoreFigures, store_figures
from cloud_relay.query.aggregating import AggregateQuery, aggregates
from cloud_relay.query.arrivals import RecordArrivals, arrivals_after
from cloud_relay.query.audit import OriginAccount, audit
from cloud_relay.query.newest import newest_page
from cloud_relay.query.proofs import proof_of
from cloud_relay.query.readers.sqlite_groups import SqliteGroups
from cloud_relay.query.searching import PATIENCE_S, RecordPage, find_page
from cloud_relay.query.selection import Query
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.schema import open_for_reading, storage_error


@dataclass(frozen=True, slots=True)
class SqliteReader:
    """A :class:`~cloud_relay.query.readers.contract.StoreReader`."""

    db: sqlite3.Connection
    path: Path
    cache: PackCache | None = None
    """That of the store for all readers."""

    def page(self, query: Query, patience_s: float = PATIENCE_S) -> RecordPage:
        """One page."""
        return find_page(self.db, query, patience_s, self.cache)

    def newest(self, query: Query, after_key: str | None = None, patience_s: float = PATIENCE_S) -> RecordPage:
        """The newest record of each key."""
        return newest_page(self.db, query, after_key, patience_s, self.cache)

    def aggregates(self, query: AggregateQuery) -> list[dict[str, Any]]:
        """Numbers about many records."""
        return aggregates(self.db, query, self.cache)

    def newest_number(self) -> int:
        """The number of the record that was stored last."""
        return newest_number(self.db)

    def arrivals(self, query: Query, number: int) -> RecordArrivals:
        """What was stored after a number."""
        return arrivals_after(self.db, query, number, cache=self.cache)

    def state(self) -> str:
        """It differs whenever a record was added, or a receipt, which shows in records too, or retention deleted
        records: while there is no newer pack, what is left in packs only becomes less."""
        counts = self.db.execute(
            "SELECT (SELECT max(rowid) FROM records), (SELECT max(number) FROM receipts),"
            " (SELECT max(pack) FROM packs), (SELECT total(records) FROM packs)"
        ).fetchone()
        return repr((self.made(), counts))

    def made(self) -> int:
        """Which file it is: another one may have been put into its place."""
        return self.path.stat().st_ino

    def figures(self) -> StoreFigures:
        """How large it is."""
        return store_figures(self.db, self.path)

    def kept(self) -> SqliteGroups:
        """What is kept beside the records."""
        return SqliteGroups(self.db, self.made())

    def audit(self) -> list[OriginAccount]:
        """The accounts of all origins."""
        return audit(self.db)

    def proof(self, origin: str, sequence: int) -> bytes:
        """The proof of a stored record."""
        return proof_of(self.db, origin, sequence)


class SqliteReaders:
    """Opens the file for each reader, so that the file may be exchanged while a relay runs. What is read out of packs
    is kept from one reader to the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._cache, self._cached_file = PackCache(), (0, 0)

    @contextmanager
    def reader(self) -> Iterator[SqliteReader]:
        """A reader for one thread. What SQLite says of the file while it is used becomes a StorageError."""
        cache = self._cache_of_file()
        with closing(open_for_reading(self._path)) as db:
            try:
                yield SqliteReader(db, self._path, cache)
            except sqlite3.DatabaseError as error:
                raise storage_error(self._path, error) from error

    def close(self) -> None:
        """Nothing is open."""

    def _cache_of_file(self) -> PackCache:
        """Another file has another cache, although its packs may look the same."""
        try:
            status = self._path.stat()
        except OSError:  # whoever opens it tells why
            return PackCache()
        file = status.st_dev, status.st_ino
        with self._lock:
            if file != self._cached_file:
                self._cache, self._cached_file = PackCache(), file
            return self._cache
