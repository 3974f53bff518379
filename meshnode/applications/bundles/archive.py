"""Bundles as files: ZIP archives that are the same bytes for the same content, and that are never trusted.

Invariants:
- what is unpacked is in a folder of its own, and is there whole or not at all;
- an archive can't name a path outside of that folder, a link, or a device, and can't be larger than its bounds when it
  is unpacked.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Final

from meshnode.applications.bundles.contents import Bundle, check_bundle, check_place, files_of, read_bundle
from protocols.base.errors import ConfigError, StorageError

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 4 * 1024**3
"""The size of all files together, unpacked."""
_CHUNK_BYTES: Final = 1 << 20
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)
"""The time of each file in an archive, so that the same content is the same archive."""


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. :raises OSError: it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(folder: Path, archive: Path) -> Bundle:
    """Check a folder and write it as a bundle: the whole of it or nothing.

    :raises ConfigError: something is wrong with what is in it. :raises OSError: the disk does not take it.
    """
    bundle = check_bundle(folder)
    fresh = archive.with_name(f".{archive.name}.new")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as out:
            for name in files_of(folder, bundle):
                path = folder / name
                entry = zipfile.ZipInfo(name, _LONG_AGO)
                entry.compress_type = zipfile.ZIP_DEFLATED
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                entry.external_attr = (stat.S_IFREG | mode) << 16
                with path.open("rb") as source, out.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
        fresh.replace(archive)
    finally:
        fresh.unlink(missing_ok=True)
    return bundle


def unpack(archive: Path, parent: Path, sha256: str | None = None) -> tuple[Path, Bundle]:
    """Unpack a bundle into ``parent/NAME-VERSION``, and check what is in it. Returns that folder.

    ``sha256``: the digest that it must have.

    :raises ConfigError: it has another digest, is no bundle, is too large, or something in it is wrong.
    :raises StorageError: the folder exists already. :raises OSError: the disk does not take it.
    """
    if sha256 is not None and digest_of(archive) != sha256.lower():
        raise ConfigError(f"{archive} has the SHA-256 {digest_of(archive)}, not {sha256}: get it again")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".bundle-") as staging:
        inside = Path(staging) / "bundle"
        inside.mkdir()
        try:
            with zipfile.ZipFile(archive) as zipped:
                _extract(zipped, archive, inside)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise ConfigError(f"{archive} is no bundle, or is damaged ({error}): get it again") from error
        bundle = check_bundle(inside)
        held = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}
        if extra := held - set(files_of(inside, bundle)):
            raise ConfigError(f"{archive} holds {min(extra)!r}, which its description does not name: don't use it")
        folder = parent / f"{bundle.name}-{bundle.version}"
        if folder.exists():
            raise StorageError(f"{folder} exists already: remove it first, or unpack elsewhere")
        os.sync()
        inside.rename(folder)
    return folder, read_bundle(folder)


def _extract(zipped: zipfile.ZipFile, archive: Path, folder: Path) -> None:
    entries = zipped.infolist()
    if len(entries) > MAX_FILES:
        raise ConfigError(f"{archive} holds {len(entries)} files, and {MAX_FILES} are the most: don't use it")
    left = MAX_BYTES
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if check_place(entry.filename) is not None or kind not in (0, stat.S_IFREG):
            raise ConfigError(f"{archive} holds {entry.filename!r}, which is no plain file inside of it: don't use it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConfigError(
                f"{archive} holds {entry.filename!r}, compressed in a way that no bundle uses: pack it anew"
            )
        path = folder / entry.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(entry) as source, path.open("xb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise ConfigError(f"{archive} is larger than {MAX_BYTES:,} bytes when it is unpacked: don't use it")
                target.write(chunk)
        path.chmod(0o755 if (entry.external_attr >> 16) & stat.S_IXUSR else 0o644)
