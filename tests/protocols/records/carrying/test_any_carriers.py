"""A node and its relay with carriers between them that lose, repeat, reorder and make up what they like."""

import hashlib
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocols.access import AccessTable
from protocols.base.ids import NodeId, Role, UtcNs
from protocols.base.limits import SECOND
from protocols.machine import HeardEntry
from protocols.records.carrying.events import CheckReply, SealBatch
from protocols.records.carrying.machine import Carrying
from protocols.records.carrying.sealed import encode_relay_key
from protocols.records.carrying.settings import CarryingSettings
from protocols.records.ledger import BatchPlan, Ledger
from protocols.wire.carrying.contents import RelayKey
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedBatch, SealedState
from protocols.wire.records import Acknowledgement
from tests.tools.strategies import EXPLORE

CARRIERS = tuple(NodeId(f"bus-{number}") for number in range(3))
PUBLIC = bytes(32)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


KEY = sha256(PUBLIC)[:8]
_CARRIER = st.sampled_from(CARRIERS)
_STATE = st.sampled_from(["taken", "taken", "taken", "full", "forbidden", "dropped", "unable"])


class CarriersAgainstModel(RuleBasedStateMachine):
    """The seal is a number here, and only the relay of the model can make a reply that holds."""

    @initialize(introduced=st.booleans())
    def begin(self, introduced: bool) -> None:
        self.now = SECOND
        self.ledger = Ledger(10_000, 2**30)
        self.ledger.introduce(introduced)
        self.relay: set[int] = set()
        self.sealed: dict[bytes, BatchPlan] = {}
        """What was in each seal."""
        self.with_carriers: list[tuple[NodeId, bytes]] = []
        self.replies: list[bytes] = []
        """Ids of batches that the relay has signed for."""
        self.restart()

    def restart(self) -> None:
        self.machine = Carrying(
            CarryingSettings(after_ns=0, patience_ns=20 * SECOND), AccessTable(), lambda *_: True, sha256
        )  # fmt: skip
        body = encode_relay_key(RelayKey(1, PUBLIC, zstd=False))
        self.machine.heard(HeardEntry(NodeId("relay-1"), "relay-key", 1, 0, body, CARRIERS[0], b"r"), self.now)
        self.settle()

    def settle(self) -> None:
        """Do what a driver does, until nothing is new."""
        ledger = self.ledger
        for _ in range(10_000):
            self.machine.look(False, ledger.introduced, ledger.first_pending, ledger.next_sequence, self.now)
            effects, messages = self.machine.outgoing(), self.machine.messages()
            self.machine.events()
            for node, frame in messages:
                if isinstance(frame, SealedBatch) and node is not None:
                    self.with_carriers.append((node, frame.sealed))
            for effect in effects:
                self.perform(effect)
            if not effects:
                return
        raise AssertionError("it never comes to rest")

    def perform(self, effect: Any) -> None:
        ledger = self.ledger
        if isinstance(effect, SealBatch):
            if ledger.introduced:
                plan = ledger.batch_to_hand_over(UtcNs(self.now), effect.handed)
            else:
                plan = None if effect.is_introducing else BatchPlan((), (), ledger.first_sequence)
            if plan is None:
                self.machine.nothing_sealed(self.now)
                return
            data = b"seal %d" % len(self.sealed)
            self.sealed[data] = plan
            self.machine.sealed(sha256(data)[:16], plan, KEY, data, self.now)
        elif isinstance(effect, CheckReply):
            is_believed = effect.reply == b"signed" and effect.sealed in self.replies
            if is_believed:
                self.apply(
                    next(p for data, p in self.sealed.items() if sha256(data)[:16] == effect.sealed), effect.plan
                )
            self.machine.reply_checked(effect.carrier, effect.sealed, self.now, is_believed=is_believed)

    def apply(self, sent: BatchPlan, known: BatchPlan | None) -> None:
        if known is not None and not known.sequences:
            self.ledger.introduce()
        elif self.ledger.introduced:
            self.ledger.carried(Acknowledgement(sent.sequences), () if known is None else known.fates)

    @rule(count=st.integers(1, 300))
    def record(self, count: int) -> None:
        for _ in range(count):
            self.ledger.issue(1_000, 3, 0, UtcNs(self.now))
        self.settle()

    @rule(carrier=_CARRIER, carries=st.sampled_from([True, True, False]))
    def meet(self, carrier: NodeId, carries: bool) -> None:
        offer = CarrierOffer(KEY if carries else b"", 1 << 20)
        self.machine.receive(offer, carrier, Role.VEHICLE, self.now)
        self.settle()

    @rule(carrier=_CARRIER)
    def part(self, carrier: NodeId) -> None:
        self.machine.neighbour_gone(carrier, self.now)
        self.settle()

    @rule(data=st.data(), state=_STATE)
    def say(self, data: st.DataObject, state: str) -> None:
        if self.with_carriers:
            node, sealed = data.draw(st.sampled_from(self.with_carriers))
            self.machine.receive(SealedState(sha256(sealed)[:16], state), node, Role.VEHICLE, self.now)
            self.settle()

    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """Once more, perhaps, and in any order."""
        if self.with_carriers:
            _, sealed = data.draw(st.sampled_from(self.with_carriers))
            self.relay.update(self.sealed[sealed].sequences)
            self.replies.append(sha256(sealed)[:16])

    @rule(data=st.data(), carrier=_CARRIER, forged=st.booleans())
    def bring_back(self, data: st.DataObject, carrier: NodeId, forged: bool) -> None:
        named = [sha256(sealed)[:16] for _, sealed in self.with_carriers] if forged else self.replies
        if named:
            reply = RelayReply(data.draw(st.sampled_from(named)), b"forged" if forged else b"signed")
            self.machine.receive(reply, carrier, Role.VEHICLE, self.now)
            self.settle()

    @rule()
    def deliver_directly(self) -> None:
        """The node is in coverage for a moment."""
        self.ledger.introduce()
        if (plan := self.ledger.next_batch(UtcNs(self.now))) is not None:
            self.relay.update(plan.sequences)
            self.ledger.acknowledged(plan, Acknowledgement(plan.sequences))
        self.settle()

    @rule(seconds=st.integers(1, 120))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND
        self.machine.handle_timer(self.now)
        self.settle()

    @rule()
    def start_again(self) -> None:
        self.restart()

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.adds_up()
        pending = {entry.sequence for entry in self.ledger.entries()}
        ended = set(range(1, self.ledger.next_sequence)) - pending
        assert ended <= self.relay, "a record ended that the relay does not have"
        assert self.ledger.statistics()["delivered"] == len(ended)

    def teardown(self) -> None:
        """One honest carrier is enough for all that waits."""
        if not hasattr(self, "ledger"):
            return
        honest = NodeId("honest")
        self.now += 4_000 * SECOND
        self.restart()
        for _ in range(100):
            self.machine.receive(CarrierOffer(KEY, 1 << 20), honest, Role.VEHICLE, self.now)
            self.settle()
            mine = [sealed for node, sealed in self.with_carriers if node == honest]
            self.with_carriers.clear()
            if not mine:
                break
            for sealed in mine:
                self.machine.receive(SealedState(sha256(sealed)[:16], "taken"), honest, Role.VEHICLE, self.now)
                self.relay.update(self.sealed[sealed].sequences)
                self.replies.append(sha256(sealed)[:16])
                self.machine.receive(RelayReply(sha256(sealed)[:16], b"signed"), honest, Role.VEHICLE, self.now)
                self.settle()
        assert self.ledger.pending == 0
        assert self.relay == set(range(1, self.ledger.next_sequence))


CarriersAgainstModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=not EXPLORE
)
TestCarriersAgainstModel = CarriersAgainstModel.TestCase
