"""The uplink in any order of events, with a disk that fills up, a process that crashes, and a way that costs money."""

from dataclasses import replace
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import Raw, msgpack

from protocols.base.ids import Incarnation, MonotonicNs, UtcNs
from protocols.base.time import NEVER
from protocols.records.events import (
    SendBatch,
    ShiftSequences,
    UplinkState,
)
from protocols.records.ledger import Counters, Ledger
from protocols.records.pending import LedgerEntry
from protocols.records.uplink import (
    NO_PRIORITY,
    Uplink,
)
from protocols.wire.codec import decode_untrusted_relay_frame
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RefusedRecord, RelayRefusal
from tests.tools.strategies import EXPLORE
from tests.tools.uplink_fixture import ME, at, utc


class UplinkAgainstModel(RuleBasedStateMachine):
    """A node with a disk that fills up and a process that crashes, and a relay that keeps each record once.

    ``lost`` are sequences that went with a lost disk: only those may be missing at the relay.
    """

    @initialize(max_records=st.integers(1, 8))
    def start(self, max_records: int) -> None:
        self.max_records = max_records
        self.now, self.made, self.disk_full = at(1), 0, False
        self.counters = Counters()
        self.rows: dict[int, tuple[LedgerEntry, bytes]] = {}
        self.fates: dict[int, Fate] = {}
        self.at_relay: dict[int, bytes] = {}
        self.told: dict[int, str] = {}
        self.stands_at = 0
        self.lost: set[int] = set()
        self.under_way: bytes | None = None
        self.least, self.was_held = 0, False
        self.begin()

    def begin(self) -> None:
        entries = [replace(entry, sequence=sequence) for sequence, (entry, _) in sorted(self.rows.items())]
        self.ledger = Ledger(self.max_records, 2**20, self.counters, entries, self.fates.values())
        self.uplink = Uplink(self.ledger, ME, Incarnation(1), Random(1))
        self.uplink.allow(self.least, "held")
        self.under_way = None

    def write(self, shift: int = 0) -> bool:
        if self.disk_full:
            return False
        changes, counters = self.ledger.changes(), self.ledger.counters()
        for sequence in changes.removed:
            self.rows.pop(sequence, None)
        for first, fate in changes.fates.items():
            if fate is None:
                self.fates.pop(first, None)
            else:
                self.fates[first] = fate
        self.ledger.changes_saved()
        self.rows = {sequence + shift: row for sequence, row in self.rows.items()}
        moved = [Fate(f.first + shift, f.last + shift, f.state) for f in self.fates.values()]
        self.fates = {fate.first: fate for fate in moved}
        first, following = counters.first_sequence + shift, counters.next_sequence + shift
        self.counters = replace(counters, first_sequence=first, next_sequence=following)
        return True

    def perform(self) -> None:
        while effects := self.uplink.outgoing():
            for effect in effects:
                if isinstance(effect, SendBatch):
                    assert self.under_way is None, "one batch at a time"
                    records = tuple(Record(s, "r", Raw(self.rows[s][1])) for s in effect.plan.sequences)
                    self.under_way = self.uplink.batch(effect.plan, records)
                elif self.write(effect.shift if isinstance(effect, ShiftSequences) else 0):
                    self.uplink.saved(self.now)
                else:
                    self.uplink.not_saved("the disk is full", self.now)

    # --- the relay -------------------------------------------------------------------------------------------------
    def take(self, data: bytes) -> Acknowledgement | RelayRefusal:
        batch = decode_untrusted_relay_frame(data)
        assert isinstance(batch, Batch)
        if batch.next_sequence < self.stands_at:
            return RelayRefusal("sequence", str(self.stands_at))
        self.stands_at = batch.next_sequence
        refused = []
        for record in batch.records:
            content = bytes(record.reading)
            assert self.at_relay.setdefault(record.sequence, content) == content, "two records of one sequence"
            if content.endswith(b"0"):  # kept here only to see that it does not come as another one
                refused.append(RefusedRecord(record.sequence, "unsuitable"))
        for fate in batch.fates:
            self.told.update(dict.fromkeys(range(fate.first, fate.last + 1), fate.state))
        contents = list(self.at_relay.values())
        assert len(contents) == len(set(contents)), "one record under two sequences"
        highest = max((record.sequence for record in batch.records), default=0)
        if not self.was_held:  # urgent records overtake the others, which come later
            self.assert_no_hole_before(highest)
        stored = tuple(r.sequence for r in batch.records if not bytes(r.reading).endswith(b"0"))
        return Acknowledgement(stored, tuple(refused))

    def assert_no_hole_before(self, sequence: int) -> None:
        assert set(range(1, sequence)) <= self.at_relay.keys() | self.told.keys() | self.lost, "a hole at the relay"

    # --- what may happen -------------------------------------------------------------------------------------------
    def due(self) -> None:
        due_ns = self.uplink.next_timer_at()
        if due_ns < NEVER:
            self.now = MonotonicNs(max(self.now, due_ns))
            self.uplink.handle_timer(self.now, utc(self.now))
            self.perform()

    def exchange(self, arrives: bool, comes_back: bool, refusal: str) -> None:
        if self.under_way is None:
            return
        data, self.under_way = self.under_way, None
        answer = None
        if arrives:
            answer = RelayRefusal(refusal, "no") if refusal else self.take(data)
        if answer is None or not comes_back:
            self.uplink.unanswered("no answer", self.now)
        else:
            self.uplink.receive(answer, self.now)
        self.perform()

    @rule(count=st.integers(1, 3), priority=st.integers(0, 7), lifespan=st.integers(0, 3))
    def put(self, count: int, priority: int, lifespan: int) -> None:
        for _ in range(0 if self.disk_full else count):
            self.made += 1
            expires = UtcNs(self.now + at(lifespan)) if lifespan else 0
            entry = LedgerEntry(self.ledger.next_sequence, 10, priority, expires)
            assert self.write()
            self.rows[entry.sequence] = (entry, msgpack.encode(str(self.made)))
            self.counters = replace(self.counters, next_sequence=entry.sequence + 1)
            self.ledger.issue_all([entry], utc(self.now))
            self.uplink.wake(self.now)

    @rule()
    def send(self) -> None:
        self.due()

    @rule(exchanges=st.lists(st.sampled_from(["", "", "lost", "answer lost", "malformed", "storage", "version"])))
    def carry(self, exchanges: list[str]) -> None:
        """A while of good and bad luck."""
        for luck in exchanges:
            self.due()
            refusal = luck if luck in ("malformed", "storage", "version") else ""
            self.exchange(luck != "lost", luck != "answer lost", refusal)

    @rule(least=st.sampled_from([0, 3, 6, NO_PRIORITY]))
    def hold(self, least: int) -> None:
        """The way to the relay leads over another network."""
        self.least, self.was_held = least, self.was_held or least > 0
        self.uplink.allow(least, "held")

    @rule(kind=st.sampled_from(["full disk", "crash", "crash", "lost disk"]), arrives=st.booleans())
    def suffer(self, kind: str, arrives: bool) -> None:
        """What the disk did not take is forgotten in a crash, and what is under way may still arrive."""
        if kind == "full disk":
            self.disk_full = True
            return
        if kind == "lost disk":
            if not self.ledger.introduced or self.disk_full:
                return
            self.lost |= set(range(1, max(self.stands_at, self.ledger.next_sequence)))
            self.counters, self.rows, self.fates = Counters(), {}, {}
        if self.under_way is not None and arrives:
            self.take(self.under_way)
        self.begin()

    @rule()
    def recover(self) -> None:
        """When everything is well again, all that waits arrives."""
        self.hold(0)
        was_full, self.disk_full = self.disk_full, False
        if was_full:  # what it did not take goes with the next transaction
            assert self.write()
        for _ in range(200):
            if self.under_way is not None:
                self.exchange(True, True, "")
            elif self.uplink.next_timer_at() < NEVER:
                self.due()
        assert self.ledger.pending == self.ledger.untold_fates == 0
        assert self.rows == self.fates == {}, "storage knows it too"
        assert self.was_held or self.uplink.state in (UplinkState.CONNECTED, UplinkState.STARTING)
        self.assert_no_hole_before(self.stands_at)
        assert self.uplink.is_resting

    @invariant()
    def it_never_sleeps_on_work(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.adds_up()
        assert self.uplink.is_resting == (self.under_way is None)
        if self.under_way is None and (self.ledger.pending or not self.ledger.introduced):
            assert self.uplink.next_timer_at() < NEVER


TestUplinkAgainstModel = UplinkAgainstModel.TestCase
TestUplinkAgainstModel.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=not EXPLORE
)
