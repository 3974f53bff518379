"""What a plan costs, by hand."""

import pytest

from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId
from protocols.base.limits import MS
from protocols.inference.split.plan import CutPoint, Home, OwnerOnly, PlacedStage, Plan, Profile, StageCandidate, price

ME, RSU, CAR = NodeId("me"), NodeId("rsu-1"), NodeId("veh-2")
PROFILE = Profile(600_000, 1_000, (CutPoint(200_000, 0.25, 1_000_000), CutPoint(100_000, 0.5, 3_000_000)), 10_000_000)
HOME = Home(ME, 400 * MS, queue_ns=1 * MS)
NEAR = StageCandidate(RSU, 100 * MS, 2 * MS, 1e7, 2e7, queue_ns=3 * MS, overhead_ns=4 * MS)
DIVIDED = (PlacedStage(-1, 0, ME), PlacedStage(0, 2, RSU))


def test_price_of_a_divided_plan_is_the_sum_of_its_stages() -> None:
    """At home: queue and a quarter of 400 ms. There: round trip, 200 kB up, 1 kB down, queue, overhead, and three
    quarters of 100 ms."""
    latency_ns = (1 + 100) * MS + (2 + 20 + 3 + 4 + 75) * MS + 50_000
    assert price(PROFILE, HOME, [NEAR], DIVIDED) == Plan(DIVIDED, latency_ns, 100 * MS)


def test_price_of_a_stream_is_that_of_the_busiest_resource() -> None:
    """The interface of the owner carries what goes to all neighbours."""
    stages = (PlacedStage(-1, 0, RSU), PlacedStage(0, 1, CAR), PlacedStage(1, 2, ME))
    slow = StageCandidate(CAR, 100 * MS, 2 * MS, 1e7, 1e6)
    plan = price(PROFILE, Home(ME, 2 * MS), [NEAR, slow], stages)
    assert plan is not None
    assert plan.period_ns == (60 + 10) * MS + (20 + 100) * MS


def test_price_counts_inputs_of_the_model_that_are_used_behind_the_cut() -> None:
    """A stage that takes the picture again takes as long to reach as the picture does."""
    again = Profile(600_000, 1_000, (CutPoint(200_000, 0.25, 0, inputs_bytes=600_000), *PROFILE.cuts[1:]), 10_000_000)
    plain, more = price(PROFILE, HOME, [NEAR], DIVIDED), price(again, HOME, [NEAR], DIVIDED)
    assert plain is not None
    assert more is not None
    assert more.latency_ns - plain.latency_ns == 60 * MS


@pytest.mark.parametrize(
    ("home", "neighbours"),
    [
        (HOME, ()),
        (OwnerOnly(ME), (NEAR,)),
        (Home(ME, 400 * MS, memory_bytes=1_000_000 + 599_999), (NEAR,)),
        (HOME, (StageCandidate(RSU, 100 * MS, 2 * MS, 1e7, 2e7, memory_bytes=9_000_000 + 199_999),)),
    ],
)
def test_price_of_a_plan_that_can_not_run_is_none(
    home: Home | OwnerOnly, neighbours: tuple[StageCandidate, ...]
) -> None:
    """The node is gone, does not compute any more, or has a byte too little for weights and boundary."""
    assert price(PROFILE, home, neighbours, DIVIDED) is None


def test_price_of_a_plan_that_just_fits_is_a_plan() -> None:
    """The bounds of memory are inclusive."""
    home = Home(ME, 400 * MS, memory_bytes=1_600_000)
    neighbour = StageCandidate(RSU, 100 * MS, 2 * MS, 1e7, 2e7, memory_bytes=9_200_000)
    assert price(PROFILE, home, (neighbour,), DIVIDED) is not None


@pytest.mark.parametrize(
    "cuts",
    [
        (CutPoint(1, 0.5, 0), CutPoint(1, 0.4, 0)),
        (CutPoint(1, 0.5, 5), CutPoint(1, 0.6, 4)),
        (CutPoint(1, 1.1, 0),),
        (CutPoint(1, float("nan"), 0),),
        (CutPoint(1, 0.5, 11),),
        (CutPoint(-1, 0.5, 0),),
        (CutPoint(1, 0.5, 0, -1),),
    ],
)
def test_profile_with_cuts_out_of_order_is_refused(cuts: tuple[CutPoint, ...]) -> None:
    """A stage of negative length would make any plan look fast."""
    with pytest.raises(ValueUnsupported, match="can't come after"):
        Profile(1, 1, cuts, 10)


@pytest.mark.parametrize("bytes_per_s", [0.0, -1.0, 0.5, float("nan")])
def test_candidate_behind_a_dead_link_is_refused(bytes_per_s: float) -> None:
    """The time of a transfer would be infinite, or no number."""
    with pytest.raises(ValueUnsupported, match="rsu-1"):
        StageCandidate(RSU, 1, 1, bytes_per_s, 1e6)
    with pytest.raises(ValueUnsupported, match="rsu-1"):
        StageCandidate(RSU, 1, 1, 1e6, bytes_per_s)
