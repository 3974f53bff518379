"""How large the store is, as metrics. What is asked of it takes no longer with more records, only with more streams."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cloud_relay.metrics.families import gauge

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_BESIDE: Final = ("", "-wal", "-shm")
"""Files of SQLite, by what is added to their name."""


class StoreFigures(NamedTuple):
    """What a store has."""

    records: int
    streams: int
    """Keys, each by node and rule."""
    origins: int
    """Nodes that sent something."""
    size_bytes: int


def store_figures(db: sqlite3.Connection, path: Path) -> StoreFigures:
    """The figures of an open store. :raises sqlite3.Error: it is of an earlier version."""
    records, streams = db.execute("SELECT coalesce(sum(records), 0), count(*) FROM streams").fetchone()
    origins = db.execute("SELECT count(*) FROM origins").fetchone()[0]
    files = [path.with_name(path.name + added) for added in _BESIDE]
    return StoreFigures(records, streams, origins, sum(file.stat().st_size for file in files if file.exists()))


def store_families(figures: StoreFigures | None) -> "Iterable[Metric]":
    """The families. None: the store can't be read."""
    yield gauge("store_readable", "1 while the store can be read.", [((), float(figures is not None))])
    if figures is not None:
        yield gauge("store_records", "Records in the store.", [((), float(figures.records))])
        yield gauge("store_streams", "Keys with records, each by node and rule.", [((), float(figures.streams))])
        yield gauge("store_origins", "Nodes that have sent something.", [((), float(figures.origins))])
        yield gauge("store_size_bytes", "What the store takes on the disk.", [((), float(figures.size_bytes))])
