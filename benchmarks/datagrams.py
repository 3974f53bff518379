"""``python -m benchmarks.datagrams``: what a multicast datagram costs its sender and each receiver, in time and bytes.

It seals, signs, opens and checks with the real libraries, in one process without a network, and prints processor time.
"""

import argparse
import time
from collections.abc import Callable

from meshnode.multicast.sealing import DatagramSealing
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.multicast.machine import Multicast
from protocols.wire.multicast.frames import SenderKey
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import EventTime, Position, Provenance, Reading

UDP_IPV4_BYTES = 28
LINK_BYTES = 52 + 22 + 8
"""TCP and IPv4, TLS, and the length before a frame; its acknowledgement takes another 52."""
_WHERE, _HOW = Position(48.7657, 11.4237, 1.0), Provenance("gnss", "m/s")


def frame_of(sequence: int, priority: int = 3) -> bytes:
    """A reading as a vehicle sends it ten times a second."""
    utc_ns = 1_700_000_000 * limits.SECOND + sequence
    when = EventTime(utc_ns, limits.MS)
    return encode_alone(
        Reading("veh/veh-1/position", "veh-1", sequence, bytes(32), _WHERE, when, _HOW, priority, 1_000)
    )


def mean_us(repeat: int, call: Callable[[int], object]) -> float:
    """The processor time of one call."""
    began_s = time.process_time()
    for number in range(repeat):
        call(number)
    return (time.process_time() - began_s) / repeat * 1e6


def main() -> None:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--datagrams", type=int, default=1_000)
    count = arguments.parse_args().datagrams
    sender, receiver = (Multicast(NodeId(name), DatagramSealing().seal()) for name in ("veh-1", "veh-2"))
    sender.neighbour_met(NodeId("veh-2"), Role.VEHICLE, 0)
    for _, frame in sender.messages():
        if type(frame) is SenderKey:
            receiver.receive(frame, NodeId("veh-1"), Role.VEHICLE, 0)
    frames = [frame_of(number) for number in range(count)]
    datagrams: list[bytes] = []

    def cast(number: int) -> None:
        datagram = sender.sealed(frames[number], number * limits.SECOND // 10, 1_700_000_000 * limits.SECOND)
        assert datagram is not None
        datagrams.append(datagram)

    def hear(number: int) -> None:
        assert receiver.open_untrusted(datagrams[number], "192.0.2.1", number * limits.SECOND // 10) is not None

    sent_us, heard_us = mean_us(count, cast), mean_us(count, hear)
    again_us = mean_us(count, lambda number: receiver.open_untrusted(datagrams[number], "192.0.2.1", 0))
    stranger_us = mean_us(count, lambda _: receiver.open_untrusted(b"\x01" + bytes(200), "192.0.2.1", 0))
    mean_bytes = sum(len(datagram) for datagram in datagrams) / count
    print(f"sending one takes {sent_us:.1f} us, hearing one {heard_us:.1f} us, dropping a replay {again_us:.1f} us, "
          f"dropping that of a stranger {stranger_us:.1f} us")  # fmt: skip
    print(f"a frame of {len(frames[0])} bytes: {mean_bytes:.0f} bytes as a datagram, {mean_bytes + UDP_IPV4_BYTES:.0f} "
          f"with UDP and IPv4; on a link {len(frames[0]) + LINK_BYTES} to each neighbour")  # fmt: skip


if __name__ == "__main__":
    main()
