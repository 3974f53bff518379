"""An uplink without a disk, a network or a clock."""

from random import Random

from protocols.base.ids import Incarnation, MonotonicNs, NodeId, UtcNs
from protocols.base.limits import SECOND
from protocols.records.events import (
    SendBatch,
)
from protocols.records.ledger import BatchPlan, Ledger
from protocols.records.uplink import (
    REQUEST_TIMEOUT_NS,
    Uplink,
)
from protocols.wire.records import Acknowledgement, RelayRefusal

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
