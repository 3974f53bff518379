"""Signs this node's gossip entries and readings, and checks those of others, by the certificates of the mesh.

Order of trust: the authority's certificate, read from this node's own files, signs the author's, which travels in the
entry; its URI SAN names the author; its key makes the signature. An entry that fails any of this is not trusted. A
reading that was passed on is checked by the certificate in its author's entry, which it names by a hash.

A certificate is checked once and then remembered. Its validity period is checked each time, by the wall clock.

An ECDSA signature (r, s) has a twin (r, n - s), which anybody can compute. Only the one with the lower s is made and
accepted here, so that nobody can make a second signature of a statement out of the first.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from meshnode.identity.inspection import identity_from_untrusted_names
from meshnode.identity.pem_files import read_certificate, read_private_key
from meshnode.links.transport import CredentialFiles
from protocols.access import LINK_ROLES
from protocols.base import limits
from protocols.base.errors import IdentityError, InvalidName
from protocols.base.ids import MeshName, NodeId, Role
from protocols.gossip.entries import Seal
from protocols.readings.signing.seal import ReadingSeal
from protocols.wire.entries import entry_statement
from protocols.wire.gossip import Entry

_MAX_AUTHORS: Final = 1_024
"""Certificates remembered: a kilobyte each. One that was forgotten costs 100 µs more."""
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_GROUP_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order n of P-256 (SEC 2, section 2.4.2)."""


@dataclass(frozen=True, slots=True)
class _Author:
    node: NodeId
    role: Role
    certificate_id: bytes
    key: ec.EllipticCurvePublicKey
    not_before_utc_ns: int
    not_after_utc_ns: int


@dataclass(frozen=True, slots=True)
class _Own:
    """The files of this node. A renewal replaces all of them at once."""

    certificate: bytes
    certificate_id: bytes
    key: ec.EllipticCurvePrivateKey
    authority: x509.Certificate


class Notary:
    """Signs and checks the entries of one node. Methods may be called from any thread."""

    def __init__(self, credentials: CredentialFiles, mesh: MeshName) -> None:
        """:raises IdentityError: when a file can't be read."""
        self._mesh = mesh
        self._own = _read(credentials)
        self._authors: dict[bytes, _Author] = {}

    def seal(self) -> Seal:
        """Signing, checking and hashing, as the engine takes them."""
        return Seal(
            self.sign, self.verify, lambda data: hashlib.sha256(data).digest(), is_current=self.is_current
        )  # fmt: skip

    def reading_seal(self) -> ReadingSeal:
        """Signing and checking readings, as the engine takes them."""
        return ReadingSeal(self.sign_reading, self.role, self.has_signed)

    def renew(self, credentials: CredentialFiles) -> bool:
        """Sign with new files from now on. Returns whether the authority is another one, so that entries that were
        checked before have to be checked again. :raises IdentityError: when a file can't be read."""
        before, self._own = self._own, _read(credentials)
        self._authors = {}
        return before.authority != self._own.authority

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        """The certificate of this node (DER), and its signature (ASN.1 DER, low s) of a statement."""
        own = self._own
        r, s = decode_dss_signature(own.key.sign(statement, _ALGORITHM))
        return own.certificate, encode_dss_signature(r, min(s, _GROUP_ORDER - s))

    def verify(self, entry: Entry) -> bool:
        """Whether the author named in the entry is one of this mesh and signed it, in the only accepted form."""
        author = self._author(entry.credential)
        if author is None or author.node != entry.author:
            return False
        try:
            r, s = decode_dss_signature(entry.signature)
            if s > _GROUP_ORDER // 2 or encode_dss_signature(r, s) != entry.signature:
                return False
            author.key.verify(entry.signature, entry_statement(entry), _ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True

    def is_current(self, entry: Entry) -> bool:
        """Whether the certificate in an entry that was verified is valid now."""
        author = self._author(entry.credential)
        return author is not None and author.not_before_utc_ns <= time.time_ns() <= author.not_after_utc_ns

    def sign_reading(self, statement: bytes) -> tuple[bytes, bytes]:
        """The id of the certificate of this node, and its signature (ASN.1 DER) of a statement."""
        own = self._own
        return own.certificate_id, own.key.sign(statement, _ALGORITHM)

    def role(self, certificate: bytes, node: NodeId, certificate_id: bytes) -> Role | None:
        """See :class:`~protocols.readings.signing.seal.ReadingSeal`."""
        author = self._author(certificate)
        if author is None or author.node != node or author.certificate_id != certificate_id:
            return None
        if author.role not in LINK_ROLES or not author.not_before_utc_ns <= time.time_ns() <= author.not_after_utc_ns:
            return None
        return author.role

    def has_signed(self, certificate: bytes, statement: bytes, signature: bytes) -> bool:
        """See :class:`~protocols.readings.signing.seal.ReadingSeal`."""
        author = self._author(certificate)
        if author is None:
            return False
        try:
            author.key.verify(signature, statement, _ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _author(self, certificate: bytes) -> _Author | None:
        authors = self._authors
        author = authors.get(certificate)
        if author is None:
            author = _untrusted_author(certificate, self._own.authority, self._mesh)
            if author is not None:  # others are free to make, and would push these out
                if len(authors) >= _MAX_AUTHORS:
                    del authors[next(iter(authors))]
                authors[certificate] = author
        return author


def _read(credentials: CredentialFiles) -> _Own:
    key = read_private_key(credentials.key, "key file")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"key file {credentials.key} is not ECDSA P-256: issue it again with 'meshnode mesh issue'")
    certificate = read_certificate(credentials.certificate, "certificate")
    authority = read_certificate(credentials.authority, "authority certificate")
    data = certificate.public_bytes(Encoding.DER)
    return _Own(data, _id_of(data), key, authority)


def _id_of(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()[: limits.CERTIFICATE_ID_BYTES]


def _untrusted_author(data: bytes, authority: x509.Certificate, mesh: MeshName) -> _Author | None:
    """The author that a certificate in an entry names; None when it names nobody of this mesh."""
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = identity_from_untrusted_names(names.get_values_for_type(x509.UniformResourceIdentifier))
        key = certificate.public_key()
    except (
        ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, InvalidName,
        x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion,
    ):  # fmt: skip
        return None
    if identity.mesh != mesh or not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    return _Author(
        identity.node, identity.role, _id_of(data), key, int(begins.timestamp()) * limits.SECOND,
        int(ends.timestamp()) * limits.SECOND,
    )  # fmt: skip
