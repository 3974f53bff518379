"""Seals bytes to the key of a relay, so that whoever carries them can't read them.

It is HPKE (RFC 9180) in its base mode, with X25519, HKDF-SHA256 and ChaCha20-Poly1305. The base mode proves nothing
about who sealed: what is sealed is signed. Before it is sealed, it is compressed with Zstandard, if both ends have the
library and it helps. The first byte says so.

Invariant: opening costs at most ``MAX_OPEN_BYTES`` of memory, whatever was sealed.
"""

import os
from pathlib import Path
from types import ModuleType
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

from meshnode.identity.private_files import narrow, write_private
from meshnode.identity.signatures import sha256
from protocols.base.errors import IdentityError, RemoteProtocolError
from protocols.base.limits import MAX_EXCHANGE_BYTES, SEALED_ID_BYTES, SEALING_KEY_ID_BYTES

MAX_OPEN_BYTES: Final = MAX_EXCHANGE_BYTES + 8 * 1024
"""The largest content of a seal, which is a batch and its certificate."""
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_PLAIN: Final = b"\0"
_ZSTD: Final = b"\1"
_LEVEL: Final = 3
_MAX_KEY_FILE_BYTES: Final = 4_096


def key_id(public_key: bytes) -> bytes:
    """What names a sealing key."""
    return sha256(public_key)[:SEALING_KEY_ID_BYTES]


def sealed_id(sealed: bytes) -> bytes:
    """What names sealed bytes."""
    return sha256(sealed)[:SEALED_ID_BYTES]


def can_compress() -> bool:
    """Whether the library Zstandard is installed."""
    return _zstandard() is not None


def seal(content: bytes, public_key: bytes, info: bytes, *, compressed: bool) -> bytes:
    """Seal bytes to an X25519 key. ``compressed``: whether they may be compressed before."""
    packed = _PLAIN + content
    library = _zstandard() if compressed else None
    if library is not None:
        smaller = library.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(content)
        if len(smaller) < len(content):
            packed = _ZSTD + smaller
    sealed: bytes = _SUITE.encrypt(packed, X25519PublicKey.from_public_bytes(public_key), info)
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
            packed: bytes = _SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise RemoteProtocolError("the seal does not open with this key, mesh and node") from error
        kind, content = packed[:1], packed[1:]
        if kind == _PLAIN:
            return content
        if kind == _ZSTD:
            return _expanded_untrusted(content)
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


def _expanded_untrusted(content: bytes) -> bytes:
    library = _zstandard()
    if library is None:
        raise RemoteProtocolError("what was sealed is compressed, and zstandard is not installed here")
    try:
        told = library.get_frame_parameters(content).content_size
        if told > MAX_OPEN_BYTES:  # also when the frame does not tell, which is a huge number
            raise RemoteProtocolError(
                f"what was sealed would have {told} bytes, and at most {MAX_OPEN_BYTES} are taken"
            )
        expanded: bytes = library.ZstdDecompressor(max_window_size=1 << 21).decompress(
            content, max_output_size=MAX_OPEN_BYTES, allow_extra_data=False
        )
    except (library.ZstdError, ValueError, MemoryError) as error:
        raise RemoteProtocolError(f"what was sealed is badly compressed: {str(error)[:100]}") from error
    return expanded


def _zstandard() -> ModuleType | None:
    try:
        import zstandard as library
    except ImportError:
        return None
    return library
