"""The steps by which releases reach the disk, each of which may fail or be the last one before a loss of power.

All that releases write goes through one :class:`Disk`. So a test can have each single step fail, or end the process
behind it, and look at what is left.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_FRESH: Final = ".new"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS})
"""How a file system says that a file has one name only."""


class Disk:
    """The file system. Every method may raise OSError."""

    # --- single steps ----------------------------------------------------------------------------------------------
    def make_folder(self, path: Path) -> None:
        """Make a folder for its owner alone, with those above it, if it is not there."""
        path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)

    def allocate(self, path: Path, size_bytes: int) -> None:
        """Make a file whose blocks are there already, so that writing into it can't meet a full disk."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            if size_bytes:
                os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file anew."""
        self._put(path, data, os.O_TRUNC)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file, or make it."""
        self._put(path, data, os.O_APPEND)

    @staticmethod
    def _put(path: Path, data: bytes, how: int) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, _FILE_MODE), "wb", 0) as file:
            _write_all(file.fileno(), data)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """Write into a file that is there."""
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb", 0) as file:
            os.lseek(file.fileno(), offset, os.SEEK_SET)
            _write_all(file.fileno(), data)

    def sync(self, path: Path) -> None:
        """Have the content of a file on the disk when this returns."""
        _sync(path, os.O_RDONLY)

    def sync_folder(self, path: Path) -> None:
        """Have the names in a folder on the disk when this returns: without it a loss of power brings old ones back."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or a folder another name. A file of that name gives way in the same instant."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, or copy it where the file system has no such links."""
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, target)
            self.sync(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder with all that is in it, as far as that is possible."""
        shutil.rmtree(path, ignore_errors=True)

    def room(self, path: Path) -> tuple[int, int]:
        """Bytes that are free for this user in the file system of a folder, and all bytes of it."""
        usage = shutil.disk_usage(path)
        return usage.free, usage.total

    # --- several steps ---------------------------------------------------------------------------------------------
    def place(self, path: Path, data: bytes) -> None:
        """Write a file: the whole of it or nothing, and on the disk when this returns."""
        fresh = path.with_name(path.name + _FRESH)
        try:
            self.write(fresh, data)
            self.sync(fresh)
            self.rename(fresh, path)
        except OSError:
            with suppress(OSError):
                self.remove(fresh)
            raise
        self.sync_folder(path.parent)

    @staticmethod
    def is_unfinished(path: Path) -> bool:
        """Whether :meth:`place` was cut off while it wrote this file."""
        return path.name.endswith(_FRESH)


class ReadOnlyDisk(Disk):
    """A disk on which nothing changes: for looking at the store of a node that runs."""

    def make_folder(self, path: Path) -> None:
        """It is there, or there is nothing to look at."""

    def remove(self, path: Path) -> None:
        """Leave it."""

    def remove_folder(self, path: Path) -> None:
        """Leave it."""

    @staticmethod
    def _put(path: Path, data: bytes, how: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def allocate(self, path: Path, size_bytes: int) -> None:
        """Refuse it."""
        self._put(path, b"", 0)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        """Refuse it."""
        self._put(path, data, 0)

    def rename(self, source: Path, target: Path) -> None:
        """Refuse it."""
        self._put(target, b"", 0)

    def link(self, source: Path, target: Path) -> None:
        """Refuse it."""
        self._put(target, b"", 0)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
