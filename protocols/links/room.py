"""How much of the background one node may send: what readings leave over.

Frames of the background are large and there are always more of them, so they fill any link. A node can't see how full
the links and the channel are. It sees how long frames of realtime lanes take (:mod:`protocols.links.flow`), and it
gives way before readings suffer, as LEDBAT (RFC 6817) does by its own delay. A neighbour is late in a round in which
more than one in ``_FEW`` of its frames was.

There is a rate for each neighbour, and one for all of them together. That of a neighbour is cut by ``_CUT`` in each
round in which it is late. That of all is cut when more than one in ``_FEW`` of them is late, and at least two: then
they share what is full. One neighbour alone has a slow link, and others must not wait for it. In every other round a
rate grows. A cut begins at what was sent in the round, so there is no limit before frames were late. A rate that is not
used does not grow.

On a link that lets small frames pass large ones, and on fast ones, no frame is late, and there is no limit. On others a
piece of 16 KiB makes what comes behind it late, so the background takes about a part in ``_FEW`` of the link.
"""

from typing import Final

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import LATE_NS, Sample

_ROUND_NS: Final = 500 * MS
_HEARTBEAT_NS: Final = 400 * MS
"""Where nobody sends readings, a frame is late after this time: a third of the silence that makes a neighbour
doubtful."""
READINGS_NS: Final = 2 * SECOND
"""Readings went lately for this long."""
_FEW: Final = 4
_SEVERAL: Final = 2
"""With fewer late neighbours, it is not something that they share that is full."""
_CUT: Final = 0.5
_GROWTH: Final = 1.08
"""In each round: it doubles in about five seconds."""
_LEAST_GROWTH: Final = 512.0
_LEAST_BYTES_PER_S: Final = 2_048.0
"""A piece in eight seconds: whoever waits for it must not take this node for silent."""
_ENOUGH: Final = 4.0
"""A rate of so many times what is sent is no limit."""


class Rate:
    """A limit that is cut when readings suffer, and grows while it is used."""

    __slots__ = ("_round_ns", "_sent_bytes", "_tokens", "_turned_ns", "_votes", "bytes_per_s", "cuts",
                 "limited")  # fmt: skip

    def __init__(self) -> None:
        self.limited = False
        """Whether there is a limit."""
        self.bytes_per_s = 0.0
        """The limit, while there is one."""
        self.cuts = 0
        self._tokens = 0.0
        self._turned_ns = self._round_ns = 0
        self._sent_bytes = 0  # in this round
        self._votes: dict[NodeId, list[int]] = {}  # frames to each neighbour in this round, and how many were late

    def sampled(self, peer: NodeId, is_late: bool, least_late: int, is_wanted: bool, now: int) -> None:
        """Take in whether a frame was late. ``least_late``: how many neighbours must be late for a cut; ``is_wanted``:
        whether something waits for the rate."""
        votes = self._votes.setdefault(peer, [0, 0])
        votes[0] += 1
        votes[1] += is_late
        if not self._round_ns:
            self._round_ns = now
        elif now - self._round_ns >= _ROUND_NS:
            self._end_round(least_late, is_wanted, now)

    def _end_round(self, least_late: int, is_wanted: bool, now: int) -> None:
        took_s = (now - self._round_ns) / SECOND
        sent_per_s = self._sent_bytes / took_s
        late = sum(late * _FEW > samples for samples, late in self._votes.values())
        if late >= least_late and late * _FEW > len(self._votes):
            if self._sent_bytes and took_s < 2.0:
                self._fill(now)
                before = min(self.bytes_per_s, sent_per_s) if self.limited else sent_per_s
                self.bytes_per_s = max(before * _CUT, _LEAST_BYTES_PER_S)
                self.limited = True
                self.cuts += 1
        elif self.limited and 2 * sent_per_s >= self.bytes_per_s:
            self._fill(now)
            self.bytes_per_s = max(self.bytes_per_s * _GROWTH, self.bytes_per_s + _LEAST_GROWTH)
        elif self.limited and not is_wanted and self.bytes_per_s > _ENOUGH * max(sent_per_s, 16_384.0):
            self.limited = False
        self._round_ns, self._sent_bytes = now, 0
        self._votes.clear()

    def _fill(self, now: int) -> None:
        if self.limited:
            self._tokens = min(self._tokens + (now - self._turned_ns) * self.bytes_per_s / SECOND, 0.0)
        self._turned_ns = now

    def has_turn(self, now: int) -> bool:
        """Whether a frame may go now."""
        self._fill(now)
        return not self.limited or self._tokens >= 0.0

    def spend(self, size_bytes: int) -> None:
        """Note that a frame goes."""
        if self.limited:
            self._tokens -= size_bytes
        self._sent_bytes += size_bytes

    def next_turn_at(self) -> int:
        """When a frame may go."""
        if not self.limited or self._tokens >= 0.0:
            return self._turned_ns
        return self._turned_ns + int(-self._tokens * SECOND / self.bytes_per_s) + 1


class BackgroundRoom:
    """The room of one node. All instants are monotonic nanoseconds."""

    __slots__ = ("_cuts", "_waiting", "of_node", "together")

    def __init__(self) -> None:
        self.together = Rate()
        """That of all neighbours together."""
        self.of_node: dict[NodeId, Rate] = {}
        self._cuts = 0  # of neighbours that are gone
        self._waiting: dict[NodeId, None] = {}  # whose turn it is stands first

    @property
    def cuts(self) -> int:
        """How often a rate was cut."""
        return self._cuts + self.together.cuts + sum(rate.cuts for rate in self.of_node.values())

    @property
    def is_awaited(self) -> bool:
        """Whether a lane waits for its turn."""
        return bool(self._waiting)

    def sampled(self, peer: NodeId, sample: Sample, with_readings: bool, now: int) -> None:
        """Take in how long a frame of the realtime lane of a neighbour took, on which readings went lately, or
        heartbeats alone."""
        is_late = sample[0] > LATE_NS if with_readings else sample[1] > _HEARTBEAT_NS
        self._rate_of(peer).sampled(peer, is_late, 1, peer in self._waiting, now)
        self.together.sampled(peer, is_late, _SEVERAL, bool(self._waiting), now)

    def _rate_of(self, peer: NodeId) -> Rate:
        rate = self.of_node.get(peer)
        if rate is None:
            rate = self.of_node[peer] = Rate()
        return rate

    def take(self, peer: NodeId, size_bytes: int, now: int) -> bool:
        """Whether a frame for a neighbour may go now. If not, its lane is in :meth:`ready` when its turn has come."""
        own = self._rate_of(peer)
        if not (self.together.has_turn(now) and own.has_turn(now)):
            self._waiting.setdefault(peer)
            return False
        self._waiting.pop(peer, None)
        self.together.spend(size_bytes)
        own.spend(size_bytes)
        return True

    def ready(self, now: int) -> list[NodeId]:
        """The neighbours for which frames may go now. One whose lane takes none meanwhile loses its turn."""
        if not self._waiting or not self.together.has_turn(now):
            return []
        ready = [peer for peer in self._waiting if self._rate_of(peer).has_turn(now)]
        if self.together.limited:
            ready = ready[:1]
        for peer in ready:
            del self._waiting[peer]
        return ready

    def forget(self, peer: NodeId) -> None:
        """A neighbour is gone."""
        self._waiting.pop(peer, None)
        if (rate := self.of_node.pop(peer, None)) is not None:
            self._cuts += rate.cuts

    def next_turn_at(self) -> int:
        """When :meth:`ready` has something at the latest; ``NEVER`` when nothing waits."""
        turn_ns = min((self._rate_of(peer).next_turn_at() for peer in self._waiting), default=NEVER)
        return max(turn_ns, self.together.next_turn_at())
