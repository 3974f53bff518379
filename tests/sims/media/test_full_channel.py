"""A full channel: all nodes together get what it has and no more, each of them its share, and nobody nothing."""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

import pytest

from protocols.base.limits import MS, SECOND
from sims.media.airtime import ACKNOWLEDGED_NS, airtime_ns
from sims.media.radio import Air
from sims.media.tcp import SEGMENT_BYTES, TCP_IP_BYTES, TLS_BYTES, segments_of
from tests.sims.media.test_radio import air, radio

READING_BYTES = 150
ALMOST = pytest.approx(1.0, abs=0.03)
BACK_NS = airtime_ns(TCP_IP_BYTES, 6.0) + ACKNOWLEDGED_NS
"""What the channel needs for TCP's acknowledgement."""
FULL_NS = airtime_ns(SEGMENT_BYTES + TCP_IP_BYTES, 6.0) + ACKNOWLEDGED_NS


def near(nodes: int, **settings: float) -> Air:
    """Nodes that all hear one another."""
    return air([(number * 2.0, 0.0) for number in range(nodes)], radio("ideal", range_m=500.0, **settings))[0]


def cost_ns(size_bytes: int) -> int:
    """What a message needs of the channel, acknowledgements included."""
    if size_bytes + TLS_BYTES <= SEGMENT_BYTES:
        return airtime_ns(size_bytes + TLS_BYTES + TCP_IP_BYTES, 6.0) + ACKNOWLEDGED_NS + BACK_NS
    segments = segments_of(size_bytes)
    return segments * FULL_NS + segments // 2 * (ACKNOWLEDGED_NS + BACK_NS)


def carried(
    links: Air,
    receivers: Callable[[int], Sequence[int]],
    *,
    size_bytes: int = READING_BYTES,
    window: int = 8,
    until_s: int = 6,
) -> list[float]:
    """Every node always has ``window`` messages under way to each of its receivers. Returns how many messages of each
    node arrive in a second, once two seconds have passed."""
    nodes = len(links.cells.xs_m)
    due = [
        (1 + node, number, node, receiver)
        for node in range(nodes)
        for receiver in receivers(node)
        for number in range(window)
    ]
    heapify(due)
    arrived = [0] * nodes
    while due[0][0] < until_s * SECOND:
        now_ns, number, node, receiver = heappop(due)
        arrived[node] += now_ns >= 2 * SECOND
        at_ns = links.stream_ns(node, receiver, size_bytes, now_ns)
        heappush(due, (at_ns or now_ns + 200 * MS, number, node, receiver))
    return [count / (until_s - 2) for count in arrived]


@pytest.mark.parametrize(("nodes", "window"), [(2, 8), (4, 8), (14, 8), (14, 64), (40, 2)])
def test_nodes_that_all_want_more_get_the_whole_channel_and_equal_shares(nodes: int, window: int) -> None:
    """Fourteen vehicles carried 1,740 readings a second, on a channel that has room for 1,315 with their
    acknowledgements."""
    rates = carried(near(nodes), lambda node: [(node + 1) % nodes], window=window)
    assert sum(rates) * cost_ns(READING_BYTES) / SECOND == ALMOST
    assert min(rates) > 0.95 * max(rates)


def test_nodes_that_wait_for_each_arrival_get_no_more_than_the_channel_has() -> None:
    """Nodes that wait for each answer want much in one window and little in the next, so that every other window looked
    as if there were room."""
    rates = carried(near(14), lambda node: [(node + 1) % 14], window=1)
    assert sum(rates) * cost_ns(READING_BYTES) / SECOND == pytest.approx(0.97, abs=0.06)


@pytest.mark.parametrize(
    "receivers",
    [lambda node: [0] if node else [1], lambda node: [] if node else range(1, 14)],
    ids=["all-to-one", "one-to-all"],
)
def test_hub_does_not_acknowledge_beyond_what_the_channel_has(receivers: Callable[[int], Sequence[int]]) -> None:
    """A roadside unit that hears from all, or tells all, keeps one transmitter busy and the same channel."""
    rates = carried(near(14), receivers)
    assert sum(rates) * cost_ns(READING_BYTES) / SECOND == ALMOST
    senders = [rate for rate in rates if rate]
    assert min(senders) > 0.95 * max(senders)


@pytest.mark.parametrize("nodes", [2, 6])
def test_large_messages_get_no_more_than_the_channel_has(nodes: int) -> None:
    """Every other segment is acknowledged, and that takes airtime too."""
    rates = carried(near(nodes), lambda node: [(node + 1) % nodes], size_bytes=20_000, window=4, until_s=22)
    assert sum(rates) * cost_ns(20_000) / SECOND == ALMOST


def test_repeated_frames_are_part_of_their_senders_share() -> None:
    """Where three in ten frames are lost, there is less left for those that arrive."""
    rates = carried(near(14, loss=0.3), lambda node: [(node + 1) % 14])
    cost_with_repeats_ns = cost_ns(READING_BYTES) + 3 / 7 * airtime_ns(READING_BYTES + TLS_BYTES + TCP_IP_BYTES, 6.0)
    assert sum(rates) * cost_with_repeats_ns / SECOND == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize(("each", "period_ms"), [(12, 100), (150, 1_000), (60, 500)])
def test_bursts_of_all_nodes_at_once_take_the_airtime_that_they_need(each: int, period_ms: int) -> None:
    """They were all sent at once, because the last window was quiet, and so was the channel by the next burst."""
    nodes, until_s, links = 14, 20, near(14)
    arrivals = [
        links.stream_ns(node, (node + 1) % nodes, READING_BYTES, at_ms * MS + node)
        for at_ms in range(0, until_s * 1_000, period_ms)
        for node in range(nodes)
        for _ in range(each)
    ]
    assert nodes * each * cost_ns(READING_BYTES) > 1.2 * period_ms * MS
    count = sum(SECOND <= (at_ns or 0) < until_s * SECOND for at_ns in arrivals)
    assert count * cost_ns(READING_BYTES) / ((until_s - 1) * SECOND) == pytest.approx(0.98, abs=0.04)


def test_nodes_that_begin_all_at_once_are_not_silent_afterwards() -> None:
    """Silence for seconds would be taken for death by everybody."""
    nodes, links = 40, near(40)
    arrivals = [
        links.stream_ns(node, (node + 1) % nodes, READING_BYTES, step * 10 * MS + node) or 0
        for step in range(100)
        for node in range(nodes)
        for _ in range(4)
    ]
    most = SECOND / 2 / cost_ns(READING_BYTES)
    by_half_second = [sum(half * SECOND <= 2 * at_ns < (half + 1) * SECOND for at_ns in arrivals) for half in range(22)]
    assert min(by_half_second) > 0.7 * most
    assert max(by_half_second) < 1.3 * most


def test_large_message_and_those_that_pass_it_both_get_on() -> None:
    """A long queue of readings must not hold up a tensor for ever, nor the other way round."""
    links = near(4)
    carried(links, lambda node: [(node + 1) % 4], window=64, until_s=3)
    alone_ns = 4 * cost_ns(20_000)
    large_ns = (links.stream_ns(0, 1, 20_000, 3 * SECOND) or 0) - 3 * SECOND
    assert alone_ns * 0.95 < large_ns < alone_ns * 2.1
    waiting = [links.stream_ns(0, 1, READING_BYTES, 3 * SECOND) or 0 for _ in range(41)]
    assert 0.9 < (waiting[40] - waiting[0]) / (40 * 4 * cost_ns(READING_BYTES)) < 2.1


def test_handshakes_on_a_full_channel_hold_up_what_is_sent() -> None:
    """Who meets a crowd exchanges hundreds of certificates, for which there is no airtime of their own."""
    arrivals = []
    for rounds in (0, 20):
        links = near(10)
        carried(links, lambda node: [(node + 1) % 10], window=4, until_s=3)
        for _ in range(rounds):
            links.connect_ns(0, 1, 3 * SECOND)
        arrivals.append(links.stream_ns(0, 2, READING_BYTES, 3 * SECOND) or 0)
    flights_ns = 20 * 2 * airtime_ns(1_400, 6.0)
    assert arrivals[1] - arrivals[0] > 5 * flights_ns


def test_asking_how_busy_a_full_channel_is_changes_nothing() -> None:
    """A digest must not depend on who looked, and when."""
    histories = []
    for asks in (False, True):
        links, arrivals = near(14), []
        for step in range(2_000):
            now_ns, node = step * MS // 4, step % 14
            if asks:
                assert 0 <= links.busy_share((node + 5) % 14, now_ns) < 1
            arrivals.append(links.stream_ns(node, (node + 1) % 14, READING_BYTES, now_ns))
        histories.append(arrivals)
    assert histories[0] == histories[1]


def test_handshake_waits_behind_what_its_ends_have_to_send() -> None:
    """Otherwise nodes that fill the channel with handshakes would see each of them answered at once."""
    links = near(10)
    took_ns = {}
    for step in range(300):
        now_ns = step * 10 * MS
        for node in range(10):
            links.stream_ns(node, (node + 1) % 10, READING_BYTES, now_ns)
            links.stream_ns(node, (node + 2) % 10, READING_BYTES, now_ns)  # 2,000 a second, 1,300 fit
        if step in (1, 299):
            done_ns = links.connect_ns(0, 5, now_ns)
            assert done_ns is not None
            took_ns[step] = done_ns - now_ns
    assert took_ns[1] < 50 * MS
    assert took_ns[299] > 500 * MS, "the queues are longer than a second by then"
