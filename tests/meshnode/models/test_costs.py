"""The figures that placement reads: the median follows a throttled processor, the spread looks further back."""

from meshnode.models.costs import MEDIAN_WINDOW, SPREAD_WINDOW, RunCosts
from protocols.base.ids import ModelDigest
from protocols.base.limits import MAX_OFFERS

A = ModelDigest("a" * 64)


def test_costs_of_a_model_that_never_ran_are_unknown() -> None:
    """A guess would be taken for a measurement."""
    costs = RunCosts()
    assert (costs.median_us(A), costs.p95_us(A)) == (None, None)


def test_median_is_of_the_last_runs_and_the_spread_of_more() -> None:
    """Five in a hundred runs may be slower than what is told as the 95th percentile."""
    costs = RunCosts()
    for number in range(1, SPREAD_WINDOW + 1):
        costs.record(A, number * 1_000)
    assert costs.median_us(A) == SPREAD_WINDOW - MEDIAN_WINDOW // 2
    assert costs.p95_us(A) == 95
    for _ in range(MEDIAN_WINDOW):
        costs.record(A, 1_000_000)
    assert costs.median_us(A) == 1_000
    costs.record(A, 0)
    for _ in range(SPREAD_WINDOW):
        costs.record(A, 5_000)
    assert (costs.median_us(A), costs.p95_us(A)) == (5, 5)


def test_spread_of_a_few_runs_is_the_slowest() -> None:
    """Nothing better is known of them."""
    costs = RunCosts()
    for took_ns in (3_000, 9_000, 1_000):
        costs.record(A, took_ns)
    assert costs.p95_us(A) == 9


def test_costs_of_more_models_than_are_offered_are_forgotten() -> None:
    """Models that are replaced for months must not fill the memory."""
    costs = RunCosts()
    for number in range(MAX_OFFERS + 1):
        costs.record(ModelDigest(f"{number:064}"), 1_000)
    assert costs.median_us(ModelDigest(f"{0:064}")) is None
    assert costs.median_us(ModelDigest(f"{1:064}")) == 1
