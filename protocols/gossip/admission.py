"""Which entries are accepted: from the bytes that a neighbour sent to an entry whose signature was checked.

Checking a signature takes 80 µs, so the order of the checks keeps useless entries cheap:

1. by its fingerprint: whether it is held, or was refused before;
2. whether it is malformed;
3. whether it is not newer, has expired or has no place in the store;
4. whether the allowance of the neighbour is used up;
5. the signature.

A few signatures are checked at a time, and the other entries wait, so that readings can pass in between.
"""

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.gossip.entries import EntryKey, Seal
from protocols.gossip.store import EntryStore
from protocols.wire.entries import decode_untrusted_entry
from protocols.wire.gossip import Entry

_RESTORED_EVERY: Final = 8
"""One in this many of the signatures that are checked is of an entry that this node kept from before its restart,
however many new entries neighbours send. Until such an entry is checked, no neighbour is asked for it."""


class Verdict(StrEnum):
    """The verdict on an entry; the values are the names of counters."""

    WAITING = "entries_waiting_for_check"
    ACCEPTED = "entries_accepted"
    DUPLICATE = "entries_duplicate"
    STALE = "entries_stale"
    FORGED = "entries_forged"
    MALFORMED = "entries_malformed"
    EXPIRED = "entries_expired"
    WITHOUT_PLACE = "entries_without_place"
    OVER_RATE = "entries_over_rate"


class EntryCandidate(NamedTuple):
    """A parsed entry. Its signature is known to be good only once the verdict is ACCEPTED."""

    key: EntryKey
    version: int
    fingerprint: int
    entry: Entry
    data: bytes
    born_ns: int
    source: NodeId

    @property
    def ends_ns(self) -> int:
        """When it expires, in monotonic nanoseconds."""
        return self.born_ns + self.entry.lifetime_s * limits.SECOND


class Admission:
    """Decides which entries one node accepts."""

    def __init__(self, store: EntryStore, checks_at_once: int, check_pause_ns: int) -> None:
        self._store, self._checks_at_once, self._pause_ns = store, checks_at_once, check_pause_ns
        self._candidates: deque[EntryCandidate] = deque()
        self._restored: deque[EntryCandidate] = deque()  # from before a restart: new ones go first, but not for ever
        self._turn = 0
        self._refused: dict[int, int] = {}  # until when, by fingerprint
        self.due_ns = NEVER
        """When :meth:`checked` has to be called next, in monotonic nanoseconds."""

    def is_refused(self, fingerprint: int, now: int) -> bool:
        """Whether the entry was found superseded, malformed, forged or without a place, not long ago."""
        return bool(self._refused) and self._refused.get(fingerprint, -NEVER) > now

    def remember(self, fingerprint: int, now: int) -> None:
        """Remember a fingerprint, so that for a while its entry is neither asked for nor checked again."""
        self._refused.pop(fingerprint, None)
        if len(self._refused) >= limits.MAX_REFUSED_ENTRIES:
            del self._refused[next(iter(self._refused))]
        self._refused[fingerprint] = now + limits.REFUSED_ENTRY_MEMORY_NS

    def consider(
        self, data: bytes, fingerprint: int, age_ns: int, source: NodeId, allowance: Allowance | None, now: int
    ) -> tuple[Verdict, EntryCandidate | None]:
        """Judge an entry as far as that is cheap. When the verdict is WAITING, :meth:`checked` gives the final one. The
        candidate is None when the bytes were not parsed, or are malformed. ``allowance`` is that of ``source``; None:
        this node kept the entry from before its restart."""
        if self._store.holding(fingerprint) is not None or self.is_refused(fingerprint, now):
            return Verdict.DUPLICATE, None
        try:
            entry = decode_untrusted_entry(data)
        except RemoteProtocolError:
            self.remember(fingerprint, now)
            return Verdict.MALFORMED, None
        candidate = EntryCandidate(
            (entry.author, entry.kind), entry.version, fingerprint, entry, data, now - age_ns, source
        )
        if not self._store.is_news(candidate.key, entry.version, fingerprint):
            self.remember(fingerprint, now)
            return Verdict.STALE, candidate
        if candidate.ends_ns <= now:  # not remembered: a lie about its age must not keep the true one away
            return Verdict.EXPIRED, candidate
        if not self._store.has_room_for(candidate.key, candidate.ends_ns):
            if not self._store.has_room_for(candidate.key, now + entry.lifetime_s * limits.SECOND):
                self.remember(fingerprint, now)
            elif allowance is not None:  # not remembered, for the same reason: only its age leaves it without a place
                allowance.take(now)
            return Verdict.WITHOUT_PLACE, candidate
        if allowance is None:
            self._restored.append(candidate)
        elif len(self._candidates) >= limits.MAX_ENTRY_CANDIDATES or not allowance.take(now):
            return Verdict.OVER_RATE, candidate
        else:
            self._candidates.append(candidate)
        return Verdict.WAITING, candidate

    def checked(self, seal: Seal, now: int) -> Iterator[tuple[Verdict, EntryCandidate]]:
        """Check a few signatures. The caller must put an ACCEPTED entry into the store before it takes the next
        verdict. The entries that are left have their turn at :attr:`due_ns`."""
        if self.due_ns != NEVER and now < self.due_ns:
            return
        for _ in range(self._checks_at_once):
            self._turn = (self._turn + 1) % _RESTORED_EVERY
            waiting = self._restored if self._restored and not self._turn else self._candidates or self._restored
            if not waiting:
                break
            candidate = waiting.popleft()
            yield self._verdict(candidate, seal, now), candidate
        self.due_ns = now + self._pause_ns if self._candidates or self._restored else NEVER

    def _verdict(self, candidate: EntryCandidate, seal: Seal, now: int) -> Verdict:
        store, fingerprint = self._store, candidate.fingerprint
        if store.holding(fingerprint) is not None or self.is_refused(fingerprint, now):
            return Verdict.DUPLICATE  # it arrived a second time before its turn
        if not store.is_news(candidate.key, candidate.version, fingerprint):
            self.remember(fingerprint, now)
            return Verdict.STALE
        if not seal.verify(candidate.entry):
            self.remember(fingerprint, now)
            return Verdict.FORGED
        if not store.has_room_for(candidate.key, candidate.ends_ns):
            return Verdict.WITHOUT_PLACE
        return Verdict.ACCEPTED
