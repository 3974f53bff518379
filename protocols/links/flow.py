"""What is under way on one lane: handed over, and not yet confirmed by the computer of the peer.

What the kernel holds can't be replaced, reordered or left out any more, and on a slow link it is seconds of readings.
So a lane takes no more than its link carries in ``TARGET_NS`` beside its *base*; everything else waits in the queue of
the lane, where the most urgent and the newest go first.

The base is the shortest time in which a frame was confirmed lately, and at least ``LEAST_BASE_NS``: a way over the
Internet has a long one that no smaller rate makes shorter. It is not believed beyond ``MOST_BASE_NS``, because who
meets others on a channel that is full already has never seen it empty.

The window of a lane is in bytes. It doubles when it was used up and all of it was confirmed in time, and halves when
that took longer; one frame may always be under way. (TCP's own window follows losses, and grows for as long as the
buffers below take more. Delay is what readings suffer from, so it is delay that this one follows, as TCP Vegas and
LEDBAT (RFC 6817) do.) Beside the window, nothing follows while something has been under way for too long.

How long it takes until a frame is confirmed is judged for one frame at a time, as TCP does without time stamps. It is
*late* when a look finds it unconfirmed ``LATE_NS`` after the base, and *slow* when one does ``SLOW_NS`` after it.
"""

from typing import Final

from protocols.base.limits import MS, SECOND

LEAST_BASE_NS: Final = 10 * MS
"""A peer confirms a segment when its receiving thread has read it, and a look comes up to 4 ms late."""
MOST_BASE_NS: Final = 100 * MS
TARGET_NS: Final = 40 * MS
"""With the least base this is the time between two readings at 20 Hz."""
LATE_NS: Final = 15 * MS
"""What a frame waits on a channel that is nearly full, or for a receiving thread that is busy."""
SLOW_NS: Final = 45 * MS
"""What a frame waits on a channel that is full. With the least base it is well above the 40 ms after which Linux
confirms a segment that nobody has read, and the ticks of its timers and of our looks."""
_MEMORY_NS: Final = 30 * SECOND
"""A base is forgotten after once to twice this time: the way may have changed."""
FIRST_WINDOW_BYTES: Final = 64 * 1024
MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024


Sample = tuple[int, int]
"""By how much a frame was later than the base (at least 1, more than ``LATE_NS`` if it was late, and more than
``SLOW_NS`` if it was slow), and for how long it had been under way: at most so many nanoseconds, because a look comes
late. A frame that is slow is most often reported as late before."""


class Flow:
    """What is under way on one lane. All instants are monotonic nanoseconds."""

    __slots__ = (
        "_before_ns", "_lately_ns", "_mark_bytes", "_since_ns", "_used_up", "base_ns", "marked_ns", "sent_bytes",
        "told_ns", "window_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.window_bytes = FIRST_WINDOW_BYTES
        """One frame more than so many bytes may be under way."""
        self.sent_bytes = 0
        """All bytes that were handed over. Whoever hands over a frame adds to it, and then calls :meth:`measure` if no
        frame is measured."""
        self.marked_ns = 0
        """When the frame was handed over that is measured; 0: none is."""
        self.told_ns = 0
        """By how much the frame that is measured was reported to be later than the base; 0: it was not reported."""
        self.base_ns = LEAST_BASE_NS
        """How long a frame takes when nothing waits before it."""
        self._before_ns = self._lately_ns = MOST_BASE_NS  # the shortest of the last two spans of _MEMORY_NS
        self._since_ns = 0
        self._mark_bytes = 0  # where the frame that is measured ends
        self._used_up = False  # whether the window was, since that frame

    def measure(self, now: int) -> None:
        """Measure the frame that was handed over just now."""
        self._mark_bytes, self.marked_ns, self.told_ns = self.sent_bytes, now, 0

    def confirmed(self, unconfirmed_bytes: int, now: int) -> Sample | None:
        """Take in how many bytes are not confirmed. Returns a sample; None when there is no news."""
        if not self.marked_ns:
            return None
        took_ns = now - self.marked_ns
        if self.sent_bytes - unconfirmed_bytes >= self._mark_bytes:
            if self._used_up:
                self._used_up = False
                if took_ns <= self.base_ns + TARGET_NS:
                    self.window_bytes = min(2 * self.window_bytes, MAX_WINDOW_BYTES)
                else:
                    self.window_bytes = max(self.window_bytes // 2, 1)
            self.marked_ns = 0
            late_ns = max(1, min(took_ns - self.base_ns, LATE_NS))
            self._learn(took_ns, now)
            return None if self.told_ns else (late_ns, took_ns)
        for later_ns in (SLOW_NS, LATE_NS):
            if took_ns > self.base_ns + later_ns and self.told_ns < later_ns:
                self.told_ns = later_ns
                return later_ns + 1, took_ns
        return None

    def is_full(self, unconfirmed_bytes: int, now: int) -> bool:
        """Whether nothing more should be handed over now."""
        if unconfirmed_bytes <= 0:
            return False
        if unconfirmed_bytes >= self.window_bytes:
            self._used_up = True
            return True
        return self.marked_ns != 0 and now - self.marked_ns > self.base_ns + TARGET_NS

    def _learn(self, took_ns: int, now: int) -> None:
        if now - self._since_ns > _MEMORY_NS:
            self._before_ns, self._lately_ns, self._since_ns = self._lately_ns, MOST_BASE_NS, now
        self._lately_ns = min(self._lately_ns, took_ns)
        self.base_ns = max(LEAST_BASE_NS, min(self._before_ns, self._lately_ns))
