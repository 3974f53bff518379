"""What a gossip entry is here: signed, held, seen, kept over a restart."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.wire.entries import decode_untrusted_entry
from protocols.wire.gossip import Entry

EntryKey = tuple[str, str]
"""(author, kind)"""


class Sealed(Struct, frozen=True, gc=False):
    """An entry as it is kept: its bytes and what is asked of it often. The same for every node that holds it."""

    key: EntryKey
    version: int
    lifetime_ns: int
    fingerprint: int
    data: bytes
    """MessagePack of :class:`~protocols.wire.gossip.Entry`."""


def _itself(sealed: Sealed) -> Sealed:
    return sealed


class Seal(Struct, frozen=True):
    """How entries are signed and checked: what a machine may not do itself."""

    sign: Callable[[bytes], tuple[bytes, bytes]]
    """Statement to (credential, signature); see ``protocols.wire.entries.entry_statement``."""
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
