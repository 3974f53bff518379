"""The uplink of a node: performs what ``protocols.records.uplink`` decides, on the outbox and the way to the relay.

The decisions are made on the event loop inside :meth:`Outbox.exclusive`, as is their access to the file. A request
blocks a thread of its own meanwhile, so that records can be put while the relay works on it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from typing import Any, NamedTuple, assert_never

from meshnode.identity.packing import packed
from meshnode.links.transport import Requester
from meshnode.records.outbox import Outbox
from meshnode.records.way import Permission, Way
from protocols.base.errors import MeshError, StorageError, TransportError
from protocols.base.ids import Incarnation, MonotonicNs, NodeId
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.records.events import (
    RecordRefused,
    RecordsDelivered,
    RecordsRenumbered,
    SaveLedger,
    SendBatch,
    ShiftSequences,
    UplinkChanged,
    UplinkState,
)
from protocols.records.ledger import BatchPlan
from protocols.records.receipts.sealing import BatchSealer
from protocols.records.uplink import Uplink, decode_untrusted_answer
from protocols.wire.codec import encode_frame
from protocols.wire.records import PackedBatch, Record, RelayRefusal

_log = logging.getLogger(__name__)


class _Request(NamedTuple):
    plan: BatchPlan
    records: tuple[Record, ...]
    timeout_s: float


class UplinkDriver:
    """Carries one node's outbox to the relay. ``task = create_task(uplink.run())``, later ``await uplink.stop(…)``."""

    def __init__(
        self, outbox: Outbox, connect: Callable[[], Requester], node: NodeId, incarnation: Incarnation, random: Random,
        sealer: BatchSealer | None = None, way: Way | None = None, bytes_per_s: int = 0,
    ) -> None:  # fmt: skip
        """``connect`` opens a requester to the relay; it runs on the uplink's thread and may raise TransportError.
        ``sealer`` makes the receipts of batches, on the same thread; None: they have none. ``way``: which records may
        be sent now; None: all. ``bytes_per_s``: see :class:`Uplink`."""
        self._outbox, self._connect, self._way = outbox, connect, way
        self._permission = Permission(None)
        self._machine = Uplink(outbox.ledger, node, incarnation, random, sealer, bytes_per_s)
        self._requester: Requester | None = None
        self._takes_packed = True
        """Whether the relay at the other end may take packed batches: it has not refused one."""
        self._closed = False
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "uplink")

    @property
    def state(self) -> UplinkState:
        """Whether the relay takes this node's records, and if not, what kind of fault prevents it."""
        return UplinkState.STOPPED if self._ended.is_set() else self._machine.state

    @property
    def detail(self) -> str:
        """The reason when records are not taken; empty otherwise."""
        return "" if self._ended.is_set() else self._machine.detail

    def statistics(self) -> dict[str, int]:
        """Batches that were answered, batches that were not taken, and receipts that were made."""
        return self._machine.counters()

    async def run(self) -> None:
        """Carry records until :meth:`stop` or cancellation."""
        try:
            while await self._turn():
                pass
        except asyncio.CancelledError:
            async with self._outbox.exclusive():
                self._machine.unanswered("the uplink was cancelled", _now())
            raise
        finally:
            self._close()
            self._thread.shutdown(wait=False)
            self._ended.set()

    async def stop(self, flush_s: float = 0.0) -> None:
        """End :meth:`run`. What waits is still sent for up to ``flush_s`` seconds, as long as the relay takes it."""
        self._stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_s):
                await self._ended.wait()
        self._close()

    # --- decisions -------------------------------------------------------------------------------------------------
    async def _turn(self) -> bool:
        """Do what is due, or wait until something is. Returns False when the uplink is to end."""
        machine = self._machine
        wait_ns = machine.next_timer_at() - _now()
        if wait_ns > 0:
            if self._stop.is_set():
                return False
            if machine.next_timer_at() < NEVER:
                return await self._unless_stopped(asyncio.sleep(wait_ns / SECOND))
            if not await self._unless_stopped(self._outbox.wait()):
                return False
            machine.wake(_now())
        await self._look_at_the_way()
        await self._outbox.follow_clock()
        request = await self._decide(lambda now: machine.handle_timer(now, self._outbox.utc_now()))
        while request is not None:
            request = await self._decide(await self._exchange(request))
        return True

    async def _look_at_the_way(self) -> None:
        """Tell the machine which records may be sent. A connection does not follow the way, so it ends when that leads
        over another interface."""
        if self._way is None:
            return
        permission = await asyncio.get_running_loop().run_in_executor(self._thread, self._way.look)
        if permission == self._permission:
            return
        if permission.interface != self._permission.interface:
            self._hang_up()
        self._permission = permission
        self._machine.allow(permission.least_priority, permission.why)
        self._report()

    async def _decide(self, tell: Callable[[MonotonicNs], None]) -> _Request | None:
        """Tell the machine something and perform what it decides. Returns the request to make of the relay, if any."""
        machine, request = self._machine, None
        async with self._outbox.exclusive():
            tell(_now())
            while effects := machine.outgoing():
                for effect in effects:
                    match effect:
                        case SendBatch():
                            request = await self._prepare(effect)
                        case SaveLedger():
                            await self._write(self._outbox.save())
                        case ShiftSequences():
                            await self._write(self._outbox.shift(effect.shift))
                        case _:
                            assert_never(effect)
        self._report()
        return request

    async def _prepare(self, effect: SendBatch) -> _Request | None:
        try:
            records = await self._outbox.read(effect.plan.sequences)
        except StorageError as error:
            self._machine.unreadable(str(error), _now())
            return None
        return _Request(effect.plan, records, effect.timeout_ns / SECOND)

    async def _write(self, writing: Coroutine[Any, Any, None]) -> None:
        try:
            await writing
        except StorageError as error:
            self._machine.not_saved(str(error), _now())
        else:
            self._machine.saved(_now())

    def _report(self) -> None:
        for event in self._machine.events():
            match event:
                case UplinkChanged(state, detail):
                    well = state in (UplinkState.CONNECTED, UplinkState.HELD)
                    level = logging.INFO if well else logging.WARNING
                    _log.log(level, "relay: %s%s", state.value, f": {detail}" if detail else "")
                case RecordRefused(sequence, reason):
                    _log.warning("the relay refused record %d: %s", sequence, reason)
                case RecordsRenumbered(first_sequence):
                    _log.warning(
                        "the relay knows more records of this node than the outbox: continuing at %d", first_sequence
                    )
                case RecordsDelivered():  # the statistics count them
                    pass
                case _:
                    assert_never(event)

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait until ``waiting`` is done or :meth:`stop` is called. Returns False when it was called."""
        tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(self._stop.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return not self._stop.is_set()

    # --- the exchange ----------------------------------------------------------------------------------------------
    async def _exchange(self, request: _Request) -> Callable[[MonotonicNs], None]:
        """Make a request, and return what to tell the machine about it. Without a valid answer the next request opens a
        new connection."""
        try:
            response = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, request)
            return partial(self._machine.receive, decode_untrusted_answer(response))
        except MeshError as error:
            self._hang_up()
            return partial(self._machine.unanswered, str(error))
        except BaseException:
            self._hang_up()
            raise

    def _ask(self, request: _Request) -> bytes:
        frame = self._machine.batch(request.plan, request.records)  # here, because hashing and signing take their time
        requester = self._requester
        if requester is None:
            requester = self._requester = self._connect()
        if self._closed:
            requester.close()
            raise TransportError("the uplink was stopped")
        smaller = packed(frame) if self._takes_packed and request.plan.sequences else None
        if smaller is None:
            return requester.request(frame, request.timeout_s)
        answer = requester.request(encode_frame(PackedBatch(smaller)), request.timeout_s)
        if not _is_malformed(answer):
            return answer
        answer = requester.request(frame, request.timeout_s)
        self._takes_packed = _is_malformed(answer)  # an older relay takes it only so; a bad batch it takes in no way
        return answer

    def _close(self) -> None:
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        requester, self._requester = self._requester, None
        self._takes_packed = True
        if requester is not None:
            requester.close()


def _is_malformed(answer: bytes) -> bool:
    frame = decode_untrusted_answer(answer)
    return isinstance(frame, RelayRefusal) and frame.code == "malformed"


def _now() -> MonotonicNs:
    return MonotonicNs(time.monotonic_ns())
