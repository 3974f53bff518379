"""The models of the air, the wires and TCP against figures that were measured or published, and against their own
promises."""

import itertools
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.limits import MS, SECOND
from sims.media.contract import RELAY, Medium
from sims.media.media import Media
from sims.media.tcp import growth_ns, lone_stall_ns, middle_stall_ns, tail_stall_ns
from sims.scenario.file import Backbone, Cellular, Fixed, Group, Hole, Radio, Scenario


class Standing:
    """Places that change only by hand."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self.xs_m = [x_m for x_m, _ in points]
        self.ys_m = [y_m for _, y_m in points]
        self.present = [True] * len(points)
        self.speeds_mps = [0.0] * len(points)
        self.headings_deg = [0.0] * len(points)

    def advance(self, now_ns: int) -> None:
        """Nobody moves."""


def media(
    points: list[tuple[float, float]],
    radio: Radio | None = None,
    *,
    seed: int = 1,
    cellular: Cellular | None = None,
    wired: bool = False,
) -> tuple[Media, Standing]:
    """Media of nodes that stand; ``wired``: all of them share a backbone."""
    places = Standing(points)
    scenario = Scenario(
        name="models",
        description="",
        duration_s=10.0,
        groups=(Group(name="node", count=len(points), mobility=Fixed(points=tuple(points))),),
        radio=radio or Radio(),
        cellular=cellular or Cellular(),
        backbone=(Backbone(groups=("node",)),) if wired else (),
    )
    made = Media(scenario, places, Random(seed))
    checked: Medium = made  # the contract, judged by mypy
    assert checked is made
    return made, places


def quantiles_ms(draws: list[int], *shares: float) -> list[float]:
    """Of durations in nanoseconds."""
    draws = sorted(draws)
    return [draws[int(share * len(draws))] / MS for share in shares]


def round_trips(links: Media, size_bytes: int, count: int) -> list[int]:
    """Of messages between nodes 0 and 1, one at a time."""

    def arrival_ns(sender: int, sent_ns: int) -> int:
        while (at_ns := links.stream_ns(sender, 1 - sender, size_bytes, sent_ns)) is None:
            sent_ns += SECOND  # it stands still: again later
        return at_ns

    now_ns, taken = 0, []
    for _ in range(count):
        back_ns = arrival_ns(1, arrival_ns(0, now_ns))
        taken.append(back_ns - now_ns)
        now_ns = back_ns + 10 * MS
    return taken


LOSSY_20_MS = Radio(
    model="ideal", latency_ms=20.0, jitter_ms=0.0, loss=0.05, retries=0, shared=False, bit_rate_mbps=1000.0
)
NEAR = [(0.0, 0.0), (50.0, 0.0)]
PERFECT = Radio(model="ideal", range_m=500.0, shared=False, jitter_ms=0.0)


def test_stream_lone_segments_at_5_percent_loss_are_as_late_as_on_linux() -> None:
    """The tail of TCP decides what users see; these quantiles were measured on a real kernel over a lossy wire."""
    links, _ = media(NEAR, LOSSY_20_MS)
    p50, p95, p97, p99 = quantiles_ms(round_trips(links, 100, 20_000), 0.5, 0.95, 0.97, 0.99)
    assert p50 == pytest.approx(41, abs=1.5)
    assert p95 == pytest.approx(289, rel=0.05)
    assert p97 == pytest.approx(313, rel=0.05)
    assert p99 == pytest.approx(398, rel=0.25)


def test_stream_two_segments_at_5_percent_loss_are_as_late_as_measured() -> None:
    """A message of two segments stalls differently: half of the losses are found by the second segment."""
    links, _ = media(NEAR, LOSSY_20_MS)
    p50, p84, p95 = quantiles_ms(round_trips(links, 2_000, 20_000), 0.5, 0.86, 0.95)
    assert p50 == pytest.approx(41, abs=1.5)
    assert p84 == pytest.approx(96, rel=0.1)
    assert 328 <= p95 <= 418


def test_stream_link_layer_retries_hide_the_loss_of_single_attempts() -> None:
    """Seven attempts make 5 % of loss into less than one in a billion: the tail must vanish, the airtime grow a bit."""
    links, _ = media(NEAR, Radio(model="ideal", latency_ms=20.0, jitter_ms=0.0, loss=0.05, shared=False))
    p50, p99, p100 = quantiles_ms(round_trips(links, 100, 5_000), 0.5, 0.99, 0.9999)
    assert p50 == pytest.approx(41, abs=1.5)
    assert p99 < 45
    assert p100 < 50


def test_connect_takes_three_round_trips_and_at_first_one_more_for_arp() -> None:
    """Discovery and fail-over times rest on it. Measured over 20 ms one way: 124 ms until open, 42 more the first
    time."""
    links, _ = media(NEAR, Radio(model="ideal", latency_ms=20.0, jitter_ms=0.0, shared=False, bit_rate_mbps=1000.0))
    assert links.connect_ns(0, 1, 0) == pytest.approx(166 * MS, rel=0.05)
    assert links.connect_ns(1, 0, SECOND) == pytest.approx(SECOND + 124 * MS, abs=6 * MS)


def test_connect_lost_first_segment_costs_a_second() -> None:
    """SYNs are repeated after one second, not after 200 ms: a dial over a bad link is slow, and simulations show it."""
    links, _ = media(NEAR, LOSSY_20_MS)
    taken = [(links.connect_ns(0, 1, number * SECOND) or 0) - number * SECOND for number in range(4_000)]
    slow = sum(duration >= SECOND for duration in taken) / len(taken)
    assert slow == pytest.approx(1 - 0.95**2, abs=0.02)
    assert min(taken) == pytest.approx(120 * MS, rel=0.02)


@pytest.mark.parametrize("stall", [lone_stall_ns, tail_stall_ns, lambda losses, trip, _: middle_stall_ns(losses, trip)])
def test_stall_grows_with_each_loss_and_is_bounded(stall: Callable[[int, int, float], int]) -> None:
    """A time-out doubles; without its bound a hopeless pair would be scheduled for next year."""
    stalls = [stall(losses, 40 * MS, 0.0) for losses in range(1, 40)]
    assert all(later >= sooner for sooner, later in itertools.pairwise(stalls))
    assert stalls[3] > 3 * stalls[1]
    assert stalls[-1] < 128 * SECOND


def test_growth_large_message_on_a_long_path_waits_for_its_window() -> None:
    """Ten segments leave at once, then twice as many each round trip: 100 segments wait for three of them."""
    assert growth_ns(10, 0, 100 * MS) == 0
    assert growth_ns(11, 0, 100 * MS) == 100 * MS
    assert growth_ns(100, 0, 100 * MS) == 300 * MS
    assert growth_ns(1_000_000, 20 * MS, 100 * MS) == 0


# --- wires, cellular, faults -----------------------------------------------------------------------------------------
def test_backbone_any_distance_is_crossed_without_loss_in_its_latency() -> None:
    """Roadside units a hundred kilometres apart are neighbours by wire."""
    links, _ = media([(0.0, 0.0), (100_000.0, 0.0)], wired=True)
    assert links.neighbours(0) == [1]
    arrivals = [links.datagram_ns(0, 1, 300, number * MS) for number in range(1_000)]
    assert None not in arrivals
    assert links.stream_ns(0, 1, 100, 2 * SECOND) == pytest.approx(2 * SECOND + MS, abs=10_000)
    assert links.multicast_ns(0, 300, 3 * SECOND)[1] == [1]
    assert links.connect_ns(0, 1, 4 * SECOND) == pytest.approx(4 * SECOND + 6 * MS, abs=100_000)


def test_backbone_member_that_is_not_there_is_nobodys_neighbour() -> None:
    """A roadside unit that has not been put up yet must not be dialled."""
    links, places = media([(0.0, 0.0), (100_000.0, 0.0), (200_000.0, 0.0)], wired=True)
    assert links.neighbours(0) == [1, 2]
    places.present[1] = False
    links.moved(0)
    assert links.neighbours(0) == [2]
    assert links.neighbours(1) == []
    assert links.multicast_ns(0, 300, 0)[1] == [2]


def test_backbone_large_message_takes_its_bytes() -> None:
    """A gigabit wire is fast, not infinite."""
    links, _ = media([(0.0, 0.0), (100_000.0, 0.0)], wired=True)
    assert links.stream_ns(0, 1, 10_000_000, 0) == pytest.approx(81 * MS + 2.9 * MS, rel=0.03)


def test_uplink_in_a_hole_is_out_of_coverage_until_the_node_has_left_it() -> None:
    """Tunnels are what the scenario of that name is about."""
    links, places = media([(0.0, 0.0)], cellular=Cellular(holes=(Hole(x_m=0.0, y_m=0.0, radius_m=100.0),)))
    assert links.uplink_ns(0, 100, 0) is None
    assert links.uplink_connect_ns(0, 0) is None
    places.xs_m[0] = 101.0
    links.moved(0)
    arrival_ns = links.uplink_ns(0, 100, 0)
    assert arrival_ns is not None
    assert 50 * MS <= arrival_ns <= 71 * MS
    assert links.uplink_connect_ns(0, 0) == pytest.approx(360 * MS, rel=0.1)


def test_uplink_many_messages_share_its_rate() -> None:
    """A node can't send more than its modem does: 250 kB at 20 Mb/s are 100 ms, up and down apart."""
    links, _ = media([(0.0, 0.0)], cellular=Cellular(jitter_ms=0.0))
    arrivals = [links.uplink_ns(0, 12_500, 0) or 0 for _ in range(20)]
    assert arrivals[-1] == pytest.approx(150 * MS, rel=0.1)
    assert (links.uplink_ns(0, 100, 0, upward=False) or 0) < 60 * MS


def test_cut_one_way_stops_datagrams_one_way_and_streams_both_ways() -> None:
    """TCP needs its acknowledgements: half a link carries no stream, and heartbeats must find that out."""
    links, _ = media(NEAR, PERFECT)
    links.cut(0, 1)
    assert links.datagram_ns(0, 1, 100, 0) is None
    assert links.datagram_ns(1, 0, 100, 0) is not None
    assert links.frame_ns(0, 1, 100, 0) is None
    assert links.frame_ns(1, 0, 100, 0) is not None
    assert links.multicast_ns(0, 100, 0)[1] == []
    assert links.stream_ns(0, 1, 100, 0) is None
    assert links.stream_ns(1, 0, 100, 0) is None
    assert links.connect_ns(1, 0, 0) is None


def test_cut_overlapping_ends_with_the_last_one() -> None:
    """Two faults may cut the same pair; the first to end must not heal the other's."""
    links, _ = media(NEAR, PERFECT)
    links.cut(0, 1)
    links.cut(0, 1)
    links.uncut(0, 1)
    assert links.stream_ns(0, 1, 100, 0) is None
    links.uncut(0, 1)
    assert links.stream_ns(0, 1, 100, 0) is not None
    links.uncut(0, 1)
    links.cut(0, 1)
    assert links.stream_ns(0, 1, 100, 0) is None


def test_lose_share_of_frames_is_lost_and_streams_get_late_instead() -> None:
    """One-way loss comes on top of what the link layer repairs."""
    links, _ = media(NEAR, PERFECT)
    links.lose(0, 1, 0.3)
    lost = sum(links.datagram_ns(0, 1, 100, number * MS) is None for number in range(10_000)) / 10_000
    assert lost == pytest.approx(0.3, abs=0.02)
    at_ns = [20 * SECOND + number * MS for number in range(2_000)]
    arrivals = [(now_ns, links.stream_ns(0, 1, 100, now_ns)) for now_ns in at_ns]
    taken = [arrival_ns - now_ns for now_ns, arrival_ns in arrivals if arrival_ns is not None]
    assert min(taken) >= 0
    assert sum(duration <= 200 * MS for duration in taken) / len(at_ns) == pytest.approx(0.7, abs=0.04)
    links.lose(0, 1, 0.0)
    assert links.datagram_ns(0, 1, 100, 60 * SECOND) is not None


def test_lose_large_messages_meet_it_more_often_than_small_ones() -> None:
    """Each segment has to arrive: one per cent of loss is one in six of messages of eighteen segments."""
    links, _ = media(NEAR, PERFECT)
    quiet_ns = links.stream_ns(0, 1, 25_000, 0) or 0
    links.lose(0, 1, 0.01)
    arrivals = [(now_ns, links.stream_ns(0, 1, 25_000, now_ns)) for now_ns in range(SECOND, 1_000 * SECOND, SECOND)]
    late = sum((arrival_ns or 0) - now_ns > quiet_ns + MS for now_ns, arrival_ns in arrivals) / len(arrivals)
    assert late == pytest.approx(1 - 0.99**18, abs=0.05)


def test_loss_that_ends_lets_a_stream_go_on_soon() -> None:
    """Found by simulation: the whole chain of TCP's time-outs was drawn at the first loss, so that a stream stood still
    for half a minute after a loss of 0.7 s."""
    links, _ = media(NEAR, PERFECT)
    links.lose(0, 1, 0.95)
    arrivals = [(now_ns, links.stream_ns(0, 1, 100, now_ns)) for now_ns in range(0, SECOND, MS)]
    assert {arrival_ns is None for _, arrival_ns in arrivals} == {True, False}
    assert max((arrival_ns or 0) - now_ns for now_ns, arrival_ns in arrivals) <= 1_100 * MS


def test_clog_delays_everything_one_way_by_as_much() -> None:
    """A full queue somewhere on the way back must not slow the way there."""
    links, _ = media(NEAR, PERFECT)
    there_ns, back_ns = links.stream_ns(0, 1, 100, 0), links.stream_ns(1, 0, 100, 0)
    links.clog(0, 1, 500 * MS)
    assert links.stream_ns(0, 1, 100, SECOND) == SECOND + 500 * MS + (there_ns or 0)
    assert links.stream_ns(1, 0, 100, SECOND) == SECOND + (back_ns or 0)
    links.clear()
    assert links.stream_ns(0, 1, 100, 2 * SECOND) == 2 * SECOND + (there_ns or 0)


def test_cut_relay_stops_the_uplink_of_that_node_alone() -> None:
    """An outage of the relay is a cut of every node's way to it."""
    links, _ = media(NEAR)
    links.cut(0, RELAY)
    assert links.uplink_ns(0, 100, 0) is None
    assert links.uplink_connect_ns(0, 0) is None
    assert links.uplink_ns(1, 100, 0) is not None
    assert links.stream_ns(0, 1, 100, 0) is not None


def test_faults_impossible_values_are_refused_by_name() -> None:
    """A share of 30 instead of 0.3 would be a link that is dead without anybody knowing why."""
    links, _ = media(NEAR)
    with pytest.raises(ValueError, match="30"):
        links.lose(0, 1, 30)
    with pytest.raises(ValueError, match="-5"):
        links.clog(0, 1, -5)


# --- what always holds -----------------------------------------------------------------------------------------------
@given(
    st.integers(0, 10_000),
    st.sampled_from(["logistic", "tr37885", "winner-plus", "ideal"]),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 50_000), st.integers(0, 30 * MS)), max_size=30
    ),
)
def test_links_arrivals_come_after_sending_and_streams_in_range_are_never_lost(
    seed: int, model: str, sends: list[tuple[int, int, int, int]]
) -> None:
    """The drivers schedule what they are told: an arrival in the past would turn time back, a lost stream lose data."""
    random = Random(seed)
    points = [(random.uniform(0, 400), random.uniform(0, 400)) for _ in range(6)]
    links, _ = media(points, Radio(model=model, loss=0.2), seed=seed)  # type: ignore[arg-type]
    now_ns = 0
    for sender, receiver, size_bytes, pause_ns in sends:
        now_ns += pause_ns
        if sender == receiver:
            continue
        within = links.radio.delivery_share(sender, receiver) > 0
        for arrival_ns in (
            links.stream_ns(sender, receiver, size_bytes, now_ns),
            links.connect_ns(sender, receiver, now_ns),
            links.uplink_ns(sender, size_bytes, now_ns),
        ):
            assert arrival_ns is None or now_ns < arrival_ns < now_ns + 127 * SECOND
        share = links.radio.delivery_share(sender, receiver)
        assert links.stream_ns(sender, receiver, size_bytes, now_ns) is None or within
        assert links.stream_ns(sender, receiver, size_bytes, now_ns) is not None or share < 0.6
        for packet in (links.frame_ns, links.datagram_ns):
            arrival_ns = packet(sender, receiver, size_bytes % 1_500, now_ns)
            assert arrival_ns is None or (within and arrival_ns > now_ns)


def test_links_same_seed_gives_the_same_history() -> None:
    """A seed names one run exactly."""

    def history(seed: int) -> list[object]:
        random = Random(5)
        links, places = media([(random.uniform(0, 600), random.uniform(0, 600)) for _ in range(20)], seed=seed)
        seen: list[object] = []
        for step in range(400):
            now_ns = step * 3 * MS
            if step % 30 == 0:
                places.xs_m[step % 20] += 20
                links.moved(now_ns)
            sender = step % 20
            seen.append(links.multicast_ns(sender, 300, now_ns))
            seen.extend(links.stream_ns(sender, near, 200, now_ns) for near in links.neighbours(sender))
        return seen

    assert history(1) == history(1)
    assert history(1) != history(2)
