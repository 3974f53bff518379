"""How many pieces may be on their way from one neighbour, or from all together.

What is asked for waits in queues that readings share: at the neighbour, and on the link. So the window follows delay,
as LEDBAT does (RFC 6817): it grows while answers take hardly longer than the shortest one lately, and shrinks when
they take longer by a target. It never falls below one piece, and never rises above its bound.
"""

from collections import deque
from typing import Final

from protocols.base.limits import MS, SECOND

NEIGHBOUR_TARGET_NS: Final = 60 * MS
"""The delay that pieces of one neighbour may meet in queues. Nine pieces at 8 Mb/s are as long."""
ALL_TARGET_NS: Final = 100 * MS
"""That of all pieces together, of which the shortest of the last ``ALL_LOOK`` counts: a neighbour that has what many
want is slow without any fault of the link of this node."""
ALL_LOOK: Final = 8
_MEMORY_NS: Final = 30 * SECOND
"""The shortest delay is forgotten after once to twice this time: the link may have changed."""
_FIRST: Final = 2.0
_LOWER: Final = 0.7


class DelayWindow:
    """A number of pieces."""

    __slots__ = ("_before_ns", "_excess_ns", "_lately_ns", "_most", "_reduced_ns", "_since_ns", "_started",
                 "_target_ns", "size", "smoothed_ns")  # fmt: skip

    def __init__(self, most: int, target_ns: int, look: int = 1) -> None:
        """``target_ns``: the delay that is accepted. ``look``: the shortest of so many delays counts."""
        self._most, self._target_ns = float(most), target_ns
        self._excess_ns: deque[int] = deque(maxlen=look)
        self.size = _FIRST
        self.smoothed_ns = 0
        """How long answers took lately; 0: there was none."""
        self._before_ns = self._lately_ns = 60 * SECOND
        self._since_ns = self._reduced_ns = 0
        self._started = False  # whether it has shrunk once: until then it grows by one for each answer

    @property
    def base_ns(self) -> int:
        """The shortest time that an answer took lately."""
        return min(self._before_ns, self._lately_ns)

    def answered(self, took_ns: int, excess_ns: int, now: int) -> None:
        """Note that an answer took so long, which was ``excess_ns`` more than it takes without queues."""
        self.smoothed_ns += (took_ns - self.smoothed_ns) // 4 if self.smoothed_ns else took_ns
        self._excess_ns.append(excess_ns)
        if min(self._excess_ns) <= self._target_ns:
            self.size += 1.0 / self.size if self._started else 1.0
            self.size = min(self.size, self._most)
        elif now - self._reduced_ns > self.smoothed_ns:  # once for what was on its way together
            self._reduce(_LOWER, now)

    def learn(self, took_ns: int, now: int) -> int:
        """Take in how long an answer took. Returns by how much that is more than the shortest one lately."""
        if now - self._since_ns > _MEMORY_NS:
            self._before_ns, self._lately_ns, self._since_ns = self._lately_ns, took_ns, now
        self._lately_ns = min(self._lately_ns, took_ns)
        return took_ns - self.base_ns

    def lost(self, now: int) -> None:
        """Note that no answer came in time."""
        self._reduce(0.0, now)

    def _reduce(self, share: float, now: int) -> None:
        self.size = max(self.size * share, 1.0)
        self._started, self._reduced_ns = True, now
