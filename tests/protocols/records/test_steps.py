"""A clock that is set is told from one that runs."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.records.ledger import Ledger
from protocols.records.steps import LEAST_STEP_NS, ClockSteps

YEAR_NS = 365 * 86_400 * SECOND


def test_clock_that_only_drifts_is_never_said_to_be_set() -> None:
    """Half a millisecond in a second is the most by which Linux slews a clock."""
    steps = ClockSteps(UtcNs(YEAR_NS), MonotonicNs(0))
    for second in range(1, 20_000):
        assert steps.since(UtcNs(YEAR_NS + second * (SECOND + MS // 2)), MonotonicNs(second * SECOND)) == 0


@given(st.integers(LEAST_STEP_NS, 100 * YEAR_NS) | st.integers(-50 * YEAR_NS, -LEAST_STEP_NS), st.integers(0, SECOND))
def test_clock_that_is_set_is_said_once_with_the_step(step_ns: int, later_ns: int) -> None:
    """Forward from 1970, or back from a year that a wrong server said."""
    steps = ClockSteps(UtcNs(56 * YEAR_NS), MonotonicNs(7))
    now_ns = 56 * YEAR_NS + step_ns + later_ns
    assert steps.since(UtcNs(now_ns), MonotonicNs(7 + later_ns)) == step_ns
    assert steps.since(UtcNs(now_ns + SECOND), MonotonicNs(7 + later_ns + SECOND)) == 0


@given(st.integers(-60 * YEAR_NS, 60 * YEAR_NS), st.integers(1, 3_600))
def test_records_keep_the_time_that_they_have_left_when_the_clock_is_set(step_ns: int, left_s: int) -> None:
    """Those without a lifespan still have none, and no time becomes "never" or negative."""
    ledger = Ledger(10, 10_000)
    before = 60 * YEAR_NS + 1
    ledger.issue(10, 3, before + left_s * SECOND, UtcNs(before))
    ledger.issue(10, 3, 0, UtcNs(before))
    ledger.clock_was_set(step_ns)
    assert ledger.expire(UtcNs(before + step_ns + left_s * SECOND - 1)) == 0
    assert ledger.expire(UtcNs(before + step_ns + (left_s + 1) * SECOND)) == 1
    assert ledger.expire(UtcNs(200 * YEAR_NS)) == 0
    assert ledger.pending == 1
