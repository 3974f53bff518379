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

from collections.abc import Iterator, KeysView
from heapq import heapify, heappop, heappush
from typing import Final

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.gossip.entries import EntryKey, Held

_LEAST_ENDS: Final = 64
"""Below, a list of ends is not worth tidying."""


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
