"""What this node holds: chunks on its disk, the contents that they belong to, and who may have them.

A content is *known* from the description of its release, and *loaded* once its index was read. Only chunks of loaded
contents, and those that signed metadata names itself (metadata, descriptions, orders, indices), are given to
neighbours. At most ``MAX_LOADED_CHUNKS`` digests are loaded; beyond that, contents that nobody has asked for longest,
and that this node does not fetch, are unloaded and read again when somebody asks.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from protocols.access import AccessTable
from protocols.base.ids import NodeId, Role
from protocols.releases.catalogue import Content

DIGEST_BYTES: Final = 32
MAX_LOADED_CHUNKS: Final = 65_536
"""Digests of chunks in memory, which take about 200 bytes each: 8 GiB of files in chunks of 128 KiB."""
ANY_RELEASE: Final = ""
"""Stands for the path of chunks that belong to all releases."""


class KnownContent:
    """A file of a release, as its description says, and which chunks of it are held."""

    __slots__ = ("chunk_bytes", "chunks", "digest", "digests", "have", "paths", "size_bytes")

    def __init__(self, content: Content) -> None:
        self.digest = bytes.fromhex(content.index)
        self.size_bytes, self.chunk_bytes, self.chunks = content.size_bytes, content.chunk_bytes, content.chunks
        self.paths: dict[str, None] = {}
        """The releases that it is part of."""
        self.digests = b""
        """The digests of its chunks; empty: it is not loaded."""
        self.have = 0
        """A bit for each chunk, the lowest first: it is held."""

    @property
    def all_chunks(self) -> int:
        """A bit for each chunk that there is."""
        return (1 << self.chunks) - 1

    @property
    def is_whole(self) -> bool:
        """Whether all of it is held. An empty file has no chunks."""
        return not self.chunks or (bool(self.digests) and self.have == self.all_chunks)

    def is_of(self, content: Content) -> bool:
        """Whether it has the sizes that a description says."""
        return (self.size_bytes, self.chunk_bytes) == (content.size_bytes, content.chunk_bytes)

    def chunk(self, number: int) -> bytes:
        """The digest of a chunk."""
        return self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def size_of(self, number: int) -> int:
        """The size of a chunk."""
        return min(self.chunk_bytes, self.size_bytes - number * self.chunk_bytes)


class Shelf:
    """The chunks and contents of one node."""

    def __init__(self, access: AccessTable) -> None:
        self._access = access
        self.held: dict[bytes, int] = {}
        """The chunks that are held, and their sizes."""
        self.known: dict[bytes, KnownContent] = {}
        """Contents of described releases, by the digest of their index."""
        self.pinned: set[bytes] = set()
        """The contents that this node fetches, which stay loaded."""
        self._lone: dict[bytes, dict[str, None]] = {}  # chunks that metadata names itself, and their paths
        self._loaded: dict[bytes, None] = {}  # whoever was asked for last stands last
        self._loaded_chunks = 0
        self._places: dict[bytes, list[tuple[KnownContent, int]]] = {}

    # --- what there is ---------------------------------------------------------------------------------------------
    def name(self, digest: bytes, path: str) -> None:
        """Note that a chunk belongs to a release, or to ``ANY_RELEASE``."""
        self._lone.setdefault(digest, {})[path] = None

    def agrees(self, content: Content) -> bool:
        """Whether nothing else is known of the content with that index than what is said here."""
        known = self.known.get(bytes.fromhex(content.index))
        return known is None or known.is_of(content)

    def describe(self, content: Content, path: str) -> KnownContent:
        """Make a content known as part of a release."""
        digest = bytes.fromhex(content.index)
        known = self.known.get(digest)
        if known is None:
            known = self.known[digest] = KnownContent(content)
        known.paths[path] = None
        self.name(digest, path)
        return known

    def keep_only(self, lone: Iterable[tuple[bytes, str]], contents: Iterable[tuple[Content, str]]) -> None:
        """Forget all names and contents but these."""
        self._lone = {}
        for digest, path in lone:
            self.name(digest, path)
        before, self.known = self.known, {}
        for content, path in contents:
            known = before.get(bytes.fromhex(content.index))
            if known is not None and known.digest not in self.known and known.is_of(content):
                known.paths = {}
                self.known[known.digest] = known
            self.describe(content, path)
        for digest in [digest for digest in self._loaded if self.known.get(digest) is not before[digest]]:
            self._unload(before[digest])

    def is_named(self, digest: bytes) -> bool:
        """Whether signed metadata names a chunk, itself or as a part of a content that is loaded."""
        return digest in self._lone or digest in self._places

    def named(self) -> list[bytes]:
        """The chunks that metadata and descriptions name themselves, and that are held."""
        return [digest for digest in self._lone if digest in self.held]

    def load(self, digest: bytes, digests: bytes, held: bytes) -> KnownContent | None:
        """Take in the index of a content, and which of its chunks are on the disk. None: nobody knows it any more, or
        the index does not fit it."""
        known = self.known.get(digest)
        if known is None or len(digests) != known.chunks * DIGEST_BYTES:
            return None
        if known.digests:
            self._unload(known)
        known.digests = digests
        known.have = int.from_bytes(held, "little") & known.all_chunks
        for number in range(known.chunks):
            chunk = known.chunk(number)
            self._places.setdefault(chunk, []).append((known, number))
            if known.have >> number & 1:
                self.held.setdefault(chunk, known.size_of(number))
            elif chunk in self.held:
                known.have |= 1 << number
        self._loaded[digest] = None
        self._loaded_chunks += known.chunks
        for other in list(self._loaded):
            if self._loaded_chunks <= MAX_LOADED_CHUNKS:
                break
            if other != digest and other not in self.pinned:
                self._unload(self.known[other])
        return known

    def touch(self, known: KnownContent) -> None:
        """Note that somebody asks for a content that is loaded."""
        if known.digest in self._loaded:
            del self._loaded[known.digest]
            self._loaded[known.digest] = None

    def _unload(self, known: KnownContent) -> None:
        for number in range(known.chunks):
            chunk = known.chunk(number)
            places = [place for place in self._places.get(chunk, ()) if place[0] is not known]
            if places:
                self._places[chunk] = places
            else:
                self._places.pop(chunk, None)
        self._loaded.pop(known.digest, None)
        self._loaded_chunks -= known.chunks
        known.digests, known.have = b"", 0

    def add(self, chunks: Mapping[bytes, int]) -> list[tuple[KnownContent, int]]:
        """Note that chunks are held now. Returns the places in loaded contents that they have."""
        self.held.update(chunks)
        places = [place for chunk in chunks for place in self._places.get(chunk, ())]
        for known, number in places:
            known.have |= 1 << number
        return places

    def remove(self, chunks: Iterable[bytes]) -> None:
        """Note that chunks are not held any more."""
        for chunk in chunks:
            self.held.pop(chunk, None)
            for known, number in self._places.get(chunk, ()):
                known.have &= ~(1 << number)

    def places(self, chunk: bytes) -> list[tuple[KnownContent, int]]:
        """The loaded contents that a chunk is part of, and its number in each."""
        return self._places.get(chunk, [])

    # --- who may have it -------------------------------------------------------------------------------------------
    def permits(self, chunk: bytes, role: Role, node: NodeId) -> bool | None:
        """Whether a neighbour may have a chunk that is held. None: it is not known what it belongs to."""
        paths = self._lone.get(chunk, {})
        for known, _ in self._places.get(chunk, ()):
            paths = {**paths, **known.paths}
        if not paths:
            return None
        return any(self._permits_path(path, role, node) for path in paths)

    def permits_content(self, known: KnownContent, role: Role, node: NodeId) -> bool:
        """Whether a neighbour may have a content."""
        return any(self._permits_path(path, role, node) for path in known.paths)

    def _permits_path(self, path: str, role: Role, node: NodeId) -> bool:
        if path == ANY_RELEASE:
            return self._access.permits_any_release(role, node)
        return self._access.permits_release(role, node, path)
