"""The signed entries that a node holds, and which entry is newer.

Invariants:

1. For each author and kind the store holds one entry. It is only replaced by a higher version, or at the same version
   by a higher fingerprint. Two entries with one version are the author's fault (equivocation); by this rule every node
   keeps the same one.
2. ``root`` and ``buckets`` are the exclusive or of the fingerprints held. They are updated as entries come and go, so
   that two stores can be compared by one number. A fingerprint is the first 64 bits of a hash of what was signed.
3. The store holds at most ``MAX_ENTRIES`` in all, and at most ``MAX_KINDS_PER_AUTHOR`` of one author.

The store checks no signatures: the caller must have checked an entry before it puts it in.
"""

from collections.abc import Iterator, KeysView
from heapq import heapify, heappop, heappush
from typing import Final

from protocols.base import limits
from protocols.base.time import NEVER
from protocols.gossip.entries import EntryKey, Held

_LEAST_ENDS: Final = 64
"""A shorter list of ends is not worth tidying."""


class EntryStore:
    """The entries of one node, by key and by fingerprint."""

    def __init__(self, max_entries: int = limits.MAX_ENTRIES) -> None:
        self.root = 0
        self.buckets = [0] * limits.ENTRY_BUCKETS
        self.next_end_ns = NEVER
        """No entry that is held expires before this."""
        self._max_entries = max_entries
        self._by_key: dict[EntryKey, Held] = {}
        self._by_fingerprint: dict[int, Held] = {}
        self._authored: dict[str, int] = {}  # number of entries of each author
        self._ends: list[tuple[int, EntryKey, int]] = []  # a heap; entries that are gone stay in it and are skipped

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: EntryKey) -> Held | None:
        """The entry of an author and kind; None: there is none."""
        return self._by_key.get(key)

    def holding(self, fingerprint: int) -> Held | None:
        """The entry with a fingerprint; None: there is none."""
        return self._by_fingerprint.get(fingerprint)

    @property
    def fingerprints(self) -> KeysView[int]:
        """The fingerprints of all entries, in the order in which they came, as a live view."""
        return self._by_fingerprint.keys()

    def contents(self) -> list[list[int]]:
        """The fingerprints in each bucket."""
        contents: list[list[int]] = [[] for _ in range(limits.ENTRY_BUCKETS)]
        for fingerprint in self._by_fingerprint:
            contents[fingerprint % limits.ENTRY_BUCKETS].append(fingerprint)
        return contents

    def is_news(self, key: EntryKey, version: int, fingerprint: int) -> bool:
        """Whether such an entry is newer than the one that is held."""
        held = self._by_key.get(key)
        return held is None or (version, fingerprint) > (held.sealed.version, held.sealed.fingerprint)

    def has_room_for(self, key: EntryKey, ends_ns: int) -> bool:
        """Whether :meth:`put` would accept such an entry: it replaces one, or a place is free, or another expires
        sooner."""
        if key in self._by_key:
            return True
        if self._authored.get(key[0], 0) >= limits.MAX_KINDS_PER_AUTHOR:
            return False
        return len(self._by_key) < self._max_entries or self._first_end_ns() < ends_ns

    def put(self, held: Held) -> list[int]:
        """Add an entry for which :meth:`is_news` and :meth:`has_room_for` are true. Returns the fingerprints of the
        entries that it replaced or displaced."""
        sealed = held.sealed
        assert self.holding(sealed.fingerprint) is None, "an author can make two of their entries collide: check before"
        gone = []
        before = self._by_key.get(sealed.key)
        if before is not None:
            gone.append(before.sealed.fingerprint)
            self._remove(before)
        elif len(self._by_key) >= self._max_entries:
            self._first_end_ns()  # now that entry is the first of the heap
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

    def forget(self, fingerprint: int) -> None:
        """Give up the entry with a fingerprint, if there is one."""
        held = self._by_fingerprint.get(fingerprint)
        if held is not None:
            self._remove(held)

    def expire(self, now: int) -> int:
        """Forget entries that have expired, ``MAX_ENDED_AT_ONCE`` at most, and return how many. The others are due at
        once."""
        if now < self.next_end_ns:
            return 0
        before = len(self._by_key)
        while self._first_end_ns() <= now and before - len(self._by_key) < limits.MAX_ENDED_AT_ONCE:
            self._remove(self._by_fingerprint[self._ends[0][2]])
        self.next_end_ns = self._first_end_ns()
        return before - len(self._by_key)

    def all(self) -> Iterator[Held]:
        """All entries, in the order in which they came."""
        return iter(self._by_key.values())

    def _first_end_ns(self) -> int:
        """When the next entry expires; NEVER when there is none. That entry is then at the top of the heap."""
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
