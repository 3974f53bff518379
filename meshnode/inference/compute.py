"""Runs the models of a node for the engine, and tells it what they cost."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, assert_never

from meshnode.inference.files import ModelFiles
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.inference.versions import FormerModels
from meshnode.models import Cancellation, Failed, Job, LoadedModel, ModelSpec, Outcome, RunDone, Runner, load_model
from meshnode.models.worker import WorkerModel, Workers
from meshnode.troubles import Troubles
from protocols.base.errors import BoundExceeded, BudgetExhausted, InputInvalid, MeshError
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.inference.events import Compute
from protocols.inference.placement import LocalModel
from protocols.inference.signature import inputs_of_each
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, tensor_of

_log = logging.getLogger(__name__)
_CLOSE_S: Final = 0.5
"""The time in which cancelled runs end by themselves when the node closes."""

RunWatch = Callable[[Job, Outcome], None]
"""Called with each run that has ended, on the thread that ran it; it must not block."""


class ComputeService:
    """Runs models for the engine. ``computed`` and ``changed`` are called on worker threads."""

    def __init__(
        self,
        models: Mapping[str, ModelSection],
        how: InferenceSection,
        computed: Callable[[int, InferAnswer], None],
        changed: Callable[[tuple[LocalModel, ...]], None],
        troubles: Troubles,
    ) -> None:
        self._how, self._computed, self._changed = how, computed, changed
        self.models: dict[str, LoadedModel] = {}
        """Loaded models by name. Never changed, but replaced: any thread may read it."""
        self._own_stages: frozenset[str] = frozenset()
        self._hosted_stages: dict[str, str] = {}
        """The names of those of them that are stages: of this node's models, and of neighbours', with the name of the
        whole. Never changed, but replaced."""
        specs = (section.spec(name, how.providers) for name, section in models.items() if section.whole)
        self.files = ModelFiles((spec for spec in specs if spec is not None), self._load, troubles)
        self._runner = Runner(how.workers, emulate_slowdown=how.emulate_slowdown)
        self._workers = Workers(self._told)
        self._troubles = troubles
        self._cancels: dict[int, Cancellation] = {}
        self._lock = threading.Lock()
        self._stages_lock = threading.Lock()
        """Held while a stage is loaded or dropped."""
        self._models_lock = threading.Lock()
        """Held while one dictionary of models takes the place of another."""
        self._announced = False
        self._former = FormerModels(self._runner, self._lock, self._tell_if_announced)
        self._released: frozenset[str] = frozenset()
        """The names that stand for a release, whatever file the configuration names."""
        self._watches: dict[str, RunWatch] = {}

    def load_models(self) -> None:
        """Load and measure every configured model. This takes seconds, and the node serves readings meanwhile. Those
        that can't be loaded are troubles of the node."""
        self.files.load_all()

    async def watch(self) -> None:
        """Load what could not be loaded at first, once that is possible, and announce it."""
        await self.files.watch()

    def add_stage(self, spec: ModelSpec, hosted_of: str = "") -> int:
        """Load and measure a stage, blocking for seconds, unless it is loaded. Returns the time of a run in
        nanoseconds. ``hosted_of``: the name of the whole model, if a neighbour asked for it.

        :raises InferenceError: it can't be loaded, or can't compute zeros.
        """
        with self._stages_lock:
            if hosted_of:
                self._hosted_stages = {**self._hosted_stages, spec.name: hosted_of}
            else:
                self._own_stages |= {spec.name}
            try:
                if spec.name not in self.models:
                    self._load(spec)
                else:
                    self._tell()
            except BaseException:
                self._unload(spec.name, hosted=bool(hosted_of))
                raise
            return (self._runner.median_us(self.models[spec.name]) or 0) * 1_000

    def whole_models(self) -> dict[str, LoadedModel]:
        """The loaded models that are no stages, by name."""
        stages = {*self._own_stages, *self._hosted_stages}
        return {name: model for name, model in self.models.items() if name not in stages}

    def stages(self, *, hosted: bool) -> Collection[str]:
        """The names of the loaded stages of this node's models, or of those that neighbours asked for."""
        return self._hosted_stages.keys() if hosted else self._own_stages

    def drop_stage(self, name: str, *, hosted: bool) -> None:
        """Unload a stage, unless it is loaded for the other reason as well. Runs of it that are under way fail."""
        with self._stages_lock:
            self._unload(name, hosted)
            self._tell()

    def _unload(self, name: str, hosted: bool) -> None:
        if hosted:
            self._hosted_stages = {other: of for other, of in self._hosted_stages.items() if other != name}
        else:
            self._own_stages -= {name}
        model = self.models.get(name)
        if model is not None and name not in self._own_stages and name not in self._hosted_stages:
            with self._models_lock:
                self.models = {other: each for other, each in self.models.items() if other != name}
            if isinstance(model, WorkerModel):
                model.close()
                self._troubles.end("model", name)  # it may have been out of service

    def _load(self, spec: ModelSpec) -> None:
        """Load and measure one model. :raises InferenceError: it can't be loaded, or can't compute zeros."""
        model = self._warm(spec)
        with self._models_lock:
            is_released = spec.name in self._released  # meanwhile
            if not is_released:
                self.models = {**self.models, spec.name: model}
        if is_released:
            _close(model)
        else:
            self._tell_if_announced()

    def _warm(self, spec: ModelSpec) -> LoadedModel:
        """Load and measure one model, without using it. :raises InferenceError: as :meth:`_load`."""
        made: list[LoadedModel] = []

        def told(name: str, why: str | None) -> None:
            if made and self.models.get(name) is made[0]:  # versions that do not serve are nobody's trouble
                self._told(name, why)

        model = self._workers.load(spec, told) if self._how.isolation == "process" else load_model(spec)
        made.append(model)
        try:
            median_us = self._runner.warm_up(model)
        except BaseException:
            _close(model)
            raise
        for note in model.notes:
            _log.warning("model %s: %s", spec.name, note)
        for name, why in model.left_out.items():
            _log.warning("model %s: the output %r is left out: %s", spec.name, name, why)
        _log.info("model %s: %s, %s ms a run", spec.name, model.digest[:12], median_us and round(median_us / 1e3, 1))
        return model

    # --- releases --------------------------------------------------------------------------------------------------
    def rehearse(self, spec: ModelSpec, *, idle: bool = True, load_s: float | None = None) -> WorkerModel:
        """Load a version of a model into a process of its own, and have it compute zeros, beside the one that serves.
        The caller closes it. ``idle``: it gets only the processor time that nobody else wants. ``load_s``: how long
        loading may take; None: as long as for any model.

        :raises InferenceError: it can't be loaded, or can't compute zeros.
        """
        model = self._workers.load(spec, lambda name, why: None, idle=idle, load_s=load_s)
        try:
            zeros = model.zeros()
            if zeros is not None:
                model.run(zeros)
        except BaseException:
            model.close()
            raise
        return model

    def serve_version(
        self, spec: ModelSpec, keep: int, about_to_serve: Callable[[LoadedModel], None] = lambda model: None
    ) -> LoadedModel:  # fmt: skip
        """Load a version of a model, blocking for seconds, and then have it answer all further requests for the name in
        place of the one before, of which ``keep`` stay warm. Runs under way end with the version with which they began.

        ``about_to_serve`` is called with the version before it answers anything; what it raises changes nothing.

        :raises InferenceError: it can't be loaded; the one before goes on.
        """
        serving = self.models.get(spec.name)
        if serving is not None and serving.digest == spec.digest:
            about_to_serve(serving)
            return serving
        with self._lock:
            warm = self._former.take(spec.name, spec.digest) if spec.digest is not None else None
        model = warm or self._warm(spec)
        try:
            about_to_serve(model)
        except BaseException:
            if warm is None:
                _close(model)
            else:
                with self._lock:
                    self._former.give_back(warm)
            raise
        with self._lock, self._models_lock:
            self._former.replace(spec.name, self.models.get(spec.name), model, keep)
            self.models = {**self.models, spec.name: model}
            self._released |= {spec.name}
        self.files.leave(spec.name)
        self._changed_version(spec.name)
        return model

    def stop_version(self, name: str, keep: int) -> None:
        """Answer no further requests for a name."""
        with self._lock, self._models_lock:
            self._former.replace(name, self.models.get(name), None, keep)
            self.models = {other: model for other, model in self.models.items() if other != name}
            self._released -= {name}
        self._changed_version(name)

    def forget_version(self, name: str, digest: str) -> None:
        """Keep a version that served before no longer warm."""
        with self._lock:
            self._former.forget(name, digest)

    def _changed_version(self, name: str) -> None:
        self._troubles.end("model", name)
        self._tell_if_announced()

    def _tell_if_announced(self) -> None:
        if self._announced:
            self._tell()

    def watch_runs(self, name: str, watch: RunWatch | None) -> None:
        """Have ``watch`` called with each run of a model that ends; None: nobody any more."""
        others = {other: each for other, each in self._watches.items() if other != name}
        self._watches = others if watch is None else {**others, name: watch}

    def announce(self) -> None:
        """Tell the engine what is loaded, now and whenever a model is added."""
        self._announced = True
        if self.models:
            self._tell()

    def _tell(self) -> None:
        self._changed(self._local_models())

    def _local_models(self) -> tuple[LocalModel, ...]:
        return tuple(map(self._local_model, self.models.values()))

    def _local_model(self, model: LoadedModel) -> LocalModel:
        queue_ns, own_queue_ns = self._runner.queue_ns(model)
        compute_ns = (self._runner.median_us(model) or 0) * 1_000
        p95_ns = (self._runner.p95_us(model) or 0) * 1_000
        whole = self._hosted_stages.get(model.name, "")
        served = bool(whole) or (model.spec.serve and model.name not in self._own_stages)
        return LocalModel(
            model.name, model.digest, compute_ns, queue_ns, served, self._how.local, own_queue_ns,
            model.signature, p95_ns, _fallback(model), whole,
            tuple(former.digest for former in self._former.of(model.name)),
        )  # fmt: skip

    def start(self, effect: Compute) -> None:
        """Queue a run; exactly one ``computed`` follows unless it is cancelled."""
        deadline_ns = time.monotonic_ns() + effect.budget_ns
        try:
            inputs, *further = inputs_of_each(effect.inputs)
            # So that the run is in the table before its outcome looks for it, and no version ends before it has begun.
            with self._lock:
                model = self._meant(effect)
                if model is not None:
                    job = Job(model, inputs, effect.outputs, deadline_ns, effect.asked_by, tuple(further))
                    self._cancels[effect.run] = self._runner.submit(
                        job, lambda outcome: self._ended(effect.run, job, outcome)
                    )
        except MeshError as error:
            self._computed(effect.run, _failed(error))
            return
        if model is None:
            why = self.files.why_not(effect.model) or f"no model {effect.model!r} here"
            self._computed(effect.run, InferAnswer(0, "unknown", detail=why[:MAX_TEXT_CHARS]))
            return
        self._tell()

    def _meant(self, effect: Compute) -> LoadedModel | None:
        """The version that a run is for. A request of this node names the model; a neighbour means one file."""
        now = self.models.get(effect.model)
        if not effect.digest or (now is not None and now.digest == effect.digest):
            return now
        return self._former.find(effect.model, effect.digest) or (now if effect.asked_by is None else None)

    def cancel(self, run: int) -> None:
        """Stop a run whose result nobody wants any more."""
        with self._lock:
            cancellation = self._cancels.pop(run, None)
        if cancellation is not None:
            cancellation.cancel()

    def _ended(self, run: int, job: Job, outcome: Outcome) -> None:
        watch = self._watches.get(job.model.name)
        if watch is not None:
            watch(*_of_one(job, outcome))
        with self._lock:
            self._cancels.pop(run, None)
        match outcome:
            case RunDone():
                outputs = tuple(NamedTensor(name, tensor_of(array)) for name, array in outcome.outputs)
                answer = InferAnswer(0, "done", outputs, outcome.queued_ns // 1_000, outcome.compute_ns // 1_000)
            case Failed():
                answer = _failed(outcome.error, outcome.queued_ns // 1_000)
            case _:
                assert_never(outcome)
        self._tell()  # first, because the answer says how long the next run would wait
        self._computed(run, answer)

    def _told(self, model: str, why: str | None) -> None:
        """A model went out of service, or is back."""
        if why is None:
            self._troubles.end("model", model)
        else:
            self._troubles.begin("model", model, why)

    def counters(self) -> dict[str, int]:
        """What happened to worker processes, by name."""
        return self._workers.counters()

    def close(self) -> None:
        """End all runs, threads and processes."""
        self._former.close()
        self._runner.close(_CLOSE_S)
        self._workers.close()  # with it end the runs that did not
        self._runner.close()


def _of_one(job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
    """The first run of a job, as a job of its own."""
    if not job.further:
        return job, outcome
    if isinstance(outcome, RunDone):
        outputs = outcome.outputs[: len(outcome.outputs) // job.runs]
        outcome = RunDone(outputs, outcome.queued_ns, outcome.compute_ns // job.runs)
    return dataclasses.replace(job, further=()), outcome


def _close(model: LoadedModel) -> None:
    if isinstance(model, WorkerModel):
        model.close()


def _failed(error: MeshError, queued_us: int = 0) -> InferAnswer:
    detail = str(error)[:MAX_TEXT_CHARS]
    match error:
        case InputInvalid():
            return InferAnswer(0, "invalid", queued_us=queued_us, detail=detail)
        case BudgetExhausted():
            return InferAnswer(0, "late", queued_us=queued_us, detail=detail)
        case BoundExceeded():
            return InferAnswer(0, "busy", queued_us=queued_us, detail=detail)
        case _:
            return InferAnswer(0, "failed", queued_us=queued_us, detail=detail)


def _fallback(model: LoadedModel) -> str:
    return model.manifest.fallback.model if model.manifest.fallback is not None else ""
