"""Who is given sealed batches, and when that ends: without keys, disks, links or clocks."""

import pytest

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.records.carrying.events import (
    BatchHandedOver,
    SealBatch,
)
from protocols.records.carrying.handing import (
    ANSWER_NS,
    MAX_ON_THEIR_WAY,
    PAUSE_NS,
    REFUSED_NS,
)
from protocols.wire.carrying.contents import RelayKey
from protocols.wire.carrying.frames import RelayReply, SealedBatch, SealedState
from tests.tools.sides_fixture import KEY, PUBLIC, V2, V3, Origin, sha256


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
