"""A disk on which each single step can fail, or be the last one before a loss of power.

It counts the steps of :class:`meshnode.releases.store.disk.Disk`. At the chosen one it raises an error, or it is the
end: then every step raises :class:`PowerLost`, and what was written and not synced is lost as it may be lost on a real
disk, which writes in the order that it likes. So there are two ways to lose power:

- ``power``: nothing that was not synced is there. Names are what they were before, written and appended files are cut
  off, and what was written into the middle of a file is what it was before.
- ``reordered``: names and what was appended are on the disk, but contents that were written before them are not.
"""

import errno
import os
from pathlib import Path
from typing import Final, Literal

from meshnode.releases.store.disk import Disk

Fault = Literal["full", "broken", "power", "reordered"]
LOSSES_OF_POWER: Final[tuple[Fault, ...]] = ("power", "reordered")
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
        self._unsynced: dict[Path, bytes] = {}
        """Files whose content is not on the disk, and what a loss of power leaves of them."""
        self._renamed: list[tuple[Path, Path, bytes | None]] = []
        """Names that are not on the disk: the old one, the new one, and what the file of that name was before."""
        self._linked: set[Path] = set()
        """Second names of files that are not on the disk."""
        self._off = False

    def _step(self, name: str, path: Path) -> None:
        if self._off:
            raise PowerLost
        self.steps.append(f"{name} {path.name}")
        if len(self.steps) == self.fails_at:
            if self.fault in LOSSES_OF_POWER:
                self._lose()
                raise PowerLost
            code = _ERRORS[self.fault]
            raise OSError(code, os.strerror(code), str(path))

    def _lose(self) -> None:
        self._off = True
        if self.fault == "power":
            for source, target, before in reversed(self._renamed):
                if target.exists():
                    target.replace(source)
                    self._move(target, source)
                    if before is not None:
                        target.write_bytes(before)
            for path in self._linked:
                path.unlink(missing_ok=True)
        for path, left in self._unsynced.items():
            if path.is_file():
                path.write_bytes(left)

    def _move(self, source: Path, target: Path) -> None:
        """What is known of a file, or of the files in a folder, holds for its new name from now on."""

        def moved(path: Path) -> Path:
            return target / path.relative_to(source) if path.is_relative_to(source) else path

        self._unsynced = {moved(path): left for path, left in self._unsynced.items()}
        self._linked = set(map(moved, self._linked))

    def _forget(self, gone: Path) -> None:
        """A file or a folder is removed."""
        self._unsynced = {path: left for path, left in self._unsynced.items() if not path.is_relative_to(gone)}
        self._linked = {path for path in self._linked if not path.is_relative_to(gone)}

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
        self._unsynced[path] = data[: len(data) // 2]

    def append(self, path: Path, data: bytes) -> None:
        """See :class:`Disk`."""
        self._step("append", path)
        before = path.read_bytes() if path.is_file() else b""
        super().append(path, data)
        if self.fault != "reordered":
            self._unsynced.setdefault(path, before + data[: len(data) // 2])

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """See :class:`Disk`."""
        self._step("write_at", path)
        self._unsynced.setdefault(path, path.read_bytes())
        super().write_at(path, offset, data)

    def sync(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("sync", path)
        super().sync(path)
        self._unsynced.pop(path, None)

    def sync_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("sync_folder", path)
        super().sync_folder(path)
        self._renamed = [each for each in self._renamed if each[1].parent != path]
        self._linked = {each for each in self._linked if each.parent != path}

    def rename(self, source: Path, target: Path) -> None:
        """See :class:`Disk`."""
        self._step("rename", target)
        before = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self._forget(target)
        self._move(source, target)
        self._renamed.append((source, target, before))

    def link(self, source: Path, target: Path) -> None:
        """See :class:`Disk`."""
        self._step("link", target)
        super().link(source, target)
        self._linked.add(target)

    def remove(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("remove", path)
        super().remove(path)
        self._forget(path)

    def remove_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._step("remove_folder", path)
        super().remove_folder(path)
        self._forget(path)
