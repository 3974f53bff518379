"""Stages, serves and drops releases, and brings a node back with a model that serves.

The order of a change of release, each step of which may be the last one before a crash:

1. its files are put together and checked against the metadata, in a folder of their own (:mod:`~.staging`);
2. it is loaded in a worker process of its own, runs its golden vectors, and can be used as the one before was;
3. the journal lists it as installed. Nothing else has changed so far;
4. it is loaded to serve, while the one before serves;
5. the journal says that it serves. From here on a restart begins with it;
6. it answers the next request. Runs under way end with the one before, which stays warm.

At the start a path is served by the release of the journal, or by one before it if that can't be loaded, or by the file
of the configuration. What a release is loaded from has to have the digest with which it was tried.
"""

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from meshnode.models import LoadedModel, ModelSpec
from meshnode.models.model import read_model
from meshnode.models.worker import WorkerModel
from meshnode.releases.install.journal import (
    FACTORY,
    InstalledPath,
    InstalledRelease,
    InstallJournal,
    digest_of_files,
)
from meshnode.releases.install.refusals import InstallRefused, refusal_of
from meshnode.releases.install.staging import Staging, check_runtime
from meshnode.releases.install.stand import Stand
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from protocols.base.errors import InferenceError, ModelInvalid
from protocols.inference.signature import ModelSignature, breaks
from protocols.releases.catalogue import Description

_log = logging.getLogger(__name__)
JOURNAL: Final = "journal.json"
_BREAKS_SHOWN: Final = 8


def model_of(path: str) -> str:
    """The name of the model that a path stands for."""
    return path.partition("/")[2]


class Installer:
    """See the module. Its methods block for seconds. They may be called from any thread, as long as one at a time is
    about one release, and one at a time serves."""

    def __init__(self, folder: Path, store: ChunkStore, stand: Stand, keep: int, disk: Disk | None = None) -> None:
        """``keep``: how many releases stay warm behind the one that serves."""
        self._disk = disk or Disk()
        self._stand, self._keep = stand, keep
        self._staging = Staging(folder, store, self._disk)
        self.journal = InstallJournal(folder / JOURNAL, self._disk)

    # --- at the start ----------------------------------------------------------------------------------------------
    def serve_installed(self) -> dict[str, str]:
        """Serve what the journal says, or what comes next to it. Returns why, for each path on which another release
        serves than the journal said. :raises StorageError: the journal can't be used."""
        self.journal.open()
        paths = self.journal.paths.items()
        self._staging.keep_only({(path, each.counter) for path, state in paths for each in state.installed})
        fell_back = {}
        for path, state in list(self.journal.paths.items()):
            if state.current != FACTORY and (whys := self._serve_first_good(path, state)):
                fell_back[path] = "; ".join(whys)
        return fell_back

    def _serve_first_good(self, path: str, state: InstalledPath) -> list[str]:
        whys: list[str] = []
        bad: list[int] = []
        for counter in dict.fromkeys((state.current, *state.previous)):
            release = state.release(counter)
            if counter == FACTORY and self._has_file(path):
                break  # it is loaded with the others that the configuration names
            if release is None:
                continue
            try:
                self._stand.serve_version(self._spec(path, release), self._keep, lambda model: None)
            except InferenceError as error:
                _log.error("release %d of %s can't be served any more: %s", counter, path, error)
                whys.append(f"release {counter} can't be served: {error}")
                bad.append(counter)
            else:
                if bad:
                    self._note_first_good(path, counter, bad)
                return whys
        self._note_first_good(path, FACTORY, bad)
        return whys

    def _note_first_good(self, path: str, counter: int, bad: list[int]) -> None:
        self.journal.note(path, lambda state: state.serving(counter, self._keep).without(bad))

    def _has_file(self, path: str) -> bool:
        """Whether the configuration names a file for a path."""
        try:
            return self._stand.spec(model_of(path)) is not None
        except InstallRefused:
            return True  # and has it split between nodes

    # --- changes ---------------------------------------------------------------------------------------------------
    def stage(self, description: Description) -> None:
        """Put a release together and try it. :raises InstallRefused: says in one word and in many why not."""
        path, counter = description.path, description.counter
        try:
            self._check_can_run(description)
            if self._is_installed(description):
                return
            folder = self._staging.put_together(description)
            try:
                digest = self._tried(description, folder)
                release = InstalledRelease(counter, description.model, digest, digest_of_files(description))
                self.journal.change(path, lambda state: state.with_installed(release))
            except BaseException:
                if self.journal.of(path).release(counter) is None:
                    self._staging.remove(path, counter)
                raise
        except Exception as error:
            raise refusal_of(error) from error

    def _is_installed(self, description: Description) -> bool:
        """Whether a release was staged before, and its files are still right. The one that serves goes on with those
        that it has, even if other ones are listed under its counter now."""
        path, state = description.path, self.journal.of(description.path)
        release = state.release(description.counter)
        if release is None or not (release.is_of(description) or release.counter == state.current):
            return False
        try:
            return read_model(self._spec(path, release)).digest == release.digest
        except ModelInvalid:
            return False

    def _check_can_run(self, description: Description) -> None:
        kind, _, name = description.path.partition("/")
        if kind != "models":
            raise InstallRefused(
                "other", f"releases of the kind {kind!r} can't be installed by this version: update it"
            )
        check_runtime(description.runtime)
        if description.model not in {file.name for file in description.files}:
            raise InstallRefused("load", f"its file {description.model!r} is not among its files: publish it again")
        self._stand.spec(name, Path(description.model))

    def _tried(self, description: Description, folder: Path) -> str:
        """The digest of the model, once it was loaded and run."""
        name = model_of(description.path)
        spec = self._stand.spec(name, folder / description.model)
        assert spec is not None, "it has a file"
        model = self._rehearsed(spec)
        try:
            serving = self._stand.models.get(name)
            if serving is not None:
                current = self.journal.of(description.path).current
                if description.signature_since <= current < description.counter:  # otherwise a break was declared
                    _check_signature(serving.signature, model.signature)
                _check_finite(serving, model)
            return model.digest
        finally:
            model.close()

    def _rehearsed(self, spec: ModelSpec) -> WorkerModel:
        """With the processor time that nobody else wants, or if that was too little, with as much as any other."""
        try:
            return self._stand.rehearse(spec)
        except ModelInvalid as error:
            if refusal_of(error).code != "hung":
                raise
            return self._stand.rehearse(spec, idle=False)

    def _spec(self, path: str, release: InstalledRelease) -> ModelSpec:
        spec = self._stand.spec(model_of(path), self._staging.place_of(path, release.counter) / release.model)
        assert spec is not None, "it has a file"
        return replace(spec, digest=release.digest)

    def spec_of(self, path: str, counter: int) -> ModelSpec:
        """How an installed release is loaded. :raises InstallRefused: it is not installed."""
        release = self.journal.of(path).release(counter)
        if release is None:
            raise InstallRefused("other", f"release {counter} of {path} is not installed: stage it first")
        return self._spec(path, release)

    def serve(self, path: str, counter: int) -> None:
        """Have a release that is staged answer requests; ``FACTORY``: the file of the configuration.

        On the way back to an older release, or one that served before, the journal may be written later.

        :raises InstallRefused: it can't be loaded, or the journal not be written. What served goes on.
        """
        try:
            before = self.journal.of(path)
            goes_back = counter < before.current or counter in before.previous
            write = self.journal.note if goes_back else self.journal.change
            spec = self._stand.spec(model_of(path)) if counter == FACTORY else self.spec_of(path, counter)
            if spec is None:
                write(path, lambda state: state.serving(counter, self._keep))
                self._stand.stop_version(model_of(path), self._keep)
            else:
                self._stand.serve_version(
                    spec, self._keep, lambda model: write(path, lambda state: state.serving(counter, self._keep))
                )
        except Exception as error:
            raise refusal_of(error) from error

    def drop(self, path: str, counter: int) -> None:
        """Remove a release that does not serve. :raises StorageError: the journal can't be written."""
        state = self.journal.of(path)
        if counter == state.current:
            return
        release = state.release(counter)
        if release is not None:
            self.journal.change(path, lambda state: state.without([counter]))
            self._stand.forget_version(model_of(path), release.digest)
        self._staging.remove(path, counter)


def _check_signature(before: ModelSignature, now: ModelSignature) -> None:
    if broken := list(islice(breaks(before, now), _BREAKS_SHOWN)):
        raise InstallRefused("signature", (
            f"whoever uses what serves now can't use it: {'; '.join(broken)}. If that is meant, its publisher has to "
            "declare the break"
        ))  # fmt: skip


def _check_finite(before: LoadedModel, now: LoadedModel) -> None:
    """Refuse a model that answers NaN to zeros where the one before does not."""
    import numpy as np

    zeros = now.zeros()
    if zeros is None:
        return
    for name, array in now.run(zeros):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            try:
                earlier = dict(before.run(zeros)).get(name)
            except (InferenceError, ModelInvalid):
                return
            if earlier is not None and np.isfinite(earlier).all():
                raise InstallRefused("not_finite", f"its output {name!r} is NaN or infinite on zeros")
