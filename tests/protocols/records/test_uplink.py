"""What the uplink decides: which batch, when, and what an answer means, without a disk, a network or a clock."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import Raw, msgpack

from protocols.base.errors import LocalProtocolError, RemoteProtocolError
from protocols.base.ids import Incarnation, MonotonicNs, NodeId, UtcNs
from protocols.base.limits import MAX_BATCH_RECORDS, SECOND
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
from protocols.records.ledger import BatchPlan, Counters, Ledger
from protocols.records.pending import LedgerEntry
from protocols.records.uplink import (
    HELD_LOOK_NS,
    NO_PRIORITY,
    REFUSED_RETRY_NS,
    REQUEST_TIMEOUT_NS,
    RETRY_MAX_NS,
    RETRY_MIN_NS,
    Uplink,
    decode_untrusted_answer,
)
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RefusedRecord, RelayRefusal
from tests.tools.strategies import EXPLORE

ME = NodeId("v-1")


def at(seconds: int) -> MonotonicNs:
    return MonotonicNs(seconds * SECOND)


def utc(now: MonotonicNs) -> UtcNs:
    """The two clocks show the same here."""
    return UtcNs(now)


class Carried:
    """An uplink whose storage never fails, and whose exchanges the test answers."""

    def __init__(self, records: int = 0, introduced: bool = True, bytes_per_s: int = 0) -> None:
        self.ledger = Ledger(10_000, 2**30)
        self.uplink = Uplink(self.ledger, ME, Incarnation(1), Random(1), bytes_per_s=bytes_per_s)
        self.now = at(1)
        self.issue(records)
        if introduced:
            assert self.due() == BatchPlan((), (), 1)
            assert self.answered(Acknowledgement(())) == []

    def issue(self, count: int) -> None:
        for _ in range(count):
            self.ledger.issue(10, 3, 0, utc(self.now))

    def performed(self) -> list[BatchPlan]:
        """The batches to send, once storage has written what it was told to."""
        plans = []
        while effects := self.uplink.outgoing():
            for effect in effects:
                if isinstance(effect, SendBatch):
                    assert effect.timeout_ns == REQUEST_TIMEOUT_NS
                    plans.append(effect.plan)
                else:
                    self.ledger.changes_saved()
                    self.uplink.saved(self.now)
        return plans

    def due(self) -> BatchPlan | None:
        """What is sent now."""
        self.uplink.handle_timer(self.now, utc(self.now))
        plans = self.performed()
        assert len(plans) <= 1
        return plans[0] if plans else None

    def answered(self, answer: Acknowledgement | RelayRefusal) -> list[BatchPlan]:
        """What is sent at once, without waiting for the time."""
        self.uplink.receive(answer, self.now)
        return self.performed()

    def pause_ns(self) -> int:
        return self.uplink.next_timer_at() - self.now

    def wait(self) -> None:
        """Until the uplink wants to do something."""
        self.now = MonotonicNs(self.uplink.next_timer_at())


def test_records_go_out_at_once_and_the_next_batch_collects_meanwhile() -> None:
    """Load makes batches larger, not more: one exchange at a time, each with all that waits."""
    carried = Carried(records=1)
    assert carried.due() == BatchPlan((1,), (), 2)
    carried.issue(5)
    carried.uplink.wake(carried.now)
    assert carried.due() is None, "the first batch is under way"
    assert carried.uplink.next_timer_at() == NEVER
    carried.answered(Acknowledgement((1,)))
    assert carried.due() == BatchPlan((2, 3, 4, 5, 6), (), 7)


def test_records_that_a_neighbour_delivered_meanwhile_are_no_fault_of_the_relay() -> None:
    """Both ways tell of the same records, in either order."""
    carried = Carried(records=2)
    assert carried.due() == BatchPlan((1, 2), (), 3)
    carried.ledger.carried(Acknowledgement((1, 2)))
    carried.answered(Acknowledgement((1, 2)))
    assert carried.uplink.state is UplinkState.CONNECTED
    assert carried.ledger.statistics()["delivered"] == 2


def test_introduction_that_a_neighbour_brought_meanwhile_counts() -> None:
    """The relay may have taken records by then, and would refuse the older introduction for ever."""
    carried = Carried(introduced=False)
    assert carried.due() == BatchPlan((), (), 1)
    carried.ledger.introduce()
    carried.answered(RelayRefusal("sequence", "7"))
    assert carried.uplink.state is UplinkState.CONNECTED
    assert carried.ledger.first_sequence == 1


def test_idle_uplink_sends_when_it_is_woken() -> None:
    """A record must not wait for a timer while the relay is there."""
    carried = Carried()
    assert carried.due() is None
    assert carried.uplink.next_timer_at() == NEVER
    carried.issue(1)
    carried.uplink.wake(carried.now)
    assert carried.uplink.next_timer_at() <= carried.now
    assert carried.due() == BatchPlan((1,), (), 2)


def test_unanswered_batches_back_off_to_a_bound_and_start_over_after_an_answer() -> None:
    """A relay that comes back must not meet all nodes at once, nor wait minutes for them."""
    carried = Carried(records=1)
    for failures in range(30):
        assert carried.due() == BatchPlan((1,), (), 2)
        carried.uplink.unanswered("no answer", carried.now)
        full_ns = min(RETRY_MIN_NS * 2**failures, RETRY_MAX_NS)
        assert full_ns // 2 <= carried.pause_ns() <= full_ns
        carried.uplink.wake(carried.now)
        assert carried.due() is None, "a new record does not cut the pause short"
        carried.wait()
    assert carried.uplink.state is UplinkState.UNREACHABLE
    assert carried.due() is not None
    carried.answered(Acknowledgement((1,)))
    carried.issue(1)
    carried.due()
    carried.uplink.unanswered("no answer", carried.now)
    assert carried.pause_ns() <= RETRY_MIN_NS


def test_records_that_expire_in_a_pause_are_told_instead_of_sent() -> None:
    """Uplink time spent on worthless records is taken from the others."""
    carried = Carried()
    carried.ledger.issue(10, 3, utc(at(2)), utc(at(1)))
    carried.issue(1)
    carried.due()
    carried.uplink.unanswered("no answer", carried.now)
    carried.now = at(3)
    assert carried.due() == BatchPlan((2,), (Fate(1, 1, "expired"),), 3)


# --- a way that costs money ------------------------------------------------------------------------------------------
def test_only_urgent_records_are_sent_while_the_others_are_held() -> None:
    """Of three thousand that wait, the two urgent ones go, in their order, and the rest once all may."""
    carried = Carried(records=3_000)
    urgent = [carried.ledger.issue(10, 6, 0, utc(carried.now)) for _ in range(2)]
    carried.uplink.allow(6, "it leads over cell0")
    assert carried.due() == BatchPlan((3_001, 3_002), (), 3_003), urgent
    carried.answered(Acknowledgement((3_001, 3_002)))
    assert carried.due() is None
    assert (carried.uplink.state, carried.uplink.detail) == (UplinkState.HELD, "it leads over cell0")
    assert carried.pause_ns() == HELD_LOOK_NS
    carried.uplink.allow(0)
    assert carried.uplink.state is UplinkState.CONNECTED
    carried.wait()
    plan = carried.due()
    assert plan is not None
    assert plan.sequences[:3] == (1, 2, 3)


def test_nothing_at_all_is_sent_before_a_first_record_may_go() -> None:
    """Not even the empty batch that introduces the ledger: the handshake alone is 5 kB."""
    carried = Carried(records=3, introduced=False)
    carried.uplink.allow(NO_PRIORITY, "held")
    assert carried.due() is None
    carried.ledger.issue(10, 7, 0, utc(carried.now))
    carried.uplink.wake(carried.now)
    assert carried.due() is None
    carried.uplink.allow(7, "held")
    carried.uplink.wake(carried.now)
    assert carried.due() == BatchPlan((), (), 1)
    carried.answered(Acknowledgement(()))
    assert carried.due() == BatchPlan((4,), (), 5)


def test_records_keep_a_pace_also_when_nobody_answers() -> None:
    """A batch is at most what may be sent in a second, and each is paid for with a pause, however often it is sent."""
    carried = Carried(bytes_per_s=1_000)
    for _ in range(600):
        carried.ledger.issue(10, 3, 0, utc(carried.now))
    began, sent = carried.now, 0
    for turn in range(30):
        plan = carried.due()
        if plan is None:
            break
        assert plan.size_bytes <= 1_000
        sent += plan.size_bytes
        if turn % 4 == 3:
            carried.uplink.unanswered("no answer", carried.now)
        else:
            carried.answered(Acknowledgement(plan.sequences))
        carried.uplink.wake(carried.now)
        assert carried.due() is None, "a new record does not cut the pause short"
        carried.wait()
    assert carried.ledger.pending == 0
    assert sent == 7_000
    assert carried.now - began >= 7 * SECOND


@pytest.mark.parametrize("code", ["version", "identity", "sequence", "a newer word"])
def test_refusal_that_a_person_has_to_lift_is_asked_about_rarely(code: str) -> None:
    """Until then the records wait, and the relay has its peace."""
    carried = Carried(records=1)
    carried.due()
    assert carried.answered(RelayRefusal(code, "because")) == []
    assert REFUSED_RETRY_NS // 2 <= carried.pause_ns() <= REFUSED_RETRY_NS
    assert carried.ledger.pending == 1
    assert (carried.uplink.state, code in carried.uplink.detail) == (UplinkState.REFUSED, True)
    assert carried.uplink.counters() == {"batches": 2, "batches_failed": 1}


def test_unreadable_record_is_found_by_halving_and_refused_alone() -> None:
    """One record that the relay can't parse must neither block the others nor be sent for ever."""
    carried = Carried(records=MAX_BATCH_RECORDS)
    poison, exchanges = 100, 0
    delivered: list[int] = []
    while carried.ledger.pending or carried.ledger.untold_fates:
        plan = carried.due()
        while plan is not None:
            exchanges += 1
            bad = poison in plan.sequences
            sent = carried.answered(RelayRefusal("malformed", "?") if bad else Acknowledgement(plan.sequences))
            plan = sent[0] if sent else None
    for event in carried.uplink.events():
        if isinstance(event, RecordsDelivered):
            delivered += event.sequences
    assert delivered == [number for number in range(1, MAX_BATCH_RECORDS + 1) if number != poison]
    assert carried.ledger.statistics()["refused"] == 1
    assert exchanges < 30


def test_relay_that_refuses_everything_costs_no_record() -> None:
    """A broken relay must not talk a node into throwing its records away."""
    carried = Carried(records=4)
    asked = 0
    while (plan := carried.due()) is not None:
        asked += 1
        for probe in carried.answered(RelayRefusal("malformed", "everything")):
            asked += 1
            assert probe == BatchPlan((), (), 5)
            assert carried.answered(RelayRefusal("malformed", "everything")) == []
        assert plan.sequences[0] == 1
    assert (carried.ledger.pending, carried.uplink.state, asked) == (4, UplinkState.REFUSED, 4)


def test_fates_that_the_relay_can_not_read_are_kept() -> None:
    """A batch of fates alone has no record to blame."""
    carried = Carried()
    carried.ledger.issue(10, 3, utc(at(2)), utc(at(1)))
    carried.now = at(3)
    assert carried.due() == BatchPlan((), (Fate(1, 1, "expired"),), 2)
    assert carried.answered(RelayRefusal("malformed", "?")) == []
    assert carried.uplink.state is UplinkState.REFUSED
    assert carried.ledger.untold_fates == 1


def test_acknowledgement_that_names_nothing_is_a_failure() -> None:
    """Otherwise the same batch would be sent in a loop."""
    carried = Carried(records=2)
    carried.due()
    carried.answered(Acknowledgement((7, 8), (RefusedRecord(9, "no"),)))
    assert carried.uplink.state is UplinkState.REFUSED
    assert (carried.ledger.pending, carried.pause_ns() > 0) == (2, True)
    assert [event for event in carried.uplink.events() if isinstance(event, RecordRefused)] == []


def test_new_ledger_introduces_itself_and_goes_on_where_the_relay_stands() -> None:
    """A node that lost its disk must not reuse sequences: the relay would refuse every record as a conflict."""
    carried = Carried(records=3, introduced=False)
    assert carried.due() == BatchPlan((), (), 1)
    carried.answered(RelayRefusal("sequence", "101"))
    assert RecordsRenumbered(101) in carried.uplink.events()
    assert carried.due() == BatchPlan((), (), 101)
    carried.answered(Acknowledgement(()))
    assert carried.due() == BatchPlan((101, 102, 103), (), 104)


@pytest.mark.parametrize("detail", ["", "-5", "1e3", "٣٤", "9" * 19, "0", "1"])
def test_senseless_place_to_go_on_at_is_a_refusal(detail: str) -> None:
    """What a relay says is parsed like anything from a stranger."""
    carried = Carried(records=1, introduced=False)
    carried.due()
    assert carried.answered(RelayRefusal("sequence", detail)) == []
    assert (carried.uplink.state, carried.ledger.first_sequence) == (UplinkState.REFUSED, 1)


@pytest.mark.parametrize("answer", [Acknowledgement(()), RelayRefusal("sequence", "101")])
def test_introduction_that_storage_did_not_take_is_asked_for_again(answer: Acknowledgement | RelayRefusal) -> None:
    """Records sent before it is written down would be sent under other sequences after a crash."""
    carried = Carried(records=1, introduced=False)
    carried.due()
    carried.uplink.receive(answer, carried.now)
    (effect,) = carried.uplink.outgoing()
    assert effect == (SaveLedger() if isinstance(answer, Acknowledgement) else ShiftSequences(100))
    carried.uplink.not_saved("the disk is full", carried.now)
    assert carried.uplink.events() == [UplinkChanged(UplinkState.STORAGE, "the disk is full")]
    assert (carried.ledger.introduced, carried.ledger.first_sequence) == (False, 1)
    assert carried.pause_ns() > 0
    carried.wait()
    assert carried.due() == BatchPlan((), (), 1)


def test_account_that_storage_did_not_take_does_not_stop_the_uplink() -> None:
    """Records on a full disk must reach the relay: only that makes room again."""
    carried = Carried(records=1)
    carried.due()
    carried.uplink.receive(Acknowledgement((1,)), carried.now)
    assert carried.uplink.outgoing() == [SaveLedger()]
    carried.uplink.not_saved("the disk is full", carried.now)
    assert carried.uplink.state is UplinkState.CONNECTED
    carried.issue(1)
    assert carried.due() == BatchPlan((2,), (), 3)
    assert carried.ledger.changes().removed == [1], "it goes with the next transaction"


def test_records_that_storage_can_not_read_stay_pending() -> None:
    """A disk that fails for a moment must not cost a record."""
    carried = Carried(records=1)
    carried.due()
    carried.uplink.unreadable("it is damaged", carried.now)
    assert (carried.ledger.pending, carried.uplink.state) == (1, UplinkState.STORAGE)
    carried.wait()
    assert carried.due() == BatchPlan((1,), (), 2)


def test_answer_to_nothing_is_our_bug() -> None:
    """A driver that reports an exchange twice would settle a batch that it did not send."""
    carried = Carried()
    with pytest.raises(LocalProtocolError):
        carried.answered(Acknowledgement(()))


@pytest.mark.parametrize("data", [b"", b"\xff", encode_frame(Batch(1, 0, "v-1", 1, 1))])
def test_answer_that_is_none_is_malformed(data: bytes) -> None:
    """Whatever comes back, a record ends only when the relay named it."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_answer(data)


# --- any order of events -------------------------------------------------------------------------------------------
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
        self.begin()

    def begin(self) -> None:
        entries = [replace(entry, sequence=sequence) for sequence, (entry, _) in sorted(self.rows.items())]
        self.ledger = Ledger(self.max_records, 2**20, self.counters, entries, self.fates.values())
        self.uplink = Uplink(self.ledger, ME, Incarnation(1), Random(1))
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
        assert set(range(1, highest)) <= self.at_relay.keys() | self.told.keys() | self.lost, "a hole at the relay"
        stored = tuple(r.sequence for r in batch.records if not bytes(r.reading).endswith(b"0"))
        return Acknowledgement(stored, tuple(refused))

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
        assert self.uplink.state in (UplinkState.CONNECTED, UplinkState.STARTING)
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
