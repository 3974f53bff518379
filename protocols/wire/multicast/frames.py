"""The frames by which neighbours agree on multicast datagrams. They travel on the mutual-TLS link between two."""

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from protocols.base import limits
from protocols.wire.fields import Count
from protocols.wire.frame import Frame, SmallFrame
from protocols.wire.multicast.datagrams import MAX_COUNTER

KeyId = Annotated[bytes, Meta(min_length=limits.DATAGRAM_KEY_ID_BYTES, max_length=limits.DATAGRAM_KEY_ID_BYTES)]


class SenderKey(SmallFrame, frozen=True, array_like=True, gc=False, tag=31):
    """The keys with which the sender's datagrams are opened and checked. Since minor 8."""

    replaces: ClassVar[bool] = True

    key: KeyId
    """The first bytes of the SHA-256 of the sender's id, ``secret`` and ``public``."""
    secret: Annotated[bytes, Meta(min_length=limits.DATAGRAM_SECRET_BYTES, max_length=limits.DATAGRAM_SECRET_BYTES)]
    """Of AES-128-GCM. All to whom the sender gave it can open its datagrams, and close others in its name …"""
    public: Annotated[bytes, Meta(max_length=limits.MAX_DATAGRAM_PUBLIC_BYTES)]
    """… but not sign them: the point of a P-256 key, compressed (SEC 1)."""
    counter: Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
    """No datagram with a smaller counter is for the receiver."""
    guarded: Count
    """How many guarded frames there were so far."""


class Heard(SmallFrame, frozen=True, array_like=True, gc=False, tag=32):
    """Whether the sender hears the receiver's datagrams, and which guarded frames it did not hear. It has all that an
    earlier one had that may still wait. Since minor 8."""

    replaces: ClassVar[bool] = True

    key: KeyId
    hears: bool
    """True: readings may come by datagram alone. False: they have to come on the link."""
    guarded: Count
    """The number of the newest guarded frame that it knows of."""
    missing: Annotated[tuple[Count, ...], Meta(max_length=limits.MAX_DATAGRAMS_MISSING)] = ()
    """Those below that it did not hear."""


FRAMES: Final[tuple[type[Frame], ...]] = (SenderKey, Heard)
