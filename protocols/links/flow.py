"""What is under way on one lane: handed over, and not yet confirmed by the computer of the peer.

What the kernel holds can't be replaced, reordered or left out any more, and on a slow link it is seconds of readings.
So a lane takes no more than its link carries in ``TARGET_NS``; everything else waits in the queue of the lane, where
the most urgent and the newest go first.

The window of a lane is in bytes. It doubles when it was used up and all of it was confirmed within ``TARGET_NS``, and
halves when that took longer; one frame may always be under way. (TCP's own window follows losses, and grows for as long
as the buffers below take more. Delay is what readings suffer from, so it is delay that this one follows, as TCP Vegas
and LEDBAT (RFC 6817) do.) Beside the window, nothing follows while something has been under way for ``TARGET_NS``.

How long it takes until a frame is confirmed is judged for one frame at a time, as TCP does without time stamps. It is
*slow* when a look finds it unconfirmed after ``SLOW_NS``, and good when it never was. A caller that seldom looks takes
some slow ones for good.
"""

from typing import Final

from protocols.base.limits import MS

TARGET_NS: Final = 50 * MS
"""Above the 40 ms for which Linux delays acknowledgements, and below the time between two readings at 10 Hz."""
SLOW_NS: Final = 80 * MS
"""A frame that is confirmed later than this found a full channel: 40 ms are the delayed acknowledgement."""
FIRST_WINDOW_BYTES: Final = 64 * 1024
MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024


class Flow:
    """What is under way on one lane. All instants are monotonic nanoseconds."""

    __slots__ = ("_mark_bytes", "_marked_ns", "_used_up", "sent_bytes", "told_slow", "window_bytes")

    def __init__(self) -> None:
        self.window_bytes = FIRST_WINDOW_BYTES
        """One frame more than so many bytes may be under way."""
        self.sent_bytes = 0
        """All bytes that were handed over."""
        self.told_slow = False
        """Whether the frame that is measured was reported as slow already."""
        self._mark_bytes = self._marked_ns = 0  # the frame that is measured; 0: none is
        self._used_up = False  # whether the window was, since that frame

    @property
    def is_measuring(self) -> bool:
        """Whether a frame is under way whose confirmation will be a sample."""
        return self._marked_ns != 0

    def sent(self, size_bytes: int, now: int) -> None:
        """Note that a frame was handed over."""
        self.sent_bytes += size_bytes
        if not self._marked_ns:
            self._mark_bytes, self._marked_ns, self.told_slow = self.sent_bytes, now, False

    def confirmed(self, unconfirmed_bytes: int, now: int) -> int:
        """Take in how many bytes are not confirmed. Returns a sample in nanoseconds: for how long at most the frame
        that was measured was under way, or more than ``SLOW_NS`` once it has been for longer. 0: there is no news."""
        if not self._marked_ns:
            return 0
        took_ns = now - self._marked_ns
        if self.sent_bytes - unconfirmed_bytes >= self._mark_bytes:
            if self._used_up:
                self._used_up = False
                if took_ns <= TARGET_NS:
                    self.window_bytes = min(2 * self.window_bytes, MAX_WINDOW_BYTES)
                else:
                    self._shrink()
            self._marked_ns = 0
            return 0 if self.told_slow else max(min(took_ns, SLOW_NS), 1)
        if took_ns > SLOW_NS and not self.told_slow:
            self.told_slow = True
            return SLOW_NS + 1
        return 0

    def is_full(self, unconfirmed_bytes: int, now: int) -> bool:
        """Whether nothing more should be handed over now."""
        if unconfirmed_bytes <= 0:
            return False
        if unconfirmed_bytes >= self.window_bytes:
            self._used_up = True
            return True
        return self._marked_ns != 0 and now - self._marked_ns > TARGET_NS

    def _shrink(self) -> None:
        self.window_bytes = max(self.window_bytes // 2, 1)
