"""Results of cutting on disk: files in one folder, written whole or not at all, bounded in bytes.

- A file is written under another name and renamed. Whoever reads sees the whole of it or nothing.
- The time of a file is when it was last used. What was used longest ago goes first when there is too much.
- Only the owner may read the folder: a model may be worth money.
- Several processes may use the folder at once. A file that another one removed is made again.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from protocols.base.errors import StorageError

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OURS: Final = re.compile(r"[0-9a-f]{64}\.(onnx|toml)|[0-9a-f]{16}-[0-9a-f]{32}[-0-9]*\.json")
"""Names of our files. Others in the folder are left alone."""
_WORK: Final = "work-"
"""How folders of results in the making are named."""
_ABANDONED_S: Final = 24 * 3600.0
"""What a process that was killed left in the making is removed after this time."""


class KeptFiles:
    """The files of one folder. Its methods may be called from any thread."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """The folder is made when something is written."""
        self.folder, self.max_bytes = folder, max_bytes

    def read(self, name: str) -> bytes | None:
        """A file; None: there is none that can be read. It counts as used now."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # on a disk that is read only
            os.utime(path)
        return content

    def hashed(self, name: str) -> bytes | None:
        """The SHA-256 of a file, which is not in memory as a whole; None: there is none that can be read. It counts as
        used now."""
        path = self.folder / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return None
        with suppress(OSError):  # on a disk that is read only
            os.utime(path)
        return digest

    def remove(self, *names: str) -> None:
        """Remove files that are wrong, if they are there."""
        for name in names:
            with suppress(OSError):
                (self.folder / name).unlink()

    def written(self, fresh: Path, content: bytes) -> Path:
        """Write a file that is in the making. :raises StorageError: the disk is full, say."""
        with self._translated(fresh.name):
            fresh.write_bytes(content)
        return fresh

    def take(self, fresh: Path) -> Path:
        """Take a file that was made in :meth:`in_the_making`, under its own name.

        :raises StorageError: it can't be moved.
        """
        target = self.folder / fresh.name
        with self._translated(fresh.name):
            fresh.chmod(_FILE_MODE)
            fresh.replace(target)
            os.utime(target)
        return target

    def check_size(self, size_bytes: int) -> None:
        """Refuse what can't be kept, before it is written. :raises StorageError: it is larger than the bound."""
        if size_bytes > self.max_bytes:
            raise StorageError(
                f"{size_bytes} bytes don't fit into {self.folder}, which may hold {self.max_bytes}: allow it more"
            )

    def shrink(self, spared: Collection[str]) -> None:
        """Remove what was used longest ago until at most ``max_bytes`` are left. ``spared``: names that stay.

        :raises StorageError: these alone are too large; they are removed then.
        """
        files = sorted(self._files(), key=lambda entry: entry[0])
        total = sum(size_bytes for _, size_bytes, _ in files)
        for _, size_bytes, path in files:
            if total <= self.max_bytes:
                return
            if path.name not in spared:
                total -= size_bytes
                self.remove(path.name)
        if total > self.max_bytes:
            self.remove(*spared)
        self.check_size(total)

    @contextmanager
    def in_the_making(self) -> Iterator[Path]:
        """A folder beside the files, in which new ones are made; removed at the end.

        :raises StorageError: it can't be made.
        """
        with self._translated("a folder"):
            self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._remove_abandoned()
            work = Path(tempfile.mkdtemp(prefix=_WORK, dir=self.folder))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file of ours was used last, its size, and where it is."""
        for path in self.folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                if _OURS.fullmatch(path.name):
                    yield status.st_mtime, status.st_size, path

    def _remove_abandoned(self) -> None:
        for work in self.folder.glob(f"{_WORK}*"):
            with suppress(OSError):
                if time.time() - work.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{what} can't be written in {self.folder} ({error.strerror}): make room, or choose another folder"
            ) from error
