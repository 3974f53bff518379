"""The chunks that the relay gives out, one file each, named by its SHA-256.

What is on the shelf is whole: a file gets its name only once all of it is on disk. A chunk is hashed again when it is
read, so that a damaged disk makes a chunk unknown and not wrong.
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from meshnode.identity.private_files import make_private_folder
from protocols.base.errors import StorageError
from protocols.base.limits import MAX_CHUNK_BYTES
from protocols.releases.catalogue import Content, Description


class ChunkShelf:
    """Chunks by digest. May be used by several threads and processes at once; only one may remove."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, data: bytes) -> bytes:
        """Keep a chunk in place of a damaged one or none, and return its digest.

        :raises StorageError: it can't be written.
        """
        digest = hashlib.sha256(data)
        path = self._path(digest.digest())
        if self.find(digest.digest()) is not None:
            return digest.digest()
        try:
            make_private_folder(path.parent)
            fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
            with fresh.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(path)
        except OSError as error:
            raise StorageError(
                f"a chunk can't be kept in {self._folder} ({error.strerror}): make room there"
            ) from error
        return digest.digest()

    def find(self, digest: bytes) -> bytes | None:
        """A chunk; None: it is not here, or a damaged disk has changed it."""
        try:
            with self._path(digest).open("rb") as file:
                data = file.read(MAX_CHUNK_BYTES + 1)
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == digest else None

    def chunks_of(self, content: Content) -> tuple[bytes, ...] | None:
        """The digests of the chunks of a content; None: its index is not here."""
        index = self.find(bytes.fromhex(content.index))
        if index is None or len(index) != 32 * content.chunks:
            return None
        return tuple(index[at : at + 32] for at in range(0, len(index), 32))

    def blocks(self, content: Content) -> Iterator[bytes]:
        """The bytes of a content, chunk by chunk. :raises StorageError: a chunk is missing."""
        for digest in self.chunks_of(content) or (b"",):
            data = self.find(digest) if digest else None
            if data is None:
                raise StorageError(
                    f"a chunk of the file {content.sha256} is missing in {self._folder}: publish the release again"
                )
            yield data

    def read(self, content: Content) -> bytes:
        """The bytes of a content. :raises StorageError: a chunk is missing."""
        return b"".join(self.blocks(content))

    def unpack(self, release: Description, folder: Path) -> Path:
        """Write the files of a release into a new folder. Returns that of the model.

        :raises StorageError: chunks are missing. :raises OSError: the folder can't be written.
        """
        folder.mkdir(mode=0o700)
        for file in release.files:
            with (folder / file.name).open("wb") as out:
                out.writelines(self.blocks(file.content))
        return folder / release.model

    def retain(self, wanted: Collection[bytes]) -> int:
        """Remove all other chunks, and what a killed process has left. Returns how many."""
        names, removed = {digest.hex() for digest in wanted}, 0
        for path in self._folder.glob("*/*"):
            if path.name not in names:
                with suppress(OSError):
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / name
