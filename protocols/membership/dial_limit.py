"""How many dials of one node may wait for an answer at once.

A handshake takes eight flights, five kilobytes in all. When many vehicles meet at once on one radio channel, and each
dials all others together, handshakes fill the channel for seconds: readings and hazards wait behind them, and the
handshakes run into their time-outs and begin again. So a node begins with few. Each handshake that was quick lets one
more be under way, and one that was slow halves their number. When few are left it is crowded, and the limit is one of
dials in a span of time: a second with up to thirty that were reached, and longer with more. So vehicles that meet take
a third of their channel for it.

Dials that nobody answers say nothing, because most often there is nobody, and stop counting after a while. Otherwise a
stranger's adverts would keep real nodes waiting.
"""

from collections import deque
from typing import Final

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER

MOST: Final = 64
"""Dials without an answer: each takes a socket and, if the server is silent, lasts until its time-out."""
FIRST: Final = 4
_LEAST: Final = 2
_AT_ONCE: Final = 30
"""With one peer less, ``_LEAST`` dials begin in a second: sixty of all nodes together."""
_CROWD: Final = 12
"""Fewer peers are no crowd: handshakes are slow when an address has moved, too."""
_QUICK_NS: Final = 300 * MS
"""A handshake over a free link takes 20 ms, and over the Internet four round trips. One that takes longer has waited
for a channel or a processor. A dial without an answer counts for so long."""


class DialLimit:
    """The limit of one node. All instants are monotonic nanoseconds."""

    __slots__ = ("_begun", "_cut_ns", "_span_ns", "limit")

    def __init__(self) -> None:
        self.limit = FIRST
        """How many dials may wait for an answer, or begin in a span of time when it is crowded."""
        self._cut_ns, self._span_ns = -NEVER, SECOND
        self._begun: deque[int] = deque(maxlen=FIRST)  # when the last dials began

    @property
    def is_crowded(self) -> bool:
        """Whether the last handshakes were slow."""
        return self.limit < FIRST

    def began(self, now: int) -> None:
        """Note that a dial begins."""
        self._begun.append(now)

    def answered(self, began_ns: int, reached: int, now: int) -> None:
        """Note that a dial which began at ``began_ns`` was answered. ``reached``: how many peers have proved who they
        are. What adverts tell doesn't count, because strangers send them too."""
        if now - began_ns <= _QUICK_NS:
            self.limit = min(self.limit + 1, MOST)
        elif began_ns >= self._cut_ns:  # those that began before are late for the same reason
            self.limit, self._cut_ns = max(self.limit // 2, _LEAST if reached >= _CROWD else FIRST), now
            self._span_ns = max(reached + 1, _AT_ONCE) * SECOND // _AT_ONCE

    def room_at(self, waiting: list[int], due_ns: int) -> int:
        """From when on a dial that is due at ``due_ns`` may begin, if none is answered before. ``waiting``: when those
        that wait for an answer began, in that order."""
        if len(waiting) >= MOST:
            return NEVER
        for began, counted_ns in ((waiting, _QUICK_NS), (self._begun, self._span_ns if self.is_crowded else 0)):
            if len(began) >= self.limit:
                due_ns = max(due_ns, began[-self.limit] + counted_ns)
        return due_ns
