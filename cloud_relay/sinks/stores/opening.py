"""The store of a sink, whichever it is in."""

from collections.abc import Callable
from pathlib import Path

from cloud_relay.sinks.progress import ProgressFile
from cloud_relay.sinks.settings import SinkSettings
from cloud_relay.sinks.stores.contract import SinkStore
from cloud_relay.sinks.stores.sqlite import SqliteSinkStore
from cloud_relay.store.opening import asyncpg_is_there
from cloud_relay.store.places import StorePlace


def sink_store(
    place: StorePlace, settings: SinkSettings, folder: Path, is_stopping: Callable[[], bool] = lambda: False
) -> SinkStore:
    """The store for a sink. Nothing is opened yet. ``folder``: where its files are. What takes long ends when
    ``is_stopping`` says so.

    :raises ConfigError: it is in PostgreSQL, and asyncpg is missing.
    """
    if isinstance(place, Path):
        return SqliteSinkStore(place, settings.query, ProgressFile(folder, settings.name))
    asyncpg_is_there()
    from cloud_relay.sinks.stores.postgres import PostgresSinkStore

    return PostgresSinkStore(place, settings.query, settings.name, is_stopping)
