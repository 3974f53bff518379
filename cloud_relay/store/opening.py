"""Opens whichever store a configuration names, for batches."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.store.contract import RecordStore
from cloud_relay.store.places import StorePlace
from cloud_relay.store.sqlite import Store
from protocols.base.errors import ConfigError


def open_store(place: StorePlace, aggregates: Sequence[AggregateDefinition] | None = None) -> RecordStore:
    """A store that takes batches, and keeps ``aggregates``, see :class:`~cloud_relay.store.sqlite.Store`.

    :raises StorageError: it can't be used; says why and the way out.
    :raises ConfigError: it is in PostgreSQL, and asyncpg is missing.
    """
    if isinstance(place, Path):
        return Store(place, aggregates=aggregates)
    asyncpg_is_there()
    from cloud_relay.store.postgres.writing import PostgresStore

    return PostgresStore(place, aggregates=aggregates)


def asyncpg_is_there() -> None:
    """:raises ConfigError: it is not."""
    if find_spec("asyncpg") is None:
        raise ConfigError("a store in PostgreSQL needs asyncpg: run pip install 'meshnode[postgresql]'")
