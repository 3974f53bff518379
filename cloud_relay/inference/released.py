"""Models of releases: the relay computes the release that is out, from its own repository, as nodes do.

The repository is looked at every few seconds. When another release is out, its files are unpacked and loaded beside the
model that serves, which takes its place for requests that mean its digest; the one before stays warm, because nodes
change over a while. What can't be loaded changes nothing, is named in the log, and is tried again.
"""

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from cloud_relay.inference.section import stays_at_home
from cloud_relay.releases.shelf import ChunkShelf
from cloud_relay.releases.shown import BUNDLE_FILE, read_current
from meshnode.identity.private_files import make_private_folder
from meshnode.inference.compute import ComputeService
from meshnode.inference.section import ModelSection
from protocols.base.errors import MeshError, ModelInvalid
from protocols.releases.catalogue import Description

LOOK_S: Final = 5.0
"""The time between two looks whether something was published."""
RETRY_S: Final = 60.0
"""The time after which a release that could not be loaded is tried again."""
KEEP: Final = 1
"""Releases before the one that serves that stay warm."""
_log = logging.getLogger(__name__)


class ReleasedModels:
    """See the module. One thread follows; any thread may close it."""

    def __init__(
        self, repository: Path, folder: Path, models: Mapping[str, ModelSection], providers: tuple[str, ...],
        compute: ComputeService,
    ) -> None:  # fmt: skip
        """``folder``: where files are unpacked, by model and release. ``models``: how each is run, by name."""
        self._repository, self._folder, self._providers = repository, folder, providers
        self._models, self._compute = models, compute
        self._serving: dict[str, int] = {}
        self._complaints: dict[str, str] = {}
        self._closing = threading.Event()

    def close(self) -> None:
        """Load nothing any more. Idempotent."""
        self._closing.set()

    def follow(self) -> None:
        """Serve what is out, until this is closed."""
        seen: tuple[int, int] | None = None
        retry_s = 0.0
        while not self._closing.wait(LOOK_S if seen else 0):
            now = self._stamp()
            if now != seen or time.monotonic() >= retry_s:
                done = [self._look(name) for name in self._models if not self._closing.is_set()]
                seen, retry_s = now or (0, 0), inf if all(done) else time.monotonic() + RETRY_S

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self._repository / BUNDLE_FILE).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _look(self, name: str) -> bool:
        """Serve the release of a model that is out. Returns whether that was possible."""
        try:
            release = read_current(self._repository, f"models/{name}")
            if release is None:
                if self._serving.pop(name, None) is not None:
                    self._compute.stop_version(name, 0)
            elif self._serving.get(name) != release.counter:
                self._serve(name, release)
        except (MeshError, OSError) as error:
            if not self._closing.is_set() and self._complaints.get(name) != str(error):
                self._complaints[name] = str(error)
                _log.error("the relay does not compute what is released as %s: %s", name, error)
            return False
        self._complaints.pop(name, None)
        return True

    def _serve(self, name: str, release: Description) -> None:
        folder = self._folder / name
        make_private_folder(self._folder)
        make_private_folder(folder)
        fresh, place = folder / ".new", folder / str(release.counter)
        for old in (fresh, place):  # what a killed process has left, or a damaged disk has changed
            shutil.rmtree(old, ignore_errors=True)
        ChunkShelf(self._repository / "chunks").unpack(release, fresh)
        fresh.rename(place)
        section = replace(self._models[name], path=place / release.model)
        if stays_at_home(section):
            raise ModelInvalid(
                f"release {release.counter} has a manifest with first_cut_at_home: nodes compute it alone"
            )
        spec = section.spec(name, self._providers)
        assert spec is not None, "it has a path"
        model = self._compute.serve_version(spec, KEEP)
        before, self._serving[name] = self._serving.get(name), release.counter
        _log.info("model %s: release %d, %s", name, release.counter, model.digest[:12])
        for other in folder.iterdir():  # a worker that has crashed loads its file again: the warm one needs it, too
            if other.name not in (str(before), str(release.counter)):
                shutil.rmtree(other, ignore_errors=True)
