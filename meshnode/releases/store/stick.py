"""Releases in a folder or a tar file, as they travel on a USB stick.

``current.bundle`` has the metadata, and chunks are in files that are named by their SHA-256, in whatever folders. The
folder in which a relay publishes is of this form.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from meshnode.releases.store.contents import is_digest
from protocols.base.errors import StorageError
from protocols.base.limits import MAX_CHUNK_BYTES

BUNDLE: Final = "current.bundle"


def found_on(source: Path) -> Iterator[tuple[str, bytes]]:
    """The bundle and the chunks of a folder or a tar file, by name; each chunk has the digest that it is named by.
    Everything else there is left out.

    :raises StorageError: it can't be read, or a chunk is damaged.
    """
    try:
        for name, data in _folder(source) if source.is_dir() else _tar(source):
            if name != BUNDLE and hashlib.sha256(data).hexdigest() != name:
                raise StorageError(f"{name} on {source} is damaged: write it again")
            yield name, data
    except (OSError, tarfile.TarError, EOFError) as error:
        raise StorageError(f"{source} can't be read ({error}): give a folder or a tar file with releases") from error


def size_on(source: Path) -> int:
    """The bytes that :func:`found_on` will read. :raises StorageError: it can't be read."""
    try:
        if source.is_dir():
            return sum(path.stat().st_size for path in source.rglob("*") if _is_ours(path.name) and path.is_file())
        return source.stat().st_size
    except OSError as error:
        raise StorageError(f"{source} can't be read ({error.strerror}): name the right one") from error


def _is_ours(name: str) -> bool:
    return name == BUNDLE or is_digest(name)


def _folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.rglob("*"), key=lambda path: (path.name != BUNDLE, path)):
        if _is_ours(path.name) and path.is_file():
            with path.open("rb") as file:
                yield path.name, file.read(MAX_CHUNK_BYTES + 1)


def _tar(source: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if member.isfile() and _is_ours(name) and (file := archive.extractfile(member)) is not None:
                yield name, file.read(MAX_CHUNK_BYTES + 1)


class Stick(Protocol):
    """Where releases are written to."""

    def write(self, name: str, data: bytes) -> None:
        """Write the bundle or a chunk. :raises OSError: it can't be written."""


class _FolderStick:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, data: bytes) -> None:
        folder = self._folder if name == BUNDLE else self._folder / "chunks" / name[:2]
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{name}.new"
        fresh.write_bytes(data)
        fresh.replace(folder / name)


class _TarStick:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name if name == BUNDLE else f"chunks/{name[:2]}/{name}")
        member.size = len(data)
        self._archive.addfile(member, io.BytesIO(data))


@contextmanager
def stick(target: Path) -> Iterator[Stick]:
    """A folder, or a tar file if the name ends so, to which releases are written. :raises StorageError: it can't be
    written."""
    try:
        if target.suffix == ".tar":
            with tarfile.open(target, "w") as archive:
                yield _TarStick(archive)
        else:
            yield _FolderStick(target)
    except OSError as error:
        raise StorageError(f"{target} can't be written ({error.strerror}): choose another place") from error
