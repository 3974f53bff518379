"""Frames of gossip, and the signed entries that it spreads."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.wire.fields import U16, Count, Id, Text
from protocols.wire.frame import Frame, SmallFrame


class Entry(Struct, frozen=True, array_like=True, gc=False):
    """Something that a node says to all others, signed by it. It travels as the bytes of its MessagePack array, in the
    shortest form and with these seven fields only."""

    author: Id
    kind: Annotated[str, Meta(min_length=1, max_length=limits.MAX_KIND_CHARS)]
    """``address``, or a word that a newer version adds. Entries of unknown kinds are passed on too."""
    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    """It grows with each entry of ``(author, kind)``, over restarts too."""
    lifetime_s: Annotated[int, Meta(ge=1, le=limits.MAX_ENTRY_LIFETIME_S)]
    """The entry is forgotten this long after it was signed."""
    body: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]
    credential: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]
    """The author's certificate, DER."""
    signature: Annotated[bytes, Meta(max_length=limits.MAX_ENTRY_BYTES)]


class InboxAddress(Struct, frozen=True, array_like=True, gc=False):
    """The body of an entry of kind ``address``: where the author's inbox is."""

    role: Text
    port: U16
    hosts: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_ADVERT_ADDRESSES)]
    capabilities: Annotated[tuple[Text, ...], Meta(max_length=limits.MAX_OFFERS)] = ()
    """Names of models that the author computes for others, as many as fit."""


class Carried(Struct, frozen=True, array_like=True, gc=False):
    """An entry on its way."""

    age_ms: Count
    """Time since it was signed, as far as the sender knows. No clocks need to agree."""
    entry: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_ENTRY_BYTES)]
    """The bytes of an :class:`Entry`."""


Fingerprints = Annotated[bytes, Meta(max_length=8 * limits.MAX_FINGERPRINTS_PER_FRAME)]
"""Eight bytes each, little-endian."""


class GossipDigest(SmallFrame, frozen=True, array_like=True, gc=False, tag=11):
    """A summary of what the sender holds. It is a beacon, or with ``buckets`` the start of a comparison."""

    root: Count
    """The exclusive or of the fingerprints of all entries."""
    entries: Count
    buckets: Annotated[bytes, Meta(max_length=8 * limits.ENTRY_BUCKETS)] = b""
    """The same number for each bucket; empty in a beacon."""

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when it has some of the buckets, and not all or none."""
        if len(self.buckets) not in (0, 8 * limits.ENTRY_BUCKETS):
            raise RemoteProtocolError(
                f"{len(self.buckets)} bytes are not the {limits.ENTRY_BUCKETS} buckets of a digest"
            )


class GossipHave(SmallFrame, frozen=True, array_like=True, gc=False, tag=12):
    """Fingerprints of entries that the sender holds, either news or all that it has in some buckets."""

    covered: Count
    """Bit *n* says that bucket *n* is listed in full. 0: these are news."""
    fingerprints: Fingerprints

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when the bytes are not a whole number of fingerprints."""
        check_untrusted_fingerprints(self.fingerprints)


class GossipPull(SmallFrame, frozen=True, array_like=True, gc=False, tag=13):
    """Asks for the entries with these fingerprints."""

    fingerprints: Annotated[bytes, Meta(max_length=8 * limits.MAX_PULL)]

    def check_untrusted(self) -> None:
        """:raises RemoteProtocolError: when the bytes are not a whole number of fingerprints."""
        check_untrusted_fingerprints(self.fingerprints)


class GossipEntries(SmallFrame, frozen=True, array_like=True, gc=False, tag=14):
    """Entries that were asked for, or are new from the sender itself."""

    entries: Annotated[tuple[Carried, ...], Meta(max_length=limits.MAX_ENTRIES_PER_FRAME)]


GossipFrame = GossipDigest | GossipHave | GossipPull | GossipEntries


FRAMES: Final[tuple[type[Frame], ...]] = (GossipDigest, GossipHave, GossipPull, GossipEntries)


def check_untrusted_fingerprints(data: bytes) -> None:
    """:raises RemoteProtocolError: when the bytes are not a whole number of fingerprints."""
    if len(data) % 8:
        raise RemoteProtocolError(f"{len(data)} bytes are no whole number of fingerprints")
