"""Opens whichever store a configuration or a person names, for questions."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cloud_relay.query.readers.contract import StoreReader, StoreReaders
from cloud_relay.query.readers.sqlite import SqliteReaders
from cloud_relay.store.opening import asyncpg_is_there
from cloud_relay.store.places import StorePlace


def open_readers(place: StorePlace, most: int) -> StoreReaders:
    """Readers of a store, of which at most ``most`` are in use at once.

    :raises ConfigError: it is in PostgreSQL, and asyncpg is missing.
    """
    if isinstance(place, Path):
        return SqliteReaders(place)
    asyncpg_is_there()
    from cloud_relay.query.readers.postgres.reading import PostgresReaders

    return PostgresReaders(place, most)


@contextmanager
def open_reader(place: StorePlace) -> Iterator[StoreReader]:
    """One reader of a store. :raises StorageError: it can't be read."""
    with closing(open_readers(place, 1)) as readers, readers.reader() as reader:
        yield reader
