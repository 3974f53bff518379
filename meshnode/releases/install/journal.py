"""Which release of each path serves, which ones were before it, and which ones are there: one small file.

It is written anew for each change, as a whole or not at all. What it says is what serves after a restart. It is written
before a release answers its first request, so a crash between the two brings the node back with either of both. Only
on the way back to an older release it may be written later: a full disk must not keep a bad one serving.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from meshnode.releases.store.disk import Disk
from protocols.base.errors import StorageError
from protocols.releases.catalogue import Description

_log = logging.getLogger(__name__)
FACTORY: Final = 0
"""The counter that stands for the file that the configuration names, or for none."""
_MAX_BYTES: Final = 1024 * 1024


def digest_of_files(description: Description) -> str:
    """The SHA-256 that tells releases with other files apart, in hex. It is not that of the description, to which
    deltas may be added later."""
    files = sorted((file.name, file.content.sha256) for file in description.files)
    return hashlib.sha256(msgspec.json.encode((description.model, files))).hexdigest()


class InstalledRelease(Struct, frozen=True, forbid_unknown_fields=True):
    """A release whose files are on the disk and were tried."""

    counter: int
    model: str
    """The name of its ONNX file."""
    digest: str
    """What the model has as its digest once it is loaded: of all that changes its results."""
    files: str = ""
    """Which files its description named, see :func:`digest_of_files`; empty: it was installed before this was kept."""

    def is_of(self, description: Description) -> bool:
        """Whether these are the files that a description names, as far as is known."""
        return not self.files or self.files == digest_of_files(description)


class InstalledPath(Struct, frozen=True, forbid_unknown_fields=True):
    """One path."""

    current: int = FACTORY
    """The release that serves."""
    previous: tuple[int, ...] = ()
    """Those that served before it and are kept, the last one first."""
    installed: tuple[InstalledRelease, ...] = ()

    def release(self, counter: int) -> InstalledRelease | None:
        """The installed release with that counter."""
        return next((each for each in self.installed if each.counter == counter), None)

    def with_installed(self, release: InstalledRelease) -> "InstalledPath":
        """The same with one more release, in place of one with its counter."""
        others = [each for each in self.installed if each.counter != release.counter]
        return msgspec.structs.replace(self, installed=(*others, release))

    def without(self, counters: Iterable[int]) -> "InstalledPath":
        """The same without some releases, none of which serves."""
        gone = set(counters)
        return InstalledPath(
            self.current, tuple(each for each in self.previous if each not in gone),
            tuple(each for each in self.installed if each.counter not in gone),
        )  # fmt: skip

    def serving(self, counter: int, keep: int) -> "InstalledPath":
        """The same once another release serves. ``keep``: how many stay as those before it."""
        if counter == self.current:
            return self
        before = [each for each in (self.current, *self.previous) if each != counter]
        return msgspec.structs.replace(self, current=counter, previous=tuple(before[:keep]))


Step = Callable[[InstalledPath], InstalledPath]
"""Makes a state of the one before."""


class _Kept(Struct, frozen=True, forbid_unknown_fields=True):
    paths: dict[str, InstalledPath]
    format: Literal[1] = 1


_DECODER: Final = msgspec.json.Decoder(_Kept)


class InstallJournal:
    """The file. What changes it may be called from any thread once it is open, and :attr:`paths` may be read on any."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self._disk = path, disk
        self._lock = threading.Lock()  # of all changes, so that none gets lost
        self.paths: Mapping[str, InstalledPath] = {}
        """Never changed, but replaced."""
        self._is_behind = False  # what is on the disk
        self.why_lost = ""
        """Why what was kept could not be read; empty: it could, or nothing was kept."""

    def open(self) -> None:
        """Read what is kept, before anything changes it. What can't be read is moved aside, and all paths begin with
        the files of the configuration. :raises StorageError: the folder can't be used."""
        try:
            self._disk.make_folder(self.path.parent)
            with self.path.open("rb") as file:
                self.paths = _DECODER.decode(file.read(_MAX_BYTES + 1)).paths
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(
                f"{self.path} can't be read ({error.strerror}): see that this user may read and write its folder"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            aside = self.path.with_name(f"{self.path.name}.unusable")
            with suppress(OSError):
                self._disk.rename(self.path, aside)
            self.why_lost = f"{self.path} is damaged ({error}) and was moved to {aside.name}"
            _log.error("%s: releases are installed again, and until then the files of the configuration serve",
                       self.why_lost)  # fmt: skip

    def of(self, path: str) -> InstalledPath:
        """The state of a path."""
        return self.paths.get(path, InstalledPath())

    def change(self, path: str, step: Step) -> None:
        """Have a path in the state that a step makes of the one that it is in, on the disk when this returns.

        :raises StorageError: nothing has changed.
        """
        with self._lock:
            paths = self._with(path, step)
            self._write(paths)
            self.paths = paths

    def note(self, path: str, step: Step) -> None:
        """The same where it must not wait for room, such as on the way back from a bad release. If it can't be written
        now, a restart begins with what was before, until :meth:`catch_up` or the next change has written it."""
        with self._lock:
            self.paths, self._is_behind = self._with(path, step), True
        self.catch_up()

    def catch_up(self) -> None:
        """Write what could not be written."""
        with self._lock:
            if self._is_behind:
                try:
                    self._write(self.paths)
                except StorageError as error:
                    _log.error("a restart may begin with another release than the one that serves: %s", error)

    def _with(self, path: str, step: Step) -> Mapping[str, InstalledPath]:
        state = step(self.of(path))
        paths = {**self.paths, path: state}
        if state == InstalledPath():
            del paths[path]
        return paths

    def _write(self, paths: Mapping[str, InstalledPath]) -> None:
        kept = _Kept(dict(paths))
        try:
            self._disk.place(self.path, msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
        except OSError as error:
            raise StorageError(
                f"{self.path} can't be written ({error.strerror}), so nothing was changed: make room"
            ) from error
        self._is_behind = False
