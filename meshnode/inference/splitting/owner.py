"""The models of this node that are split: it cuts them, plans, and makes their stages, on a thread of its own."""

import logging
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.inference.splitting.act import Act
from meshnode.inference.splitting.description import split_model
from meshnode.models import ModelSpec
from meshnode.models.cutting import StageFile, StageFolder
from meshnode.troubles import Troubles
from protocols.base.errors import MeshError
from protocols.inference.signature import ModelSignature
from protocols.inference.split.events import KeepStages, MakePlans, MakeStages, Stage
from protocols.inference.split.planner import plans
from protocols.inference.split.splitting import stage_name

_log = logging.getLogger(__name__)
TROUBLE: Final = "split"


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
        self._models, self._how, self._folder, self._compute = models, how, folder, compute
        self._act, self._troubles = act, troubles
        self._cuts: dict[str, tuple[int, ...]] = {}
        """By model: the index in its description of each cut that plans may use."""
        self._thread = ThreadPoolExecutor(1, "model-splitter")

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It plans and makes stages."""
        return {
            MakePlans: self._later(self._plan), MakeStages: self._later(self._make),
            KeepStages: self._later(self._keep),
        }  # fmt: skip

    def _later(self, do: Callable[[Any], None]) -> Callable[[Any], object]:
        def submit(effect: Any) -> None:
            try:
                self._thread.submit(do, effect)
            except RuntimeError:
                _log.debug("the node closes: %s is not done any more", type(effect).__name__)

        return submit

    def start(self) -> None:
        """Cut the models, once they are loaded, and tell the engine where."""
        for spec in self._specs.values():
            self._thread.submit(self._describe, spec)

    def close(self) -> None:
        """End the thread, after what it does now."""
        self._thread.shutdown(cancel_futures=True)

    # --- on the thread ---------------------------------------------------------------------------------------------
    def _describe(self, spec: ModelSpec) -> None:
        section = self._models[spec.name]
        try:
            description = self._folder.describe(spec)
            model, self._cuts[spec.name] = split_model(spec, section, description, self._how.emulate_slowdown)
        except MeshError as error:
            self._troubles.begin(TROUBLE, spec.name, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the node goes on without splitting
            _log.exception("model %s can't be cut", spec.name)
            self._troubles.begin(TROUBLE, spec.name, f"model {spec.name!r} can't be cut: {error!r}")
            return
        self._troubles.end(TROUBLE, spec.name)
        _log.info("model %s: %d cuts that plans may use", spec.name, len(model.profile.cuts))
        for note in description.notes:
            _log.info("model %s: %s", spec.name, note)
        self._act(lambda engine, now: engine.inference.split.set_model(model, now))

    def _plan(self, effect: MakePlans) -> None:
        made = plans(
            effect.profile, effect.home, effect.neighbours, effect.goal, first_at_home=effect.first_at_home
        )  # fmt: skip
        self._act(lambda engine, now: engine.inference.split.planned(effect.model, made, now))

    def _make(self, effect: MakeStages) -> None:
        spec, made = self._specs[effect.model], []
        try:
            cuts = [self._cuts[spec.name][range_.last] for range_ in effect.ranges[:-1]]
            for range_, file in zip(effect.ranges, self._folder.stages(spec, cuts), strict=True):
                if range_ in effect.here:
                    self._compute.add_stage(_stage_spec(spec, file))
                made.append((range_, _stage(file)))
        except (MeshError, OSError) as error:
            _log.warning("model %s can't be split as planned: %s", spec.name, error)
        self._act(lambda engine, now: engine.inference.split.stages_made(effect.model, made, now))

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
