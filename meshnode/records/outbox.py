"""The outbox: records for the relay, on disk until the relay knows their fate.

``protocols.records.ledger`` decides and :mod:`meshnode.records.outbox_file` writes. A record that :meth:`Outbox.put`
returned for survives SIGKILL and loss of power. Puts at the same time share one transaction. What the ledger decides is
written with the next transaction at the latest; when a crash loses that, the records concerned are offered again, and
the relay takes each only once. So a full disk stops new records, with a :class:`StorageError`, and nothing else.

One process at a time may use a file. All methods belong to the event loop that opened the outbox.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from meshnode.records.outbox_file import OutboxDamaged, OutboxFile, RecordRow
from protocols.base.errors import BoundExceeded, LocalProtocolError, StorageError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MAX_RECORD_LIFESPAN_S, SECOND
from protocols.records.curated import Curated
from protocols.records.ledger import Ledger
from protocols.records.pending import OWN
from protocols.records.steps import ClockSteps
from protocols.wire.records import Record

_log = logging.getLogger(__name__)
MAX_WAITING_RECORDS: Final = 8_192
"""Records waiting for a commit. Beyond, the disk is slower than the sensors, and waiting longer would not help."""
MAX_GROUP_RECORDS: Final = 512
"""Records in one transaction, and so the most by which a full ledger can exceed its bounds until the next one."""

_LATEST_UTC_NS: Final = (1 << 63) - 1 - MAX_RECORD_LIFESPAN_S * SECOND
"""In 2261. SQLite can't hold the times at which records expire by a clock that shows a later one."""
_UNUSABLE: Final = (sqlite3.Error, OSError, TypeError, ValueError)
"""What reading and writing a file raises that is damaged, or on a disk that is full or fails."""


def _steady_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _WaitingPut(NamedTuple):
    records: Sequence[Curated]
    done: asyncio.Future[list[int]]


class Outbox:
    """Records that wait for the relay. ``async with Outbox.open(path, …) as outbox:``"""

    def __init__(
        self, path: Path, max_records: int, max_bytes: int, clock: Callable[[], int], steady: Callable[[], int],
        policy: bytes,
    ) -> None:  # fmt: skip
        self._file = OutboxFile(path)
        self._ledger = Ledger(max_records, max_bytes, policy=policy)
        self._clock, self._steady = clock, steady
        self._steps = ClockSteps(UtcNs(min(clock(), _LATEST_UTC_NS)), MonotonicNs(steady()))
        self._unwritten_step_ns = 0
        """By how much the clock was set since the file says when records expire."""
        self._lock = asyncio.Lock()
        self._puts: list[_WaitingPut] = []
        self._waiting = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._failed_puts = self._failed_saves = 0
        self._uncertain = False
        self._writer: asyncio.Task[None]
        self.damage: OutboxDamaged | None = None
        """What was found; the outbox gives no more records then, and whoever opened it begins another one."""
        self.damaged = asyncio.Event()

    @classmethod
    def open(
        cls, path: Path | str, max_records: int, max_bytes: int, clock: Callable[[], int] = time.time_ns,
        steady: Callable[[], int] = _steady_ns, policy: bytes = b"",
    ) -> Self:  # fmt: skip
        """An outbox in the file ``path``, created if missing; opened by ``async with``.

        ``max_records`` and ``max_bytes`` bound what waits, not the file, which grows to somewhat more and is reused.
        ``clock`` gives UTC nanoseconds, and ``steady`` nanoseconds of a clock that never steps and counts all time,
        sleep of the computer too. ``policy``: the digest of the egress policy that records pass before they are put.

        :raises StorageError: on entering: the file can't be used; says why and the way out.
        """
        return cls(Path(path), max_records, max_bytes, clock, steady, policy)

    async def __aenter__(self) -> Self:
        try:
            stored = await self._file.open()
            try:
                self._ledger.restore(*stored)
                self._ledger.bound_expiries(self.utc_now())
            except BaseException:
                await self._file.close()
                raise
        except (OSError, sqlite3.Error, LocalProtocolError, ValueError, TypeError, OverflowError) as error:
            raise self._file.storage_error(error, "can't be opened") from error
        self._writer = asyncio.create_task(self._write_puts(), name="outbox")
        self._changed.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._lock:  # a transaction under way is finished, what waits behind it is turned away
            self._writer.cancel()
        with suppress(asyncio.CancelledError):
            await self._writer
        for put in self._puts:
            if not put.done.done():
                put.done.set_exception(
                    StorageError(f"the outbox {self._file.path} was closed before the record was stored")
                )
        self._puts.clear()
        self.utc_now()
        if self.damage is None:
            with suppress(StorageError):
                await self.save()
        await self._file.close()

    # --- records in ------------------------------------------------------------------------------------------------
    async def put(self, *records: Curated) -> list[int]:
        """Store records and return their sequences once they are on disk: all of them or none.

        When a bound is reached, the payer that gives way loses the oldest of its records of the lowest priority, see
        :mod:`protocols.records.pending`. It may be this one.

        :raises StorageError: the disk is full or fails; nothing was stored and later puts may succeed.
        :raises BoundExceeded: more than ``MAX_WAITING_RECORDS`` wait for the disk.
        """
        if not records:
            return []
        if len(records) > MAX_GROUP_RECORDS or self._waiting + len(records) > MAX_WAITING_RECORDS:
            raise BoundExceeded(
                f"{len(records)} more records for {self._file.path}, where {self._waiting} wait for the disk: put at "
                f"most {MAX_GROUP_RECORDS} at once, slower or with a longer min_interval"
            )
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._puts.append(_WaitingPut(records, done))
        self._waiting += len(records)
        self._wake.set()
        return await done

    async def _write_puts(self) -> None:
        while True:
            await self._wake.wait()
            async with self._lock:
                group: list[_WaitingPut] = []
                count = 0
                while self._puts and count + len(self._puts[0].records) <= MAX_GROUP_RECORDS:
                    count += len(self._puts[0].records)
                    group.append(self._puts.pop(0))
                if not self._puts:
                    self._wake.clear()
                await self._write_group(group)
                self._waiting -= count

    async def _write_group(self, group: list[_WaitingPut]) -> None:
        records = [record for put in group for record in put.records]
        now = self.utc_now()
        try:
            await self._settle()
            entries = self._ledger.upcoming(records, now)
            await self._write([
                (
                    entry.sequence, record.rule, entry.priority, entry.expires_utc_ns, entry.size_bytes,
                    record.reading, entry.payer,
                )
                for entry, record in zip(entries, records, strict=True)
            ])  # fmt: skip
        except _UNUSABLE as error:
            for put in group:
                self._failed_puts += len(put.records)
                if not put.done.done():
                    put.done.set_exception(self._failed(error, f"did not take {len(put.records)} records"))
                    put.done.exception()  # a caller that was cancelled meanwhile needs no log entry
            return
        except BaseException:
            for put in group:
                put.done.cancel()
            raise
        sequence = self._ledger.next_sequence
        self._ledger.issue_all(entries, now)
        for put in group:
            if not put.done.done():
                put.done.set_result(list(range(sequence, sequence + len(put.records))))
            sequence += len(put.records)
        self._changed.set()

    # --- for the uplink --------------------------------------------------------------------------------------------
    async def wait(self) -> None:
        """Return when there may be something to send: after a put, and once after opening."""
        await self._changed.wait()
        self._changed.clear()

    @property
    def ledger(self) -> Ledger:
        """The account. Whoever changes it does so inside :meth:`exclusive`."""
        return self._ledger

    def utc_now(self) -> UtcNs:
        """The time by which records expire. When the clock was set, those that wait keep the time that they have
        left."""
        now = UtcNs(min(self._clock(), _LATEST_UTC_NS))
        step_ns = self._steps.since(now, MonotonicNs(self._steady()))
        if step_ns:
            _log.warning("the clock was set by %+.1f s; records keep the time that they have left", step_ns / SECOND)
            self._ledger.clock_was_set(step_ns)
            self._unwritten_step_ns += step_ns
        return now

    async def follow_clock(self) -> None:
        """Write when records expire, if the clock was set. What the disk does not take now is written later."""
        async with self._lock:
            self.utc_now()
            if self._unwritten_step_ns:
                try:
                    await self._write([])
                except (sqlite3.Error, OSError) as error:
                    self._failed_saves += 1
                    self._failed(error, "could not note when its records expire")

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Keep everybody else from the ledger and the file. The methods below may only be called inside it."""
        async with self._lock:
            yield

    async def read(self, sequences: Sequence[int]) -> tuple[Record, ...]:
        """Pending records. :raises StorageError: the file can't be read."""
        if self.damage is not None:
            raise self.damage
        try:
            return await self._file.read_records(sequences)
        except _UNUSABLE as error:
            raise self._failed(error, "can't be read") from error

    async def save(self) -> None:
        """Write what the ledger decided. What the disk does not take now goes with the next transaction.

        :raises StorageError: the disk is full or fails.
        """
        try:
            await self._write([])
        except (sqlite3.Error, OSError) as error:
            self._failed_saves += 1
            raise self._failed(error, "could not note what became of its records") from error

    async def shift(self, shift: int) -> None:
        """Write what the ledger decided and add ``shift`` to every sequence in the file.

        :raises StorageError: the disk is full or fails; nothing changed.
        """
        try:
            await self._write([], shift)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error, "could not be renumbered") from error

    async def note_sealed(self, sealed: bytes, last: int) -> None:
        """Remember that a batch with records up to ``last`` was made for neighbours to carry. Its id is in this file
        and not only in memory, so that a reply to a batch of another file, which was lost, is told from one of before a
        restart. :raises StorageError: the disk is full or fails."""
        try:
            await self._file.write_sealed(sealed, last, self._ledger.first_pending)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error, "could not note what neighbours carry") from error

    async def has_sealed(self, sealed: bytes) -> bool:
        """Whether a batch was made of records that are or were in this file. :raises StorageError: it can't be read."""
        try:
            return await self._file.has_sealed(sealed)
        except _UNUSABLE as error:
            raise self._failed(error, "can't be read") from error

    def _failed(self, error: Exception, happened: str) -> StorageError:
        """What to tell of an error; damage is noted."""
        told = self._file.storage_error(error, happened)
        if isinstance(told, OutboxDamaged) and self.damage is None:
            self.damage = told
            self.damaged.set()
        return told

    # --- the account -----------------------------------------------------------------------------------------------
    def statistics(self) -> dict[str, int]:
        """The ledger's account, how many of the evicted are of other nodes' readings (``evicted_of_others``, in this
        life), records that the disk did not take (``failed_puts``) and accounts that it did not take yet
        (``failed_saves``)."""
        evicted = self._ledger.evicted_by_payer()
        return self._ledger.statistics() | {
            "evicted_of_others": sum(count for payer, count in evicted.items() if payer != OWN),
            "failed_puts": self._failed_puts,
            "failed_saves": self._failed_saves,
        }

    @property
    def pending(self) -> int:
        """Records that wait for the relay."""
        return self._ledger.pending

    async def _settle(self) -> None:
        """Find out whether an interrupted transaction happened."""
        if self._uncertain:
            try:
                self._ledger.restore(*await self._file.read_ledger())
            except (LocalProtocolError, TypeError, ValueError, OverflowError) as error:
                raise sqlite3.DatabaseError(f"the ledger can't be read again: {error}") from error
            self._ledger.clock_was_set(self._unwritten_step_ns)
            self._uncertain = False

    async def _write(self, new: list[RecordRow], shift: int = 0) -> None:
        await self._settle()
        if self._unwritten_step_ns:
            await self._file.write_expiries(self._ledger.entries())
            self._unwritten_step_ns = 0
        try:
            await self._file.write(self._ledger.changes(), self._ledger.counters(), new, shift)
        except (sqlite3.Error, OSError):
            raise
        except BaseException:  # cancelled; without new records writing twice does no harm
            self._uncertain = bool(new or shift)
            raise
        self._ledger.changes_saved()
