"""Inference as a part of a node: its models run here, and its own requests wait for their answers."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from meshnode.inference.batches import batch_tensors, fresh_room, tensors_of
from meshnode.inference.compute import ComputeService
from meshnode.inference.oip.statistics import RequestStatistics
from meshnode.inference.plans import plans_view
from meshnode.inference.result import InferenceResult
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.inference.splitting.running import SplitInference, private_models
from meshnode.models import LoadedModel
from meshnode.models.signature import as_arrays, check_inputs
from meshnode.running import Host, HttpService, RunningPart
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import (
    BudgetExhausted,
    InferenceError,
    InputInvalid,
    ModelInvalid,
    ModelUnknown,
    NeighbourFailed,
)
from protocols.base.ids import NodeId
from protocols.inference.events import Answered, CancelCompute, Compute
from protocols.inference.placement import LocalModel
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.inference.split.batches.rows import Rows
from protocols.local import ModelView, TensorView
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from prometheus_client.core import Metric
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from meshnode.inference.batches import BatchInputs
    from meshnode.inference.latencies import Latencies
    from protocols.engine import Engine

    _Begin = Callable[[Engine, int], int]
    """Begins a request in the engine, and returns its number."""

_log = logging.getLogger(__name__)
_ERRORS: dict[str, type[InferenceError]] = {"unknown": ModelUnknown, "invalid": InputInvalid, "late": BudgetExhausted}
"""By ``Answered.failure``."""
_SHOWN_RUNS: Final = 20
"""Runs in one message: a batch may have thousands."""


class RunningInference(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.defaults = host.config.of(InferenceSection)
        self.requests = RequestStatistics()
        self._answers: dict[int, asyncio.Future[Answered]] = {}
        self._answers_lock = threading.Lock()
        self._latencies: Latencies | None = None
        self._compute = self._make_compute()
        self._split = SplitInference(host, self._compute)

    def _make_compute(self) -> ComputeService:
        models = self.host.config.of(ModelsSection).models
        return ComputeService(models, self.defaults, self._computed, self._set_models, self.host.troubles)

    # --- to the engine ---------------------------------------------------------------------------------------------
    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It starts and cancels runs of models."""
        return {Compute: self._compute.start, CancelCompute: self._cancel, **self._split.performers()}

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """It hands the answers to those who asked."""
        return {Answered: self._answered}

    def _cancel(self, effect: CancelCompute) -> None:
        self._compute.cancel(effect.run)

    def _computed(self, run: int, answer: InferAnswer) -> None:
        self.host.driver.act(lambda engine, now: engine.inference.computed(run, answer, now))

    def _set_models(self, models: tuple[LocalModel, ...]) -> None:
        self.host.driver.act(lambda engine, now: engine.inference.set_models(models, now))

    # --- life ------------------------------------------------------------------------------------------------------
    async def prepare(self, closing: AsyncExitStack) -> None:
        """See that the threads end, and say which files are pinned. The first neighbour may already ask for a run."""
        models = self.host.config.of(ModelsSection)
        self.host.driver.act(
            lambda engine, _: engine.inference.configure(
                models.pinned, models.fallbacks, self.defaults.workers, self.defaults.offload, private_models(models)
            )
        )
        self.host.driver.act(_give_room)
        closing.callback(self._fail_all)
        closing.push_async_callback(asyncio.to_thread, self._split.close)
        closing.push_async_callback(asyncio.to_thread, self._compute.close)  # first: with it end stages being loaded

    async def serve(self, closing: AsyncExitStack) -> None:
        """Load and measure the models. Those that can't be loaded are tried again while the node runs."""
        await asyncio.to_thread(self._compute.load_models)
        self._compute.announce()
        for watch in (self._compute.watch(), self._split.watch()):
            closing.callback(asyncio.create_task(watch, name="models").cancel)

    def _fail_all(self) -> None:
        with self._answers_lock:
            answers, self._answers = list(self._answers.values()), {}
        for answer in answers:
            if not answer.done():
                answer.set_exception(InferenceError(f"the node {self.host.id} closed before the answer came"))

    # --- requests --------------------------------------------------------------------------------------------------
    @property
    def compute(self) -> ComputeService:
        """What runs the models."""
        return self._compute

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Models loaded here whole, by name."""
        return self._compute.whole_models()

    @property
    def in_parts(self) -> frozenset[str]:
        """The models that are cut here, and of which only stages are loaded."""
        return self._split.in_parts()

    def why_not(self, model: str) -> str | None:
        """Why a model of the configuration could not be loaded or cut; None: it was, or it has no file here."""
        return self._compute.files.why_not(model) or self._split.why_not(model)

    def signature_of(self, model: str) -> ModelSignature | None:
        """What a model takes and gives: as it is loaded here, or else by what neighbours say; None: nobody says so."""
        loaded = self._compute.models.get(model)
        if loaded is not None:
            return loaded.signature
        return self.host.driver.look(lambda engine, _: engine.inference.signature_of(model))

    async def infer(
        self, model: str, inputs: "Mapping[str, ArrayLike | Tensor]", outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None,
    ) -> InferenceResult:  # fmt: skip
        """See :meth:`meshnode.node.Node.infer`."""

        def prepared() -> "_Begin":
            arrays = as_arrays(self._takes(model), inputs)
            self._check(model, arrays)
            tensors, (budget_ns, hedged) = tensors_of(arrays), self._how(deadline_ms, hedge)
            return lambda engine, now: engine.inference.ask(model, tensors, outputs, budget_ns, hedged, now)

        return await self._counted(model, prepared)

    async def infer_batch(
        self, model: str, inputs: "BatchInputs", outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None, shard: int | None = None,
        divided: tuple[str, ...] = (),
    ) -> InferenceResult:  # fmt: skip
        """See :meth:`meshnode.node.Node.infer_batch`."""
        if shard is not None and shard < 1:
            raise InputInvalid(f"shards of {shard} rows are wrong: give at least 1, or None to have the size chosen")

        def prepared() -> "_Begin":
            tensors = batch_tensors(self._takes(model), inputs)
            rows = Rows(model, self.signature_of(model), tensors, outputs, divided)
            one = rows.shard(0, rows.unit or min(shard or 1, rows.count))
            self._check(model, {named.name: named.tensor for named in one})
            longest_ms = min(self.defaults.deadline_ms * rows.count, limits.MAX_BUDGET_MS)
            budget_ns, hedged = self._how(longest_ms if deadline_ms is None else deadline_ms, hedge)
            return lambda engine, now: engine.inference.ask_batch(
                model, tensors, outputs, budget_ns, hedged, now, divided, shard or 0
            )

        return await self._counted(model, prepared)

    def _takes(self, model: str) -> tuple[TensorSignature, ...]:
        """The inputs of a model; none when nobody tells them."""
        self.host.require_open()
        signature = self.signature_of(model)
        return signature.inputs if signature is not None else ()

    def _check(self, model: str, arrays: Mapping[str, Any]) -> None:
        """:raises InputInvalid: the inputs of a run are not what the model takes."""
        loaded = self._compute.models.get(model)
        if loaded is not None:
            loaded.check(arrays)
        elif takes := self._takes(model):
            check_inputs(model, takes, arrays)
        if len(arrays) > limits.MAX_TENSORS or any(len(name) > limits.MAX_TEXT_CHARS for name in arrays):
            raise InputInvalid(
                f"{len(arrays)} inputs: give at most {limits.MAX_TENSORS}, with names of {limits.MAX_TEXT_CHARS}"
            )

    def _how(self, deadline_ms: int | None, hedge: bool | None) -> tuple[int, bool]:
        """The budget in nanoseconds, and whether there are hedges."""
        budget_ns = (self.defaults.deadline_ms if deadline_ms is None else deadline_ms) * limits.MS
        return budget_ns, self.defaults.hedge if hedge is None else hedge

    async def _counted(self, model: str, prepared: "Callable[[], _Begin]") -> InferenceResult:
        """Have a request computed, and count it. ``prepared``: checks it, and returns how it begins."""
        with self.requests.request(model) as succeeded:
            try:
                result = await self._answer(model, prepared())
            except ModelUnknown as error:
                why = self.why_not(model)
                if why is None:
                    raise
                raise ModelInvalid(f"{why}; and nobody else in reach computes it") from error
            succeeded(result)
        return result

    async def _answer(self, model: str, begin: "_Begin") -> InferenceResult:
        future: asyncio.Future[Answered] = self.host.loop.create_future()
        with self._answers_lock:  # the answer may come before the request is noted
            number = self.host.driver.begin(begin)
            self._answers[number] = future
        self.host.driver.settle()
        try:
            answered = await future
        except asyncio.CancelledError:
            with self._answers_lock:
                self._answers.pop(number, None)
            self.host.driver.act(lambda engine, now: engine.inference.abandon(number, now))
            raise
        self.requests.executed(model, len(answered.attempts))
        return _result(model, answered, self.host.id)

    def _answered(self, event: Answered) -> None:
        with self._answers_lock:
            future = self._answers.pop(event.request, None)
        if future is not None:
            try:
                self.host.loop.call_soon_threadsafe(_settle, future, event)
            except RuntimeError:
                _log.debug("the event loop has ended before the answer to request %d", event.request)
        if self._latencies is not None:
            self._latencies.note(event, self.host.id)

    # --- what it tells ---------------------------------------------------------------------------------------------
    def capabilities(self) -> Iterable[str]:
        """Names of the models."""
        return self.models

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        """``models``: their names, digests and signatures. ``plans``: see :mod:`meshnode.inference.plans`.
        ``inference_runs``: the nodes that compute own requests now, once for each run."""
        return {
            "models": lambda _: [_view(model) for model in self.models.values()],
            "plans": lambda _: self.host.driver.look(plans_view),
            "inference_runs": lambda _: self.host.driver.look(lambda engine, _: engine.inference.under_way()),
        }

    # --- over HTTP -------------------------------------------------------------------------------------------------
    def routes(self, service: HttpService) -> "Sequence[BaseRoute]":
        """The Open Inference Protocol, the list of models, and the plans."""
        from starlette.routing import Route

        from meshnode.http.guard import json_response
        from meshnode.inference.latencies import Latencies
        from meshnode.inference.oip.routes import OpenInference

        async def plans(_: "Request") -> "Response":
            return json_response(self.host.driver.look(plans_view))

        self._latencies = Latencies()
        return [Route("/v1/plans", plans), *OpenInference(self.host, self, service).routes()]

    def node_view(self) -> Mapping[str, Any]:
        """``models``."""
        return {"models": sorted(self.models)}

    def readiness(self) -> Mapping[str, Any]:
        """``models``."""
        return {"models": sorted(self.models)}

    def statistics(self) -> Mapping[str, int]:
        """What happened to worker processes of models."""
        return self._compute.counters()

    def metrics(self) -> "Iterable[Metric]":
        """Latencies and failures of own requests, and latencies of their parts."""
        return () if self._latencies is None else self._latencies.metrics()


def _give_room(engine: "Engine", _: int) -> None:
    engine.inference.shards.room = fresh_room


def _settle(future: "asyncio.Future[Answered]", answer: Answered) -> None:
    if not future.done():
        future.set_result(answer)


def _result(model: str, answered: Answered, here: NodeId) -> InferenceResult:
    import numpy as np

    winner = answered.winner
    if winner is None:
        told = [run for run in answered.attempts if run.outcome != "done"][:_SHOWN_RUNS]
        tried = ", ".join(f"{run.node}: {run.outcome} after {run.took_ns / 1e6:.0f} ms" for run in told)
        message = f"{answered.detail or f'model {model!r} was not computed'} (tried {tried or 'nobody'})"
        ran_here = any(run.node == here for run in answered.attempts)
        raise _ERRORS.get(answered.failure, InferenceError if ran_here else NeighbourFailed)(message)
    outputs = {named.name: np.asarray(named.tensor) for named in answered.outputs}
    return InferenceResult(
        outputs, winner.node, answered.took_ns / 1e6, winner.compute_us / 1e3, winner.queued_us / 1e3,
        answered.attempts, answered.model or model, answered.parts,
    )  # fmt: skip


def _view(model: LoadedModel) -> ModelView:
    def views(signatures: Any) -> tuple[TensorView, ...]:
        return tuple(TensorView(s.name, str(s.dtype), tuple(s.shape)) for s in signatures)

    return ModelView(model.name, str(model.digest), views(model.inputs), views(model.outputs))
