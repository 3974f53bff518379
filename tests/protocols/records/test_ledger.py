"""The fate of every record: one end state each, gapless sequences, and sums that always add up."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_FATES_PER_BATCH, SECOND
from protocols.records import fates, pending
from protocols.records import ledger as ledger_module
from protocols.records.ledger import BatchPlan, Counters, Ledger
from protocols.records.pending import LedgerEntry
from protocols.wire.records import Acknowledgement, Fate, RefusedRecord


def at(seconds: float) -> UtcNs:
    return UtcNs(int(seconds * SECOND))


def issue(ledger: Ledger, count: int = 1, size_bytes: int = 10, priority: int = 3, expires_s: float = 0) -> list[int]:
    return [ledger.issue(size_bytes, priority, at(expires_s), at(1)) for _ in range(count)]


def batch(ledger: Ledger, now_s: float = 1, **options: Any) -> BatchPlan:
    plan = ledger.next_batch(at(now_s), **options)
    assert plan is not None
    return plan


def test_issue_full_evicts_lowest_priority_then_oldest() -> None:
    """A full outbox must give up old speed samples before a hazard."""
    ledger = Ledger(3, 1000)
    issue(ledger, priority=5)
    issue(ledger, 2, priority=1)
    issue(ledger, priority=3)
    assert [entry.sequence for entry in ledger.entries()] == [1, 3, 4]
    issue(ledger, priority=0)
    assert [entry.sequence for entry in ledger.entries()] == [1, 3, 4], "the new one was worth least"
    assert ledger.fates() == [Fate(2, 2, "evicted"), Fate(5, 5, "evicted")]


def test_issue_flood_of_one_node_evicts_only_its_own_records_and_a_quarter_of_ours() -> None:
    """A neighbour can invent keys without end; what it pushes out must be its own."""
    ledger = Ledger(100, 100_000)
    issue(ledger, 80, priority=1)
    quiet = [ledger.issue(10, 1, 0, at(1), payer) for payer in ("v-1", "v-2") for _ in range(5)]
    for _ in range(1_000):
        ledger.issue(10, 7, 0, at(1), "v-9")
    payers = Counter(entry.payer for entry in ledger.entries())
    assert payers == {"": 75, "v-1": 5, "v-2": 5, "v-9": 15} or payers == {"": 74, "v-1": 5, "v-2": 5, "v-9": 16}
    assert set(quiet) <= {entry.sequence for entry in ledger.entries()}
    evicted = ledger.evicted_by_payer()
    assert set(evicted) == {"", "v-9"}
    assert sum(evicted.values()) == ledger.statistics()["evicted"]


def test_issue_own_records_push_out_those_of_others_before_any_own() -> None:
    """Own work never waits behind that of others. Of others, the node that holds most gives way."""
    ledger = Ledger(100, 1_000)
    for payer, count in (("v-1", 10), ("v-2", 60), ("v-3", 20)):
        for _ in range(count):
            ledger.issue(10, 7, 0, at(1), payer)
    issue(ledger, 70, priority=0)
    payers = Counter(entry.payer for entry in ledger.entries())
    assert payers == {"": 70, "v-1": 10, "v-2": 10, "v-3": 10}


def test_issue_flood_of_invented_nodes_is_counted_together_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each eviction looks at each payer, so invented names must not make it slow."""
    monkeypatch.setattr(pending, "MAX_PAYERS", 4)
    monkeypatch.setattr(ledger_module, "MAX_PAYERS", 4)
    ledger = Ledger(20, 1_000)
    issue(ledger, 5)
    for number in range(100):
        ledger.issue(10, 3, 0, at(1), f"v-{number}")
    payers = Counter(entry.payer for entry in ledger.entries())
    assert payers == {"": 5, "v-0": 1, "v-1": 1, "v-2": 1, "v-3": 1, "*": 11}
    assert ledger.evicted_by_payer() == {"*": 85}


def test_issue_bytes_full_evicts_until_it_fits() -> None:
    """The bound in bytes protects the disk when records are large."""
    ledger = Ledger(100, 100)
    issue(ledger, 5, size_bytes=20)
    issue(ledger, 1, size_bytes=50)
    assert [entry.sequence for entry in ledger.entries()] == [4, 5, 6]
    assert ledger.pending_bytes == 90


def test_issue_full_expired_records_go_before_valid_ones() -> None:
    """What is worthless anyway must not push out what is not."""
    ledger = Ledger(2, 1000)
    ledger.issue(10, 7, at(2), at(1))
    ledger.issue(10, 0, 0, at(1))
    ledger.issue(10, 0, 0, at(5))
    assert [entry.sequence for entry in ledger.entries()] == [2, 3]
    assert ledger.fates() == [Fate(1, 1, "expired")]


def test_next_batch_bounds_hold_and_order_is_that_of_sequences() -> None:
    """A batch must pass a poor uplink within its time-out."""
    ledger = Ledger(1000, 2**30)
    issue(ledger, 300)
    assert batch(ledger).sequences == tuple(range(1, MAX_BATCH_RECORDS + 1))
    ledger.abandoned()
    large = Ledger(1000, 2**30)
    issue(large, 10, size_bytes=MAX_BATCH_BYTES // 3)
    assert batch(large).sequences == (1, 2, 3)


def test_next_batch_expired_records_are_told_instead_of_sent() -> None:
    """Uplink time spent on worthless records is taken from the others."""
    ledger = Ledger(10, 1000)
    issue(ledger, 2, expires_s=5)
    issue(ledger, 1)
    plan = batch(ledger, 5)
    assert (plan.sequences, plan.fates) == ((3,), (Fate(1, 2, "expired"),))


def test_next_batch_more_fates_than_fit_sends_no_record_beyond_them() -> None:
    """The relay takes a hole below a stored record for a loss: the fates of the missing must never come later."""
    ledger = Ledger(10_000, 2**30)
    for _ in range(MAX_FATES_PER_BATCH + 5):
        issue(ledger, 1)
        issue(ledger, 1, expires_s=2)
    ledger.expire(at(3))
    known: set[int] = set()
    while (plan := ledger.next_batch(at(3))) is not None:
        known.update(plan.sequences)
        for fate in plan.fates:
            known.update(range(fate.first, fate.last + 1))
        assert known.issuperset(range(1, max(plan.sequences, default=1)))
        ledger.acknowledged(plan, Acknowledgement(plan.sequences))
    assert ledger.pending == 0
    assert ledger.untold_fates == 0


def test_next_batch_twice_without_outcome_is_refused() -> None:
    """Two batches under way could deliver records out of order."""
    ledger = Ledger(10, 1000)
    issue(ledger)
    batch(ledger)
    with pytest.raises(LocalProtocolError):
        ledger.next_batch(at(1))


def test_records_under_way_are_neither_evicted_nor_expired() -> None:
    """The relay may be storing them right now: they would end in two states."""
    ledger = Ledger(2, 1000)
    issue(ledger, 2, priority=0, expires_s=5)
    plan = batch(ledger)
    issue(ledger, 2, priority=7)
    ledger.expire(at(100))
    assert ledger.acknowledged(plan, Acknowledgement((1, 2))) == 2
    assert ledger.statistics()["delivered"] == 2
    assert ledger.statistics()["evicted"] == 2


def test_abandoned_batch_makes_its_records_evictable_again() -> None:
    """An unreachable relay must not pin the oldest records for ever."""
    ledger = Ledger(2, 1000)
    issue(ledger, 2, priority=0)
    batch(ledger)
    issue(ledger, 1, priority=7)
    ledger.abandoned()
    issue(ledger, 2, priority=7)
    assert [entry.sequence for entry in ledger.entries()] == [4, 5]


def test_acknowledged_foreign_and_unnamed_sequences_change_nothing() -> None:
    """A confused relay must not be able to make a node forget what was never sent."""
    ledger = Ledger(10, 1000)
    issue(ledger, 4)
    plan = batch(ledger, max_records=2)
    assert ledger.acknowledged(plan, Acknowledgement((2, 3, 99), (RefusedRecord(4, "no"),))) == 1
    assert [entry.sequence for entry in ledger.entries()] == [1, 3, 4]


def test_acknowledged_fate_that_grew_meanwhile_keeps_the_rest() -> None:
    """What ended after the batch was made has not been told yet."""
    ledger = Ledger(10, 1000)
    issue(ledger, 3, expires_s=5)
    issue(ledger, 2, expires_s=9)
    plan = batch(ledger, 5)
    assert plan.fates == (Fate(1, 3, "expired"),)
    ledger.abandoned()
    ledger.expire(at(20))
    assert ledger.fates() == [Fate(1, 5, "expired")]
    ledger.acknowledged(plan, Acknowledgement(()))
    assert ledger.fates() == [Fate(4, 5, "expired")]
    assert ledger.statistics()["expired"] == 5


def test_fates_alternating_for_months_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a relay, ranges of alternating states would otherwise grow with time, not with what waits."""
    monkeypatch.setattr(fates, "MAX_FATE_RANGES", 10)
    ledger = Ledger(5, 1000)
    for step in range(2_000):
        ledger.issue(10, step % 2, at(step + 2) if step % 2 else 0, at(step))
    assert ledger.untold_fates <= 10 + 5 + 1
    assert ledger.adds_up()


def test_expire_clock_set_back_still_sweeps() -> None:
    """A receiver that gets its first fix may set the clock back by years."""
    ledger = Ledger(10, 1000)
    ledger.expire(at(10_000))
    issue(ledger, 1, expires_s=50)
    assert ledger.expire(at(60)) == 1


def test_renumber_new_ledger_goes_on_where_the_relay_stands() -> None:
    """A node that lost its disk must not reuse sequences: the relay would refuse every record as a conflict."""
    ledger = Ledger(2, 1000)
    issue(ledger, 3)
    assert ledger.renumber(101)
    plan = batch(ledger)
    assert plan == BatchPlan((102, 103), (Fate(101, 101, "evicted"),), 104)
    assert ledger.acknowledged(plan, Acknowledgement((102, 103))) == 2
    assert ledger.adds_up()
    assert ledger.statistics()["issued"] == 3


def test_renumber_known_ledger_or_backwards_is_refused() -> None:
    """Records that the relay has would otherwise come a second time under other names."""
    ledger = Ledger(10, 1000)
    issue(ledger, 1)
    assert not ledger.renumber(1)
    ledger.introduce()
    assert not ledger.renumber(101)


def test_ledger_read_back_that_does_not_add_up_is_refused() -> None:
    """A storage that lost rows must be noticed at the start, not at the audit."""
    with pytest.raises(LocalProtocolError, match="add up"):
        Ledger(10, 1000, Counters(next_sequence=5))


def test_ledger_bound_below_one_is_refused() -> None:
    """An outbox that can hold nothing is a mistake in a configuration, not a wish."""
    with pytest.raises(LocalProtocolError):
        Ledger(0, 1000)


def test_refuse_ends_the_record_and_the_batch_under_way() -> None:
    """A record that the relay can't read must not be offered again, nor hold up those after it."""
    ledger = Ledger(10, 1000)
    issue(ledger, 2)
    batch(ledger, max_records=1)
    ledger.refuse(1)
    ledger.refuse(1)
    plan = batch(ledger)
    assert (plan.sequences, plan.fates) == ((2,), (Fate(1, 1, "refused"),))
    assert ledger.statistics()["refused"] == 1


def test_acknowledged_fates_again_change_nothing() -> None:
    """A late duplicate of an acknowledgement must not touch ranges that came into being since."""
    ledger = Ledger(10, 1000)
    issue(ledger, 1, expires_s=5)
    issue(ledger, 1)
    issue(ledger, 1, expires_s=9)
    plan = batch(ledger, 5, max_records=1)
    assert (plan.sequences, plan.fates) == ((2,), (Fate(1, 1, "expired"),))
    ledger.acknowledged(plan, Acknowledgement((2,)))
    ledger.acknowledged(plan, Acknowledgement((2,)))
    ledger.expire(at(20))
    ledger.acknowledged(plan, Acknowledgement((2,)))
    assert ledger.fates() == [Fate(3, 3, "expired")]
    assert ledger.statistics()["delivered"] == 1


def test_acknowledged_fates_of_another_shape_are_not_forgotten() -> None:
    """A range that was joined to another since the batch was made has not been told in that state."""
    ledger = Ledger(10, 1000)
    issue(ledger, 2, expires_s=5)
    ledger.expire(at(6))
    assert ledger.fates() == [Fate(1, 2, "expired")]
    for told in (Fate(1, 3, "expired"), Fate(1, 2, "evicted"), Fate(0, 0, "expired")):
        ledger.acknowledged(BatchPlan((), (told,), 3), Acknowledgement(()))
    assert ledger.fates() == [Fate(1, 2, "expired")]


class LedgerAgainstModel(RuleBasedStateMachine):
    """Any order of events; the model knows each record's state, and storage only what ``changes`` told it."""

    @initialize(max_records=st.integers(1, 12), max_bytes=st.integers(20, 300))
    def start(self, max_records: int, max_bytes: int) -> None:
        self.bounds = max_records, max_bytes
        self.ledger = Ledger(max_records, max_bytes)
        self.now = 1
        self.plan: BatchPlan | None = None
        self.stored_rows: dict[int, tuple[int, int, int, str]] = {}
        self.stored_fates: dict[int, Fate] = {}
        self.at_relay: set[int] = set()
        self.turned_away: set[int] = set()
        """What the relay refused, whether its answer came back or not."""
        self.fates_at_relay: dict[int, str] = {}
        self.ended: dict[int, str] = {}
        self.told: set[int] = set()

    def save(self) -> None:
        changes = self.ledger.changes()
        for sequence in changes.removed:
            del self.stored_rows[sequence]
        for first, fate in changes.fates.items():
            if fate is None:
                self.stored_fates.pop(first, None)
            else:
                self.stored_fates[first] = fate
        self.ledger.changes_saved()
        for fate in self.ledger.fates():
            for sequence in range(fate.first, fate.last + 1):
                assert self.ended.setdefault(sequence, fate.state) == fate.state, "a second end state"

    @rule(
        size=st.integers(1, 60), priority=st.integers(0, 7), lifespan=st.integers(0, 5),
        payer=st.sampled_from(["", "", "v-1", "v-2"]),
    )  # fmt: skip
    def put(self, size: int, priority: int, lifespan: int, payer: str) -> None:
        expires = (self.now + lifespan) * SECOND if lifespan else 0
        expected = self.ledger.next_sequence
        self.stored_rows[expected] = (size, priority, expires, payer)
        assert self.ledger.issue(size, priority, expires, at(self.now), payer) == expected
        self.save()

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.ledger.expire(at(self.now))
        self.save()

    @precondition(lambda self: self.plan is None)
    @rule(most=st.integers(1, 5))
    def send(self, most: int) -> None:
        self.plan = self.ledger.next_batch(at(self.now), most)
        if self.plan is not None:
            for sequence in self.plan.sequences:
                assert sequence not in self.ended, "offered after its end"
        self.save()

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data(), arrives=st.booleans(), answer_arrives=st.booleans())
    def answer(self, data: st.DataObject, arrives: bool, answer_arrives: bool) -> None:
        assert self.plan is not None
        plan, self.plan = self.plan, None
        refused = {s for s in plan.sequences if data.draw(st.integers(0, 4)) == 0 and s not in self.at_relay}
        stored = [s for s in plan.sequences if s not in refused]
        if arrives:
            self.at_relay.update(stored)
            for fate in plan.fates:
                for sequence in range(fate.first, fate.last + 1):
                    assert self.fates_at_relay.setdefault(sequence, fate.state) == fate.state
            self.turned_away |= refused
            highest = max(self.at_relay, default=0)
            known = self.at_relay | set(self.fates_at_relay) | self.turned_away
            assert set(range(1, highest)) <= known, "a hole at the relay"
        if arrives and answer_arrives:
            self.told.update(s for fate in plan.fates for s in range(fate.first, fate.last + 1))
            self.ledger.acknowledged(plan, Acknowledgement(tuple(stored), tuple(RefusedRecord(s, "") for s in refused)))
            for sequence in stored:
                assert self.ended.setdefault(sequence, "delivered") == "delivered"
        else:
            self.ledger.abandoned()
        self.save()

    @precondition(lambda self: self.plan is None)
    @rule()
    def restart(self) -> None:
        """Read back from what storage was told, as after a SIGKILL."""
        before = self.ledger.statistics()
        entries = [LedgerEntry(sequence, *row) for sequence, row in sorted(self.stored_rows.items())]
        self.ledger = Ledger(*self.bounds, self.ledger.counters(), entries, self.stored_fates.values())
        assert self.ledger.statistics() == before

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "ledger"):
            return
        statistics = self.ledger.statistics()
        assert self.ledger.adds_up()
        assert {entry.sequence for entry in self.ledger.entries()} == set(self.stored_rows)
        assert {fate.first: fate for fate in self.ledger.fates()} == self.stored_fates
        assert statistics["pending"] <= self.bounds[0]
        assert statistics["pending_bytes"] <= self.bounds[1]
        assert set(self.ended) | set(self.stored_rows) == set(range(1, self.ledger.next_sequence))
        assert not set(self.ended) & set(self.stored_rows)
        untold = {s for fate in self.ledger.fates() for s in range(fate.first, fate.last + 1)}
        assert untold == {s for s, state in self.ended.items() if state != "delivered"} - self.told
        ended = Counter(self.ended.values())
        for state in ("delivered", "expired", "evicted", "refused"):
            assert statistics[state] == ended[state]


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
