"""The store of a sink, whichever it is in."""

from pathlib import Path

from cloud_relay.sinks.progress import ProgressFile
from cloud_relay.sinks.settings import SinkSettings
from cloud_relay.sinks.stores.contract import SinkStore
from cloud_relay.sinks.stores.sqlite import SqliteSinkStore
from cloud_relay.store.places import StorePlace, sqlite_path


def sink_store(place: StorePlace, settings: SinkSettings, folder: Path) -> SinkStore:
    """The store for a sink. Nothing is opened yet. ``folder``: where its files are.

    :raises ConfigError: it is not in SQLite.
    """
    return SqliteSinkStore(
        sqlite_path(place, "records for sinks are"), settings.query, ProgressFile(folder, settings.name)
    )
