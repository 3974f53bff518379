"""How late TCP makes what the link below lost: arithmetic of retransmissions, without state.

Follows Linux: the retransmission time-out is the round trip plus at least 200 ms (RFC 6298 asks for one second) and
doubles; a tail-loss probe (RFC 8985, section 7) comes after two smoothed round trips, plus 200 ms when one segment is
under way alone, for its acknowledgement may be delayed; a loss with segments behind it is found by RACK (RFC 8985) a
quarter of a round trip after they are acknowledged.

Checked against a measurement (20 ms one way, 5 % of the frames lost, one small message at a time, no retries below):
round trips of 41 ms at the median and 328 to 418 ms at the 95th percentile. The smoothed round trip of a connection
with losses lies above the true one, for earlier stalls are in it; it is drawn from one to two true ones.

Left out: congestion windows that shrink (the air is slower than they are), and messages that follow a lone one soon and
make its loss known earlier than its probe does.
"""

from typing import Final

from protocols.limits import MS, SECOND

SEGMENT_BYTES: Final = 1_448
"""Of a TCP segment in 1500 bytes, with time stamps."""
TCP_IP_BYTES: Final = 52
TLS_BYTES: Final = 22
"""Header, content type and tag of a TLS 1.3 record."""
LONGEST_STALL_NS: Final = 924 * SECOND
"""After so long Linux gives a connection up (tcp_retries2 = 15). Heartbeats see it long before."""
CONNECT_ROUND_TRIPS: Final = 4
"""TCP, TLS 1.3 with both certificates, NNG's headers: measured 5 with the first answer."""
HANDSHAKE_BYTES: Final = (60, 60, 300, 1_400, 1_400, 60, 60, 60)
"""What the flights of a connection hold: the dialler's are the even ones."""

_LEAST_RTO_NS: Final = 200 * MS
_LONGEST_RTO_NS: Final = 120 * SECOND
_SYN_RTO_NS: Final = SECOND
_FIRST_WINDOW: Final = 10
"""Segments (RFC 6928)."""


def lone_stall_ns(losses: int, round_trip_ns: int, chance: float) -> int:
    """How much later a message arrives whose only segment was lost so many times. ``chance``: 0 to 1, drawn."""
    return _stall_ns(losses, _LEAST_RTO_NS + int(2 * round_trip_ns * (1 + chance)), round_trip_ns)


def tail_stall_ns(losses: int, round_trip_ns: int, chance: float) -> int:
    """How much later a message arrives whose last segment of several was lost so many times."""
    return _stall_ns(losses, int(2 * round_trip_ns * (1 + chance)), round_trip_ns)


def middle_stall_ns(losses: int, round_trip_ns: int) -> int:
    """How much later a segment arrives that was lost so many times, with others behind it."""
    return _stall_ns(losses, round_trip_ns * 5 // 4, round_trip_ns)


def syn_stall_ns(losses: int) -> int:
    """How much later a connection's first or second segment arrives."""
    return _stall_ns(losses, _SYN_RTO_NS, 2 * _SYN_RTO_NS - _LEAST_RTO_NS)


def _stall_ns(losses: int, first_ns: int, round_trip_ns: int) -> int:
    if losses == 0:
        return 0
    stall_ns, timeout_ns = first_ns, round_trip_ns + _LEAST_RTO_NS
    for _ in range(losses - 1):
        if stall_ns >= LONGEST_STALL_NS:
            break
        stall_ns += timeout_ns
        timeout_ns = min(2 * timeout_ns, _LONGEST_RTO_NS)
    return min(stall_ns, LONGEST_STALL_NS)


def resumes_ns(stalled_ns: int, now_ns: int, round_trip_ns: int) -> int:
    """When a stream that had been cut off since ``stalled_ns`` sends again after it could, from ``now_ns`` on: its next
    retransmission, which comes after ever longer pauses."""
    retry_ns, timeout_ns = stalled_ns, round_trip_ns + _LEAST_RTO_NS
    while retry_ns < now_ns:
        retry_ns += timeout_ns
        timeout_ns = min(2 * timeout_ns, _LONGEST_RTO_NS)
    return retry_ns


def growth_ns(segments: int, segment_ns: int, round_trip_ns: int) -> int:
    """How long a sender of so many segments waits for its congestion window to open (slow start, RFC 6928), beside the
    time that the segments themselves take."""
    waited_ns, window = 0, _FIRST_WINDOW
    segments -= window
    while segments > 0 and window * segment_ns < round_trip_ns:
        waited_ns += round_trip_ns - window * segment_ns
        window *= 2
        segments -= window
    return waited_ns
