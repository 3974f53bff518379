"""Where to compute: here, unless a neighbour is clearly faster, and not all at the same neighbour."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import NodeId
from protocols.base.limits import MS
from protocols.inference.placement import Candidate, is_worthwhile, order
from tests.tools.strategies import MODEST

RSU, CAR, ME = NodeId("rsu-1"), NodeId("veh-1"), NodeId("me")


def at(node: NodeId, expected_ms: float, p95_ms: float | None = None, **more: object) -> Candidate:
    """A candidate; its 95th percentile is its mean unless given."""
    p95_ns = int((expected_ms if p95_ms is None else p95_ms) * MS)
    return Candidate(node, int(expected_ms * MS), p95_ns, **more)  # type: ignore[arg-type]


def test_order_prefers_a_neighbour_only_when_its_p95_is_clearly_better() -> None:
    """A small gain is not worth a radio: two milliseconds, or a tenth."""
    for here_ms, there_ms, leaves in ((10, 8, True), (10, 8.1, False), (100, 90, True), (100, 91, False)):
        here, there = at(ME, here_ms), at(RSU, there_ms)
        first = order(here, [there], 1_000 * MS, Random(1))[0]
        assert (first is there) == leaves, (here_ms, there_ms)


def test_order_stays_home_when_the_neighbour_is_faster_on_average_and_now_and_then_much_slower() -> None:
    """Its tail would become the tail of the caller."""
    here, there = at(ME, 20, 22), at(RSU, 10, 60)
    assert order(here, [there], 1_000 * MS, Random(1)) == [here, there]


def test_order_leaves_the_queue_of_a_fast_neighbour_to_those_who_would_miss_their_deadline() -> None:
    """Everybody who gained a few milliseconds filled the server, and the slow boards missed their deadlines."""
    here, queued = at(ME, 40), at(RSU, 30, usual_wait_ns=3 * MS)
    assert order(here, [queued], 1_000 * MS, Random(1))[0] is here
    assert order(here, [queued], 35 * MS, Random(1))[0] is queued
    assert order(here, [at(RSU, 30, usual_wait_ns=2 * MS)], 1_000 * MS, Random(1))[0] is not here
    slow_here, fast_queued = at(ME, 360), at(RSU, 90, usual_wait_ns=60 * MS)
    assert order(slow_here, [fast_queued], 1_000 * MS, Random(1))[0] is fast_queued, "what is gained is worth a queue"


def test_order_of_who_would_miss_the_deadline_is_by_queue_among_those_that_make_it() -> None:
    """The fastest is the one that everybody takes; an idle one that makes it too is as good."""
    here = at(ME, 400)
    fast, idle, late = at(RSU, 50, 90, usual_wait_ns=30 * MS), at(CAR, 80), at(NodeId("a"), 60, 300)
    assert order(here, [fast, idle, late], 100 * MS, Random(1))[0] is idle
    assert order(here, [fast, late], 100 * MS, Random(1))[0] is fast
    assert order(here, [late], 100 * MS, Random(1))[0] is late, "nobody surely makes it, and this one may"


def test_order_stays_home_when_only_the_tail_there_is_better() -> None:
    """Half of the requests would be slower."""
    here, there = at(ME, 10, 60), at(RSU, 15, 20)
    assert order(here, [there], 1_000 * MS, Random(1))[0] is here


def test_order_tries_what_is_not_proven_only_when_a_hedge_is_left_for_it() -> None:
    """A neighbour that never answers costs the hedge, and no request its deadline."""
    here, there = at(ME, 100), at(RSU, 10, proven=False)
    assert order(here, [there], 1_000 * MS, Random(1), may_risk=True)[0] is there
    assert order(here, [there], 1_000 * MS, Random(1), may_risk=False)[0] is here
    assert order(None, [there], 1_000 * MS, Random(1), may_risk=False) == [there]


def test_order_without_a_local_model_has_neighbours_by_time() -> None:
    """With those last that are doubtful, however fast they say they are."""
    fast, slow, doubtful = at(RSU, 10), at(CAR, 20), at(NodeId("a"), 1, doubtful=True)
    assert order(None, [slow, doubtful, fast], 100 * MS, Random(1)) == [fast, slow, doubtful]
    assert order(None, [], 100, Random(1)) == []


def test_order_puts_those_past_the_deadline_last() -> None:
    """Better late than nobody, but not before one that is in time."""
    late, in_time, here = at(RSU, 200), at(CAR, 90), at(ME, 1_000)
    assert order(here, [late, in_time], 100 * MS, Random(1)) == [in_time, here, late]


def test_order_spreads_over_neighbours_that_predictions_cannot_tell_apart() -> None:
    """Forty vehicles that all take the best one by name wait in a queue before it, beside another that is idle."""
    random, here = Random(7), at(ME, 500)
    there = [at(NodeId(f"rsu-{number}"), 10 + number, uncertain_ns=3 * MS) for number in range(6)]
    first = Counter(order(here, there, 1_000 * MS, random)[0].node for _ in range(4_000))
    assert set(first) == {"rsu-0", "rsu-1", "rsu-2", "rsu-3"}
    assert all(count > 800 for count in first.values())
    sure = [at(NodeId(f"rsu-{number}"), 10 + number) for number in range(6)]
    assert {order(here, sure, 1_000 * MS, random)[0].node for _ in range(100)} == {"rsu-0"}


TIMES = st.integers(0, 10**12)


@MODEST
@given(
    st.none() | st.tuples(TIMES, TIMES),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), TIMES, TIMES, TIMES, st.booleans(), st.booleans())),
    st.integers(-(10**9), 10**12),
    st.booleans(),
)
def test_order_holds_every_candidate_exactly_once(
    local: tuple[int, int] | None, there: list[tuple[str, int, int, int, bool, bool]], remaining_ns: int, risk: bool
) -> None:
    """Nobody who could answer is forgotten, and nobody comes before this node who is not worth it."""
    here = None if local is None else Candidate(ME, *local)
    remote = [
        Candidate(NodeId(node), expected_ns, p95_ns, 0, uncertain_ns, proven, doubtful)
        for node, expected_ns, p95_ns, uncertain_ns, proven, doubtful in there
    ]
    ordered = order(here, remote, remaining_ns, Random(1), risk)
    everybody = [*remote, *([here] if here else [])]
    assert sorted(ordered, key=repr) == sorted(everybody, key=repr)
    if here is not None and ordered[0] is not here:
        assert is_worthwhile(ordered[0], here)
        assert not ordered[0].doubtful
        assert risk or ordered[0].proven
