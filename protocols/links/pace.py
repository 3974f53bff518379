"""How fast one node may send, when its lanes slow down together: it then shares a channel that is full.

A node can't see the radio. It sees how long it takes until its frames are confirmed (:mod:`protocols.links.flow`). One
lane that is slow has a slow link, and its own window is enough. When many lanes become slow, the channel is full:
whatever is sent waits behind what others send, TCP repeats what was not lost, and the channel carries less the more is
asked of it. So the node offers less to all of its lanes together.

Each lane that is measured in a round has one vote, by its worst sample, so a neighbour that asks for more has no more
to say. A lane is slow when a frame was slow, and once the node keeps a pace also when one was late: a hazard needs a
channel that is not quite full, but a few busy neighbours are no reason to begin.

The rate, in segments a second, follows additive increase and multiplicative decrease, which brings nodes that see the
same channel to equal shares (Chiu and Jain, 1989). It begins at about what was sent in the last round, times ``_CUT``.
A round in which enough lanes were slow cuts it; what was sent before the last cut doesn't count. A cut also stops turns
for ``_DRAIN_S``, in which the channel carries off what waits on it. Otherwise frames would be late for seconds, and the
rate would be cut again and again.

In any other round the rate grows, by the same amount in all nodes together however many there are. It grows faster the
longer there was no cut, so that a channel that has become free is used soon, and hardly at all for ``_HOLD_S`` near the
rate at which the channel was full before: that is where a rate should be for long, as in CUBIC (RFC 9438), and where a
hazard still finds room. Once it is far above what the node wants to send, there is no limit any more. A rate that is as
low as it may be, and still meets late frames for ``_VAIN_S``, is not to blame for them, unless the node is in a crowd;
there is no limit then for ``_TRUCE_S``.

Of the alternatives, the reactive table of ETSI TS 102 687 and its adaptive approach (LIMERIC) need the busy ratio,
which a node over TCP does not know; a fixed window for each lane is too much with thirty of them.

Lanes take turns in the order in which they began to wait. A turn is one segment: what else waits for the same neighbour
goes along in it, and what is longer costs more. Urgent readings don't wait, but count; a quarter of the rate is left
for turns however many there are. What waits for the same neighbour goes along with an urgent reading too, so that lane
is the last in line then. Otherwise, in a crowd that sends many hazards, the turns that are left go to lanes that have
just had a hazard, and a lane that gets none waits for half a minute. What goes once to all who listen
(:mod:`protocols.datagrams.audience`) is worth as many frames as there are listeners, so it has every second turn if it
needs them.
"""

from typing import Final

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import LATE_NS, SLOW_NS, Sample

_ROUND_NS: Final = 200 * MS
_LONGEST_ROUND_NS: Final = SECOND
"""In a longer time without a sample nothing was sent that could tell."""
_CUT: Final = 0.7
_DRAIN_S: Final = 0.3
"""Two hundred frames that wait on a channel for 1,300 a second need half of this time."""
_CROWD: Final = 10
"""With so many lanes it is enough that one in ``_FEW`` becomes slow: a node with a small share of a full channel sees
little of it."""
_FEW: Final = 7
_FRESH_NS: Final = 5 * SECOND
"""A lane becomes slow when it was good so lately. One that is slow for longer has a slow link, unless most are."""
_GROWTH: Final = 80.0
"""Segments a second in each second, of a node and its neighbours together. Each takes its part of it."""
_CALM_S: Final = 1.0
"""So long after a cut, growth becomes faster …"""
_HASTE: Final = 2.0
"""… by so many times the usual for each further second …"""
_NEAR_BELOW: Final = 0.7
_NEAR_ABOVE: Final = 1.2
"""… but not near the rate at which the channel was full before. Above it the channel has become larger."""
_HOLD_S: Final = 10.0
_HELD: Final = 0.1
"""While the rate is held near there, it grows by this part of the usual."""
_FREE_S: Final = 2.0
_LEAST_RATE: Final = 2.0
_LEAST_RATE_OF_LANE: Final = 0.5
"""No neighbour has to wait for its turn for longer than two seconds, lest it takes this node for dead …"""
_LEAST_OF_ALL: Final = 450.0
"""… unless a node and its neighbours would send more than so much together, in segments a second."""
_NEARLY_LEAST: Final = 1.15
"""A rate that is less than so many times the least one is about the least."""
_VAIN_S: Final = 5.0
_TRUCE_S: Final = 60.0
_RESERVE: Final = 4.0
"""One frame in so many is for a turn, even while urgent readings take all of the rate."""
_LATELY: Final = 128.0
"""Frames over which the part of turns is reckoned."""
_USUAL_BYTES: Final = 500
"""A segment with so many bytes costs a channel twice what an empty one does."""
_LONGEST: Final = 5.0
"""The most turns that one frame costs."""
_BURST: Final = 2.0
"""Frames that may follow one another at once."""


def _least_rate(lanes: int) -> float:
    return max(_LEAST_RATE, min(_LEAST_RATE_OF_LANE * lanes, _LEAST_OF_ALL / (lanes + 1)))


def longest_gap_ns(lanes: int) -> int:
    """How far apart two frames on one lane usually are when a node with so many lanes sends as slowly as it may."""
    return int(lanes / _least_rate(lanes) * SECOND)


def crowd_gap_ns(lanes: int) -> int:
    """As :func:`longest_gap_ns`; 0: so few lanes are no crowd."""
    return longest_gap_ns(lanes) if lanes >= _CROWD else 0


EVERYBODY: Final = NodeId("*")
"""Stands for all listeners where a peer is named. No node has this id."""


class Pace:
    """The pace of one node. All instants are monotonic nanoseconds."""

    __slots__ = (
        "_cut_ns", "_filled_ns", "_good_ns", "_granted", "_new", "_peak", "_round_ns", "_samples", "_sent", "_tokens",
        "_truce_ns", "_turned_ns", "_turns", "_vain_ns", "_votes", "_waiting", "_was_shared", "active", "cuts", "ended",
        "lanes", "rate",
    )  # fmt: skip

    def __init__(self) -> None:
        self.active = False
        """Whether there is a limit."""
        self.rate = 0.0
        """Frames a second, while there is a limit."""
        self.cuts = 0
        self.lanes = 0
        """How many realtime lanes there are."""
        self.ended = False
        """Whether the node is leaving, and sends what is left at once."""
        self._peak = 0.0  # the rate that was cut first in the last series of cuts: where the channel was full
        self._tokens = 0.0
        self._filled_ns = self._round_ns = self._cut_ns = self._turned_ns = self._truce_ns = -NEVER
        self._vain_ns = NEVER  # since when the rate is as low as it may be, and frames are late
        self._sent = self._samples = 0  # in this round
        self._votes: dict[NodeId, bool] = {}  # whether a frame to a neighbour was slow, in this round
        self._good_ns: dict[NodeId, int] = {}  # when the lane to a neighbour was good last
        self._waiting: dict[NodeId, None] = {}
        self._granted: dict[NodeId, None] = {}
        self._was_shared = False  # whether the last turn was that of all who listen
        self._new: set[NodeId] = set()  # those that got nothing yet
        self._turns = 1.0  # the part of the last frames that had turns

    # --- what is seen ----------------------------------------------------------------------------------------------
    def sampled(self, node: NodeId, sample: Sample, now: int) -> None:
        """Note how late a frame to a neighbour was."""
        late_ns, took_ns = sample
        if late_ns <= LATE_NS or late_ns > SLOW_NS:  # the others are most often reported again
            self._samples += 1
        if now - took_ns >= self._cut_ns:
            self._votes[node] = late_ns > (LATE_NS if self.active else SLOW_NS) or self._votes.get(node, False)
        self._end_round(now)

    def _end_round(self, now: int) -> None:
        took_ns = now - self._round_ns
        if took_ns < _ROUND_NS:
            return
        is_full = self._is_full(now)
        sent = self._sent if self.active else self._samples
        self._sent = self._samples = 0
        self._votes.clear()
        self._round_ns = now
        if took_ns > _LONGEST_ROUND_NS:
            return
        sent_hz = sent * SECOND / took_ns
        if is_full:
            self._cut(sent_hz, now)
        elif self.active:
            self._vain_ns = NEVER
            calm_s = (now - self._cut_ns) / SECOND
            near = _NEAR_BELOW * self._peak < self.rate < _NEAR_ABOVE * self._peak
            held = _HELD if calm_s < _HOLD_S else 1.0
            haste = held if near else 1.0 + _HASTE * max(0.0, calm_s - _CALM_S)
            self.rate += _GROWTH / (self.lanes + 1) * haste * took_ns / SECOND
            if not self._waiting and self.rate > 2.0 * sent_hz and calm_s > _FREE_S:
                self.active = False

    def _is_full(self, now: int) -> bool:
        """Whether the votes of a round say that the channel is full."""
        slow = fresh = 0
        for node, is_slow in self._votes.items():
            if not is_slow:
                self._good_ns[node] = now
                continue
            slow += 1
            fresh += now - self._good_ns.get(node, -NEVER) < _FRESH_NS
        votes = len(self._votes)
        return (slow > 1 and 2 * slow > votes) or (self.lanes >= _CROWD and fresh > 1 and _FEW * fresh > votes)

    def _cut(self, sent_hz: float, now: int) -> None:
        least = _least_rate(self.lanes)
        if self.ended or now < self._truce_ns:
            return
        if self.active:
            if now - self._cut_ns > _CALM_S * SECOND:
                self._peak = self.rate
            self.rate *= _CUT
        else:
            self.active, self.rate = True, sent_hz * _CUT
            self._tokens, self._filled_ns = 0.0, now
        self.cuts += 1
        self._cut_ns = now
        self._fill(now)
        self._tokens = min(self._tokens, -self.rate * _DRAIN_S)
        if self.rate > least:
            self._vain_ns = NEVER
            return
        self.rate = least
        self._vain_ns = min(self._vain_ns, now)
        if self.lanes < _CROWD and now - self._vain_ns > _VAIN_S * SECOND:
            self.active, self._truce_ns, self._vain_ns = False, now + int(_TRUCE_S * SECOND), NEVER

    def end(self) -> None:
        """Keep no pace any more: the node is leaving."""
        self.ended, self.active = True, False

    # --- turns -----------------------------------------------------------------------------------------------------
    def opened(self, node: NodeId) -> None:
        """A neighbour has a lane. The first frame on it does not wait, because it says what this node wants, and that
        the node lives; each handshake, which costs a channel six times as much, brings one such frame."""
        if self.active:
            self._new.add(node)

    def sent(self, node: NodeId, now: int, with_all: bool) -> None:
        """Note that a frame goes to a neighbour without a turn. ``with_all``: it takes along what waits there, so that
        the neighbour is behind all others in the line now."""
        self._sent += 1
        if self.active:
            self._turns -= self._turns / _LATELY
            self._new.discard(node)
            if with_all and node in self._waiting:
                del self._waiting[node]
                self._waiting[node] = None
            self._fill(now)
            self._charge(1.0, float(self.lanes) if self.is_least else _BURST)

    def take_turn(self, node: NodeId, now: int) -> bool:
        """Whether a frame may go to a neighbour now. If not, it is in line from now on."""
        if node in self._granted:
            del self._granted[node]
            self._sent += 1
            return True
        self._fill(now)
        if (self._tokens >= 1.0 and not self._waiting) or node in self._new:
            self._take_token(now)
            self._new.discard(node)
            self._sent += 1
            return True
        self._waiting[node] = None
        return False

    def took_long(self, size_bytes: int) -> None:
        """A frame that had its turn is longer than usual, and takes the time of several."""
        if self.active:
            self._charge(size_bytes / _USUAL_BYTES, _LONGEST)

    def forget(self, node: NodeId) -> None:
        """A neighbour has no lane any more."""
        for of_node in (self._waiting, self._granted, self._good_ns, self._votes):
            of_node.pop(node, None)
        self._new.discard(node)

    def turns(self, now: int) -> list[NodeId]:
        """Grant the turns that are due. Returns who has one."""
        if not self._waiting:
            return []
        self._fill(now)
        granted: list[NodeId] = []
        while self._waiting and (self._tokens >= 1.0 or now >= self._reserved_ns() or not self.active):
            node = next(iter(self._waiting))
            if EVERYBODY in self._waiting and not self._was_shared:
                node = EVERYBODY
            self._was_shared = node == EVERYBODY
            del self._waiting[node]
            self._granted[node] = None
            self._take_token(now)
            granted.append(node)
        return granted

    def next_turn_at(self) -> int:
        """When :meth:`turns` has to be called next."""
        if not self._waiting:
            return NEVER
        if not self.active:
            return self._filled_ns
        filled_ns = self._filled_ns + int(max(0.0, 1.0 - self._tokens) / self.rate * SECOND) + 1
        return min(filled_ns, max(self._reserved_ns(), self._filled_ns))

    def _reserved_ns(self) -> int:
        return self._turned_ns + int(_RESERVE / self.rate * SECOND) + 1

    def _take_token(self, now: int) -> None:
        self._turns += (1.0 - self._turns) / _LATELY
        self._charge(1.0, _BURST)
        self._turned_ns = now

    def _charge(self, turns: float, most: float) -> None:
        """Take turns, and owe ``most`` of them at the most."""
        if self._tokens > -most:
            self._tokens = max(self._tokens - turns, -most)

    def _fill(self, now: int) -> None:
        self._tokens = min(self._tokens + (now - self._filled_ns) / SECOND * self.rate, _BURST)
        self._filled_ns = now

    @property
    def is_least(self) -> bool:
        """Whether the node is about as slow as it may be. If its frames are late all the same, the least is too much
        with what is urgent on top, so that all of that counts, and segments have to be small."""
        return self.active and self.rate < _NEARLY_LEAST * _least_rate(self.lanes)

    def gap_ns(self) -> int:
        """How far apart two frames on one lane usually are because of the limit; 0: there is none."""
        return int(self.lanes / self.rate * SECOND) if self.active else 0

    def line_ns(self) -> int:
        """How long a lane usually waits for its turn because of the limit, while urgent readings pass it; 0: there is
        no limit."""
        return int(self.lanes / (self.rate * max(self._turns, 1 / _RESERVE)) * SECOND) if self.active else 0
