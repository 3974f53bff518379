"""Where to compute: what the model learns, and that no lie makes this node slower for long."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.inference.placement import WORTHWHILE, Candidate, CostModel, order
from tests.tools.strategies import MODEST

RSU, CAR, ME = NodeId("rsu-1"), NodeId("veh-1"), NodeId("me")


def test_order_prefers_a_neighbour_only_when_worthwhile() -> None:
    """A tie is not worth a radio."""
    local = Candidate(ME, 100)
    much, little = Candidate(RSU, int(100 * WORTHWHILE) - 1), Candidate(RSU, int(100 * WORTHWHILE) + 1)
    assert order(local, [much], 1_000) == [much, local]
    assert order(local, [little], 1_000) == [local, little]


def test_order_without_a_local_model_has_neighbours_by_time() -> None:
    """With a tie broken by name, so that a seed names one history."""
    fast, slow, same = Candidate(RSU, 10), Candidate(CAR, 20), Candidate(NodeId("a"), 20)
    assert order(None, [slow, fast, same], 100) == [fast, same, slow]
    assert order(None, [], 100) == []


def test_order_puts_those_past_the_deadline_last() -> None:
    """Better late than nobody, but not before one that is in time."""
    late, in_time, local = Candidate(RSU, 200), Candidate(CAR, 90), Candidate(ME, 1_000)
    assert order(local, [late, in_time], 100) == [in_time, local, late]


@MODEST
@given(
    st.none() | st.integers(0, 10**12),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 10**12)), max_size=4),
    st.integers(-(10**9), 10**12),
)
def test_order_holds_every_candidate_exactly_once(
    local_ns: int | None, there: list[tuple[str, int]], remaining_ns: int
) -> None:
    """Nobody who could answer is forgotten."""
    local = None if local_ns is None else Candidate(ME, local_ns)
    remote = [Candidate(NodeId(node), expected_ns) for node, expected_ns in there]
    ordered = order(local, remote, remaining_ns)
    everybody = [*remote, *([local] if local else [])]
    assert sorted(ordered, key=repr) == sorted(everybody, key=repr)
    if local is not None and ordered[0] is not local:
        assert ordered[0].expected_ns < WORTHWHILE * local.expected_ns


def test_costs_of_unknown_models_are_not_nothing() -> None:
    """A neighbour that offers 0 µs, or never ran it, is no miracle."""
    costs = CostModel()
    assert costs.local_ns(0, 0) == costs.remote_ns(RSU, 0, 0, 0, 0) > 0
    assert costs.local_ns(10, 3) == 40


def test_costs_of_a_slow_link_are_learned() -> None:
    """A radio of 1 MB/s is seen as one; the correction first overshoots, then settles."""
    costs = CostModel()
    size_bytes, compute_ns = 1_000_000, 10 * MS
    before_ns = costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes)
    took_ns = compute_ns + MS + SECOND
    for _ in range(80):
        predicted_ns = costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes)
        costs.learn(RSU, predicted_ns, took_ns, compute_ns, MS, size_bytes)
    after_ns = costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes)
    assert before_ns < 100 * MS
    assert abs(after_ns - took_ns) < 0.1 * took_ns
    costs.forget(RSU)
    assert costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes) == before_ns


def test_costs_of_a_slow_link_are_told_apart_from_a_slow_computer() -> None:
    """Two answers are enough to know the link; put down to the computer as well, they would exile a good one."""
    costs = CostModel()
    size_bytes, compute_ns = 1_000_000, 10 * MS
    took_ns = compute_ns + MS + SECOND
    for known in (0.0, 0.0):  # the first comes over a lane that was dialled for it, and says little of the link
        assert costs.throughput_of(RSU) == known
        costs.learn(RSU, costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes), took_ns, compute_ns, MS, size_bytes)
    assert abs(costs.throughput_of(RSU) - 1e6) < 1e4
    assert abs(costs.remote_ns(RSU, compute_ns, 0, MS, size_bytes) - took_ns) < 0.01 * took_ns
    assert costs.remote_ns(RSU, compute_ns, 0, MS, 0) < 12 * MS
    assert costs.throughput_of(CAR) == 0.0


def test_costs_of_a_link_seen_to_be_slow_by_its_lane_are_known_before_the_first_request() -> None:
    """Images that crawl over a radio say enough: no request need be lost to learn it again."""
    costs = CostModel()
    costs.transferred(RSU, 1_000_000, SECOND)
    assert costs.remote_ns(RSU, 10 * MS, 0, MS, 1_000_000) > SECOND


def test_costs_of_small_answers_teach_nothing_about_throughput() -> None:
    """Their time is the round trip."""
    costs = CostModel()
    costs.learn(RSU, 10 * MS, 10 * MS, 9 * MS, MS, 100)
    assert costs.remote_ns(RSU, MS, 0, 0, 10**6) == CostModel().remote_ns(RSU, MS, 0, 0, 10**6)


def test_costs_of_a_liar_return_to_the_truth() -> None:
    """It offers 1 µs and takes a second: soon it is not asked any more; penalties end too."""
    costs = CostModel()
    for _ in range(40):
        costs.learn(RSU, costs.remote_ns(RSU, 1_000, 0, MS, 0), SECOND, 1_000, MS, 0)
        costs.penalise(RSU)
    assert costs.remote_ns(RSU, 10 * MS, 0, 0, 0) == 8 * 10 * MS
    for _ in range(200):
        costs.learn(RSU, 10 * MS, 1, 0, 0, 0)
    assert costs.remote_ns(RSU, 10 * MS, 0, 0, 0) >= 10 * MS // 4


@MODEST
@given(*[st.integers(0, 2**80)] * 5)
def test_costs_of_any_claim_are_finite_numbers(
    predicted_ns: int, took_ns: int, computed_ns: int, round_trip_ns: int, waiting: int
) -> None:
    """Offers and answers carry numbers up to 2^64; none may overflow the arithmetic of the caller."""
    costs = CostModel()
    costs.learn(RSU, predicted_ns, took_ns, computed_ns, round_trip_ns, 10**7)
    assert costs.remote_ns(RSU, 2**74, waiting, round_trip_ns, 10**7) >= 0
