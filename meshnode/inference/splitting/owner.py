"""The models of this node that are split: it cuts them, plans, and makes their stages, on a thread of its own."""

import asyncio
import logging
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from meshnode.inference.compute import ComputeService
from meshnode.inference.files import ModelFiles
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.inference.splitting.act import Act
from meshnode.inference.splitting.description import split_model
from meshnode.models import ModelSpec
from meshnode.models.cutting import StageFile, StageFolder
from meshnode.troubles import Troubles
from protocols.base.errors import MeshError
from protocols.inference.signature import ModelSignature
from protocols.inference.split.events import KeepStages, MakePlans, MakeStages, Stage, StageRange, stage_name
from protocols.inference.split.plan import Plan
from protocols.inference.split.planner import plans

_log = logging.getLogger(__name__)
TROUBLE: Final = "split"
_MAX_MADE: Final = 64
"""Plans whose files are remembered; others are looked up again."""


class SplitOwner:
    """See the module."""

    def __init__(
        self, models: Mapping[str, ModelSection], how: InferenceSection, folder: StageFolder, compute: ComputeService,
        act: Act, troubles: Troubles,
    ) -> None:  # fmt: skip
        self._specs = {
            name: spec
            for name, section in models.items()
            if section.split != "off" and (spec := section.spec(name, how.providers)) is not None
        }
        """Once a model is cut, with its digest: stages must not be made of a file that has changed since."""
        self._models, self._how, self._folder, self._compute = models, how, folder, compute
        self._act, self._troubles = act, troubles
        self.files = ModelFiles(tuple(self._specs.values()), self._describe, troubles, TROUBLE)
        """Those that can't be cut are tried again."""
        self._cuts: dict[str, tuple[int, ...]] = {}
        """By model: the index in its description of each cut that plans may use."""
        self._made: dict[tuple[str, tuple[StageRange, ...]], tuple[StageFile, ...]] = {}
        """The stages of plans that were made, by model and ranges."""
        self._thread = ThreadPoolExecutor(1, "model-splitter")
        self._loading = ThreadPoolExecutor(1, "stage-loader")
        """Loads what was made before: a request may wait for that, and to cut for another plan takes seconds."""

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It plans and makes stages."""
        return {MakePlans: self._to_plan, MakeStages: self._to_make, KeepStages: self._to_keep}

    def _to_plan(self, effect: MakePlans) -> None:
        self._submit(self._thread, self._plan, effect)

    def _to_make(self, effect: MakeStages) -> None:
        is_made = (effect.model, effect.ranges) in self._made
        self._submit(self._loading if is_made else self._thread, self._make, effect)

    def _to_keep(self, effect: KeepStages) -> None:
        """On the thread that loads, or it would unload what was loaded after it was decided."""
        self._submit(self._loading, self._keep, effect)

    def _submit(self, thread: ThreadPoolExecutor, do: Callable[[Any], None], effect: Any) -> None:
        try:
            thread.submit(do, effect)
        except RuntimeError:
            _log.debug("the node closes: %s is not done any more", type(effect).__name__)

    @property
    def cut(self) -> frozenset[str]:
        """The names of the models that are cut."""
        return frozenset(self._cuts)

    async def watch(self) -> None:
        """Cut the models, tell the engine where, and try again what can't be cut, once that is possible."""
        await asyncio.wrap_future(self._thread.submit(self.files.load_all))
        await self.files.watch()

    def close(self) -> None:
        """End the threads. What cuts is ended, and what loads finishes."""
        self._folder.close()
        self._thread.shutdown(cancel_futures=True)
        self._loading.shutdown(cancel_futures=True)

    # --- on the threads --------------------------------------------------------------------------------------------
    def _describe(self, spec: ModelSpec) -> None:
        section = self._models[spec.name]
        description = self._folder.describe(spec)
        model, cuts = split_model(spec, section, description, self._how.emulate_slowdown)
        self._specs[spec.name], self._cuts[spec.name] = replace(spec, digest=description.digest), cuts
        _log.info("model %s: %d cuts that plans may use", spec.name, len(model.profile.cuts))
        for note in description.notes:
            _log.info("model %s: %s", spec.name, note)
        self._act(lambda engine, now: engine.inference.split.set_model(model, now))

    def _plan(self, effect: MakePlans) -> None:
        made: list[Plan] = []
        try:
            made = plans(
                effect.profile, effect.home, effect.neighbours, effect.goal, first_at_home=effect.first_at_home
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - without an answer no plan would ever be made again
            _log.exception("model %s: there are no plans", effect.model)
        self._act(lambda engine, now: engine.inference.split.planned(effect.model, made, now))

    def _make(self, effect: MakeStages) -> None:
        made: list[tuple[StageRange, Stage]] = []
        try:
            spec = self._specs[effect.model]
            for range_, file in zip(effect.ranges, self._stages(spec, effect.ranges), strict=True):
                if range_ in effect.here:
                    self._compute.add_stage(_stage_spec(spec, file))
                made.append((range_, _stage(file)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine waits for an answer
            if not isinstance(error, MeshError | OSError):
                _log.exception("model %s: its stages can't be made", effect.model)
            self._troubles.begin(TROUBLE, effect.model, f"model {effect.model!r} can't be split as planned: {error}")
        else:
            self._troubles.end(TROUBLE, effect.model)
        self._act(lambda engine, now: engine.inference.split.stages_made(effect.model, effect.ranges, made, now))

    def _stages(self, spec: ModelSpec, ranges: tuple[StageRange, ...]) -> tuple[StageFile, ...]:
        files = self._made.get((spec.name, ranges))
        if files is None or not all(Path(file.path).exists() for file in files):
            cuts = [self._cuts[spec.name][range_.last] for range_ in ranges[:-1]]
            files = self._folder.stages(spec, cuts)
            if len(self._made) >= _MAX_MADE:
                del self._made[next(iter(self._made))]
            self._made[spec.name, ranges] = files
        return files

    def _keep(self, effect: KeepStages) -> None:
        for name in self._compute.stages(hosted=False):
            if name.startswith(f"{effect.model}:") and name not in effect.names:
                self._compute.drop_stage(name, hosted=False)


def _stage_spec(spec: ModelSpec, file: StageFile) -> ModelSpec:
    return replace(
        spec, name=stage_name(spec.name, file.digest), path=Path(file.path), serve=False, warm_up={}, digest=None
    )  # fmt: skip


def _stage(file: StageFile) -> Stage:
    """One with a manifest stays here: its digest covers both, and pictures are prepared on this node."""
    content: bytes | memoryview = b""
    if not file.manifest:
        with Path(file.path).open("rb") as opened:
            content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    return Stage(file.digest, ModelSignature(file.inputs, file.outputs), file.size_bytes, content)
