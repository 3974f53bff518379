"""The wire: moves Ethernet frames between the TAPs of nodes as the models of the air and of the wires say.

Every frame that is read gets the instant at which it arrives, or is lost; a heap holds it until then. Unicast frames of
one pair keep their order, as the link layer of 802.11 keeps it for its block acknowledgements: jitter would otherwise
look like loss to TCP. The wire measures how late frames are put out, because a late wire is another radio than the
model's.

Instants are nanoseconds since the start of the run, on the monotonic clock.
"""

import heapq
import os
import select
import time
from collections.abc import Sequence
from typing import Final

from msgspec import Struct, field

from sims.emulator.air.disturbances import Disturbances
from sims.media.contract import Links, Places, RelayLinks

MAX_UNDER_WAY: Final = 100_000
"""The number of frames that may be on the air at once, 150 MB at most. Frames beyond it are dropped and counted."""
_HEADER_BYTES: Final = 14
"""The header of Ethernet: models count from the IP header on."""
_MOVE_EVERY_NS: Final = 100_000_000
_LOAD_EVERY_NS: Final = 1_000_000_000
_READS: Final = 32
"""The number of frames of one node that are read in one turn, so that no node waits for another's burst."""
_LONGEST_WAIT_NS: Final = 20_000_000
_HANDLING_NS: Final = 120_000
"""This is taken off every arrival: the time that the way through two kernels and this process takes by itself. It was
measured from socket to socket with a model that delays nothing, less loopback: 55 µs with 1,000 frames a second, and
150 to 190 µs with 10 or 100, when processors fall asleep between them."""
_LATE_BIN_NS: Final = 50_000
_LATE_BINS: Final = 20_000
"""Enough bins for lateness up to a second."""
_MAX_FRAME_BYTES: Final = 65_536
_MULTICAST: Final = 0x01


class Lateness(Struct):
    """How long after their instants frames were put out, in milliseconds."""

    frames: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


class WireReport(Struct):
    """The counts of a wire."""

    late: Lateness = field(default_factory=Lateness)
    unicast: int = 0
    multicast: int = 0
    """Multicast frames that were sent; each reaches several nodes."""
    delivered: int = 0
    delivered_bytes: int = 0
    lost: int = 0
    unknown: int = 0
    """Unicast frames to an unknown address."""
    overflowed: int = 0
    """Frames dropped because of ``MAX_UNDER_WAY``."""
    refused: int = 0
    """Frames that a kernel did not take, because its node is gone."""
    cpu_s: float = 0.0
    realtime: bool = False
    """Whether it ran before all other processes of the host."""
    load: list[float] = field(default_factory=list)
    """The mean channel busy ratio, one value a second."""


class Wire:
    """The wire between all TAPs. It is single-threaded."""

    def __init__(
        self,
        taps: Sequence[int],
        macs: Sequence[bytes],
        links: Links,
        places: Places,
        disturbances: Disturbances,
        zero_ns: int,
        uplink: RelayLinks | None = None,
    ) -> None:
        """``taps``: non-blocking descriptors, by node number. ``zero_ns``: the monotonic instant of the start of the
        run. ``uplink``: the way to a relay, whose TAP then is the last."""
        self.report = WireReport()
        self._taps, self._links, self._places, self._disturbances = list(taps), links, places, disturbances
        self._uplink = uplink
        self._relay = len(taps) - 1 if uplink is not None else -1
        self._node_of = {tap: node for node, tap in enumerate(taps)}
        self._receiver_of = {mac: node for node, mac in enumerate(macs)}
        self._zero_ns = zero_ns
        self._epoll = select.epoll()
        for tap in taps:
            self._epoll.register(tap, select.EPOLLIN)
        self._under_way: list[tuple[int, int, int, bytes]] = []
        self._number = 0
        self._newest: dict[tuple[int, int], int] = {}
        self._late = [0] * _LATE_BINS
        self._late_max_ns = 0
        self._moved_ns = -_MOVE_EVERY_NS
        self._load_ns = 0

    def run(self, stop: int) -> WireReport:
        """Move frames until descriptor ``stop`` is readable or closed at its other end."""
        self._epoll.register(stop, select.EPOLLIN)
        while True:
            now_ns = self._now_ns()
            self._move(now_ns)
            due_ns = self._under_way[0][0] if self._under_way else now_ns + _LONGEST_WAIT_NS
            wait_ns = min(due_ns - now_ns, _LONGEST_WAIT_NS)
            # select() waits to the microsecond, epoll itself in whole milliseconds.
            if wait_ns > 0:
                select.select([self._epoll], [], [], wait_ns / 1e9)
            for descriptor, _ in self._epoll.poll(0, len(self._taps) + 1):
                if descriptor == stop:
                    return self._finish()
                self._take(descriptor)
            self._put_due()

    def _now_ns(self) -> int:
        return max(time.monotonic_ns() - self._zero_ns, 0)

    def _move(self, now_ns: int) -> None:
        self._disturbances.advance(now_ns)
        if now_ns - self._moved_ns < _MOVE_EVERY_NS:
            return
        self._moved_ns = now_ns
        self._places.advance(now_ns)
        self._links.moved(now_ns)
        if now_ns - self._load_ns >= _LOAD_EVERY_NS:
            self._load_ns += _LOAD_EVERY_NS
            present = [node for node, there in enumerate(self._places.present) if there]
            shares = [self._links.busy_share(node, now_ns) for node in present]
            self.report.load.append(sum(shares) / len(shares) if shares else 0.0)

    def _take(self, tap: int) -> None:
        sender = self._node_of[tap]
        for _ in range(_READS):
            try:
                frame = os.read(tap, _MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            now_ns = self._now_ns()
            if frame[0] & _MULTICAST:
                self._send_to_all(sender, frame, now_ns)
            else:
                self._send_to_one(sender, frame, now_ns)

    def _send_to_one(self, sender: int, frame: bytes, now_ns: int) -> None:
        report = self.report
        report.unicast += 1
        receiver = self._receiver_of.get(frame[:6])
        if receiver is None:
            report.unknown += 1
            return
        arrival_ns = self._arrival_ns(sender, receiver, len(frame) - _HEADER_BYTES, now_ns)
        if arrival_ns is None:
            report.lost += 1
            return
        pair = sender, receiver
        arrival_ns = max(arrival_ns, self._newest.get(pair, 0))
        self._newest[pair] = arrival_ns
        self._push(arrival_ns, receiver, frame)

    def _arrival_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        if self._uplink is None or self._relay not in (sender, receiver):
            return self._links.frame_ns(sender, receiver, size_bytes, now_ns)
        upward = receiver == self._relay
        return self._uplink.uplink_ns(sender if upward else receiver, size_bytes, now_ns, upward)

    def _send_to_all(self, sender: int, frame: bytes, now_ns: int) -> None:
        if sender == self._relay:  # multicast does not travel on the cellular link
            return
        self.report.multicast += 1
        arrival_ns, receivers = self._links.multicast_ns(sender, len(frame) - _HEADER_BYTES, now_ns)
        for receiver in receivers:
            self._push(arrival_ns, receiver, frame)

    def _push(self, arrival_ns: int, receiver: int, frame: bytes) -> None:
        if len(self._under_way) >= MAX_UNDER_WAY:
            self.report.overflowed += 1
            return
        self._number += 1
        arrival_ns = max(arrival_ns - _HANDLING_NS, 0)
        heapq.heappush(self._under_way, (arrival_ns, self._number, receiver, frame))

    def _put_due(self) -> None:
        under_way, report = self._under_way, self.report
        for _ in range(len(under_way)):
            if not under_way or under_way[0][0] > (now_ns := self._now_ns()):
                return
            due_ns, _, receiver, frame = heapq.heappop(under_way)
            late_ns = now_ns - due_ns
            self._late[min(late_ns // _LATE_BIN_NS, _LATE_BINS - 1)] += 1
            self._late_max_ns = max(self._late_max_ns, late_ns)
            try:
                os.write(self._taps[receiver], frame)
            except OSError:
                report.refused += 1
            else:
                report.delivered += 1
                report.delivered_bytes += len(frame)

    def _finish(self) -> WireReport:
        self._epoll.close()
        frames = sum(self._late)
        self.report.late = Lateness(frames, self._quantile_ms(0.5), self._quantile_ms(0.99), self._late_max_ns / 1e6)
        self.report.cpu_s = time.process_time()
        return self.report

    def _quantile_ms(self, share: float) -> float:
        """The upper edge of the bin that holds the quantile."""
        left = share * sum(self._late)
        for number, count in enumerate(self._late):
            left -= count
            if left <= 0 and count:
                return (number + 1) * _LATE_BIN_NS / 1e6
        return 0.0
