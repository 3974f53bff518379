"""The forms of a gossip entry on a node: signed, held in the store, shown to people, kept over a restart."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.machine import HeardEntry
from protocols.wire.entries import decode_untrusted_entry, entry_statement
from protocols.wire.gossip import Entry

EntryKey = tuple[str, str]
"""(author, kind)"""


class Sealed(Struct, frozen=True, gc=False):
    """An entry as it is kept: its bytes, and the fields that are needed often. It is equal on every node that holds
    it."""

    key: EntryKey
    version: int
    lifetime_ns: int
    fingerprint: int
    """That of its statement."""
    data: bytes
    """MessagePack of :class:`~protocols.wire.gossip.Entry`."""


def _itself(sealed: Sealed) -> Sealed:
    return sealed


def _always(entry: Entry) -> bool:
    return True


class Seal(Struct, frozen=True):
    """How entries are signed and checked, which a machine may not do itself."""

    sign: Callable[[bytes], tuple[bytes, bytes]]
    """Signs a statement and returns (credential, signature); see ``protocols.wire.entries.entry_statement``."""
    verify: Callable[[Entry], bool]
    """Whether the credential belongs to this mesh, names the author, and made the signature, whenever that was."""
    hash: Callable[[bytes], bytes]
    """A hash of 8 bytes or more, of which the first 8 are the fingerprint. On real nodes it is SHA-256."""
    share: Callable[[Sealed], Sealed] = _itself
    """Returns an equal object to keep instead, so that thousands of nodes in one process hold an entry only once."""
    is_current: Callable[[Entry], bool] = _always
    """Whether the credential of an entry that was verified is valid now. Clocks differ, so its carrier is not to
    blame."""

    def fingerprint(self, entry: Entry) -> int:
        """The fingerprint of an entry: that of what its author signed."""
        return self.fingerprint_of_bytes(entry_statement(entry))

    def fingerprint_of_bytes(self, data: bytes) -> int:
        """The fingerprint of any bytes."""
        return int.from_bytes(self.hash(data)[:8], "little")

    def sealed(self, key: EntryKey, version: int, lifetime_s: int, fingerprint: int, data: bytes) -> Sealed:
        """An entry to keep. This node must have made or checked its signature."""
        return self.share(Sealed(key, version, lifetime_s * limits.SECOND, fingerprint, data))


class Held(Struct, gc=False):
    """One place in the store."""

    sealed: Sealed
    born_ns: int
    """When it was signed, in monotonic nanoseconds of this node, according to the nodes that carried it."""
    source: NodeId
    """The neighbour it came from, or this node."""

    @property
    def ends_ns(self) -> int:
        """When it expires, in monotonic nanoseconds."""
        return self.born_ns + self.sealed.lifetime_ns


class EntryView(Struct, frozen=True):
    """An entry that the node holds, as people and programs see it."""

    author: NodeId
    kind: str
    version: int
    age_ns: int
    """Time since it was signed."""
    lifetime_s: int
    source: NodeId
    """The neighbour it came from; the node itself for its own."""
    size_bytes: int
    """Its size on the wire."""
    body: bytes


class Stored(NamedTuple):
    """An entry as it is kept on disk over a restart."""

    data: bytes
    age_ns: int
    source: NodeId


def heard_entry(held: Held, now: int) -> HeardEntry:
    """An entry in the store as other machines are told of it."""
    entry = decode_untrusted_entry(held.sealed.data)
    author = NodeId(entry.author)
    age_ns = max(now - held.born_ns, 0)
    return HeardEntry(author, entry.kind, entry.version, age_ns, entry.body, held.source, entry.credential)


def views(stored: Iterable[Stored]) -> list[EntryView]:
    """Entries as people and programs see them, sorted by author and kind. A full store takes 10 ms, so call this
    without a lock."""
    shown = []
    for data, age_ns, source in stored:
        entry = decode_untrusted_entry(data)
        shown.append(EntryView(
            NodeId(entry.author), entry.kind, entry.version, age_ns, entry.lifetime_s, source, len(data), entry.body,
        ))  # fmt: skip
    return sorted(shown, key=lambda view: (view.author, view.kind))
