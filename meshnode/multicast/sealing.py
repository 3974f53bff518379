"""Seals and checks multicast datagrams with AES-128-GCM and ECDSA on P-256.

A node makes fresh keys in each life, so no nonce is ever used twice with a key. Its signing key stays in this process
and is not that of its certificate: neighbours get the public half on the link that the certificate has proven.
"""

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocols.base import limits
from protocols.multicast.seal import DatagramSeal, OwnKey
from protocols.wire.multicast.datagrams import HEAD_BYTES, Body, untrusted_body

_CURVE: Final = ec.SECP256R1()
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_MOST_KEYS: Final = 4 * limits.MAX_NEIGHBOURS
"""Keys that are ready to use: two of each neighbour, and as many that came since. One that was forgotten costs 60 µs
more."""

_T = TypeVar("_T")


class DatagramSealing:
    """The seals of one node. It is called under the lock of the engine."""

    def __init__(self) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        self._points: dict[bytes, ec.EllipticCurvePublicKey | None] = {}

    def seal(self) -> DatagramSeal:
        """What the engine seals and checks with."""
        return DatagramSeal(_new_key, lambda data: hashlib.sha256(data).digest(), self._close, self._open, self._has)

    def _close(self, secret: bytes, nonce: bytes, head: bytes, body: bytes) -> bytes:
        return _kept(self._ciphers, secret, AESGCM).encrypt(nonce, body, head)

    def _open(self, secret: bytes, nonce: bytes, datagram: bytes) -> Body | None:
        cipher = _kept(self._ciphers, secret, AESGCM)
        try:
            return untrusted_body(cipher.decrypt(nonce, datagram[HEAD_BYTES:], datagram[:HEAD_BYTES]))
        except InvalidTag:
            return None

    def _has(self, public: bytes, statement: bytes, signature: bytes) -> bool:
        point = _kept(self._points, public, _untrusted_point)
        if point is None:
            return False
        try:
            point.verify(signature, statement, _ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True


def _new_key() -> OwnKey:
    private = ec.generate_private_key(_CURVE)
    public = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    secret = AESGCM.generate_key(8 * limits.DATAGRAM_SECRET_BYTES)
    return OwnKey(secret, public, lambda statement: private.sign(statement, _ALGORITHM))


def _untrusted_point(public: bytes) -> ec.EllipticCurvePublicKey | None:
    """None: it is no point of the curve, so nothing is signed by it."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
    except ValueError:
        return None


def _kept(ready: dict[bytes, _T], key: bytes, make: Callable[[bytes], _T]) -> _T:
    found = ready.get(key)
    if found is None:
        if len(ready) >= _MOST_KEYS:
            del ready[next(iter(ready))]
        found = ready[key] = make(key)
    return found
