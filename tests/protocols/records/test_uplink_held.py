"""What the uplink holds back while the way to the relay costs money, and the pace that it keeps."""

from protocols.base.limits import SECOND
from protocols.records.events import (
    UplinkState,
)
from protocols.records.ledger import BatchPlan
from protocols.records.uplink import (
    HELD_LOOK_NS,
    NO_PRIORITY,
)
from protocols.wire.records import Acknowledgement
from tests.tools.uplink_fixture import Carried, utc


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
