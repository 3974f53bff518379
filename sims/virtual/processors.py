"""Processors that all nodes share, as the nodes of an emulation share those of their host.

Usually each simulated node has a processor to itself, as computers on the road do. With as few as a host has, bursts
that all nodes answer at once take longer, as a new gossip entry does. Only a simulation with shared processors can be
compared with an emulation.

Work that comes while its processor is busy is *warm*: no thread has to be woken for it, and the caches hold what it
needs. Work of a node that had to wait for a processor is cold, because another node's memory is in the caches then.
"""

from heapq import heapreplace

WIRE_NS = 54_000
"""Processor time of the emulated wire for a packet, kernel included. It was measured in the emulator on the host on
which all other costs were measured (see :mod:`sims.scenario.devices`)."""
PACKETS = 2
"""A message takes two packets: itself and TCP's acknowledgement."""
WARM_DIVISOR = 4
"""How many times cheaper a frame or packet is when it comes while its processor is busy with others."""


class Processors:
    """A number of processors; work goes to the one that is free first."""

    def __init__(self, count: int, slowness: float = 1.0) -> None:
        """``count``: at least 1. ``slowness``: how many times as long everything takes as where it was measured."""
        self._free_ns = [0] * count
        self.slowness = slowness
        self.packets_ns = int(PACKETS * WIRE_NS * slowness)
        """Processor time that the wire takes for a message."""

    @property
    def free_ns(self) -> int:
        """When a processor is free."""
        return self._free_ns[0]

    def occupy(self, now: int, for_ns: int, besides_ns: int = 0) -> int:
        """Take work: ``for_ns`` of handling frames, which takes less when warm, and ``besides_ns`` of arithmetic.
        Returns how long the work waits for its turn, in nanoseconds."""
        free_ns = self._free_ns[0]
        if free_ns > now:
            heapreplace(self._free_ns, free_ns + for_ns // WARM_DIVISOR + besides_ns)
            return free_ns - now
        heapreplace(self._free_ns, now + for_ns + besides_ns)
        return 0
