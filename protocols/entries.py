"""Signed entries: what a node holds of them, and what is newer than what.

Invariants:

1. Of an author and a kind one entry is held, and it only goes forward: to a higher version, or at the same version to
   the higher fingerprint. Two entries of one version are the author's fault (equivocation); this settles it everywhere
   alike.
2. ``root`` and ``buckets`` are the exclusive or of the fingerprints held, kept as entries come and go, so that two
   stores are compared by one number. A fingerprint is the first 64 bits of a hash of the entry's bytes.
3. Bounds: ``MAX_ENTRIES`` in all, ``MAX_KINDS_PER_AUTHOR`` of one author.

Nothing here checks a signature: whoever puts an entry has done that.
"""

from collections.abc import Callable, Iterable, Iterator, KeysView
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from msgspec import Struct

from protocols import limits
from protocols.codec import decode_untrusted_entry
from protocols.ids import NodeId
from protocols.messages import Entry
from protocols.queues import NEVER

EntryKey = tuple[str, str]
"""(author, kind)"""
_LEAST_ENDS: Final = 64
"""Below, a list of ends is not worth tidying."""


class Sealed(Struct, frozen=True, gc=False):
    """An entry as it is kept: its bytes and what is asked of it often. The same for every node that holds it."""

    key: EntryKey
    version: int
    lifetime_ns: int
    fingerprint: int
    data: bytes
    """MessagePack of :class:`~protocols.messages.Entry`."""


def _itself(sealed: Sealed) -> Sealed:
    return sealed


class Seal(Struct, frozen=True):
    """How entries are signed and checked: what a machine may not do itself."""

    sign: Callable[[bytes], tuple[bytes, bytes]]
    """Statement to (credential, signature); see ``protocols.codec.entry_statement``."""
    verify: Callable[[Entry], bool]
    """Whether the credential is one of this mesh, names the author, and made the signature."""
    hash: Callable[[bytes], bytes]
    """SHA-256 on the road: 8 bytes or more, of which the first 8 are the fingerprint."""
    share: Callable[[Sealed], Sealed] = _itself
    """An equal object to keep instead: thousands of nodes in one process need to hold an entry once."""

    def fingerprint(self, data: bytes) -> int:
        """Of the bytes of an entry."""
        return int.from_bytes(self.hash(data)[:8], "little")

    def sealed(self, key: EntryKey, version: int, lifetime_s: int, fingerprint: int, data: bytes) -> Sealed:
        """An entry to keep, whose signature was made or checked here."""
        return self.share(Sealed(key, version, lifetime_s * limits.SECOND, fingerprint, data))


class Held(Struct, gc=False):
    """One place in the store."""

    sealed: Sealed
    born_ns: int
    """When it was signed, on this node's clock, as far as those who carried it say."""
    source: NodeId
    """The neighbour it came from, or this node."""

    @property
    def ends_ns(self) -> int:
        """When it is forgotten."""
        return self.born_ns + self.sealed.lifetime_ns


class EntryView(Struct, frozen=True):
    """An entry held, for people and programs."""

    author: NodeId
    kind: str
    version: int
    age_ns: int
    """Since it was signed."""
    lifetime_s: int
    source: NodeId
    """The neighbour it came from; the node itself for its own."""
    size_bytes: int
    """As it travels."""
    body: bytes


class Stored(NamedTuple):
    """An entry as it is kept over a restart."""

    data: bytes
    age_ns: int
    source: NodeId


def views(stored: Iterable[Stored]) -> list[EntryView]:
    """Entries as people and programs see them, by author and kind. A full store takes 10 ms: hold no lock
    meanwhile."""
    shown = []
    for data, age_ns, source in stored:
        entry = decode_untrusted_entry(data)
        shown.append(EntryView(
            NodeId(entry.author), entry.kind, entry.version, age_ns, entry.lifetime_s, source, len(data), entry.body,
        ))  # fmt: skip
    return sorted(shown, key=lambda view: (view.author, view.kind))


class EntryStore:
    """Entries by key and by fingerprint."""

    def __init__(self, max_entries: int = limits.MAX_ENTRIES) -> None:
        self.root = 0
        self.buckets = [0] * limits.ENTRY_BUCKETS
        self.next_end_ns = NEVER
        """Not after the end of any entry held."""
        self._max_entries = max_entries
        self._by_key: dict[EntryKey, Held] = {}
        self._by_fingerprint: dict[int, Held] = {}
        self._authored: dict[str, int] = {}  # entries of each author
        self._ends: list[tuple[int, EntryKey, int]] = []  # a heap, with entries that are gone and passed over

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: EntryKey) -> Held | None:
        """The entry of an author and a kind."""
        return self._by_key.get(key)

    def holding(self, fingerprint: int) -> Held | None:
        """The entry of a fingerprint."""
        return self._by_fingerprint.get(fingerprint)

    @property
    def fingerprints(self) -> KeysView[int]:
        """Of everything held, in the order it came; a live view."""
        return self._by_fingerprint.keys()

    def contents(self) -> list[list[int]]:
        """The fingerprints in each bucket."""
        contents: list[list[int]] = [[] for _ in range(limits.ENTRY_BUCKETS)]
        for fingerprint in self._by_fingerprint:
            contents[fingerprint % limits.ENTRY_BUCKETS].append(fingerprint)
        return contents

    def is_news(self, key: EntryKey, version: int, fingerprint: int) -> bool:
        """Whether it goes forward from what is held."""
        held = self._by_key.get(key)
        return held is None or (version, fingerprint) > (held.sealed.version, held.sealed.fingerprint)

    def has_room_for(self, key: EntryKey, ends_ns: int) -> bool:
        """Whether :meth:`put` would take it: it replaces one, a place is free, or another ends sooner."""
        if key in self._by_key:
            return True
        if self._authored.get(key[0], 0) >= limits.MAX_KINDS_PER_AUTHOR:
            return False
        return len(self._by_key) < self._max_entries or self._first_end_ns() < ends_ns

    def put(self, held: Held) -> list[int]:
        """Take an entry that :meth:`is_news` and :meth:`has_room_for`; returns the fingerprints that left for it."""
        sealed = held.sealed
        assert self.holding(sealed.fingerprint) is None, "an author can make two of his entries collide: look before"
        gone = []
        before = self._by_key.get(sealed.key)
        if before is not None:
            gone.append(before.sealed.fingerprint)
            self._remove(before)
        elif len(self._by_key) >= self._max_entries:
            self._first_end_ns()  # now it is the first of the heap
            gone.append(self._ends[0][2])
            self._remove(self._by_fingerprint[gone[0]])
        author, ends_ns = sealed.key[0], held.ends_ns
        self._by_key[sealed.key] = held
        self._authored[author] = self._authored.get(author, 0) + 1
        self._toggle(sealed.fingerprint)
        self._by_fingerprint[sealed.fingerprint] = held
        heappush(self._ends, (ends_ns, sealed.key, sealed.fingerprint))
        self.next_end_ns = min(self.next_end_ns, ends_ns)
        return gone

    def expire(self, now: int) -> int:
        """Forget what has reached its end; how many those were."""
        if now < self.next_end_ns:
            return 0
        before = len(self._by_key)
        while self._first_end_ns() <= now:
            self._remove(self._by_fingerprint[self._ends[0][2]])
        self.next_end_ns = self._first_end_ns()
        return before - len(self._by_key)

    def all(self) -> Iterator[Held]:
        """Everything held, in the order it came."""
        return iter(self._by_key.values())

    def _first_end_ns(self) -> int:
        """When the first entry held ends, NEVER when there is none; it is at the top of the heap then."""
        while self._ends:
            ends_ns, _, fingerprint = self._ends[0]
            held = self._by_fingerprint.get(fingerprint)
            if held is not None and held.ends_ns == ends_ns:
                return ends_ns
            heappop(self._ends)
        return NEVER

    def _remove(self, held: Held) -> None:
        sealed = held.sealed
        author = sealed.key[0]
        del self._by_key[sealed.key]
        del self._by_fingerprint[sealed.fingerprint]
        self._toggle(sealed.fingerprint)
        self._authored[author] -= 1
        if not self._authored[author]:
            del self._authored[author]
        if len(self._ends) > 2 * len(self._by_key) + _LEAST_ENDS:
            self._ends = [(held.ends_ns, key, held.sealed.fingerprint) for key, held in self._by_key.items()]
            heapify(self._ends)

    def _toggle(self, fingerprint: int) -> None:
        self.root ^= fingerprint
        self.buckets[fingerprint % limits.ENTRY_BUCKETS] ^= fingerprint
