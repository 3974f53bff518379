"""The throughput of a link, which placement has to know before it sends a tensor over the link.

The estimate is mean bytes over mean time, both averaged exponentially with a gain of 1/4. (The round-trip filter of
RFC 6298 has a gain of 1/8, for samples that come with every packet; ours are rare.) So a sample weighs as much as it
has bytes, because most of the time that a small frame takes is not due to the link. The first sample counts fully.

There are two kinds of samples, both of ``MIN_SAMPLE_BYTES`` and more:

- an answer: the bytes of request and answer, over what is left of its time without computing, waiting and round trip;
- a lane that drains: the bytes of a frame that was sent when the lane had just become free, over the time until the
  lane was free again. The buffers below are full then, so this is the speed of the link and not of a copy in memory.

Whatever a peer or a clock says, a sample is bounded by ``SLOWEST_BYTES_PER_S`` and ``FASTEST_BYTES_PER_S``.
"""

MIN_SAMPLE_BYTES = 16 * 1024
SLOWEST_BYTES_PER_S = 1_000.0
FASTEST_BYTES_PER_S = 10e9
_GAIN = 0.25


class Throughput:
    """The throughput of the link to one neighbour, in bytes a second."""

    __slots__ = ("_bytes", "_ns")

    def __init__(self) -> None:
        self._bytes = self._ns = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The estimate; 0 until something was measured."""
        return self._bytes / self._ns * 1e9 if self._ns else 0.0

    def measured(self, size_bytes: int, took_ns: int) -> bool:
        """Take a sample: ``size_bytes`` took ``took_ns``. False: too few bytes to be a sample."""
        if size_bytes < MIN_SAMPLE_BYTES:
            return False
        sample_ns = min(max(took_ns, size_bytes / FASTEST_BYTES_PER_S * 1e9), size_bytes / SLOWEST_BYTES_PER_S * 1e9)
        gain = _GAIN if self._ns else 1.0
        self._bytes += (size_bytes - self._bytes) * gain
        self._ns += (sample_ns - self._ns) * gain
        return True
