"""Who wants what, on whose behalf, and what is passed on: interest and hops."""

from collections import Counter

from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.readings.quality import Quality
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.readings import Interest, Want
from tests.tools.readings_fixture import ALL, ME, SECOND, A, B, Bench
from tests.tools.strategies import reading


def test_interest_that_was_overtaken_is_ignored() -> None:
    """A large one travels on the bulk lane and may come after its successor."""
    bench = Bench(A)
    bench.machine.receive_interest(Interest(2, (Want("veh/me/y"),)), A, 0, 0)
    bench.machine.receive_interest(Interest(1, (Want("veh/me/x"),)), A, 0, 0)
    assert bench.publish("veh/me/x")[0].queued == 0
    assert bench.publish("veh/me/y")[0].queued == 1
    assert not bench.machine.receive_interest(Interest(1, ()), B, 0, 0), "not a neighbour"


def test_interest_in_what_is_denied_or_no_expression_is_counted() -> None:
    """The rest of it counts."""
    bench = Bench(A, rules=(AccessRule(Role.VEHICLE, "subscribe", "veh/**"), AccessRule(Role.VEHICLE, "publish", "**")))
    bench.wants(A, Want("**"), Want("a//b"), Want("\x1b[2J"), Want("veh/*/x"))
    assert bench.publish("veh/me/x")[0].queued == 1
    assert bench.publish("rsu/me/x")[0].queued == 0
    assert bench.dropped() == {(A, "denied"): 1, (A, "invalid_key"): 2}


def test_interest_gets_last_values_once_and_only_fresh_ones() -> None:
    """History for what is newly asked; an expired warning is not history."""
    bench = Bench(A, B)
    bench.publish("veh/me/x", 1)
    bench.publish("veh/me/gone", 1, lifespan_ms=10)
    bench.accept(
        B,
        reading("veh/b/near", "b"),
        reading("veh/b/far", "b", hops=2),
        reading("veh/b/fresh", "b", lifespan_ms=60_000, hops=1),
    )
    bench.now = SECOND
    bench.wants(A, Want("**"))
    assert [one.key for one in bench.sent(A)] == ["veh/me/x"], "readings of others were not asked for"
    bench.wants(A, Want("**"), Want("veh/b/*", hops=1))
    assert [(one.key, one.hops) for one in bench.sent(A)] == [("veh/b/far", 1), ("veh/b/fresh", 0)]
    bench.wants(A, Want("**"), Want("veh/me/*"))
    assert [one.key for one in bench.sent(A)] == ["veh/me/x"]
    bench.wants(A, Want("**"), Want("veh/me/*"))
    bench.wants(A, Want("veh/me/x", 0, False, False))
    bench.wants(B, Want("veh/b/**"))
    assert bench.sent(A) == bench.sent(B) == []


def test_interest_that_asks_for_more_of_an_expression_gets_the_last_values_that_it_has_not_had() -> None:
    """A second program subscribes to the same expression with history, or further away. Until the next change, which
    may be an hour away, it got nothing."""
    bench = Bench(A, B)
    bench.publish("veh/me/x", 1)
    bench.accept(B, reading("veh/b/x", "b", hops=2))
    bench.wants(A, Want("**", history=False))
    assert bench.sent(A) == []
    bench.wants(A, Want("**", history=False), Want("**"))
    assert [one.key for one in bench.sent(A)] == ["veh/me/x"]
    bench.wants(A, Want("**", hops=2))
    assert [one.key for one in bench.sent(A)] == ["veh/b/x"], "the other one it has had"
    bench.wants(A, Want("**"))
    bench.wants(A, Want("**", 1_000), Want("**", history=False))
    assert bench.sent(A) == []


def test_interest_that_changes_while_its_history_is_sent_gets_the_rest_of_what_it_still_wants() -> None:
    """Programs subscribe one after the other; what the first is waiting for must come although the second asks."""
    bench = Bench(A)
    for number in range(900):
        for which in "xyz":
            bench.publish(f"veh/me/{which}/{number}", number)
    x, y, z = (Want(f"veh/me/{which}/*") for which in "xyz")
    got = Counter[str]()
    for wants in ((x, y), (x, z)):
        bench.wants(A, *wants)
        got.update(one.key for one in bench.sent(A))
        assert len(bench.machine._history) == 1
    while len(bench.machine._history):
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
        got.update(one.key for one in bench.sent(A))
    of = Counter(key.split("/")[2] for key in got)
    assert of["x"] == of["z"] == 900
    assert of["y"] < 900, "it asks for that no more"


def test_interests_that_wait_are_taken_by_turns_and_none_of_a_neighbour_that_left() -> None:
    """Three neighbours change their minds all the time. The last thing that each said counts in the end."""
    bench = Bench(A, B, c := NodeId("c"))
    for number in range(limits.MAX_INTEREST_BURST + 3):
        for node in (A, B, c):
            bench.wants(node, Want(f"veh/me/{number}"))
    bench.machine.remove_peer(c)
    assert bench.publish(f"veh/me/{number}")[0].queued == 0
    taken = []
    while bench.machine.next_timer_at() < 10 * SECOND:
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
        taken.append(bench.publish(f"veh/me/{number}")[0].queued)
    assert taken[:2] == [1, 2]
    assert set(taken[1:]) == {2}
    assert len(taken) < 5, "nothing is due for the one that left"
    assert bench.dropped() == {(node, "interest_put_off"): 1 for node in (A, B, c)}


def test_interest_that_waits_longer_than_planned_is_taken_when_its_neighbour_may_again() -> None:
    """An Interest of another neighbour makes the timer come too early for this one."""
    bench = Bench(A, B)
    for number in range(limits.MAX_INTEREST_BURST + 1):
        bench.wants(A, Want(f"veh/me/{number}"))
    bench.now = SECOND // 2
    for number in range(limits.MAX_INTEREST_BURST + 2):
        bench.wants(B, Want(f"veh/me/{number}"))
    bench.peers[A].interests.fine(3)
    bench.peers[B].interests.fine(3)
    for _ in range(20):
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
        if bench.now > 8 * SECOND:
            break
    assert bench.peers[A].put_off is bench.peers[B].put_off is None
    assert bench.publish(f"veh/me/{limits.MAX_INTEREST_BURST}")[0].queued == 1
    assert bench.publish(f"veh/me/{limits.MAX_INTEREST_BURST + 1}")[0].queued == 1


def test_interest_that_goes_back_while_another_waits_is_what_counts() -> None:
    """A program ends and begins again: in the end the neighbour wants what it wanted before."""
    bench = Bench(A)
    for number in range(limits.MAX_INTEREST_BURST):
        bench.wants(A, Want(f"veh/me/{number}"))
    last = f"veh/me/{limits.MAX_INTEREST_BURST - 1}"
    bench.wants(A, Want("veh/me/other"))
    bench.wants(A, Want(last))
    while bench.machine.next_timer_at() < 10 * SECOND:
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
    assert bench.publish("veh/me/other")[0].queued == 0
    assert bench.publish(last)[0].queued == 1


def test_wants_of_two_neighbours_for_the_same_are_asked_for_once_and_as_far_as_the_further() -> None:
    """Whoever asks for less must not shorten what another one gets."""
    bench = Bench(A, B, c := NodeId("c"))
    bench.wants(A, Want("veh/**", hops=4), Want("rsu/**", hops=2))
    bench.wants(B, Want("veh/**", hops=2), Want("rsu/**", hops=3))
    assert bench.machine.interest_for(c).wants == (Want("veh/**", hops=3), Want("rsu/**", hops=2))


def test_subscription_with_a_rate_that_ended_leaves_the_others_of_its_stream_alone() -> None:
    """Each has its own clock, and none gets what another one has ended."""
    bench = Bench(A)
    slow = Quality(min_interval_ns=SECOND)
    bench.accept(A, reading())
    first, second = (bench.machine.subscribe("veh/a/*", slow, 0)[0] for _ in range(2))
    other, _ = bench.machine.subscribe("veh/b/*", slow, 0)
    plain, _ = bench.machine.subscribe("veh/b/*", ALL, 0)
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=2))] == [(first, second)]
    for number in (first, other, plain):
        bench.machine.unsubscribe(number)
    assert bench.accept(A, reading(sequence=3)) == [], "the second one has had its reading of this second"
    bench.now = SECOND
    assert [numbers for numbers, _ in bench.accept(A, reading(sequence=4))] == [(second,)]


def test_interest_for_a_neighbour_adds_up_wants_that_differ_only_in_hops() -> None:
    """Eight variants of one want would come back from every circle of neighbours."""
    bench = Bench(A, B)
    bench.machine.subscribe("veh/**", Quality(hops=1), 0)
    bench.machine.subscribe("veh/**", ALL, 0)
    assert bench.wants(A, Want("veh/**", hops=4), Want("rsu/**", hops=1), Want("tool/**"))
    assert bench.machine.interest_for(B).wants == (Want("veh/**", hops=3), Want("rsu/**"))
    assert bench.machine.interest_for(A).wants == (Want("veh/**", hops=1),)
    bench.machine.interest_changed = False
    bench.machine.remove_peer(A)
    assert bench.machine.interest_changed, "others must be asked for less"
    bench.machine.interest_changed = False
    bench.machine.remove_peer(A)
    assert not bench.machine.interest_changed
    assert bench.machine.interest_for(B).wants == (Want("veh/**", hops=1),)


def test_interest_of_neighbours_with_hops_never_exceeds_a_frame() -> None:
    """An insider that asks for 256 things through us must not make our own Interest invalid, nor crowd it out."""
    bench = Bench(A, B)
    bench.machine.subscribe("veh/**", ALL, 0)
    bench.wants(A, *(Want(f"veh/{number}", hops=8) for number in range(limits.MAX_SUBSCRIPTIONS)))
    interest = bench.machine.interest_for(B)
    assert len(interest.wants) == limits.MAX_SUBSCRIPTIONS
    assert interest.wants[0] == Want("veh/**")
    assert decode_untrusted_node_frame(encode_frame(interest)) == interest


def test_interest_of_256_hostile_wants_is_decided_once_per_key() -> None:
    """The bound on wants and chunks bounds the work: after the first reading of a key no want is looked at."""
    bench = Bench(A)
    hostile = tuple(
        Want("/".join(["**", "*"] * 7 + ["**", f"q{number}"])) for number in range(limits.MAX_SUBSCRIPTIONS)
    )
    bench.wants(A, *hostile)
    key = "veh/me/" + "/".join("a" * 13)
    bench.publish(key)
    decided = bench.machine._streams[ME, key].routes
    assert decided == ()
    for _ in range(1_000):
        bench.publish(key)
    assert bench.machine._streams[ME, key].routes is decided


# --- passing on ----------------------------------------------------------------------------------------------------
def test_reading_passed_on_loses_a_hop_and_never_returns() -> None:
    """Loops end by the hop limit, and at once towards source and origin."""
    bench = Bench(A, B, c := NodeId("c"))
    for node in (A, B, c):
        bench.wants(node, Want("**", hops=2))
    bench.accept(c, reading("veh/c/x", "c", 1, hops=2), reading("veh/c/y", "c", 1))
    assert (
        [(one.key, one.hops) for one in bench.sent(B)]
        == [("veh/c/x", 1)]
        == [(one.key, one.hops) for one in bench.sent(A)]
    )
    assert bench.sent(c) == []
    bench.accept(A, reading("veh/d/x", "d", 1, hops=1), reading("veh/d/y", "d", 1))
    assert [(one.key, one.hops) for one in bench.sent(B)] == [("veh/d/x", 0)]
    assert bench.sent(A) == []
    assert bench.machine.counters()["forwarded"] == 4


def test_reading_of_another_node_is_passed_on_only_to_those_who_asked_with_hops() -> None:
    """Who wants readings of its neighbours alone must not get hearsay from an honest neighbour either."""
    bench = Bench(A, B, c := NodeId("c"))
    bench.wants(B, Want("**"))
    bench.wants(c, Want("**"), Want("veh/a/x", hops=1))
    bench.accept(A, reading("veh/a/x", hops=2), reading("veh/a/y", hops=2))
    assert bench.sent(B) == []
    assert [one.key for one in bench.sent(c)] == ["veh/a/x"]
    bench.publish("veh/me/x", hops=1)
    assert len(bench.sent(B)) == len(bench.sent(c)) == 1


def test_reading_passed_on_respects_rate_and_queue_of_each() -> None:
    """Hearsay has no privilege."""
    bench = Bench(A, B)
    bench.wants(B, Want("**", 1_000_000, hops=1))
    for sequence in range(3):
        bench.accept(A, reading(sequence=sequence, hops=1))
    assert len(bench.sent(B)) == 1
    assert bench.dropped() == {(B, "rate_limited"): 2}
