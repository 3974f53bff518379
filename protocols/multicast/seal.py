"""How datagrams are sealed, signed and checked, which a machine may not do itself."""

from collections.abc import Callable

from msgspec import Struct

from protocols.wire.multicast.datagrams import Body


class OwnKey(Struct, frozen=True):
    """A fresh key of this node."""

    secret: bytes
    """Of AES-128-GCM; see :class:`~protocols.wire.multicast.frames.SenderKey`."""
    public: bytes
    """What :attr:`sign` is checked with."""
    sign: Callable[[bytes], bytes]
    """Signs a statement. The private key never leaves the driver."""


class DatagramSeal(Struct, frozen=True):
    """How datagrams are sealed and checked."""

    new_key: Callable[[], OwnKey]
    """Makes a key of fresh randomness: no life of a node may use the key of another, or nonces would repeat."""
    digest: Callable[[bytes], bytes]
    """SHA-256."""
    close: Callable[[bytes, bytes, bytes, bytes], bytes]
    """``close(secret, nonce, head, body)``: the sealed body."""
    open: Callable[[bytes, bytes, bytes], Body | None]
    """``open(secret, nonce, datagram)``: the body of a datagram; None: its seal is not good, or the body malformed."""
    has_signed: Callable[[bytes, bytes, bytes], bool]
    """``has_signed(public, statement, signature)``: whether the holder of that key has signed a statement."""
