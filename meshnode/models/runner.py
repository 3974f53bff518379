"""The threads that run models, with a bounded queue before them.

Invariants:

- Every accepted job gets exactly one outcome, by its callback, also when the runner is closed. The callback runs on a
  worker thread; that of a job that is cancelled while it waits runs on the thread that cancels.
- A job is not run when its budget ran out before its turn. One that is cancelled before its turn is dropped at once,
  because a neighbour could otherwise fill the memory by asking and cancelling.
- Jobs of this node go before those of neighbours, which take turns (:mod:`protocols.base.waiting`). A run under way is
  not interrupted. Threads start with the first job and end with :meth:`Runner.close`.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.model import Cancellation, Inputs, LoadedModel
from protocols.base.errors import BoundExceeded, BudgetExhausted, InferenceError
from protocols.base.ids import ModelDigest
from protocols.base.limits import MAX_OFFERS, MAX_PENDING_REQUESTS, MAX_SERVED_REQUESTS
from protocols.base.waiting import WaitingJobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_WORKERS: Final = 64
MAX_WAITING: Final = MAX_PENDING_REQUESTS + MAX_SERVED_REQUESTS
"""Jobs held at once: the engine's bounds of own requests and of neighbours' requests together."""
MEDIAN_WINDOW: Final = 31
"""The number of runs whose median is the model's cost. It is odd, and short enough to follow a throttled processor
within seconds."""
MAX_SLOWDOWN: Final = 1_000.0
_WARM_UP_RUNS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One run that somebody wants."""

    model: LoadedModel
    inputs: Inputs
    outputs: tuple[str, ...] = ()
    """The names of the outputs that are wanted. None named: all of them."""
    deadline_ns: int | None = None
    """An instant of ``time.monotonic_ns``; the job is not started after it."""
    asked_by: str | None = None
    """The neighbour that wants it; None: this node."""


@dataclass(frozen=True, slots=True)
class RunDone:
    """The job ran."""

    outputs: "tuple[tuple[str, NDArray[Any]], ...]"
    queued_ns: int
    compute_ns: int
    """Includes the emulated slowdown, as the slower device would have measured it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has no result."""

    error: InferenceError
    """``InputInvalid``, ``BudgetExhausted``, or what the model said. A cancelled job has a plain ``InferenceError``."""
    queued_ns: int
    cancelled: bool = False


Outcome = RunDone | Failed
Callback = Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job
    callback: Callback
    cancel: Cancellation
    submitted_ns: int
    begun_ns: int = 0


class Runner:
    """A pool of worker threads for all models of one node.

    ``emulate_slowdown`` k stretches every run to k times its compute time by sleeping, so that a slow device class
    can be shown on a fast host; 1 leaves runs alone.
    """

    def __init__(self, workers: int = 1, max_waiting: int = MAX_WAITING, emulate_slowdown: float = 1.0) -> None:
        if not 1 <= workers <= MAX_WORKERS or not 1.0 <= emulate_slowdown <= MAX_SLOWDOWN or max_waiting < 1:
            raise BoundExceeded(
                f"a runner of {workers} workers, {max_waiting} waiting, slowdown {emulate_slowdown}: "
                f"use 1 to {MAX_WORKERS} workers, at least 1 waiting, a slowdown of 1 to {MAX_SLOWDOWN:g}"
            )
        self._workers = workers
        self._max_waiting = max_waiting
        self._slowdown = emulate_slowdown
        self._condition = threading.Condition()
        self._queue: WaitingJobs[_Entry] = WaitingJobs()
        self._running: set[_Entry] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._times_us: OrderedDict[ModelDigest, deque[int]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """The number of jobs that are queued, and of jobs under way."""
        with self._condition:
            return len(self._queue) + len(self._running)

    def queue_ns(self) -> tuple[int, int]:
        """How long a job of a neighbour that comes now would wait before it begins, and how long one of this node."""
        with self._condition:
            if len(self._queue) + len(self._running) < self._workers:
                return 0, 0
            now_ns = time.monotonic_ns()
            running_ns = sum(max(self._cost_ns(entry) - (now_ns - entry.begun_ns), 0) for entry in self._running)
            own_ns = running_ns + sum(map(self._cost_ns, self._queue.own()))
            all_ns = running_ns + sum(map(self._cost_ns, self._queue.all()))
        return all_ns // self._workers, own_ns // self._workers

    def _cost_ns(self, entry: _Entry) -> int:
        times = self._times_us.get(entry.job.model.digest)
        return int(median(times)) * 1_000 if times else 0

    def median_us(self, model: LoadedModel) -> int | None:
        """Median compute time of the last ``MEDIAN_WINDOW`` runs in microseconds; None before the first."""
        with self._condition:
            times = self._times_us.get(model.digest)
            return int(median(times)) if times else None

    def submit(self, job: Job, callback: Callback) -> Cancellation:
        """Queue a job and return the switch that cancels it. Never blocks; inputs are checked before they are queued.

        :raises InputInvalid: the inputs don't fit the model.
        :raises BoundExceeded: the queue is full, or the runner is closed. The callback isn't called then.
        """
        job.model.check(job.inputs)
        entry = _Entry(job, callback, Cancellation(), time.monotonic_ns())
        entry.cancel.when_cancelled(lambda: self._withdraw(entry))
        with self._condition:
            if self._closed:
                raise BoundExceeded("the runner is closed: the node is shutting down")
            if len(self._queue) + len(self._running) >= self._max_waiting:
                raise BoundExceeded(f"{self._max_waiting} runs are waiting already: ask later, or another node")
            self._queue.put(entry, job.asked_by, job.deadline_ns)
            if len(self._threads) < min(self._workers, len(self._queue) + len(self._running)):
                self._start_worker()
            self._condition.notify()
        return entry.cancel

    def warm_up(self, model: LoadedModel) -> int | None:
        """Run the model on zeros, blocking, so that its first caller finds it warm and its cost is known.

        Returns :meth:`median_us`; None when the model leaves sizes open that its spec doesn't give.

        :raises ModelInvalid: the spec's shapes don't fit the model.
        :raises InferenceError: the model can't compute zeros.
        """
        zeros = model.zeros()
        if zeros is None:
            return None
        model.run(zeros)  # The first run allocates memory, so its time says nothing about the next one.
        times_ns = []
        for _ in range(_WARM_UP_RUNS):
            started_ns = time.monotonic_ns()
            model.run(zeros)
            times_ns.append(time.monotonic_ns() - started_ns)
        # The shortest counts: at the start other programs are busy too, and the cost of a model that never runs is
        # never corrected.
        self._record(model.digest, int(min(times_ns) * self._slowdown))
        return self.median_us(model)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Cancel everything, tell every callback, and end the threads. Returns whether all ended in time.
        Idempotent."""
        with self._condition:
            self._closed = True
            entries = (*self._running, *self._queue.all())
            threads = tuple(self._threads)
            self._condition.notify_all()
        for entry in entries:
            entry.cancel.cancel()
        ends_at = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, ends_at - time.monotonic()))
        return not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())

    def _withdraw(self, entry: _Entry) -> None:
        """Drop a cancelled job, if it still waits."""
        with self._condition:
            if not self._queue.remove(entry, entry.job.asked_by):
                return
        self._tell(entry, self._outcome(entry))

    def _tell(self, entry: _Entry, outcome: Outcome) -> None:
        try:
            entry.callback(outcome)
        except Exception:  # noqa: BLE001 - the callback is another's; the worker must go on
            _log.exception("the callback of a run of model %r failed", entry.job.model.name)

    def _start_worker(self) -> None:
        # It is a daemon: a run that doesn't end must not keep the process from exiting after close() gave up on it.
        thread = threading.Thread(target=self._work, name=f"model-runner-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if not self._queue:
                    return
                entry = self._queue.take()
                entry.begun_ns = time.monotonic_ns()
                self._running.add(entry)
            outcome = self._outcome(entry)
            with self._condition:
                self._running.discard(entry)
            self._tell(entry, outcome)
            # Drop the tensors now, not when the next job comes.
            del entry, outcome

    def _outcome(self, entry: _Entry) -> Outcome:
        job = entry.job
        started_ns = time.monotonic_ns()
        queued_ns = started_ns - entry.submitted_ns
        if entry.cancel.cancelled:
            early = InferenceError(f"the run of model {job.model.name!r} was cancelled before it started")
            return Failed(early, queued_ns, cancelled=True)
        if job.deadline_ns is not None and started_ns >= job.deadline_ns:
            late_ms = (started_ns - job.deadline_ns) / 1e6
            waited_ms = queued_ns / 1e6
            return Failed(
                BudgetExhausted(
                    f"the run of model {job.model.name!r} waited {waited_ms:.1f} ms and its deadline passed "
                    f"{late_ms:.1f} ms ago: give it a larger budget, or ask another node"
                ),
                queued_ns,
            )
        try:
            outputs = job.model.run(job.inputs, job.outputs, entry.cancel)
        except InferenceError as error:
            return Failed(error, queued_ns, entry.cancel.cancelled)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            _log.exception("model %r failed in an unforeseen way", job.model.name)
            return Failed(InferenceError(f"model {job.model.name!r} failed: {error!r}"[:500]), queued_ns)
        compute_ns = time.monotonic_ns() - started_ns
        if self._slowdown > 1.0:
            if entry.cancel.wait(compute_ns * (self._slowdown - 1.0) / 1e9):
                return Failed(InferenceError(f"the run of model {job.model.name!r} was cancelled"), queued_ns, True)
            compute_ns = time.monotonic_ns() - started_ns
        self._record(job.model.digest, compute_ns)
        return RunDone(tuple(outputs), queued_ns, compute_ns)

    def _record(self, digest: ModelDigest, compute_ns: int) -> None:
        with self._condition:
            if digest not in self._times_us and len(self._times_us) >= MAX_OFFERS:
                self._times_us.popitem(last=False)
            self._times_us.setdefault(digest, deque(maxlen=MEDIAN_WINDOW)).append(max(1, compute_ns // 1_000))
