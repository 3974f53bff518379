"""The authority of a mesh, and the certificates it issues to nodes.

Follows RFC 5280 as far as OpenSSL's strict mode asks, and SPIFFE's X.509-SVID for names. Invariants:

- every key is ECDSA P-256: Mbed TLS refuses Ed25519;
- the authority signs leaves only (``pathlen`` 0) and is named ``spiffe://<mesh>``;
- a leaf has exactly one URI SAN, ``spiffe://<mesh>/<role>/<node-id>``, and the DNS SAN ``mesh.node``;
- a leaf never outlives its authority.

Left out: intermediate authorities and revocation. Short validity does the work of a revocation list until there is one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshnode.identity.inspection import MESH_URI_PREFIX, NodeIdentity, checked_now, fingerprint, mesh_of_authority
from meshnode.identity.pem_files import (
    PRIVATE_MODE,
    PUBLIC_MODE,
    certificate_pem,
    key_pem,
    make_folder,
    read_certificate,
    read_private_key,
    write_new,
    write_together,
)
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import IdentityError
from protocols.base.ids import SERVER_NAME, MeshName, NodeId, PeerIdentity, Role, mesh_name, node_id, spiffe_uri

AUTHORITY_CERTIFICATE: Final = "authority.crt"
AUTHORITY_KEY: Final = "authority.key"
CLOCK_TOLERANCE: Final = timedelta(hours=1)
"""A certificate is valid from this long before it is made, because a vehicle's clock may be behind the authority's."""
MAX_VALID_DAYS: Final = 100 * 366
"""A certificate that outlives its vehicle is a typing error, and RFC 5280 ends with the year 9999."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority of one mesh, on disk."""

    mesh: MeshName
    certificate: Path
    key: Path
    not_after: datetime
    fingerprint: str
    """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""


def create_mesh(folder: Path, mesh: str, *, valid_days: float = 3650, now: datetime | None = None) -> Authority:
    """Make a new mesh: ``authority.crt``, and ``authority.key`` with mode 0600, in ``folder`` (made if it is missing).

    Whoever has the key can make nodes of this mesh: never copy it to a node.

    :raises IdentityError: the folder already holds an authority, or can't be written.
    :raises InvalidName: ``mesh`` is not a lower-case DNS label.
    """
    name = mesh_name(mesh)
    now = checked_now(now)
    for path in (folder / AUTHORITY_KEY, folder / AUTHORITY_CERTIFICATE):
        if path.exists():
            raise IdentityError(
                f"{path} exists already: a new authority would lock out every node of the old one. "
                "Choose another folder, or issue nodes from this one with 'meshnode mesh issue'"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _common_name(name)
    not_after = _end(now, valid_days)
    own_key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), now - CLOCK_TOLERANCE, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(own_key_id, critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(MESH_URI_PREFIX + name)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    make_folder(folder, 0o700)
    write_new(folder / AUTHORITY_KEY, key_pem(key), PRIVATE_MODE)
    write_new(folder / AUTHORITY_CERTIFICATE, certificate_pem(certificate), PUBLIC_MODE)
    return Authority(
        mesh=name,
        certificate=folder / AUTHORITY_CERTIFICATE,
        key=folder / AUTHORITY_KEY,
        not_after=not_after,
        fingerprint=fingerprint(certificate),
    )


def issue(
    authority_folder: Path,
    role: Role | str,
    node: str,
    out_folder: Path,
    *,
    valid_days: float = 30,
    now: datetime | None = None,
) -> NodeIdentity:
    """Make the credentials of one node: ``<node>.crt``, ``<node>.key`` (mode 0600) and ``authority.crt``.

    Issuing again for the same node gives it a new key and replaces the files. The certificate ends with its authority
    if that is sooner than ``valid_days``.

    :raises IdentityError: the authority can't be used or has expired, ``out_folder`` belongs to another mesh or can't
        be written, ``role`` is unknown, or ``node`` is ``authority``, whose files have that name.
    :raises InvalidName: ``node`` is not a lower-case DNS label.
    """
    name = node_id(node)
    now = checked_now(now)
    try:
        role = Role(role)
    except ValueError as error:
        raise IdentityError(f"role {role!r} is unknown: use one of {', '.join(Role)}") from error
    if f"{name}.key" == AUTHORITY_KEY:
        raise IdentityError("node id 'authority' would overwrite the files of the authority: choose another id")
    mesh, issuer, issuer_key = _load_authority(authority_folder, now)
    certificate_path, key_path = out_folder / f"{name}.crt", out_folder / f"{name}.key"
    anchor_path = out_folder / AUTHORITY_CERTIFICATE
    if anchor_path.exists() and read_certificate(anchor_path, "authority certificate") != issuer:
        raise IdentityError(
            f"{anchor_path} is of another authority than {authority_folder / AUTHORITY_CERTIFICATE}: "
            "nodes in that folder would stop trusting their mesh. Choose another folder"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    not_after = min(_end(now, valid_days), issuer.not_valid_after_utc)
    not_before = max(now - CLOCK_TOLERANCE, issuer.not_valid_before_utc)
    names = [
        x509.DNSName(SERVER_NAME),
        x509.UniformResourceIdentifier(spiffe_uri(mesh, role, name)),
    ]
    issuer_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_common_name(name), issuer.subject, key.public_key(), not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    make_folder(out_folder, 0o755)
    files = [
        (key_path, key_pem(key), PRIVATE_MODE),
        (certificate_path, certificate_pem(certificate), PUBLIC_MODE),
    ]
    if not anchor_path.exists():
        files.append((anchor_path, certificate_pem(issuer), PUBLIC_MODE))
    write_together(files)
    return NodeIdentity(
        peer=PeerIdentity(mesh, role, name),
        credentials=CredentialFiles(certificate=certificate_path, key=key_path, authority=anchor_path),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=certificate.serial_number,
        fingerprint=fingerprint(certificate),
    )


def _load_authority(folder: Path, now: datetime) -> tuple[MeshName, x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_path, key_path = folder / AUTHORITY_CERTIFICATE, folder / AUTHORITY_KEY
    certificate = read_certificate(certificate_path, "authority certificate")
    key = read_private_key(key_path, "authority key")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise IdentityError(
            f"authority key {key_path} is not the key of {certificate_path}: "
            "put back the pair that 'meshnode mesh init' wrote"
        )
    if now > certificate.not_valid_after_utc:
        raise IdentityError(
            f"authority {certificate_path} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
            "make a new mesh with 'meshnode mesh init' and issue its nodes again"
        )
    mesh = mesh_of_authority(certificate)
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        mesh = None
    if mesh is None:
        raise IdentityError(
            f"authority {certificate_path} names no mesh (URI SAN spiffe://<mesh>) or has no key identifier: "
            "make it with 'meshnode mesh init'"
        )
    return mesh, certificate, key


def _common_name(text: MeshName | NodeId) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _end(now: datetime, valid_days: float) -> datetime:
    if not 0 < valid_days <= MAX_VALID_DAYS:
        raise IdentityError(
            f"a validity of {valid_days} days is out of range: use more than 0 and at most {MAX_VALID_DAYS}"
        )
    return (now + timedelta(days=valid_days)).replace(microsecond=0)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before.astimezone(UTC))
        .not_valid_after(not_after.astimezone(UTC))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
