"""A PostgreSQL for the tests of one process.

Import ``given_postgres`` where the fixture ``postgres`` is used, and beside it ``given_empty_place`` for a database
without a store, ``given_session`` to look into that, or ``given_place`` for a place of either kind of store.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgresServer, programs
from cloud_relay.store.places import PostgresPlace, StorePlace, store_place
from cloud_relay.store.postgres.session import PostgresSession


@pytest.fixture(name="postgres", scope="session")
def given_postgres() -> Iterator[PostgresServer]:
    """It is not killed by tests, which have their own then, so it need not sync."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: .ci/servers installs it")
    pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'meshnode[postgresql]'")
    with PostgresServer(syncs=False) as server:
        yield server


def fresh_place(server: PostgresServer) -> PostgresPlace:
    """A database without a store. It is the same one each time: making another takes long."""
    server.sql("DROP SCHEMA IF EXISTS meshnode CASCADE")
    place = store_place(server.url("postgres"), Path("/"))
    assert isinstance(place, PostgresPlace)
    return place


@pytest.fixture(name="place")
def given_empty_place(postgres: PostgresServer) -> PostgresPlace:
    """A database without a store."""
    return fresh_place(postgres)


@pytest.fixture(name="session")
def given_session(place: PostgresPlace) -> Iterator[PostgresSession]:
    """A connection of an operator to that database."""
    session = PostgresSession(place, 60, {"application_name": "operator"})
    session.connect()
    yield session
    session.close()


@pytest.fixture(name="place", params=["sqlite", "postgresql"])
def given_place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """Where a store of each kind is made."""
    if request.param == "sqlite":
        return tmp_path / "relay.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return fresh_place(server)
