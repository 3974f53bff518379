"""What a lane sent, and what it left out, while it did not take all that waits: figures for people.

Nothing is counted on a lane that takes all at once, so a channel with room pays nothing for this. A lane that carries
few streams catches up with each frame and falls behind again, so whether it is behind at one instant says little: what
was left out within ``_LATELY_NS`` counts.
"""

from typing import Final

from protocols.base.limits import SECOND
from protocols.base.time import NEVER

_LATELY_NS: Final = 2 * SECOND
"""The pace leaves each lane a frame in two seconds at least."""


class Shortfall:
    """The figures of one lane. All instants are monotonic nanoseconds."""

    __slots__ = ("_frames", "_frames_per_s", "_left_out_ns", "_since_ns", "left_out")

    def __init__(self) -> None:
        self.left_out = 0
        """How many older readings have given way to newer ones of their stream."""
        self._left_out_ns = self._since_ns = -NEVER
        self._frames = 0  # since then
        self._frames_per_s = 0.0  # in the time before

    def sent(self, now: int) -> None:
        """Note that a frame was taken."""
        passed_ns = now - self._since_ns
        if passed_ns >= _LATELY_NS:
            self._frames_per_s = self._frames * SECOND / passed_ns
            self._since_ns, self._frames = now, 0
        self._frames += 1

    def leave_out(self, count: int, now: int) -> None:
        """Note that so many readings gave way."""
        self.left_out += count
        self._left_out_ns = now

    def is_recent(self, now: int) -> bool:
        """Whether readings gave way lately."""
        return now - self._left_out_ns < _LATELY_NS

    def frames_per_s(self, now: int) -> float:
        """How many frames were taken a second, lately."""
        passed_ns = now - self._since_ns
        if passed_ns >= 2 * _LATELY_NS:
            return 0.0
        return self._frames_per_s if passed_ns < _LATELY_NS else self._frames * SECOND / passed_ns
