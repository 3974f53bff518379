"""The measures, which are the same code for every contender.

Latency is half of a round trip between callbacks: the callback that got a reading puts the next one, at both ends, so
that each half holds packing, sending, receiving, unpacking, validation, deduplication and the call back.

Throughput is what arrives in the receiver's callback between two marks in the stream. The sender puts as fast as the
contender takes it. Readings that were put and not delivered are counted and reported.

The first part of each run is not counted (``WARM_UP``): caches, branch predictors and congestion windows fill first.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from benchmarks.contender import BenchmarkFailed, Contender

_N = TypeVar("_N", int, float)
LATENCY_BYTES = {"reading_64B": 64, "reading_16KiB": 16 * 1024}
READINGS = "readings_per_s"
GATHERED = "gathered_readings_per_s"
TENSORS = "tensor_1MB_bytes_per_s"
INFERENCE = "remote_inference_overhead"
RUNS = (*LATENCY_BYTES, READINGS, GATHERED, TENSORS, INFERENCE)
"""The names of all runs. A latency run gives two measures."""

TENSOR_ELEMENTS = 250_000
"""Elements of four bytes each, 1 MB in all."""
WARM_UP = 0.15
STALL_S = 10.0
"""A run ends when nothing was heard for this long."""
BEGIN = -1.0
FINISH = -2.0
PUTS_PER_CLOCK = 32
"""Small readings that are put between two looks at the clock. As many are put together in the gathered run."""


def percentile(sorted_values: Sequence[_N], share: float) -> _N:
    """The value below which a ``share`` of the values lies."""
    return sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)]


class Echo:
    """The far half of the latency runs. It sends each ping back."""

    def __init__(self, contender: Contender) -> None:
        pong = contender.publisher("veh/bench-far/pong", batched=False)
        contender.subscribe("veh/bench-near/ping", lambda reading: pong(reading.value))


class Pinger:
    """The near half of the latency runs."""

    def __init__(self, contender: Contender) -> None:
        self._put = contender.publisher("veh/bench-near/ping", batched=False)
        self._times_ns: list[int] = []
        self._begin_ns = 0
        self._end_ns = 0
        self._value = b""
        self._over = threading.Event()
        contender.subscribe("veh/bench-far/pong", self._pong)

    def _pong(self, reading: Any) -> None:
        now_ns = time.perf_counter_ns()
        if len(reading.value) != len(self._value):
            return  # it belongs to a run that was given up
        self._times_ns.append(now_ns - self._begin_ns)
        if now_ns >= self._end_ns:
            self._over.set()
            return
        self._begin_ns = time.perf_counter_ns()
        self._put(self._value)

    def run(self, size_bytes: int, seconds: float) -> dict[str, float]:
        """Measure the one-way latency in microseconds. :raises BenchmarkFailed: when a reading is lost."""
        self._value = b"x" * size_bytes
        self._times_ns = []
        self._over.clear()
        self._end_ns = time.perf_counter_ns() + int(seconds * 1e9)
        self._begin_ns = time.perf_counter_ns()
        self._put(self._value)
        if not self._over.wait(seconds + STALL_S):
            raise BenchmarkFailed(
                f"no pong after {len(self._times_ns)} round trips of {size_bytes} B: a reading was lost"
            )
        times_ns = sorted(self._times_ns[int(len(self._times_ns) * WARM_UP) :])
        return {
            "p50": percentile(times_ns, 0.50) / 2000,
            "p99": percentile(times_ns, 0.99) / 2000,
            "samples": len(times_ns),
        }


class Counter:
    """The far half of a throughput run. It counts between the marks."""

    def __init__(self, contender: Contender, key: str, look: Callable[[Any], float]) -> None:
        self._look = look
        self._begin_s = self._seconds = 0.0
        self._count = 0
        self._finished = threading.Event()
        contender.subscribe(key, self._take)

    def _take(self, reading: Any) -> None:
        value = self._look(reading.value)
        if value >= 0:
            self._count += 1
        elif value == BEGIN:
            self._finished.clear()
            self._count = 0
            self._begin_s = time.perf_counter()
        else:
            self._seconds = time.perf_counter() - self._begin_s
            self._finished.set()

    def result(self) -> tuple[int, float]:
        """How many readings came, and in how many seconds. :raises BenchmarkFailed: when the last mark is missing."""
        if not self._finished.wait(STALL_S):
            raise BenchmarkFailed(f"the stream stalled after {self._count} readings: its last mark did not arrive")
        self._finished.clear()
        return self._count, self._seconds


def flood(put: Callable[[Any], object], value: Any, mark: Callable[[float], Any], puts: int, seconds: float) -> int:
    """The near half of a throughput run. Returns how many readings were put between the marks."""
    end_s = time.perf_counter() + seconds * WARM_UP
    while time.perf_counter() < end_s:
        for _ in range(puts):
            put(value)
    put(mark(BEGIN))
    count = 0
    end_s = time.perf_counter() + seconds * (1 - WARM_UP)
    while time.perf_counter() < end_s:
        for _ in range(puts):
            put(value)
        count += puts
    put(mark(FINISH))
    return count


def touch_array(value: Any) -> float:
    """Read one element of every page of a tensor, as a NumPy array. Returns the first."""
    import numpy as np

    array = np.asarray(value)
    if array.shape != (TENSOR_ELEMENTS,) or float(array[::1024].sum()) == 0.0:
        raise BenchmarkFailed(f"an array of shape {array.shape} arrived instead of {TENSOR_ELEMENTS} elements")
    return float(array[0])


class FarEnd:
    """All that the far end does."""

    def __init__(self, contender: Contender) -> None:
        Echo(contender)
        self._counters = {
            READINGS: Counter(contender, "veh/bench-near/small", float),
            GATHERED: Counter(contender, "veh/bench-near/gathered", float),
            TENSORS: Counter(contender, "veh/bench-near/tensor", touch_array),
        }

    def result(self, run: str) -> tuple[int, float]:
        """What arrived in a throughput run: count and seconds. :raises BenchmarkFailed: when its end did not arrive."""
        return self._counters[run].result()


class NearEnd:
    """All that the near end does."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._pinger = Pinger(contender)
        self._put_small = contender.publisher("veh/bench-near/small", batched=True)
        self._put_all = contender.gatherer("veh/bench-near/gathered")
        self._put_tensor = contender.publisher("veh/bench-near/tensor", batched=True)

    def latency(self, run: str, seconds: float) -> dict[str, float]:
        """``p50`` and ``p99`` of the one-way latency in microseconds."""
        return self._pinger.run(LATENCY_BYTES[run], seconds)

    def flood(self, run: str, seconds: float) -> int:
        """Send for ``seconds``. Returns how many readings were put between the marks."""
        if run == READINGS:
            return flood(self._put_small, 13.25, lambda mark: mark, PUTS_PER_CLOCK, seconds)
        if run == GATHERED:
            lists = flood(self._put_all, [13.25] * PUTS_PER_CLOCK, lambda mark: [mark], 1, seconds)
            return lists * PUTS_PER_CLOCK
        import numpy as np

        def mark(value: float) -> Any:
            return np.full(TENSOR_ELEMENTS, value, dtype=np.float32)

        return flood(self._put_tensor, mark(1.0), mark, 1, seconds)

    def inference(self, seconds: float) -> float:
        """Median overhead of a remote inference in milliseconds."""
        from benchmarks.model import sample_input

        overheads_ns = self._contender.infer(sample_input(), seconds)
        counted = overheads_ns[int(len(overheads_ns) * WARM_UP) :]
        if not counted:
            raise BenchmarkFailed(f"no inference was answered in {seconds:.1f} s")
        return statistics.median(counted) / 1e6
