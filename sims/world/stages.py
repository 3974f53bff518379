"""Split inference of a simulated node: performs what its engine decides about plans and stages, in virtual time.

Making plans, cutting, and loading stages take the time of that class of computer, on three threads beside those of the
protocol and of the models: one plans and cuts, one loads again what was cut before, and one has the stages of
neighbours. The bytes of stages come over the simulated links. What has come is on the node's disk, which outlives its
process.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, assert_never

from protocols.base import limits
from protocols.engine import Engine
from protocols.inference.split.events import (
    DropStage,
    FindStage,
    KeepStages,
    LoadStage,
    MakePlans,
    MakeStages,
    SplitEffect,
    StoreChunk,
)
from protocols.inference.split.planner import plans
from sims.scenario.devices import Device
from sims.virtual.capability import Capability
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.compute import Worker
from sims.world.models import Model, Part, StageFiles

PLANNING_NS: Final = 10 * limits.MS
"""The time to make plans on a ``car-computer``, and that to look for a file."""
CUTTING_NS: Final = 200 * limits.MS
"""The time to cut a stage out of a model there."""
LOADING_NS: Final = 250 * limits.MS
"""The time to start a process for a stage there (docs/adr/0025) …"""
LOADING_NS_PER_BYTE: Final = 5.0
"""… and to load its bytes into it."""
_CUTTER, _LOADER, _HOST = "cutter", "loader", "host"
"""The threads."""


class _Fetched:
    """What has come of a stage."""

    __slots__ = ("beginning", "size_bytes")

    def __init__(self) -> None:
        self.beginning = b""
        self.size_bytes = 0


class Stages:
    """See the module. One for all lives of a node."""

    def __init__(
        self, driver: SimDriver, node: SimNode, worker: Worker, device: Device, files: StageFiles, *,
        owned: tuple[Model, ...] = (), private: frozenset[str] = frozenset(), accepts: bool = False,
    ) -> None:  # fmt: skip
        """``owned``: the models of this node that are split. ``private``: those whose inputs must not leave it.
        ``accepts``: whether it runs stages for neighbours."""
        self._driver, self._node, self._worker, self._device, self._files = driver, node, worker, device, files
        self._owned, self._private, self._accepts = owned, private, accepts
        self._own: dict[str, Part] = {}
        """The stages that are loaded for this node itself, by name."""
        self._hosted: dict[str, tuple[Part, str]] = {}
        """By digest, those that neighbours have asked for, with the name of the whole."""
        self._fetched: dict[str, _Fetched] = {}
        """What is on the disk, by digest."""
        self._cut: dict[str, Part] = {}
        """The stages that this node has cut, by digest. They are on its disk too."""
        self._free_ns: dict[str, int] = {}
        """When a thread has done what it was told so far, by its name."""
        self.disk_full = False

    def begin(self) -> None:
        """Begin a life of the node: no stage is loaded, and the engine is told what may be split."""
        self._own, self._hosted, self._free_ns = {}, {}, {}
        run_ns = {model.name: self._worker.part_ns(model.whole) for model in self._owned}

        def tell(engine: Engine, now: int) -> None:
            inference = engine.inference
            inference.hosting.accepts = self._accepts
            if self._private:
                inference.configure(private=self._private)
            for model in self._owned:
                inference.split.set_model(model.split(run_ns[model.name]), now)

        self._driver.act(self._node, tell)

    def lose_disk(self) -> None:
        """Everything on the disk is gone."""
        self._fetched.clear()
        self._cut.clear()

    # --- what the engine decides -----------------------------------------------------------------------------------
    def perform(self, effect: SplitEffect) -> None:
        """Do what the engine has decided. It is told later, never within this call."""
        match effect:
            case MakePlans():
                self._later(_CUTTER, self._scaled(PLANNING_NS), self._plan, effect)
            case MakeStages():
                parts = [self._files.part(effect.model, between) for between in effect.ranges]
                thread = _LOADER if all(part.digest in self._cut for part in parts) else _CUTTER
                self._later(thread, self._making_ns(effect), self._make, effect)
            case KeepStages():
                self._later(_CUTTER, 0, self._keep, effect)
            case FindStage():
                self._later(_HOST, self._scaled(PLANNING_NS), self._find, effect)
            case StoreChunk():
                self._store(effect)
            case LoadStage():
                part = self._on_disk(effect.digest)
                self._later(_HOST, self._loading_ns(part) if part is not None else 0, self._load, effect)
            case DropStage():
                self._later(_HOST, 0, self._drop, effect)
            case _:
                assert_never(effect)

    def _later(self, thread: str, takes_ns: int, do: Callable[[Any], None], effect: Any) -> None:
        """Do something on a thread, which takes time."""
        self._free_ns[thread] = done_ns = max(self._free_ns.get(thread, 0), self._driver.now) + takes_ns
        self._driver.when_awake(self._node, done_ns, do, effect)

    def _scaled(self, takes_ns: float) -> int:
        """How long that takes here. ``takes_ns``: on a ``car-computer``."""
        return int(takes_ns * self._device.others * self._worker.slowed)

    def _loading_ns(self, part: Part) -> int:
        return self._scaled(LOADING_NS + part.size_bytes * LOADING_NS_PER_BYTE)

    def _act(self, action: Callable[[Engine, int], object]) -> None:
        self._driver.act(self._node, action)

    # --- own models ------------------------------------------------------------------------------------------------
    def _plan(self, effect: MakePlans) -> None:
        made = plans(effect.profile, effect.home, effect.neighbours, effect.goal, first_at_home=effect.first_at_home)
        self._act(lambda engine, now: engine.inference.split.planned(effect.model, made, now))

    def _making_ns(self, effect: MakeStages) -> int:
        takes_ns = 0
        for between in effect.ranges:
            part = self._files.part(effect.model, between)
            if part.digest not in self._cut:
                takes_ns += self._scaled(CUTTING_NS)
            if between in effect.here and part.name not in self._own:
                takes_ns += self._loading_ns(part)
        return takes_ns

    def _make(self, effect: MakeStages) -> None:
        made = [(between, self._files.made(effect.model, between)) for between in effect.ranges]
        self._cut |= {stage.digest: self._files.part(effect.model, between) for between, stage in made}
        here = [self._files.part(effect.model, between) for between in effect.here]
        self._own |= {part.name: part for part in here}
        self._tell_worker()
        self._act(lambda engine, now: engine.inference.split.stages_made(effect.model, effect.ranges, made, now))

    def _keep(self, effect: KeepStages) -> None:
        self._own = {
            name: part for name, part in self._own.items() if part.model.name != effect.model or name in effect.names
        }
        self._tell_worker()

    # --- stages of neighbours --------------------------------------------------------------------------------------
    def _on_disk(self, digest: str) -> Part | None:
        """The part that is on the disk, whole and with the right digest."""
        if digest in self._cut:
            return self._cut[digest]
        fetched = self._fetched.get(digest)
        part = self._files.part_in(fetched.beginning) if fetched is not None else None
        if part is None or fetched is None or part.digest != digest or part.size_bytes != fetched.size_bytes:
            return None
        return part

    def _find(self, effect: FindStage) -> None:
        is_there = self._on_disk(effect.digest) is not None
        self._act(lambda engine, now: engine.inference.hosting.found(effect.digest, is_there, now))

    def _store(self, effect: StoreChunk) -> None:
        """Writing a chunk takes no time."""
        if self.disk_full:
            self._later(_HOST, 0, self._fail, (effect.digest, "the disk is full"))
            return
        if not effect.offset:
            self._fetched[effect.digest] = _Fetched()
        fetched = self._fetched.get(effect.digest)
        if fetched is not None and fetched.size_bytes == effect.offset:
            fetched.beginning = fetched.beginning or bytes(effect.data[:256])
            fetched.size_bytes += len(effect.data)

    def _load(self, effect: LoadStage) -> None:
        part = self._on_disk(effect.digest)
        if part is None:
            self._fetched.pop(effect.digest, None)
            self._fail((effect.digest, "the bytes that came have another digest"))
            return
        self._hosted[effect.digest] = part, effect.model
        self._tell_worker()
        compute_ns = self._worker.part_ns(part)
        self._act(lambda engine, now: engine.inference.hosting.loaded(effect.digest, compute_ns, now))

    def _fail(self, failed: tuple[str, str]) -> None:
        digest, why = failed
        self._act(lambda engine, now: engine.inference.hosting.failed(digest, why))

    def _drop(self, effect: DropStage) -> None:
        if self._hosted.pop(effect.digest, None) is not None:
            self._tell_worker()
        elif self._on_disk(effect.digest) is None:
            self._fetched.pop(effect.digest, None)

    def _tell_worker(self) -> None:
        hosted = self._hosted.values()
        served = {part.name for part, _ in hosted}
        self._worker.set_stages((part for name, part in self._own.items() if name not in served), hosted)


def stage_effects(stages: Mapping[int, Stages]) -> Capability:
    """Lets a driver perform these effects. ``stages``: those of nodes, by number; more may be added later."""

    def perform(node: SimNode, effect: SplitEffect) -> None:
        stages[node.number].perform(effect)

    kinds = (MakePlans, MakeStages, KeepStages, FindStage, StoreChunk, LoadStage, DropStage)
    return Capability(performers=dict.fromkeys(kinds, perform))
