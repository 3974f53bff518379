"""Split inference of a running node: its split models, and the stages that it runs for others."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.inference.splitting.host import StageHost
from meshnode.inference.splitting.owner import SplitOwner
from meshnode.models.cutting import StageFolder
from meshnode.models.manifest import read_manifest
from meshnode.running import Host
from protocols.base.errors import ModelInvalid
from protocols.engine import Engine

_FOLDER: Final = "stages"
_MIB: Final = 1024 * 1024


class SplitInference:
    """See the module."""

    def __init__(self, host: Host, compute: ComputeService) -> None:
        how, models = host.config.of(InferenceSection), host.config.of(ModelsSection).models
        path = host.config.node.state_dir / _FOLDER
        folder = StageFolder(path, how.stage_cache_mib * _MIB)

        def act(do: Callable[[Engine, int], object]) -> object:
            return host.driver.act(do)  # the driver is made after the parts

        self._how, self._host = how, host
        self._not_whole = frozenset(name for name, section in models.items() if not section.whole)
        self._owner = SplitOwner(models, how, folder, compute, act, host.troubles)
        self._hosting = StageHost(path, folder, how, compute, act)

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """The functions that perform the effects of split inference."""
        return {**self._owner.performers(), **self._hosting.performers()}

    async def watch(self) -> None:
        """Take stages of neighbours if the configuration says so, and cut the models that are to be split."""
        if self._how.accept_stages:
            self._host.driver.act(self._accept)
        await self._owner.watch()

    def _accept(self, engine: Engine, _: int) -> None:
        engine.inference.hosting.accepts, engine.inference.hosting.places = True, self._how.max_stages

    def in_parts(self) -> frozenset[str]:
        """The models that are cut, and of which only stages are loaded here."""
        return self._not_whole & self._owner.cut

    def why_not(self, model: str) -> str | None:
        """Why a model of which only stages should be loaded could not be cut; None: it was, or the whole is loaded."""
        return self._owner.files.why_not(model) if model in self._not_whole else None

    def close(self) -> None:
        """End the threads."""
        self._owner.close()
        self._hosting.close()


def private_models(models: ModelsSection) -> set[str]:
    """The models whose inputs must not leave this node. One whose manifest can't be read is among them, because nobody
    knows what it says."""
    private = set()
    for name, section in models.models.items():
        if section.path is None:
            continue
        try:
            if read_manifest(section.path).split.first_cut_at_home:
                private.add(name)
        except ModelInvalid:
            private.add(name)
    return private
