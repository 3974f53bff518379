"""The models of a simulated node: one worker, a queue, and the time that runs take on that class of computer.

As in a real node, the worker is a thread beside the protocol's: a long run delays other runs, not readings. Runs wait
in the queue of real nodes: own ones first, then those of neighbours in turn. A run whose budget is over when its turn
comes ends as late, and one that is cancelled stops. The engine is told of each change in what waits.

Beside whole models it runs stages, which :mod:`sims.world.stages` loads and unloads.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from protocols.base.waiting import WaitingJobs
from protocols.inference.events import CancelCompute, Compute
from protocols.inference.placement import LocalModel
from protocols.inference.signature import ModelSignature
from protocols.wire.inference import InferAnswer
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.models import Model, Part

__all__ = ["Model", "Worker"]


class _Loaded(NamedTuple):
    """A model, or a stage of one, that can be run."""

    part: Part
    digest: str
    compute_ns: int
    """On a ``car-computer``."""
    signature: ModelSignature | None
    served: bool
    stage_of: str


class _Waiting(NamedTuple):
    effect: Compute
    asked_ns: int
    loaded: _Loaded


class Worker:
    """Runs the models of one node, in all its lives."""

    def __init__(self, driver: SimDriver, node: SimNode, models: Sequence[Model], factor: float) -> None:
        """``factor``: how many times as long everything takes as on a ``car-computer``."""
        self._driver, self._node, self._factor = driver, node, factor
        self._loaded: dict[str, _Loaded] = {}
        for model in models:
            self._load(model.whole)
        self._waiting: WaitingJobs[_Waiting] = WaitingJobs()
        self._running: int | None = None
        self._done_ns = 0
        self.slowed = 1.0
        self.understated = 1.0

    def begin(self) -> None:
        """Begin a life of the node: nothing runs, no stage is loaded, and the engine is told which models are here."""
        self._waiting = WaitingJobs()
        self._running = None
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if loaded.part.is_whole}
        self._tell()

    # --- what can be run -------------------------------------------------------------------------------------------
    def _load(self, part: Part, served: bool = True, stage_of: str = "") -> None:
        self._loaded[part.name] = _Loaded(part, part.digest, part.compute_ns, part.signature, served, stage_of)

    def set_stages(self, own: Iterable[Part], hosted: Iterable[tuple[Part, str]]) -> None:
        """Say which stages are loaded: those of own models, and those that neighbours have asked for, with the name of
        the whole. A run of one that is no longer loaded fails."""
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if loaded.part.is_whole}
        for part in own:
            self._load(part, served=False)
        for part, whole in hosted:
            self._load(part, stage_of=whole)
        self._tell()

    def part_ns(self, part: Part) -> int:
        """The time of a run of some part here, as it is told."""
        return int(part.compute_ns * self._factor * self.slowed / self.understated)

    def understate(self, factor: float) -> None:
        """Tell others that runs take ``1/factor`` of the time and that nothing waits; 1 means the truth."""
        self.understated = factor
        if self._node.running:
            self._tell()

    def _tell(self) -> None:
        honest = self.understated == 1
        queue_ns = self._queue_ns(self._waiting.all()) if honest else 0
        own_queue_ns = self._queue_ns(self._waiting.own()) if honest else 0
        models = tuple(
            LocalModel(
                name,
                loaded.digest,
                int(self._run_ns(loaded) / self.understated),
                queue_ns,
                loaded.served,
                own_queue_ns=own_queue_ns,
                signature=loaded.signature,
                stage_of=loaded.stage_of,
            )
            for name, loaded in self._loaded.items()
        )
        self._driver.act(self._node, lambda engine, now: engine.inference.set_models(models, now))

    def _run_ns(self, loaded: _Loaded) -> int:
        return int(loaded.compute_ns * self._factor * self.slowed)

    def _waiting_ns(self, waiting: _Waiting) -> int:
        return self._run_ns(waiting.loaded) * waiting.loaded.part.rows_in(waiting.effect.inputs)

    def _queue_ns(self, before: Iterable[_Waiting]) -> int:
        """How long a run that comes now would wait before it begins, behind others."""
        waiting_ns = sum(self._waiting_ns(waiting) for waiting in before)
        return waiting_ns + max(self._done_ns - self._driver.now, 0) if self._running is not None else 0

    def perform(self, effect: Compute | CancelCompute) -> None:
        """The engine wants a run, or no longer wants one."""
        if isinstance(effect, CancelCompute):
            self._cancel(effect.run)
        elif effect.model not in self._loaded:
            answer = InferAnswer(0, "unknown", detail=f"no model {effect.model!r} here")
            self._driver.when_awake(self._node, self._driver.now, self._answer, (effect.run, answer))
        else:
            waiting = _Waiting(effect, self._driver.now, self._loaded[effect.model])
            self._waiting.put(waiting, effect.asked_by, self._driver.now + effect.budget_ns)
            if self._running is None:
                self._next()
            self._driver.when_awake(self._node, self._driver.now, self._told, None)

    def _cancel(self, run: int) -> None:
        if run == self._running:
            self._running = None
            self._driver.when_awake(self._node, self._driver.now, self._stopped, None)
            return
        for waiting in self._waiting.all():
            if waiting.effect.run == run:
                self._waiting.remove(waiting, waiting.effect.asked_by)
                return

    def _stopped(self, _: None) -> None:
        if self._running is None:
            self._next()
        self._tell()

    def _told(self, _: None) -> None:
        self._tell()

    def _next(self) -> None:
        """Begin the next run whose answer would still be in time."""
        now = self._driver.now
        while self._waiting:
            waiting = self._waiting.take()
            effect = waiting.effect
            if now - waiting.asked_ns >= effect.budget_ns:
                answer = InferAnswer(
                    0, "late", queued_us=(now - waiting.asked_ns) // 1_000, detail="it waited too long"
                )
                self._driver.when_awake(self._node, now, self._answer, (effect.run, answer))
                continue
            if effect.model not in self._loaded:
                self._driver.when_awake(self._node, now, self._answer, (effect.run, _unloaded(effect)))
                continue
            self._running = effect.run
            self._done_ns = now + self._waiting_ns(waiting)
            self._driver.when_awake(self._node, self._done_ns, self._done, (waiting, now))
            return
        self._running = None

    def _done(self, ran: tuple[_Waiting, int]) -> None:
        (effect, asked_ns, loaded), began_ns = ran
        run = effect.run
        if run != self._running:  # it was stopped
            return
        self._running = None
        self._tell()  # the answer says how long the next run would wait
        compute_us = (self._driver.now - began_ns) // 1_000
        if effect.model in self._loaded:
            outputs = loaded.part.run(effect.inputs)
            answer = InferAnswer(0, "done", outputs, (began_ns - asked_ns) // 1_000, compute_us)
        else:
            answer = _unloaded(effect)
        self._answer((run, answer))
        if self._running is None:
            self._next()
        self._tell()

    def _answer(self, answered: tuple[int, InferAnswer]) -> None:
        run, answer = answered
        self._driver.act(self._node, lambda engine, now: engine.inference.computed(run, answer, now))


def _unloaded(effect: Compute) -> InferAnswer:
    return InferAnswer(0, "failed", detail=f"{effect.model!r} was unloaded before its run was over")
