"""The history of a node that does not run, for commands. Nothing in its folder is changed."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from meshnode.history.store import FOLDER, HistoryStore
from protocols.base.errors import StorageError

__all__ = ["FOLDER", "stored_history"]


@contextmanager
def stored_history(folder: Path) -> Iterator[HistoryStore]:
    """The history in a folder, to ask it. :raises StorageError: there is none, a node uses it, or the disk fails."""
    store = HistoryStore(folder, max_bytes=0, keep_ns=0)
    with TemporaryDirectory(prefix="meshnode-") as scratch:
        try:
            store.open_for_reading(Path(scratch))
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"the history in {folder} can't be read: {error}; look at that disk") from error
        try:
            yield store
        finally:
            store.close()
