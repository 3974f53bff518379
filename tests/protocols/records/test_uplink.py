"""What the uplink decides: which batch, when, and what an answer means, without a disk, a network or a clock."""

import pytest

from protocols.base.errors import LocalProtocolError, RemoteProtocolError
from protocols.base.limits import MAX_BATCH_RECORDS
from protocols.base.time import NEVER
from protocols.records.events import (
    RecordRefused,
    RecordsDelivered,
    RecordsRenumbered,
    SaveLedger,
    ShiftSequences,
    UplinkChanged,
    UplinkState,
)
from protocols.records.ledger import BatchPlan
from protocols.records.uplink import (
    REFUSED_RETRY_NS,
    RETRY_MAX_NS,
    RETRY_MIN_NS,
    decode_untrusted_answer,
)
from protocols.wire.codec import encode_frame
from protocols.wire.records import Acknowledgement, Batch, Fate, RefusedRecord, RelayRefusal
from tests.tools.uplink_fixture import Carried, at, utc


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
