"""The bytes of gossip entries, of addresses in them, and of fingerprints.

There is one way to encode an entry. Its fingerprint is that of its statement, so that neither other bytes nor another
signature of the same statement make another entry of it.
"""

from struct import pack, unpack
from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError, ValueUnsupported
from protocols.wire.codec import decode_untrusted, encode
from protocols.wire.fields import check_untrusted_id
from protocols.wire.gossip import Entry, InboxAddress

_ENTRY_DOMAIN: Final = b"meshnode entry 1\0"
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_address_decoder = msgspec.msgpack.Decoder(InboxAddress)


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry as it travels and is fingerprinted.

    :raises ValueUnsupported: when it is larger than ``MAX_ENTRY_BYTES``.
    """
    data = encode(entry)
    if len(data) > limits.MAX_ENTRY_BYTES:
        raise ValueUnsupported(
            f"the entry {entry.kind!r} takes {len(data)} bytes with its certificate and signature, and "
            f"{limits.MAX_ENTRY_BYTES} are allowed: shorten its body of {len(entry.body)}"
        )
    return data


def entry_statement(entry: Entry) -> bytes:
    """The bytes that the signature of an entry covers. Their prefix makes sure that no signature made for anything
    else, such as a TLS handshake with the same key, can pass for one."""
    return _ENTRY_DOMAIN + encode((entry.author, entry.kind, entry.version, entry.lifetime_s, entry.body))


def decode_untrusted_entry(data: bytes) -> Entry:
    """Parse an entry. Its signature is not checked here.

    :raises RemoteProtocolError: for anything that is not one, or is not encoded as :func:`encode_entry` does it. A
        carrier could otherwise make other bytes of what the author signed.
    """
    entry = decode_untrusted(_entry_decoder, data)
    check_untrusted_id(entry.author)
    if encode(entry) != data:
        raise RemoteProtocolError("an entry is not in its shortest form, or has more than its fields")
    if not entry.kind.isprintable():
        raise RemoteProtocolError("the kind of an entry is not printable")
    return entry


def encode_address(address: InboxAddress) -> bytes:
    """Encode the body of an entry of kind ``address``."""
    return encode(address)


def decode_untrusted_address(body: bytes) -> InboxAddress:
    """Parse the body of an entry of kind ``address``. :raises RemoteProtocolError: for anything that is not one."""
    return decode_untrusted(_address_decoder, body)


def encode_fingerprints(fingerprints: list[int]) -> bytes:
    """Encode unsigned 64-bit numbers as frames of gossip carry them."""
    return pack(f"<{len(fingerprints)}Q", *fingerprints)


def decode_fingerprints(data: bytes) -> tuple[int, ...]:
    """Decode what :func:`encode_fingerprints` made, from a frame that was checked."""
    return unpack(f"<{len(data) // 8}Q", data)
