"""How fast one node may send, when its lanes slow down together: it then shares a channel that is full.

A node can't see the radio. It sees how long it takes until its frames are confirmed (:mod:`protocols.links.flow`). One
lane that is slow has a slow link, and its own window is enough. When most frames of all lanes are late, the channel is
full: whatever is sent waits behind what others send, TCP repeats what was not lost, and the channel carries less the
more is asked of it. So the node offers less to all of its lanes together.

The rate, in frames a second, follows additive increase and multiplicative decrease, which brings nodes that see the
same channel to equal shares (Chiu and Jain, 1989). It begins with what the node has sent in the last round, times
``_CUT``. A round in which most samples were slow cuts it, but what was sent before a cut says nothing about it. In any
other round it grows, and faster the longer there was no cut, so that a channel that has become free is used soon. Once
it is far above what the node wants to send, there is no limit any more.

Of the alternatives, the reactive table of ETSI TS 102 687 and its adaptive approach (LIMERIC) need the busy ratio,
which a node over TCP does not know; a fixed window for each lane is too much with thirty of them.

Lanes take turns in the order in which they began to wait. Urgent readings don't wait, but count.
"""

from typing import Final

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import SLOW_NS

_ROUND_NS: Final = 200 * MS
_LONGEST_ROUND_NS: Final = SECOND
"""In a longer time without a sample nothing was sent that could tell."""
_CUT: Final = 0.85
_GROWTH: Final = 10.0
"""Frames a second, in each second."""
_CALM_S: Final = 1.0
"""So long after a cut, growth becomes faster: by ``_GROWTH`` for each further half second …"""
_NEAR_BELOW: Final = 0.8
_NEAR_ABOVE: Final = 1.2
"""… but not near the rate at which the channel was full before. That is where a rate should be for long, as in CUBIC
(RFC 9438). Above it the channel has become larger."""
_FREE_S: Final = 2.0
_LEAST_RATE: Final = 2.0
_BURST: Final = 2.0
"""Frames that may follow one another at once."""


class Pace:
    """The pace of one node. All instants are monotonic nanoseconds."""

    __slots__ = (
        "_cut_ns", "_filled_ns", "_good", "_granted", "_peak", "_round_ns", "_sent", "_slow", "_tokens", "_waiting",
        "active", "cuts", "rate",
    )  # fmt: skip

    def __init__(self) -> None:
        self.active = False
        """Whether there is a limit."""
        self.rate = 0.0
        """Frames a second, while there is a limit."""
        self.cuts = 0
        self._peak = 0.0  # the rate that was cut first in the last series of cuts: where the channel was full
        self._tokens = 0.0
        self._filled_ns = self._round_ns = self._cut_ns = -NEVER
        self._sent = self._good = self._slow = 0  # in this round
        self._waiting: dict[NodeId, None] = {}
        self._granted: dict[NodeId, None] = {}

    # --- what is seen ----------------------------------------------------------------------------------------------
    def sampled(self, took_ns: int, now: int) -> None:
        """Note how long a frame of some lane took until it was confirmed, or that it is late already."""
        if now - took_ns >= self._cut_ns:
            if took_ns > SLOW_NS:
                self._slow += 1
            else:
                self._good += 1
        self._end_round(now)

    def _end_round(self, now: int) -> None:
        took_ns = now - self._round_ns
        if took_ns < _ROUND_NS:
            return
        slow, good = self._slow, self._good
        sent = self._sent if self.active else slow + good
        self._slow = self._good = self._sent = 0
        self._round_ns = now
        if took_ns > _LONGEST_ROUND_NS:
            return
        sent_hz = sent * SECOND / took_ns
        if slow > good:
            self._cut(sent_hz, now)
        elif self.active:
            calm_s = (now - self._cut_ns) / SECOND
            near = _NEAR_BELOW * self._peak < self.rate < _NEAR_ABOVE * self._peak
            haste = 1.0 if near else 1.0 + 2.0 * max(0.0, calm_s - _CALM_S)
            self.rate += _GROWTH * haste * took_ns / SECOND
            if not self._waiting and self.rate > 2.0 * sent_hz and calm_s > _FREE_S:
                self.active = False

    def _cut(self, sent_hz: float, now: int) -> None:
        if self.active:
            if now - self._cut_ns > _CALM_S * SECOND:
                self._peak = self.rate
            self.rate *= _CUT
        else:
            self.active, self.rate = True, sent_hz * _CUT
            self._tokens, self._filled_ns = 0.0, now
        self.rate = max(self.rate, _LEAST_RATE)
        self.cuts += 1
        self._cut_ns = now

    # --- turns -----------------------------------------------------------------------------------------------------
    def sent(self, now: int) -> None:
        """Note that a frame goes without a turn."""
        self._sent += 1
        if self.active:
            self._fill(now)
            self._tokens = max(self._tokens - 1.0, -self.rate)

    def take_turn(self, node: NodeId, now: int) -> bool:
        """Whether a frame may go to a neighbour now. If not, it is in line from now on."""
        if node in self._granted:
            del self._granted[node]
            self._sent += 1
            return True
        self._fill(now)
        if self._tokens >= 1.0 and not self._waiting:
            self._tokens -= 1.0
            self._sent += 1
            return True
        self._waiting[node] = None
        return False

    def forget(self, node: NodeId) -> None:
        """A neighbour has no lane any more."""
        self._waiting.pop(node, None)
        self._granted.pop(node, None)

    def turns(self, now: int) -> list[NodeId]:
        """Grant the turns that are due. Returns who has one."""
        if not self._waiting:
            return []
        self._fill(now)
        granted: list[NodeId] = []
        while self._waiting and (self._tokens >= 1.0 or not self.active):
            node = next(iter(self._waiting))
            del self._waiting[node]
            self._granted[node] = None
            self._tokens -= 1.0
            granted.append(node)
        return granted

    def next_turn_at(self) -> int:
        """When :meth:`turns` has to be called next."""
        if not self._waiting:
            return NEVER
        if not self.active:
            return self._filled_ns
        return self._filled_ns + int(max(0.0, 1.0 - self._tokens) / self.rate * SECOND) + 1

    def _fill(self, now: int) -> None:
        self._tokens = min(self._tokens + (now - self._filled_ns) / SECOND * self.rate, _BURST)
        self._filled_ns = now

    def gap_ns(self, lanes: int) -> int:
        """How far apart two frames on one of ``lanes`` lanes usually are because of the limit; 0: there is none."""
        return int(lanes / self.rate * SECOND) if self.active else 0
