"""Everything of releases that a node holds on its disk, by SHA-256.

- A chunk is written once its bytes are known to have its digest, and it is on the disk when :meth:`ChunkStore.put`
  returns. What is read is checked again; what is damaged then counts as missing and is fetched again.
- Chunks of a content that was opened lie in its file (:mod:`meshnode.releases.store.contents`), all others in files of
  their own.
- All of it takes at most ``max_bytes``, and leaves a fiftieth of the file system free. When room is needed, what no
  release needs goes first, the largest first. What is needed is never removed: then nothing more is fetched.
- The scan at the start reads names and sizes only.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from meshnode.releases.store.contents import ContentFile, chunk_bytes_of, is_digest, remove_content
from meshnode.releases.store.disk import Disk
from protocols.base import limits
from protocols.base.errors import StorageError

RESERVE_SHARE: Final = 50
"""One in so many parts of the file system is left to others, such as the outbox."""
_RECENT_CHUNKS: Final = 8
"""Chunks that were read last stay in memory: a neighbour asks for one piece of a chunk after another."""


class ChunkStore:
    """Chunks and contents of one node. Methods may be called from any thread; they block for milliseconds."""

    def __init__(self, folder: Path, max_bytes: int, disk: Disk | None = None) -> None:
        """Nothing is touched before :meth:`open`."""
        self._blobs, self._contents = folder / "chunks", folder / "contents"
        self.max_bytes, self._disk = max_bytes, disk or Disk()
        self._lock = threading.RLock()
        self._sizes: dict[Path, int] = {}
        """What is on the disk: chunks of their own, and files of contents."""
        self._open: dict[str, ContentFile] = {}
        self._places: dict[bytes, list[tuple[ContentFile, int]]] = {}
        """Where the chunks of open contents belong."""
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self.needed: Callable[[], Collection[bytes]] = tuple
        """Says which chunks, and contents by their index, are needed. All others go when room is needed."""
        self._lost: dict[bytes, None] = {}
        self.damaged = 0
        """Chunks that were found to be damaged since the start."""

    def open(self) -> None:
        """Look at what is there. :raises StorageError: the folder can't be used."""
        with self._lock, self._translated("opened"):
            for folder in (self._blobs, self._contents):
                self._disk.make_folder(folder)
                for path in folder.iterdir():
                    if self._disk.is_unfinished(path):
                        self._disk.remove(path)  # cut off by the end of a former life
                    elif is_digest(path.name):
                        self._sizes[path] = path.stat().st_size
            for path, size_bytes in list(self._sizes.items()):
                chunk_bytes = chunk_bytes_of(path) if path.parent == self._contents else 0
                if chunk_bytes:
                    self.open_content(bytes.fromhex(path.name), size_bytes, chunk_bytes)

    @property
    def size_bytes(self) -> int:
        """What all of it takes on the disk."""
        with self._lock:
            return sum(self._sizes.values())

    # --- chunks ----------------------------------------------------------------------------------------------------
    def put(self, digest: bytes, data: bytes) -> bool:
        """Keep a chunk. False: the bytes have another digest, and nothing is kept.

        :raises StorageError: there is no room, or it can't be written.
        """
        if hashlib.sha256(data).digest() != digest:
            return False
        with self._lock, self._translated(f"given the chunk {digest.hex()[:12]}"):
            places = [(content, number) for content, number in self._places.get(digest, ())
                      if content.size_of(number) == len(data)]  # fmt: skip
            for content, number in places:
                self._reserve(content)
                content.put(number, data)
            if not places and (path := self._blobs / digest.hex()) not in self._sizes:
                self._make_room(len(data))
                self._disk.place(path, data)
                self._sizes[path] = len(data)
            self._remember(digest, data)
        return True

    def get(self, digest: bytes) -> bytes | None:
        """A chunk; None: it is not held. One that is found to be damaged is forgotten."""
        with self._lock:
            data = self._recent.get(digest)
            if data is None:
                data = self._read(digest)
                if data is not None:
                    self._remember(digest, data)
            return data

    def _read(self, digest: bytes) -> bytes | None:
        for content, number in self._places.get(digest, ()):
            was_held = content.held[number]
            if (data := content.get(number)) is not None:
                return data
            if was_held:
                self._damaged(digest)
        path = self._blobs / digest.hex()
        if path not in self._sizes:
            return None
        try:
            with path.open("rb") as file:
                data = file.read(limits.MAX_CHUNK_BYTES + 1)
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() == digest:
            return data
        self._damaged(digest)
        self._remove(path)
        return None

    def _damaged(self, digest: bytes) -> None:
        self.damaged += 1
        self._lost[digest] = None

    def has(self, digest: bytes) -> bool:
        """Whether a chunk is held, as far as is known without reading it."""
        with self._lock:
            return any(content.held[number] for content, number in self._places.get(digest, ())) or (
                self._blobs / digest.hex() in self._sizes
            )

    def held(self) -> dict[bytes, int]:
        """Every chunk that is held, and its size."""
        with self._lock:
            chunks = {
                bytes.fromhex(path.name): size for path, size in self._sizes.items() if path.parent == self._blobs
            }
            for content in self._open.values():
                for number, digest in enumerate(content.digests):
                    if content.held[number]:
                        chunks[digest] = content.size_of(number)
            return chunks

    def take_lost(self) -> list[bytes]:
        """The chunks that were held and are not any more, since the last call."""
        with self._lock:
            lost, self._lost = self._lost, {}
            return [digest for digest in lost if not self.has(digest)]

    def _remember(self, digest: bytes, data: bytes) -> None:
        self._recent[digest] = data
        self._recent.move_to_end(digest)
        if len(self._recent) > _RECENT_CHUNKS:
            self._recent.popitem(last=False)

    # --- contents --------------------------------------------------------------------------------------------------
    def open_content(self, index: bytes, size_bytes: int, chunk_bytes: int) -> ContentFile | None:
        """The content whose index is that chunk. None: the index is not held, or is not that of a content of this size.
        Its room on the disk is made before its first chunk is written. What was opened with other sizes gives way as
        long as no chunk has borne them out: two releases may say different things of one index."""
        with self._lock:
            known = self._open.get(index.hex())
            if known is not None and known.size_bytes == size_bytes:
                if known.chunk_bytes == chunk_bytes or len(known.digests) == 1:
                    return known
            listed = self.get(index)
            if listed is None or len(listed) != 32 * -(-size_bytes // chunk_bytes):
                return None
            if known is not None:
                if known.is_proven:
                    return None
                self._remove(known.path)
            digests = [listed[at : at + 32] for at in range(0, len(listed), 32)]
            content = ContentFile(self._contents / index.hex(), digests, size_bytes, chunk_bytes, self._disk)
            content.look()
            self._open[index.hex()] = content
            for number, digest in enumerate(content.digests):
                self._places.setdefault(digest, []).append((content, number))
            return content

    def _reserve(self, content: ContentFile) -> None:
        """:raises StorageError, OSError: there is no room."""
        if not content.is_reserved:
            held = self._sizes.get(content.path, 0)
            self._make_room(content.size_bytes - held, content.path.name)
            content.reserve()
            self._sizes[content.path] = content.size_bytes

    def fill(self, content: ContentFile) -> bool:
        """Take over chunks of a content that are held elsewhere. Returns whether all of it is there then.

        :raises StorageError: there is no room.
        """
        with self._lock, self._translated(f"given the content {content.path.name[:12]}"):
            for number, digest in enumerate(content.digests):
                data = self.get(digest) if not content.held[number] and self.has(digest) else None
                if data is not None and len(data) == content.size_of(number):
                    self._reserve(content)
                    content.put(number, data)
            return content.is_whole

    def content(self, index: bytes) -> ContentFile | None:
        """A content that was opened."""
        with self._lock:
            return self._open.get(index.hex())

    def held_bytes(self, index: bytes) -> int:
        """How many bytes of a content that was opened are there."""
        with self._lock:
            content = self._open.get(index.hex())
            held = () if content is None else (number for number, is_held in enumerate(content.held) if is_held)
            return sum(content.size_of(number) for number in held) if content is not None else 0

    def check_content(self, index: bytes) -> int:
        """Read every chunk of a content that was opened. Returns how many were damaged and count as missing now."""
        with self._lock:
            content = self._open.get(index.hex())
            if content is None:
                return 0
            before = bytes(content.held)
            damaged = content.check()
            for number, digest in enumerate(content.digests):
                self._recent.pop(digest, None)
                if before[number] and not content.held[number]:
                    self._damaged(digest)
            return damaged

    # --- room ------------------------------------------------------------------------------------------------------
    def forget(self, digests: Collection[bytes]) -> None:
        """Remove chunks, and contents by their index, as far as they are not needed."""
        with self._lock:
            for digest in set(digests).difference(self.needed()):
                for path in (self._contents / digest.hex(), self._blobs / digest.hex()):
                    if path in self._sizes:
                        self._remove(path)

    def _unneeded(self) -> Iterator[Path]:
        """What may go, the largest first."""
        by_size = sorted(self._sizes.items(), key=lambda item: (-item[1], item[0]))
        needed = {digest.hex() for digest in self.needed()}
        return (path for path, _ in by_size if path.name not in needed)

    def _make_room(self, size_bytes: int, *spared: str) -> None:
        """``spared``: names of files that stay, though nobody has said that they are needed.

        :raises StorageError: there is no room."""
        wanted = size_bytes - min(self.max_bytes - self.size_bytes, self._free_bytes())
        going: list[Path] = []
        freed = 0
        for path in self._unneeded() if wanted > 0 else ():
            if freed >= wanted:
                break
            if path.name not in spared:
                going.append(path)
                freed += self._sizes[path]
        left = self.size_bytes - freed
        if left + size_bytes > self.max_bytes:
            raise StorageError(
                f"{size_bytes} bytes of a release don't fit: {left} of the {self.max_bytes} bytes that releases may "
                "take are needed. Raise [releases] store_mib, or follow fewer models"
            )
        if freed >= wanted:
            for path in going:
                self._remove(path)
        if size_bytes > self._free_bytes():  # also when what went has another name, and so has freed nothing
            free, total = self._disk.room(self._blobs)
            raise StorageError(
                f"{size_bytes} bytes of a release don't fit: the disk of {self._blobs.parent} has {free} bytes left, "
                f"of which {total // RESERVE_SHARE} stay free. Make room"
            )

    def _free_bytes(self) -> int:
        """What the file system has for releases."""
        free, total = self._disk.room(self._blobs)
        return free - total // RESERVE_SHARE

    def _remove(self, path: Path) -> None:
        content = self._open.pop(path.name, None) if path.parent == self._contents else None
        if content is not None:
            for number, digest in enumerate(content.digests):
                if content.held[number]:
                    self._lost[digest] = None
                left = [place for place in self._places.get(digest, ()) if place[0] is not content]
                if left:
                    self._places[digest] = left
                else:
                    self._places.pop(digest, None)
                self._recent.pop(digest, None)
        elif path.parent == self._blobs:
            digest = bytes.fromhex(path.name)
            self._recent.pop(digest, None)
            self._lost[digest] = None
        self._sizes.pop(path, None)
        with suppress(OSError):
            if path.parent == self._contents:
                remove_content(path, self._disk)
            else:
                self._disk.remove(path)

    @contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the store of releases {self._blobs.parent} can't be {done} ({error.strerror}): make room, and see "
                "that this user may write there"
            ) from error
