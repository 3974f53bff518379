"""What is learned of runs and links, and that no lie makes a neighbour look faster than it was."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.durations import FRESH_NS, MEMORY_NS, WINDOW, Durations
from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.inference.costs import (
    MAX_KNOWN,
    MAX_SERVICES,
    UNKNOWN_SERVICE_NS,
    Answer,
    Claim,
    Demand,
    NeighbourCosts,
    Prediction,
    Services,
)
from protocols.inference.loads import Loads
from tests.tools.strategies import MODEST

RSU, CAR = NodeId("rsu-1"), NodeId("veh-1")
SMALL, LARGE = Demand("1" * 64, 1_000), Demand("1" * 64, 1_000_000)
NOTHING = Claim(0, 0)


def predicted(costs: NeighbourCosts, work: Demand = SMALL, claim: Claim = NOTHING, now: int = 0) -> Prediction:
    """With a round trip of a millisecond and an idle neighbour."""
    return costs.predict(RSU, work, claim, 0, MS, now)


def told(costs: NeighbourCosts, took_ns: int, compute_ns: int, work: Demand = SMALL, now: int = 0) -> None:
    """An answer came."""
    expected_ns = predicted(costs, work, NOTHING, now).expected_ns
    costs.learn(RSU, work, Answer(expected_ns, 0, took_ns, 0, compute_ns, MS, 100), now)


# --- durations -----------------------------------------------------------------------------------------------------
@MODEST
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=3 * WINDOW))
def test_durations_are_the_mean_the_nearest_rank_and_the_shortest_of_the_last(durations_ns: list[int]) -> None:
    """By a plain computation."""
    durations = Durations()
    for duration_ns in durations_ns:
        durations.add(duration_ns, 0)
    last = sorted(durations_ns[-WINDOW:])
    assert durations.mean_ns == sum(last) // len(last)
    assert durations.shortest_ns == last[0]
    assert sum(duration_ns <= durations.p95_ns for duration_ns in last) >= 0.95 * len(last)
    assert sum(duration_ns < durations.p95_ns for duration_ns in last) < 0.95 * len(last)


def test_durations_of_a_small_sample_are_late_below_the_stalls_in_it() -> None:
    """Three stalls in fifty runs are no more than chance where one in thirty stalls, and yet they reach the 95th
    percentile of the sample: hedges came too late to help."""
    durations = Durations()
    for number in range(50):
        durations.add(200 if number % 16 == 8 else 20, 0)
    assert durations.p95_ns == 200
    assert durations.late_ns == 20
    for _ in range(10):
        durations.add(200, 0)
    assert durations.late_ns == 200, "that is more than chance"


def test_durations_that_are_a_minute_old_count_as_unknown() -> None:
    """A neighbour that was slow for a moment gets another chance."""
    durations = Durations()
    assert not durations.known(0)
    durations.add(5, 0)
    assert durations.known(MEMORY_NS - 1)
    assert not durations.known(MEMORY_NS)
    durations.add(7, MEMORY_NS)
    assert (durations.mean_ns, durations.shortest_ns) == (7, 7)


# --- services ------------------------------------------------------------------------------------------------------
def test_services_of_unknown_models_are_not_nothing() -> None:
    """A node that offers 0 µs, or never ran it, is no miracle."""
    assert Services().predict(SMALL, NOTHING, 0, 0).expected_ns == UNKNOWN_SERVICE_NS
    assert predicted(NeighbourCosts()).expected_ns > UNKNOWN_SERVICE_NS
    assert Services().predict(SMALL, Claim(10, 0), 30, 0) == Prediction(40, 40, service_ns=10, late_ns=40)


def test_services_of_small_and_large_inputs_are_told_apart() -> None:
    """One image and a batch of 64 share a file, and not a time."""
    services = Services()
    services.add(SMALL, 2 * MS, 0)
    services.add(LARGE, 90 * MS, 0)
    assert services.predict(SMALL, NOTHING, 0, 0).expected_ns == 2 * MS
    assert services.predict(LARGE, NOTHING, 0, 0).expected_ns == 90 * MS
    assert services.predict(Demand("2" * 64, 1_000), Claim(MS, 3 * MS), 0, 0).p95_ns == 3 * MS


def test_services_say_what_is_impossible_only_while_that_was_just_seen() -> None:
    """A processor that was hot a second ago may be cool now, and somebody has to find out."""
    services = Services()
    services.add(SMALL, 60 * MS, 0)
    assert services.predict(SMALL, NOTHING, 10 * MS, 1).soonest_ns == 60 * MS, "the queue may pass"
    assert services.predict(SMALL, NOTHING, 10 * MS, 1, 5 * MS).soonest_ns == 65 * MS
    assert services.predict(SMALL, NOTHING, 10 * MS, FRESH_NS).soonest_ns == 0


def test_services_of_inputs_of_several_sizes_rule_out_only_half_of_the_shortest() -> None:
    """Batches of fifteen ran all the time, and each batch of nine, which would have been in time, was refused."""
    services = Services()
    services.add(Demand("1" * 64, 15_000), 15 * MS, 0)
    assert services.soonest_ns(Demand("1" * 64, 15_000), 1) == 15 * MS
    assert services.soonest_ns(Demand("1" * 64, 9_000), 1) <= 7.5 * MS


def test_several_runs_of_one_request_take_so_many_times_as_long_as_one() -> None:
    """What was seen of eight pictures says what one takes, and what three would."""
    services = Services()
    services.add(Demand("1" * 64, 80_000, 8), 80 * MS, 0, output_bytes=8_000)
    for runs in (1, 3, 8):
        demand = Demand("1" * 64, runs * 10_000, runs)
        assert services.predict(demand, NOTHING, 0, 1).expected_ns == runs * 10 * MS
        assert services.soonest_ns(demand, 1) == runs * 10 * MS
        assert services.output_bytes(demand) == runs * 1_000
    unseen = Demand("2" * 64, 30_000, 3)
    assert services.predict(unseen, Claim(5 * MS, 7 * MS), 0, 1).p95_ns == 21 * MS


def test_services_and_neighbours_are_bounded() -> None:
    """Whoever gets many certificates, or asks for many files, must not fill the memory."""
    services, costs = Services(), NeighbourCosts()
    for number in range(3 * MAX_SERVICES):
        services.add(Demand(f"{number}", 1), MS, 0)
        costs.transferred(NodeId(f"n{number}"), 10**6, MS)
    assert len(services._of) == MAX_SERVICES
    assert len(costs._of) == MAX_KNOWN


# --- neighbours ----------------------------------------------------------------------------------------------------
def test_costs_of_a_slow_link_are_told_apart_from_a_slow_computer() -> None:
    """Two answers are enough to know the link; put down to the computer as well, they would exile a good one."""
    costs = NeighbourCosts()
    for known in (0.0, 0.0):  # the first comes over a lane that was dialled for it, and says little of the link
        assert costs.throughput_of(RSU) == known
        told(costs, 1_011 * MS, 10 * MS, LARGE)
    assert abs(costs.throughput_of(RSU) - 1e6) < 1e4
    assert abs(predicted(costs, LARGE).expected_ns - 1_011 * MS) < 10 * MS
    assert predicted(costs, SMALL, Claim(10 * MS, 0)).expected_ns < 13 * MS
    assert costs.throughput_of(CAR) == 0.0
    costs.forget_link(RSU)
    assert costs.throughput_of(RSU) == 0.0


def test_costs_of_a_link_seen_to_be_slow_by_its_lane_are_known_before_the_first_request() -> None:
    """Images that crawl over a radio say enough: no request need be lost to learn it again."""
    costs = NeighbourCosts()
    costs.transferred(RSU, 1_000_000, SECOND)
    assert predicted(costs, LARGE, Claim(10 * MS, 0)).expected_ns > SECOND


def test_costs_of_a_liar_are_what_it_took_whatever_it_says() -> None:
    """It claims 1 µs, in its offer and in each answer, and takes 90 ms: with its link gone and back as well."""
    costs = NeighbourCosts()
    for _ in range(3):
        told(costs, 91 * MS, 1_000)
        costs.forget_link(RSU)
    told(costs, 91 * MS, 1_000)
    told(costs, 91 * MS, 1_000)
    lie = Claim(1_000, 1_000)
    assert predicted(costs, SMALL, lie).expected_ns > 90 * MS
    assert predicted(costs, SMALL, lie, MEMORY_NS).expected_ns < 2 * MS, "it may have become faster"


def test_costs_of_runs_whose_end_was_not_seen_are_at_least_what_was_waited() -> None:
    """Whoever never answers is not fast."""
    costs = NeighbourCosts()
    costs.overdue(RSU, SMALL, 5 * MS, 4 * MS, False, 0)
    assert predicted(costs, SMALL, Claim(5 * MS, 0)).expected_ns < 7 * MS
    for _ in range(2):  # the first says nothing
        costs.overdue(RSU, SMALL, 5 * MS, 50 * MS, True, 0)
    late = predicted(costs, SMALL, Claim(5 * MS, 0))
    assert late.expected_ns > 50 * MS
    assert not late.proven
    told(costs, 6 * MS, 5 * MS)
    told(costs, 6 * MS, 5 * MS)
    assert predicted(costs).proven


def test_costs_of_a_liar_about_one_model_are_not_hidden_by_another() -> None:
    """It is quick and honest with a small model, and claims the same of a large one that takes it 100 ms."""
    costs = NeighbourCosts()
    for number in range(100):
        told(costs, *((101 * MS, 1_000, LARGE) if number % 25 == 1 else (2 * MS, MS)))
    assert predicted(costs, LARGE, Claim(1_000, 1_000)).p95_ns > 90 * MS
    assert predicted(costs, SMALL).p95_ns < 5 * MS


def test_costs_know_the_tail_and_how_far_predictions_are_off() -> None:
    """One run in ten takes five times as long: the 95th percentile says so, and the mean does not."""
    costs = NeighbourCosts()
    for number in range(101):
        compute_ns = (50 if number % 10 == 0 else 10) * MS
        told(costs, compute_ns + MS, compute_ns)
    prediction = predicted(costs)
    assert 14 * MS <= prediction.expected_ns <= 16 * MS
    assert prediction.p95_ns >= 50 * MS
    assert 2 * MS < prediction.uncertain_ns < 20 * MS


@MODEST
@given(*[st.integers(0, 2**80)] * 5)
def test_costs_of_any_claim_are_finite_numbers(
    expected_ns: int, took_ns: int, queued_ns: int, compute_ns: int, round_trip_ns: int
) -> None:
    """Offers and answers carry numbers up to 2^64; none may overflow the arithmetic of the caller."""
    costs = NeighbourCosts()
    for _ in range(3):
        answer = Answer(expected_ns, 0, took_ns, queued_ns, compute_ns, round_trip_ns, 10**7)
        costs.learn(RSU, LARGE, answer, 0)
    assert costs.predict(RSU, LARGE, Claim(2**74, 2**74), 0, round_trip_ns, 0).expected_ns >= 0


# --- loads ---------------------------------------------------------------------------------------------------------
def test_loads_grow_old_and_count_what_was_sent_since() -> None:
    """A report of 100 ms is worth 40 ms after 60, and a request that went out meanwhile waits there too."""
    loads = Loads()
    assert loads.queue_ns(RSU, 0) == 0
    loads.reported(RSU, 100_000, 0, workers=1)
    assert loads.queue_ns(RSU, 60 * MS) == 40 * MS
    loads.sent(RSU, 1, 30 * MS, 60 * MS)
    assert loads.queue_ns(RSU, 60 * MS) == 70 * MS
    loads.ended(RSU, 1)
    assert loads.queue_ns(RSU, 200 * MS) == 0


def test_loads_of_a_neighbour_that_says_nothing_waits_are_at_least_our_own_runs() -> None:
    """It claims to be idle while it has ten runs of ours."""
    loads = Loads()
    for run in range(10):
        loads.sent(RSU, run, 20 * MS, 0)
    loads.reported(RSU, 0, MS)
    assert loads.queue_ns(RSU, MS) == 190 * MS
    loads.reported(RSU, 0, MS, workers=20)
    assert loads.queue_ns(RSU, MS) == 0
    loads.forget(RSU)
    assert loads.queue_ns(RSU, MS) == 0


def test_loads_know_whether_a_neighbour_is_usually_idle() -> None:
    """One moment without a queue says little about a node that everybody asks."""
    loads = Loads()
    for _ in range(50):
        loads.reported(RSU, 50_000, 0)
    loads.reported(RSU, 0, 0)
    assert loads.queue_ns(RSU, 0) == 0
    assert loads.usual_ns(RSU) > 40 * MS
