"""The uplink: what a node sends to the relay next, when it tries again, and what an answer means.

One batch is under way at a time. While it is, records collect in the ledger, so load makes batches larger and not more.

    acknowledgement        its records have ended; the next batch goes out at once
    refusal "storage"      the relay's disk is full: try again with back-off
    refusal "malformed"    halve the batch until one record is left, make sure that the relay takes an empty batch, and
                           only then end that record as refused: a relay that refuses everything costs no record
    refusal "receipt"      as any other; the next batch has a new receipt
    refusal "certificate"  send the batch again, with the certificate that its receipt names
    refusal "sequence"     this ledger is new and the relay knows more records of the node: go on where the relay stands
    any other refusal      only a person can lift it: ask again rarely
    no answer              try again with back-off and jitter; the relay takes each record only once

A batch that may have reached the relay is sent again with the same records and the same receipt, unless one of them
ended meanwhile. More records follow in the next batch.

A new ledger introduces itself with an empty batch before its first record, see :meth:`Ledger.renumber`.

The uplink changes the ledger that it is given, and storage follows. A driver performs the effects in their order, and
nobody else may use the ledger until it has reported what storage did. Records may be issued while a batch is on its
way to the relay and back.

A node may hold back what is not urgent while the way to the relay is one that costs money (:meth:`Uplink.allow`), and
keep a pace in bytes a second: each batch is followed by a pause as long as its bytes take.
"""

from random import Random
from typing import Final, assert_never

from msgspec import Struct

from protocols.base.errors import LocalProtocolError, RemoteProtocolError
from protocols.base.ids import Incarnation, MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MS, SECOND
from protocols.base.time import NEVER
from protocols.records.events import (
    RecordRefused,
    RecordsDelivered,
    RecordsRenumbered,
    SaveLedger,
    SendBatch,
    ShiftSequences,
    UplinkChanged,
    UplinkEffect,
    UplinkEvent,
    UplinkState,
)
from protocols.records.ledger import BatchPlan, Ledger
from protocols.records.receipts.batches import encode_batch
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.codec import decode_untrusted_relay_frame
from protocols.wire.records import Acknowledgement, Record, RelayRefusal

RETRY_MIN_NS: Final = 250 * MS
RETRY_MAX_NS: Final = 5 * SECOND
"""Back-off while the relay is away: a node in reach of it again waits at most this long. A thousand nodes of a relay
that comes back are then 200 requests a second, spread by the jitter."""
REFUSED_RETRY_NS: Final = 30 * SECOND
"""Pause after a refusal that only a person can lift."""
REQUEST_TIMEOUT_NS: Final = 10 * SECOND
"""A full batch of 1 MiB passes an uplink of 1 Mb/s in 8.4 s."""
NO_PRIORITY: Final = 8
"""The least priority of which nothing may be sent."""
HELD_LOOK_NS: Final = 5 * SECOND
"""How often an uplink that may send nothing asks whether it may now."""
_MAX_DOUBLINGS: Final = 16
"""Failures in a row that are counted: the pause has long reached its maximum."""
_MAX_SEQUENCE_DIGITS: Final = 18
"""A sequence of more digits does not fit the 63 bits that storage has for it."""


# --- what is under way ---------------------------------------------------------------------------------------------
class _Resting(Struct, frozen=True):
    """Nothing is under way until ``due_ns``."""

    due_ns: int
    failed: bool = False
    """Whether this is the pause after a failure."""
    paced: bool = False
    """Whether this is a pause that a record must not shorten either."""


class _Introducing(Struct, frozen=True):
    """An empty batch, which introduces the ledger."""


class _NotingIntroduction(Struct, frozen=True):
    """Storage writes that the relay knows the ledger."""


class _Renumbering(Struct, frozen=True):
    """Storage shifts the sequences."""

    first_sequence: int


class _Carrying(Struct, frozen=True):
    """A batch of records and fates."""

    plan: BatchPlan


class _Probing(Struct, frozen=True):
    """An empty batch, which tells whether the relay refuses only the one record of ``plan``."""

    plan: BatchPlan
    refusal: RelayRefusal


_Step = _Resting | _Introducing | _NotingIntroduction | _Renumbering | _Carrying | _Probing


class Uplink:
    """The uplink of one life of a node. Instants are monotonic nanoseconds unless they are called ``utc``."""

    def __init__(
        self, ledger: Ledger, node: NodeId, incarnation: Incarnation, random: Random,
        sealer: BatchSealer | None = None, bytes_per_s: int = 0,
    ) -> None:  # fmt: skip
        """The first batch is due at once. ``random`` spreads the pauses of many nodes. Without a ``sealer``, batches
        have no receipts. ``bytes_per_s``: the pace of records; 0: none is kept."""
        self._bytes_per_s = bytes_per_s
        self._owed_ns = 0
        """How long what was sent last takes at that pace."""
        self._least_priority, self._why_held = 0, ""
        self._state_before = UplinkState.STARTING
        self._ledger, self._random, self._sealer = ledger, random, sealer
        self._node, self._incarnation = node, incarnation
        self._step: _Step = _Resting(-NEVER)
        self._state, self._detail = UplinkState.STARTING, ""
        self._failures = 0
        self._largest_batch = MAX_BATCH_RECORDS
        self._again = 0
        """How many records the batch had that is sent again; 0: there is none."""
        self._batches = self._batches_failed = 0
        self._effects: list[UplinkEffect] = []
        self._events: list[UplinkEvent] = []

    # --- what is asked of it ---------------------------------------------------------------------------------------
    @property
    def state(self) -> UplinkState:
        """Whether the relay takes this node's records, and if not, what kind of fault prevents it."""
        return self._state

    @property
    def detail(self) -> str:
        """The reason when records are not taken; empty otherwise."""
        return self._detail

    @property
    def is_resting(self) -> bool:
        """Whether nothing is under way: neither a batch nor something that storage has to report."""
        return isinstance(self._step, _Resting)

    def counters(self) -> dict[str, int]:
        """Batches that were answered, batches that were not taken, and receipts that were made."""
        counters = {"batches": self._batches, "batches_failed": self._batches_failed}
        return counters if self._sealer is None else counters | self._sealer.counters()

    def outgoing(self) -> list[UplinkEffect]:
        """Effects decided since the last call, to be performed in this order."""
        effects, self._effects = self._effects, []
        return effects

    def events(self) -> list[UplinkEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def batch(self, plan: BatchPlan, records: tuple[Record, ...]) -> bytes:
        """The frame of the batch under way. ``records``: those of the plan, in its order. It is signed here, so the
        thread that makes the request calls this, while nothing else of the uplink is called."""
        return encode_batch(self._node, self._incarnation, plan, records, self._sealer)

    def allow(self, least_priority: int, why: str = "") -> None:
        """Send only records of at least that priority from now on; 0: all, ``NO_PRIORITY``: none. ``why``: what holds
        back the others."""
        self._least_priority, self._why_held = least_priority, why
        if not least_priority and self._state is UplinkState.HELD:
            self._enter(self._state_before, "")

    # --- time ------------------------------------------------------------------------------------------------------
    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next. ``NEVER``: something is under way, or nothing waits."""
        return self._step.due_ns if isinstance(self._step, _Resting) else NEVER

    def handle_timer(self, now: MonotonicNs, utc_now: UtcNs) -> None:
        """Send the next batch when it is due."""
        if not isinstance(self._step, _Resting) or now < self._step.due_ns:
            return
        if self._step.failed and self._ledger.expire(utc_now):
            self._effects.append(SaveLedger())
        if self._least_priority and not self._ledger.has_pending(self._least_priority):
            self._hold()
            self._step = _Resting(now + HELD_LOOK_NS)
            return
        if not self._ledger.introduced:
            self._step = _Introducing()
            self._send_empty(self._ledger.first_sequence)
            return
        plan = self._ledger.next_batch(
            utc_now, min(self._largest_batch, self._again or self._largest_batch), self._least_priority,
            self._bytes_per_s or MAX_BATCH_BYTES,
        )  # fmt: skip
        if plan is None:
            self._step = _Resting(NEVER)
        else:
            self._owed_ns = plan.size_bytes * SECOND // self._bytes_per_s if self._bytes_per_s else 0
            self._step = _Carrying(plan)
            self._effects.append(SendBatch(plan, REQUEST_TIMEOUT_NS))

    def wake(self, now: MonotonicNs) -> None:
        """A record was issued: send it at once, unless this is a pause after a failure."""
        if isinstance(self._step, _Resting) and not self._step.failed and not self._step.paced:
            self._step = _Resting(min(self._step.due_ns, now))

    # --- what became of a batch ------------------------------------------------------------------------------------
    def receive(self, answer: Acknowledgement | RelayRefusal, now: MonotonicNs) -> None:
        """The relay answered the batch under way. :raises LocalProtocolError: when there is none."""
        step = self._step
        self._batches += 1
        match step:
            case _Introducing():
                self._introduced(answer, now)
            case _Carrying():
                self._carried(step.plan, answer, now)
            case _Probing():
                self._probed(step, answer, now)
            case _Resting() | _NotingIntroduction() | _Renumbering():
                raise LocalProtocolError("an answer came to the uplink while no batch was under way")
            case _:
                assert_never(step)

    def unanswered(self, detail: str, now: MonotonicNs) -> None:
        """No valid answer came to the batch under way, and none will."""
        self._give_up()
        self._fail(UplinkState.UNREACHABLE, detail, now)

    def unreadable(self, detail: str, now: MonotonicNs) -> None:
        """Storage can't give the records of the batch under way; nothing was sent."""
        self._give_up()
        self._fail(UplinkState.STORAGE, detail, now)

    def _give_up(self) -> None:
        if isinstance(self._step, _Carrying | _Probing):
            self._send_again(self._step.plan)

    def _send_again(self, plan: BatchPlan) -> None:
        """The relay may have the batch under way, or may take it later."""
        self._again = len(plan.sequences)
        self._ledger.abandoned()

    def _introduced(self, answer: Acknowledgement | RelayRefusal, now: int) -> None:
        if self._ledger.introduced:  # a neighbour brought the relay's answer meanwhile
            self._succeed(now)
            return
        if isinstance(answer, Acknowledgement):
            self._ledger.introduce()
            self._step = _NotingIntroduction()
            self._effects.append(SaveLedger())
            return
        first_sequence = untrusted_sequence(answer)
        if first_sequence is not None and self._ledger.can_begin_at(first_sequence):
            self._step = _Renumbering(first_sequence)
            self._effects.append(ShiftSequences(first_sequence - self._ledger.first_sequence))
            return
        self._refuse(answer, now)

    def _carried(self, plan: BatchPlan, answer: Acknowledgement | RelayRefusal, now: int) -> None:
        if isinstance(answer, RelayRefusal):
            self._not_carried(plan, answer, now)
            return
        self._again = 0
        if self._sealer is not None and plan.sequences:
            self._sealer.acknowledged()
        named = self._ledger.acknowledged(plan, answer)
        self._effects.append(SaveLedger())
        sent = frozenset(plan.sequences)
        self._events.append(RecordsDelivered(tuple(sequence for sequence in answer.stored if sequence in sent)))
        self._events += (RecordRefused(r.sequence, r.reason) for r in answer.refused if r.sequence in sent)
        if sent and not named:
            self._fail(UplinkState.REFUSED, "the relay's acknowledgement names none of the records sent", now)
        else:
            self._largest_batch = min(2 * self._largest_batch, MAX_BATCH_RECORDS)
            self._succeed(now)

    def _not_carried(self, plan: BatchPlan, refusal: RelayRefusal, now: int) -> None:
        if refusal.code == "malformed" and len(plan.sequences) == 1:
            self._step = _Probing(plan, refusal)
            self._send_empty(plan.next_sequence)
            return
        self._send_again(plan)
        if refusal.code == "malformed" and plan.sequences:
            self._largest_batch = len(plan.sequences) // 2
            self._step = _Resting(now)
        elif refusal.code == "certificate" and self._sealer is not None and self._sealer.certificate_is_unknown():
            self._step = _Resting(now)
        else:
            if refusal.code == "receipt" and self._sealer is not None:
                self._sealer.forget()
            self._refuse(refusal, now)

    def _probed(self, step: _Probing, answer: Acknowledgement | RelayRefusal, now: int) -> None:
        if isinstance(answer, Acknowledgement):
            (sequence,) = step.plan.sequences
            self._again = 0
            self._ledger.refuse(sequence)
            self._effects.append(SaveLedger())
            self._events.append(RecordRefused(sequence, step.refusal.detail))
            self._step = _Resting(now)
        else:
            self._send_again(step.plan)
            self._refuse(step.refusal, now)

    # --- what became of the ledger ---------------------------------------------------------------------------------
    def saved(self, now: MonotonicNs) -> None:
        """Storage has written what it was told to."""
        step = self._step
        match step:
            case _NotingIntroduction():
                self._succeed(now)
            case _Renumbering(first_sequence):
                renumbered = self._ledger.renumber(first_sequence)
                assert renumbered, "it was asked before whether it can"
                self._events.append(RecordsRenumbered(first_sequence))
                self._succeed(now)
            case _Resting() | _Introducing() | _Carrying() | _Probing():  # nothing waits for it
                pass
            case _:
                assert_never(step)

    def not_saved(self, detail: str, now: MonotonicNs) -> None:
        """Storage could not write, and nothing changed there. Most changes just go with the next transaction."""
        step = self._step
        match step:
            case _NotingIntroduction():
                self._ledger.introduce(known=False)
                self._fail(UplinkState.STORAGE, detail, now)
            case _Renumbering():
                self._fail(UplinkState.STORAGE, detail, now)
            case _Resting() | _Introducing() | _Carrying() | _Probing():  # nothing waits for it
                pass
            case _:
                assert_never(step)

    # --- what follows ----------------------------------------------------------------------------------------------
    def _send_empty(self, next_sequence: int) -> None:
        self._effects.append(SendBatch(BatchPlan((), (), next_sequence), REQUEST_TIMEOUT_NS))

    def _succeed(self, now: int) -> None:
        self._failures = 0
        if self._least_priority:
            self._hold()
        else:
            self._enter(UplinkState.CONNECTED, "")
        owed_ns, self._owed_ns = self._owed_ns, 0
        self._step = _Resting(now + owed_ns, paced=owed_ns > 0)

    def _hold(self) -> None:
        if self._state is not UplinkState.HELD:
            self._state_before = self._state
        self._enter(UplinkState.HELD, self._why_held)

    def _refuse(self, answer: RelayRefusal, now: int) -> None:
        if answer.code == "storage":
            self._fail(UplinkState.STORAGE, f"the relay can't store records: {answer.detail}", now)
            return
        detail = answer.detail
        if answer.code == "sequence":
            detail = f"it stands at record {answer.detail}, this node does not: does another node use its name?"
        self._fail(
            UplinkState.REFUSED, f"the relay refuses this node ({answer.code}): {detail}", now, REFUSED_RETRY_NS
        )  # fmt: skip

    def _fail(self, state: UplinkState, detail: str, now: int, pause_ns: int = 0) -> None:
        """Pause for ``pause_ns``, or as the failures in a row demand, less up to half of it."""
        self._batches_failed += 1
        pause_ns = pause_ns or min(RETRY_MIN_NS << self._failures, RETRY_MAX_NS)
        self._failures = min(self._failures + 1, _MAX_DOUBLINGS)
        self._enter(state, detail)
        owed_ns, self._owed_ns = self._owed_ns, 0
        self._step = _Resting(now + max(owed_ns, int(pause_ns * self._random.uniform(0.5, 1.0))), failed=True)

    def _enter(self, state: UplinkState, detail: str) -> None:
        if state is not self._state:
            self._events.append(UplinkChanged(state, detail))
        self._state, self._detail = state, detail


def decode_untrusted_answer(data: bytes) -> Acknowledgement | RelayRefusal:
    """Parse a relay's answer. :raises RemoteProtocolError: when it is not an answer."""
    frame = decode_untrusted_relay_frame(data)
    if not isinstance(frame, Acknowledgement | RelayRefusal):
        raise RemoteProtocolError(f"the relay answered with a {type(frame).__name__}")
    return frame


def untrusted_sequence(answer: RelayRefusal) -> int | None:
    """Where the relay stands, by a refusal that says so."""
    digits = answer.detail
    if answer.code != "sequence" or not (digits.isascii() and digits.isdecimal()) or len(digits) > _MAX_SEQUENCE_DIGITS:
        return None
    return int(digits)
