"""A disk on which each single step can fail, or be the last one before a loss of power.

It counts the steps of :class:`meshnode.releases.store.disk.Disk`. At the chosen one it raises an error, or it is the
end: then every step raises :class:`PowerLost`, and what was written and not synced is lost as it may be lost on a real
disk: files that were not synced are cut off, and names that were not synced are what they were before.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Final, Literal

from meshnode.releases.store.disk import Disk

Fault = Literal["full", "broken", "power"]
_ERRORS: Final = {"full": errno.ENOSPC, "broken": errno.EIO}


class PowerLost(BaseException):
    """The computer is off. Nobody handles that."""


class FailingDisk(Disk):
    """See the module."""

    def __init__(self, fails_at: int = 0, fault: Fault = "full") -> None:
        """``fails_at``: the number of the step, from 1; 0: none."""
        self.fails_at, self.fault = fails_at, fault
        self.steps: list[str] = []
        """What was done, in order."""
        self._unsynced: set[Path] = set()
        """Files whose content is not on the disk."""
        self._renamed: list[tuple[Path, Path, bytes | None]] = []
        """Names that are not on the disk: the old one, the new one, and what the file of that name was before."""
        self._off = False

    def _step(self, name: str, path: Path) -> None:
        if self._off:
            raise PowerLost
        self.steps.append(f"{name} {path.name}")
        if len(self.steps) == self.fails_at:
            if self.fault == "power":
                self._lose()
                raise PowerLost
            code = _ERRORS[self.fault]
            raise OSError(code, os.strerror(code), str(path))

    def _lose(self) -> None:
        self._off = True
        for source, target, before in reversed(self._renamed):
            if target.is_file():
                target.replace(source)
                if before is not None:
                    target.write_bytes(before)
            elif target.is_dir():
                target.rename(source)
        moved = {target: source for source, target, _ in self._renamed}
        for path in self._unsynced:
            lost = moved.get(path, path)
            if lost.is_file():
                with lost.open("rb+") as file:
                    file.truncate(lost.stat().st_size // 2)

    # --- steps -----------------------------------------------------------------------------------------------------
    def make_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("make_folder", path)
        super().make_folder(path)

    def allocate(self, path: Path, size_bytes: int) -> None:
        """See :class:`Disk`."""
        self._step("allocate", path)
        super().allocate(path, size_bytes)

    def write(self, path: Path, data: bytes) -> None:
        """See :class:`Disk`."""
        self._step("write", path)
        super().write(path, data)
        self._unsynced.add(path)

    def append(self, path: Path, data: bytes) -> None:
        """See :class:`Disk`."""
        self._step("append", path)
        super().append(path, data)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """See :class:`Disk`. What was not synced is zeros after a loss of power."""
        self._step("write_at", path)
        super().write_at(path, offset, data)

    def sync(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("sync", path)
        super().sync(path)
        self._unsynced.discard(path)

    def sync_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("sync_folder", path)
        super().sync_folder(path)
        self._renamed = [each for each in self._renamed if each[1].parent != path]

    def rename(self, source: Path, target: Path) -> None:
        """See :class:`Disk`."""
        self._step("rename", target)
        before = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        if source in self._unsynced:
            self._unsynced.remove(source)
            self._unsynced.add(target)
        self._renamed.append((source, target, before))

    def link(self, source: Path, target: Path) -> None:
        """See :class:`Disk`."""
        self._step("link", target)
        super().link(source, target)

    def remove(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("remove", path)
        super().remove(path)

    def remove_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("remove_folder", path)
        shutil.rmtree(path, ignore_errors=True)
