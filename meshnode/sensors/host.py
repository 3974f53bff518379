"""Measures the computer that the node runs on: load, memory, temperature.

Options: ``interval_s`` between two measurements. Values that the computer can't measure (temperature in most virtual
machines) are left out. Keys: ``<prefix>/host/cpu``, ``…/memory``, ``…/temperature``.
"""

from collections.abc import Generator, Mapping
from typing import Any, Final, Self

from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.options import Options

SENSOR: Final = "host"


class HostMetrics:
    """A live driver: it blocks until the next measurement is due."""

    def __init__(self, context: DriverContext, interval_s: float = 5.0) -> None:
        self._context = context
        self._interval_s = interval_s

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. :raises ConfigError: one is wrong or unknown."""
        read = Options("host", options)
        interval_s = read.number("interval_s", 5.0, 0.1, 86_400.0)
        read.finish()
        return cls(context, interval_s)

    def samples(self) -> Generator[Sample, None, None]:
        """Up to three samples every interval, until the node stops."""
        import psutil

        prefix = f"{self._context.prefix}/host"
        psutil.cpu_percent(None)  # It measures the load since the call before; the first call has none.
        next_s = self._context.elapsed_s() + self._interval_s
        while self._context.wait(next_s):
            due_s = self._context.elapsed_s()
            cpu_percent, memory_percent = float(psutil.cpu_percent(None)), float(psutil.virtual_memory().percent)
            yield Sample(due_s, f"{prefix}/cpu", cpu_percent, "%", SENSOR, priority=1)
            yield Sample(due_s, f"{prefix}/memory", memory_percent, "%", SENSOR, priority=1)
            hottest = _hottest_celsius(psutil)
            if hottest is not None:
                yield Sample(due_s, f"{prefix}/temperature", hottest, "Cel", SENSOR, priority=1)
            # After a suspension the missed measurements are skipped, not made up for.
            next_s = max(next_s + self._interval_s, self._context.elapsed_s())


def _hottest_celsius(psutil: Any) -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)
    try:
        chips = read() if read is not None else {}
    except (OSError, ValueError):
        return None
    values = [float(entry.current) for entries in chips.values() for entry in entries if entry.current]
    return max(values, default=None)
