"""Who gets which reading, what happens to the rest, and what an insider can't do."""

import itertools
from collections import Counter
from random import Random

import msgspec
import pytest

from protocols.base import limits
from protocols.base.errors import (
    BoundExceeded,
    ContextMissing,
    InvalidKey,
    LocalProtocolError,
    NotPermitted,
    ValueUnsupported,
)
from protocols.base.ids import NodeId, Role
from protocols.links.queues import BEHIND_NS, LaneQueue
from protocols.membership.settings import MembershipSettings
from protocols.readings.events import DeadlineMissed, Put
from protocols.readings.quality import Quality
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading, Readings, Want
from protocols.wire.tensors import Tensor, tensor_of
from sims.virtual.driver import EPOCH_UTC_NS, SimDriver
from tests.tools.readings_fixture import ALL, MS, SECOND, A, B, Bench
from tests.tools.signed_fixture import signed_world
from tests.tools.strategies import HERE, HOW, NOW_UTC_NS, WHEN, reading


# --- publishing ----------------------------------------------------------------------------------------------------
def test_publish_reaches_only_those_who_asked() -> None:
    """Nobody receives what it did not ask for; that is what saves the radio."""
    bench = Bench(A, B)
    bench.wants(A, Want("veh/*/x"))
    bench.wants(B, Want("veh/*/y"))
    put, delivery = bench.publish("veh/me/x")
    assert (put.queued, put.dropped, put.local, delivery) == (1, 0, 0, None)
    assert [one.key for one in bench.sent(A)] == ["veh/me/x"]
    assert bench.sent(B) == []
    assert bench.machine.wanted_by("veh/me/*") == [A, B]
    assert bench.machine.wanted_by("rsu/**") == []


def test_publish_without_context_is_refused_by_name() -> None:
    """A reading without where, when or how is of no use to others."""
    for lacking in ("where", "when", "how"):
        with pytest.raises(ContextMissing, match=lacking):
            Bench().publish(**{lacking: None})


@pytest.mark.parametrize(
    "wrong",
    [
        {"where": Position(91, 0, 1)},
        {"where": Position(0, 181, 1)},
        {"where": Position(float("nan"), 0, 1)},
        {"where": Position(0, 0, -1)},
        {"where": Position(0, 0, float("nan"))},
        {"where": Position(0, 0, 1, float("nan"))},
        {"where": Position(0, 0, 1, None, 360.0)},
        {"when": EventTime(-1, 0)},
        {"when": EventTime(1, -1)},
        {"when": EventTime(1.5e18, 0)},  # type: ignore[arg-type]
        {"when": EventTime(2**64, 0)},
        {"how": Provenance("s" * 201, "m")},
        {"how": Provenance("s", "m", 1.1)},
        {"how": Provenance("s", "m", float("nan"))},
        {"how": Provenance("s", "m", 1.0, "", ("x",) * 17)},
        {"priority": 8},
        {"priority": -1},
        {"lifespan_ms": -1},
        {"lifespan_ms": limits.MAX_LIFESPAN_MS + 1},
        {"hops": limits.MAX_HOPS + 1},
        {"value": object()},
    ],
)
def test_publish_of_what_neighbours_would_refuse_is_refused_here(wrong: dict[str, object]) -> None:
    """One such reading would make every neighbour close the link as malformed."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    with pytest.raises(ValueUnsupported):
        bench.publish(**wrong)
    bench.publish()
    assert [one.sequence for one in bench.sent(A)] == [1]


def test_publish_on_a_foreign_or_bad_key_is_refused() -> None:
    """Its neighbours would refuse it too; here the caller learns why."""
    with pytest.raises(NotPermitted, match="vehicle me"):
        Bench().publish("veh/other/x")
    with pytest.raises(InvalidKey):
        Bench().publish("veh/me/*")


def test_publish_of_an_array_changed_afterwards_sends_and_keeps_what_it_was() -> None:
    """Drivers reuse their buffers; the last value must not change under its time stamp."""
    bench = Bench(A)
    number, _ = bench.machine.subscribe("**", ALL, 0)
    buffer = bytearray(b"before")
    _, delivery = bench.publish(value=buffer)
    _, listed = bench.publish("veh/me/list", value=(inner := [1]))
    buffer[:] = b"after!"
    inner.append(2)
    assert delivery is not None
    assert listed is not None
    assert (delivery[0], bytes(delivery[1].value), listed[1].value) == ((number,), b"before", [1])
    bench.wants(A, Want("**"))
    assert [bytes(one.value) if one.key == "veh/me/x" else one.value for one in bench.sent(A)] == [b"before", [1]]


def test_publish_large_value_takes_the_bulk_lane() -> None:
    """A tensor must not delay a brake event."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    bench.publish(value=bytes(limits.BULK_THRESHOLD_BYTES + 1))
    (queue,) = bench.touched
    assert queue is bench.peers[A].bulk
    assert (len(bench.sent(A)), len(bench.sent(A, bulk=True))) == (0, 1)


def test_publish_above_a_neighbours_rate_is_counted() -> None:
    """It asked for ten a second; the hundred others are on record."""
    bench = Bench(A, B)
    bench.wants(A, Want("**", 100_000))
    bench.wants(B, Want("**", 100_000), Want("veh/**"))
    for _ in range(21):
        bench.publish()
        bench.now += 10 * MS
    assert len(bench.sent(A)) == 3
    assert len(bench.sent(B)) == 21, "of two wants the wider rate counts"
    assert bench.dropped() == {(A, "rate_limited"): 18}


def test_publish_to_a_conflating_neighbour_keeps_the_newest() -> None:
    """What waits for a slow link is the present, not the past."""
    bench = Bench(A)
    bench.wants(A, Want("**", 0, True))
    for value in range(10):
        bench.publish(value=value)
    assert [one.value for one in bench.sent(A)] == [9]
    assert bench.dropped() == {(A, "conflated"): 9}


def hold_up(queue: LaneQueue) -> None:
    """Let a lane take nothing until it is behind."""
    for now in (1, 1 + BEHIND_NS):
        assert queue.take(now, full=True) is None
    assert queue.is_behind


def test_publish_on_a_slow_lane_sends_every_reading_where_one_of_two_wants_asks_for_it() -> None:
    """Two programs behind one neighbour may differ, and the one that counts events must not lose any."""
    every, newest = Want("**", every=True), Want("veh/**", 0, True)
    bench = Bench(A, B, c := NodeId("c"), d := NodeId("d"))
    for node, wants in ((A, (newest, every)), (B, (newest, Want("**"))), (c, (Want("**"),)), (d, (every,))):
        bench.wants(node, *wants)
    for value in range(5):
        bench.publish(value=value)
        if not value:
            for node in (A, B, c, d):
                hold_up(bench.peers[node].realtime)
    sent = {node: [one.value for one in bench.sent(node)] for node in (A, B, c, d)}
    assert sent == {A: [0, 1, 2, 3, 4], B: [4], c: [4], d: [0, 1, 2, 3, 4]}
    assert bench.dropped() == {(B, "conflated"): 4, (c, "conflated"): 4}


def test_forwarder_on_a_slow_lane_passes_every_reading_on_to_who_asks_for_it() -> None:
    """It asks for them on the neighbour's behalf, and does not thin them out itself."""
    bench = Bench(A, B, c := NodeId("c"))
    bench.wants(B, Want("veh/**", hops=2, every=True))
    bench.wants(c, Want("veh/**", hops=2))
    assert bench.machine.interest_for(A).wants == (Want("veh/**", hops=1, every=True), Want("veh/**", hops=1))
    for sequence in range(1, 4):
        bench.accept(A, reading(sequence=sequence, hops=1))
        if sequence == 1:
            for node in (B, c):
                hold_up(bench.peers[node].realtime)
    assert [[one.sequence for one in bench.sent(node)] for node in (B, c)] == [[1, 2, 3], [3]]


def test_subscription_asks_neighbours_for_every_reading() -> None:
    """And one that also wants only the newest is a mistake that its program should hear of."""
    bench = Bench(A)
    bench.machine.subscribe("veh/**", Quality(every=True), 0)
    assert bench.machine.interest_for(A).wants == (Want("veh/**", every=True),)
    with pytest.raises(LocalProtocolError, match="use one of both"):
        Quality(conflate=True, every=True)


def test_publish_to_a_full_queue_says_so() -> None:
    """A non-blocking put tells what happened."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    puts = [bench.publish()[0] for _ in range(limits.MAX_QUEUE_READINGS)]
    assert all(put.queued == 1 for put in puts)
    assert bench.publish(priority=0)[0] == Put(limits.MAX_QUEUE_READINGS + 1, 0, 0, 1)


# --- subscribing here ----------------------------------------------------------------------------------------------
def test_subscription_starts_with_last_values_unless_told_otherwise() -> None:
    """A late subscriber need not wait for the next change."""
    bench = Bench(A)
    bench.publish("veh/me/x", 1)
    bench.accept(A, reading("veh/a/x", "a", 5, 2))
    assert [one.value for one in bench.machine.subscribe("**", ALL, 0)[1]] == [1, 2]
    assert [one.value for one in bench.machine.subscribe("**", Quality(own=False), 0)[1]] == [2]
    assert bench.machine.subscribe("**", Quality(history=False), 0)[1] == []
    assert bench.machine.subscribe("rsu/**", ALL, 0)[1] == []


def test_subscription_of_own_false_hears_only_others() -> None:
    """An application that mirrors readings must not hear its echo."""
    bench = Bench(A)
    number, _ = bench.machine.subscribe("**", Quality(own=False), 0)
    assert bench.publish()[1] is None
    assert bench.accept(A, reading())[0][0] == (number,)


def test_subscription_with_a_rate_gets_one_per_interval() -> None:
    """Each subscription has its own rate; the drops have no peer."""
    bench = Bench(A)
    every, _ = bench.machine.subscribe("**", ALL, 0)
    rare, _ = bench.machine.subscribe("**", Quality(min_interval_ns=SECOND), 0)
    got = []
    for sequence in range(4):
        got.append(bench.accept(A, reading(sequence=sequence))[0][0])
        bench.now += SECOND // 2
    assert got == [(every, rare), (every,), (every, rare), (every,)]
    assert bench.publish()[0].local == 2
    assert bench.dropped() == {("", "rate_limited"): 2}


def test_subscriptions_are_bounded_and_numbers_not_reused() -> None:
    """A leak in an application must not become a leak in its neighbours."""
    bench = Bench()
    numbers = [bench.machine.subscribe("**", ALL, 0)[0] for _ in range(limits.MAX_SUBSCRIPTIONS)]
    with pytest.raises(BoundExceeded, match="close some"):
        bench.machine.subscribe("**", ALL, 0)
    bench.machine.unsubscribe(numbers[0])
    bench.machine.unsubscribe(numbers[0])
    assert bench.machine.subscribe("**", ALL, 0)[0] not in numbers
    with pytest.raises(InvalidKey):
        bench.machine.subscribe("a//b", ALL, 0)


def test_unsubscribed_gets_nothing_more() -> None:
    """Decisions kept per stream must notice."""
    bench = Bench(A)
    number, _ = bench.machine.subscribe("**", ALL, 0)
    assert bench.accept(A, reading(sequence=1))
    bench.machine.unsubscribe(number)
    assert bench.accept(A, reading(sequence=2)) == []


# --- accepting -----------------------------------------------------------------------------------------------------
def test_accept_of_duplicates_and_latecomers_counts_them_as_stale() -> None:
    """Only larger sequences pass; 2^64 - 1 is one like any other."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    sequences = (3, 3, 2, 4, 2**64 - 1, 5)
    came = bench.accept(A, *(reading(sequence=sequence) for sequence in sequences))
    assert [one.sequence for _, one in came] == [3, 4, 2**64 - 1]
    assert bench.dropped() == {(A, "stale"): 3}


def test_accept_of_expired_reading_allows_for_both_clocks() -> None:
    """Clocks that are wrong by their own account must not lose a fresh reading."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    lifespan = {"when": EventTime(NOW_UTC_NS, 5 * MS), "lifespan_ms": 100}
    bench.now = 115 * MS
    assert len(bench.accept(A, reading(sequence=1, **lifespan))) == 1
    bench.now += 1
    assert bench.accept(A, reading(sequence=2, **lifespan)) == []
    assert bench.accept(A, reading(sequence=3, when=EventTime(2**64 - 1, 2**64 - 1), lifespan_ms=1))
    assert bench.dropped() == {(A, "expired"): 1}


def test_accept_of_a_key_the_table_denies_takes_no_place() -> None:
    """An insider that invents keys must not push out those of others, nor fill memory."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    for number in range(100):
        bench.now += MS
        assert bench.accept(A, reading(f"veh/b/{number}", "a"), reading(f"rsu/a/{number}", "a")) == []
    assert bench.dropped() == {(A, "denied"): 200}
    assert len(bench.machine._table) == 0


@pytest.mark.parametrize("origin", ["*", "**", "b/x", "B", "-"])
def test_accept_of_an_origin_that_is_no_id_is_refused(origin: str) -> None:
    """``veh/{id}/**`` with a wildcard as id would open every vehicle's keys to everybody."""
    bench = Bench(A)
    bench.machine.subscribe("**", Quality(hops=1), 0)
    assert bench.accept(A, reading("veh/b/brake", origin), reading(f"veh/{origin}/x", origin)) == []
    assert bench.dropped() == {(A, "invalid_key"): 2}


def test_accept_of_an_own_reading_from_elsewhere_is_an_echo() -> None:
    """Nobody tells this node what it said itself."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    assert bench.accept(A, reading("veh/me/x", "me", 2**64 - 1, 666), reading("rsu/me/x", "me")) == []
    assert bench.publish()[0] == Put(1, 1, 0, 0)
    assert bench.accept(A, reading("veh/me/x", "me", 2**64 - 1, 666)) == []
    assert bench.dropped() == {(A, "echo"): 3}
    with pytest.raises(NotPermitted):
        bench.publish("rsu/me/x")
    assert [one.value for one in bench.machine.subscribe("veh/me/x", ALL, 0)[1]] == [1]


def test_accept_of_a_copy_is_judged_by_the_role_in_the_certificate_of_its_origin() -> None:
    """A vehicle called rsu-1 may not speak as roadside unit because another passed it on."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", Quality(hops=1), 0)
    bench.certificates.roles["far"] = Role.VEHICLE
    assert bench.accept(B, reading("rsu/far/hazard", "far")) == []
    assert bench.dropped() == {(B, "denied"): 1}
    bench.certificates.roles["far"] = Role.RSU
    assert bench.accept(B, reading("rsu/far/hazard", "far", 2))


def test_accept_of_a_long_history_forgets_the_oldest_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come from neighbours: the table is bounded, and the newest work."""
    monkeypatch.setattr(limits, "MAX_STREAMS", 50)
    monkeypatch.setattr(limits, "MAX_DEADLINES", 50)
    bench = Bench(A)
    bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    for number in range(120):
        assert bench.accept(A, reading(f"veh/a/{number}"))
    assert len(bench.machine._streams) == 50
    assert bench.accept(A, reading("veh/a/119")) == []
    assert len(bench.machine._deadlines) <= 50


# --- memory --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "value",
    [
        b"x" * 100_000,
        "x" * 100_000,
        [0] * 3_000,
        {"k": ["y" * 100_000]},
        {str(n): n for n in range(2_000)},
        tensor_of(bytes(100_000)),
    ],
    ids=["bytes", "text", "list", "nested", "dict", "tensor"],
)
def test_last_values_of_any_type_stay_below_the_bound(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    """Values of neighbours are kept for late subscribers, not without end."""
    monkeypatch.setattr(limits, "MAX_CACHE_BYTES", 1_000_000)
    bench = Bench(A)
    for number in range(60):
        bench.accept(A, reading(f"veh/a/{number}", value=value))
    kept = bench.machine.subscribe("**", ALL, 0)[1]
    assert 0 < len(kept) < 20
    assert kept[-1].key == "veh/a/59"
    assert 0 <= bench.machine._table.last_values.held_bytes <= 1_000_000


def test_last_value_above_the_bound_alone_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is delivered all the same."""
    monkeypatch.setattr(limits, "MAX_CACHE_BYTES", 1_000)
    bench = Bench(A)
    bench.machine.subscribe("veh/**", ALL, 0)
    assert bench.accept(A, reading(value=bytes(2_000)))
    assert bench.machine.subscribe("**", ALL, 0)[1] == []
    assert bench.machine._table.last_values.held_bytes == 0


def test_last_tensor_does_not_keep_its_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of one byte is a view into a frame of up to 16 MiB; 65,536 such would be a terabyte."""
    bench = Bench(A)
    small = reading("veh/a/small", value=tensor_of(b"z"))
    frame = encode_frame(Readings((reading("veh/a/large", value=bytes(1_000_000)), small)))
    decoded = decode_untrusted_node_frame(frame)
    assert type(decoded) is Readings
    bench.accept(A, *decoded.readings)
    kept = bench.machine.subscribe("veh/a/small", ALL, 0)[1][0].value
    assert type(kept) is Tensor
    assert len(kept.data.obj) == 1
    nested = encode_frame(
        Readings(
            (reading("veh/a/large", sequence=2, value=bytes(1_000_000)), reading("veh/a/n", value=[tensor_of(b"z")]))
        )
    )
    decoded = decode_untrusted_node_frame(nested)
    assert type(decoded) is Readings
    bench.accept(A, *decoded.readings)
    assert bench.machine._table.last_values.held_bytes > 2_000_000, "what can't be cut out is counted whole"


# --- deadlines -----------------------------------------------------------------------------------------------------
def test_deadline_missed_is_told_once_per_silence() -> None:
    """A vehicle that drove away must not be reported for ever."""
    bench = Bench(A)
    number, _ = bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    rare, _ = bench.machine.subscribe("**", Quality(deadline_ns=3 * SECOND), 0)
    bench.accept(A, reading(sequence=1))
    assert bench.machine.next_timer_at() == SECOND
    bench.now = SECOND // 2
    bench.accept(A, reading(sequence=2))
    missed = []
    for instant in range(1, 12):
        bench.now = instant * SECOND
        if instant == 6:
            bench.accept(A, reading(sequence=3))
        bench.machine.handle_timer(bench.now)
        missed.extend((instant, event.subscription) for event in bench.machine.events())
    assert missed == [(2, number), (4, rare), (7, number), (9, rare)]


def test_deadline_of_a_known_stream_counts_from_the_subscription() -> None:
    """Silence before anybody cared is no miss; nobody cares after unsubscribing."""
    bench = Bench(A)
    bench.accept(A, reading())
    bench.now = 10 * SECOND
    number, _ = bench.machine.subscribe("veh/**", Quality(deadline_ns=SECOND), bench.now)
    bench.machine.handle_timer(bench.now + SECOND - 1)
    assert bench.machine.events() == []
    bench.machine.handle_timer(bench.now + SECOND)
    assert bench.machine.events() == [DeadlineMissed(number, "a", "veh/a/x")]
    bench.machine.unsubscribe(number)
    bench.accept(A, reading(sequence=2))
    bench.machine.handle_timer(bench.now + 9 * SECOND)
    assert bench.machine.events() == []


def test_deadline_of_a_stream_begun_anew_is_watched_once() -> None:
    """A node that restarts often must not be reported as often."""
    bench = Bench(A)
    bench.machine.subscribe("**", Quality(deadline_ns=SECOND), 0)
    for _ in range(5):
        bench.accept(A, reading())
        bench.machine.forget_origin(A, 0)
    bench.accept(A, reading())
    bench.machine.handle_timer(5 * SECOND)
    assert len(bench.machine.events()) == 1


# --- whole nodes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_readings_over_slow_links_are_each_delivered_once_or_counted(seed: int) -> None:
    """The promise of the whole: nothing is lost silently, per neighbour and reading."""
    random = Random(seed)
    patient = MembershipSettings(
        suspect_after_silence_ns=10**15
    )  # a link this slow is silent longer than anybody waits
    sim = SimDriver(seed, settings=patient, max_queue_readings=random.choice([4, 2_048]))
    names = ["n0", "n1", "n2"]
    for name in names:
        sim.add(name)
        rate = Quality(min_interval_ns=random.choice([0, 0, 30 * MS]), conflate=random.random() < 0.3, own=False)
        sim.subscribe(name, "**", rate)
    sim.meet()
    sim.run_for(SECOND)
    for sender in names:
        for receiver in names:
            if random.random() < 0.5:
                sim.shape(sender, receiver, random.randint(1, 200) * MS, random.choice([20_000, 200_000, 10**7]))
    published: Counter[str] = Counter()
    for _ in range(random.randint(1, 6)):
        name = random.choice(names)
        for _ in range(random.randint(1, 40)):
            put = sim.publish(
                name, f"veh/{name}/{random.choice('xy')}", bytes(random.choice([1, 500, 40_000])),
                lifespan_ms=random.choice([0, 0, 50]), priority=random.randint(0, 7),
            )  # fmt: skip
            assert put.queued + put.dropped == 2
            published[name] += 1
        if random.random() < 0.5:
            sim.stall(random.choice(names), random.randint(1, 300) * MS)
        sim.run_for(random.randint(0, 300) * MS)
    sim.run_for(200 * SECOND)
    for receiver in names:
        node = sim.nodes[NodeId(receiver)]
        assert all(view.waiting_readings == 0 for view in node.engine.peers(sim.now))
        came = Counter((one.origin, one.key, one.sequence) for _, one in node.received)
        assert not came or max(came.values()) == 1
        for sender in names:
            if sender == receiver:
                continue
            delivered = sum(origin == sender for origin, _, _ in came)
            ours = f"veh/{sender}/"
            dropped_there, dropped_here = (
                sum(
                    n
                    for (peer, key, _), n in sim.nodes[NodeId(at)].engine.drops.items()
                    if peer in who and key.startswith(ours)
                )
                for at, who in ((sender, {receiver}), (receiver, {sender, ""}))
            )
            assert delivered + dropped_there + dropped_here == published[sender], (sender, receiver)


def test_reading_crosses_as_many_nodes_as_it_was_allowed() -> None:
    """A line of four: interest travels up, readings travel down, both by their hops."""
    sim, authors = signed_world(7)
    names = ["n0", "n1", "n2", "n3"]
    for name in names:
        authors.say_address(sim.add(name))
    for left, right in itertools.pairwise(names):
        sim.meet(left, right)
    sim.run_for(SECOND)
    sim.subscribe("n3", "veh/n0/**", Quality(hops=2))
    sim.run_for(SECOND)
    for key, hops in (("near", 0), ("middle", 1), ("far", 2), ("farther", 8)):
        sim.publish("n0", f"veh/n0/{key}", key, hops=hops)
    sim.run_for(SECOND)
    assert sorted(one.value for _, one in sim.nodes[NodeId("n3")].received) == ["far", "farther"]
    last = next(one for _, one in sim.nodes[NodeId("n3")].received if one.value == "farther")
    assert (last.hops, last.when.utc_ns) == (6, EPOCH_UTC_NS + 2 * SECOND)


def test_stream_of_a_node_that_lost_its_count_begins_anew() -> None:
    """Its state folder is gone: smaller incarnation, smaller sequences. When it was dead before, it is heard."""
    bench = Bench(A)
    bench.machine.subscribe("**", ALL, 0)
    bench.accept(A, reading(sequence=1_000))
    bench.machine.forget_origin(A, 0)
    assert bench.accept(A, reading(sequence=1))


def test_published_reading_is_its_own_encoding() -> None:
    """What the neighbours get is what a direct encoding gives: no field is added or lost on the way."""
    bench = Bench(A)
    bench.wants(A, Want("**"))
    bench.publish(value={"k": [1, None]}, when=WHEN, lifespan_ms=60_000, hops=3, priority=6)
    sent = bench.sent(A)[0]
    expected = Reading("veh/me/x", "me", 1, {"k": [1, None]}, HERE, WHEN, HOW, 6, 60_000, 3)
    assert sent == expected
    assert msgspec.msgpack.encode(sent) == encode_reading(expected)
