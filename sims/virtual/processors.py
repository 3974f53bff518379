"""Processors that all nodes share, as the nodes of an emulation share those of their host.

Otherwise each simulated node has one to itself, as computers on the road do. With so few as a host has, bursts that all
nodes answer at once, as they do a new gossip entry, take longer: an emulation can only be compared with that.

Work that comes while its processor is busy is *warm*: no thread has to be woken for it, and caches hold what it needs.
A node that had to wait for a processor is not: another node's memory is in the caches then.
"""

from heapq import heapreplace

WIRE_NS = 54_000
"""Processor time of the emulated wire for a packet, kernel included, measured in the emulator on the host on which all
other costs were measured (see :mod:`sims.scenario.devices`) …"""
PACKETS = 2
"""… of which a message takes two: itself and TCP's acknowledgement."""
WARM_DIVISOR = 4
"""By how much frames and packets are cheaper that come while a processor is at work on others."""


class Processors:
    """So many; work goes to the one that is free first."""

    def __init__(self, count: int, slowness: float = 1.0) -> None:
        """``count``: at least 1. ``slowness``: how many times as long everything takes as where it was measured."""
        self._free_ns = [0] * count
        self.slowness = slowness
        self.packets_ns = int(PACKETS * WIRE_NS * slowness)
        """What the wire takes for a message."""

    @property
    def free_ns(self) -> int:
        """When one is free."""
        return self._free_ns[0]

    def occupy(self, now: int, for_ns: int, besides_ns: int = 0) -> int:
        """Work comes: ``for_ns`` of handling frames, less when warm, and ``besides_ns`` of arithmetic. Returns how
        long it waits for its turn, in nanoseconds."""
        free_ns = self._free_ns[0]
        if free_ns > now:
            heapreplace(self._free_ns, free_ns + for_ns // WARM_DIVISOR + besides_ns)
            return free_ns - now
        heapreplace(self._free_ns, now + for_ns + besides_ns)
        return 0
