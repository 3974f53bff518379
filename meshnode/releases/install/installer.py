"""Stages, serves and drops releases, and brings a node back with what serves.

The order of a change of release, each step of which may be the last one before a crash:

1. its files are put together and checked against the metadata, in a folder of their own (:mod:`~.staging`);
2. it is tried, as its kind is: a model in a worker process of its own (:mod:`~.models`), rules by compiling them
   (:mod:`~.rules`);
3. the journal lists it as installed. Nothing else has changed so far;
4. it is got ready to serve, while the one before serves;
5. the journal says that it serves. From here on a restart begins with it;
6. it answers the next request, or takes the next reading.

At the start a path is served by the release of the journal, or by one before it if that can't be used, or by the files
of the configuration. What a release is loaded from has to have the digest with which it was tried.
"""

import logging
from pathlib import Path
from typing import Final

from meshnode.models import ModelSpec
from meshnode.releases.install.journal import (
    FACTORY,
    InstalledPath,
    InstalledRelease,
    InstallJournal,
    digest_of_files,
)
from meshnode.releases.install.kind import Kind, name_of
from meshnode.releases.install.models import ModelKind
from meshnode.releases.install.refusals import InstallRefused, refusal_of
from meshnode.releases.install.rules import RuleKind
from meshnode.releases.install.staging import Staging
from meshnode.releases.install.stand import Stand
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from protocols.base.errors import InferenceError
from protocols.releases.catalogue import Description

_log = logging.getLogger(__name__)
JOURNAL: Final = "journal.json"


class Installer:
    """See the module. Its methods block for seconds. They may be called from any thread, as long as one at a time is
    about one release, and one at a time serves."""

    def __init__(
        self, folder: Path, store: ChunkStore, stand: Stand, keep: int, disk: Disk | None = None,
        rules: RuleKind | None = None,
    ) -> None:  # fmt: skip
        """``keep``: how many releases stay behind the one that serves. ``rules``: None: this node takes no releases of
        rules."""
        self._disk = disk or Disk()
        self._keep = keep
        self._models, self.rules = ModelKind(stand, keep), rules
        self._staging = Staging(folder, store, self._disk)
        self.journal = InstallJournal(folder / JOURNAL, self._disk)

    def _kind(self, path: str) -> Kind:
        """:raises InstallRefused: this node takes no releases of that path."""
        kind = path.partition("/")[0]
        if kind == "models":
            return self._models
        if kind == "rules":
            if self.rules is None or path != self.rules.path:
                raise InstallRefused(
                    "other", f"this node does not take {path}: add release = {name_of(path)!r} to its [rules]"
                )
            return self.rules
        raise InstallRefused("other", f"releases of the kind {kind!r} can't be installed by this version: update it")

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
        try:
            kind = self._kind(path)
        except InstallRefused:  # the configuration does not name it any more
            self._note_first_good(path, FACTORY, [])
            return []
        whys: list[str] = []
        bad: list[int] = []
        for counter in dict.fromkeys((state.current, *state.previous)):
            release = state.release(counter)
            if counter == FACTORY and kind.has_own(path):
                break
            if release is None:
                continue
            try:
                kind.serve(path, self._file(path, release), release.digest, lambda: None)
            except (InferenceError, InstallRefused) as error:
                _log.error("release %d of %s can't be served any more: %s", counter, path, error)
                whys.append(f"release {counter} can't be served: {error}")
                bad.append(counter)
            else:
                if bad:
                    self._note_first_good(path, counter, bad)
                return whys
        kind.begin_with_own(path)
        self._note_first_good(path, FACTORY, bad)
        return whys

    def _note_first_good(self, path: str, counter: int, bad: list[int]) -> None:
        self.journal.note(path, lambda state: state.serving(counter, self._keep).without(bad))

    def installed_files(self, path: str) -> list[Path]:
        """The files of installed releases of a path whose digest is right, the one to be used first at the beginning;
        none when the files of the configuration are. May be called before anything else.

        :raises StorageError: the journal can't be used.
        """
        self.journal.open()
        state, kind, found = self.journal.of(path), self._kind(path), []
        for counter in dict.fromkeys((state.current, *state.previous)):
            if counter == FACTORY:
                break
            release = state.release(counter)
            if release is not None and kind.is_whole(path, file := self._file(path, release), release.digest):
                found.append(file)
        return found

    # --- changes ---------------------------------------------------------------------------------------------------
    def stage(self, description: Description) -> None:
        """Put a release together and try it. :raises InstallRefused: says in one word and in many why not."""
        path, counter = description.path, description.counter
        try:
            kind = self._kind(path)
            _check_files(description)
            kind.check(description)
            if self._is_installed(kind, description):
                return
            folder = self._staging.put_together(description)
            try:
                digest = kind.tried(description, folder / description.model, self.journal.of(path).current)
                release = InstalledRelease(counter, description.model, digest, digest_of_files(description))
                self.journal.change(path, lambda state: state.with_installed(release))
            except BaseException:
                if self.journal.of(path).release(counter) is None:
                    self._staging.remove(path, counter)
                raise
        except Exception as error:
            raise refusal_of(error) from error

    def _is_installed(self, kind: Kind, description: Description) -> bool:
        """Whether a release was staged before, and its files are still right. The one that serves goes on with those
        that it has, even if other ones are listed under its counter now."""
        path, state = description.path, self.journal.of(description.path)
        release = state.release(description.counter)
        if release is None or not (release.is_of(description) or release.counter == state.current):
            return False
        return kind.is_whole(path, self._file(path, release), release.digest)

    def _file(self, path: str, release: InstalledRelease) -> Path:
        return self._staging.place_of(path, release.counter) / release.model

    def _release(self, path: str, counter: int) -> InstalledRelease:
        release = self.journal.of(path).release(counter)
        if release is None:
            raise InstallRefused("other", f"release {counter} of {path} is not installed: stage it first")
        return release

    def spec_of(self, path: str, counter: int) -> ModelSpec:
        """How an installed release of a model is loaded. :raises InstallRefused: it is not installed."""
        release = self._release(path, counter)
        return self._models.spec(path, self._file(path, release), release.digest)

    def serve(self, path: str, counter: int) -> None:
        """Have a release that is staged serve; ``FACTORY``: what the configuration names.

        On the way back to an older release, or one that served before, the journal may be written later.

        :raises InstallRefused: it can't be used, or the journal not be written. What served goes on.
        """
        try:
            before = self.journal.of(path)
            goes_back = counter < before.current or counter in before.previous
            write = self.journal.note if goes_back else self.journal.change
            file, digest = None, ""
            if counter != FACTORY:
                release = self._release(path, counter)
                file, digest = self._file(path, release), release.digest
            kind = self._kind(path)
            kind.serve(path, file, digest, lambda: write(path, lambda state: state.serving(counter, self._keep)))
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
            if path.startswith("models/"):
                self._models.forget(path, release.digest)
        self._staging.remove(path, counter)


def _check_files(description: Description) -> None:
    if description.model not in {file.name for file in description.files}:
        raise InstallRefused("load", f"its file {description.model!r} is not among its files: publish it again")
