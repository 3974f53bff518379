"""Who is given sealed batches, who carries how much, and when that ends: without keys, disks, links or clocks."""

import hashlib

import pytest

from protocols.access import AccessRule, AccessTable
from protocols.base.effects import Effect
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.machine import HeardEntry, Message
from protocols.records.carrying.events import (
    BatchHandedOver,
    CheckReply,
    ForgetSealed,
    KeepReply,
    KeepSealed,
    SealBatch,
    UploadSealed,
)
from protocols.records.carrying.handing import (
    ANSWER_NS,
    MAX_ON_THEIR_WAY,
    PAUSE_NS,
    REFUSED_NS,
)
from protocols.records.carrying.holding import BLAMED_NS, OVERHEAD_BYTES, CarriedItem
from protocols.records.carrying.machine import Carrying
from protocols.records.carrying.sealed import encode_relay_key
from protocols.records.carrying.settings import CarryingSettings
from protocols.records.ledger import BatchPlan
from protocols.wire.carrying.contents import RelayKey
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedBatch, SealedState

V1, V2, V3 = NodeId("v-1"), NodeId("v-2"), NodeId("v-3")
PUBLIC = bytes(range(32))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sealed_id(data: bytes) -> bytes:
    return sha256(data)[:16]


KEY = sha256(PUBLIC)[:8]


class Side:
    """A machine, and what it decided."""

    def __init__(self, rules: AccessTable | None = None, **settings: object) -> None:
        self.now = SECOND
        self.machine = Carrying(
            CarryingSettings(**settings),  # type: ignore[arg-type]
            rules or AccessTable(), lambda certificate, author: certificate == b"relay" and author == "relay-1", sha256,
        )  # fmt: skip
        self.sent: list[Message] = []
        self.effects: list[Effect] = []

    def turn(self) -> "Side":
        self.sent = list(self.machine.messages())
        self.effects = list(self.machine.outgoing())
        return self

    def wait(self, seconds: float) -> "Side":
        """Let time pass, as a driver does: at each timer."""
        until = self.now + int(seconds * SECOND)
        for _ in range(10_000):
            due = self.machine.next_timer_at()
            if due > until:
                break
            self.now = max(self.now, due)
            self.machine.handle_timer(self.now)
        else:
            raise AssertionError("a timer that is always due")
        self.now = until
        return self.turn()

    def counted(self, name: str) -> int:
        return self.machine.counters()[name]


class Origin(Side):
    """A node without coverage that knows the key, with records 1 to 10 that wait."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"after_ns": 0, **settings})  # type: ignore[arg-type]
        self.key_heard()
        self.look()

    def key_heard(self, version: int = 1, key: bytes = PUBLIC, author: str = "relay-1", by: bytes = b"relay") -> None:
        body = encode_relay_key(RelayKey(1, key, zstd=False))
        self.machine.heard(HeardEntry(NodeId(author), "relay-key", version, 0, body, V3, by), self.now)

    def look(self, *, is_reached: bool = False, first: int = 1, issued: int = 11, introduced: bool = True) -> None:
        self.machine.look(is_reached, introduced, first, issued, self.now)

    def offer(self, carrier: NodeId = V2, key: bytes = KEY, room: int = 1 << 20) -> "Side":
        self.machine.receive(CarrierOffer(key, room), carrier, Role.VEHICLE, self.now)
        return self.turn()

    def seal(self, *sequences: int, data: bytes = b"sealed") -> bytes:
        """Do what a driver does for SealBatch."""
        assert [type(effect) for effect in self.effects] == [SealBatch]
        self.machine.sealed(sealed_id(data), BatchPlan(sequences, (), 11), KEY, data, self.now)
        self.turn()
        return sealed_id(data)

    def say(self, sealed: bytes, state: str, carrier: NodeId = V2) -> "Side":
        self.machine.receive(SealedState(sealed, state), carrier, Role.VEHICLE, self.now)
        return self.turn()

    def reply(self, sealed: bytes, *, good: bool = True, refusal: bool = False, carrier: NodeId = V2) -> "Side":
        self.machine.receive(RelayReply(sealed, b"reply"), carrier, Role.VEHICLE, self.now)
        (check,) = self.turn().effects
        assert isinstance(check, CheckReply)
        self.machine.reply_checked(carrier, sealed, self.now, is_believed=good, is_refusal=refusal)
        return self.turn()


# --- a node without coverage -----------------------------------------------------------------------------------------
def test_batch_is_given_unchanged_until_the_reply_holds() -> None:
    """Sealed once, in the same bytes to every carrier."""
    origin = Origin(patience_ns=100 * SECOND)
    origin.offer()
    sealed = origin.seal(1, 2, 3)
    assert origin.sent == [(V2, SealedBatch(KEY, b"sealed"))]
    assert origin.say(sealed, "taken").effects == [SealBatch(RelayKey(1, PUBLIC, zstd=False), KEY, ((1, 3),), False)]
    origin.machine.nothing_sealed(origin.now)
    assert isinstance(origin.machine.events()[0], BatchHandedOver)
    origin.machine.neighbour_gone(V2, origin.now)
    origin.offer(V3)
    assert origin.sent == [], "it is on its way"
    assert origin.wait(101).sent == [(V3, SealedBatch(KEY, b"sealed"))]
    origin.say(sealed, "taken", V3)
    assert origin.reply(sealed, good=False, carrier=V3).sent == []
    assert origin.counted("on_their_way") == 1
    assert origin.reply(sealed, carrier=V3).sent[0] == (V3, SealedState(sealed, "known"))
    assert origin.counted("on_their_way") == 0


def test_nothing_is_handed_over_while_the_relay_is_in_reach_or_was_lately() -> None:
    """A tunnel is no reason to give records away."""
    origin = Origin(after_ns=60 * SECOND)
    origin.look(is_reached=True)
    assert origin.offer().effects == []
    origin.look()
    assert origin.wait(59).effects == []
    assert [type(effect) for effect in origin.wait(2).effects] == [SealBatch]


def test_node_that_does_not_hand_over_gives_nothing() -> None:
    """The operator has said so."""
    origin = Origin(hands_over=False)
    assert origin.offer().effects == []
    assert origin.machine.next_timer_at() == NEVER


@pytest.mark.parametrize("fields", [{"by": b"vehicle"}, {"author": "relay-2"}, {"author": "v-9", "by": b""}])
def test_key_of_somebody_who_is_no_relay_is_not_used(fields: dict[str, bytes]) -> None:
    """Whoever could publish a key could read what is sealed to it."""
    origin = Origin()
    other = bytes(32)
    origin.key_heard(2, other, **fields)  # type: ignore[arg-type]
    assert origin.offer(key=sha256(other)[:8]).effects == []
    assert origin.counted("keys_refused") == 1


def test_key_of_another_relay_than_the_configured_one_is_not_used() -> None:
    """[relay] id names the only one that may read."""
    origin = Origin(relay=NodeId("relay-9"))
    assert origin.offer().effects == []


def test_newer_key_of_the_relay_replaces_what_was_sealed_to_the_older_one() -> None:
    """The older key is gone, so nobody opens it."""
    origin = Origin()
    origin.offer()
    sealed = origin.seal(1)
    origin.say(sealed, "taken")
    origin.machine.nothing_sealed(origin.now)
    origin.key_heard(1, bytes(32))
    assert origin.counted("on_their_way") == 1, "it is no newer version"
    origin.key_heard(2, bytes(32))
    assert origin.counted("on_their_way") == 0
    (effect,) = origin.offer(key=sha256(bytes(32))[:8]).effects
    assert isinstance(effect, SealBatch)
    assert (effect.key.key, effect.handed) == (bytes(32), ())


@pytest.mark.parametrize("state", ["full", "forbidden", "unable", "dropped", "a newer word"])
def test_carrier_that_does_not_take_a_batch_is_left_alone_and_another_one_gets_it(state: str) -> None:
    """It may also have dropped it later."""
    origin = Origin()
    origin.offer()
    sealed = origin.seal(1)
    assert origin.say(sealed, state).sent == []
    assert origin.offer(V3).sent == [(V3, SealedBatch(KEY, b"sealed"))]
    origin.say(sealed, state, V3)
    again = origin.wait(PAUSE_NS / SECOND + 1).sent
    assert bool(again) == (state != "forbidden")


def test_carrier_that_says_nothing_loses_the_batch_to_another_one() -> None:
    """It took the bytes and keeps silent."""
    origin = Origin()
    origin.offer()
    origin.seal(1)
    origin.offer(V3)
    assert origin.wait(ANSWER_NS / SECOND + 1).sent == [(V3, SealedBatch(KEY, b"sealed"))]
    assert origin.counted("not_taken") == 1


def test_carrier_that_was_late_gets_the_batch_again_only_when_there_is_nobody_else() -> None:
    """Found when one that throws everything away was first in the list, and got each batch for ever."""
    origin = Origin(patience_ns=10 * SECOND)
    origin.offer(V2)
    sealed = origin.seal(1)
    origin.say(sealed, "taken")
    origin.machine.nothing_sealed(origin.now)
    assert origin.wait(11).sent == [(V2, SealedBatch(KEY, b"sealed"))], "there is nobody else"
    origin.say(sealed, "taken")
    origin.offer(V3)
    assert origin.wait(11).sent == [(V3, SealedBatch(KEY, b"sealed"))]
    origin.look(issued=12)
    origin.turn()
    origin.seal(2, data=b"second")
    assert origin.counted("late") == 2
    assert origin.sent == [(V2, SealedBatch(KEY, b"second"))], "the other one is busy"


def test_word_of_a_node_that_was_not_given_the_batch_counts_for_nothing() -> None:
    """A neighbour that says 'dropped' of another one's batch."""
    origin = Origin()
    origin.offer()
    sealed = origin.seal(1)
    origin.say(sealed, "full", V3)
    origin.say(sealed, "taken", V3)
    assert origin.counted("not_taken") == origin.counted("handed_over") == 0


def test_refused_batch_is_sealed_anew_after_a_pause() -> None:
    """A clock or a certificate was wrong; the records stay at the node."""
    origin = Origin()
    origin.offer()
    sealed = origin.seal(1)
    origin.say(sealed, "taken")
    origin.machine.nothing_sealed(origin.now)
    assert origin.reply(sealed, refusal=True).effects == []
    assert origin.wait(REFUSED_NS / SECOND - 1).effects == []
    assert [type(effect) for effect in origin.wait(2).effects] == [SealBatch]


def test_batches_whose_records_have_ended_are_forgotten() -> None:
    """The node delivered them itself, or they expired."""
    origin = Origin()
    origin.offer()
    origin.say(origin.seal(1, 2), "taken")
    origin.seal(3, 4, data=b"second")
    origin.look(first=3)
    assert origin.counted("on_their_way") == 1
    origin.look(first=11)
    assert origin.counted("on_their_way") == 0


def test_batch_that_nobody_has_is_forgotten_in_coverage() -> None:
    """The node sends these records itself; what was taken may still come."""
    origin = Origin()
    origin.offer()
    sealed = origin.seal(1)
    origin.look(is_reached=True)
    assert origin.counted("on_their_way") == 1
    origin.say(sealed, "full")
    origin.look(is_reached=True)
    assert origin.counted("on_their_way") == 0


def test_introduction_goes_alone_and_records_follow_it() -> None:
    """A relay that has not heard of a ledger must say first where it begins."""
    origin = Origin()
    origin.look(introduced=False)
    origin.offer()
    sealed = origin.seal()
    (effect,) = origin.say(sealed, "taken").effects
    assert isinstance(effect, SealBatch)
    assert effect.is_introducing
    origin.machine.nothing_sealed(origin.now)
    (effect,) = origin.reply(sealed).effects
    assert isinstance(effect, SealBatch)
    assert not effect.is_introducing


def test_batches_on_their_way_are_bounded() -> None:
    """They are in memory."""
    origin = Origin()
    origin.offer()
    for number in range(1, MAX_ON_THEIR_WAY + 1):
        origin.say(origin.seal(number, data=b"%d" % number), "taken")
    assert origin.effects == []
    assert origin.counted("on_their_way") == MAX_ON_THEIR_WAY


def test_batch_too_large_for_a_carrier_goes_to_one_with_room() -> None:
    """A carrier says how much of one node it takes."""
    origin = Origin()
    origin.offer(room=3)
    origin.seal(1)
    assert origin.sent == []
    assert origin.offer(V3).sent == [(V3, SealedBatch(KEY, b"sealed"))]


def test_flood_of_replies_is_bounded() -> None:
    """Each costs a signature check and a look at the outbox."""
    origin = Origin()
    for number in range(100):
        origin.machine.receive(RelayReply(b"%16d" % number, b"x"), V2, Role.VEHICLE, origin.now)
    assert len(origin.turn().effects) == 16
    assert origin.counted("replies_over_bound") == 84


# --- a carrier -------------------------------------------------------------------------------------------------------
class Carrier(Side):
    """A node that reaches the relay."""

    def __init__(self, rules: AccessTable | None = None, **settings: object) -> None:
        super().__init__(rules, **{"max_bytes": 1 << 20, **settings})  # type: ignore[arg-type]
        self.machine.relay_answered(KEY, self.now)
        self.turn()

    def given(self, data: bytes, source: NodeId = V1, role: Role = Role.VEHICLE, key: bytes = KEY) -> str:
        self.machine.receive(SealedBatch(key, data), source, role, self.now)
        states = [
            frame.state for node, frame in self.turn().sent
            if isinstance(frame, SealedState) and (node, frame.sealed) == (source, sealed_id(data))
        ]  # fmt: skip
        return states[0] if states else ""

    def uploading(self) -> list[bytes]:
        return [effect.sealed for effect in self.effects if isinstance(effect, UploadSealed)]

    def uploaded(self, data: bytes, reply: bytes = b"reply", code: str = "") -> "Side":
        self.machine.uploaded(sealed_id(data), reply, code, self.now)
        return self.turn()


def test_batch_is_taken_brought_to_the_relay_and_the_reply_back() -> None:
    """The whole way of one batch, with the maker away in between."""
    carrier = Carrier()
    assert carrier.machine.greetings() == (CarrierOffer(KEY, 1 << 18),)
    assert carrier.given(b"one") == "taken"
    assert carrier.effects == [KeepSealed(sealed_id(b"one"), V1, KEY, b"one"), UploadSealed(sealed_id(b"one"), V1, KEY)]
    assert carrier.uploaded(b"one").effects == [KeepReply(sealed_id(b"one"), V1, KEY, b"reply")]
    assert carrier.sent == []
    for _ in range(2):
        carrier.machine.neighbour_met(V1, Role.VEHICLE, carrier.now)
        assert carrier.turn().sent == [(V1, RelayReply(sealed_id(b"one"), b"reply"))]
        carrier.machine.neighbour_gone(V1, carrier.now)
    carrier.machine.receive(SealedState(sealed_id(b"one"), "known"), V3, Role.VEHICLE, carrier.now)
    assert carrier.counted("held") == 1, "another node can't say that"
    carrier.machine.receive(SealedState(sealed_id(b"one"), "known"), V1, Role.VEHICLE, carrier.now)
    assert carrier.turn().effects == [ForgetSealed(sealed_id(b"one"))]
    assert (carrier.counted("held"), carrier.counted("held_bytes")) == (0, 0)


def test_batch_that_comes_again_is_taken_once_or_answered() -> None:
    """The node was started again, or did not hear the first answer."""
    carrier = Carrier()
    carrier.machine.neighbour_met(V1, Role.VEHICLE, carrier.now)
    assert [carrier.given(b"one") for _ in range(3)] == ["taken"] * 3
    assert carrier.counted("taken") == 1
    carrier.uploaded(b"one")
    carrier.given(b"one")
    assert (V1, RelayReply(sealed_id(b"one"), b"reply")) in carrier.sent


def test_carrier_without_a_relay_takes_nothing_and_says_so() -> None:
    """An hour after the relay answered last, it is no carrier any more."""
    carrier = Carrier()
    assert carrier.given(b"one", key=bytes(8)) == "unable"
    assert carrier.wait(3_601).sent == [(None, CarrierOffer(b"", 0))]
    assert carrier.given(b"one") == "unable"
    assert carrier.machine.greetings() == ()
    carrier.machine.relay_answered(KEY, carrier.now)
    assert carrier.turn().sent == [(None, CarrierOffer(KEY, 1 << 18))]


def test_roles_that_no_rule_lets_are_refused() -> None:
    """Verb 'carry'; tools have it not by default."""
    table = AccessTable((AccessRule(Role.VEHICLE, "carry", "v-1"), AccessRule(Role.RSU, "carry", "**")))
    carrier = Carrier(table)
    assert carrier.given(b"one") == "taken"
    assert carrier.given(b"two", V2) == "forbidden"
    assert carrier.given(b"two", V2, Role.RSU) == "taken"
    assert Carrier().given(b"one", role=Role.TOOL) == "forbidden"
    assert Carrier(carries=False).given(b"one") == "forbidden"


def test_flood_of_one_node_takes_its_share_and_pushes_nobody_out() -> None:
    """A quarter is for one node."""
    carrier = Carrier(max_bytes=40 * OVERHEAD_BYTES)
    assert carrier.given(b"quiet", V2) == "taken"
    states = [carrier.given(b"%d" % number) for number in range(30)]
    assert states.count("taken") == 9
    assert states[-1] == "full"
    assert carrier.given(b"quiet again", V2) == "taken"


def test_newest_batch_of_the_largest_gives_way_when_the_room_is_full() -> None:
    """Five nodes share what four have filled, and the maker is told, so that it can ask another one."""
    carrier = Carrier(max_bytes=40 * OVERHEAD_BYTES)
    nodes = [NodeId(f"v-{number}") for number in range(1, 6)]
    for node in nodes[:4]:
        carrier.machine.neighbour_met(node, Role.VEHICLE, carrier.now)
        for number in range(9):
            assert carrier.given(f"{node} {number}".encode(), node) == "taken"
    states = [carrier.given(f"fifth {number}".encode(), nodes[4]) for number in range(9)]
    assert states[:4] == ["taken"] * 4
    assert carrier.counted("held_bytes") <= 40 * OVERHEAD_BYTES
    assert carrier.counted("gave_way") == states.count("taken") - 3
    assert states.count("taken") == 7, "as much as each of the others has then, at least"
    assert "full" in states


def test_uploads_take_nodes_by_turns() -> None:
    """Who gives much delays others by one batch of its own at most."""
    carrier = Carrier()
    for number in range(4):
        carrier.given(b"v-1 %d" % number)
    carrier.given(b"v-2", V2)
    order = []
    uploading = [sealed_id(b"v-1 0")]
    while uploading:
        order.append(uploading[0])
        carrier.machine.uploaded(uploading[0], b"reply", "", carrier.now)
        uploading = carrier.turn() and carrier.uploading()
    assert order[:3] == [sealed_id(b"v-1 0"), sealed_id(b"v-2"), sealed_id(b"v-1 1")]
    assert len(order) == 5


def test_garbage_costs_its_maker_and_not_the_others() -> None:
    """The relay could not open it: others are carried on, and the maker waits."""
    carrier = Carrier()
    carrier.given(b"garbage")
    carrier.given(b"good", V2)
    assert carrier.uploaded(b"garbage", b"", "sealed").effects == [
        ForgetSealed(sealed_id(b"garbage")), UploadSealed(sealed_id(b"good"), V2, KEY),
    ]  # fmt: skip
    assert carrier.given(b"more garbage") == "unable"
    assert carrier.given(b"good again", V2) == "taken"
    assert carrier.counted("garbage") == carrier.counted("blamed") == 1
    carrier.now += BLAMED_NS
    assert carrier.given(b"better now") == "taken"


@pytest.mark.parametrize("code", ["", "storage", "identity", "a newer word"])
def test_batch_that_did_not_arrive_is_brought_again_after_longer_and_longer(code: str) -> None:
    """The relay is away, or its disk is full."""
    carrier = Carrier(reach_ns=10**15)
    carrier.given(b"one")
    waits = []
    for _ in range(9):
        assert carrier.uploaded(b"one", b"", code).effects == []
        due = carrier.machine.next_timer_at()
        waits.append((due - carrier.now) // SECOND)
        carrier.now = due
        carrier.machine.handle_timer(carrier.now)
        carrier.turn()
        assert carrier.uploading() == [sealed_id(b"one")]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_batch_for_a_key_that_the_relay_has_no_more_is_given_up() -> None:
    """Nobody can open it; the node that made it seals its records again."""
    carrier = Carrier()
    carrier.machine.neighbour_met(V1, Role.VEHICLE, carrier.now)
    carrier.given(b"one")
    carrier.given(b"two")
    assert (V1, SealedState(sealed_id(b"one"), "unable")) in carrier.uploaded(b"one", b"", "key").sent
    carrier.machine.relay_answered(bytes(8), carrier.now)
    assert (V1, SealedState(sealed_id(b"two"), "unable")) in carrier.turn().sent
    assert carrier.counted("held") == 0


def test_what_is_carried_ends_by_age_also_over_a_restart() -> None:
    """A carrier that never comes to coverage again must not hold it for ever."""
    carrier = Carrier(max_age_ns=1_000 * SECOND)
    carrier.machine.restored([CarriedItem(bytes(16), V1, KEY, 3, 900 * SECOND)], carrier.now)
    carrier.given(b"one", V2)
    carrier.turn()
    carrier.machine.uploaded(bytes(16), b"", "", carrier.now)
    assert ForgetSealed(bytes(16)) in carrier.wait(101).effects
    carrier.machine.uploaded(sealed_id(b"one"), b"reply", "", carrier.now)
    assert carrier.wait(1_000).effects[-1] == ForgetSealed(sealed_id(b"one"))
    assert carrier.counted("held") == 0


def test_restored_batches_and_replies_go_on_where_they_were() -> None:
    """A vehicle is switched off between the place without coverage and the one with it."""
    carrier = Side(max_bytes=1 << 20)
    carrier.machine.restored(
        [CarriedItem(bytes(16), V1, KEY, 3, 0), CarriedItem(b"r" * 16, V2, KEY, 3, 0, b"reply")], carrier.now
    )  # fmt: skip
    carrier.machine.neighbour_met(V2, Role.VEHICLE, carrier.now)
    assert carrier.turn().sent == [(V2, RelayReply(b"r" * 16, b"reply"))]
    carrier.machine.relay_answered(KEY, carrier.now)
    assert carrier.turn().effects == [UploadSealed(bytes(16), V1, KEY)]


def test_batch_that_the_disk_did_not_take_is_given_back() -> None:
    """Better now than after a day."""
    carrier = Carrier()
    carrier.machine.neighbour_met(V1, Role.VEHICLE, carrier.now)
    carrier.given(b"one")
    carrier.machine.lost(sealed_id(b"one"), carrier.now)
    assert carrier.turn().sent == [(V1, SealedState(sealed_id(b"one"), "dropped"))]
    assert carrier.given(b"two") == "taken"
    assert carrier.uploading() == [sealed_id(b"two")]


def test_replies_are_brought_back_few_at_a_time() -> None:
    """A node that comes back after a day gets them at its own pace."""
    carrier = Carrier(max_bytes=1 << 24)
    for number in range(20):
        carrier.given(b"%d" % number)
        carrier.uploaded(b"%d" % number)
    carrier.machine.neighbour_met(V1, Role.VEHICLE, carrier.now)
    brought = [frame for _, frame in carrier.turn().sent]
    assert len(brought) == 8
    for frame in brought:
        assert isinstance(frame, RelayReply)
        carrier.machine.receive(SealedState(frame.sealed, "known"), V1, Role.VEHICLE, carrier.now)
        brought += [frame for _, frame in carrier.turn().sent]
    assert len(brought) == 20
    assert carrier.counted("held") == 0
