"""How many handshakes one node begins, and how soon one after another.

A handshake takes eight flights, five kilobytes in all, which costs a radio channel as much as six readings. When many
vehicles meet at once on one channel, and each dials all others together, handshakes fill the channel for seconds:
readings and hazards wait behind them, and the handshakes run into their time-outs and begin again, until there is
nothing else on the channel. So a node begins with few at once. Each handshake that was quick lets one more be under
way, and one that was slow halves their number.

In a crowd that is not enough: with sixty nodes, even one handshake under way for each is more than the channel carries
in time. So there all nodes together have a number of handshakes a second, of which each takes its part by leaving a
pause between two dials. That begins when a node keeps a pace, when a handshake was slow, or when nobody has answered
yet. The number halves when a handshake was slow again, down to a fifth of a channel of 6 Mb/s, and grows with each that
was quick, until there is no such limit any more. It follows the answers, and they come the more rarely the larger the
crowd is: so all nodes together grow by the same.

Dials that nobody answers say little, because most often there is nobody, and stop counting after a while. Otherwise a
stranger's adverts would keep real nodes waiting. Before the first answer they are a reason for a pause, but not for a
longer one. The first time-out of a peer that said Hello is as good as a slow handshake: on a channel that is full of
handshakes there are no answers.
"""

from typing import Final

from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.membership.crowd import CROWD

MOST: Final = 64
"""Dials without an answer: each takes a socket and, if the server is silent, lasts until its time-out."""
FIRST: Final = 4
FIRST_SHARE_HZ: Final = 40.0
"""Handshakes a second that all nodes of a crowd begin at first: a quarter of a channel of 6 Mb/s."""
LEAST_SHARE_HZ: Final = 30.0
"""With fewer, eighty nodes would meet for more than three minutes."""
_FREE_SHARE_HZ: Final = 480.0
"""From here on the crowd has a channel that is large enough for all at once."""
_GROWTH: Final = 1.1
_FREE_GROWTH: Final = 2.0
"""A node that keeps no pace has room on its channel."""
_LONGEST_ROUND_NS: Final = 120 * SECOND
_QUICK_NS: Final = 300 * MS
"""A handshake over a free link takes 20 ms, and over the Internet four round trips. One that takes longer has waited
for a channel or a processor. A dial without an answer counts for so long."""


class DialLimit:
    """The limit of one node. All instants are monotonic nanoseconds."""

    __slots__ = ("_begun_ns", "_cut_ns", "_is_answered", "crowd", "is_paced", "limit", "share_hz")

    def __init__(self) -> None:
        self.limit = FIRST
        """How many dials may wait for an answer."""
        self.share_hz = 0.0
        """How many dials a second all nodes of a crowd may begin; 0: so many as like."""
        self.crowd = 0
        """How many others there are; see :func:`~protocols.membership.crowd.crowd_size`. The caller keeps it."""
        self.is_paced = False
        """Whether this node keeps a pace, because the channel is full."""
        self._cut_ns = self._begun_ns = -NEVER
        self._is_answered = False

    @property
    def pause_ns(self) -> int:
        """The time between two dials; 0: there need not be any."""
        share_hz = self.share_hz or (FIRST_SHARE_HZ if self.is_paced else 0.0)
        if not share_hz or self.crowd < CROWD:
            return 0
        return int((self.crowd + 1) / share_hz * SECOND)

    @property
    def round_ns(self) -> int:
        """How long another node of the crowd may take to dial all others, however quick our own handshakes are; 0:
        there is no crowd."""
        if self.crowd < CROWD:
            return 0
        return min(int(2 * (self.crowd + 1) ** 2 / FIRST_SHARE_HZ * SECOND), _LONGEST_ROUND_NS)

    def began(self, waiting: list[int], now: int) -> None:
        """Note that a dial begins. ``waiting``: as for :meth:`room_at`."""
        self._begun_ns = now
        if len(waiting) >= self.limit and not (self._is_answered or self.share_hz) and self.crowd >= CROWD:
            self.share_hz = FIRST_SHARE_HZ

    def answered(self, began_ns: int, now: int) -> None:
        """Note that a dial which began at ``began_ns`` was answered."""
        self._is_answered = True
        if now - began_ns > _QUICK_NS:
            self._slow(began_ns, now)
            return
        self.limit = min(self.limit + 1, MOST)
        if self.share_hz or (self.is_paced and self.crowd >= CROWD):
            self.share_hz = (self.share_hz or FIRST_SHARE_HZ) * (_GROWTH if self.is_paced else _FREE_GROWTH)
            if self.share_hz > _FREE_SHARE_HZ:
                self.share_hz = 0.0

    def timed_out(self, began_ns: int, now: int) -> None:
        """Note that a peer which said Hello did not answer a dial that began at ``began_ns``."""
        if now - began_ns > _QUICK_NS:  # not refused by its host
            self._slow(began_ns, now)

    def _slow(self, began_ns: int, now: int) -> None:
        if began_ns < self._cut_ns:  # late for the reason for which the number was halved
            return
        self.limit, self._cut_ns = max(self.limit // 2, FIRST), now
        if self.crowd >= CROWD:
            self.share_hz = max(self.share_hz / 2, LEAST_SHARE_HZ) if self.share_hz else FIRST_SHARE_HZ

    def room_at(self, waiting: list[int], due_ns: int) -> int:
        """From when on a dial that is due at ``due_ns`` may begin, if none is answered before. ``waiting``: when those
        that wait for an answer began, in that order."""
        if len(waiting) >= MOST:
            return NEVER
        if len(waiting) >= self.limit:
            due_ns = max(due_ns, waiting[-self.limit] + _QUICK_NS)
        return max(due_ns, self._begun_ns + self.pause_ns)
