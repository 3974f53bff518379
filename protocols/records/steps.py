"""Notices when the clock is set, so that what waits ages by how long it has waited and not by where the clock was set.

A clock that is right runs beside one that never steps. The difference between the two changes slowly, by less than a
millisecond in a second, except when somebody sets the clock.
"""

from typing import Final

from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import SECOND

LEAST_STEP_NS: Final = SECOND
"""A smaller change is left alone: lifespans of records are whole seconds, and clocks are slewed by more in an hour."""


class ClockSteps:
    """Compares the clock with one that counts all time and never steps."""

    def __init__(self, utc_now: UtcNs, now: MonotonicNs) -> None:
        self._ahead_ns = utc_now - now

    def since(self, utc_now: UtcNs, now: MonotonicNs) -> int:
        """By how many nanoseconds the clock was set forward since the last call, or back if negative; 0: it was not."""
        step_ns = utc_now - now - self._ahead_ns
        self._ahead_ns += step_ns
        return step_ns if abs(step_ns) >= LEAST_STEP_NS else 0
