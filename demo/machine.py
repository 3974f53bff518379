"""How busy and how slow this machine was while the demonstration ran.

A missed timing is evidence against the mesh only if the machine was fast enough to keep it. Three signs say that it was
not: a probe that only wanted to wake up had to wait, other programs used the processors, or the processor is slow. The
processor time of the demonstration itself is not such a sign, because a mesh that keeps the processors busy is at
fault.
"""

import os
import resource
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psutil

STEP_S = 0.1
"""The time between two wakings of the probe."""
LATE_S = 0.1
"""The machine is too slow when the probe wakes later than this, two fifths of a heartbeat interval. A node that waits
as long for a processor is late because of the machine."""
OTHERS_SHARE = 0.5
"""The machine is too slow when other programs use more than this share of all processors. A smaller load never made the
demonstration miss a timing, so it must not be an excuse."""
SLOW_START_S = 0.1
"""The machine is too slow when a bare interpreter needs more processor time than this to start: ten times that of the
machines on which the timings were promised."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the probe saw when it woke."""

    at_s: float
    """The time of ``time.time``, like all times here."""
    late_s: float
    """How long after it was due."""
    used_s: float
    """Processor time used by all programs since the start of the machine, including time that a hypervisor took."""
    ours_s: float
    """Processor time used by the demonstration's own processes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The record of one run."""

    bare_start_s: float
    """Processor time that an interpreter takes to start without importing anything."""
    moments: Sequence[Moment]
    processors: int

    def why_slow(self, begin_s: float, end_s: float) -> str:
        """Why the machine could not keep a timing between two instants; empty when it could."""
        within = self._within(begin_s, end_s)
        late_s = max((moment.late_s for moment in within[1:]), default=0.0)
        others = self._others_share(within)
        signs = {
            f"a process that only wanted to wake up waited {late_s:.2f} s": late_s > LATE_S,
            f"other programs used {others:.0%} of the processors": others > OTHERS_SHARE,
            f"a bare interpreter needs {self.bare_start_s:.2f} s of processor time to start":
                self.bare_start_s > SLOW_START_S,
        }  # fmt: skip
        return ", ".join(sign for sign, seen in signs.items() if seen)

    def summary(self) -> dict[str, float]:
        """Figures of the whole run, by name."""
        return {
            "bare_interpreter_start_s": round(self.bare_start_s, 4),
            "probe_latest_s": round(max((moment.late_s for moment in self.moments), default=0.0), 3),
            "others_share": round(self._others_share(self.moments), 3),
            "processors": self.processors,
        }

    def _within(self, begin_s: float, end_s: float) -> Sequence[Moment]:
        """The moments that enclose the time between two instants."""
        times = [moment.at_s for moment in self.moments]
        return self.moments[max(bisect_left(times, begin_s) - 1, 0) : bisect_left(times, end_s) + 1]

    def _others_share(self, moments: Sequence[Moment]) -> float:
        if len(moments) < 2:
            return 0.0
        first, last = moments[0], moments[-1]
        used_s = last.used_s - first.used_s - (last.ours_s - first.ours_s)
        return max(used_s, 0.0) / (self.processors * (last.at_s - first.at_s))


class Watch:
    """The probe: a context in which a thread wakes every ``STEP_S`` and takes notes."""

    def __init__(self, ours_s: Callable[[], float]) -> None:
        """``ours_s``: processor time used by the demonstration so far; called on the probe's thread."""
        self._ours_s = ours_s
        self._moments: list[Moment] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._bare_start_s = min(_bare_start_s() for _ in range(3))

    def machine(self) -> Machine:
        """The record of the machine so far."""
        return Machine(self._bare_start_s, tuple(self._moments), os.cpu_count() or 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        late_s = ours_s = 0.0
        ended = False
        while True:
            ours_s = max(ours_s, self._ours_s())  # a process that ends just now may be missing from one sum
            self._moments.append(Moment(time.time(), late_s, _used_s(psutil.cpu_times()), ours_s))
            if ended:
                return
            slept_s = time.monotonic()
            ended = self._end.wait(STEP_S)
            late_s = max(time.monotonic() - slept_s - STEP_S, 0.0)


def _used_s(times: Any) -> float:
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def ended_children_s() -> float:
    """Processor time of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bare_start_s() -> float:
    before_s = ended_children_s()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True, stdin=subprocess.DEVNULL)
    return ended_children_s() - before_s
