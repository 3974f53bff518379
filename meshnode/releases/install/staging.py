"""From contents that are held to a folder with the files of a release, as its publisher had them."""

import importlib.metadata
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from meshnode.releases.install.refusals import InstallRefused, ReleaseIncomplete
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from protocols.base.errors import StorageError
from protocols.releases.catalogue import KINDS, Content, Description

_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")


class Staging:
    """The folders of releases, ``KIND/NAME/COUNTER``, below that of all releases."""

    def __init__(self, folder: Path, store: ChunkStore, disk: Disk) -> None:
        self._folder, self._store, self._disk = folder, store, disk

    def place_of(self, path: str, counter: int) -> Path:
        """The folder of a release."""
        return self._folder / path / str(counter)

    def put_together(self, description: Description) -> Path:
        """Check every file of a release, whose chunks are all held, and give it its name. Returns the folder.

        :raises InstallRefused: a chunk is missing, or a file has another digest. :raises StorageError: no room.
        """
        target = self.place_of(description.path, description.counter)
        making = target.with_name(f"{target.name}.new")
        try:
            self._disk.remove_folder(making)
            self._disk.make_folder(making)
            for file in description.files:
                self._put(file.content, making / file.name)
            self._disk.sync_folder(making)
            self._disk.remove_folder(target)
            self._disk.rename(making, target)
            self._disk.sync_folder(target.parent)
        except OSError as error:
            raise StorageError(
                f"release {description.counter} of {description.path} can't be put together in {target.parent} "
                f"({error.strerror}): make room"
            ) from error
        finally:
            self._disk.remove_folder(making)
        return target

    def _put(self, content: Content, target: Path) -> None:
        if content.size_bytes == 0:
            self._disk.write(target, b"")
            self._disk.sync(target)
            return
        index = bytes.fromhex(content.index)
        held = self._store.open_content(index, content.size_bytes, content.chunk_bytes)
        if held is None or not self._store.fill(held):
            raise ReleaseIncomplete(f"chunks of {target.name} are missing: fetch them")
        if held.digest() != content.sha256:
            if damaged := self._store.check_content(index):
                raise ReleaseIncomplete(
                    f"{target.name} is damaged on the disk: {damaged} chunks have to be fetched again"
                )
            raise InstallRefused(
                "digest",
                f"{target.name} does not have the digest of the metadata: its publisher has to publish it again",
            )
        self._disk.link(held.path, target)

    def keep_only(self, installed: Collection[tuple[str, int]]) -> None:
        """Remove all other releases: the power went while they were put together, or before they were listed."""
        kept = {self.place_of(path, counter) for path, counter in installed}
        for kind in KINDS:
            for folder in (self._folder / kind).glob("*/*"):
                if folder not in kept:
                    self._disk.remove_folder(folder)

    def remove(self, path: str, counter: int) -> None:
        """Remove the files of a release."""
        self._disk.remove_folder(self.place_of(path, counter))


def check_runtime(needed: str) -> None:
    """:raises InstallRefused: the installed ONNX Runtime is older than a release needs."""
    if not needed:
        return
    installed = ""
    for name in _RUNTIMES:
        try:
            installed = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    if _numbers(installed) < _numbers(needed):
        raise InstallRefused(
            "runtime", f"it needs ONNX Runtime {needed}, and {installed or 'none'} is installed: update onnxruntime"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
