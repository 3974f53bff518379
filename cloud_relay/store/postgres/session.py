"""One connection to PostgreSQL for one thread at a time: calls that wait, each with a bound, and errors of ours.

asyncpg is made for an event loop. Those who use a session are threads that have nothing else to do while they wait, so
each session has a loop of its own, which runs while one of its calls does. Whatever fails in an unclear way, a time-out
or a lost connection, ends the connection: what became of the statement is unknown then, and the next one begins anew.
"""

import asyncio
import ssl
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import asyncpg

from cloud_relay.store.places import PostgresPlace
from protocols.base.errors import ConfigError, StorageError

CONNECT_S: Final = 5.0
SCHEMA: Final = "meshnode"
"""Where the tables are, so that a database may have others too."""
MIN_SERVER: Final = 130_000
"""PostgreSQL 13: numbers of transactions have 64 bits since then."""
MAX_PASSWORD_BYTES: Final = 4_096
LOST: Final = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError, asyncpg.InternalClientError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)  # fmt: skip
"""The server is away, restarts, fails over or is too busy: the same may succeed on another connection."""
CLASHES: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
"""Another transaction was in the way: the same may succeed again."""
ERRORS: Final = (*LOST, *CLASHES, asyncpg.PostgresError)
"""All that a call may raise."""

_SETTINGS: Final = {
    "search_path": SCHEMA,
    "application_name": "cloud-relay",
    "timezone": "UTC",
    "jit": "off",  # it takes longer to compile our statements than to run them
    "max_parallel_workers_per_gather": "0",
    "idle_in_transaction_session_timeout": "10s",
    # A relay whose host is gone holds its locks no longer than this.
    "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3", "tcp_user_timeout": "10s",
}  # fmt: skip
BY_INDEX: Final = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
"""Settings of a session whose statements name some rows of large tables, which are not to be gone through."""
ResultT = TypeVar("ResultT")


class PostgresSession:
    """Connects when it is used. ``statement_s`` bounds each statement at the server, and a second more does here."""

    def __init__(
        self, place: PostgresPlace, statement_s: float, settings: Mapping[str, str], *, writes: bool = False
    ) -> None:
        """``writes``: of several hosts the one that takes writes is used."""
        self.place = place
        self._statement_s = statement_s
        self._settings = {**_SETTINGS, **settings, "statement_timeout": f"{statement_s:g}s"}
        self._target = "read-write" if writes else "any"
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection | None = None
        self.until_s = float("inf")
        """By the monotonic clock: no call waits beyond."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._connection is not None and not self._connection.is_closed()

    def connect(self) -> None:
        """Connect, unless there is a connection. It may raise ``ERRORS``.

        :raises StorageError: server, password or certificate can't be used.
        """
        if self.is_connected:
            return
        self.drop()
        tls, password = _tls_context(self.place), _password(self.place)
        self._connection = self._run(
            asyncpg.connect(
                self.place.dsn, password=password, ssl=tls or False, server_settings=self._settings,
                target_session_attrs=self._target, timeout=CONNECT_S,
            ),
            CONNECT_S,
        )  # fmt: skip
        facts = self.row("SELECT current_setting('server_version_num')::int, current_setting('server_encoding')")
        if facts[0] < MIN_SERVER or facts[1] != "UTF8":
            self.drop()
            raise StorageError(
                f"the store {self.place} can't be used: it is PostgreSQL {facts[0] // 10_000} with the encoding "
                f"{facts[1]}: use 13 or newer, and a database made with ENCODING 'UTF8'"
            )

    def drop(self) -> None:
        """End the connection at once, whatever is under way."""
        if self._connection is not None:
            with suppress(*ERRORS):
                self._connection.terminate()
            self._connection = None
            self._loop.run_until_complete(asyncio.sleep(0))  # the transport closes its socket in the loop

    def close(self) -> None:
        """End it for good. Idempotent."""
        if not self._loop.is_closed():
            self.drop()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()

    # --- statements; each may raise ERRORS, or ValueError for a value that no column holds ----------------------------
    def rows(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """All rows of a statement."""
        return list(self._run(self._open.fetch(statement, *values)))

    def row(self, statement: str, *values: object) -> asyncpg.Record:
        """The first row of a statement that has one."""
        found = self._run(self._open.fetchrow(statement, *values))
        assert found is not None, "the statement has a row"
        return found

    def execute(self, statement: str, *values: object) -> None:
        """Run a statement. Without values it may be several."""
        self._run(self._open.execute(statement, *values))

    def copy(self, table: str, columns: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
        """Add rows to a table by COPY."""
        self._run(self._open.copy_records_to_table(table, schema_name=SCHEMA, columns=columns, records=rows))

    def each(self, statement: str, *values: object, size: int = 1_000) -> Iterator[asyncpg.Record]:
        """The rows of a statement, which the server keeps until they are asked for; inside a transaction."""
        cursor = self._run(self._open.cursor(statement, *values))
        while rows := self._run(cursor.fetch(size)):
            yield from rows

    @contextmanager
    def transaction(self, begin: str = "BEGIN") -> Iterator[None]:
        """A transaction. It is committed at the end of the block, or rolled back."""
        self.execute(begin)
        try:
            yield
            # A statement that is cancelled while a standby is waited for counts as committed, though the standby does
            # not have it. So the bound of statements ends before it, and a commit is waited for here.
            self.execute("SET LOCAL statement_timeout = 0; COMMIT")
        except BaseException:
            if self.is_connected:
                try:
                    self.execute("ROLLBACK")
                except ERRORS:
                    self.drop()
            raise

    @contextmanager
    def waits(self, statement_s: float) -> Iterator[None]:
        """Let statements take longer here; the bound of the server is for the caller to set."""
        before, self._statement_s = self._statement_s, statement_s
        try:
            yield
        finally:
            self._statement_s = before

    @property
    def _open(self) -> asyncpg.Connection:
        if self._connection is None:
            raise asyncpg.InterfaceError("not connected")
        return self._connection

    def _run(self, call: Coroutine[Any, Any, ResultT], most_s: float | None = None) -> ResultT:
        within_s = min(self._statement_s + 1.0 if most_s is None else most_s, self.until_s - time.monotonic())
        try:
            return self._loop.run_until_complete(_bounded(call, within_s))
        except (*LOST, asyncio.CancelledError) as error:
            self.drop()
            if _is_about_a_value(error):
                raise ValueError(f"PostgreSQL can't hold a value: {error}") from error  # and would not later either
            raise


def _is_about_a_value(error: BaseException) -> bool:
    """Whether asyncpg could not encode a value. Its error for this is one of its interface, too."""
    return isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)


async def _bounded(call: Coroutine[Any, Any, ResultT], within_s: float) -> ResultT:
    async with asyncio.timeout(max(within_s, 0.0)):
        return await call


def postgres_error(place: PostgresPlace, error: Exception) -> StorageError:
    """An error that says what happened, and the way out."""
    said = " ".join(str(error).split()) or "no answer in time"
    match error:
        case StorageError():
            return error
        case asyncpg.InvalidAuthorizationSpecificationError():
            way_out = "check the user, and the password by password_file in [store] or PGPASSWORD"
        case asyncpg.InvalidCatalogNameError():
            way_out = "create the database, or name another one"
        case asyncpg.InsufficientPrivilegeError():
            way_out = "make the user the owner of the database, or grant it what it needs"
        case asyncpg.InvalidSchemaNameError() | asyncpg.UndefinedTableError():
            way_out = "start a relay on it once, or name the right database"
        case asyncpg.QueryCanceledError():
            way_out = "it is too slow: ask for less, or give it more room"
        case asyncpg.DiskFullError():
            way_out = "free space on the disk of the server"
        case ssl.SSLError():
            way_out = "name the authority of the server's certificate by sslrootcert in the URL"
        case _ if isinstance(error, LOST):
            way_out = "start the server, or name the right host and port"
        case _:
            way_out = "the log of the server says more"
    return StorageError(f"the store {place} can't be used: {type(error).__name__}: {said[:300]}; {way_out}")


def _password(place: PostgresPlace) -> str | None:
    """None: ``PGPASSWORD`` or ``~/.pgpass`` has it, or none is needed."""
    if place.password_file is None:
        return None
    try:
        with place.password_file.open("rb") as file:
            return file.read(MAX_PASSWORD_BYTES).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"the password file {place.password_file} of the store can't be read: name a file that holds nothing else"
        ) from error


def _tls_context(place: PostgresPlace) -> ssl.SSLContext | None:
    if place.tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=place.tls.authority)
        context.check_hostname = place.tls.checks_name
        if place.tls.certificate is not None:
            context.load_cert_chain(*place.tls.certificate)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificates of the store {place} can't be used ({error}): name files in PEM by sslrootcert, sslcert "
            "and sslkey in its URL"
        ) from error
    return context
