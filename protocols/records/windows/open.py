"""The open windows of a rule by partition: what readings are put into, and what comes out when a window is over.

Each store is bounded by ``max_rows`` rows (a pane or a session of one partition). Who sent the first reading of a row
pays for it; when the store is full, the largest holder gives way with its oldest row, whose readings are counted as
evicted. So a neighbour that invents keys pushes out its own rows first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from protocols.records.windows.saving import Restorable, WindowTally
from protocols.records.windows.summary import Summary
from protocols.wire.readings import Reading


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that is over."""

    partition: str
    summary: Summary
    start_ns: int
    """When it begins, in UTC."""
    end_ns: int
    """When it ends."""


class OpenWindows(Restorable, Protocol):
    """The open windows of one rule."""

    tally: WindowTally
    """Where readings are that were taken."""
    evicted: int
    """How many readings were lost because there were too many rows."""

    @property
    def held(self) -> int:
        """How many readings are in open windows. It looks at each row."""

    def put(self, partition: str, reading: Reading, value: Any, is_own: bool, now: int, utc_now: int) -> str:
        """Take a reading; returns why it was not: ``late``, ``future`` or ``unfit``; empty when it was."""

    def due_ns(self) -> int:
        """When a window is over, by the monotonic clock; ``NEVER`` when none is open."""

    def closed(self, now: int) -> Iterator[ClosedWindow]:
        """The windows that are over, one by one. What is not fetched stays over."""
