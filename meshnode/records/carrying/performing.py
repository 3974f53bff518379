"""Performs what the machine of carrying decides: seals batches of the outbox, keeps those of others, and brings them to
the relay.

The outbox belongs to the event loop, and is looked at and changed there, inside :meth:`Outbox.exclusive`. Sealing and
checking signatures take their time and happen on one thread, which has the files of what is carried too. A third one
talks to the relay (:mod:`meshnode.records.carrying.client`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from cryptography import x509

from meshnode.identity.sealing import key_id, sealed_id
from meshnode.identity.signatures import SigningKey, read_authority, sha256
from meshnode.links.transport import CredentialFiles
from meshnode.records.carrying.client import CarrierClient
from meshnode.records.carrying.envelope import checked_reply, relay_of, sealed_batch
from meshnode.records.carrying.shelf import CarriedShelf
from meshnode.records.outbox import Outbox
from meshnode.records.recording import Recorder
from meshnode.records.section import CarryingSection, RelaySection
from meshnode.records.way import Way
from meshnode.running import Host
from meshnode.tasks import Tasks
from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base.errors import IdentityError, LocalProtocolError, MeshError, StorageError
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MAX_CARRIED_BATCH_BYTES, MAX_SEALED_BYTES, MS, SECOND
from protocols.engine import Engine
from protocols.gossip.entries import Stored
from protocols.records.carrying.events import (
    CheckReply,
    ForgetSealed,
    KeepReply,
    KeepSealed,
    SealBatch,
    UploadSealed,
)
from protocols.records.carrying.machine import Carrying
from protocols.records.carrying.sealed import decode_untrusted_relay_key
from protocols.records.events import UplinkState
from protocols.records.ledger import BatchPlan
from protocols.records.receipts.batches import encode_batch
from protocols.records.receipts.sealing import BatchSealer
from protocols.records.uplink import untrusted_sequence
from protocols.wire.carrying.frames import RelayKeyTold
from protocols.wire.entries import decode_untrusted_entry
from protocols.wire.records import Acknowledgement, Record, RelayRefusal

_log = logging.getLogger(__name__)
FOLDER: Final = "carried"
"""In the state folder."""
LOOK_S: Final = 1.0
"""The time between two looks at the outbox and the uplink."""
_RETRY_NS: Final = 5 * SECOND
"""Pause after the outbox could not be read."""
_IN_REACH: Final = frozenset({UplinkState.CONNECTED, UplinkState.REFUSED, UplinkState.STORAGE})
"""A relay that refuses this node's records would also refuse them from a carrier."""

_T = TypeVar("_T")


class CarryingPerformer:
    """See the module. Made with the machine; :meth:`open` starts the rest."""

    def __init__(self, host: Host, section: CarryingSection) -> None:
        """:raises IdentityError: the authority's certificate can't be read."""
        self._host, self._section, self._relay = host, section, host.config.given(RelaySection)
        credentials = host.config.identity.credentials
        self._authority: x509.Certificate = read_authority(credentials.authority)
        access = AccessTable(DEFAULT_RULES if host.config.access.rules is None else host.config.access.rules)
        pinned = None if self._relay is None else self._relay.id
        self.machine = Carrying(section.settings(self._relay is not None, pinned), access, self._is_relay, sha256)
        self._pinned = pinned
        self._shelf = CarriedShelf(host.config.node.state_dir / FOLDER)
        self._thread = ThreadPoolExecutor(1, "carried")
        self._tasks = Tasks()
        self._recorder: Recorder | None = None
        self._sealer: BatchSealer
        self._client = self._made_client()
        self._not_believed = 0
        self._seen: tuple[bool, bool, int, int] | None = None

    def _made_client(self) -> CarrierClient | None:
        host, relay = self._host, self._relay
        if relay is None:
            return None

        def connect() -> Any:
            from meshnode.links.nng.library import open_requester  # only a node with a relay loads libnng

            credentials = host.config.identity.credentials
            return open_requester(credentials, relay.address, host.mesh, Role.RELAY, relay.id)

        way = Way(relay.address, relay.interfaces, None) if relay.interfaces else None
        return CarrierClient(connect, self._key_told, self._uploaded, way)

    # --- life --------------------------------------------------------------------------------------------------------
    async def open(self, recorder: Recorder) -> None:
        """Take up what a former life carried, look at the outbox of ``recorder`` from now on, and ask the relay."""
        host = self._host
        self._recorder = recorder
        self._sealer = BatchSealer(host.mesh, host.id, host.incarnation, recorder.signing_key, sha256)
        try:
            items = await asyncio.to_thread(self._shelf.read_all)
        except OSError as error:
            _log.warning("what was carried for others can't be read: %s", error)
            items = []
        self._tell(lambda machine, now: machine.restored(items, now))
        self._tasks.begin(self._look(), "carrying")
        if self._client is not None:
            self._client.start()

    async def close(self) -> None:
        """End threads and tasks. What is carried stays on the disk."""
        await self._tasks.close()
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
        await asyncio.to_thread(self._thread.shutdown)

    def renewed(self, credentials: CredentialFiles) -> None:
        """Believe the authority that the files name now. :raises IdentityError: it can't be read."""
        self._authority = read_authority(credentials.authority)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """The functions that perform the effects of the machine."""
        return {
            SealBatch: lambda effect: self._soon(self._seal, effect),
            CheckReply: lambda effect: self._soon(self._check, effect),
            KeepSealed: self._later(self._keep), KeepReply: self._later(self._keep_reply),
            ForgetSealed: self._later(self._forget), UploadSealed: self._later(self._upload),
        }  # fmt: skip

    def view(self) -> dict[str, Any]:
        """What ``GET /v1/node`` gives."""
        counters, carriers = self._host.driver.look(lambda _, now: (self.machine.counters(), self.machine.carriers))
        gauges = {name: counters[name] for name in ("on_their_way", "held", "held_bytes")}
        return {"hand_over": self._section.hand_over, "carry": self._section.carry, "carriers": carriers, **gauges}

    def _soon(self, do: Callable[[Any], Coroutine[Any, Any, None]], effect: Any) -> None:
        """Do something on the event loop. Any thread may call."""

        def begin() -> None:
            self._tasks.begin(do(effect), type(effect).__name__)

        try:
            self._host.loop.call_soon_threadsafe(begin)
        except RuntimeError:
            _log.debug("the node closes: %s is not done any more", type(effect).__name__)

    def _later(self, do: Callable[[Any], None]) -> Callable[[Any], object]:
        def submit(effect: Any) -> None:
            try:
                self._thread.submit(self._safely, do, effect)
            except RuntimeError:
                _log.debug("the node closes: %s is not done any more", type(effect).__name__)

        return submit

    def _safely(self, do: Callable[[Any], None], effect: Any) -> None:
        try:
            do(effect)
        except Exception:  # noqa: BLE001 - one bad effect must not end those behind it
            _log.exception("%s failed: this is a bug", type(effect).__name__)

    def _tell(self, do: Callable[[Carrying, int], _T]) -> _T:
        return self._host.driver.act(lambda _, now: do(self.machine, now))

    async def _threaded(self, work: Callable[[], _T]) -> _T:
        return await self._host.loop.run_in_executor(self._thread, work)

    # --- records of this node ----------------------------------------------------------------------------------------
    def _outbox(self) -> Outbox | None:
        return None if self._recorder is None else self._recorder.outbox

    async def _look(self) -> None:
        while True:
            outbox = self._outbox()
            if outbox is not None and self._recorder is not None:
                uplink, ledger = self._recorder.uplink, outbox.ledger
                is_reached = uplink is not None and uplink.state in _IN_REACH
                seen = (is_reached, ledger.introduced, ledger.first_pending, ledger.next_sequence)
                if seen != self._seen:
                    self._seen = seen
                    self._tell(lambda machine, now, seen=seen: machine.look(*seen, now))  # type: ignore[misc]
            await asyncio.sleep(LOOK_S)

    async def _seal(self, effect: SealBatch) -> None:
        max_bytes = MAX_CARRIED_BATCH_BYTES
        while True:
            try:
                planned = await self._planned(effect, max_bytes)
                if planned is None:
                    self._tell(lambda machine, now: machine.nothing_sealed(now))
                    return
                plan, records = planned
                data = await self._threaded(lambda plan=plan, records=records: self._sealed(effect, plan, records))  # type: ignore[misc]
            except MeshError as error:
                _log.info("no batch is handed over now: %s", error)
                self._tell(lambda machine, now: machine.nothing_sealed(now, _RETRY_NS))
                return
            if len(data) <= MAX_SEALED_BYTES or len(records) <= 1:  # one record always fits
                break
            max_bytes //= 2  # the bytes of the names of rules are counted as characters
        if plan.sequences and not await self._noted(sealed_id(data), plan.sequences[-1]):
            return
        self._tell(lambda machine, now: machine.sealed(sealed_id(data), plan, effect.key_id, data, now))

    async def _noted(self, sealed: bytes, last: int) -> bool:
        """Whether the outbox remembers a batch now."""
        outbox = self._outbox()
        try:
            if outbox is not None:
                async with outbox.exclusive():
                    await outbox.note_sealed(sealed, last)
                return True
        except StorageError as error:
            _log.warning("no batch is handed over now: %s", error)
        self._tell(lambda machine, now: machine.nothing_sealed(now, _RETRY_NS))
        return False

    async def _planned(self, effect: SealBatch, max_bytes: int) -> tuple[BatchPlan, tuple[Record, ...]] | None:
        outbox = self._outbox()
        if outbox is None:
            raise StorageError("there is no outbox")
        async with outbox.exclusive():
            ledger = outbox.ledger
            if not ledger.introduced:
                introduction = BatchPlan((), (), ledger.first_sequence)
                return None if effect.is_introducing else (introduction, ())
            plan = ledger.batch_to_hand_over(outbox.utc_now(), effect.handed, max_bytes)
            return None if plan is None else (plan, await outbox.read(plan.sequences))

    def _sealed(self, effect: SealBatch, plan: BatchPlan, records: tuple[Record, ...]) -> bytes:
        assert self._recorder is not None, "nothing is sealed before it is opened"
        host = self._host
        batch = encode_batch(host.id, host.incarnation, plan, records, self._sealer)
        self._sealer.forget()
        signer: SigningKey = self._recorder.signing_key()
        return sealed_batch(batch, host.mesh, host.id, signer, effect.key)

    async def _check(self, effect: CheckReply) -> None:
        host, detail, is_refusal = self._host, "", False
        try:
            answer = await self._threaded(lambda: checked_reply(
                effect.reply, effect.sealed, host.mesh, host.id, self._authority, self._pinned, time.time_ns()
            ))  # fmt: skip
            is_refusal = await self._apply(answer, effect.plan, effect.sealed)
            is_believed = True
            if isinstance(answer, RelayRefusal):
                detail = f"{answer.code} {answer.detail}"
        except MeshError as error:
            is_believed, detail = False, str(error)
            self._not_believed += 1
            if self._not_believed & (self._not_believed - 1) == 0:  # 1, 2, 4, 8 …: a neighbour could fill the log
                _log.warning("what %s says to have from the relay does not count: %s", effect.carrier, error)
        self._tell(lambda machine, now: machine.reply_checked(
            effect.carrier, effect.sealed, now, is_believed=is_believed, is_refusal=is_refusal, detail=detail
        ))  # fmt: skip

    async def _apply(
        self, answer: Acknowledgement | RelayRefusal, plan: BatchPlan | None, sealed: bytes
    ) -> bool:  # fmt: skip
        """Tell the ledger. Returns whether the relay refuses the batch as it is.

        :raises StorageError: what it decided can't be written, and it must not go on before.
        """
        outbox = self._outbox()
        if outbox is None:
            raise StorageError("there is no outbox now")
        async with outbox.exclusive():
            ledger = outbox.ledger
            is_introduction = plan is not None and not plan.sequences
            if is_introduction and not ledger.introduced:
                return await _introduce(outbox, answer)
            if isinstance(answer, RelayRefusal):
                return not is_introduction
            if not await outbox.has_sealed(sealed):
                _log.info(
                    "a reply is about a batch of an outbox that is no longer this one, or whose records have ended"
                )
            elif ledger.introduced:
                ledger.carried(answer, () if plan is None else plan.fates)
                await _save(outbox)
            return False

    # --- batches of others; on the thread ----------------------------------------------------------------------------
    def _keep(self, effect: KeepSealed) -> None:
        try:
            self._shelf.keep(effect.sealed, effect.node, effect.key, effect.data)
        except OSError as error:
            _log.warning("a batch of %s can't be carried (%s): free some disk", effect.node, error.strerror)
            self._tell(lambda machine, now: machine.lost(effect.sealed, now))

    def _keep_reply(self, effect: KeepReply) -> None:
        try:
            self._shelf.keep(effect.sealed, effect.node, effect.key, b"", effect.reply)
        except OSError as error:  # after a restart the batch goes to the relay again, which does no harm
            _log.warning("a reply to %s can't be kept (%s): free some disk", effect.node, error.strerror)

    def _forget(self, effect: ForgetSealed) -> None:
        try:
            self._shelf.forget(effect.sealed)
        except OSError as error:
            _log.warning("what was carried can't be removed (%s)", error)

    def _upload(self, effect: UploadSealed) -> None:
        data = self._shelf.batch(effect.sealed)
        if self._client is not None and data:
            self._client.upload(effect, data)
        else:
            self._tell(lambda machine, now: machine.lost(effect.sealed, now))

    # --- the relay; on the thread of the client ----------------------------------------------------------------------
    def _key_told(self, told_key: RelayKeyTold) -> None:
        """The relay that this node reaches has published this key. :raises MeshError: that is no key of a relay."""
        entry = decode_untrusted_entry(told_key.entry)
        key = decode_untrusted_relay_key(entry.body)
        if not self._is_relay(entry.credential, NodeId(entry.author)):
            raise IdentityError(f"the entry of {entry.author!r} is not that of a relay of this mesh")
        kept = Stored(told_key.entry, told_key.age_ms * MS, self._host.id)

        def take(engine: Engine, now: int) -> None:
            engine.gossip.restore((kept,), now)
            self.machine.relay_answered(key_id(key.key), now)

        self._host.driver.act(take)

    def _uploaded(self, sealed: bytes, reply: bytes, code: str) -> None:
        self._tell(lambda machine, now: machine.uploaded(sealed, reply, code, now))

    def _is_relay(self, certificate: bytes, author: NodeId) -> bool:
        """Whether the authority says that the author of an entry is a relay of this mesh."""
        try:
            return relay_of(certificate, self._authority, self._host.mesh, time.time_ns()).node == author
        except IdentityError:
            return False


async def _introduce(outbox: Outbox, answer: Acknowledgement | RelayRefusal) -> bool:
    """The relay has answered the introduction of a ledger."""
    ledger = outbox.ledger
    if isinstance(answer, Acknowledgement):
        ledger.introduce()
        try:
            await outbox.save()
        except StorageError:
            ledger.introduce(known=False)
            raise
        return False
    first = untrusted_sequence(answer)
    if first is None or not ledger.can_begin_at(first):
        return True
    await outbox.shift(first - ledger.first_sequence)
    if not ledger.renumber(first):
        raise LocalProtocolError("it was asked before whether the ledger can be renumbered")
    _log.warning("the relay knows more records of this node than the outbox: continuing at %d", first)
    return False


async def _save(outbox: Outbox) -> None:
    try:
        await outbox.save()
    except StorageError as error:  # it goes with the next transaction; after a crash the relay is told again
        _log.warning("%s", error)
