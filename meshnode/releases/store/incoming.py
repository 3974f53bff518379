"""What was put on the disk of a node for it to take in, such as releases from a USB stick.

A command puts bundle and chunks into a folder beside the store, whether the node runs or not; the node takes them in
when it is told, and when it starts. Whoever does either holds the folder locked, so a node that starts meanwhile leaves
alone what is being copied. Chunks of a content go where the content is, so its size is needed twice meanwhile.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from meshnode.releases.store.chunks import RESERVE_SHARE, ChunkStore
from meshnode.releases.store.disk import Disk
from meshnode.releases.store.stick import BUNDLE, found_on
from protocols.base.errors import StorageError
from protocols.releases.bundle import unpack_untrusted_bundle
from protocols.releases.catalogue import DESCRIPTIONS, Content

FOLDER: Final = "incoming"


def put_in(
    source: Path, releases: Path, done: Callable[[int], None] = lambda size_bytes: None, disk: Disk | None = None
) -> int:
    """Put what is on a stick into the folder of releases of a node. ``done`` is called with the bytes of each file.
    Returns how many chunks there were. The bundle is written last, and as a whole. When it fails, nothing stays there.

    :raises StorageError: the stick can't be read, holds no metadata, or there is no room.
    """
    disk, folder, brought = disk or Disk(), releases / FOLDER, dict[Path, None]()
    try:
        disk.make_folder(folder)
        with _locked(folder, fcntl.LOCK_EX):
            try:
                _bring(source, folder, disk, brought, done)
            except BaseException:
                for path in brought:
                    with suppress(OSError):
                        disk.remove(path)
                raise
    except OSError as error:
        raise StorageError(f"{folder} can't be written ({error.strerror}): make room there") from error
    return len(brought)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a folder alone. :raises BlockingIOError: somebody else holds it, and ``how`` says not to wait."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _bring(
    source: Path, folder: Path, disk: Disk, brought: dict[Path, None], done: Callable[[int], None]
) -> None:  # fmt: skip
    bundle = b""
    for name, data in found_on(source):
        _check_room(folder, disk, len(data))
        if name == BUNDLE:
            bundle = data
            unpack_untrusted_bundle(data)
        else:
            brought[folder / name] = None
            disk.write(folder / name, data)
            disk.sync(folder / name)
        done(len(data))
    if not bundle:
        raise StorageError(f"{source} holds no {BUNDLE}: nobody could tell what its {len(brought)} chunks are")
    disk.place(folder / BUNDLE, bundle)


def _check_room(folder: Path, disk: Disk, size_bytes: int) -> None:
    free, total = disk.room(folder)
    if size_bytes > free - total // RESERVE_SHARE:
        raise StorageError(
            f"the disk of {folder} has {free} bytes left, of which {total // RESERVE_SHARE} stay free. Make room"
        )


def take_in(releases: Path, store: ChunkStore, verify: Callable[[bytes], bytes | None]) -> int | None:
    """Take in what is there. ``verify`` is called with the bundle, and returns the one that is trusted then, empty if
    none is; None: it can't be checked now, and all of it stays there. Only what the trusted one leads to is taken in,
    and everything else is removed before. Returns how many chunks; None: all of it waits, also while somebody copies.

    :raises StorageError: there is no room; what was not taken in stays there.
    """
    folder = releases / FOLDER
    if not folder.is_dir():
        return 0
    try:
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return _take_in(folder, store, verify)
    except BlockingIOError:
        return None


def _take_in(folder: Path, store: ChunkStore, verify: Callable[[bytes], bytes | None]) -> int | None:
    disk, count = Disk(), 0
    bundle = _read(folder / BUNDLE)
    trusted = verify(bundle) if bundle else b""
    if trusted is None:
        return None
    if trusted:
        _clear(folder, disk, {BUNDLE, *_names_in(trusted, folder, store)})
        if trusted == bundle:
            store.put(hashlib.sha256(bundle).digest(), bundle)
        for content in contents_in(trusted, lambda digest: _moved(folder, store, digest)):
            index = bytes.fromhex(content.index)
            _moved(folder, store, index)
            opened = store.open_content(index, content.size_bytes, content.chunk_bytes)
            for digest in opened.digests if opened is not None else ():
                count += _moved(folder, store, digest) is not None
    _clear(folder, disk, ())
    return count


def _clear(folder: Path, disk: Disk, spared: Container[str]) -> None:
    for path in list(folder.iterdir()):
        if path.name not in spared:
            with suppress(OSError):
                disk.remove(path)


def _names_in(bundle: bytes, folder: Path, store: ChunkStore) -> Iterator[str]:
    """The names of all chunks that a bundle leads to, as far as what leads to them is there."""

    def chunk(digest: bytes) -> bytes:
        data = _read(folder / digest.hex())
        return data if hashlib.sha256(data).digest() == digest else store.get(digest) or b""

    yield from (digest.hex() for digest in targets_in(bundle))
    for content in contents_in(bundle, chunk):
        index = chunk(bytes.fromhex(content.index))
        yield content.index
        yield from (index[at : at + 32].hex() for at in range(0, len(index), 32))


def _moved(folder: Path, store: ChunkStore, digest: bytes) -> bytes | None:
    path = folder / digest.hex()
    data = _read(path)
    if data and store.put(digest, data):
        with suppress(OSError):
            path.unlink()
        return data
    return store.get(digest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def contents_in(bundle: bytes, chunk: Callable[[bytes], bytes | None]) -> Iterator[Content]:
    """The contents of all releases in a bundle whose descriptions are there. Nothing of it is believed."""
    for digest in targets_in(bundle):
        try:
            description = DESCRIPTIONS.decode(chunk(digest) or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # an order, or not here
        yield from (content for content in description.contents if content.size_bytes)


def targets_in(bundle: bytes) -> Iterator[bytes]:
    """The digests of everything that the metadata in a bundle lists. Nothing of it is believed."""
    for data in unpack_untrusted_bundle(bundle).values():
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            signed: dict[str, Any] = json.loads(data)["signed"]
            for target in signed.get("targets", {}).values():
                yield bytes.fromhex(target["hashes"]["sha256"])
