"""Questions to a store take as long as they take: a page that ends early, because the machine stood still for half a
second, is a right answer, and not the one that a test is about."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

from cloud_relay.query import aggregating, kept, newest, nodes, searching
from cloud_relay.query.readers.sqlite import SqliteReader

PATIENCE_S: Final = 120.0


def patient(*asked: Callable[..., Any]) -> None:
    """Give functions this patience where they have the usual one."""
    for one in asked:
        given = one.__defaults__ or ()  # type: ignore[attr-defined]
        assert searching.PATIENCE_S in given, one
        one.__defaults__ = tuple(PATIENCE_S if each == searching.PATIENCE_S else each for each in given)  # type: ignore[attr-defined]


patient(searching.find_page, newest.newest_page, kept.kept_page, SqliteReader.page, SqliteReader.newest)
nodes.PATIENCE_S = aggregating.PATIENCE_S = PATIENCE_S  # type: ignore[misc]
if find_spec("asyncpg") is not None:
    from cloud_relay.query.readers.postgres import reading

    patient(reading.PostgresReader.page, reading.PostgresReader.newest)
    reading.AGGREGATING_S = PATIENCE_S  # type: ignore[misc]
