"""The air: delivery over distance, airtime, and what it costs that everybody shares one channel."""

import itertools
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.limits import MS, SECOND
from sims.media.airtime import WINDOW_NS, airtime_ns, fair_share, hidden_share
from sims.media.cells import Cells
from sims.media.contract import Places
from sims.media.pathloss import delivery_of, free_space_db, range_m
from sims.media.radio import STEP_M, Air
from sims.scenario.file import Radio

MODELS = ["logistic", "tr37885", "winner-plus", "ideal"]
ENVIRONMENTS = ["highway", "urban", "urban-blocked"]


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


def radio(model: str = "logistic", environment: str = "urban", **settings: float) -> Radio:
    """Settings of the air, unchecked names and all."""
    return Radio(model=model, environment=environment, **settings)  # type: ignore[arg-type]


def air(points: list[tuple[float, float]], settings: Radio | None = None, seed: int = 1) -> tuple[Air, Standing]:
    """The air over nodes that stand."""
    places = Standing(points)
    return Air(settings or Radio(), places, Random(seed)), places


# --- delivery over distance ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environment", "d50_m", "slope_m"), [("highway", 450, 45), ("urban", 320, 32), ("urban-blocked", 160, 30)]
)
def test_logistic_environments_have_their_published_shape(environment: str, d50_m: float, slope_m: float) -> None:
    """Half of the frames at d50, 73 % one slope before it, 1 % at the end of the range."""
    delivery = delivery_of(radio(environment=environment))
    assert delivery.share(d50_m) == pytest.approx(0.5)
    assert delivery.share(d50_m - slope_m) == pytest.approx(0.731, abs=0.001)
    assert range_m(delivery) == pytest.approx(d50_m + slope_m * math.log(99), abs=0.1)


def test_logistic_towns_and_highways_agree_with_field_trials() -> None:
    """Trials saw 90 % awareness up to 200 m in towns and over 500 m on highways, where one of several beacons is
    enough."""
    assert delivery_of(radio(environment="urban")).share(200) > 0.9
    several = 1 - (1 - delivery_of(radio(environment="highway")).share(500)) ** 10
    assert several > 0.9


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_delivery_falls_with_distance_from_nearly_all_to_one_percent_at_the_range(model: str, environment: str) -> None:
    """Whoever is nearer is heard better, in every model; nothing overflows far out or at no distance at all."""
    delivery = delivery_of(radio(model, environment))
    distances_m = [0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 78.0, 79.0, 150.0, 300.0, 700.0, 2_000.0, 10_000.0, 1e6]
    shares = [delivery.share(distance_m) for distance_m in distances_m]
    assert all(near >= far for near, far in itertools.pairwise(shares))
    assert shares[0] > 0.99
    assert shares[-1] < 1e-6
    end_m = range_m(delivery)
    assert delivery.share(end_m) == pytest.approx(1.0 if model == "ideal" else 0.01, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "environment", "distance_m", "loss_db"),
    [
        ("tr37885", "highway", 100.0, 87.82),
        ("tr37885", "urban", 100.0, 86.20),
        ("tr37885", "urban-blocked", 100.0, 111.42),
        ("winner-plus", "urban", 50.0, 81.82),
        ("winner-plus", "urban", 200.0, 101.68),
        ("winner-plus", "urban-blocked", 100.0, 124.61),
    ],
)
def test_path_loss_matches_hand_calculation(model: str, environment: str, distance_m: float, loss_db: float) -> None:
    """Half of the frames arrive where 23 dBm less the loss stand 7.2 dB over -95 dBm of noise: a shadow shifts it
    there."""
    delivery = delivery_of(radio(model, environment))
    shadow_db = 23.0 - loss_db + 95.0 - 7.2
    assert delivery.share(distance_m, shadow_db) == pytest.approx(0.5, abs=0.01)


def test_winner_plus_is_never_better_than_free_space() -> None:
    """The formulas alone would be, for antennas close to each other."""
    delivery = delivery_of(radio("winner-plus", "urban"))
    for distance_m in (3.0, 10.0, 30.0):
        shadow_db = 23.0 - free_space_db(distance_m) + 95.0 - 7.2
        assert delivery.share(distance_m, shadow_db) <= 0.5 + 0.01


def test_ideal_hears_all_within_and_nothing_beyond() -> None:
    """A test of a protocol wants a radio without chance."""
    links, _ = air([(0.0, 0.0), (100.0, 0.0), (100.1, 0.0)], radio("ideal", range_m=100.0, shared=False))
    assert links.neighbours(0) == [1]
    assert all(links.datagram_ns(0, 1, 100, number * MS) is not None for number in range(500))
    assert links.datagram_ns(0, 2, 100, SECOND) is None
    assert links.stream_ns(0, 2, 100, SECOND) is None


@pytest.mark.parametrize("distance_m", [200.0, 320.0, 400.0])
def test_datagrams_arrive_as_often_as_the_curve_says_and_frames_by_their_retries(distance_m: float) -> None:
    """Multicast has one attempt, unicast seven: the difference decides how far heartbeats reach."""
    links, _ = air([(0.0, 0.0), (distance_m, 0.0)], radio(shared=False))
    share = links.delivery_share(0, 1)
    pauses = range(0, 8_000 * 100 * MS, 100 * MS)
    datagrams = sum(links.datagram_ns(0, 1, 100, now_ns) is not None for now_ns in pauses) / 8_000
    assert datagrams == pytest.approx(share, abs=0.025)
    frames = sum(links.frame_ns(0, 1, 100, 800 * SECOND + now_ns) is not None for now_ns in pauses) / 8_000
    assert frames == pytest.approx(1 - (1 - share) ** 7, abs=0.025)


def test_multicast_reaches_each_neighbour_as_often_as_the_curve_says() -> None:
    """One event for all receivers must not make their luck the same."""
    links, _ = air([(0.0, 0.0), (320.0, 0.0), (0.0, 320.0), (50.0, 0.0)], radio(shared=False))
    heard = [links.multicast_ns(0, 300, number * 10 * MS)[1] for number in range(5_000)]
    assert sum(1 in nodes for nodes in heard) / 5_000 == pytest.approx(0.5, abs=0.03)
    assert sum(1 in nodes and 2 in nodes for nodes in heard) / 5_000 == pytest.approx(0.25, abs=0.03)
    assert sum(3 in nodes for nodes in heard) / 5_000 > 0.995


def test_stream_barely_in_range_stands_longer_than_a_near_one() -> None:
    """Who drives out of range stalls before it is gone."""
    links, _ = air([(0.0, 0.0), (100.0, 0.0), (440.0, 0.0)], radio(shared=False))

    def late_ms(receiver: int) -> list[float]:
        """Of what arrives."""
        sent_ns = [(2_000 * receiver + number) * SECOND for number in range(1, 2_000)]
        arrivals = [(now_ns, links.stream_ns(0, receiver, 100, now_ns)) for now_ns in sent_ns]
        return [(arrival_ns - now_ns) / MS for now_ns, arrival_ns in arrivals if arrival_ns is not None]

    near_ms, far_ms = late_ms(1), late_ms(2)
    assert len(near_ms) == 1_999
    assert max(near_ms) < 10
    assert len(far_ms) < 1_999
    assert sum(far_ms) / len(far_ms) > 100
    assert max(far_ms) < 1_200


def test_shadow_is_the_same_both_ways_stays_with_who_stays_and_fades_with_the_way() -> None:
    """A parked truck blocks both directions, and still does a second later; a street further on it does not."""
    settings = radio("tr37885", "urban-blocked", shared=False)
    links, places = air([(0.0, 0.0), (90.0, 0.0)], settings)
    first = links.delivery_share(0, 1)
    assert links.delivery_share(1, 0) == first
    links.moved()
    assert links.delivery_share(0, 1) == first
    shares = []
    for step in range(3_000):
        places.ys_m[0] = places.ys_m[1] = step * 40.0
        links.moved()
        shares.append(links.delivery_share(0, 1))
    middle = delivery_of(settings).share(90.0)
    better = sum(share > middle for share in shares) / len(shares)
    assert better == pytest.approx(0.5, abs=0.05)
    places.ys_m[0] += 0.1
    links.moved()
    assert links.delivery_share(0, 1) == shares[-1]
    strayed = []
    for _ in range(200):
        places.ys_m[0] += 3.3  # a little more than a quarter of the decorrelation distance
        before = links.delivery_share(0, 1)
        links.moved()
        strayed.append(abs(links.delivery_share(0, 1) - before))
        places.ys_m[1] = places.ys_m[0]
    assert 0 < sum(strayed) / len(strayed) < 0.3


def test_range_setting_cuts_every_model_off() -> None:
    """A user who says 200 m means it, whatever the curve has there."""
    links, _ = air([(0.0, 0.0), (199.0, 0.0), (201.0, 0.0)], radio(range_m=200.0, shared=False))
    assert links.neighbours(0) == [1]
    assert links.delivery_share(0, 1) > 0.9
    assert links.delivery_share(0, 2) == 0.0
    assert links.connect_ns(0, 2, 0) is None


@pytest.mark.parametrize("mover", [0, 1])
def test_delivery_follows_whoever_of_the_two_moved(mover: int) -> None:
    """What is kept about pairs must not outlive a move of either end."""
    links, places = air([(0.0, 0.0), (10.0, 0.0), (0.0, 10.0), (10.0, 10.0)], radio(shared=False))
    assert links.delivery_share(0, 1) > 0.99
    places.ys_m[mover] = 330.0
    links.moved()
    assert links.delivery_share(0, 1) < 0.5


def test_delivery_is_measured_anew_once_an_end_has_crawled_a_step() -> None:
    """Whoever moves a little at a time must not stay for ever where it began; who has not yet costs nothing."""
    links, places = air([(0.0, 0.0), (320.0, 0.0), (0.0, 10.0)], radio(shared=False))
    at_first = links.delivery_share(0, 1)
    for number in range(1, 100):
        places.xs_m[0] = -number
        touched = links.moved()
        assert touched == ([0, 1, 2] if number % (STEP_M + 1) == 0 else [])
        gone_m = number // (STEP_M + 1) * (STEP_M + 1)
        assert links.delivery_share(0, 1) == links.delivery_share(1, 0)
        assert links.delivery_share(0, 1) == pytest.approx(delivery_of(radio()).share(320.0 + gone_m))
    assert links.delivery_share(0, 1) < at_first / 4


def test_absent_nodes_hear_nothing_and_are_not_heard() -> None:
    """A vehicle that has left the trace must not answer from where it was last seen."""
    links, places = air([(0.0, 0.0), (10.0, 0.0)])
    places.present[1] = False
    links.moved()
    assert links.neighbours(0) == []
    assert links.neighbours(1) == []
    assert links.stream_ns(0, 1, 100, 0) is None
    assert links.datagram_ns(1, 0, 100, 0) is None
    assert links.connect_ns(0, 1, 0) is None


# --- airtime ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size_bytes", "airtime_us"), [(350, 560), (1_500, 2_100)])
def test_airtime_at_6_mbps_is_that_of_802_11p(size_bytes: int, airtime_us: int) -> None:
    """Channel load and latency rest on it."""
    assert airtime_ns(size_bytes, 6.0) == pytest.approx(airtime_us * 1_000, rel=0.005)


def test_sender_sends_one_frame_after_the_other() -> None:
    """Eight neighbours told one by one cost eight airtimes: why unicast does not scale."""
    links, _ = air([(0.0, 0.0), (50.0, 0.0)], radio(jitter_ms=0.0, shared=False))
    arrivals = [links.frame_ns(0, 1, 350, 0) or 0 for _ in range(8)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(arrivals)]
    assert all(560_000 < gap < 700_000 for gap in gaps)


def test_queue_of_a_sender_is_bounded_for_packets_and_not_for_streams() -> None:
    """A flood is dropped at its sender, as by a network card; TCP waits instead."""
    links, _ = air([(0.0, 0.0), (50.0, 0.0)], radio(shared=False))
    arrivals = [links.frame_ns(0, 1, 1_500, 0) for _ in range(200)]
    carried = [at_ns for at_ns in arrivals if at_ns is not None]
    assert len(carried) < 60
    assert max(carried) < 110 * MS
    assert all(links.stream_ns(0, 1, 1_000, 0) is not None for _ in range(200))


def test_small_message_passes_a_large_one() -> None:
    """A tensor on its way must not delay a brake event by its whole airtime."""
    links, _ = air([(0.0, 0.0), (50.0, 0.0)], radio(jitter_ms=0.0, shared=False))
    large_ns = links.stream_ns(0, 1, 1_000_000, 0) or 0
    small_ns = links.stream_ns(0, 1, 100, MS) or 0
    assert (links.stream_ns(0, 1, 30_000, 2 * MS) or 0) > large_ns
    assert large_ns > 1_300 * MS
    alone_ns = 100 * SECOND
    alone_ns = (links.stream_ns(1, 0, 100, alone_ns) or 0) - alone_ns
    assert small_ns - MS - alone_ns == pytest.approx(airtime_ns(1_500, 6.0), rel=0.01)  # of the frame on the air


# --- the shared channel ----------------------------------------------------------------------------------------------
def beacon(links: Air, nodes: int, rate_hz: float, *, size_bytes: int = 350, windows: int = 4) -> int:
    """Everybody multicasts; the instant after the last whole window."""
    period_ns = int(SECOND / rate_hz)
    end_ns = windows * WINDOW_NS
    sends = sorted(
        (at_ns, node) for node in range(nodes) for at_ns in range(node * period_ns // nodes, end_ns, period_ns)
    )
    for at_ns, node in sends:
        links.multicast_ns(node, size_bytes, at_ns)
    return end_ns


def test_busy_share_of_a_quiet_channel_is_the_sum_of_the_airtime_heard() -> None:
    """20 nodes, 10 beacons a second of 560 µs: 11 %."""
    links, _ = air([(number * 5.0, 0.0) for number in range(20)])
    now_ns = beacon(links, 20, 10.0)
    assert links.busy_share(0, now_ns) == pytest.approx(0.112, abs=0.005)


def test_busy_share_counts_a_multicast_once_however_many_receivers_are_asked_for() -> None:
    """The emulator asks receiver by receiver; on the air it was one frame."""
    links, _ = air([(number * 5.0, 0.0) for number in range(20)])
    for step in range(10):
        for receiver in range(1, 20):
            links.datagram_ns(0, receiver, 350, step * 10 * MS)
    assert links.busy_share(3, WINDOW_NS) == pytest.approx(0.056, rel=0.01)


def test_busy_share_rises_with_load_and_saturates_below_one() -> None:
    """No channel is busier than always; load beyond that becomes waiting."""
    shares = []
    for rate_hz in (5, 10, 20, 40, 80, 160, 320):
        links, _ = air([(number * 2.0, 0.0) for number in range(40)])
        shares.append(links.busy_share(0, beacon(links, 40, rate_hz)))
    assert all(less < more for less, more in itertools.pairwise(shares[:4]))
    assert shares[:3] == pytest.approx([0.112, 0.224, 0.448], rel=0.05)
    assert all(0.75 < share < 0.96 for share in shares[4:])


def test_busy_share_counts_only_who_is_in_range() -> None:
    """Two crowds a kilometre apart don't hear each other, however they lie on the cells."""
    points = [(number * 5.0, 0.0) for number in range(20)] + [(2_000.0 + number * 5.0, 0.0) for number in range(20)]
    links, _ = air(points)
    for step in range(40):
        for node in range(20):
            links.multicast_ns(node, 350, step * 10 * MS + node)
    assert links.busy_share(5, 400 * MS) > 0.5
    assert links.busy_share(25, 400 * MS) == 0.0


def test_busy_share_falls_to_nothing_when_everybody_is_silent() -> None:
    """Old load must not haunt a quiet channel."""
    links, _ = air([(0.0, 0.0), (10.0, 0.0)])
    now_ns = beacon(links, 2, 100.0)
    assert links.busy_share(0, now_ns) > 0.1
    assert links.busy_share(0, now_ns + 10 * WINDOW_NS) == 0.0


def test_large_message_keeps_the_channel_busy_for_its_airtime_and_no_longer() -> None:
    """A megabyte is 1.5 s of air, not one impossible window."""
    links, _ = air([(0.0, 0.0), (10.0, 0.0)], radio(loss=0.0))
    links.stream_ns(0, 1, 1_000_000, 0)
    shares = [links.busy_share(1, WINDOW_NS * number + 1) for number in range(1, 30)]
    busy = sum(share > 0.5 for share in shares)
    assert 13 <= busy <= 20
    assert shares[-1] == 0.0


def test_busy_channel_costs_waiting_and_hidden_nodes_cost_frames() -> None:
    """What a scenario with too many nodes has to show."""
    points = [(0.0, 0.0), (300.0, 0.0)] + [(400.0 + number * 5.0, 0.0) for number in range(20)]
    quiet, _ = air(points)
    loud, _ = air(points)
    start_ns = beacon(loud, 22, 60.0)

    def received(links: Air) -> int:
        return sum(links.datagram_ns(0, 1, 100, start_ns + number) is not None for number in range(2_000))

    assert received(loud) < 0.8 * received(quiet)

    def mean_ns(links: Air) -> float:
        taken = [
            (links.stream_ns(1, 2, 100, start_ns + number * 2 * MS) or 0) - number * 2 * MS for number in range(30)
        ]
        return sum(taken) / len(taken) - start_ns

    assert mean_ns(loud) > mean_ns(quiet) + 200_000


def test_overload_lets_nobody_have_more_than_a_fair_share() -> None:
    """40 nodes that each want a tenth of the channel: queues grow, and what is carried stays below all of it."""
    nodes, links = 40, air([(number * 2.0, 0.0) for number in range(40)], radio(jitter_ms=0.0))[0]
    arrivals = [
        links.stream_ns(node, (node + 1) % nodes, 1_000, step * 10 * MS + node)
        for step in range(100)
        for node in range(nodes)
    ]
    last_s = max(at_ns for at_ns in arrivals if at_ns is not None) / SECOND
    carried = nodes * 100 * airtime_ns(1_100, 6.0) / SECOND
    assert carried / last_s < 1.3


def test_fair_share_leaves_small_loads_whole() -> None:
    """Max-min: 0.1 and 0.2 fit, the two greedy ones share the rest."""
    assert fair_share([0.1, 0.9, 0.2, 0.8]) == pytest.approx(0.35)
    assert fair_share([0.2, 0.3]) == math.inf
    assert fair_share([1.0] * 8) == pytest.approx(1 / 8)


def test_hidden_share_grows_with_distance_and_spares_close_pairs() -> None:
    """The nearer of two senders is captured; at the edge, 61 % of the surroundings are hidden."""
    shares = [hidden_share(number / 100) for number in range(101)]
    assert shares[:31] == [0.0] * 31
    assert all(near <= far for near, far in itertools.pairwise(shares))
    assert shares[-1] == pytest.approx(1 - 2 / 3 + math.sqrt(3) / (2 * math.pi), abs=0.005)


@given(
    st.lists(st.tuples(st.floats(-2_000, 2_000), st.floats(-2_000, 2_000)), min_size=1, max_size=40),
    st.floats(20, 900),
)
def test_neighbours_are_those_in_range_as_found_by_looking_at_all(
    points: list[tuple[float, float]], range_m: float
) -> None:
    """Cells are a short cut; they must not lose or invent anybody, on either side of their borders."""
    places: Places = Standing(points)
    cells = Cells(places, range_m)
    for node, (x_m, y_m) in enumerate(points):
        expected = [
            other
            for other, (other_x_m, other_y_m) in enumerate(points)
            if other != node and (other_x_m - x_m) ** 2 + (other_y_m - y_m) ** 2 <= range_m**2
        ]
        assert cells.neighbours(node) == expected


@given(
    st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=1, max_size=20),
    st.lists(
        st.lists(st.tuples(st.integers(0, 19), st.floats(-90, 90), st.booleans()), max_size=6), min_size=1, max_size=12
    ),
    st.floats(60, 400),
)
def test_neighbours_follow_whoever_comes_goes_crawls_or_jumps(
    points: list[tuple[float, float]], ticks: list[list[tuple[int, float, bool]]], range_m: float
) -> None:
    """Lists that are put right must not differ from lists that are made anew, whoever was asked for in between."""
    places = Standing(points)
    cells = Cells(places, range_m, step_m=5.0)
    known = {node: cells.neighbours(node) for node in range(0, len(points), 2)}
    for tick in ticks:
        for number, by_m, there in tick:
            node = number % len(points)
            places.xs_m[node] += by_m
            places.present[node] = there
        was = list(zip(cells.xs_m, cells.ys_m, cells.present, strict=True))
        touched = cells.moved()
        for node in range(len(points)):
            stayed = was[node] == (cells.xs_m[node], cells.ys_m[node], cells.present[node])
            assert stayed == (node not in cells.movers), "or what is kept of it would be of another place"
            assert cells.present[node] == places.present[node]
            assert abs(cells.xs_m[node] - places.xs_m[node]) <= 5.0
            assert cells.neighbours(node) == [
                other
                for other in range(len(points))
                if cells.present[node] and cells.present[other] and other != node
                if (cells.xs_m[other] - cells.xs_m[node]) ** 2 + (cells.ys_m[other] - cells.ys_m[node]) ** 2
                <= range_m**2
            ]
            if node in known and node not in touched:
                assert cells.neighbours(node) is known[node]
            known[node] = cells.neighbours(node)
