"""How fast a node sends when all of its lanes are late: less of it, in equal shares, and all of it again soon."""

from collections import deque

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import SLOW_NS
from protocols.links.pace import Pace

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def congested(now: int = 10 * SECOND, samples: int = 20) -> Pace:
    """A pace that has just begun, because ``samples`` frames of the last 200 ms were late."""
    pace = Pace()
    pace.sampled(MS, now - 200 * MS)  # a round begins
    for _ in range(samples - 1):
        pace.sampled(SLOW_NS + 1, now - MS)
    pace.sampled(SLOW_NS + 1, now)
    assert pace.active
    return pace


def test_pace_begins_with_less_than_was_sent() -> None:
    """What was sent was too much."""
    pace = congested(samples=20)
    assert 60 < pace.rate < 100


def test_one_slow_lane_among_ten_good_ones_slows_nobody() -> None:
    """Its link is slow; the channel has room."""
    pace, now = Pace(), SECOND
    for _ in range(100):
        now += 100 * MS
        for lane in range(11):
            pace.sampled(SLOW_NS + 1 if lane == 0 else 2 * MS, now)
    assert not pace.active


def test_what_was_sent_before_a_cut_causes_no_other_one() -> None:
    """It was on its way already, so it says nothing about the new rate."""
    pace, now = congested(), 10 * SECOND
    cuts, rate = pace.cuts, pace.rate
    for _ in range(10):
        now += 50 * MS
        pace.sampled(now - 10 * SECOND + 100 * MS, now)
    assert (pace.cuts, pace.rate >= rate) == (cuts, True)
    for _ in range(10):
        now += 50 * MS
        pace.sampled(SLOW_NS + 1, now)
    assert pace.cuts > cuts


def test_lanes_take_turns_in_the_order_in_which_they_wait() -> None:
    """With thirty neighbours, whoever asks first each time would get everything."""
    pace, now = congested(), 10 * SECOND
    assert [pace.take_turn(node, now) for node in (A, B, C, A)] == [False] * 4
    order: list[NodeId] = []
    for _ in range(9):
        now = pace.next_turn_at()
        for node in pace.turns(now):
            assert pace.take_turn(node, now)
            assert not pace.take_turn(node, now), "one turn is one frame"
            order.append(node)
    assert order == [A, B, C] * 3
    pace.forget(B)
    pace.forget(A)
    pace.forget(C)
    assert pace.next_turn_at() == NEVER


def test_urgent_frames_count_but_never_starve_the_others_for_long() -> None:
    """A burst of hazards to everybody is paid for afterwards, within a second or so."""
    pace, now = congested(), 10 * SECOND
    for _ in range(1_000):
        pace.sent(now)
    assert not pace.take_turn(A, now)
    assert pace.next_turn_at() - now < 1.5 * SECOND


def test_channel_that_became_free_is_used_again_and_the_limit_ends() -> None:
    """Nobody tells that the jam is over."""
    pace, now = congested(), 10 * SECOND
    for _ in range(60):
        now += 100 * MS
        pace.turns(now)
        if pace.active and pace.take_turn(A, now):
            pace.sampled(2 * MS, now)
        else:
            pace.sampled(2 * MS, now)
            pace.turns(now + 50 * MS)
    assert not pace.active
    assert pace.gap_ns(30) == 0


class Channel:
    """A channel that carries ``capacity`` frames a second, in order, for nodes that always have more to send."""

    def __init__(self, capacity: int, nodes: int) -> None:
        self.capacity, self.now, self.free_ns = capacity, SECOND, SECOND
        self.paces = [Pace() for _ in range(nodes)]
        self.wants_hz = [10.0 * (nodes - 1)] * nodes
        self.under_way: list[deque[tuple[int, int, bool]]] = [deque() for _ in range(nodes)]
        self.carried = [0] * nodes
        self.debts = [0.0] * nodes

    def run(self, seconds: float, nodes: int) -> float:
        """Let the first ``nodes`` nodes send. Returns the share of the capacity that was used."""
        begun_ns, before = self.now, sum(self.carried)
        while self.now < begun_ns + seconds * SECOND:
            self.now += 2 * MS
            for number in range(nodes):
                self._step(number)
        return (sum(self.carried) - before) / self.capacity / seconds

    def _step(self, number: int) -> None:
        pace, under_way, now = self.paces[number], self.under_way[number], self.now
        for index, (sent_ns, done_ns, told) in enumerate(under_way):
            if not told and now - sent_ns > SLOW_NS and done_ns > now:
                under_way[index] = (sent_ns, done_ns, True)
                pace.sampled(now - sent_ns, now)
        while under_way and under_way[0][1] <= now:
            sent_ns, done_ns, told = under_way.popleft()
            self.carried[number] += 1
            if not told:
                pace.sampled(done_ns - sent_ns, now)
        self.debts[number] = min(self.debts[number] + self.wants_hz[number] * 0.002, 3.0)
        pace.turns(now)
        while self.debts[number] >= 1.0 and (not pace.active or pace.take_turn(A, now)):
            self.debts[number] -= 1.0
            self.free_ns = max(self.free_ns, now) + SECOND // self.capacity
            under_way.append((now, self.free_ns, False))


@pytest.mark.parametrize("nodes", [14, 20, 30, 40])
def test_nodes_that_want_more_than_a_channel_carries_share_it_and_keep_it_useful(nodes: int) -> None:
    """Each decides by what it sees itself; together they must neither swing nor starve one another."""
    channel = Channel(1_000, nodes)
    channel.run(15.0, nodes)
    before = list(channel.carried)
    used = channel.run(15.0, nodes)
    got = [after - then for after, then in zip(channel.carried, before, strict=True)]
    assert 0.75 < used <= 1.01
    assert max(got) < 2 * min(got)
    assert channel.free_ns - channel.now < 400 * MS, "what waits on the channel is bounded"


def test_nodes_that_stay_have_the_channel_for_themselves_soon_after_the_others_left() -> None:
    """From thirty to twelve, within five seconds."""
    channel = Channel(1_400, 30)
    channel.run(15.0, 30)
    channel.wants_hz[:12] = [110.0] * 12
    channel.run(4.0, 12)
    assert channel.run(1.0, 12) > 0.85
