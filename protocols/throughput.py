"""How fast a link carries bytes: what the planner must know before it sends a tensor over it.

What is averaged is the time that a byte takes and not the rate: the planner multiplies it by bytes, and a mean of rates
would promise too much of a link whose rate changes (the harmonic mean is the one for rates over equal amounts).
Exponential averaging with a gain of 1/4, as TCP's older round-trip filters do it (RFC 6298 uses 1/8, for samples that
come with every packet; ours are rare). The first sample counts whole.

Two kinds of samples come in, both of ``MIN_SAMPLE_BYTES`` and more, since the time of small frames is the round trip's:

- an answer: bytes of request and answer, over what is left of its time without computing, waiting and round trip;
- a lane that drains: bytes of a frame that was handed over when the lane had just become free, over the time until it
  was free again. The buffers below are full then, so that this is the pace of the link and not of a copy in memory.

Bounds: a sample lies between ``SLOWEST`` and ``FASTEST``, whatever a peer or a clock says.
"""

MIN_SAMPLE_BYTES = 16 * 1024
SLOWEST_BYTES_PER_S = 1_000.0
FASTEST_BYTES_PER_S = 10e9
_GAIN = 0.25


class Throughput:
    """Of one neighbour. Bytes a second."""

    __slots__ = ("_ns_per_byte",)

    def __init__(self) -> None:
        self._ns_per_byte = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The estimate; 0: nothing was measured yet."""
        return 1e9 / self._ns_per_byte if self._ns_per_byte else 0.0

    def measured(self, size_bytes: int, took_ns: int) -> bool:
        """So many bytes took so long. False: too few to tell."""
        if size_bytes < MIN_SAMPLE_BYTES:
            return False
        sample = min(max(took_ns / size_bytes, 1e9 / FASTEST_BYTES_PER_S), 1e9 / SLOWEST_BYTES_PER_S)
        self._ns_per_byte += (sample - self._ns_per_byte) * (_GAIN if self._ns_per_byte else 1.0)
        return True
