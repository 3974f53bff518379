"""The threads that run models, with a bounded queue before them.

Invariants:

- Every accepted job gets exactly one outcome, by its callback, also when the runner is closed. The callback runs on a
  worker thread; that of a job that is cancelled while it waits runs on the thread that cancels.
- A job is not run when its budget ran out before its turn. One that is cancelled before its turn is dropped at once,
  because a neighbour could otherwise fill the memory by asking and cancelling.
- Jobs of this node go before those of neighbours, which take turns (:mod:`protocols.base.waiting`). Threads start with
  the first job and end with :meth:`Runner.close`.
- A run that is held up (it takes far longer than usual, or its worker process was lost) goes on aside: with its thread
  and the waiting jobs of its model it leaves the others, and a new thread takes its place. Afterwards the model comes
  back, unless it has crashed or hung: then it stays apart, with one thread of its own.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.costs import RunCosts
from meshnode.models.jobs import Callback, Failed, Job, Outcome, RunDone
from meshnode.models.model import Cancellation, LoadedModel
from protocols.base.errors import BoundExceeded, BudgetExhausted, InferenceError
from protocols.base.limits import MAX_PENDING_REQUESTS, MAX_SERVED_REQUESTS
from protocols.base.time import NEVER
from protocols.base.waiting import WaitingJobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_WORKERS: Final = 64
MAX_WAITING: Final = MAX_PENDING_REQUESTS + MAX_SERVED_REQUESTS
"""Jobs held at once: the engine's bounds of own requests and of neighbours' requests together."""
MAX_SLOWDOWN: Final = 1_000.0
_WARM_UP_RUNS: Final = 3
_LINGER_S: Final = 10.0
"""How long the thread of a single model waits for its next job before it ends."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job
    callback: Callback
    cancel: Cancellation
    submitted_ns: int
    pool: "_Pool"
    number: int | None = None
    """Its place among the jobs that wait."""
    begun_ns: int = 0
    """When its run under way began."""
    turn: int = 1
    """How many runs it may do then, one after the other."""
    ended: int = 0
    """How many of its runs have ended …"""
    compute_ns: int = 0
    """… how long they took …"""
    outputs: "tuple[tuple[str, NDArray[Any]], ...]" = ()
    """… and what they gave."""


class _Pool:
    """A queue and the threads that serve it: that of all models, or that of one model. The runner's lock guards it."""

    def __init__(self, size: int, lock: threading.RLock) -> None:
        """``size``: how many threads there may be."""
        self.size, self.threads = size, 0
        self.queue: WaitingJobs[_Entry] = WaitingJobs()
        self.running: set[_Entry] = set()
        self.changed = threading.Condition(lock)
        self.lingers = False
        """Whether a thread of a single model waits for the next job."""

    @property
    def waiting(self) -> int:
        """Jobs that are queued or under way."""
        return len(self.queue) + len(self.running)


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
        self._max_waiting = max_waiting
        self._slowdown = emulate_slowdown
        self._lock = threading.RLock()
        self._shared = _Pool(workers, self._lock)
        self._apart: dict[str, _Pool] = {}
        """Pools of single models, by name. One that is empty is removed."""
        self._threads: set[threading.Thread] = set()
        self._wanted: deque[_Pool] = deque()
        """Pools for which a thread has to be started, once the lock is free."""
        self._closed = False
        self._costs = RunCosts()

    @property
    def waiting(self) -> int:
        """The number of jobs that are queued, and of jobs under way."""
        with self._lock:
            return sum(pool.waiting for pool in self._pools())

    def queue_ns(self, model: LoadedModel) -> tuple[int, int]:
        """How long a job of a neighbour for that model that comes now would wait before it begins, and how long one of
        this node."""
        with self._lock:
            pool = self._pool_of(model)
            if pool.waiting < pool.size:
                return 0, 0
            now_ns = time.monotonic_ns()
            running_ns = sum(max(self._cost_ns(entry) - (now_ns - entry.begun_ns), 0) for entry in pool.running)
            own_ns = running_ns + sum(map(self._cost_ns, pool.queue.own()))
            all_ns = own_ns + sum(map(self._cost_ns, pool.queue.served()))
        return all_ns // pool.size, own_ns // pool.size

    def _cost_ns(self, entry: _Entry) -> int:
        return (self._costs.median_us(entry.job.model.digest) or 0) * 1_000 * (entry.job.runs - entry.ended)

    def uses(self, model: LoadedModel) -> bool:
        """Whether a job for exactly this model waits or is under way."""
        with self._lock:
            entries = (entry for pool in self._pools() for entry in (*pool.running, *pool.queue.all()))
            return any(entry.job.model is model for entry in entries)

    def median_us(self, model: LoadedModel) -> int | None:
        """Median compute time of the last ``MEDIAN_WINDOW`` runs in microseconds; None before the first."""
        return self._costs.median_us(model.digest)

    def p95_us(self, model: LoadedModel) -> int | None:
        """The 95th percentile of the last ``SPREAD_WINDOW`` compute times in microseconds; None before the first."""
        return self._costs.p95_us(model.digest)

    def submit(self, job: Job, callback: Callback) -> Cancellation:
        """Queue a job and return the switch that cancels it. Never blocks; inputs are checked before they are queued.

        :raises InputInvalid: the inputs don't fit the model.
        :raises BoundExceeded: the queue is full, or the runner is closed. The callback isn't called then.
        """
        for inputs in (job.inputs, *job.further):
            job.model.check(inputs)
        cancel = Cancellation(job.deadline_ns)
        with self._lock:
            entry = _Entry(job, callback, cancel, time.monotonic_ns(), self._pool_of(job.model))
            if self._closed:
                raise BoundExceeded("the runner is closed: the node is shutting down")
            if sum(pool.waiting for pool in self._pools()) >= self._max_waiting:
                raise BoundExceeded(f"{self._max_waiting} runs are waiting already: ask later, or another node")
            cancel.when_cancelled(lambda: self._withdraw(entry))
            cancel.held_up = lambda: self._set_aside(entry)
            if entry.pool is not self._shared:
                self._apart[job.model.name] = entry.pool
            self._queue(entry)
            ceding = [running for running in entry.pool.running if running.turn > 1 and _goes_before(job, running.job)]
        for running in ceding:
            running.cancel.cede()
        self._start_threads()
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
            started_ns, cancel = time.monotonic_ns(), Cancellation()
            model.run(zeros, (), cancel)
            took_ns = time.monotonic_ns() - started_ns
            times_ns.append(took_ns + self._stretch_ns(cancel, took_ns))
        # The shortest counts: at the start other programs are busy too, and the cost of a model that never runs is
        # never corrected.
        self._costs.record(model.digest, min(times_ns))
        return self.median_us(model)

    def _stretch_ns(self, cancel: Cancellation, took_ns: int) -> int:
        """How much longer the emulated device takes for the last run. The way to a worker process is as long as it
        is."""
        return int((cancel.compute_ns or took_ns) * (self._slowdown - 1.0))

    def close(self, timeout_s: float = 5.0) -> bool:
        """Cancel everything, tell every callback, and end the threads. Returns whether all ended in time.
        Idempotent."""
        with self._lock:
            self._closed = True
            entries = [entry for pool in self._pools() for entry in (*pool.running, *pool.queue.all())]
            threads = tuple(self._threads)
            for pool in self._pools():
                pool.changed.notify_all()
        for entry in entries:
            entry.cancel.cancel()
        ends_at = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, ends_at - time.monotonic()))
        return not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())

    # --- pools; the caller holds the lock ----------------------------------------------------------------------------
    def _pools(self) -> tuple[_Pool, ...]:
        return self._shared, *self._apart.values()

    def _pool_of(self, model: LoadedModel) -> _Pool:
        pool = self._apart.get(model.name)
        if pool is None:
            pool = _Pool(1, self._lock) if model.apart else self._shared
        return pool

    def _queue(self, entry: _Entry) -> None:
        entry.number = entry.pool.queue.put(entry, entry.job.asked_by, entry.job.deadline_ns, entry.number)
        self._staff(entry.pool)

    def _staff(self, pool: _Pool) -> None:
        """See that somebody serves the queue."""
        if pool.threads < min(pool.size, pool.waiting):
            pool.threads += 1
            self._wanted.append(pool)
        pool.changed.notify()

    def _move_waiting(self, model: str, source: _Pool, target: _Pool) -> None:
        for entry in [entry for entry in source.queue.all() if entry.job.model.name == model]:
            source.queue.remove(entry, entry.job.asked_by)
            entry.pool = target
            self._queue(entry)

    def _start_threads(self) -> None:
        """Start the threads that are wanted; the caller does not hold the lock. A start lasts until the new thread has
        run, which takes long on a busy computer: with the lock held, everybody waited for it."""
        while True:
            with self._lock:
                if not self._wanted:
                    return
                pool = self._wanted.popleft()
            # It is a daemon: a run that doesn't end must not keep the process from exiting after close() gave up on it.
            threading.Thread(target=self._work, args=(pool,), name="model-runner", daemon=True).start()

    # --- the way of a job --------------------------------------------------------------------------------------------
    def _withdraw(self, entry: _Entry) -> None:
        """Drop a cancelled job, if it still waits."""
        with self._lock:
            if not entry.pool.queue.remove(entry, entry.job.asked_by):
                return
        self._tell(entry, _cancelled(entry))

    def _set_aside(self, entry: _Entry) -> None:
        """Let a run that is under way go on aside; its own thread calls this."""
        with self._lock:
            if entry.pool is not self._shared or self._closed:
                return
            name = entry.job.model.name
            pool = self._apart.setdefault(name, _Pool(1, self._lock))
            self._shared.running.discard(entry)
            self._shared.threads -= 1
            pool.running.add(entry)
            pool.threads += 1
            entry.pool = pool
            self._move_waiting(name, self._shared, pool)
            self._staff(self._shared)
        self._start_threads()

    def _tell(self, entry: _Entry, outcome: Outcome) -> None:
        entry.cancel.forget()
        try:
            entry.callback(outcome)
        except Exception:  # noqa: BLE001 - the callback is another's; the worker must go on
            _log.exception("the callback of a run of model %r failed", entry.job.model.name)

    def _work(self, pool: _Pool) -> None:
        with self._lock:
            self._threads.add(threading.current_thread())
        while (entry := self._next_entry(pool)) is not None:
            outcome = self._outcome(entry)
            with self._lock:
                pool = entry.pool  # the run may have been set aside, and this thread with it
                pool.running.discard(entry)
                pool.lingers = entry.job.model.apart
                if outcome is None and entry.cancel.cancelled:  # its withdrawal may have looked for it already
                    outcome = _cancelled(entry)
                elif outcome is None:
                    self._queue(entry)
                if pool is not self._shared and not pool.lingers and not self._closed:
                    self._move_waiting(entry.job.model.name, pool, self._shared)
            self._start_threads()
            if outcome is not None:
                self._tell(entry, outcome)
            # Drop the tensors now, not when the next job comes.
            del entry, outcome

    def _next_entry(self, pool: _Pool) -> _Entry | None:
        """Take the next job, waiting for it; None: this thread is no longer needed."""
        with self._lock:
            while not pool.queue and not self._closed and pool is self._shared:
                pool.changed.wait()
            if pool.lingers and pool is not self._shared:
                pool.changed.wait_for(lambda: pool.queue or self._closed, _LINGER_S)
            if not pool.queue or pool.threads > pool.size:
                pool.threads -= 1
                self._threads.discard(threading.current_thread())
                if pool is not self._shared and not pool.waiting:
                    self._apart = {name: other for name, other in self._apart.items() if other is not pool}
                return None
            entry = pool.queue.take()
            entry.begun_ns = time.monotonic_ns()
            # a stretched run would hold up others for as long as all of them
            one = self._slowdown > 1.0 or pool.queue.has_turn_after(entry.job.asked_by)
            entry.turn = 1 if one else entry.job.runs - entry.ended
            entry.cancel.ceded = False
            pool.running.add(entry)
            return entry

    def _outcome(self, entry: _Entry) -> Outcome | None:
        """Do the next runs of a job. None: it has further ones, for which it waits its turn."""
        job = entry.job
        if entry.cancel.cancelled:
            return _cancelled(entry)
        started_ns = time.monotonic_ns()
        queued_ns = started_ns - entry.submitted_ns - entry.compute_ns
        if job.deadline_ns is not None and started_ns >= job.deadline_ns:
            late_ms = (started_ns - job.deadline_ns) / 1e6
            waited_ms = queued_ns / 1e6
            return Failed(
                BudgetExhausted(
                    f"the run of model {job.model.name!r} waited {waited_ms:.1f} ms and its deadline passed "
                    f"{late_ms:.1f} ms ago: give it a larger budget, or ask another node"
                ),
                queued_ns,
                began=entry.ended > 0,
            )
        runs = (job.inputs, *job.further)[entry.ended : entry.ended + entry.turn]
        try:
            given = job.model.run_each(runs, job.outputs, entry.cancel)
        except InferenceError as error:
            if isinstance(error, BudgetExhausted):  # it takes at least this long, or placement would ask again
                self._costs.record(job.model.digest, int((time.monotonic_ns() - started_ns) * self._slowdown))
            return Failed(error, queued_ns, entry.cancel.cancelled, began=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            _log.exception("model %r failed in an unforeseen way", job.model.name)
            return Failed(InferenceError(f"model {job.model.name!r} failed: {error!r}"[:500]), queued_ns, began=True)
        compute_ns = time.monotonic_ns() - started_ns
        if self._slowdown > 1.0:
            if entry.cancel.wait(self._stretch_ns(entry.cancel, compute_ns) / 1e9):
                return Failed(InferenceError(f"the run of model {job.model.name!r} was cancelled"), queued_ns, True)
            compute_ns = time.monotonic_ns() - started_ns
        for _ in given:
            self._costs.record(job.model.digest, compute_ns // len(given))
        entry.ended += len(given)
        entry.compute_ns += compute_ns
        entry.outputs += tuple(chain.from_iterable(given))
        return RunDone(entry.outputs, queued_ns, entry.compute_ns) if entry.ended == job.runs else None


def _goes_before(job: Job, running: Job) -> bool:
    """Whether a job that comes now has its turn before further runs of one that is under way."""
    if job.asked_by != running.asked_by:
        return running.asked_by is not None
    return (job.deadline_ns or NEVER) < (running.deadline_ns or NEVER)


def _cancelled(entry: _Entry) -> Failed:
    """The end of a job that was cancelled while it waited."""
    error = InferenceError(f"the run of model {entry.job.model.name!r} was cancelled before it started")
    queued_ns = time.monotonic_ns() - entry.submitted_ns - entry.compute_ns
    return Failed(error, queued_ns, cancelled=True, began=entry.ended > 0)
