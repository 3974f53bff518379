"""The uplink: carries the outbox to the relay, one batch at a time, for as long as it takes.

A batch goes out at once when records arrive and the relay answers; while one is under way the next collects itself, so
load makes batches larger and not more. What each answer means:

    acknowledgement        its records ended
    refusal "storage"      the relay's disk is full: try again later
    refusal "malformed"    halve the batch until one record is left, make sure that the relay takes an empty batch, and
                           only then end that record as refused: a relay that is at odds with everything costs nothing
    refusal "sequence"     this outbox is new and the relay knows more of this node: renumber what waits
    any other refusal      somebody has to repair something: ask again rarely
    no answer              try again with back-off and jitter; the relay takes each record only once

An outbox introduces itself with an empty batch before its first record, see ``Outbox.renumber``.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from random import Random
from typing import Any

from meshnode.links.transport import Requester
from meshnode.records.outbox import Outbox, Upload
from protocols.base.errors import MeshError, RemoteProtocolError, StorageError, TransportError
from protocols.base.ids import Incarnation, NodeId
from protocols.base.limits import MAX_BATCH_RECORDS
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.records import Acknowledgement, Batch, RelayRefusal

RETRY_MIN_S = 0.25
RETRY_MAX_S = 5.0
"""Back-off while the relay is away: a node in reach of it again waits at most this long. A thousand nodes of a relay
that comes back are then 200 requests a second, spread by the jitter."""
REFUSED_RETRY_S = 30.0
"""After a refusal that only a person can lift."""
REQUEST_TIMEOUT_S = 10.0
"""A full batch of 1 MiB passes an uplink of 1 Mb/s in 8.4 s."""

_log = logging.getLogger(__name__)


class UplinkState(StrEnum):
    """How it stands with the relay."""

    STARTING = "starting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    STORAGE = "storage"
    """A disk, here or at the relay, doesn't take records."""
    STOPPED = "stopped"


class Uplink:
    """One node's way to the relay. ``task = create_task(uplink.run())``, later ``await uplink.stop(…)``."""

    def __init__(
        self,
        outbox: Outbox,
        connect: Callable[[], Requester],
        node: NodeId,
        incarnation: Incarnation,
        random: Random,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """``connect`` opens a requester to the relay; it runs on the uplink's thread and may raise TransportError."""
        self._outbox = outbox
        self._connect = connect
        self._node, self._incarnation = node, incarnation
        self._random = random
        self._timeout_s = request_timeout_s
        self._requester: Requester | None = None
        self._closed = False
        self._state, self._detail = UplinkState.STARTING, ""
        self._failures = 0
        self._largest_batch = MAX_BATCH_RECORDS
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "uplink")
        self._batches = self._batches_failed = 0

    @property
    def state(self) -> UplinkState:
        """How it stands with the relay."""
        return self._state

    @property
    def detail(self) -> str:
        """Why, when the state is not a good one; empty otherwise."""
        return self._detail

    def statistics(self) -> dict[str, int]:
        """Batches that were answered and batches that were not taken."""
        return {"batches": self._batches, "batches_failed": self._batches_failed}

    async def run(self) -> None:
        """Carry records until :meth:`stop` or cancellation."""
        try:
            while await self._step():
                pass
        finally:
            self._state, self._detail = UplinkState.STOPPED, ""
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

    # --- one step --------------------------------------------------------------------------------------------------
    async def _step(self) -> bool:
        """Do one thing. False: the end."""
        try:
            if not self._outbox.introduced:
                pause_s = await self._introduce()
            else:
                upload = await self._outbox.next_upload(self._largest_batch)
                if upload is None:
                    return await self._unless_stopped(self._outbox.wait())
                pause_s = await self._carry(upload)
        except StorageError as error:
            pause_s = self._failed(UplinkState.STORAGE, str(error))
        except MeshError as error:
            pause_s = self._failed(UplinkState.UNREACHABLE, str(error))
        if pause_s:
            if self._stop.is_set() or not await self._unless_stopped(asyncio.sleep(pause_s)):
                return False
            await self._outbox.expire()
        return True

    async def _introduce(self) -> float:
        answer = await self._exchange(Batch(MAJOR, MINOR, self._node, self._incarnation, self._outbox.first_sequence))
        if isinstance(answer, Acknowledgement):
            await self._outbox.introduce()
            return self._succeeded()
        if answer.code == "sequence" and answer.detail.isdecimal() and len(answer.detail) < 19:
            # the relay knows this node, but this outbox is new: its file was lost
            if await self._outbox.renumber(int(answer.detail)):
                _log.warning("the relay knows more records of this node than the outbox: going on at %s", answer.detail)
                return self._succeeded()
        return self._refused(answer)

    async def _carry(self, upload: Upload) -> float:
        """Send a batch and settle it. Returns the seconds to pause."""
        try:
            answer = await self._exchange(self._batch_of(upload))
            if isinstance(answer, RelayRefusal) and answer.code == "malformed":
                return await self._narrow_down(upload, answer)
        except BaseException:
            await self._outbox.abandon()
            raise
        if isinstance(answer, RelayRefusal):
            await self._outbox.abandon()
            return self._refused(answer)
        ended = await self._outbox.acknowledge(upload, answer)
        for refused in answer.refused:
            _log.warning("the relay refused record %d: %s", refused.sequence, refused.reason)
        if upload.records and not ended:
            return self._failed(UplinkState.REFUSED, "the relay's acknowledgement names none of the records sent")
        self._largest_batch = min(2 * self._largest_batch, MAX_BATCH_RECORDS)
        return self._succeeded()

    async def _narrow_down(self, upload: Upload, answer: RelayRefusal) -> float:
        """The relay can't read the batch: find the record that it is about."""
        if len(upload.records) > 1:
            self._largest_batch = len(upload.records) // 2
            await self._outbox.abandon()
            return 0.0
        probe = await self._exchange(Batch(MAJOR, MINOR, self._node, self._incarnation, upload.next_sequence))
        if not upload.records or not isinstance(probe, Acknowledgement):
            await self._outbox.abandon()
            return self._refused(answer)
        _log.warning("the relay can't read record %d: %s", upload.records[0].sequence, answer.detail)
        await self._outbox.refuse(upload)
        return 0.0

    # --- the exchange ----------------------------------------------------------------------------------------------
    def _batch_of(self, upload: Upload) -> Batch:
        return Batch(
            MAJOR, MINOR, self._node, self._incarnation, upload.next_sequence, upload.records, upload.fates
        )  # fmt: skip

    async def _exchange(self, batch: Batch) -> Acknowledgement | RelayRefusal:
        """:raises MeshError: no answer, or one that is not valid; the connection is opened anew next time."""
        frame = encode_frame(batch)
        try:
            response = await asyncio.get_running_loop().run_in_executor(self._thread, self._request, frame)
            answer = _untrusted_answer(response)
        except BaseException:
            self._hang_up()
            raise
        self._batches += 1
        return answer

    def _request(self, frame: bytes) -> bytes:
        requester = self._requester
        if requester is None:
            requester = self._requester = self._connect()
        if self._closed:
            requester.close()
            raise TransportError("the uplink was stopped")
        return requester.request(frame, self._timeout_s)

    def _close(self) -> None:
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        requester, self._requester = self._requester, None
        if requester is not None:
            requester.close()

    # --- how it stands ---------------------------------------------------------------------------------------------
    def _succeeded(self) -> float:
        self._failures = 0
        self._enter(UplinkState.CONNECTED, "")
        return 0.0

    def _refused(self, answer: RelayRefusal) -> float:
        if answer.code == "storage":
            return self._failed(UplinkState.STORAGE, f"the relay can't store records: {answer.detail}")
        detail = answer.detail
        if answer.code == "sequence":
            detail = f"it stands at record {answer.detail}, this node does not: does another node use its name?"
        self._failed(UplinkState.REFUSED, f"the relay refuses this node ({answer.code}): {detail}")
        return REFUSED_RETRY_S * self._random.uniform(0.5, 1.0)

    def _failed(self, state: UplinkState, detail: str) -> float:
        self._batches_failed += 1
        pause_s = min(RETRY_MIN_S * 2.0**self._failures, RETRY_MAX_S)
        self._failures = min(self._failures + 1, 16)
        self._enter(state, detail)
        return pause_s * self._random.uniform(0.5, 1.0)

    def _enter(self, state: UplinkState, detail: str) -> None:
        if state != self._state:
            level = logging.INFO if state is UplinkState.CONNECTED else logging.WARNING
            _log.log(level, "relay: %s%s", state.value, f": {detail}" if detail else "")
        self._state, self._detail = state, detail

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for the first of ``waiting`` and the stop. False: stopped."""
        tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(self._stop.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return not self._stop.is_set()


def _untrusted_answer(response: bytes) -> Acknowledgement | RelayRefusal:
    answer = decode_untrusted_relay_frame(response)
    if isinstance(answer, Batch):
        raise RemoteProtocolError("the relay answered with a batch")
    return answer
