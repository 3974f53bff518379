"""Which entries are let in: from bytes of a neighbour to an entry whose signature was checked.

The order keeps useless entries cheap, for a signature costs 80 µs: what is held or was refused before, by its
fingerprint; what is malformed; what is not newer, has ended or has no place; the allowance of the neighbour; then the
signature. A few are checked at a time and the others wait, so that readings can pass between.
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
"""Of the signatures checked one in so many is of a former life, however many new ones neighbours send: until then
nobody is asked for that entry."""


class Verdict(StrEnum):
    """On an entry; the values are names of counters."""

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
    """A parsed entry. Its signature is good once it was ACCEPTED, and not before."""

    key: EntryKey
    version: int
    fingerprint: int
    entry: Entry
    data: bytes
    born_ns: int
    source: NodeId

    @property
    def ends_ns(self) -> int:
        """When its lifetime is over."""
        return self.born_ns + self.entry.lifetime_s * limits.SECOND


class Admission:
    """Of one node."""

    def __init__(self, store: EntryStore, checks_at_once: int, check_pause_ns: int) -> None:
        self._store, self._checks_at_once, self._pause_ns = store, checks_at_once, check_pause_ns
        self._candidates: deque[EntryCandidate] = deque()
        self._restored: deque[EntryCandidate] = deque()  # of a former life: they let new ones pass, but not for ever
        self._turn = 0
        self._refused: dict[int, int] = {}  # fingerprint: until when
        self.due_ns = NEVER
        """When :meth:`checked` has more to do."""

    def is_refused(self, fingerprint: int, now: int) -> bool:
        """Whether it was found superseded, forged or without a place, not long ago."""
        return bool(self._refused) and self._refused.get(fingerprint, -NEVER) > now

    def remember(self, fingerprint: int, now: int) -> None:
        """Have it neither asked for nor checked again for a while."""
        self._refused.pop(fingerprint, None)
        if len(self._refused) >= limits.MAX_REFUSED_ENTRIES:
            del self._refused[next(iter(self._refused))]
        self._refused[fingerprint] = now + limits.REFUSED_ENTRY_MEMORY_NS

    def consider(
        self, data: bytes, fingerprint: int, age_ns: int, source: NodeId, allowance: Allowance | None, now: int
    ) -> tuple[Verdict, EntryCandidate | None]:
        """Judge an entry as far as that is cheap. WAITING: :meth:`checked` has the last word. The candidate is None
        when the bytes were not looked into, or are none. ``allowance``: of ``source``; None: it was kept by a former
        life of this node."""
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
        if candidate.ends_ns <= now:  # not remembered: who lied about its age must not keep the true one away
            return Verdict.EXPIRED, candidate
        if not self._store.has_room_for(candidate.key, candidate.ends_ns):
            if not self._store.has_room_for(candidate.key, now + entry.lifetime_s * limits.SECOND):
                self.remember(fingerprint, now)
            elif allowance is not None:  # its age decided, and who lied about that must not keep the true one away
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
        """Check a few signatures: ACCEPTED ones must be put into the store before the next is asked for. Those left
        have their turn at :attr:`due_ns`."""
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
            return Verdict.DUPLICATE  # it came twice before its turn
        if not store.is_news(candidate.key, candidate.version, fingerprint):
            self.remember(fingerprint, now)
            return Verdict.STALE
        if not seal.verify(candidate.entry):
            self.remember(fingerprint, now)
            return Verdict.FORGED
        if not store.has_room_for(candidate.key, candidate.ends_ns):
            return Verdict.WITHOUT_PLACE
        return Verdict.ACCEPTED
