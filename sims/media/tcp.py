"""TCP's retransmissions: how late data arrives that the link below lost, computed without state.

It follows Linux. A segment that is lost alone is sent again after the retransmission time-out, the round trip plus
200 ms (RFC 6298 asks for one second), which doubles from try to try. A tail-loss probe (RFC 8985, section 7) would come
after two round trips, plus 200 ms as long as one segment alone is under way, because its acknowledgement may be
delayed: that is too late to help. The last of several segments is alone once the others are acknowledged, one round
trip later. RACK (RFC 8985) finds the loss of any other segment a quarter of a round trip after those behind it are
acknowledged.

It was checked against Linux 6.18 on a wire that loses 5 % of the frames, one message to and one fro at a time:

=========================  ======  ======  ======  ======
round trips in ms          p50     p95     p97     p99
=========================  ======  ======  ======  ======
20 ms one way, 1 segment   41      289     313     398
20 ms one way, 2 segments  41      376     380     418
3 ms one way, 1 segment    6       219     227     319
=========================  ======  ======  ======  ======

The time-out lies above its floor by up to some 100 ms, because earlier stalls are in the smoothed round trip and its
variance. The drawn part stands for that.

Left out: congestion windows that shrink (the air is slower than they are), and messages that follow a lone one soon and
make its loss known earlier than its probe does.
"""

import math
from collections.abc import Callable
from typing import Final

from protocols.base.limits import MS, SECOND

SEGMENT_BYTES: Final = 1_448
"""The payload of a TCP segment in 1500 bytes, with time stamps."""
TCP_IP_BYTES: Final = 52
TLS_BYTES: Final = 22
"""The header, content type and tag of a TLS 1.3 record."""
PATIENCE_NS: Final = SECOND
"""A stream that losses stall for longer stands still, to be tried again: by then its ends may be nearer, or a fault
over."""
LONGEST_CONNECT_NS: Final = 127 * SECOND
"""After this time Linux stops dialling (tcp_syn_retries = 6). No stall is longer."""
CONNECT_ROUND_TRIPS: Final = 3
"""TCP, TLS 1.3 with both certificates, and NNG's headers. This was measured, as was one more round trip for ARP at
first."""
HANDSHAKE_BYTES: Final = (28, 28, 60, 60, 300, 1_400, 1_400, 60)
"""The bytes of each flight of a connection, ARP's flights included. The dialler's are the even ones."""
ARP_FLIGHTS: Final = 2

_LEAST_RTO_NS: Final = 200 * MS
_TICK_NS: Final = 4 * MS
"""The granularity of the kernel's timers (HZ = 250)."""
_DELAYED_ACK_NS: Final = 40 * MS
_ODD: Final = 0.5
"""The share of the messages whose last but one segment is acknowledged late, because it has no full one beside it."""
_ESTIMATE_NS: Final = 120 * MS
"""The most that earlier stalls add to the time-out."""
_SYN_RTO_NS: Final = SECOND
_TINY: Final = 1e-18
_FIRST_WINDOW: Final = 10
"""The segments of the first window (RFC 6928)."""


def segments_of(size_bytes: int) -> int:
    """The number of segments of a message, with its TLS record."""
    return -(-(size_bytes + TLS_BYTES) // SEGMENT_BYTES)


def lone_stall_ns(losses: int, round_trip_ns: int, chance: float) -> int:
    """How much later a message arrives whose only segment was lost ``losses`` times. ``chance``: drawn from 0 to 1."""
    return _stall_ns(losses, round_trip_ns + _LEAST_RTO_NS + _TICK_NS + int(chance**5 * _ESTIMATE_NS), round_trip_ns)


def tail_stall_ns(losses: int, round_trip_ns: int, chance: float) -> int:
    """How much later a message arrives whose last segment of several was lost ``losses`` times."""
    alone_ns = round_trip_ns + (_DELAYED_ACK_NS if chance < _ODD else 0)
    return alone_ns + lone_stall_ns(losses, round_trip_ns, chance)


def middle_stall_ns(losses: int, round_trip_ns: int) -> int:
    """How much later a segment arrives that was lost ``losses`` times, with others behind it."""
    return _stall_ns(losses, round_trip_ns * 5 // 4, round_trip_ns)


def message_stall_ns(segments: int, lost: float, round_trip_ns: int, draw: Callable[[], float]) -> int:
    """How much later a message of ``segments`` segments arrives, each of which is lost with a probability of ``lost``,
    below 1, whenever it is sent. ``draw``: random numbers from 0 to 1, of which one is used when nothing is lost."""
    if draw() < (1.0 - lost) ** segments:
        return 0
    # The segment that was lost most often decides: the maximum of geometric numbers, by inversion.
    losses = 1 + int(math.log(max(1.0 - draw() ** (1 / segments), _TINY)) / math.log(lost))
    if segments == 1:
        return lone_stall_ns(losses, round_trip_ns, draw())
    if draw() * segments < 1.0:
        return tail_stall_ns(losses, round_trip_ns, draw())
    return middle_stall_ns(losses, round_trip_ns)


def syn_stall_ns(losses: int) -> int:
    """How much later a connection's first or second segment arrives."""
    return _stall_ns(losses, _SYN_RTO_NS, 2 * _SYN_RTO_NS - _LEAST_RTO_NS)


def _stall_ns(losses: int, first_ns: int, round_trip_ns: int) -> int:
    if losses == 0:
        return 0
    stall_ns, timeout_ns = first_ns, round_trip_ns + _LEAST_RTO_NS
    for _ in range(losses - 1):
        if stall_ns >= LONGEST_CONNECT_NS:
            break
        stall_ns += timeout_ns
        timeout_ns *= 2
    return min(stall_ns, LONGEST_CONNECT_NS)


def growth_ns(segments: int, segment_ns: int, round_trip_ns: int) -> int:
    """How long a sender of ``segments`` segments waits for its congestion window to open (slow start, RFC 6928), beside
    the time that the segments themselves take."""
    waited_ns, window = 0, _FIRST_WINDOW
    segments -= window
    while segments > 0 and window * segment_ns < round_trip_ns:
        waited_ns += round_trip_ns - window * segment_ns
        window *= 2
        segments -= window
    return waited_ns
