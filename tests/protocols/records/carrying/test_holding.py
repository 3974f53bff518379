"""What a carrier takes, for whom and how long: without keys, disks, links or clocks."""

import pytest

from protocols.access import AccessRule, AccessTable
from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.records.carrying.events import (
    ForgetSealed,
    KeepReply,
    KeepSealed,
    UploadSealed,
)
from protocols.records.carrying.holding import BLAMED_NS, OVERHEAD_BYTES, CarriedItem
from protocols.wire.carrying.frames import CarrierOffer, RelayReply, SealedBatch, SealedState
from tests.tools.sides_fixture import KEY, V1, V2, V3, Side, sealed_id


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
