"""What is measured of the releases that serve, and of those that run beside them on live inputs.

A release beside the one that serves runs in a process that gets only idle processor time. It is given a live input when
it has none, and all others pass by: whoever asked for an inference never waits for it. What it answers is compared with
what was answered. What one neighbour alone has asked for does not decide (:mod:`~.askers`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from meshnode.models import Cancellation, Job, LoadedModel, Outcome, RunDone
from meshnode.models.worker import WorkerModel
from meshnode.releases.install.askers import AskedRuns, Asker, Timed, p95s_ns
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid
from protocols.base.limits import SECOND
from protocols.releases.events import Measures

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SHADOW_HZ: Final = 10.0
_RECENT_RUNS: Final = 200
"""Runs whose 95th percentile is told: ten of them may take longer."""
_LONGEST_RUN_NS: Final = 30 * SECOND
"""A run with idle processor time may take long; one that takes longer hangs."""
_CLOSE_SHARE: Final = 0.95
_CLOSE_RANGE: Final = 0.05
"""Two outputs agree when so large a share of their values differs by at most so large a part of the largest value of
the earlier one. Weights that were trained further answer a little differently."""


class LiveRuns:
    """The runs of one version that answered requests."""

    def __init__(self) -> None:
        self._runs = AskedRuns()
        self._timed: deque[Timed] = deque(maxlen=_RECENT_RUNS)

    def note(self, outcome: Outcome, asked_by: Asker = None) -> None:
        """A run has ended. What the caller did wrong, or no longer wanted, is not held against the model."""
        if isinstance(outcome, RunDone):
            self._runs.note(asked_by, is_bad=False)
            self._timed.append((asked_by, outcome.compute_ns))
        elif outcome.began and not outcome.cancelled and not isinstance(outcome.error, InputInvalid):
            self._runs.note(asked_by, is_bad=True)

    def counted(self) -> tuple[int, int]:
        """Runs that count, and errors among them."""
        return self._runs.counted()

    def timed(self) -> list[Timed]:
        """The last runs that ended well."""
        return list(self._timed)


class Shadow:
    """One release that runs beside the one that serves."""

    def __init__(self, counter: int, model: WorkerModel, *, takes_live_inputs: bool = True) -> None:
        """``model``: in a process with idle processor time, which :meth:`close` ends. ``takes_live_inputs``: whether it
        takes and gives what the release that serves does. Otherwise nothing can be compared, and it runs on nothing."""
        self.counter, self.takes_live_inputs = counter, takes_live_inputs
        self._model = model
        self._runs, self._compared = AskedRuns(), AskedRuns()
        self._wanted = threading.Condition()
        self._next: tuple[Job, RunDone] | None = None
        self._closed = False
        self._cancel: Cancellation | None = None
        self._thread = threading.Thread(target=self._work, name="release-shadow", daemon=True)
        self._thread.start()

    def offer(self, job: Job, outcome: RunDone) -> None:
        """Let it run a live input, if it has nothing to do. It never blocks."""
        if self.takes_live_inputs and self._next is None and self._wanted.acquire(blocking=False):
            try:
                self._next = job, outcome
                self._wanted.notify()
            finally:
                self._wanted.release()

    def _work(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._next is not None or self._closed)
                if self._closed or self._next is None:
                    return
                job, outcome = self._next
                self._cancel = Cancellation(time.monotonic_ns() + _LONGEST_RUN_NS)
            began_s = time.monotonic()
            self._run(job, outcome, self._cancel)
            pause_s = max(1 / MAX_SHADOW_HZ, time.monotonic() - began_s)
            del job, outcome
            with self._wanted:
                if self._wanted.wait_for(lambda: self._closed, pause_s):
                    return
                self._next = None

    def _run(self, job: Job, outcome: RunDone, cancel: Cancellation) -> None:
        wanted = tuple(name for name, _ in outcome.outputs)
        try:
            outputs = dict(self._model.run(job.inputs, wanted, cancel))
            given = [(before, outputs[name]) for name, before in outcome.outputs]
        except BudgetExhausted:
            return  # it may only have waited for a processor; one that hangs is found out when a canary serves it
        except (InferenceError, KeyError):  # it lacks an output that was given
            if not self._closed:
                self._runs.note(job.asked_by, is_bad=True)  # the one that serves has answered the same input
            return
        is_worse = any(_is_worse(before, now) for before, now in given)
        self._compared.note(job.asked_by, is_bad=is_worse or not all(agree(before, now) for before, now in given))
        self._runs.note(job.asked_by, is_bad=is_worse)  # last: whoever sees the run sees what came of it

    def counted(self) -> tuple[int, int]:
        """Runs that count, and errors among them."""
        return self._runs.counted()

    def compared(self) -> tuple[int, int]:
        """Runs whose outputs were compared, and those among them that agreed."""
        compared, disagreed = self._compared.counted()
        return compared, compared - disagreed

    def close(self) -> None:
        """End it, and its process."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
            if self._cancel is not None:
                self._cancel.cancel()
        self._model.close()
        self._thread.join(5)


def _is_worse(before: "NDArray[Any]", now: "NDArray[Any]") -> bool:
    """Whether a value is not a number, or infinite, where none was."""
    import numpy as np

    return now.dtype.kind == "f" and not np.isfinite(now).all() and bool(np.isfinite(before).all())


def agree(before: "NDArray[Any]", now: "NDArray[Any]") -> bool:
    """Whether two outputs for one input say the same, as far as two versions of a model do."""
    import numpy as np

    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    if before.size == 0:
        return True
    if before.dtype.kind != "f":
        return float(np.mean(before == now)) >= _CLOSE_SHARE
    largest = float(np.nanmax(np.abs(before), initial=0.0, where=np.isfinite(before)))
    close = np.isclose(now, before, rtol=0.0, atol=_CLOSE_RANGE * largest, equal_nan=True)
    return float(np.mean(close)) >= _CLOSE_SHARE


@dataclass(slots=True, eq=False)
class Watched:
    """One path: who serves, who is beside it, and what was found. Its methods may be called from any thread."""

    counter: int
    serving: Callable[[], LoadedModel | None]
    """What answers requests now."""
    live: LiveRuns = field(default_factory=LiveRuns)
    before: LiveRuns = field(default_factory=LiveRuns)
    """The runs of the release before."""
    shadow: Shadow | None = None
    _earlier: dict[int, tuple[int, int]] = field(default_factory=dict)
    """What was compared of releases while they were beside the one that served."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held where one of both changes."""

    def counters(self) -> set[int]:
        """The releases that something can be told of: the one that serves, and the one beside it."""
        shadow = self.shadow
        return {self.counter, *([] if shadow is None else [shadow.counter])}

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A run has ended, on the thread that ran it."""
        live, shadow = self.live, self.shadow
        if job.model is self.serving():
            live.note(outcome, job.asked_by)
            if shadow is not None and isinstance(outcome, RunDone):
                shadow.offer(job, outcome)

    def serves(self, counter: int) -> None:
        """A release serves from now on."""
        with self._lock:
            if counter == self.counter:
                return
            self._end_shadow()
            self.before = self.live
            self.counter, self.live = counter, LiveRuns()

    def begin_shadow(self, shadow: Shadow) -> None:
        """Run a release beside the one that serves, in place of any other one. One that has come to serve meanwhile is
        ended."""
        with self._lock:
            self._end_shadow()
            if shadow.counter == self.counter:
                shadow.close()
            else:
                self.shadow = shadow

    def end_shadow(self, counter: int | None = None) -> None:
        """End the release beside the one that serves, if there is one. ``counter``: only this one; None: any."""
        with self._lock:
            if self.shadow is not None and counter in (None, self.shadow.counter):
                self._end_shadow()

    def _end_shadow(self) -> None:
        shadow, self.shadow = self.shadow, None
        if shadow is not None:
            shadow.close()
            self._earlier = {shadow.counter: shadow.compared()}

    def measures(self, counter: int) -> Measures | None:
        """What was measured of a release; None: it neither serves nor runs beside.

        The times of one that runs beside are not told: it waits for a processor that nobody else wants.
        """
        shadow = self.shadow
        if shadow is not None and shadow.counter == counter:
            return Measures(*shadow.counted(), 0, p95s_ns(self.live.timed(), ())[0], *shadow.compared())
        if counter != self.counter:
            return None
        live = self.live
        p95s = p95s_ns(live.timed(), self.before.timed())
        return Measures(*live.counted(), *p95s, *self._earlier.get(counter, (0, 0)))
