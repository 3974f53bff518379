"""Certificates for tests, made with ``cryptography`` alone, so that tests of links don't need ``meshnode.identity``.

ECDSA P-256 throughout, as in the product: the TLS library behind NNG refuses Ed25519.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshnode.links.transport import CredentialFiles

MESH = "demo"
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a mesh, kept in memory."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def authority(name: str = "mesh-authority") -> Authority:
    """A new authority. Two of the same name do not trust each other all the same."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(name, name, key, days=365)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def credentials(
    folder: Path,
    signer: Authority,
    node: str,
    *,
    role: str = "vehicle",
    mesh: str = MESH,
    trusted: Authority | None = None,
    uris: list[str] | None = None,
    dns: tuple[str, ...] = ("mesh.node",),
    days: int = 30,
    identified: bool = True,
) -> CredentialFiles:
    """Write one node's PEM files into ``folder``.

    ``uris`` replaces the identity; ``days`` below zero gives an expired certificate; ``trusted`` is the authority the
    node itself believes (default: its signer). ``identified``: whether it names the key of its signer, as RFC 5280
    asks.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
    names += [
        x509.UniformResourceIdentifier(uri) for uri in ([f"spiffe://{mesh}/{role}/{node}"] if uris is None else uris)
    ]
    issuer = signer.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    certificate = _builder(node, str(issuer), key, days=days).add_extension(x509.SubjectAlternativeName(names), False)
    if identified:
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        certificate = certificate.add_extension(signed_by, False)
    certificate = certificate.sign(signer.key, hashes.SHA256())
    folder.mkdir(parents=True, exist_ok=True)
    files = CredentialFiles(folder / f"{node}.crt", folder / f"{node}.key", folder / f"{node}.ca")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    files.authority.write_bytes((trusted or signer).pem)
    return files


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 40 * _DAY)
        .not_valid_after(now + days * _DAY)
    )
