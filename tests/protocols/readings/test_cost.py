"""What one neighbour can make this node do: by an Interest, by new keys, and by wants that travel further."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.keys import matches
from protocols.readings.interest import equal_share
from protocols.readings.matching import KeyPattern
from protocols.readings.quality import Quality
from protocols.wire.readings import Want
from tests.tools.readings_fixture import ALL, SECOND, A, B, Bench
from tests.tools.strategies import reading

HOSTILE = tuple(Want("/".join(["**", *["*"] * 7, f"q{number}", "**"])) for number in range(limits.MAX_SUBSCRIPTIONS))
"""Each takes as long as an expression can, and none matches."""


def invented(bench: Bench, source: NodeId, count: int, hops: int = 1) -> None:
    """``source`` invents streams at a rate that its allowance permits."""
    for number in range(count):
        if number % 64 == 0:
            bench.now += 100 * limits.MS
        key = f"veh/{source}/" + "/".join([*"abcdefghijklm", str(number)])
        bench.accept(source, reading(key, source, hops=hops))


def turns(bench: Bench) -> int:
    """Let time pass until nothing is put off. Returns how often the timer was due."""
    count = 0
    while bench.machine.next_timer_at() <= bench.now + 60 * SECOND:
        bench.now = max(bench.now, bench.machine.next_timer_at())
        bench.machine.handle_timer(bench.now)
        bench.machine.interest_changed = False
        count += 1
    return count


# --- matching ------------------------------------------------------------------------------------------------------
@given(st.integers(0, 2**32))
def test_pattern_matches_what_its_expression_matches(seed: int) -> None:
    """It is a faster form of the same grammar."""
    random = Random(seed)
    key = [random.choice("ab") for _ in range(random.randint(1, 7))]
    chunks = [random.choice(["a", "b", "*", "**"]) for _ in range(random.randint(1, 6))]
    while chunks.count("**") > limits.MAX_DOUBLE_WILDCARDS:
        chunks.remove("**")
    if chunks:
        expression = "/".join(chunks)
        assert KeyPattern(expression).matches("/".join(key), key) == matches(expression, "/".join(key))


def test_pattern_says_what_it_costs_at_most() -> None:
    """Allowances are counted in these steps, so that the dearest expression must not pass for a cheap one."""
    dearest = max(KeyPattern("/".join(["**", *["*"] * between, "**"])).steps for between in range(1, 15))
    assert KeyPattern("veh/a/x").steps == KeyPattern("veh/*/x").steps == KeyPattern("veh/**").steps
    assert KeyPattern(HOSTILE[0].expression).steps == dearest
    assert dearest > 5 * KeyPattern("veh/*/x").steps


# --- one Interest --------------------------------------------------------------------------------------------------
def test_interest_after_many_invented_streams_is_answered_in_slices() -> None:
    """One Interest of 4.5 kB held the engine for 25 s, and an honest neighbour was declared dead meanwhile."""
    bench = Bench(A, B)
    invented(bench, A, 16_000)
    bench.publish("veh/me/mine", 1)
    bench.now += SECOND
    work = bench.machine._work
    bench.wants(B, *HOSTILE)
    assert len(bench.machine._history) == 1
    before = [peer.work.left(bench.now) for peer in bench.peers.values()]
    bench.now = bench.machine.next_timer_at()
    bench.machine.handle_timer(bench.now)
    steps = sum(before) - sum(peer.work.left(bench.now) for peer in bench.peers.values())
    dearest = bench.peers[B].steps
    assert 0 < steps < limits.HISTORY_STEPS + dearest
    assert len(bench.machine._history) == 1
    assert turns(bench) > 2
    assert bench.sent(B) == []
    assert work.left_in_frame <= limits.MATCHING_STEPS_PER_FRAME


def test_interest_gets_its_whole_history_in_the_end() -> None:
    """Slices put off and drop nothing. What comes meanwhile is sent once."""
    bench = Bench(A)
    for number in range(1_500):
        bench.publish(f"veh/me/{number}", number)
    bench.wants(A, Want("veh/me/*"))
    first = [one.key for one in bench.sent(A)]
    assert 30 < len(first) < 300
    bench.now += 1
    bench.publish("veh/me/1400", "newer")
    got = first + [one.key for one in bench.sent(A)]
    while len(bench.machine._history):
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
        got += [one.key for one in bench.sent(A)]
    assert sorted(got) == sorted(f"veh/me/{number}" for number in range(1_500))


def test_interest_of_a_neighbour_that_is_gone_is_answered_no_more() -> None:
    """Its queues are gone too."""
    bench = Bench(A)
    for number in range(1_500):
        bench.publish(f"veh/me/{number}", number)
    bench.wants(A, Want("veh/me/*"))
    bench.sent(A)
    bench.machine.remove_peer(A)
    assert len(bench.machine._history) == 0
    turns(bench)
    assert bench.sent(A) == []


def test_history_waits_for_the_room_that_newer_readings_need() -> None:
    """What is past must not push what is present out of a slow neighbour's queue."""
    bench = Bench(A, B)
    for number in range(3_000):
        bench.publish(f"veh/me/{number}", number)
    bench.wants(A, Want("**"))
    for _ in range(200):
        bench.now += limits.HISTORY_PAUSE_NS
        bench.machine.handle_timer(bench.now)
    waiting = bench.peers[A].realtime.waiting_readings
    assert limits.MAX_QUEUE_READINGS // 2 <= waiting < limits.MAX_QUEUE_READINGS
    assert not bench.dropped()
    bench.wants(B, Want("veh/me/2999"))
    for _ in range(5):
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
    assert [one.value for one in bench.sent(B)] == [2_999], "another neighbour need not wait for it"


def test_interests_beyond_the_allowance_wait_and_the_newest_counts() -> None:
    """Each change has the routes of all streams decided anew."""
    bench = Bench(A)
    for number in range(100):
        bench.wants(A, Want(f"veh/me/{number}"))
    assert len(bench.peers[A].held) == 1
    assert bench.publish("veh/me/99")[0].queued == 0
    assert bench.dropped() == {(A, "interest_put_off"): 1}
    bench.now += SECOND
    bench.machine.handle_timer(bench.now)
    assert bench.publish("veh/me/99")[0].queued == 1
    assert bench.publish("veh/me/31")[0].queued == 0


def parts(bench: Bench) -> list[int]:
    """Let time pass until no Interest is half taken up. Returns how many wants were taken apart in each call."""
    made = []
    while len(bench.machine._uptake):
        bench.now = bench.machine.next_timer_at()
        with counted_patterns() as count:
            bench.machine.handle_timer(bench.now)
        made.append(len(count))
    return made


@contextmanager
def counted_patterns() -> Iterator[list[str]]:
    """The expressions that are taken apart."""
    made: list[str] = []

    def taken_apart(expression: str) -> KeyPattern:
        made.append(expression)
        return KeyPattern(expression)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("protocols.readings.interest.KeyPattern", taken_apart)
        yield made


def test_large_interest_is_taken_up_in_parts_and_counts_when_all_of_it_is() -> None:
    """One of 256 wants held the engine for 5 ms, 7.5 ms with what followed, as often as an insider sent one."""
    bench = Bench(A, B)
    bench.wants(A, Want("veh/me/old"))
    with counted_patterns() as made:
        bench.begin_wants(A, *HOSTILE[1:], Want("veh/me/x"))
    assert 0 < len(made) <= limits.NEW_WANTS_AT_ONCE
    assert bench.publish("veh/me/old")[0].queued == 1
    assert bench.publish("veh/me/x")[0].queued == 0
    following = parts(bench)
    assert len(following) > 4
    assert max(following) <= limits.NEW_WANTS_AT_ONCE
    assert bench.publish("veh/me/old")[0].queued == 0
    assert bench.publish("veh/me/x")[0].queued == 1


def test_small_interest_counts_at_once_however_many_wants_were_known() -> None:
    """A program that adds a subscription to 255 others must not wait for it."""
    bench = Bench(A)
    bench.wants(A, *HOSTILE[1:])
    bench.begin_wants(A, *HOSTILE[1:], Want("veh/me/x"))
    assert bench.publish("veh/me/x")[0].queued == 1


def test_newest_interest_replaces_one_that_is_half_taken_up_and_keeps_its_work() -> None:
    """What an overtaken Interest wanted never counts, and what both want is taken apart once."""
    bench = Bench(A)
    most = limits.NEW_WANTS_AT_ONCE
    bench.begin_wants(A, *HOSTILE)
    with counted_patterns() as made:
        bench.begin_wants(A, *HOSTILE[:most], Want("veh/me/x"))
    assert made == ["veh/me/x"]
    assert len(bench.machine._uptake) == 0
    assert len(bench.peers[A].held) == most + 1
    turns(bench)
    assert len(bench.peers[A].held) == most + 1


def test_interest_that_is_half_taken_up_waits_for_what_its_neighbour_may_cost_and_for_no_other() -> None:
    """An insider pays for its wants as it does for its keys."""
    bench = Bench(A, B)
    bench.begin_wants(A, *HOSTILE)
    bench.begin_wants(B, *(Want(f"veh/me/{number}") for number in range(256)))
    bench.peers[A].work.fine(2 * limits.MAX_MATCHING_BURST)
    for _ in range(20):
        bench.now += limits.INTEREST_PAUSE_NS
        bench.machine.handle_timer(bench.now)
    assert (len(bench.peers[A].held), len(bench.peers[B].held)) == (0, 256)
    turns(bench)
    assert len(bench.peers[A].held) == 256


def test_interest_that_is_half_taken_up_ends_with_its_neighbour() -> None:
    """Its wants must not count for whoever comes next."""
    bench = Bench(A)
    bench.begin_wants(A, *HOSTILE)
    bench.machine.remove_peer(A)
    assert len(bench.machine._uptake) == 0
    bench.add(A)
    turns(bench)
    assert bench.peers[A].held == ()


# --- new keys ------------------------------------------------------------------------------------------------------
def test_new_keys_beyond_the_allowance_are_dropped_by_name_and_others_are_not() -> None:
    """Each new key is matched with every subscription. Whoever invents keys pays for it alone."""
    bench = Bench(A, B)
    bench.machine.subscribe("**", ALL, 0)
    for number in range(5_000):
        bench.now += 1
        bench.accept(A, reading(f"veh/a/{number}", "a"))
        assert bench.accept(B, reading("veh/b/x", "b", number))
    assert set(bench.dropped()) == {(A, "over_rate")}
    bench.now += 10 * SECOND
    assert bench.accept(A, reading("veh/a/4999", "a"))


def test_new_keys_of_a_second_take_little_of_the_receiving_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 10 µs each, two thousand a second kept honest readings waiting 2 % of the time, which is their p99. What is
    beyond the allowance was looked at all the same."""
    bench = Bench(A)
    looked: list[str] = []
    monkeypatch.setattr("protocols.readings.machine.checked_key", looked.append)
    for number in range(30_000):
        bench.now += 10 * SECOND // 30_000
        bench.accept(A, reading(f"veh/a/{number}", "a"))
    per_s = (len(looked) - limits.MAX_MATCHING_BURST // limits.NEW_STREAM_STEPS) / 10
    assert 500 < per_s <= 1_000


def test_one_frame_of_a_new_key_costs_a_bounded_number_of_steps() -> None:
    """A key that has to be matched with the dearest wants of all neighbours."""
    bench = Bench(A, B)
    bench.wants(B, *(Want(want.expression, hops=8) for want in HOSTILE))
    for number in range(64):
        left = bench.peers[A].work.left(0)
        bench.accept(A, reading(f"veh/far/{'a/' * 12}{number}", "far", hops=1))
        assert left - bench.peers[A].work.left(0) < 2 * limits.MATCHING_STEPS_PER_FRAME
    assert bench.peers[A].work.left(0) < limits.MAX_MATCHING_BURST, "it is the neighbour that pays"


# --- the wants of all ----------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 300), max_size=70), st.integers(0, 3_000))
def test_equal_share_is_the_largest_that_fits(amounts: list[int], bound: int) -> None:
    """Whoever wants less than the share gets all of it."""
    share = equal_share(amounts, bound)
    assert sum(min(amount, share) for amount in amounts) <= bound
    if amounts and share < max(amounts):
        assert sum(min(amount, share + 1) for amount in amounts) > bound


def test_wants_of_all_neighbours_are_bounded_and_the_largest_holder_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each want is matched with each new key of this node."""
    monkeypatch.setattr(limits, "MAX_WANTS", 100)
    bench = Bench(A, B)
    bench.wants(A, *(Want(f"veh/me/{number}") for number in range(256)))
    assert len(bench.peers[A].held) == 100
    bench.wants(B, Want("veh/me/x"), Want("veh/me/255"))
    assert (len(bench.peers[A].held), len(bench.peers[B].held)) == (98, 2)
    assert bench.publish("veh/me/x")[0].queued == 1
    assert bench.publish("veh/me/255")[0].queued == 1
    assert set(bench.dropped()) == {(A, "interest_full")}
    bench.machine.remove_peer(B)
    assert len(bench.peers[A].held) == 100


def test_wants_that_give_way_to_another_neighbour_are_not_asked_of_others_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others would send what this node then drops as unasked, and wants of third ones have no place meanwhile."""
    monkeypatch.setattr(limits, "MAX_WANTS", 100)
    bench = Bench(A, B, c := NodeId("c"))
    bench.wants(A, *(Want(f"veh/x/{number}", hops=2) for number in range(100)))
    assert len(bench.machine.interest_for(c).wants) == 100
    assert bench.wants(B, *(Want(f"veh/me/{number}") for number in range(50))), "others have to be told"
    assert len(bench.machine.interest_for(c).wants) == 50
    assert not bench.wants(B, *(Want(f"veh/me/{number}") for number in range(49, -1, -1)))


def test_wants_with_hops_of_many_neighbours_share_an_interest_fairly() -> None:
    """One neighbour with 256 wants must not keep those of the others from travelling."""
    bench = Bench(A, B, c := NodeId("c"))
    bench.machine.subscribe("rsu/**", Quality(hops=1), 0)
    bench.wants(A, *(Want(f"veh/a/{number}", hops=8) for number in range(256)))
    bench.wants(c, *(Want(f"veh/c/{number}", hops=2) for number in range(10)))
    asked = bench.machine.interest_for(B).wants
    assert len(asked) == limits.MAX_SUBSCRIPTIONS
    assert asked[0] == Want("rsu/**", hops=1)
    assert {Want(f"veh/c/{number}", hops=1) for number in range(10)} < set(asked)
    assert bench.dropped() == {(A, "interest_full"): 11}
    bench.machine.interest_for(B)
    assert bench.dropped() == {(A, "interest_full"): 11}, "it is counted once"


def test_change_of_interest_is_told_to_many_neighbours_in_slices() -> None:
    """One frame of one neighbour must not make this node encode 63 large ones at once."""
    names = [NodeId(f"n{number}") for number in range(40)]
    bench = Bench(A, *names)
    bench.wants(A, Want("veh/**", hops=2))
    told: list[NodeId] = []
    assert bench.machine.interest_changed
    while bench.machine.interest_changed:
        batch = bench.machine.untold(names, bench.now)
        assert len(batch) <= limits.INTERESTS_AT_ONCE
        for node in batch:
            bench.machine.interest_for(node)
        told += batch
        if len(told) < len(names):
            bench.now = bench.machine.next_timer_at()
            bench.machine.handle_timer(bench.now)
    assert told == names


def test_neighbours_are_told_a_large_interest_fewer_at_a_time() -> None:
    """Eight of 256 wants took 3 ms under the engine's lock."""
    names = [NodeId(f"n{number}") for number in range(10)]
    bench = Bench(A, *names)
    bench.machine.untold(names, bench.now)
    bench.wants(A, *(Want(f"veh/{number}", hops=2) for number in range(256)))
    for _ in range(3):  # its last values have their turn, too
        bench.now = bench.machine.next_timer_at()
        bench.machine.handle_timer(bench.now)
    assert bench.machine.interest_changed
    told = bench.machine.untold(names, bench.now)
    assert 0 < len(told) * 256 <= limits.WANTS_TOLD_AT_ONCE
