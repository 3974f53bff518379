"""The ledger: the fate of every record on its way to the relay.

    pending ──► delivered   the relay has it on disk
            ├─► expired     its lifespan ended first
            ├─► evicted     a bound was reached: of the payer that gives way, the lowest priority goes first, then
            │               the oldest; see :mod:`protocols.records.pending`
            └─► refused     the relay will never take it

Records get the sequences 1, 2, 3, … without gaps, each record ends in exactly one state, and at every moment
``issued == pending + delivered + expired + evicted + refused``. Records that ended undelivered are kept as ranges of
sequences (:class:`~protocols.wire.records.Fate`) until the relay has acknowledged them, and are only counted then.

Records are offered in the order of their sequence, and never before the fates of all that are missing below them. So
the relay knows that a hole below the highest sequence it has is a loss, not a delay. The exceptions are urgent records
while others are held back (``least_priority`` of :meth:`Ledger.next_batch`) and batches that neighbours carry: until
the others come, the relay calls them missing.

Records of the batch under way are neither expired nor evicted, because the relay may be storing them right now. When
no answer comes, the node can't know whether it did. Such a record may end as expired or evicted here and still be at
the relay, but a record that ended as delivered is there.

A record expires by the time that it has waited. When the clock is set, the times at which records expire move with it,
see :meth:`Ledger.clock_was_set`. Over a restart only the clock can tell how much time has passed.

The ledger decides and its storage (``meshnode.records.outbox_file``) writes: :meth:`Ledger.changes` says what to delete
and write, and :meth:`Ledger.changes_saved` notes that it was done.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MAX_CARRIED_BATCH_BYTES,
    MAX_FATES_PER_BATCH,
    MAX_RECORD_LIFESPAN_S,
    SECOND,
)
from protocols.base.time import NEVER
from protocols.records.curated import Curated
from protocols.records.egress.passed import PassedPolicies, PolicyMark
from protocols.records.fates import FateRanges, LostState
from protocols.records.pending import MAX_PAYERS, OTHERS, OWN, LedgerEntry, PendingRecords
from protocols.wire.records import Acknowledgement, Fate

SWEEP_INTERVAL_NS: Final = SECOND
"""Expired records are looked for this often: a look at 100,000 records takes about 10 ms."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batch to send next."""

    sequences: tuple[int, ...]
    """The records in it, oldest first."""
    fates: tuple[Fate, ...]
    next_sequence: int
    policy: bytes = b""
    """The digest of the egress policy that all of the records passed; empty: none is known."""
    size_bytes: int = field(default=0, compare=False)
    """The bytes of its records."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What storage has to write in one transaction. The counters are written whole each time."""

    removed: list[int]
    """Sequences of the records to delete."""
    fates: dict[int, Fate | None]
    """By first sequence: the range to write, or None for a range to delete."""
    policies: tuple[PolicyMark, ...] | None = None
    """All marks, to be written instead of those that are there; None: they are as they were."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The ledger without its pending records and untold fates. Storage keeps it in one row."""

    first_sequence: int = 1
    """1, or the sequence at which the relay told a node without memory to go on."""
    next_sequence: int = 1
    delivered: int = 0
    expired: int = 0
    evicted: int = 0
    refused: int = 0
    introduced: bool = False
    """Whether the relay knows that this ledger begins at ``first_sequence``."""


class Ledger:
    """Accounts for the records of one node."""

    def __init__(
        self,
        max_records: int,
        max_bytes: int,
        counters: Counters | None = None,
        pending: Iterable[LedgerEntry] = (),
        fates: Iterable[Fate] = (),
        policy: bytes = b"",
    ) -> None:
        """An empty ledger, or one read back from storage, with ``pending`` in order of sequence. The bounds may be
        smaller than they were when it was written. ``policy``: the digest of the egress policy that records pass from
        now on; empty: none.

        :raises LocalProtocolError: when a bound is below 1, or what was read back does not add up.
        """
        if max_records < 1 or max_bytes < 1:
            raise LocalProtocolError(f"a ledger of {max_records} records and {max_bytes} bytes: use 1 or more of each")
        self._max_records, self._max_bytes = max_records, max_bytes
        self._evicted: Counter[str] = Counter()
        self._policy = policy
        self.restore(counters or Counters(), pending, fates)

    def restore(
        self, counters: Counters, pending: Iterable[LedgerEntry], fates: Iterable[Fate],
        policies: Iterable[PolicyMark] = (),
    ) -> None:  # fmt: skip
        """Forget everything and take what storage has. This ends the batch under way.

        :raises LocalProtocolError: when that does not add up.
        """
        self._first_sequence, self._next_sequence = counters.first_sequence, counters.next_sequence
        self._introduced = counters.introduced
        self._delivered = counters.delivered
        self._lost: dict[LostState, int] = {
            "expired": counters.expired,
            "evicted": counters.evicted,
            "refused": counters.refused,
        }
        self._next_sweep_ns = 0
        self._pending = PendingRecords(pending)
        self._fates = FateRanges(fates)
        self._passed = PassedPolicies(policies)
        oldest = next((entry.sequence for entry in self._pending.oldest_first()), self._next_sequence)
        self._passed.begin(self._policy, self._next_sequence, oldest)
        self._removed: list[int] = []
        if not self.adds_up():
            raise LocalProtocolError(f"the ledger read back does not add up: {self.statistics()}")
        self._evict()

    # --- what is asked of it ---------------------------------------------------------------------------------------
    @property
    def first_sequence(self) -> int:
        """The sequence of the first record that was ever issued."""
        return self._first_sequence

    @property
    def next_sequence(self) -> int:
        """The sequence of the next record."""
        return self._next_sequence

    @property
    def introduced(self) -> bool:
        """Whether the relay knows this ledger. Until then no record may be sent, see :meth:`renumber`."""
        return self._introduced

    @property
    def pending(self) -> int:
        """How many records wait."""
        return self._pending.count

    @property
    def first_pending(self) -> int:
        """The sequence of the oldest record that waits; :attr:`next_sequence` when none does."""
        return next((entry.sequence for entry in self._pending.oldest_first()), self._next_sequence)

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait."""
        return self._pending.size_bytes

    @property
    def untold_fates(self) -> int:
        """How many ranges of fates the relay does not know yet."""
        return len(self._fates)

    def counters(self) -> Counters:
        """What storage keeps in one row."""
        return Counters(
            self._first_sequence,
            self._next_sequence,
            self._delivered,
            self._lost["expired"],
            self._lost["evicted"],
            self._lost["refused"],
            self._introduced,
        )

    def statistics(self) -> dict[str, int]:
        """How many records were issued, ended in each state and wait."""
        return {
            "issued": self._next_sequence - self._first_sequence,
            "pending": self.pending,
            "pending_bytes": self.pending_bytes,
            "delivered": self._delivered,
            "expired": self._lost["expired"],
            "evicted": self._lost["evicted"],
            "refused": self._lost["refused"],
            "untold_fates": len(self._fates),
        }

    def evicted_by_payer(self) -> dict[str, int]:
        """How many records of each payer were evicted in this life of the node. Beyond ``MAX_PAYERS``, payers are
        counted together."""
        return dict(self._evicted)

    def adds_up(self) -> bool:
        """Whether each record issued is pending or in exactly one end state."""
        issued = self._next_sequence - self._first_sequence
        return issued == self.pending + self._delivered + sum(self._lost.values()) and issued >= 0

    # --- what happens to records -----------------------------------------------------------------------------------
    def upcoming(self, records: Iterable[Curated], now: UtcNs) -> list[LedgerEntry]:
        """The entries of these records when they are issued next. Storage writes them first, because a record that is
        not on disk must not have a sequence, and :meth:`issue_all` takes them then."""
        return [
            LedgerEntry(sequence, record.size_bytes, record.priority, record.expires_utc_ns(now), record.payer)
            for sequence, record in enumerate(records, self._next_sequence)
        ]

    def issue_all(self, entries: Iterable[LedgerEntry], now: UtcNs) -> None:
        """Take the entries of :meth:`upcoming`, which are in storage now."""
        for entry in entries:
            issued = self.issue(entry.size_bytes, entry.priority, entry.expires_utc_ns, now, entry.payer)
            assert issued == entry.sequence, "nothing else was issued in between"

    def issue(self, size_bytes: int, priority: int, expires_utc_ns: int, now: UtcNs, payer: str = OWN) -> int:
        """Take a record and return its sequence.

        When a bound is reached, the least valuable record of the payer that gives way is evicted. It may be this one.
        """
        if self.pending >= self._max_records or self.pending_bytes + size_bytes > self._max_bytes:
            self.expire(now)
        sequence = self._next_sequence
        self._pending.append(LedgerEntry(sequence, size_bytes, priority, expires_utc_ns, payer))
        self._next_sequence += 1
        self._evict()
        return sequence

    def expire(self, now: UtcNs) -> int:
        """End records whose lifespan is over, at most once in ``SWEEP_INTERVAL_NS``. Returns how many ended."""
        # A clock that was set back by more than one interval must not stop the sweeps until it has caught up.
        if self._next_sweep_ns - SWEEP_INTERVAL_NS <= now < self._next_sweep_ns:
            return 0
        self._next_sweep_ns = now + SWEEP_INTERVAL_NS
        due = self._pending.expired(now)
        for sequence in due:
            self._lose(sequence, "expired")
        self._pending.compact()
        return len(due)

    def clock_was_set(self, step_ns: int) -> None:
        """The clock was set forward by ``step_ns``, or back if negative: each record keeps the time that it has left.
        Storage has to write all :meth:`entries` again."""
        self._pending.expire_later(step_ns)

    def bound_expiries(self, now: UtcNs) -> None:
        """Let no record wait longer than the longest lifespan, because a clock that was ahead when a former life of the
        node put it would keep it for years."""
        self._pending.expire_by(UtcNs(now + MAX_RECORD_LIFESPAN_S * SECOND))

    def has_pending(self, least_priority: int) -> bool:
        """Whether a record of at least that priority waits."""
        return self._pending.holds(least_priority)

    def next_batch(
        self, now: UtcNs, max_records: int = MAX_BATCH_RECORDS, least_priority: int = 0,
        max_bytes: int = MAX_BATCH_BYTES,
    ) -> BatchPlan | None:  # fmt: skip
        """The next batch within ``MAX_BATCH_RECORDS`` and ``MAX_BATCH_BYTES``, or None when there is nothing to tell.
        Its records passed one policy and have at least that priority. One record may be larger than ``max_bytes``.

        The batch is under way until :meth:`acknowledged` or :meth:`abandoned` is called. There is one at a time.
        """
        if self._pending.has_pinned:
            raise LocalProtocolError("a batch is under way: report what became of it first")
        chosen: dict[int, int] = {}
        room = min(max_bytes, MAX_BATCH_BYTES)
        end = NEVER
        for entry in self._pending.oldest_first(least_priority):
            if len(chosen) >= min(max_records, MAX_BATCH_RECORDS):
                break
            if 0 < entry.expires_utc_ns <= now:
                self._lose(entry.sequence, "expired")
                continue
            room -= entry.size_bytes
            if chosen and (room < 0 or entry.sequence >= end):
                break
            if not chosen:
                end = self._passed.end_of(entry.sequence)
            chosen[entry.sequence] = entry.size_bytes
        plan = self._planned(chosen)
        if not plan.sequences and not plan.fates:
            return None
        self._pending.pin(plan.sequences)
        return plan

    def batch_to_hand_over(
        self, now: UtcNs, handed: Sequence[tuple[int, int]], max_bytes: int = MAX_CARRIED_BATCH_BYTES
    ) -> BatchPlan | None:
        """A batch for a neighbour to carry, or None when all records have been handed over.

        It is like :meth:`next_batch`, but its records may end like all others meanwhile, and any number of such batches
        can be on their way. ``handed``: the first and the last sequence of each of those, in order.
        """
        self.expire(now)
        chosen: dict[int, int] = {}
        room, end = max_bytes, NEVER
        skipped = 0
        for entry in self._pending.oldest_first():
            while skipped < len(handed) and handed[skipped][1] < entry.sequence:
                skipped += 1
            is_handed = skipped < len(handed) and handed[skipped][0] <= entry.sequence
            if not is_handed and not 0 < entry.expires_utc_ns <= now:
                room -= entry.size_bytes
                if chosen and (room < 0 or entry.sequence >= end or len(chosen) >= MAX_BATCH_RECORDS):
                    break
                if not chosen:
                    end = self._passed.end_of(entry.sequence)
                chosen[entry.sequence] = entry.size_bytes
            elif is_handed and chosen:
                break  # a batch has all that waits between its first and its last record
        plan = self._planned(chosen)
        return plan if plan.sequences else None

    def _planned(self, chosen: Mapping[int, int]) -> BatchPlan:
        """A batch of these records, and the fates that the relay has to hear before them. ``chosen``: their sizes in
        bytes by sequence, oldest first."""
        sequences = list(chosen)
        fates = self._fates.in_order(MAX_FATES_PER_BATCH + 1)
        if len(fates) > MAX_FATES_PER_BATCH:
            untold = fates.pop()
            sequences = [sequence for sequence in chosen if sequence < untold.first]
        policy = self._passed.of(sequences[0]) if sequences else b""
        size_bytes = sum(chosen[sequence] for sequence in sequences)
        return BatchPlan(tuple(sequences), tuple(fates), self._next_sequence, policy, size_bytes)

    def acknowledged(self, plan: BatchPlan, answer: Acknowledgement) -> int:
        """The relay has the batch on disk. Returns how many of its records it says something of. Some of them may have
        ended before, by way of a neighbour.

        Sequences that were not in the batch are ignored, and records that the answer does not name stay pending.
        """
        for fate in plan.fates:
            self._fates.forget(fate)
        sent = frozenset(plan.sequences)
        named = 0
        for sequence in answer.stored:
            if sequence in sent:
                named += 1
                self._deliver(sequence)
        for refused in answer.refused:
            if refused.sequence in sent:
                named += 1
                self._lose(refused.sequence, "refused")
        self._pending.unpin()
        return named

    def carried(self, answer: Acknowledgement, fates: Iterable[Fate] = ()) -> int:
        """The relay has a batch on disk that a neighbour carried. Returns how many records it ended.

        What a relay says of a sequence of this ledger is true for ever, so the batch itself need not be known any more.
        ``fates``: those in it, if it is. Only a ledger that the relay knows may be told, see :meth:`renumber`.
        """
        for fate in fates:
            self._fates.forget(fate)
        ended = sum(self._deliver(sequence) for sequence in answer.stored)
        return ended + sum(self._lose(refused.sequence, "refused") is not None for refused in answer.refused)

    def _deliver(self, sequence: int) -> bool:
        if self._pending.remove(sequence) is None:
            return False
        self._removed.append(sequence)
        self._delivered += 1
        return True

    def abandoned(self) -> None:
        """No answer came for the batch under way: its records are pending as before."""
        self._pending.unpin()
        self._evict()

    def refuse(self, sequence: int) -> None:
        """The relay can't even read this pending record. This ends the batch under way."""
        self._lose(sequence, "refused")
        self._pending.unpin()

    def introduce(self, known: bool = True) -> None:
        """Note that the relay knows this ledger, which can't be renumbered from now on.

        ``known=False`` takes that back when storage could not write it down: after a crash the ledger would have to ask
        again, and records sent meanwhile would come a second time under other sequences.
        """
        self._introduced = known

    def renumber(self, first_sequence: int) -> bool:
        """Go on at ``first_sequence``, where the relay stands, because the memory of this node was lost. This ends the
        batch under way. Storage has to add the same difference to every sequence.

        Returns False and changes nothing when the relay knows this ledger already, so that another node must be using
        this node's name, or when the relay stands before it.
        """
        self._pending.unpin()
        if not self.can_begin_at(first_sequence):
            return False
        shift = first_sequence - self._first_sequence
        self._removed = []
        self._first_sequence += shift
        self._next_sequence += shift
        self._pending.shift(shift)
        self._fates = self._fates.shifted(shift)
        self._passed.shift(shift)
        return True

    def can_begin_at(self, first_sequence: int) -> bool:
        """Whether :meth:`renumber` with this sequence would change anything."""
        return not self._introduced and first_sequence > self._first_sequence

    # --- what storage has to do ------------------------------------------------------------------------------------
    def changes(self) -> Changes:
        """What storage has not written yet."""
        return Changes(self._removed, self._fates.changes(), self._passed.changes())

    def changes_saved(self) -> None:
        """All of :meth:`changes` is in storage."""
        self._removed = []
        self._fates.changes_saved()
        self._passed.changes_saved()

    def entries(self) -> list[LedgerEntry]:
        """The pending records, in order of sequence."""
        return list(self._pending.oldest_first())

    def fates(self) -> list[Fate]:
        """The ranges that the relay does not know yet, in order."""
        return self._fates.in_order()

    # --- ends of records -------------------------------------------------------------------------------------------
    def _evict(self) -> None:
        """Evict until the bounds hold."""
        while self.pending > self._max_records or self.pending_bytes > self._max_bytes:
            sequence = self._pending.least_valuable(in_bytes=self.pending <= self._max_records)
            if sequence is None:
                break
            payer = self._lose(sequence, "evicted")
            if payer is not None and (payer in self._evicted or len(self._evicted) < MAX_PAYERS):
                self._evicted[payer] += 1
            else:
                self._evicted[OTHERS] += 1
        self._pending.compact()

    def _lose(self, sequence: int, state: LostState) -> str | None:
        """End a pending record undelivered, and return who pays for it. None: it is not pending."""
        payer = self._pending.remove(sequence)
        if payer is not None:
            self._removed.append(sequence)
            self._lost[self._fates.add(sequence, state)] += 1
        return payer
