"""How readings get into the queues of neighbours: several at once, what is past, and what a neighbour can't get."""

import pytest

from protocols.access import DEFAULT_RULES, AccessTable
from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId, Role
from protocols.readings.events import PutMany
from protocols.readings.machine import Router
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.wire.parcels import readings_in_own_frame
from protocols.wire.readings import EventTime, Reading, Want
from tests.tools.readings_fixture import ALL, ME, SECOND, A, B, Bench
from tests.tools.strategies import HERE, HOW, reading


def publish_many(bench: Bench, *values: object, hops: int = 0) -> tuple[PutMany, list[Reading]]:
    """Publish values together. Returns what became of them, and what was delivered here."""
    whens = [EventTime(bench.utc, 0) for _ in values]
    publication = checked_publication("veh/me/x", HOW, HERE, hops=hops)
    put, deliveries = bench.machine.publish_many(publication, values, HERE, whens, bench.now, bench.utc)
    return put, [one for _, one in deliveries]


# --- several at once -----------------------------------------------------------------------------------------------
def test_values_published_together_respect_rate_and_conflation_of_each_neighbour() -> None:
    """A recording that is published in one call is no way around what a neighbour asked for."""
    bench = Bench(A, B, c := NodeId("c"))
    bench.wants(A, Want("**", 1_000_000))
    bench.wants(B, Want("**", 0, True))
    bench.wants(c, Want("**"))
    for start in (0, 5):
        put, _ = publish_many(bench, *range(start, start + 5))
        assert (put.queued, put.dropped) == ((11, 4) if not start else (10, 5))
    assert [one.value for one in bench.sent(A)] == [0]
    assert [one.value for one in bench.sent(B)] == [9]
    assert [one.value for one in bench.sent(c)] == list(range(10))
    assert bench.dropped() == {(A, "rate_limited"): 9, (B, "conflated"): 9}
    put, _ = publish_many(bench, "alone")
    assert (put.queued, put.dropped) == (2, 1)


def test_values_published_together_that_are_large_or_composite_travel_one_by_one() -> None:
    """None waits behind another on the realtime lane, and what may be changed afterwards is kept as it was."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    bench.wants(A, Want("**"))
    inner = [1]
    put, delivered = publish_many(bench, inner, 2, bytes(limits.BULK_THRESHOLD_BYTES + 1))
    inner.append(2)
    assert (put.first_sequence, put.queued, put.dropped) == (1, 3, 0)
    assert [one.value for one in bench.sent(A)] == [[1], 2]
    assert [len(one.value) for one in bench.sent(A, bulk=True)] == [limits.BULK_THRESHOLD_BYTES + 1]
    assert [one.value for one in delivered][:2] == [[1], 2]
    for text in ("x" * 600, "😀" * 200):
        put, _ = publish_many(bench, *[text] * 64)
        assert put.queued == 64
        frames = []
        while (frame := bench.peers[A].realtime.take(bench.now)) is not None:
            frames.append(frame)
        assert sum(map(readings_in_own_frame, frames)) == 64
        assert max(map(len, frames)) <= limits.MAX_REALTIME_FRAME_BYTES


def test_values_published_together_that_a_full_queue_refuses_are_counted() -> None:
    """What the caller is told is what became of them."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    bench.publish(value=1, priority=7)
    bench.peers[A].realtime._max_readings = 3
    put, _ = publish_many(bench, 1, 2, 3)
    assert (put.queued, put.dropped) == (0, 3)
    assert bench.dropped() == {(A, "queue_full"): 3}
    assert [one.priority for one in bench.sent(A)] == [7]


def test_values_published_together_are_checked_whole_before_any_is_published() -> None:
    """A list of times that is one short must not shift every value onto the time of another."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    publication = checked_publication("veh/me/x", HOW, HERE)
    good, bad = EventTime(bench.utc, 0), EventTime(-1, 0)
    for values, whens in (((), ()), ((1, 2), (good,)), ((1, 2), (good, bad)), ((1, object()), (good, good))):
        with pytest.raises(ValueUnsupported):
            bench.machine.publish_many(publication, values, None, whens, 0, bench.utc)
    assert bench.sent(A) == []
    put, _ = bench.machine.publish_many(publication, (1, 2), None, (good, good), 0, bench.utc)
    assert put.first_sequence == 1, "no sequence was used up"
    assert [one.where for one in bench.sent(A)] == [HERE] * 2, "the place of the publication"


def test_values_published_together_reach_a_subscription_at_its_own_rate() -> None:
    """A local program that asked for one a second gets one, and the rest is counted."""
    bench = Bench()
    bench.machine.subscribe("**", Quality(min_interval_ns=SECOND), 0)
    _, delivered = publish_many(bench, 1, 2, 3)
    assert [one.value for one in delivered] == [1]
    assert bench.dropped() == {("", "rate_limited"): 2}


# --- what may not or can't travel ----------------------------------------------------------------------------------
def test_value_too_large_to_be_passed_on_is_refused_whether_or_not_a_neighbour_is_there() -> None:
    """An application that was tried alone must not begin to fail when it meets its first neighbour."""
    bench = Bench()
    large = bytes(limits.MAX_SIGNED_PARCEL_BYTES)
    with pytest.raises(ValueUnsupported, match="without hops"):
        bench.publish(value=large, hops=1)
    with pytest.raises(ValueUnsupported, match="without hops"):
        publish_many(bench, large, hops=1)
    assert bench.publish(value=large)[0].sequence == 1


def test_last_value_whose_signature_is_not_held_is_not_sent_to_a_late_neighbour_and_counted() -> None:
    """Nobody could check it, and whoever passes it on would be blamed."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", Quality(hops=1), 0)
    bench.accept_plain(A, reading(hops=2))
    bench.wants(B, Want("**", hops=1))
    assert bench.sent(B) == []
    assert bench.dropped() == {(B, "unsigned"): 1}


def test_node_without_a_seal_sends_its_readings_unsigned_and_passes_on_none() -> None:
    """A node without gossip, and so without certificates, still serves its neighbours."""
    bench = Bench()
    bench.machine = Router(ME, Role.VEHICLE, 1, AccessTable(DEFAULT_RULES), bench.drops, bench.touched, [])
    bench.add(A)
    bench.add(B)
    bench.publish(value=1, hops=2)
    bench.wants(A, Want("**", hops=2))
    bench.publish(value=2, hops=2)
    publish_many(bench, 3, 4, hops=2)
    assert [one.value for one in bench.sent(A)] == [1, 2, 3, 4]
    bench.accept(B, reading("veh/b/x", "b", hops=2), reading("veh/far/x", "far", hops=2))
    assert bench.sent(A) == []
    assert bench.dropped() == {(B, "author_unknown"): 2}


def test_reading_is_not_queued_for_a_neighbour_that_is_gone_while_its_routes_may_not_be_decided() -> None:
    """The queue of a neighbour that is gone is emptied by nobody: what got into it was neither sent nor counted."""
    bench = Bench(A, B)
    bench.wants(B, Want("**", hops=2))
    bench.accept(A, reading(sequence=1, hops=2))
    assert len(bench.sent(B)) == 1
    gone = bench.peers[B].realtime
    bench.machine.remove_peer(B)
    bench.peers[A].work.fine(2 * limits.MAX_MATCHING_BURST)
    bench.accept(A, reading(sequence=2, hops=2))
    assert not gone
    bench.add(B)
    bench.wants(B, Want("**", hops=2))
    bench.sent(B)
    bench.now += 5 * SECOND
    bench.accept(A, reading(sequence=3, hops=2))
    assert [one.sequence for one in bench.sent(B)] == [3]


def test_first_routes_of_a_stream_that_its_neighbour_can_not_pay_for_are_counted() -> None:
    """It is delivered here and not passed on, and somebody has to be able to see why."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", ALL, 0)
    bench.wants(B, Want("**", hops=2))
    assert bench.accept(A, reading())
    bench.sent(B)
    bench.peers[A].work.fine(2 * limits.MAX_MATCHING_BURST)
    assert bench.accept(A, reading(sequence=2, hops=2))
    assert bench.sent(B) == []
    assert bench.dropped() == {(A, "over_rate"): 1}


def test_reading_of_a_neighbour_on_a_key_that_is_none_is_dropped_and_the_rest_of_the_frame_is_not() -> None:
    """A wildcard as key would match what its sender may not publish, and the neighbour may be newer or hostile."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    keys = ("veh/a/*", "veh//a", "veh/a/\x1b", "veh/a/x")
    delivered = bench.accept_plain(A, *(reading(key, sequence=number) for number, key in enumerate(keys)))
    assert [one.key for _, one in delivered] == ["veh/a/x"]
    assert bench.dropped() == {(A, "invalid_key"): 3}


def test_reading_of_a_node_whose_link_has_just_ended_is_delivered() -> None:
    """It was on its way. There is no neighbour to charge for it, and it is not passed on twice."""
    bench = Bench(B)
    number, _ = bench.machine.subscribe("**", ALL, 0)
    assert bench.accept_plain(A, reading()) == [((number,), reading())]
    assert bench.accept_plain(A, reading()) == []
    assert bench.dropped() == {(A, "stale"): 1}


def test_signed_reading_that_came_before_is_not_passed_on_again() -> None:
    """A neighbour that repeats its own reading costs the next one nothing."""
    bench = Bench(A, B)
    bench.wants(B, Want("**", hops=2))
    for _ in range(3):
        bench.accept(A, reading(hops=2))
    assert len(bench.sent(B)) == 1
    assert bench.machine.counters()["forwarded"] == 1
    assert bench.dropped() == {(A, "stale"): 2}
