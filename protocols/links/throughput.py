"""How fast a link carries bytes: what the planner must know before it sends a tensor over it.

The estimate is mean bytes over mean time, both averaged exponentially with a gain of 1/4: a sample counts by its bytes,
for what a small frame takes is mostly not the link's doing (the round-trip filter of RFC 6298 has a gain of 1/8, for
samples that come with every packet; ours are rare). The first sample counts whole.

Two kinds of samples come in, both of ``MIN_SAMPLE_BYTES`` and more:

- an answer: bytes of request and answer, over what is left of its time without computing, waiting and round trip;
- a lane that drains: bytes of a frame that was handed over when the lane had just become free, over the time until it
  was free again. The buffers below are full then, so that this is the pace of the link and not of a copy in memory.

Bounds: a sample lies between ``SLOWEST_BYTES_PER_S`` and ``FASTEST_BYTES_PER_S``, whatever a peer or a clock says.
"""

MIN_SAMPLE_BYTES = 16 * 1024
SLOWEST_BYTES_PER_S = 1_000.0
FASTEST_BYTES_PER_S = 10e9
_GAIN = 0.25


class Throughput:
    """Of one neighbour. Bytes a second."""

    __slots__ = ("_bytes", "_ns")

    def __init__(self) -> None:
        self._bytes = self._ns = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The estimate; 0: nothing was measured yet."""
        return self._bytes / self._ns * 1e9 if self._ns else 0.0

    def measured(self, size_bytes: int, took_ns: int) -> bool:
        """So many bytes took so long. False: too few to tell."""
        if size_bytes < MIN_SAMPLE_BYTES:
            return False
        sample_ns = min(max(took_ns, size_bytes / FASTEST_BYTES_PER_S * 1e9), size_bytes / SLOWEST_BYTES_PER_S * 1e9)
        gain = _GAIN if self._ns else 1.0
        self._bytes += (size_bytes - self._bytes) * gain
        self._ns += (sample_ns - self._ns) * gain
        return True
