"""How far this host's clock may be off, by what a satellite receiver says.

A fix of the time ``t`` that arrives when the host's clock shows ``c`` was on its way for between nothing and the
longest latency ``L`` of a receiver. So the clock is ahead of true time by ``c - t - L`` to ``c - t``. Each fix gives
such an interval, and all of them hold, so what is known is where they overlap. When a new one has nothing in common
with the earlier ones, the clock has been set: the earlier ones count no more.

A receiver can't say more than that, so a clock that its keeper (NTP, PTP) knows within milliseconds stays known within
milliseconds, as long as the interval allows it. A pulse per second, which the kernel stamps, has no latency: it says
how far the clock is off, within a microsecond.
"""

from typing import Final

from protocols.base.limits import MS, SECOND

PULSE_ERROR_NS: Final = 100_000
"""Of a pulse that a busy host stamps: 0.1 ms. It is less by an order on a serial line."""
_PULSE_HOLDS_NS: Final = 10 * SECOND
"""A clock that nobody keeps drifts by less than 0.5 ms in this time (50 ppm)."""
_DRIFT_NS: Final = MS // 2
_OVERLAP_OF: Final = 64
"""Intervals that are remembered in one overlap: then it begins anew, because clocks drift."""


class ClockBounds:
    """The uncertainty of one clock. ``configured_ns``: what its keeper promises; ``latency_ns``: ``L`` above."""

    def __init__(self, configured_ns: int, latency_ns: int) -> None:
        self._configured_ns, self._latency_ns = configured_ns, latency_ns
        self._low_ns = self._high_ns = 0
        self._intervals = 0
        self._pulse_ns = self._pulse_at_ns = 0
        self._has_pulse = False

    def fixed(self, utc_ns: int, error_ns: int, clock_utc_ns: int) -> None:
        """A fix of that time came when the clock showed ``clock_utc_ns``."""
        high_ns = clock_utc_ns - utc_ns + error_ns
        low_ns = clock_utc_ns - utc_ns - error_ns - self._latency_ns
        if 0 < self._intervals < _OVERLAP_OF and low_ns <= self._high_ns and high_ns >= self._low_ns:
            self._low_ns, self._high_ns = max(low_ns, self._low_ns), min(high_ns, self._high_ns)
            self._intervals += 1
        else:
            self._low_ns, self._high_ns = low_ns, high_ns
            self._intervals = 1
        if self._has_pulse and not low_ns <= self._pulse_ns <= high_ns:
            self._has_pulse = False  # the clock has been set since

    def pulsed(self, utc_ns: int, clock_utc_ns: int) -> None:
        """The clock showed ``clock_utc_ns`` at the pulse of that second."""
        self._pulse_ns, self._pulse_at_ns, self._has_pulse = clock_utc_ns - utc_ns, clock_utc_ns, True

    def uncertainty_ns(self, clock_utc_ns: int) -> int | None:
        """Half the width of the interval around this clock that holds the true time. None: nothing was heard."""
        if self._has_pulse and abs(clock_utc_ns - self._pulse_at_ns) <= _PULSE_HOLDS_NS:
            return abs(self._pulse_ns) + PULSE_ERROR_NS + _DRIFT_NS
        if not self._intervals:
            return None
        if self._low_ns <= self._configured_ns and self._high_ns >= -self._configured_ns:
            return self._configured_ns  # nothing speaks against what its keeper promises
        return max(abs(self._low_ns), abs(self._high_ns))
