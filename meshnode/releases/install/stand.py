"""The models of a running node, as an installer changes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.models import LoadedModel, ModelSpec
from meshnode.models.worker import WorkerModel
from meshnode.releases.install.refusals import InstallRefused


class Rehearsal(Protocol):
    """What loads a model beside those that serve."""

    def rehearse(self, spec: ModelSpec, *, idle: bool = True, load_s: float | None = None) -> WorkerModel:
        """See :meth:`meshnode.inference.compute.ComputeService.rehearse`."""


class Stand(Rehearsal, Protocol):
    """What an installer needs of the models of a node."""

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Those that serve, by name."""

    def spec(self, name: str, path: Path | None = None) -> ModelSpec | None:
        """How a file is loaded as that model. None as ``path``: the file of the configuration, if it names one.

        :raises InstallRefused: this node can't run releases of that model.
        """

    def serve_version(self, spec: ModelSpec, keep: int, about_to_serve: Callable[[LoadedModel], None]) -> LoadedModel:
        """See :meth:`meshnode.inference.compute.ComputeService.serve_version`."""

    def stop_version(self, name: str, keep: int) -> None:
        """See :meth:`meshnode.inference.compute.ComputeService.stop_version`."""

    def forget_version(self, name: str, digest: str) -> None:
        """See :meth:`meshnode.inference.compute.ComputeService.forget_version`."""


class NodeModels:
    """The models that a configuration names, and those that only releases bring."""

    def __init__(
        self, compute: ComputeService, models: ModelsSection, how: InferenceSection,
        follow: Callable[[str, str, bool], None] = lambda name, digest, private: None,
    ) -> None:  # fmt: skip
        """``follow`` is called with the name and the digest of a model just before it serves, and whether its inputs
        must not leave this node."""
        self._compute, self._sections, self._how, self._follow = compute, models.models, how, follow
        self.rehearse, self.stop_version = compute.rehearse, compute.stop_version
        self.forget_version = compute.forget_version

    @property
    def models(self) -> dict[str, LoadedModel]:
        """See :class:`Stand`."""
        return self._compute.models

    def spec(self, name: str, path: Path | None = None) -> ModelSpec | None:
        """See :class:`Stand`."""
        section = self._sections.get(name)
        if section is None:
            return None if path is None else ModelSpec(name, path, providers=self._how.providers)
        if not section.whole or section.split != "off":
            raise InstallRefused(
                "load", f"[models.{name}] is split between nodes, and releases of such models are not installed yet: "
                "set split = 'off'"
            )  # fmt: skip
        if path is None:
            return section.spec(name, self._how.providers)
        return ModelSpec(
            name, path, section.threads, section.serve, section.optimisation, section.warm_up, None,
            self._how.providers, section.memory_limit_mib,
        )  # fmt: skip

    def serve_version(self, spec: ModelSpec, keep: int, about_to_serve: Callable[[LoadedModel], None]) -> LoadedModel:
        """See :class:`Stand`."""

        def about(model: LoadedModel) -> None:
            about_to_serve(model)
            self._follow(spec.name, model.digest, model.manifest.split.first_cut_at_home)

        return self._compute.serve_version(spec, keep, about)
