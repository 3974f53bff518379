"""Access links: each node has a link of its own both ways to one network that is never the bottleneck.

It is for programs that need what the radio does not have: a rate for each node, whoever it talks to. Everybody is in
reach of everybody, and nothing is lost. It implements :class:`~sims.media.contract.Links`.

A frame takes the uplink of its sender and then the downlink of its receiver, packet by packet, so the second begins
when the first packet has come. On a downlink, a frame takes what is free from when it comes on, beside frames that were
sent before it.
With ``is_ranked``, small frames pass large ones at both ends, as on a network that honours what senders say of their
packets (DSCP, the bands of ``pfifo_fast``): they wait for the packet that is being sent, and for other small ones.
Without it all wait in one line.
"""

from bisect import insort
from random import Random
from typing import Final

from protocols.base.limits import SECOND
from sims.media.tcp import CONNECT_ROUND_TRIPS, SEGMENT_BYTES, TCP_IP_BYTES, TLS_BYTES, segments_of
from sims.media.wires import HANDSHAKE_TRIPS

SMALL_BYTES: Final = 4 * 1024
"""Frames up to this size go first on a network that ranks them. Pieces of chunks and tensors are larger."""
_ETHERNET_BYTES: Final = 38
"""Header, check sum, preamble and gap of each packet."""
_PACKET_BYTES: Final = SEGMENT_BYTES + TCP_IP_BYTES + _ETHERNET_BYTES


class _Line:
    """The times at which one direction of one link is taken. They may be given away out of order, because a frame that
    is sent now may come later than one that is sent next."""

    __slots__ = ("_busy",)

    def __init__(self) -> None:
        self._busy: list[tuple[int, int]] = []

    def is_taken(self, at_ns: int) -> bool:
        return any(begins_ns <= at_ns < ends_ns for begins_ns, ends_ns in self._busy)

    def take(self, came_ns: int, now: int, length_ns: int) -> list[tuple[int, int]]:
        """Take the next time that is free from ``came_ns`` on, in parts if need be. Returns the parts."""
        busy = self._busy
        while busy and busy[0][1] <= now:
            del busy[0]
        left_ns, at_ns = length_ns, came_ns
        taken: list[tuple[int, int]] = []
        for begins_ns, ends_ns in [*busy, (1 << 62, 1 << 62)]:
            if begins_ns > at_ns:
                free_ns = min(begins_ns - at_ns, left_ns)
                taken.append((at_ns, at_ns + free_ns))
                left_ns -= free_ns
                if not left_ns:
                    break
            at_ns = max(at_ns, ends_ns)
        for interval in taken:
            insort(busy, interval)
        merged: list[tuple[int, int]] = []
        for begins_ns, ends_ns in busy:
            if merged and begins_ns <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], ends_ns)
            else:
                merged.append((begins_ns, ends_ns))
        self._busy = merged
        return taken


class _Port:
    """One direction of one link."""

    __slots__ = ("_all", "_small", "bytes_per_s", "carried_bytes")

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self.carried_bytes = 0
        self._all, self._small = _Line(), _Line()

    def time_ns(self, size_bytes: int) -> int:
        return size_bytes * SECOND // self.bytes_per_s

    def take(self, came_ns: int, now: int, size_bytes: int) -> tuple[int, int]:
        """Wait in line. Returns when the first packet and the last are through."""
        self.carried_bytes += size_bytes
        parts = self._all.take(came_ns, now, self.time_ns(size_bytes))
        packet_ns = min(self.time_ns(_PACKET_BYTES), parts[0][1] - parts[0][0])
        return parts[0][0] + packet_ns, parts[-1][1]

    def pass_by(self, came_ns: int, now: int, size_bytes: int, draw: float) -> int:
        """Pass what is large, but for the packet that is being sent. Returns when the frame is through."""
        waits_ns = 0
        if self._all.is_taken(came_ns) and not self._small.is_taken(came_ns):
            waits_ns = int(draw * self.time_ns(_PACKET_BYTES))
        parts = self._small.take(came_ns, now, waits_ns + self.time_ns(size_bytes))
        self.take(came_ns, now, size_bytes)  # what is large gets so much later
        return parts[-1][1]


class AccessLinks:
    """The access links of some nodes."""

    def __init__(self, up_bytes_per_s: list[int], down_bytes_per_s: list[int], delay_ns: int, random: Random,
                 is_ranked: bool) -> None:  # fmt: skip
        """Rates by number of the node. ``delay_ns``: one way, without what the links take."""
        self._up = [_Port(rate) for rate in up_bytes_per_s]
        self._down = [_Port(rate) for rate in down_bytes_per_s]
        self._delay_ns, self._draw, self._is_ranked = delay_ns, random.random, is_ranked

    def sent_bytes(self, node: int) -> int:
        """What a node has put on its uplink, with all headers."""
        return self._up[node].carried_bytes

    def received_bytes(self, node: int) -> int:
        """What the downlink of a node has carried, with all headers."""
        return self._down[node].carried_bytes

    def moved(self, now_ns: int) -> list[int]:
        """An empty list, because no node moves."""
        return []

    def neighbours(self, node: int) -> list[int]:
        """All other nodes."""
        return [other for other in range(len(self._up)) if other != node]

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """A datagram arrives everywhere at once."""
        return now_ns + self._delay_ns, self.neighbours(sender)

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A datagram takes as long as a frame."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A frame takes as long as bytes on a stream."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`~sims.media.contract.Links`."""
        on_wire_bytes = size_bytes + TLS_BYTES + segments_of(size_bytes) * (TCP_IP_BYTES + _ETHERNET_BYTES)
        up, down = self._up[sender], self._down[receiver]
        if self._is_ranked and size_bytes <= SMALL_BYTES:
            sent_ns = up.pass_by(now_ns, now_ns, on_wire_bytes, self._draw())
            return down.pass_by(sent_ns + self._delay_ns, now_ns, on_wire_bytes, self._draw()) + 1
        first_ns, sent_ns = up.take(now_ns, now_ns, on_wire_bytes)
        _, came_ns = down.take(first_ns + self._delay_ns, now_ns, on_wire_bytes)
        return max(came_ns, sent_ns + self._delay_ns + down.time_ns(min(on_wire_bytes, _PACKET_BYTES))) + 1

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """When a stream is open."""
        return now_ns + max(HANDSHAKE_TRIPS, 2 * CONNECT_ROUND_TRIPS) * self._delay_ns

    def busy_share(self, node: int, now_ns: int) -> float:
        """Always 0, because links are not shared."""
        return 0.0
