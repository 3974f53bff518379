"""Opens whichever store a configuration or a person names, for questions."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cloud_relay.query.readers.contract import StoreReader, StoreReaders
from cloud_relay.query.readers.sqlite import SqliteReaders


def open_readers(place: Path) -> StoreReaders:
    """Readers of a store."""
    return SqliteReaders(place)


@contextmanager
def open_reader(place: Path) -> Iterator[StoreReader]:
    """One reader of a store. :raises StorageError: it can't be read."""
    with closing(open_readers(place)) as readers, readers.reader() as reader:
        yield reader
