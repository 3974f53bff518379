"""How long frames are on the air, and what it costs that nodes in range of one another share it.

A frame of 802.11p (10 MHz; IEEE 802.11-2020, clause 17) is 40 µs of preamble and header, then symbols of 8 µs. With its
link-layer header a packet of 350 bytes takes 560 µs at 6 Mb/s, and one of 1500 bytes 2.1 ms.

:class:`Channel` adds up what each node sends in windows of 100 ms (as ETSI TS 102 687 measures the channel busy ratio).
What a node heard in the last whole window, from itself and all nodes within range, is its *offered load* G. From G
follow:

- the **busy share** ``G / (1 + (G / 0.95)^4)^(1/4)``: it is G itself while there is room, because transmitters wait for
  one another, and it saturates below 1, because they leave pauses of at least 58 µs;
- the **wait** for the others, which is that of an M/D/1 queue: ``busy / (2 (1 - busy))`` frames of 560 µs in the mean,
  drawn between nothing and twice that, where ``busy`` leaves out what the node sent itself;
- the **stretch** of the own transmissions from G = 1 on: every node gets the fair share (max-min) of the channel that
  lets the loads add up to 1, so that a queue grows at a node that wants more than that. What the channel had no room
  for in one window is load of the next, and comes first there. The loads and queues of a full channel follow from one
  another, so all nodes together never carry more than it has;
- **collisions** at the receiver with nodes that the sender can't hear: ``1 - exp(-2 h busy)`` as in unslotted ALOHA,
  where h is the share of the receiver's surroundings that hides such nodes, see :func:`hidden_share`.

Each of these costs one look at the node's entry per frame. The entry is made once per node and window from those of its
neighbours, and again within the window as the node sends more, in case the window fills before its end. Sums over
square cells would be cheaper, but along a road between two rows of cells they are a third off.

Left out: collisions within range (same back-off slot), growing back-off windows, and the priorities of 802.11e.
"""

import math
from collections.abc import Callable
from typing import Final

from protocols.base.limits import MS, SECOND

WINDOW_NS: Final = 100 * MS
LINK_HEADER_BYTES: Final = 36
"""The 802.11 header and check sequence, and LLC/SNAP."""
ACKNOWLEDGED_NS: Final = 96_000
"""SIFS (32 µs) and the link layer's acknowledgement (64 µs) behind a unicast frame."""
MOST_BUSY: Final = 0.95
HIDDEN_SHARE: Final = 0.61
"""The share of a disc that lies outside an equal disc whose centre is on its edge: 1 - 2/3 + sqrt(3) / (2 pi)."""
_NO_COLLISION: Final = 0.30
_ALL_COLLIDE: Final = 0.43
_PREAMBLE_NS: Final = 40_000
_SYMBOL_NS: Final = 8_000
_SERVICE_AND_TAIL_BITS: Final = 22
_NEAR_NS: Final = SECOND
"""How long it is remembered who hears whom: loads are means, and no vehicle drives far in a second."""
_USUAL_FRAME_NS: Final = 560_000
_LOOK_NS: Final = WINDOW_NS // 32
"""After so much airtime of its own within a window, a node looks whether all have filled the window by now."""


def airtime_ns(size_bytes: int, bit_rate_mbps: float) -> int:
    """The airtime of one frame. ``size_bytes`` counts from the IP header on."""
    bits = (size_bytes + LINK_HEADER_BYTES) * 8 + _SERVICE_AND_TAIL_BITS
    return _PREAMBLE_NS + math.ceil(bits / (bit_rate_mbps * _SYMBOL_NS / 1_000)) * _SYMBOL_NS


def hidden_share(distance_share: float) -> float:
    """The share of a receiver's surroundings that the sender can't hear and that spoils its frame. ``distance_share``:
    how far both are from one another, 1 at the end of the range.

    What is hidden grows nearly linearly with the distance. A frame outlives an interferer that is 10 dB weaker (2.3
    times as far away at a path loss exponent of 2.75), so close by, all hidden nodes are too far away to do harm.
    """
    if distance_share < _ALL_COLLIDE:
        rise = (distance_share - _NO_COLLISION) / (_ALL_COLLIDE - _NO_COLLISION)
        return HIDDEN_SHARE * _ALL_COLLIDE * max(rise, 0.0)
    return HIDDEN_SHARE * distance_share


def fair_share(loads: list[float]) -> float:
    """The most that one node may have so that the sum of ``loads``, each cut to it, is 1; infinite when the sum is
    less."""
    left, waiting = 1.0, len(loads)
    for load in sorted(loads):
        if load * waiting > left:
            return left / waiting
        left -= load
        waiting -= 1
    return math.inf


def _busy(offered: float) -> float:
    squared = (offered / MOST_BUSY) * (offered / MOST_BUSY)  # compiled, ** costs as much as everything else here
    return offered / math.sqrt(math.sqrt(1 + squared * squared))


class Transmitter:
    """One node on the channel: what it sends, and what it heard in the last whole window."""

    __slots__ = (
        "asked_ns", "bulk_free_ns", "collided", "free_ns", "full", "heard_ns", "known", "look_ns", "near",
        "sent_ns", "stretch", "wait_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sent_ns = 0
        """Its airtime in the window that runs, with what the last one had no room for once it is known …"""
        self.asked_ns = 0
        """… and in the last window …"""
        self.heard_ns = 0
        """… of which no more than a whole window is heard."""
        self.near: list[Transmitter] | None = None
        self.free_ns = 0
        """When it has finished its messages of one segment …"""
        self.bulk_free_ns = 0
        """… and its messages of several segments."""
        self.known = False
        """Whether the following fields are of the last window. Otherwise :meth:`Channel.hear` has to make them."""
        self.wait_ns = 0
        """The longest that a frame waits for the others."""
        self.collided = 0.0
        """Times the hidden share this is the mean number of collisions of one frame that comes to this node."""
        self.look_ns = 0
        """When it has sent as much in the window that runs, :meth:`Channel.look` is called before it sends more."""
        self.full = False
        """Whether the channel is full. If so, all that it sends takes ``stretch`` times the airtime that it costs the
        channel, acknowledgements by others included."""
        self.stretch = 1.0


class Channel:
    """The airtime of all nodes. Before a caller adds to ``sent_ns``, it calls :meth:`turn` when ``now_ns >=
    turn_ns``."""

    def __init__(self, nodes: int, neighbours: Callable[[int], list[int]]) -> None:
        self.transmitters = [Transmitter() for _ in range(nodes)]
        self.turn_ns = WINDOW_NS
        self._neighbours = neighbours
        self._near_until_ns = 0
        self._much = False
        """Whether all nodes together asked for a whole window, without which no channel is full."""

    def turn(self, now_ns: int) -> None:
        """Begin the window that ``now_ns`` is in."""
        while self.turn_ns <= now_ns:
            asked_ns = 0
            for air in self.transmitters:
                asked_ns += air.sent_ns + air.heard_ns
            if asked_ns:
                self._close()
                self.turn_ns += WINDOW_NS
            else:
                self.turn_ns += ((now_ns - self.turn_ns) // WINDOW_NS + 1) * WINDOW_NS
            for air in self.transmitters:
                air.known = False
                air.look_ns = 0
        if self.turn_ns > self._near_until_ns:
            for air in self.transmitters:
                air.near = None
            self._near_until_ns = self.turn_ns + _NEAR_NS

    def _close(self) -> None:
        """End a window."""
        if self._much:  # otherwise nothing is left of the window before
            for number, air in enumerate(self.transmitters):
                if air.heard_ns and not air.known:
                    near = air.near
                    self.hear(number)
                    air.near = near
        heard_ns = 0
        for air in self.transmitters:
            air.asked_ns = air.sent_ns
            air.heard_ns = min(air.sent_ns, WINDOW_NS)
            air.sent_ns = 0
            heard_ns += air.heard_ns
        self._much = heard_ns >= WINDOW_NS

    def hear(self, node: int) -> None:
        """Make known what ``node`` heard in the last whole window."""
        air = self.transmitters[node]
        near = air.near = self._near(node)
        others_ns = 0
        for other in near:
            others_ns += other.heard_ns
        air.known = True
        if others_ns:
            heard = _busy(others_ns / WINDOW_NS)
            air.wait_ns = int(heard / (1 - heard) * _USUAL_FRAME_NS)
            air.collided = 2 * heard
        else:
            air.wait_ns = 0
            air.collided = 0.0
        was_full = air.full
        air.full, air.stretch = False, 1.0
        if air.heard_ns + others_ns >= WINDOW_NS:
            self._fill(air, [air.heard_ns, *[other.heard_ns for other in near if other.heard_ns]])
            self._go_on(air, max(air.asked_ns - int(WINDOW_NS / air.stretch), 0))
        elif was_full:
            self._go_on(air, 0)
        air.look_ns = air.sent_ns + _LOOK_NS

    def busy_share(self, node: int) -> float:
        """The share of the last whole window that was busy for ``node``. Asking changes nothing."""
        heard_ns = self.transmitters[node].heard_ns
        for other in self._near(node):
            heard_ns += other.heard_ns
        return _busy(heard_ns / WINDOW_NS)

    def _near(self, node: int) -> list[Transmitter]:
        near = self.transmitters[node].near
        return near if near is not None else [self.transmitters[other] for other in self._neighbours(node)]

    def look(self, node: int) -> None:
        """Take in what ``node`` heard, if it has not been, and stretch what it sends in the rest of a window that is
        full before its end. Otherwise nodes that begin to send much all at once would send at once what the channel
        needs seconds for, and nothing in these seconds."""
        air = self.transmitters[node]
        if not air.known:
            self.hear(node)
            return
        air.look_ns = air.sent_ns + _LOOK_NS
        near = self._near(node)
        sent_ns = air.sent_ns
        for other in near:
            sent_ns += other.sent_ns
        if sent_ns > WINDOW_NS:
            self._fill(air, [air.sent_ns, *[other.sent_ns for other in near if other.sent_ns]])

    def _fill(self, air: Transmitter, loads_ns: list[int]) -> None:
        """The channel is full for a node, because of ``loads_ns``."""
        air.full = True
        air.stretch = max(1 / fair_share([load_ns / WINDOW_NS for load_ns in loads_ns]), air.stretch)

    def _go_on(self, air: Transmitter, left_ns: int) -> None:
        """The last window had no room for a part of what a node asked for, and that goes first now. Its queues are put
        right: they were made longer or shorter by guesses how much the others would ask for."""
        air.sent_ns += left_ns
        due_ns = self.turn_ns - WINDOW_NS + int(left_ns * air.stretch)
        air.free_ns, air.bulk_free_ns = min(air.free_ns, due_ns), min(air.bulk_free_ns, due_ns)
        if air.bulk_free_ns > air.free_ns:
            air.bulk_free_ns = due_ns
        else:
            air.free_ns = due_ns
