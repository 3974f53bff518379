"""Seals bytes to the key of a relay, so that whoever carries them can't read them.

It is HPKE (RFC 9180) in its base mode, with X25519, HKDF-SHA256 and ChaCha20-Poly1305. The base mode proves nothing
about who sealed: what is sealed is signed. Before it is sealed, it is compressed with Zstandard, if both ends have the
library and it helps. The first byte says so.

Invariant: opening costs at most ``MAX_UNPACKED_BYTES`` of memory, whatever was sealed.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from meshnode.identity.packing import packed, unpacked_untrusted
from meshnode.identity.private_files import narrow, write_private
from meshnode.identity.signatures import sha256
from protocols.base.errors import IdentityError, RemoteProtocolError
from protocols.base.limits import SEALED_ID_BYTES, SEALING_KEY_ID_BYTES

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_PLAIN: Final = b"\0"
_ZSTD: Final = b"\1"
_MAX_KEY_FILE_BYTES: Final = 4_096


def key_id(public_key: bytes) -> bytes:
    """What names a sealing key."""
    return sha256(public_key)[:SEALING_KEY_ID_BYTES]


def sealed_id(sealed: bytes) -> bytes:
    """What names sealed bytes."""
    return sha256(sealed)[:SEALED_ID_BYTES]


def seal(content: bytes, public_key: bytes, info: bytes, *, compressed: bool) -> bytes:
    """Seal bytes to an X25519 key. ``compressed``: whether they may be compressed before."""
    smaller = packed(content) if compressed else None
    inside = _PLAIN + content if smaller is None else _ZSTD + smaller
    sealed: bytes = _SUITE.encrypt(inside, X25519PublicKey.from_public_bytes(public_key), info)
    return sealed


class SealingKey:
    """The key of a relay that opens what was sealed to it."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public_key: Final = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id: Final = key_id(self.public_key)

    def open_untrusted(self, sealed: bytes, info: bytes) -> bytes:
        """What was sealed. :raises RemoteProtocolError: it was not sealed to this key with this info, or is too
        large."""
        try:
            inside: bytes = _SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise RemoteProtocolError("the seal does not open with this key, mesh and node") from error
        kind, content = inside[:1], inside[1:]
        if kind == _PLAIN:
            return content
        if kind == _ZSTD:
            return unpacked_untrusted(content)
        raise RemoteProtocolError("what was sealed is packed in an unknown way")


def read_or_make_sealing_key(path: Path) -> SealingKey:
    """The key in a file, which is made when there is none, for its owner alone.

    :raises IdentityError: the file can't be read or written, or holds no such key.
    """
    try:
        narrow(path)
        with path.open("rb") as file:
            key = load_pem_private_key(file.read(_MAX_KEY_FILE_BYTES), None)
    except FileNotFoundError:
        return _made(path)
    except OSError as error:
        raise IdentityError(f"the sealing key {path} can't be read ({error.strerror}): correct its mode") from error
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} holds no private key: remove it, and a new sealing key is made") from error
    if not isinstance(key, X25519PrivateKey):
        raise IdentityError(f"{path} holds a key of another kind: remove it, and a new sealing key is made")
    return SealingKey(key)


def _made(path: Path) -> SealingKey:
    key = X25519PrivateKey.generate()
    try:
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        raise IdentityError(
            f"the sealing key {path} can't be made ({os.strerror(error.errno or 0)}): set [identity] sealing_key to a "
            "file that can be written"
        ) from error
    return SealingKey(key)
