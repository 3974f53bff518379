"""What is sealed and signed in the frames of carried batches, and the body of the entry that publishes a relay's key.

:mod:`protocols.records.carrying.sealed` has the bytes that signatures cover, and the orders of trust.
"""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Id

RELAY_KEY_KIND: Final = "relay-key"
"""The kind of the entries whose body is :class:`RelayKey`."""
SUITE: Final = 1
"""HPKE (RFC 9180) in its base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305."""

KeyId = Annotated[bytes, Meta(min_length=limits.SEALING_KEY_ID_BYTES, max_length=limits.SEALING_KEY_ID_BYTES)]
SealedId = Annotated[bytes, Meta(min_length=limits.SEALED_ID_BYTES, max_length=limits.SEALED_ID_BYTES)]


class RelayKey(Struct, frozen=True, array_like=True, gc=False):
    """The body of an entry of kind ``relay-key``: to which key its author, a relay, wants batches sealed."""

    suite: Count
    """``SUITE``, or one that a newer version adds: such a key is of no use here."""
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """An X25519 public key."""
    zstd: bool
    """Whether what is sealed may be compressed with Zstandard."""


class Carriage(Struct, frozen=True, array_like=True, gc=False):
    """What is sealed: a batch, and what proves that its node made it for this relay."""

    batch: bytes
    """The frame :class:`~protocols.wire.records.Batch`."""
    certificate: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_CERTIFICATE_BYTES)]
    """That of the node, in DER."""
    signature: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_SIGNATURE_BYTES)]


class SignedReply(Struct, frozen=True, array_like=True, gc=False):
    """What a relay says of a sealed batch, so that its node can check it whoever brings it."""

    mesh: Id
    relay: Id
    node: Id
    """The node that made the batch."""
    sealed: SealedId
    """The batch that it is about."""
    answer: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_REPLY_BYTES)]
    """The frame :class:`~protocols.wire.records.Acknowledgement` or :class:`~protocols.wire.records.RelayRefusal`."""
    certificate: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_CERTIFICATE_BYTES)]
    """That of the relay, in DER."""
    signature: Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_SIGNATURE_BYTES)]
