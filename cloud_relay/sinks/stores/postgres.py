"""The store of one sink in PostgreSQL. Any relay that has the sink delivers it, one at a time, and none leads.

A relay holds a sink by a lock of its connection, which ends with the relay, its host or its way to the server. Whoever
takes it writes that down as the next holder, so that one who was cut off and does not know it yet can save nothing. The
progress is a row, so whoever goes on knows what was confirmed and what was under way.

Numbers of records begin with that of their transaction, so a difference of two says nothing. Records behind a position
are counted along an index, a bounded number, and where they are many with a fiftieth of the time. Retention notes in
its own transaction what it deletes beyond the position of a sink, which counts it when it comes to it.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from cloud_relay.query.readers.postgres.reading import IN_ORDER, PostgresReader
from cloud_relay.query.selection import Query
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import SinkProgress
from cloud_relay.sinks.stores.contract import Extended, Skip, extended, room_bytes
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.schema import SETTLED, check_version
from cloud_relay.store.postgres.session import ERRORS, PostgresSession, postgres_error
from protocols.base.errors import StorageError

SINKS: Final = 0x6D6E7276
"""With the number of a sink the lock of whoever delivers it."""
STATEMENT_S: Final = 5.0
_END: Final = 2**63 - 1
"""Beyond all numbers of records."""
MAX_BEHIND: Final = 1_000_000
"""Records that are counted behind a position; there may be more."""
_SLICE: Final = 16_384
"""Records that one statement counts, in some 5 ms."""
_REST: Final = 49
"""After a long count there are so many times as long until the next time."""
_SETTINGS: Final = {"lock_timeout": "4s", **IN_ORDER}
_TAKE: Final = "SELECT number, pg_try_advisory_lock($2, (number % 2147483648)::int) FROM sinks WHERE name = $1"
_SAVE: Final = """
WITH saved AS (UPDATE sinks SET progress = $3, position = $4 WHERE number = $1 AND holder = $2 RETURNING number),
    past AS (DELETE FROM sink_deletions USING saved WHERE sink = saved.number AND last <= $4)
SELECT count(*) FROM saved
"""
_DELETED: Final = (
    "SELECT coalesce(sum(records) FILTER (WHERE last <= $3), 0)::bigint, coalesce(bool_or(first <= $3), false)"
    " FROM sink_deletions WHERE sink = $1 AND last > $2"
)
_BEHIND: Final = (
    "SELECT count(*), coalesce(max(number), $1) FROM (SELECT number FROM records WHERE number > $1"  # noqa: S608 - constants only
    f" AND number <= $2 AND number < {SETTLED} ORDER BY number LIMIT {_SLICE}) AS slice"
)
_BEFORE: Final = (
    "SELECT count(*), coalesce(min(number), $1) FROM (SELECT number FROM records WHERE number > $1 AND number < $2"  # noqa: S608 - constants only
    f" AND number < {SETTLED} ORDER BY number DESC LIMIT $3) AS slice"
)
ResultT = TypeVar("ResultT")


class PostgresSinkStore:
    """A :class:`~cloud_relay.sinks.stores.contract.SinkStore`. Its connection has a thread of its own: a session has an
    event loop, and the thread of a sink is in one already."""

    def __init__(self, place: PostgresPlace, query: Query, name: str, is_stopping: Callable[[], bool]) -> None:
        self._place, self._query, self._name, self._is_stopping = place, query, name, is_stopping
        self._session: PostgresSession | None = None
        self._calls = ThreadPoolExecutor(1, thread_name_prefix=f"sink {name}"[:15])
        self._number = self._holder = 0
        """Of the sink, and of this relay's turn with it; 0: it is not ours."""
        self._counted, self._count_again_s, self._look_again_s = 0, 0.0, 0.0
        self._is_closed = False

    @property
    def is_held(self) -> bool:
        """Whether this sink is ours, as far as is known."""
        return self._holder != 0

    def take(self) -> bool:
        """Become the one who delivers."""
        return self._call(self._take)

    def give_way(self) -> None:
        """Let another relay take the sink."""
        self._calls.submit(self._let_go).result()

    def load(self) -> SinkProgress | None:
        """The progress that was saved last."""
        return self._call(self._load)

    def save(self, progress: SinkProgress) -> None:
        """Have it in the database."""
        self._call(lambda session: self._save(session, progress))

    def newest(self) -> int:
        """The number of the record that was stored last."""
        return self._call(lambda session: PostgresReader(session).newest_number())

    def extend(self, portion: Portion, most_records: int, limit: int | None) -> Extended:
        """The portion after one more look."""
        return self._call(lambda session: self._extend(session, portion, most_records, limit))

    def behind(self, position: int) -> int:
        """How many records were stored after a number, at most :data:`MAX_BEHIND`, or how many it were lately."""
        began_s = time.monotonic()
        if began_s >= self._count_again_s:
            self._counted = self._call(lambda session: self._count(session, position, _END, MAX_BEHIND))
            is_short = self._counted < _SLICE  # no more than a look goes through
            self._count_again_s = began_s if is_short else _rested(began_s)
        return self._counted

    def between(self, position: int, up_to: int) -> int:
        """How many records there are, or were."""
        return self._call(lambda session: self._between(session, position, up_to))

    def skip(self, position: int, most_behind: int) -> Skip | None:
        """What has to be left out. It is looked at with a fiftieth of the time."""
        began_s = time.monotonic()
        if began_s < self._look_again_s:
            return None
        found = self._call(lambda session: self._skip(session, position, most_behind))
        self._look_again_s = _rested(began_s)
        return found

    def close(self) -> None:
        """Let go of the sink."""
        if not self._is_closed:
            self._is_closed = True
            self._calls.submit(self._let_go).result()
            self._calls.shutdown()

    # --- on the thread of the connection -----------------------------------------------------------------------------
    def _call(self, work: Callable[[PostgresSession], ResultT]) -> ResultT:
        """Do something with the connection, which is made if there is none."""
        return self._calls.submit(self._run, work).result()

    def _run(self, work: Callable[[PostgresSession], ResultT]) -> ResultT:
        try:
            return work(self._connected())
        except ERRORS as error:
            self._drop()
            raise postgres_error(self._place, error) from error

    def _connected(self) -> PostgresSession:
        if self._session is None:
            self._session = PostgresSession(self._place, STATEMENT_S, _SETTINGS, writes=True)
        if not self._session.is_connected:
            if self._holder:  # the lock went with the connection: who reads on would deliver what is not his
                raise self._lost()
            self._session.connect()
            check_version(self._session)
        return self._session

    def _lost(self) -> StorageError:
        self._drop()
        return StorageError(f"the connection of sink {self._name!r} to {self._place} was lost: it is taken anew")

    def _let_go(self) -> None:
        """Free the lock at once: the server may take its time to notice that a connection has ended."""
        if self._holder and self._session is not None and self._session.is_connected:
            with suppress(*ERRORS):
                self._session.rows("SELECT pg_advisory_unlock_all()")
        self._drop()

    def _drop(self) -> None:
        self._holder = 0
        if self._session is not None:
            self._session.close()
            self._session = None

    def _take(self, session: PostgresSession) -> bool:
        if self._holder:
            return True
        session.execute("INSERT INTO sinks (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", self._name)
        self._number, is_free = session.row(_TAKE, self._name, SINKS)
        if is_free:
            self._holder = session.row(
                "UPDATE sinks SET holder = holder + 1 WHERE number = $1 RETURNING holder", self._number
            )[0]
        return bool(is_free)

    def _load(self, session: PostgresSession) -> SinkProgress | None:
        rows = session.rows("SELECT progress FROM sinks WHERE name = $1 AND progress IS NOT NULL", self._name)
        try:
            return msgspec.json.decode(rows[0][0], type=SinkProgress) if rows else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(
                f"the progress of sink {self._name!r} in {self._place} can't be read ({error}): restore it, or delete "
                "its row in the table sinks and the sink begins anew"
            ) from error

    def _save(self, session: PostgresSession, progress: SinkProgress) -> None:
        saved = bool(self._holder) and session.row(
            _SAVE, self._number, self._holder, msgspec.json.encode(progress), progress.position
        )[0]  # fmt: skip
        if not saved:
            raise self._lost()

    def _extend(self, session: PostgresSession, portion: Portion, most_records: int, limit: int | None) -> Extended:
        up_to = _END if limit is None else limit
        # What is deleted between two statements of different moments would be neither there nor counted.
        with session.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            found = PostgresReader(session).next_arrivals(
                self._query, portion.last, up_to=up_to, most_records=most_records - len(portion.records),
                most_bytes=room_bytes(portion.records),
            )  # fmt: skip
            deleted, is_thinned = session.row(_DELETED, self._number, portion.last, found.reached)
        return extended(portion, found._replace(deleted=deleted), most_records, limit, is_thinned)

    def _skip(self, session: PostgresSession, position: int, most_behind: int) -> Skip | None:
        before, left = _END, most_behind + 1
        while left:
            count, before = session.row(_BEFORE, position, before, min(left, _SLICE))
            left -= count
            if left and count < _SLICE:
                return None
            self._check_stopping()
        return Skip(before, self._between(session, position, before))

    def _between(self, session: PostgresSession, position: int, up_to: int) -> int:
        """Retention's notes go when the position passes them, so what they say is counted here or nowhere."""
        deleted = session.row(_DELETED, self._number, position, up_to)[0]
        return int(self._count(session, position, up_to, _END) + deleted)

    def _count(self, session: PostgresSession, position: int, up_to: int, most: int) -> int:
        """How many records there are after a number and up to another one, at most so many."""
        found = 0
        while found < most:
            count, position = session.row(_BEHIND, position, up_to)
            found += count
            if count < _SLICE:
                break
            self._check_stopping()
        return min(found, most)

    def _check_stopping(self) -> None:
        if self._is_stopping():
            raise StorageError("the relay stops")


def _rested(began_s: float) -> float:
    """When to do again what began then and is over."""
    now_s = time.monotonic()
    return now_s + _REST * (now_s - began_s)
