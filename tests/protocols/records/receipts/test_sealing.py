"""Receipts on their way: one for each batch, unchanged when it is sent again, by one policy each."""

import hashlib
from random import Random

from msgspec import Raw

from protocols.base.ids import Incarnation, MeshName, MonotonicNs, NodeId, UtcNs
from protocols.base.limits import SECOND
from protocols.records.events import SendBatch, UplinkState
from protocols.records.ledger import BatchPlan, Ledger
from protocols.records.receipts.sealing import BatchSealer
from protocols.records.uplink import REFUSED_RETRY_NS, Uplink
from protocols.wire.codec import decode_untrusted_relay_frame
from protocols.wire.records import Acknowledgement, Batch, Receipt, Record, RelayRefusal

POLICY, OTHER = bytes(range(32)), bytes(32)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Key:
    """A key whose signatures tell how many were made."""

    def __init__(self, name: bytes) -> None:
        self.certificate = b"certificate " + name
        self.certificate_id = sha256(self.certificate)[:8]
        self.signed = 0

    def sign(self, statement: bytes) -> bytes:
        self.signed += 1
        return b"%d" % self.signed


class Sealing:
    """An uplink with a sealer, whose storage never fails; the records are one byte each."""

    def __init__(self, records: int = 0, policy: bytes = POLICY) -> None:
        self.key = Key(b"first")
        self.sealer = BatchSealer(MeshName("demo"), NodeId("v-1"), Incarnation(7), lambda: self.key, sha256)
        self.ledger = Ledger(10_000, 2**30, policy=policy)
        self.uplink = Uplink(self.ledger, NodeId("v-1"), Incarnation(7), Random(1), self.sealer)
        self.now = MonotonicNs(SECOND)
        self.issue(records)
        introduction = self.due()
        assert introduction is not None
        assert introduction.receipt is None, "there is nothing to sign"
        self.answer(Acknowledgement(()))

    def issue(self, count: int, expires_s: int = 0) -> None:
        for _ in range(count):
            self.ledger.issue(10, 3, expires_s * SECOND, UtcNs(self.now))

    def due(self) -> Batch | None:
        """The batch that is sent now, as the relay reads it."""
        self.now = MonotonicNs(max(self.now, min(self.uplink.next_timer_at(), self.now + 2 * REFUSED_RETRY_NS)))
        self.uplink.handle_timer(self.now, UtcNs(self.now))
        plans = [effect.plan for effect in self.uplink.outgoing() if isinstance(effect, SendBatch)]
        return self.frame(plans[0]) if plans else None

    def frame(self, plan: BatchPlan) -> Batch:
        records = tuple(Record(sequence, "r", Raw(b"\x01")) for sequence in plan.sequences)
        batch = decode_untrusted_relay_frame(self.uplink.batch(plan, records))
        assert isinstance(batch, Batch)
        return batch

    def sent(self) -> tuple[list[int], Receipt, bytes]:
        """Sequences, receipt and certificate of the batch that is sent now."""
        batch = self.due()
        assert batch is not None
        assert batch.receipt is not None
        return [record.sequence for record in batch.records], batch.receipt, batch.certificate

    def answer(self, answer: Acknowledgement | RelayRefusal) -> None:
        self.uplink.receive(answer, self.now)
        while self.uplink.outgoing():
            self.ledger.changes_saved()
            self.uplink.saved(self.now)


def test_batch_without_answer_is_sent_again_with_its_receipt_before_what_came_later() -> None:
    """A sealed batch stays what it is until the relay has it; only then the next one is sealed."""
    sealing = Sealing(2)
    first = sealing.sent()
    assert first[0] == [1, 2]
    for _ in range(3):
        sealing.uplink.unanswered("lost", sealing.now)
        sealing.issue(3)
        assert sealing.sent() == first
    sealing.answer(RelayRefusal("storage"))
    assert sealing.sent() == first
    assert sealing.key.signed == 1
    sealing.answer(Acknowledgement((1, 2)))
    sequences, receipt, certificate = sealing.sent()
    assert sequences == list(range(3, 12))
    assert (receipt.first, receipt.last, receipt.records, certificate) == (3, 11, 9, b"")
    assert sealing.uplink.counters()["receipts"] == 2


def test_batch_that_lost_a_record_gets_a_receipt_of_its_own() -> None:
    """A receipt is about exactly the records that come with it."""
    sealing = Sealing()
    sealing.issue(1, expires_s=3)
    sealing.issue(2)
    assert sealing.sent()[0] == [1, 2, 3]
    sealing.uplink.unanswered("lost", sealing.now)
    sealing.now = MonotonicNs(10 * SECOND)
    sequences, receipt, _ = sealing.sent()
    assert (sequences, receipt.records) == ([2, 3], 2)


def test_certificate_goes_along_until_the_relay_knows_it_and_when_it_asks() -> None:
    """It is three times as large as a receipt; a relay that was restarted must get it all the same."""
    sealing = Sealing(1)
    assert sealing.sent()[2] == sealing.key.certificate
    sealing.answer(Acknowledgement((1,)))
    sealing.issue(1)
    sequences, receipt, certificate = sealing.sent()
    assert certificate == b""
    sealing.answer(RelayRefusal("certificate"))
    assert sealing.sent() == (sequences, receipt, sealing.key.certificate), "at once, with the same receipt"
    sealing.answer(RelayRefusal("certificate"))
    assert sealing.uplink.state is UplinkState.REFUSED, "a relay that asks for ever is not answered in a loop"
    assert sealing.uplink.next_timer_at() >= sealing.now + REFUSED_RETRY_NS // 2
    assert sealing.sent()[2] == sealing.key.certificate
    sealing.answer(Acknowledgement((2,)))
    sealing.key = Key(b"renewed")
    sealing.issue(1)
    assert sealing.sent()[1:][1] == b"certificate renewed"


def test_refused_receipt_is_made_anew_and_its_records_wait() -> None:
    """It may be that of a certificate that has ended meanwhile. No record is lost for it, and a person is told."""
    sealing = Sealing(2)
    sealing.sent()
    sealing.key = Key(b"renewed")
    sealing.answer(RelayRefusal("receipt", "the certificate of v-1 is not valid at this time"))
    assert (sealing.ledger.pending, sealing.uplink.state) == (2, UplinkState.REFUSED)
    assert "(receipt): the certificate of v-1 is not valid" in sealing.uplink.detail
    sequences, receipt, _ = sealing.sent()
    assert (sequences, receipt.certificate) == ([1, 2], sealing.key.certificate_id)


def test_batch_has_records_of_one_policy_only() -> None:
    """A receipt that names a policy which a record never passed would be a lie with a signature."""
    before = Ledger(100, 2**20, policy=POLICY)
    for _ in range(2):
        before.issue(10, 3, 0, UtcNs(0))
    entries, counters, marks = before.entries(), before.counters(), before.changes().policies
    assert marks is not None
    later = Ledger(100, 2**20, policy=OTHER)
    later.restore(counters, entries, (), marks)
    for _ in range(2):
        later.issue(10, 3, 0, UtcNs(0))
    found = []
    while plan := later.next_batch(UtcNs(0)):
        found.append((plan.sequences, plan.policy))
        later.acknowledged(plan, Acknowledgement(plan.sequences))
    assert found == [((1, 2), POLICY), ((3, 4), OTHER)]
    without = Ledger(100, 2**20)
    without.restore(later.counters(), (), (), later.changes().policies or ())
    without.issue(10, 3, 0, UtcNs(0))
    plan = without.next_batch(UtcNs(0))
    assert plan is not None
    assert (plan.sequences, plan.policy) == ((5,), b"")


def test_marks_of_policies_move_with_the_sequences_and_don_t_pile_up() -> None:
    """A new outbox goes on where the relay stands, and a node may be restarted for years."""
    ledger = Ledger(100, 2**20, policy=POLICY)
    ledger.issue(10, 3, 0, UtcNs(0))
    ledger.changes_saved()
    assert ledger.renumber(41)
    plan = ledger.next_batch(UtcNs(0))
    assert plan is not None
    assert (plan.sequences, plan.policy) == ((41,), POLICY)
    marks = ()
    for life in range(1, 9):
        ledger = Ledger(100, 2**20, policy=bytes([life]) * 32)
        ledger.restore(ledger.counters(), (), (), marks)
        marks = ledger.changes().policies or ()
        assert len(marks) == 1
