"""A store in PostgreSQL, written by any number of relays at once, of which none leads.

Two threads take groups of batches, so that one prepares rows while the server works for the other. Each has a
connection of its own. When the server is away or fails over, a group is tried again on a new connection, as long as
those who sent it still wait; after that they are told, and their nodes keep the records. A commit of which nothing came
back is tried again, too: records that are there already are acknowledged and not stored twice.

A third thread looks for what other relays stored, so that live streams show it.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.store.contract import StorableBatch
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.aggregates.following import configure
from cloud_relay.store.postgres.aggregates.keeping import FollowingThread
from cloud_relay.store.postgres.group import Answer, StoredTally, commit_group
from cloud_relay.store.postgres.schema import SETTLED, prepare_store
from cloud_relay.store.postgres.session import CLASHES, ERRORS, LOST, PostgresSession, postgres_error
from cloud_relay.store.turns import Turns
from meshnode.backoff import Backoff
from protocols.base.errors import MeshError, StorageError

WRITERS: Final = 2
MAX_WAITING_BATCHES: Final = 64
"""Batches that wait for the database, of at most 1 MiB each."""
MAX_GROUP_BATCHES: Final = 16
"""Batches in one transaction, each of another node."""
PATIENCE_S: Final = 7.0
"""For which a batch is tried, from when it came: less than its node waits, and than ingest does."""
STATEMENT_S: Final = 5.0
START_PATIENCE_S: Final = 30.0
"""For which a relay that starts waits for the server, which may start at the same time."""
LOOK_S: Final = 0.5
"""Between two looks for what others stored."""
_SETTINGS: Final = {"lock_timeout": "4s"}
_NEWEST: Final = f"SELECT max(number) FROM records WHERE number < {SETTLED}"  # noqa: S608 - constants only
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_log = logging.getLogger(__name__)


class _Waiting:
    """A batch, who waits for it, and until when it is worth trying."""

    __slots__ = ("batch", "done", "until_s")

    def __init__(self, batch: StorableBatch) -> None:
        self.batch = batch
        self.done: Future[Answer] = Future()
        self.until_s = time.monotonic() + PATIENCE_S


class PostgresStore:
    """A :class:`~cloud_relay.store.contract.RecordStore`. :mod:`cloud_relay.query.readers.postgres` reads it."""

    def __init__(
        self, place: PostgresPlace, clock: Callable[[], int] = time.time_ns,
        aggregates: Sequence[AggregateDefinition] | None = None,
    ) -> None:  # fmt: skip
        """Make the tables if they are missing, and begin to take batches. ``clock`` gives UTC nanoseconds.
        ``aggregates`` are kept from now on, and others are dropped; None: those that the store has.

        :raises StorageError: the database can't be used; says why and the way out.
        """
        self._place, self._clock = place, clock
        self._turns: Turns[_Waiting] = Turns(MAX_WAITING_BATCHES)
        self._counting = threading.Lock()
        self._total = StoredTally()
        self._failures = self._retries = 0
        self._stop = threading.Event()
        self.at_commit: Callable[[], None] = lambda: None
        """Called on one of our threads whenever records were stored."""
        self.at_end: Callable[[float, bool], None] = lambda took_s, done: None
        """Called on one of our threads when a group is over, with how long it took and whether it is on disk."""
        writer = _Writer(place)
        try:
            has_aggregates = self._open(writer, aggregates)
        except BaseException:
            writer.close()
            raise
        writers = [writer, *(_Writer(place) for _ in range(1, WRITERS))]
        self._threads = [threading.Thread(target=self._write, args=(one,), name="store") for one in writers]
        self._following = FollowingThread(place, self._tell) if has_aggregates else None
        self._watcher = threading.Thread(target=self._watch, name="store-watch")
        for thread in (*self._threads, self._watcher):
            thread.start()

    def submit(self, batch: StorableBatch) -> "Future[Answer]":
        """Queue a batch, see the contract. :raises StorageError: when the store is closed."""
        waiting = _Waiting(batch)
        try:
            left = self._turns.put(batch.origin, waiting)
        except ValueError as error:
            raise StorageError("the store is closed: send the batch again later") from error
        if left is not None:
            left.done.set_exception(
                StorageError(f"the store is {MAX_WAITING_BATCHES} batches behind: send the batch again later")
            )
        return waiting.done

    def statistics(self) -> dict[str, int]:
        """Counts of this relay since its start: those of SQLite's store, but for packs, and transactions that
        were tried again."""
        with self._counting:
            return {
                "stored": self._total.stored,
                "repeated": self._total.repeated,
                "conflicts": self._total.conflicts,
                "failures": self._failures,
                "retries": self._retries,
                "batches_gave_way": self._turns.gave_way,
                "batches_waiting": self._turns.waiting,
                "fates_beyond_bounds": self._total.fates_beyond_bounds,
                "aggregate_failures": self._following.failures if self._following else 0,
            }

    def close(self) -> None:
        """Finish what is queued and disconnect. Idempotent."""
        self._turns.close()
        for thread in self._threads:
            thread.join()
        if self._following is not None:
            self._following.close()
        self._stop.set()
        self._watcher.join()

    def _open(self, writer: "_Writer", aggregates: Sequence[AggregateDefinition] | None) -> bool:
        """Wait for the server, and say which aggregates are kept. Returns whether there are any.

        :raises StorageError: it does not come, or waiting would not help.
        """
        ends_s, pause = time.monotonic() + START_PATIENCE_S, Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        told = ""
        while True:
            try:
                writer.connect()
                if aggregates is not None:
                    configure(writer.session, aggregates, self._clock())
                return bool(writer.session.row("SELECT EXISTS (SELECT FROM aggregates)")[0])
            except (*LOST, *CLASHES) as error:
                if time.monotonic() > ends_s or isinstance(error, ssl.SSLError):
                    raise postgres_error(self._place, error) from error
                if (why := str(postgres_error(self._place, error))) != told:
                    _log.warning("%s; it is tried for %g s", why, START_PATIENCE_S)
                told = why
                time.sleep(pause.next_s())
            except ERRORS as error:
                raise postgres_error(self._place, error) from error

    # --- the writing threads ---------------------------------------------------------------------------------------
    def _write(self, writer: "_Writer") -> None:
        while group := self._turns.take(MAX_GROUP_BATCHES):
            now_s = time.monotonic()
            for waiting in group:
                if waiting.until_s <= now_s:  # nobody waits for it any more
                    waiting.done.set_exception(StorageError("the database is too slow: send the batch again later"))
            if alive := [waiting for waiting in group if waiting.until_s > now_s]:
                self._commit(writer, alive)
        writer.close()

    def _commit(self, writer: "_Writer", group: list[_Waiting]) -> None:
        """Commit a group, and tell those who wait."""
        began_s = time.monotonic()
        try:
            answers, tally = self._tried(writer, group)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told and the thread goes on
            if len(group) > 1 and not isinstance(error, (*LOST, *CLASHES, MeshError)):
                for waiting in group:  # one of them has what the database can't take: the others are not to pay for it
                    self._commit(writer, [waiting])
                return
            with self._counting:
                self._failures += 1
            self.at_end(time.monotonic() - began_s, False)
            told = postgres_error(self._place, error)
            _log.error("%s", told)
            for waiting in group:
                waiting.done.set_exception(told)
            return
        self.at_end(time.monotonic() - began_s, True)
        with self._counting:
            for name in StoredTally.__slots__:
                setattr(self._total, name, getattr(self._total, name) + getattr(tally, name))
        for waiting, answer in zip(group, answers, strict=True):
            waiting.done.set_result(answer)
        if tally.stored:
            self._tell()
            self._ring()

    def _tried(self, writer: "_Writer", group: list[_Waiting]) -> tuple[list[Answer], StoredTally]:
        """Commit a group, as often as it takes, while somebody waits for it."""
        until_s = max(waiting.until_s for waiting in group)
        pause = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        batches = [waiting.batch for waiting in group]
        while True:
            try:
                return writer.commit(batches, self._clock(), until_s)
            except (*LOST, *CLASHES) as error:
                writer.session.drop()
                pause_s = pause.next_s()
                if time.monotonic() + pause_s > until_s:
                    raise
                _log.warning("a group of batches is tried again: %s", postgres_error(self._place, error))
            with self._counting:
                self._retries += 1
            time.sleep(pause_s)

    def _ring(self) -> None:
        if self._following is not None:
            self._following.ring()

    def _tell(self) -> None:
        try:
            self.at_commit()
        except Exception:  # noqa: BLE001 - this thread must go on, or every later batch would wait for it
            _log.exception("not everybody was told of what was stored: this is a bug of the relay")

    # --- the watching thread ---------------------------------------------------------------------------------------
    def _watch(self) -> None:
        session = PostgresSession(self._place, STATEMENT_S, {}, writes=True)
        seen = None
        while not self._stop.wait(LOOK_S):
            with suppress(*ERRORS, MeshError):  # the writers say what is wrong
                session.connect()
                newest = session.row(_NEWEST)[0] or 0
                if seen is not None and newest != seen:
                    self._tell()
                    self._ring()
                seen = newest
        session.close()


class _Writer:
    """A connection that writes. Belongs to one thread at a time."""

    def __init__(self, place: PostgresPlace) -> None:
        self.session = PostgresSession(place, STATEMENT_S, _SETTINGS, writes=True)

    def connect(self) -> None:
        """Connect if there is no connection, and find the tables as they should be. It may raise ``ERRORS``."""
        if self.session.is_connected:
            return
        self.session.connect()
        try:
            # A server with `off` would lose what we acknowledge, and with `local` what a standby is for.
            self.session.rows(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
            prepare_store(self.session)
        except BaseException:
            self.session.drop()  # or the next call would take it for prepared
            raise

    def commit(self, batches: list[StorableBatch], now_utc_ns: int, until_s: float) -> tuple[list[Answer], StoredTally]:
        """Commit batches, see :func:`commit_group`."""
        self.session.until_s = until_s
        try:
            self.connect()
            return commit_group(self.session, batches, now_utc_ns)
        finally:
            self.session.until_s = float("inf")

    def close(self) -> None:
        """Disconnect."""
        self.session.close()
