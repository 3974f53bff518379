"""What a benchmark that shares its computer says beside its figures: the load of others, and percentiles."""

import contextlib
import os
import time

import psutil


class Cores:
    """Measures how much of the computer programs outside this benchmark take."""

    def __init__(self) -> None:
        self._all, self._ours, self._since_s = self._look()

    @staticmethod
    def _look() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        all_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        own = psutil.Process()
        ours_s = 0.0
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                ours_s += used.user + used.system
        return all_s, ours_s, time.monotonic()

    def others_share(self) -> float:
        """Their share of all cores since this object was made."""
        all_s, ours_s, now_s = self._look()
        others_s = (all_s - self._all) - (ours_s - self._ours)
        return max(0.0, others_s / ((now_s - self._since_s) * (os.cpu_count() or 1)))


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """The median, the 99th percentile and the largest; 0 without values."""
    ordered = sorted(values) or [0.0]
    return round(ordered[len(ordered) // 2], 1), round(ordered[int(len(ordered) * 0.99)], 1), round(ordered[-1], 1)
