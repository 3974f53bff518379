"""How fast a node sends when all of its lanes are late: less of it, in equal shares, and all of it again soon."""

from collections import deque

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import SLOW_NS
from protocols.links.pace import EVERYBODY, Pace

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


D = NodeId("d")
LATE_NS = SLOW_NS + 1
TOOK_NS = 80 * MS


def congested(now: int = 10 * SECOND, samples: int = 20) -> Pace:
    """A pace that has just begun, because ``samples`` frames of the last 200 ms were late."""
    pace = Pace()
    pace.sampled(A, (1, MS), now - 200 * MS)  # a round begins
    for number in range(samples - 1):
        pace.sampled((A, B, C)[number % 3], (LATE_NS, TOOK_NS), now - MS)
    pace.sampled(A, (LATE_NS, TOOK_NS), now)
    assert pace.active
    return pace


def test_pace_begins_with_less_than_was_sent() -> None:
    """What was sent was too much."""
    pace = congested(samples=20)
    assert 60 < pace.rate < 100


def test_slow_lane_among_good_ones_slows_nobody_however_much_it_asks_for() -> None:
    """Its link is slow; the channel has room. Each lane has one vote."""
    pace, now = Pace(), SECOND
    for _ in range(100):
        now += 100 * MS
        for _ in range(20):
            pace.sampled(D, (LATE_NS, TOOK_NS), now)
        for node in (A, B):
            pace.sampled(node, (1, MS), now)
    assert not pace.active


def test_slow_lane_that_is_the_only_one_has_its_own_window_and_no_pace() -> None:
    """There is nobody to share with."""
    pace, now = Pace(), SECOND
    for _ in range(100):
        now += 100 * MS
        pace.sampled(A, (LATE_NS, TOOK_NS), now)
    assert not pace.active


CROWD = [NodeId(f"n{number}") for number in range(14)]


def crowded(slow: int) -> int:
    """How often a node with fourteen lanes cuts its rate when so many of them become slow."""
    pace, now = Pace(), 10 * SECOND
    pace.lanes = len(CROWD)
    for late in (0, 0, slow, 0):
        now += 200 * MS
        for number, node in enumerate(CROWD):
            pace.sampled(node, (LATE_NS if number < late else 1, TOOK_NS), now - 10 * MS)
        pace.sampled(CROWD[-1], (1, MS), now)
    return pace.cuts


def test_in_a_crowd_a_few_lanes_that_become_slow_tell_that_the_channel_is_full() -> None:
    """Whoever has a small share of the channel sees little of it, and hazards wait all the same."""
    assert crowded(1) == 0
    assert crowded(4) == 1


def test_lanes_of_a_crowd_that_were_always_slow_have_slow_links() -> None:
    """Three neighbours behind a wall must not slow down eleven others."""
    pace, now = Pace(), 10 * SECOND
    pace.lanes = len(CROWD)
    for _ in range(100):
        now += 100 * MS
        for number, node in enumerate(CROWD):
            pace.sampled(node, (LATE_NS if number < 3 else 1, TOOK_NS), now)
    assert pace.cuts == 0


def granted(pace: Pace, now: int, span_ns: int) -> int:
    """How many turns a lane gets that always wants one."""
    turns, end_ns = 0, now + span_ns
    pace.take_turn(A, now)
    while now < end_ns:
        now += 5 * MS
        for node in pace.turns(now):
            turns += pace.take_turn(node, now)
            pace.take_turn(node, now)
    return turns


def test_cut_lets_the_channel_carry_off_what_waits_on_it() -> None:
    """Otherwise what is sent next is late too, whatever the rate is."""
    pace, now = congested(), 10 * SECOND
    assert granted(pace, now, 300 * MS) <= pace.rate * 0.3 / 4 + 1, "no more than what is reserved"
    assert granted(pace, now + 300 * MS, SECOND) > 0.9 * pace.rate


def test_long_frame_takes_the_time_of_several() -> None:
    """A page of gossip keeps a radio busy for as long as five positions."""
    spans = []
    for size_bytes in (0, 2_000):
        pace, now = congested(), 11 * SECOND
        pace.take_turn(A, now)
        pace.turns(now)
        assert pace.take_turn(A, now)
        if size_bytes:
            pace.took_long(size_bytes)
        pace.take_turn(A, now)
        spans.append(pace.next_turn_at() - now)
    assert spans[1] > spans[0] + 2 * SECOND / pace.rate


def test_lateness_that_no_rate_ends_is_not_fought_for_ever() -> None:
    """Then it is not the channel that is full, and sending little helps nobody."""
    pace, now = congested(), 10 * SECOND
    begun_ns = now
    while pace.active:
        now += 100 * MS
        for node in (A, B, C):
            pace.sampled(node, (LATE_NS, TOOK_NS), now)
        assert now - begun_ns < 40 * SECOND
    for _ in range(100):
        now += 100 * MS
        for node in (A, B, C):
            pace.sampled(node, (LATE_NS, TOOK_NS), now)
        assert not pace.active


def test_what_was_sent_before_a_cut_causes_no_other_one() -> None:
    """It was on its way already, so it says nothing about the new rate."""
    pace, now = congested(), 10 * SECOND
    cuts, rate = pace.cuts, pace.rate
    for _ in range(10):
        now += 50 * MS
        for node in (A, B):
            pace.sampled(node, (LATE_NS, now - 10 * SECOND + 100 * MS), now)
    assert (pace.cuts, pace.rate >= rate) == (cuts, True)
    for _ in range(10):
        now += 50 * MS
        for node in (A, B):
            pace.sampled(node, (LATE_NS, TOOK_NS), now)
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


def test_neighbours_that_are_gone_leave_nothing_behind() -> None:
    """Vehicles come and go all day."""
    pace, now = congested(), 10 * SECOND
    for number in range(1_000):
        now += 50 * MS
        node = NodeId(f"gone-{number}")
        pace.sampled(node, (1, MS), now)
        pace.take_turn(node, now)
        pace.forget(node)
    pace.sampled(A, (1, MS), now + SECOND)
    held = [len(getattr(pace, name)) for name in ("_good_ns", "_granted", "_votes", "_waiting")]
    assert max(held) <= 3


def test_urgent_frames_take_turns_from_others_but_leave_them_a_quarter() -> None:
    """Whoever floods with hazards must not have a node taken for dead by all who don't want them."""
    pace, now, granted = congested(), 10 * SECOND, 0
    rate = pace.rate
    assert not pace.take_turn(A, now)
    while now < 14 * SECOND:
        now += 5 * MS
        pace.sent(B, now, with_all=True)  # 200 a second
        for node in pace.turns(now):
            granted += 1
            assert pace.take_turn(node, now)
            assert not pace.take_turn(node, now)
    assert 0.8 < granted / (4 * rate / 4) < 1.3


def test_channel_that_became_free_is_used_again_and_the_limit_ends() -> None:
    """Nobody tells that the jam is over."""
    pace, now = congested(), 10 * SECOND
    for _ in range(60):
        now += 100 * MS
        pace.turns(now)
        if pace.active:
            pace.take_turn(A, now)
        pace.sampled(A, (1, 2 * MS), now)
        pace.turns(now + 50 * MS)
    assert not pace.active
    assert pace.gap_ns() == 0


class Channel:
    """A channel that carries ``capacity`` frames a second, in order, for nodes that always have more to send."""

    def __init__(self, capacity: int, nodes: int) -> None:
        self.capacity, self.now, self.free_ns = capacity, SECOND, SECOND
        self.paces = [Pace() for _ in range(nodes)]
        self.wants_hz = [10.0 * (nodes - 1)] * nodes
        self.under_way: list[deque[tuple[int, int, bool]]] = [deque() for _ in range(nodes)]
        self.carried = [0] * nodes
        self.debts = [0.0] * nodes
        self.samples = [0] * nodes

    def lane(self, number: int) -> NodeId:
        """One lane of a node after the other."""
        self.samples[number] += 1
        return NodeId(f"n{self.samples[number] % 7}")

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
            if not told and now - sent_ns > TOOK_NS and done_ns > now:
                under_way[index] = (sent_ns, done_ns, True)
                pace.sampled(self.lane(number), (LATE_NS, now - sent_ns), now)
        while under_way and under_way[0][1] <= now:
            sent_ns, done_ns, told = under_way.popleft()
            self.carried[number] += 1
            if not told:
                pace.sampled(self.lane(number), (1, done_ns - sent_ns), now)
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


def in_line(pace: Pace, now: int, *nodes: NodeId) -> None:
    """These lanes wait for their turns, in this order."""
    for node in nodes:
        assert not pace.take_turn(node, now)


def next_in_line(pace: Pace, turns: int) -> list[NodeId]:
    """Who has the next turns."""
    granted: list[NodeId] = []
    while len(granted) < turns:
        granted += pace.turns(pace.next_turn_at())
    return granted


def test_lane_that_an_urgent_reading_has_served_is_the_last_in_line() -> None:
    """In a crowd with many hazards a lane that got none would wait for half a minute otherwise, and be taken for
    dead."""
    pace, now = congested(), 10 * SECOND
    in_line(pace, now, A, B, C)
    pace.sent(A, now, with_all=True)
    pace.sent(B, now, with_all=False)  # what waits there did not fit
    assert next_in_line(pace, 3) == [B, C, A]


def test_queue_for_all_who_listen_has_every_second_turn() -> None:
    """Each of its frames serves all, and the lanes must not starve."""
    pace = congested()
    in_line(pace, 10 * SECOND, A, B, EVERYBODY)
    order: list[NodeId] = []
    while len(order) < 4:
        now = pace.next_turn_at()
        for node in pace.turns(now):
            order.append(node)
            assert pace.take_turn(node, now)  # it takes a frame, and has more
            in_line(pace, now, node)
    assert order == [EVERYBODY, A, EVERYBODY, B]


def test_first_frame_on_a_lane_that_has_just_opened_has_no_line_before_it() -> None:
    """A node that comes to a full channel hears nobody for a whole round of turns otherwise, and knows of no crowd."""
    pace, now = congested(), 10 * SECOND
    in_line(pace, now, A, B, C)
    pace.opened(D)
    assert pace.take_turn(D, now)
    assert not pace.take_turn(D, now), "only the first one"
    assert next_in_line(pace, 4) == [A, B, C, D]


def test_lanes_that_were_open_before_there_was_a_pace_wait_for_their_turns() -> None:
    """One free frame each would be the worst when the channel has just become full."""
    pace = Pace()
    pace.opened(D)
    pace.active, pace.rate = True, 10.0
    while pace.take_turn(A, 0):
        pass  # the turns that are left
    assert not pace.take_turn(D, 0)


def test_lane_waits_longer_where_urgent_readings_take_the_rate() -> None:
    """How long neighbours may be silent follows from it."""
    pace, now = congested(), 10 * SECOND
    pace.lanes = 3
    assert pace.line_ns() == pace.gap_ns()
    for _ in range(200):
        pace.sent(A, now, with_all=False)
    assert 2 * pace.gap_ns() < pace.line_ns() < 4.1 * pace.gap_ns()
    pace.end()
    assert pace.line_ns() == 0


def test_urgent_readings_for_a_whole_crowd_count_in_full_once_the_rate_is_the_least() -> None:
    """One hazard to sixty neighbours is eight seconds of such a rate, and turns as usual beside it are too much."""
    turns = {}
    for rate in (30.0, 7.5):
        pace, now = congested(), 10 * SECOND
        pace.lanes, pace.rate = 59, rate
        for number in range(59):
            pace.sent(NodeId(f"n{number}"), now, with_all=True)
        turns[rate] = granted(pace, now, 4 * SECOND) / rate / 4
    assert turns[30.0] > 0.8
    assert turns[7.5] < 0.4
