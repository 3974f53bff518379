"""Which entries are accepted: from the bytes that a neighbour sent to an entry whose signature was checked.

Checking a signature takes 80 µs, so the order of the checks keeps useless entries cheap:

1. whether it is malformed;
2. by the fingerprint of its statement: whether it is held, or was refused before;
3. by its bytes: whether they were found forged before;
4. whether it is not newer, has expired or has no place in the store;
5. whether the allowance of its author, or that of the neighbour, is used up;
6. the signature, and then whether the certificate is valid now.

Who pays: the neighbour for malformed and forged entries, which an honest carrier never passes on. The author for
signing too many. Nobody for a certificate that has ended by this node's clock, because the carrier's clock may differ.
A forgery is remembered by its bytes and never by its statement, because the statement may be genuine.

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
    AUTHOR_OVER_RATE = "entries_of_author_over_rate"
    UNCERTIFIED = "entries_uncertified"


class EntryCandidate(NamedTuple):
    """A parsed entry. Its signature is known to be good only once the verdict is ACCEPTED."""

    key: EntryKey
    version: int
    fingerprint: int
    bytes_fingerprint: int
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
        self._forged: dict[int, int] = {}  # until when, by fingerprint of all bytes
        self._authors: dict[str, Allowance] = {}
        self.due_ns = NEVER
        """When :meth:`checked` has to be called next, in monotonic nanoseconds."""

    def is_refused(self, fingerprint: int, now: int) -> bool:
        """Whether the entry was found superseded, uncertified or without a place, not long ago."""
        return bool(self._refused) and self._refused.get(fingerprint, -NEVER) > now

    def remember(self, fingerprint: int, now: int, for_ns: int = limits.REFUSED_ENTRY_MEMORY_NS) -> None:
        """Remember a fingerprint, so that for a while its entry is neither asked for nor checked again."""
        _remember(self._refused, fingerprint, now + for_ns)

    def consider(
        self, data: bytes, seal: Seal, age_ns: int, source: NodeId, allowance: Allowance | None, now: int
    ) -> tuple[Verdict, EntryCandidate | None]:
        """Judge an entry as far as that is cheap. When the verdict is WAITING, :meth:`checked` gives the final one. The
        candidate is None when the bytes are malformed. ``allowance`` is that of ``source``; None: this node kept the
        entry from before its restart."""
        try:
            entry = decode_untrusted_entry(data)
        except RemoteProtocolError:
            return Verdict.MALFORMED, None
        fingerprint, bytes_fingerprint = seal.fingerprint(entry), seal.fingerprint_of_bytes(data)
        candidate = EntryCandidate(
            (entry.author, entry.kind), entry.version, fingerprint, bytes_fingerprint, entry, data, now - age_ns, source
        )
        if self._store.holding(fingerprint) is not None or self.is_refused(fingerprint, now):
            return Verdict.DUPLICATE, candidate
        if self._forged.get(bytes_fingerprint, -NEVER) > now:
            return Verdict.FORGED, candidate
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
        author = self._authors.get(entry.author)
        if allowance is not None and author is not None and author.left(now) < 1:
            self.remember(fingerprint, now, limits.AUTHOR_PAUSE_NS)
            return Verdict.AUTHOR_OVER_RATE, candidate
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
            _remember(self._forged, candidate.bytes_fingerprint, now + limits.REFUSED_ENTRY_MEMORY_NS)
            return Verdict.FORGED
        if not seal.is_current(candidate.entry):
            self.remember(fingerprint, now)
            return Verdict.UNCERTIFIED
        if not store.has_room_for(candidate.key, candidate.ends_ns):
            return Verdict.WITHOUT_PLACE
        if not self._author(candidate.key[0], now).take(now):
            self.remember(fingerprint, now, limits.AUTHOR_PAUSE_NS)
            return Verdict.AUTHOR_OVER_RATE
        return Verdict.ACCEPTED

    def _author(self, author: str, now: int) -> Allowance:
        """The allowance of an author that has proved its name."""
        allowance = self._authors.get(author)
        if allowance is None:
            if len(self._authors) >= limits.MAX_ENTRIES:
                del self._authors[next(iter(self._authors))]
            allowance = self._authors[author] = Allowance(limits.AUTHOR_ENTRIES_PER_S, limits.MAX_AUTHOR_BURST, now)
        return allowance


def _remember(memory: dict[int, int], fingerprint: int, until_ns: int) -> None:
    memory.pop(fingerprint, None)
    if len(memory) >= limits.MAX_REFUSED_ENTRIES:
        del memory[next(iter(memory))]
    memory[fingerprint] = until_ns
