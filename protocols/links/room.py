"""How much of the background one node may send on all lanes together: what readings leave over.

Frames of the background are large and there are always more of them, so they fill any link. A node can't see how full
the links and the channel are. It sees how long frames of realtime lanes take (:mod:`protocols.links.flow`), and it
gives way before readings suffer, as LEDBAT (RFC 6817) does by its own delay. In each round in which more than one in
``_FEW`` of them was late, the rate is cut by ``_CUT``; in every other one it grows. A cut begins at what was sent in
the round, so there is no limit before frames were late. A rate that is not used does not grow.

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
_CUT: Final = 0.5
_GROWTH: Final = 1.08
"""In each round: it doubles in about five seconds."""
_LEAST_GROWTH: Final = 512.0
_LEAST_BYTES_PER_S: Final = 2_048.0
"""A piece in eight seconds: whoever waits for it must not take this node for silent."""
_ENOUGH: Final = 4.0
"""A rate of so many times what is sent is no limit."""


class BackgroundRoom:
    """The room of one node. All instants are monotonic nanoseconds."""

    __slots__ = ("_late", "_round_ns", "_samples", "_sent_bytes", "_tokens", "_turned_ns", "_waiting", "bytes_per_s",
                 "cuts", "limited")  # fmt: skip

    def __init__(self) -> None:
        self.limited = False
        """Whether there is a limit."""
        self.bytes_per_s = 0.0
        """The limit, while there is one."""
        self.cuts = 0
        self._tokens = 0.0
        self._turned_ns = self._round_ns = 0
        self._sent_bytes = self._samples = self._late = 0  # in this round
        self._waiting: dict[NodeId, None] = {}  # whose turn it is stands first

    def sampled(self, sample: Sample, with_readings: bool, now: int) -> None:
        """Take in how long a frame of a realtime lane took, on which readings went lately, or heartbeats alone."""
        self._samples += 1
        self._late += sample[0] > LATE_NS if with_readings else sample[1] > _HEARTBEAT_NS
        if not self._round_ns:
            self._round_ns = now
        elif now - self._round_ns >= _ROUND_NS:
            self._end_round(now)

    def _end_round(self, now: int) -> None:
        took_s = (now - self._round_ns) / SECOND
        sent_per_s = self._sent_bytes / took_s
        if self._late * _FEW > self._samples:
            if self._sent_bytes and took_s < 2.0:
                self._fill(now)
                before = min(self.bytes_per_s, sent_per_s) if self.limited else sent_per_s
                self.bytes_per_s = max(before * _CUT, _LEAST_BYTES_PER_S)
                self.limited = True
                self.cuts += 1
        elif self.limited and 2 * sent_per_s >= self.bytes_per_s:
            self._fill(now)
            self.bytes_per_s = max(self.bytes_per_s * _GROWTH, self.bytes_per_s + _LEAST_GROWTH)
        elif self.limited and not self._waiting and self.bytes_per_s > _ENOUGH * max(sent_per_s, 16_384.0):
            self.limited = False
        self._round_ns, self._sent_bytes, self._samples, self._late = now, 0, 0, 0

    def _fill(self, now: int) -> None:
        if self.limited:
            self._tokens = min(self._tokens + (now - self._turned_ns) * self.bytes_per_s / SECOND, 0.0)
        self._turned_ns = now

    def take(self, peer: NodeId, size_bytes: int, now: int) -> bool:
        """Whether a frame for a neighbour may go now. If not, its lane is in :meth:`ready` when its turn has come."""
        if self.limited:
            self._fill(now)
            if self._tokens < 0.0:
                self._waiting.setdefault(peer)
                return False
            self._waiting.pop(peer, None)
            self._tokens -= size_bytes
        self._sent_bytes += size_bytes
        return True

    def ready(self, now: int) -> list[NodeId]:
        """The neighbours for which frames may go now. One whose lane takes none meanwhile loses its turn."""
        self._fill(now)
        if not self._waiting or (self.limited and self._tokens < 0.0):
            return []
        ready = list(self._waiting)[: 1 if self.limited else None]
        for peer in ready:
            del self._waiting[peer]
        return ready

    def forget(self, peer: NodeId) -> None:
        """A neighbour is gone, or nothing waits for it any more."""
        self._waiting.pop(peer, None)

    def next_turn_at(self) -> int:
        """When :meth:`ready` has something at the latest; ``NEVER`` when nothing waits."""
        if not self._waiting:
            return NEVER
        if not self.limited or self._tokens >= 0.0:
            return self._turned_ns
        return self._turned_ns + int(-self._tokens * SECOND / self.bytes_per_s) + 1
