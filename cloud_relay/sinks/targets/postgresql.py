"""Records into a table of PostgreSQL, with the columns of an export.

The key is (origin, sequence), and a row that is there is left alone, so what comes twice is there once. A portion is
one transaction. The table is made if it is missing, unless ``create_table = false``. Errors of the classes 22, 23 and
54 (data, constraints, limits) are about a row and refuse it; a text with U+0000, which PostgreSQL can't hold, is one.
All others are about the server, the table or rights, and are tried again.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from cloud_relay.export.columns import EXPORTED, Column, row_of_record
from cloud_relay.sinks.contract import DeliveryFailed, DeliveryRefused, Portion, SinkTarget
from cloud_relay.sinks.settings import SinkSettings

DEFAULT_PORT: Final = 5432
_REFUSING: Final = ("22", "23", "54")
_TYPES: Final = {
    "text": "text", "texts": "text[]", "integer": "bigint", "real": "double precision", "truth": "boolean",
    "time": "timestamptz",
}  # fmt: skip
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class PostgresqlTarget(SinkTarget):
    """One connection, to the first of the hosts that takes writes."""

    most_records = 1_000

    def __init__(self, settings: SinkSettings) -> None:
        self._settings = settings
        self._db: asyncpg.Connection[asyncpg.Record] | None = None
        table = '"' + settings.own["table"].replace(".", '"."') + '"'  # the settings let only a-z, 0-9, _ through
        names = ", ".join(f'"{column.name}"' for column in EXPORTED)
        marks = ", ".join(f"${number}" for number in range(1, len(EXPORTED) + 1))
        columns = ", ".join(f'"{column.name}" {_type(column)}' for column in EXPORTED)
        self._create = f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY (origin, sequence))"
        self._insert = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (origin, sequence) DO NOTHING"  # noqa: S608

    async def open(self) -> None:
        """Connect, and make the table."""
        settings, password = self._settings, self._settings.secrets.get("password")
        hosts = settings.hosts(DEFAULT_PORT)
        try:
            self._db = await asyncpg.connect(
                host=[host for host, _ in hosts],
                port=[port for _, port in hosts],
                user=settings.own["user"] or None,
                password=None if password is None else password.read(),
                database=settings.path,
                ssl=False if settings.tls is None else settings.tls.context(),
                timeout=settings.timeout_s,
                command_timeout=settings.timeout_s,
                target_session_attrs="read-write",
            )
            if settings.own["create_table"]:
                await self._db.execute(self._create)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise DeliveryFailed(f"PostgreSQL can't be used: {error or type(error).__name__}") from error

    async def send(self, portion: Portion) -> None:
        """Insert all records that are not there yet, in one transaction."""
        assert self._db is not None
        rows = [_row(row_of_record(record)) for _, record in portion.records]
        try:
            await self._db.executemany(self._insert, rows)
        except asyncpg.PostgresError as error:
            told = f"PostgreSQL says {error.sqlstate or ''} {error}"
            if (error.sqlstate or "").startswith(_REFUSING) or isinstance(error, asyncpg.DataError):
                raise DeliveryRefused(told) from error
            raise DeliveryFailed(told) from error
        except (asyncpg.InterfaceError, OSError) as error:
            raise DeliveryFailed(f"PostgreSQL can't be used: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Hang up."""
        if self._db is not None:
            self._db.terminate()
            self._db = None


def _type(column: Column) -> str:
    kind = "jsonb" if column.name == "value" else _TYPES[column.kind]
    return kind if column.nullable else f"{kind} NOT NULL"


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    row["event_time"] = _EPOCH + timedelta(microseconds=row["event_time"])
    return tuple(row[column.name] for column in EXPORTED)
