"""The certificates that gossip has spread: each node's travels in the entry with its address."""

from typing import Final

from protocols.base.ids import NodeId
from protocols.base.sequences import incarnation_of_version
from protocols.gossip.store import EntryStore
from protocols.wire.entries import decode_untrusted_entry

ADDRESS: Final = "address"
"""The kind of entry that says where a node is."""


def certificate_of(store: EntryStore, author: NodeId) -> tuple[bytes, int] | None:
    """The certificate (DER) in the address of a node that is held, and the incarnation in which the node signed it;
    None: no address is held. Its signature was checked before it was put into the store."""
    held = store.get((author, ADDRESS))
    if held is None:
        return None
    return decode_untrusted_entry(held.sealed.data).credential, incarnation_of_version(held.sealed.version)
