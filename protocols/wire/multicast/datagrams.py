"""The layout of a multicast datagram.

Anybody on the radio can record, repeat and make datagrams, so nothing in one is believed before
:mod:`protocols.multicast.hearing` has checked it. A datagram is a head, which everybody can read, and a sealed body::

    version  1 byte    1
    key      8 bytes   which key of which sender, see SenderKey
    counter  4 bytes   it grows with each datagram of a key, and with the key it makes the nonce
    body     AES-128-GCM, with the head as associated data, and 16 bytes of tag:
        guarded    4 bytes  how many guarded frames the sender has sent in this life, this one included
        is_guarded 1 byte   1: the frame is guarded, and that is its number
        signature  1 byte for its length, and the ECDSA signature of the sender (P-256, SHA-256, ASN.1 DER)
        frame      a Readings or SignedReadings frame as on a link; empty: it only says that the sender lives

The signature is of ``DATAGRAM_CONTEXT``, the head, guarded, is_guarded and the frame. Numbers are big-endian.
"""

import struct
from typing import Final, NamedTuple

from protocols.base import limits

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">B8sI")
HEAD_BYTES: Final = _HEAD.size
TAG_BYTES: Final = 16
_BODY: Final = struct.Struct(">IBB")
DATAGRAM_CONTEXT: Final = b"mesh multicast datagram 1\0"
"""What a signature of a datagram begins with, so that it is one of nothing else."""
MAX_COUNTER: Final = (1 << 32) - 1


class Head(NamedTuple):
    """The part of a datagram that everybody can read."""

    key: bytes
    counter: int


class Body(NamedTuple):
    """The part that only holders of the key can read."""

    guarded: int
    is_guarded: bool
    signature: bytes
    frame: bytes


def encode_head(key: bytes, counter: int) -> bytes:
    """The first bytes of a datagram."""
    return _HEAD.pack(_VERSION, key, counter)


def untrusted_head(datagram: bytes) -> Head | None:
    """The head of a datagram; None: it is too short, too long, or of another version."""
    if not HEAD_BYTES + TAG_BYTES <= len(datagram) <= limits.MAX_DATAGRAM_BYTES:
        return None
    version, key, counter = _HEAD.unpack_from(datagram)
    return Head(key, counter) if version == _VERSION else None


def encode_body(guarded: int, is_guarded: bool, signature: bytes, frame: bytes) -> bytes:
    """The body of a datagram before it is sealed."""
    return _BODY.pack(guarded, is_guarded, len(signature)) + signature + frame


def untrusted_body(body: bytes) -> Body | None:
    """The body of a datagram that was opened; None: it is malformed."""
    if len(body) < _BODY.size:
        return None
    guarded, is_guarded, size_bytes = _BODY.unpack_from(body)
    end = _BODY.size + size_bytes
    if len(body) < end or is_guarded > 1:
        return None
    return Body(guarded, bool(is_guarded), body[_BODY.size : end], body[end:])


def datagram_statement(head: bytes, guarded: int, is_guarded: bool, frame: bytes) -> bytes:
    """What the sender signs."""
    return b"".join((DATAGRAM_CONTEXT, head, _BODY.pack(guarded, is_guarded, 0), frame))


def nonce_of(counter: int) -> bytes:
    """The nonce of a datagram. A key never has two datagrams with one counter."""
    return counter.to_bytes(12)
