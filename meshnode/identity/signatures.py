"""Signatures by the keys of a mesh's certificates, and whose they are.

Order of trust: the authority's certificate, read from a file of one's own, signs that of the author; its URI SAN names
the author; its key makes the signature.

An ECDSA signature (r, s) has a twin (r, n - s), which anybody can compute. Where a statement is to have only one
signature, only the one with the lower s is made and accepted.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
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
from protocols.base.errors import IdentityError, InvalidName
from protocols.base.ids import MeshName, NodeId, Role
from protocols.base.limits import CERTIFICATE_ID_BYTES, MAX_CERTIFICATE_BYTES, SECOND

_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_GROUP_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order n of P-256 (SEC 2, section 2.4.2)."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key of this node, with its certificate."""

    certificate: bytes
    """In DER."""
    certificate_id: bytes
    key: ec.EllipticCurvePrivateKey

    def sign(self, statement: bytes) -> bytes:
        """The signature of a statement (ASN.1 DER, low s)."""
        r, s = decode_dss_signature(self.sign_in_any_form(statement))
        return encode_dss_signature(r, min(s, _GROUP_ORDER - s))

    def sign_in_any_form(self, statement: bytes) -> bytes:
        """A signature of a statement (ASN.1 DER), for which it does not matter that it has a twin."""
        return self.key.sign(statement, _ALGORITHM)


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A key of somebody, and the certificate that says whose it is."""

    mesh: MeshName
    node: NodeId
    role: Role
    certificate: bytes
    """In DER."""
    certificate_id: bytes
    key: ec.EllipticCurvePublicKey
    not_before_utc_ns: int
    not_after_utc_ns: int

    def is_valid_at(self, utc_ns: int) -> bool:
        """Whether the certificate is valid at this time."""
        return self.not_before_utc_ns <= utc_ns <= self.not_after_utc_ns

    def has_signed(self, statement: bytes, signature: bytes) -> bool:
        """Whether the key made the signature of a statement, in the form that :meth:`SigningKey.sign` gives it."""
        try:
            r, s = decode_dss_signature(signature)
            if s > _GROUP_ORDER // 2 or encode_dss_signature(r, s) != signature:
                return False
        except ValueError:
            return False
        return self.has_signed_in_any_form(statement, signature)

    def has_signed_in_any_form(self, statement: bytes, signature: bytes) -> bool:
        """Whether the key made the signature of a statement, or its twin."""
        try:
            self.key.verify(signature, statement, _ALGORITHM)
        except (InvalidSignature, ValueError):
            return False
        return True


def read_signing_key(credentials: CredentialFiles) -> SigningKey:
    """The key and the certificate of a node. :raises IdentityError: a file can't be used."""
    key = read_private_key(credentials.key, "key file")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"key file {credentials.key} is not ECDSA P-256: issue it again with 'meshnode mesh issue'")
    data = read_certificate(credentials.certificate, "certificate").public_bytes(Encoding.DER)
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise IdentityError(
            f"certificate {credentials.certificate} has {len(data)} bytes, and at most {MAX_CERTIFICATE_BYTES} can be "
            "shown to others: issue it again with 'meshnode mesh issue'"
        )
    return SigningKey(data, _id_of(data), key)


def read_authority(path: Path) -> x509.Certificate:
    """The certificate of a mesh's authority. :raises IdentityError: it can't be used."""
    return read_certificate(path, "authority certificate")


def untrusted_certified_key(data: bytes, authority: x509.Certificate) -> CertifiedKey:
    """The key in a certificate (DER) that anybody may have sent. Whether it is valid now is for the caller to ask.

    :raises IdentityError: the authority did not issue it, or it names no node; says why.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = identity_from_untrusted_names(names.get_values_for_type(x509.UniformResourceIdentifier))
        key = certificate.public_key()
    except InvalidSignature as error:
        raise IdentityError("the authority did not issue the certificate") from error
    except InvalidName as error:
        raise IdentityError(f"the certificate names no node: {error}") from error
    except (
        ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType, x509.InvalidVersion,
    ) as error:  # fmt: skip
        raise IdentityError(f"the certificate can't be used: {str(error)[:120]}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the certificate has no key of ECDSA P-256")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return CertifiedKey(
        identity.mesh, identity.node, identity.role, data, _id_of(data), key, int(begins.timestamp()) * SECOND,
        int(ends.timestamp()) * SECOND,
    )  # fmt: skip


def sha256(data: bytes) -> bytes:
    """The hash that pure modules are given."""
    return hashlib.sha256(data).digest()


def _id_of(certificate: bytes) -> bytes:
    return sha256(certificate)[:CERTIFICATE_ID_BYTES]
