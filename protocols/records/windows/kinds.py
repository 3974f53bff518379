"""The kinds of windows, and when each is over.

Windows of time follow the time at which readings were sensed (event time), and are aligned to 1970-01-01 in UTC. They
stay open for ``late_ns`` longer than they last, by the clock of this node. A reading that comes after its windows were
closed is late, and is counted and left out. One that claims to be from the future, by more than ``FUTURE_NS`` and its
own uncertainty, is left out too: it would hold a window open for ever.
"""

from dataclasses import dataclass
from typing import Final

from protocols.base.errors import LocalProtocolError
from protocols.base.limits import SECOND
from protocols.wire.readings import EventTime

FUTURE_NS: Final = 2 * SECOND
"""How far a clock may be ahead of ours."""
MAX_PANES: Final = 60
"""The most panes that a sliding window is cut into."""
MAX_SPAN_NS: Final = 7 * 86_400 * SECOND
MAX_COUNT: Final = 1_000_000


def is_from_future(when: EventTime, utc_now: int) -> bool:
    """Whether a reading claims to have been sensed later than clocks that differ can explain."""
    return when.utc_ns > utc_now + FUTURE_NS + min(when.uncertainty_ns, FUTURE_NS)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A window of ``size_ns`` that begins every ``every_ns``: tumbling when both are equal, sliding otherwise.

    :raises LocalProtocolError: when the size is not a multiple of the step, or out of range.
    """

    size_ns: int
    every_ns: int
    late_ns: int = SECOND

    def __post_init__(self) -> None:
        _check_span("size", self.size_ns)
        _check_span("every", self.every_ns)
        if self.size_ns % self.every_ns or self.size_ns // self.every_ns > MAX_PANES:
            raise LocalProtocolError(
                f"a window of {_seconds(self.size_ns)} s every {_seconds(self.every_ns)} s: the size must be a "
                f"multiple of the step, at most {MAX_PANES} times as long"
            )
        _check_late(self.late_ns, self.size_ns)

    @property
    def panes(self) -> int:
        """How many steps a window covers."""
        return self.size_ns // self.every_ns

    @property
    def max_open(self) -> int:
        """How many panes may be held at one moment: those of open windows, and of what may come from the future."""
        return self.panes + -(-(self.late_ns + 2 * FUTURE_NS) // self.every_ns)


@dataclass(frozen=True, slots=True)
class SessionWindow:
    """A window that lasts until nothing was sensed for ``gap_ns``, and at most ``max_ns``.

    :raises LocalProtocolError: when one of them is out of range.
    """

    gap_ns: int
    max_ns: int
    late_ns: int = SECOND

    def __post_init__(self) -> None:
        _check_span("gap", self.gap_ns)
        _check_span("max", self.max_ns)
        if self.max_ns < self.gap_ns:
            raise LocalProtocolError(
                f"a session of at most {_seconds(self.max_ns)} s with a gap of {_seconds(self.gap_ns)} s: max must not "
                "be shorter than gap"
            )
        _check_late(self.late_ns, 60 * self.gap_ns)

    @property
    def max_open(self) -> int:
        """How many sessions of one partition may be open: they are more than a gap apart, or ended by ``max_ns``."""
        return 3 + -(-(self.late_ns + self.gap_ns + 2 * FUTURE_NS) // self.gap_ns)


@dataclass(frozen=True, slots=True)
class CountWindow:
    """A window of the last ``size`` readings, whenever ``every`` more have come: tumbling when both are equal.

    :raises LocalProtocolError: when the size is not a multiple of the step, or out of range.
    """

    size: int
    every: int

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.size <= MAX_COUNT:
            raise LocalProtocolError(
                f"a window of {self.size} readings every {self.every}: use 1 to {MAX_COUNT}, and a step "
                "that is not larger"
            )
        if self.size % self.every or self.size // self.every > MAX_PANES:
            raise LocalProtocolError(
                f"a window of {self.size} readings every {self.every}: the size must be a multiple of the step, at "
                f"most {MAX_PANES} times as large"
            )

    @property
    def panes(self) -> int:
        """How many steps a window covers."""
        return self.size // self.every

    @property
    def max_open(self) -> int:
        """How many panes of one partition are held."""
        return self.panes + 1


Window = TimeWindow | SessionWindow | CountWindow


def _check_span(what: str, span_ns: int) -> None:
    if not SECOND // 100 <= span_ns <= MAX_SPAN_NS:
        raise LocalProtocolError(f"{what} is {_seconds(span_ns)} s: use 0.01 s to {_seconds(MAX_SPAN_NS)} s")


def _check_late(late_ns: int, most_ns: int) -> None:
    if not 0 <= late_ns <= most_ns:
        raise LocalProtocolError(f"late is {_seconds(late_ns)} s: use 0 s to {_seconds(most_ns)} s")


def _seconds(span_ns: int) -> str:
    return f"{span_ns / SECOND:g}"
