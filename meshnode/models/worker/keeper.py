"""A model in a worker process, and the keeper that starts the process again when it is lost.

A process is lost when it crashed, when it was ended because a run hung, or because the model wanted more memory than it
may take. Then

- its runs are done once more in the next process. A run that loses two processes fails with the reason;
- the model gets a thread of its own and only idle processor time (:attr:`WorkerModel.apart`), so that it keeps no other
  model waiting;
- the next process is started at once. After ``MAX_LOSSES`` losses the model is out of service for a pause, which
  doubles each time. Meanwhile its runs fail at once and say why, so that other nodes are asked. After a pause one
  further loss begins the next one;
- all is forgiven once no process was lost for :attr:`Patience.forgiven_s`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from meshnode.models.manifest import manifest_path, read_manifest
from meshnode.models.model import Cancellation, Inputs, LoadedModel, ModelSpec
from meshnode.models.worker.fork_server import ForkServer
from meshnode.models.worker.losses import Loss, WorkerLost
from meshnode.models.worker.messages import LoadedReply, LoadOrder
from meshnode.models.worker.process import WorkerProcess
from protocols.base.errors import InferenceError, InputInvalid, ModelInvalid
from protocols.base.ids import ModelDigest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
MAX_LOSSES: Final = 3
_RECENT_RUNS: Final = 31
_LOOK_S: Final = 0.1
"""How often a run that waits for a process looks whether it is still wanted."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds."""

    held_up_s: float = 0.005
    """A run that takes longer than this and four times the median of the last ones no longer holds up other models."""
    grace_s: float = 0.5
    """A run that was told to end has this time and twice as long as the longest of the last ones took, since ONNX
    Runtime ends a run between two operators."""
    decode_s: float = 0.3e-6
    """And an encoded picture this much for each pixel that it may have: nothing ends its decoding. 16 million pixels
    take 0.7 s on a fast processor, and several times as long on a small board."""
    load_s: float = 300.0
    """Two gigabytes from a slow memory card."""
    first_pause_s: float = 10.0
    longest_pause_s: float = 600.0
    forgiven_s: float = 600.0
    """A model that has lost no process for this long is one like any other again."""


class WorkerCounters:
    """What happened to the workers of one node since it opened. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("started", "crashed", "hung", "grew", "repeated"), 0)

    def count(self, what: Literal["started", "repeated"] | Loss) -> None:
        """A process was started or lost, or a run was done once more."""
        if what != "closed":
            with self._lock:
                self._counts[what] += 1

    def counts(self) -> dict[str, int]:
        """All of them, by name."""
        with self._lock:
            return dict(self._counts)


class ModelKeeper:
    """Keeps a process for one model. Its methods may be called from any thread."""

    def __init__(
        self, spec: ModelSpec, starter: ForkServer, patience: Patience, counters: WorkerCounters,
        told: Callable[[str, str | None], None], *, idle: bool = False, load_s: float | None = None,
    ) -> None:  # fmt: skip
        """``told`` is called with the name of the model and why it is out of service; None: it is back. ``idle``: its
        processes never get other than idle processor time. ``load_s``: how long loading may take; None: as long as
        ``patience`` says."""
        self._idle, self._load_s = idle, patience.load_s if load_s is None else load_s
        self._spec, self._starter, self._patience, self._counters, self._told = spec, starter, patience, counters, told
        self.apart = False
        self._changed = threading.Condition()
        self._process: WorkerProcess | None = None
        self._starting: WorkerProcess | None = None
        """The one that was started last."""
        self._resting: str | None = None
        """Why the model is out of service."""
        self.closed = False
        """Whether its process was ended for good."""
        self._losses = self._pauses = 0
        self._last_loss_s = -patience.forgiven_s
        self._took_s: deque[float] = deque(maxlen=_RECENT_RUNS)
        self.max_pixels = 0
        """How many pixels the pictures of one run may have."""

    @property
    def process_id(self) -> int | None:
        """The id of the process; None while there is none."""
        process = self._process
        return process.process_id if process is not None else None

    def become_idle(self) -> None:
        """From now on its processes get only the processor time that nobody else wants. There is no way back."""
        self._idle = True
        if self._process is not None:
            self._process.become_idle()

    def load(self) -> LoadedReply:
        """Start the first process and load the model. :raises InferenceError: that failed; nothing is left behind."""
        process, reply = self._start()
        # What is loaded again has to be what was announced.
        self._spec = replace(self._spec, digest=reply.digest)
        with self._changed:
            self._process = process
        return reply

    def _start(self) -> tuple[WorkerProcess, LoadedReply]:
        spec, limit = self._spec, self._spec.memory_limit_mib
        order = LoadOrder(
            spec.name, str(spec.path), spec.threads, spec.optimisation, spec.warm_up, spec.digest, spec.providers,
            None if limit is None else limit << 20,
        )  # fmt: skip
        process = WorkerProcess(spec.name, self._starter, idle=self._idle or self.apart)
        self._counters.count("started")
        with self._changed:
            self._starting = process
            if self.closed:
                process.end("closed", "was ended with the node")
        try:
            return process, process.load(order, self._load_s)
        except WorkerLost as lost:
            self._counters.count(lost.loss)
            raise ModelInvalid(
                f"model {spec.name!r} can't be loaded: {lost}. Check the file, or give it more 'memory_limit_mib'"
            ) from lost

    def run(
        self, inputs: "list[tuple[str, NDArray[Any]]]", runs: int, wanted: tuple[str, ...], cancel: Cancellation
    ) -> "list[tuple[str, NDArray[Any]]]":
        """Compute, blocking; see :meth:`WorkerProcess.run`. Runs that lose their process are done once more.

        :raises InferenceError: also when it lost two processes, or the model is out of service.
        """
        losses: list[WorkerLost] = []
        while True:
            process = self._ready(cancel, losses)
            took_s = sorted(self._took_s) or [0.0]
            held_up_s = self._patience.held_up_s + 4 * took_s[len(took_s) // 2] * runs
            started_s = time.monotonic()
            try:
                grace_s = self._patience.grace_s + 2 * took_s[-1] + self.max_pixels * self._patience.decode_s
                outputs = process.run(inputs, runs, wanted, cancel, held_up_s, grace_s)
            except WorkerLost as lost:
                losses.append(lost)
                self._lose(process, lost)
                cancel.held_up()
            else:
                done = len(outputs) // len(wanted) if wanted else runs
                self._took_s.append((time.monotonic() - started_s) / done)
                if self.apart:
                    self._forgive(process)
                return outputs
            if len(losses) > 1 or self._is_over(cancel):
                whys = " and then ".join(dict.fromkeys(lost.why for lost in losses))
                raise InferenceError(f"model {self._spec.name!r} failed on these inputs: its worker process {whys}")
            self._counters.count("repeated")

    def _ready(self, cancel: Cancellation, losses: list[WorkerLost]) -> WorkerProcess:
        """The process; waits for the next one when it was lost. :raises InferenceError: there will be none in time."""
        name, why = self._spec.name, f": {losses[-1]}" if losses else ""
        while True:
            with self._changed:
                if self.closed:
                    raise InferenceError(f"model {name!r} is not computed any more: the node is shutting down")
                if self._resting is not None:
                    raise InferenceError(self._resting)
                if self._process is not None:
                    return self._process
            if self._is_over(cancel):
                over = "it was cancelled" if cancel.cancelled else "its deadline passed"
                raise InferenceError(f"{over} while the worker process of model {name!r} was started again{why}")
            cancel.held_up()
            with self._changed:
                self._changed.wait_for(self._is_settled, _LOOK_S)

    def _is_settled(self) -> bool:
        return self._process is not None or self._resting is not None or self.closed

    @staticmethod
    def _is_over(cancel: Cancellation) -> bool:
        return cancel.cancelled or time.monotonic_ns() >= cancel.deadline_ns

    # --- losses ----------------------------------------------------------------------------------------------------
    def _lose(self, process: WorkerProcess, lost: WorkerLost) -> None:
        with self._changed:
            if process is not self._process or self.closed:
                return  # another run has told already
            self._process = None
            self._counters.count(lost.loss)
            self.apart = True
            now_s = time.monotonic()
            if now_s - self._last_loss_s > self._patience.forgiven_s:
                self._losses = self._pauses = 0
            self._last_loss_s = now_s
            self._losses += 1
            pause_s = self._rest(str(lost)) if self._losses >= MAX_LOSSES else 0.0
            why = self._resting
        _log.warning("model %s: %s", self._spec.name, lost)
        if why is not None:
            self._told(self._spec.name, why)
        threading.Thread(target=self._come_back, args=(pause_s,), name="model-restart", daemon=True).start()

    def _forgive(self, process: WorkerProcess) -> None:
        """After a long time without a loss, start a process of ordinary priority: that of this one can't be raised."""
        with self._changed:
            is_long_ago = time.monotonic() - self._last_loss_s > self._patience.forgiven_s
            if not is_long_ago or process is not self._process or self.closed:
                return
            self.apart, self._process = False, None
        process.end("closed", "was replaced by one of ordinary priority")
        threading.Thread(target=self._come_back, args=(0.0,), name="model-restart", daemon=True).start()

    def _rest(self, why: str) -> float:
        """Go out of service; returns for how long, in seconds."""
        pause_s: float = min(self._patience.longest_pause_s, self._patience.first_pause_s * 2**self._pauses)
        self._pauses = min(self._pauses + 1, 30)
        self._resting = (
            f"model {self._spec.name!r} is out of service for {pause_s:.3g} s, because its worker process was lost "
            f"{self._losses} times; the last time, {why}"
        )
        self._changed.notify_all()
        return pause_s

    def _come_back(self, pause_s: float) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self.closed, pause_s):
                    return
            try:
                process, _ = self._start()
            except Exception as error:  # noqa: BLE001 - whatever it is, the model has to come back later
                with self._changed:
                    if self.closed:
                        return
                    self._losses += 1
                    pause_s = self._rest(str(error))
                    why = self._resting
                self._told(self._spec.name, why)
                continue
            with self._changed:
                self._process, was_resting, self._resting = process, self._resting is not None, None
                self._changed.notify_all()
            if was_resting:
                self._told(self._spec.name, None)
            return

    def close(self) -> None:
        """End the process. Runs under way fail. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            process = self._starting
        if process is not None:
            process.end("closed", "was ended with the node")


class WorkerModel(LoadedModel):
    """A model in a worker process. It is used as one in this process."""

    def __init__(self, spec: ModelSpec, keeper: ModelKeeper, loaded: LoadedReply) -> None:
        """``loaded``: what the worker process said of it. :raises ModelInvalid: its manifest has changed since."""
        manifest = read_manifest(spec.path)
        if manifest.results() != loaded.results:
            raise ModelInvalid(f"model {spec.name!r}: {manifest_path(spec.path)} was changed while it was being loaded")
        super().__init__(
            spec, ModelDigest(loaded.digest), None, loaded.inputs, loaded.outputs, loaded.left_out, manifest
        )
        self.notes = loaded.notes
        self._keeper = keeper
        keeper.max_pixels = sum(each.steps.max_pixels for each in self.accepted if each.steps is not None)

    @property
    def apart(self) -> bool:  # type: ignore[override]
        """Whether its runs go on a thread of their own, because it has crashed, hung or grown."""
        return self._keeper.apart

    @property
    def process_id(self) -> int | None:
        """The id of its process; None while it has none."""
        return self._keeper.process_id

    def become_idle(self) -> None:
        """From now on its process gets only the processor time that nobody else wants. There is no way back."""
        self._keeper.become_idle()

    def run(
        self, inputs: Inputs, outputs: Iterable[str] = (), cancel: Cancellation | None = None
    ) -> list[tuple[str, "NDArray[Any]"]]:
        """See :meth:`LoadedModel.run`."""
        return self.run_each((inputs,), outputs, cancel or Cancellation())[0]

    def run_each(
        self, runs: "Sequence[Inputs]", outputs: Iterable[str], cancel: Cancellation
    ) -> list[list[tuple[str, "NDArray[Any]"]]]:
        """See :meth:`LoadedModel.run_each`. All of them are one exchange with the process."""
        import numpy as np

        wanted = tuple(outputs) or tuple(signature.name for signature in self.outputs)
        self.check_outputs(wanted)
        for inputs in runs:
            self.check(inputs)
        try:
            arrays = [(name, np.asarray(value)) for inputs in runs for name, value in inputs.items()]
        except (TypeError, ValueError) as error:
            raise InputInvalid(f"inputs of model {self.name!r} can't be taken as arrays: {error}") from error
        given = self._keeper.run(arrays, len(runs), wanted, cancel)
        each = len(wanted) or 1
        return [given[at : at + each] for at in range(0, len(given), each)] or [[] for _ in runs]

    def close(self) -> None:
        """End its process."""
        self._keeper.close()
