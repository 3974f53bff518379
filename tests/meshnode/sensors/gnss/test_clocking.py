"""What fixes say of this host's clock: never that it is better than it is, and that it was set."""

from hypothesis import given
from hypothesis import strategies as st

from meshnode.sensors.gnss.clocking import PULSE_ERROR_NS, ClockBounds
from protocols.base.limits import MS, SECOND

LATENCY_NS = SECOND
CONFIGURED_NS = 10 * MS
TRUE_NS = 1_800_000_000 * SECOND
latencies = st.lists(st.integers(0, LATENCY_NS), min_size=1, max_size=150)


@given(st.integers(-100 * SECOND, 100 * SECOND), latencies)
def test_clock_that_is_off_by_more_than_fixes_can_hide_is_never_said_to_be_better(
    off_ns: int, late_ns: list[int]
) -> None:
    """Whatever the latencies are, and however many fixes came."""
    watch = ClockBounds(CONFIGURED_NS, LATENCY_NS)
    for number, latency_ns in enumerate(late_ns):
        fix_ns = TRUE_NS + number * SECOND
        clock_ns = fix_ns + latency_ns + off_ns
        watch.fixed(fix_ns, 5 * MS, clock_ns)
        uncertainty_ns = watch.uncertainty_ns(clock_ns)
        assert uncertainty_ns is not None
        if abs(off_ns) > LATENCY_NS + CONFIGURED_NS + 5 * MS:
            assert abs(off_ns) <= uncertainty_ns <= abs(off_ns) + LATENCY_NS + 5 * MS
        if abs(off_ns) <= CONFIGURED_NS:
            assert uncertainty_ns == CONFIGURED_NS, "what the keeper of the clock promises is true"


@given(st.integers(-100 * SECOND, 100 * SECOND), st.integers(-100 * SECOND, 100 * SECOND), latencies, latencies)
def test_clock_that_is_set_is_known_from_the_next_fix_on(
    before_ns: int, after_ns: int, late_ns: list[int], later_ns: list[int]
) -> None:
    """A host boots without a battery, and NTP sets its clock an hour later."""
    watch = ClockBounds(CONFIGURED_NS, LATENCY_NS)
    for number, (off_ns, latency_ns) in enumerate(
        [(before_ns, each) for each in late_ns] + [(after_ns, each) for each in later_ns]
    ):
        fix_ns = TRUE_NS + number * SECOND
        clock_ns = fix_ns + latency_ns + off_ns
        watch.fixed(fix_ns, 0, clock_ns)
        uncertainty_ns = watch.uncertainty_ns(clock_ns)
        assert uncertainty_ns is not None
        assert uncertainty_ns >= abs(off_ns) - LATENCY_NS - CONFIGURED_NS
        assert uncertainty_ns <= max(abs(off_ns) + LATENCY_NS, CONFIGURED_NS)


def test_pulse_says_it_within_a_millisecond_until_it_is_old_or_the_clock_is_set() -> None:
    """The kernel stamps a pulse, so it was not on its way."""
    watch = ClockBounds(CONFIGURED_NS, LATENCY_NS)
    assert watch.uncertainty_ns(TRUE_NS) is None
    watch.pulsed(TRUE_NS, TRUE_NS + 300_000)
    watch.fixed(TRUE_NS, 0, TRUE_NS + 200 * MS)
    known_ns = watch.uncertainty_ns(TRUE_NS + SECOND)
    assert known_ns is not None
    assert 300_000 + PULSE_ERROR_NS <= known_ns < MS
    assert watch.uncertainty_ns(TRUE_NS + 11 * SECOND) == CONFIGURED_NS, "the pulse is old"
    watch.pulsed(TRUE_NS + 12 * SECOND, TRUE_NS + 12 * SECOND)
    watch.fixed(TRUE_NS + 13 * SECOND, 0, TRUE_NS + 73 * SECOND)
    set_ns = watch.uncertainty_ns(TRUE_NS + 73 * SECOND)
    assert set_ns is not None
    assert 59 * SECOND <= set_ns <= 60 * SECOND, "the clock was set after the pulse"
