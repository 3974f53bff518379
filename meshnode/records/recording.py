"""From readings to records: the curator chooses them, the egress policy lets them through, the outbox keeps them, and
the uplink carries them.

All readings, those of this node and those of neighbours, enter by :meth:`Recorder.consider`. They are chosen on the
thread that publishes or receives them and handed to the event loop, where the outbox lives, by a bounded queue. Each
reading that can't be kept is counted in ``not_stored``, and in the drops under its key with the reason
``outbox_behind``, ``outbox_failed``, ``no_outbox``, ``outbox_closed``, ``record_too_large`` or ``egress_behind``. A
record counts only once it is committed. What the egress policy keeps back is dropped as ``egress_kept_back`` and is not
among ``not_stored``, because somebody wants it so.

Readings that curation derives are published as the node's own; what can't be published is dropped as ``not_derived``.

Rules that derive can be exchanged between two readings (:meth:`Recorder.use`). A rule that says the same as one of
before is that one, with its open windows and all else that it holds.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, assert_never

from meshnode.config.sections import NodeConfig
from meshnode.identity.signatures import SigningKey, read_signing_key
from meshnode.links.transport import CredentialFiles
from meshnode.readings.subscriptions import Subscription
from meshnode.records.keeping import OutboxKeeper
from meshnode.records.listening import NeighbourReadings
from meshnode.records.made import door_of, rules_of, uplink_maker
from meshnode.records.outbox import Outbox
from meshnode.records.rules.noting import Note, NotedRule
from meshnode.records.rules.predicting import ModelCall, Predictor
from meshnode.records.rules.recalling import Ask, Recaller
from meshnode.records.rules.section import RulesSection
from meshnode.records.rules.state import EVERY_S, WindowState
from meshnode.records.section import CarryingSection, OutboxSection, RelaySection
from meshnode.records.uplink import UplinkDriver
from meshnode.records.waiting import Waiting, WaitingRecords
from meshnode.tasks import told
from meshnode.troubles import Troubles
from protocols.base import limits
from protocols.base.errors import BoundExceeded, LocalProtocolError, MeshError, StorageError, ValueUnsupported
from protocols.base.ids import Incarnation, MeshName, MonotonicNs, NodeId, UtcNs
from protocols.base.time import NEVER
from protocols.records.curated import Curated
from protocols.records.curation import CurationOutput, Curator, ReadingDerived, RecordChosen
from protocols.records.egress.gate import KeptBack, WithPictures
from protocols.records.pending import OWN
from protocols.records.predicting import Failure
from protocols.records.wanted import HistoryWanted, PredictionWanted
from protocols.records.windows.rule import WindowRule
from protocols.wire.parcels import encode_reading, reading_in_alone
from protocols.wire.readings import Reading

if TYPE_CHECKING:
    from meshnode.records.rules.compiling import Rule

_log = logging.getLogger(__name__)
_GROUP: Final = 256
"""Records put into the outbox at once."""


def _no_history(_: object) -> "Future[object]":
    raise LocalProtocolError("this node keeps no history: add [history]")


def _windows(patterns: "Iterable[Rule]") -> list[WindowRule]:
    return [pattern for pattern in patterns if isinstance(pattern, WindowRule)]


def _kept(pattern: "Rule", before: "Rule | None") -> "Rule":
    """The rule of before when it says the same, with all that it holds."""
    return pattern if before is None or not before.is_like(pattern) else before


class Recorder:
    """Curator, outbox and uplink of one node. Opened and closed on the event loop."""

    def __init__(
        self, config: NodeConfig, mesh: MeshName, incarnation: Incarnation, dropped: Callable[[str, str], None],
        publish: Callable[[ReadingDerived], object], patterns: "Iterable[Rule]" = (), troubles: Troubles | None = None,
        history: Ask | None = None, infer: ModelCall | None = None,
    ) -> None:  # fmt: skip
        """``dropped(key, reason)`` counts a reading that could not be recorded; it is called on any thread. ``publish``
        and ``troubles`` are those of the node. ``history`` asks its history, and ``infer`` has models
        computed; None: it can't.

        :raises StorageError: when the key of an egress policy can't be used.
        :raises IdentityError: when the key that signs receipts can't be used.
        """
        self._config, self._dropped, self._publish = config, dropped, publish
        self._node = NodeId(config.node.id)
        patterns = tuple(patterns)
        self._note: Note | None = None
        self._curator, self._has_patterns = Curator(rules_of(config), self._noted(patterns)), bool(patterns)
        self._patterns: Sequence[Rule] = patterns
        self._former_counts: dict[str, int] = {}
        self._troubles = Troubles() if troubles is None else troubles
        self._not_published: dict[str, int] = {}
        """By rule: readings in a row that could not be published."""
        self._neighbours = NeighbourReadings(self._node, self.consider)
        self._recaller = Recaller(self._node, history or _no_history, lambda: len(self._waiting), self._recalled)
        self._predictor = Predictor(infer, self._predicted, self._troubles)
        self.door = door_of(config)
        self._lock = threading.Lock()
        windows = _windows(patterns)
        needs_state = bool(windows or config.of(RulesSection).release)
        self._state = WindowState(config.node.state_dir, windows, self._lock) if needs_state else None
        self._saving: asyncio.Task[None] | None = None
        self._is_putting = False
        self._due_ns = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = WaitingRecords()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        bounds = config.of(OutboxSection)
        self.stored = 0
        self.not_stored = 0
        self._failed_puts = 0
        self._storing: asyncio.Task[None] | None = None
        signs = config.given(RelaySection) is not None or config.given(CarryingSection) is not None
        self._signing_key = read_signing_key(config.identity.credentials) if signs else None

        self.keeper = OutboxKeeper(
            config.node.state_dir / "outbox.sqlite", bounds.max_records, bounds.max_bytes,
            uplink_maker(config, mesh, incarnation, self.signing_key), self._troubles,
            b"" if self.door is None else bytes.fromhex(self.door.digest),
        )  # fmt: skip

    async def open(self) -> None:
        """Open the outbox and start to carry. An outbox that can't be used is a trouble, and tried again."""
        await self.keeper.open()
        if (state := self._state) is not None:
            await asyncio.to_thread(state.open, _now(), _utc_now())
            self._saving = asyncio.create_task(self._save(state), name="windows of rules")
            self._saving.add_done_callback(told)
            self._set_timer()
        self._storing = asyncio.create_task(self._store(), name="recorder")
        self._storing.add_done_callback(told)

    def signing_key(self) -> SigningKey:
        """The key that signs receipts now."""
        assert self._signing_key is not None, "a node that sends records to a relay has it"
        return self._signing_key

    @property
    def readings_lost(self) -> int:
        """Readings that rules had taken, and that were lost when the node was killed or the rules were taken away."""
        return 0 if self._state is None else self._state.lost

    def renewed(self, credentials: CredentialFiles) -> None:
        """Sign receipts with the new key. :raises IdentityError: it can't be used."""
        if self._signing_key is not None:
            self._signing_key = read_signing_key(credentials)

    def rule_counters(self) -> dict[str, dict[str, int]]:
        """What became of the readings that came to each rule, by its name."""
        with self._lock:
            recorded = self._curator.recording_counters
            return {pattern.name: {**pattern.counters(), **recorded(pattern.name)} for pattern in self._patterns}

    @property
    def not_recalled(self) -> int:
        """Times before recordings that could not be looked up."""
        return self._recaller.failed

    def former_counts(self) -> dict[str, int]:
        """What became of the readings that came to rules which are used no more, all together."""
        with self._lock:
            return dict(self._former_counts)

    @property
    def outbox(self) -> Outbox | None:
        """The outbox in use; None while there is none."""
        return self.keeper.outbox

    @property
    def uplink(self) -> UplinkDriver | None:
        """The uplink of the outbox in use."""
        return self.keeper.uplink

    # --- readings in -----------------------------------------------------------------------------------------------
    def listen(self, subscribe: Callable[..., Subscription]) -> None:
        """Subscribe to the readings of neighbours that rules and patterns need. ``subscribe`` is that of the node."""
        self._neighbours.open(subscribe)
        self._neighbours.want(self._curator.expressions)

    # --- other rules -----------------------------------------------------------------------------------------------
    def use(
        self, patterns: "Sequence[Rule]", about_to: Callable[[], object] = lambda: None, note: Note | None = None
    ) -> None:
        """Derive by other rules from the next reading on. One at a time, on any thread but that of the event loop, once
        this is open.

        ``about_to`` is called when nothing can fail any more, and what it raises is handed on: nothing has changed
        then. ``note`` is told of each reading that comes to one of the rules.

        :raises LocalProtocolError: two of them, or one of them and a rule of the configuration, have the same name.
        """
        before = {pattern.name: pattern for pattern in self._patterns}
        patterns = tuple(_kept(pattern, before.get(pattern.name)) for pattern in patterns)
        self._curator.check(patterns)
        expressions_before = self._curator.expressions
        self._neighbours.want([e for pattern in patterns for e in pattern.expressions])
        try:
            about_to()
        except BaseException:
            self._neighbours.want_only(expressions_before)
            raise
        with self._lock:
            for pattern in self._patterns:
                if pattern not in patterns:
                    for name, number in (
                        *pattern.counters().items(), *self._curator.count_recordings_anew(pattern.name).items()
                    ):  # fmt: skip
                        self._former_counts[name] = self._former_counts.get(name, 0) + number
            self._note, self._patterns, self._has_patterns = note, patterns, bool(patterns)
            self._curator.exchange(self._noted(patterns))
            if self._state is not None:
                self._state.exchange(_windows(patterns))
        self._neighbours.want_only(self._curator.expressions)
        for name in (name for name, pattern in before.items() if pattern not in patterns):
            self._not_published.pop(name, None)
            self._troubles.end("rule", name)
            self._call_soon(partial(self._predictor.forget, name))
        self._call_soon(self._set_timer)

    def _noted(self, patterns: "Sequence[Rule]") -> "Sequence[Rule | NotedRule]":
        note = self._note
        return patterns if note is None else [NotedRule(pattern, note) for pattern in patterns]

    def consider(self, reading: Reading, alone: bytes | None = None) -> None:
        """Record or derive what rules and patterns say of a reading that this node published, or that came from a
        neighbour. ``alone``: the result of ``encode_alone`` for it, when the caller has it. May be called from any
        thread, and never blocks."""
        derived: Sequence[ReadingDerived] = ()
        with self._lock:
            outputs = self._curator.receive(reading, reading.origin == self._node, _now(), _utc_now())
            if self._state is not None:
                self._state.count()
            if outputs:
                derived = self._keep(outputs, reading, alone)
            is_sooner = self._has_patterns and self._curator.next_timer_at() < self._due_ns
        if derived:
            self._derive(derived, None if reading.origin == self._node else reading.origin)
        if is_sooner:
            self._call_soon(self._set_timer)

    def _keep(
        self, outputs: Sequence[CurationOutput], reading: Reading | None, alone: bytes | None
    ) -> Sequence[ReadingDerived]:
        """Let records wait for the outbox; returns what to publish once the lock is free. ``alone``: the bytes of
        ``reading``."""
        derived: list[ReadingDerived] = []
        was_empty = not len(self._waiting)
        for output in outputs:
            match output:
                case RecordChosen():
                    self._wait_for_outbox(output, alone if output.reading is reading else None)
                case ReadingDerived():
                    derived.append(output)
                case HistoryWanted():
                    self._call_soon(partial(self._recaller.begin, output))
                case PredictionWanted():
                    self._call_soon(partial(self._predictor.begin, output))
                case _:
                    assert_never(output)
        if was_empty and len(self._waiting):
            self._call_soon(self._wake.set)
        return derived

    def _recalled(self, number: int, readings: Sequence[Reading], is_last: bool) -> None:
        """What was read before a recording began, or a part of it."""
        with self._lock:
            self._keep(self._curator.recalled(number, readings, is_last), None, None)

    def _predicted(self, wanted: PredictionWanted, value: Any, failure: Failure) -> bool:
        """A model has computed what a rule wanted of a reading, or has not. Returns whether the rule still waited."""
        with self._lock:
            has_waited = any(pattern.waits_for(wanted) for pattern in self._patterns)
            derived = self._keep(self._curator.predicted(wanted, value, failure, _now()), None, None)
        self._derive(derived)
        return has_waited

    def _wait_for_outbox(self, chosen: RecordChosen, alone: bytes | None) -> None:
        original = chosen.reading
        if self.door is None:
            self._append(chosen, original, alone)
            return
        try:
            outcome = self.door.judged(original, alone)
        except ValueUnsupported:
            self._not_kept(original.key, "record_too_large")
            return
        if not isinstance(outcome, WithPictures):
            self._passed(chosen, outcome, alone if outcome is original else None)
            return
        payer = OWN if original.origin == self._node else original.origin
        gave_way = partial(self._not_kept, original.key, "egress_behind")
        if not self.door.draw(outcome, payer, partial(self._drawn, chosen), gave_way):
            gave_way()

    def _drawn(self, chosen: RecordChosen, outcome: Reading | KeptBack | None) -> None:
        """The pictures of a reading have been encoded anew. Called on the thread of pictures."""
        with self._lock:
            was_empty = not len(self._waiting)
            if outcome is None:
                self._not_kept(chosen.reading.key, "outbox_closed")
            else:
                self._passed(chosen, outcome, None)
            is_first = was_empty and bool(len(self._waiting))
        if is_first:
            self._call_soon(self._wake.set)

    def _passed(self, chosen: RecordChosen, outcome: Reading | KeptBack, alone: bytes | None) -> None:
        """Do what the door said. ``alone``: the bytes of ``outcome``."""
        assert self.door is not None, "it said so"
        self.door.count(chosen.reading.key, outcome)
        if isinstance(outcome, KeptBack):
            self._dropped(chosen.reading.key, "egress_kept_back")
        else:
            self._append(chosen, outcome, alone)

    def _append(self, chosen: RecordChosen, reading: Reading, alone: bytes | None) -> None:
        """Let a reading wait for the outbox, as it is."""
        original, key = chosen.reading, chosen.reading.key
        if original.origin == self._node:
            payer = OWN
        else:  # the file must not name who may not
            payer = original.origin if self.door is None else self.door.payer(original, _utc_now())
        try:
            encoded = encode_reading(reading) if alone is None else reading_in_alone(alone)
            curated = Curated(chosen.rule, encoded, chosen.priority, chosen.lifespan_ms, payer)
        except (BoundExceeded, ValueUnsupported):
            # In the outbox it would take its whole group with it. A value is unsupported when a neighbour's reading had
            # numbers of single precision: they are encoded as double, and the bytes may grow above a frame.
            self._not_kept(key, "record_too_large")
            return
        for gave_way in self._waiting.append(Waiting(key, curated)):
            self._not_kept(gave_way.key, "outbox_behind")

    def _derive(self, derived: Sequence[ReadingDerived], sender: str | None = None) -> None:
        """Publish what was derived. ``sender``: the neighbour whose reading was the last that it took, if known."""
        for output in derived:
            try:
                self._publish(output)
            except MeshError as error:
                self._dropped(output.key, "not_derived")
                if (note := self._note) is not None:
                    note(sender, True)
                times = self._not_published[output.rule] = self._not_published.get(output.rule, 0) + 1
                if times & (times - 1) == 0:  # 1, 2, 4, 8 …: the trouble names one key of many
                    self._troubles.begin("rule", output.rule, f"what it derives can't be published: {error}")
            else:
                if self._not_published.pop(output.rule, 0):
                    self._troubles.end("rule", output.rule)

    # --- time ------------------------------------------------------------------------------------------------------
    def _set_timer(self) -> None:
        with self._lock:
            self._due_ns = self._curator.next_timer_at()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due_ns < NEVER and self._has_patterns:
            self._timer = self._loop.call_later(max(0, self._due_ns - _now()) / limits.SECOND, self._handle_timer)

    def _handle_timer(self) -> None:
        with self._lock:
            derived = self._keep(self._curator.handle_timer(_now()), None, None)
            if self._state is not None:
                self._state.count()
        self._derive(derived)
        self._set_timer()

    def _call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so will this node
            self._loop.call_soon_threadsafe(callback)

    # --- records out -----------------------------------------------------------------------------------------------
    def _not_kept(self, key: str, reason: str) -> None:
        self.not_stored += 1
        self._dropped(key, reason)

    async def _save(self, state: WindowState) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            with self._lock:
                if not len(self._waiting) and not self._is_putting:
                    state.stored()  # also where rules make no records
            if state.has_changed:
                await asyncio.to_thread(state.save)
            if state.trouble:
                self._troubles.begin("rules", "", state.trouble)
            else:
                self._troubles.end("rules")

    async def _store(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._drain()

    async def _drain(self) -> None:
        while True:
            with self._lock:
                group = self._waiting.take(_GROUP)
                if not group and self._state is not None:
                    self._state.stored()
                self._is_putting = bool(group)
            if not group:
                return
            await self._put(group)
            self._recaller.stored.set()

    async def _put(self, group: Sequence[Waiting]) -> None:
        """Store records; those that a damaged outbox did not take go to the next one."""
        while (outbox := await self.keeper.usable()) is not None:
            try:
                await outbox.put(*(curated for _, curated in group))
            except (StorageError, BoundExceeded) as error:
                if outbox.damage is not None:
                    await self.keeper.replaced(outbox)
                    continue
                self._lost(group, "outbox_failed", str(error))
                await asyncio.sleep(0.2)
            else:
                self.stored += len(group)
            return
        self._lost(group, "no_outbox", self.keeper.why)

    def _lost(self, group: Sequence[Waiting], reason: str, why: str) -> None:
        for key, _ in group:
            self._not_kept(key, reason)
        self._failed_puts += 1
        if self._failed_puts & (self._failed_puts - 1) == 0:  # 1, 2, 4, 8 …: a broken disk can't fill another one
            _log.warning("%d records were not stored: %s", len(group), why)

    async def close(self, flush_s: float) -> None:
        """Store what was chosen, try for ``flush_s`` to deliver it, close."""
        self._has_patterns = False  # so that nobody sets the timer again
        if self._timer is not None:
            self._timer.cancel()
        for helper in (self._recaller, self._predictor):
            await helper.close()
        if self.door is not None:
            await asyncio.to_thread(self.door.close, flush_s)  # pictures that wait become records, or are counted
        await self._drain()
        if self._saving is not None and self._state is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
            await asyncio.to_thread(self._state.close)
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)
        for key, _ in self._waiting.take(len(self._waiting)):  # chosen while the node was closing
            self._not_kept(key, "outbox_closed")
        await self.keeper.close(flush_s)


def _now() -> MonotonicNs:
    return MonotonicNs(time.monotonic_ns())


def _utc_now() -> UtcNs:
    return UtcNs(time.time_ns())
