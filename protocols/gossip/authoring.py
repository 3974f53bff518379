"""The entries that a node authors itself: signing them, repeating them, and going above stray versions of them."""

from typing import Final, NamedTuple

from protocols.base import limits
from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import Incarnation, NodeId
from protocols.base.sequences import MAX_INCARNATION, first_sequence, first_version, incarnation_of_version
from protocols.base.time import NEVER
from protocols.gossip.entries import Held, Seal
from protocols.gossip.store import EntryStore
from protocols.wire.entries import encode_entry, entry_statement
from protocols.wire.gossip import Entry

_REFRESH_SHARE: Final = 3
"""A node repeats its own entry after a third of the entry's lifetime."""
_LONGEST_OUTRUN_NS: Final = 600 * limits.SECOND
_RETRY_NS: Final = 60 * limits.SECOND


class OwnEntry(NamedTuple):
    """What a node says about one kind of thing, until it says something else."""

    kind: str
    body: bytes
    lifetime_s: int
    refresh_ns: int
    """When it is signed again."""


class OwnEntries:
    """The entries of one node, one of each kind. They are signed here and kept in the store by the caller."""

    def __init__(self, node: NodeId, incarnation: Incarnation, store: EntryStore) -> None:
        self._node, self._life, self._store = node, int(incarnation), store
        self.first_sequence = first_sequence(incarnation)
        """Readings of this node must have this sequence or a larger one, because others take those below for replays of
        the life before the one in which its newest entry was signed."""
        self._own: dict[str, OwnEntry] = {}
        self._outruns: dict[str, tuple[int, int]] = {}  # version to exceed, and how long to wait next time
        self.due_ns = NEVER
        """When :meth:`due` has something to repeat."""
        self.failed = 0
        """Counter: entries that could not be signed or kept."""

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, kind: str) -> bool:
        return kind in self._own

    def author(self, seal: Seal | None, kind: str, body: bytes, lifetime_s: int, above: int, now: int) -> Held:
        """Sign an entry with a version above all that are held or known, to be put into the store. It is repeated
        before its lifetime ends.

        :raises LocalProtocolError: when this node can't sign, or ``kind`` or ``lifetime_s`` is out of range.
        :raises ValueUnsupported: when ``body`` is too large. :raises BoundExceeded: with too many kinds.
        """
        if not 1 <= len(kind) <= limits.MAX_KIND_CHARS or not kind.isprintable():
            raise LocalProtocolError(f"the kind {kind[:80]!r} is not 1 to {limits.MAX_KIND_CHARS} printable characters")
        if not 1 <= lifetime_s <= limits.MAX_ENTRY_LIFETIME_S:
            raise LocalProtocolError(
                f"a lifetime of {lifetime_s} s is out of range: use 1 to {limits.MAX_ENTRY_LIFETIME_S}"
            )
        if seal is None:
            raise LocalProtocolError(f"{self._node} can't sign entries: give its engine a seal")
        key = (str(self._node), kind)
        before = self._store.get(key)
        version = self._next_version(max(above, 0 if before is None else before.sealed.version))
        draft = Entry(self._node, kind, version, lifetime_s, body, b"", b"")
        credential, signature = seal.sign(entry_statement(draft))
        data = encode_entry(Entry(self._node, kind, version, lifetime_s, body, credential, signature))
        held = Held(seal.sealed(key, version, lifetime_s, seal.fingerprint(draft), data), now, self._node)
        if not self._store.has_room_for(key, held.ends_ns):
            raise BoundExceeded(
                f"{self._node} already has {limits.MAX_KINDS_PER_AUTHOR} kinds of entries of its own, or holds "
                f"{len(self._store)} entries that all expire later: {kind!r} has no place"
            )
        self._plan(OwnEntry(kind, body, lifetime_s, now + lifetime_s * limits.SECOND // _REFRESH_SHARE))
        return held

    def _next_version(self, above: int) -> int:
        """A version above ``above``. When that is of a later life than this one, because this node lost its state after
        its clock was wrong, the node goes on as the life after it."""
        life = incarnation_of_version(above)
        if self._life < life < MAX_INCARNATION:
            self._life = life + 1
            self.first_sequence = first_sequence(self._life)
        return max(first_version(self._life), above + 1)

    def due(self, now: int) -> list[tuple[OwnEntry, int]]:
        """The entries to author again now, each with a version to exceed. One that can't be authored is due again after
        a while."""
        due = [own for own in self._own.values() if now >= own.refresh_ns]
        for own in due:
            self._plan(own._replace(refresh_ns=now + _RETRY_NS))
        return [(own, self._outruns.get(own.kind, (0, 0))[0]) for own in due]

    def try_later(self, kind: str, body: bytes, lifetime_s: int, now: int) -> None:
        """Author after a while what can't be authored now. What was said of that kind before is not repeated."""
        self.failed += 1
        self._plan(OwnEntry(kind, body, lifetime_s, now + _RETRY_NS))

    def sign_again(self, now: int) -> None:
        """Have all of them signed again at once."""
        for own in list(self._own.values()):
            self._plan(own._replace(refresh_ns=now))

    def outrun(self, kind: str, version: int, now: int) -> bool:
        """A neighbour sent a newer entry of ours. It is from before a restart with lost state, or another node has our
        key. Two such nodes would answer each other for ever at the cost of the whole mesh, so each answer waits longer
        than the last. Returns whether it is not the first time."""
        above, pause_ns = self._outruns.get(kind, (0, 0))
        self._outruns[kind] = max(above, version), min(max(2 * pause_ns, limits.SECOND), _LONGEST_OUTRUN_NS)
        own = self._own[kind]
        self._plan(own._replace(refresh_ns=min(own.refresh_ns, now + pause_ns)))
        return pause_ns > 0

    def _plan(self, own: OwnEntry) -> None:
        self._own[own.kind] = own
        self.due_ns = min(planned.refresh_ns for planned in self._own.values())
