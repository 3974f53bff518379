"""What a node's certificate, key and authority say, and everything that is wrong with them.

Invariant: a set of files without problems is accepted by both TLS stacks in use, Mbed TLS and OpenSSL in strict mode.
``inspect`` reports all problems, ``load_identity`` raises the first; both raise when a file can't be read at all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshnode.identity.pem_files import key_mode_problem, read_certificate, read_private_key
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import ClockImplausible, IdentityError, InvalidName, LocalProtocolError
from protocols.base.ids import SERVER_NAME, MeshName, PeerIdentity, mesh_name, parse_untrusted_spiffe

OLDEST_UTC_S: Final = 1_735_689_600
"""2025-01-01: this software is younger, so a clock that shows an earlier time was never set."""
MESH_URI_PREFIX: Final = "spiffe://"
_REISSUE: Final = "issue it again with 'meshnode mesh issue'"


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """What ``inspect`` found."""

    identity: PeerIdentity | None
    """None when the certificate names nobody of a mesh; one of the problems says why."""
    not_before: datetime
    """In UTC."""
    not_after: datetime
    """In UTC."""
    serial: int
    fingerprint: str
    """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""
    problems: tuple[str, ...]
    """Each says what is wrong, with which file and value, and what to do. The most serious one comes first."""
    clock_problems: tuple[str, ...] = ()
    """Those of them that another time of the clock would solve."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's proven name and the files that prove it."""

    peer: PeerIdentity
    credentials: CredentialFiles
    not_before: datetime
    """In UTC."""
    not_after: datetime
    """In UTC. An open pipe would outlive its certificate, so the owner of pipes closes them at this time."""
    serial: int
    fingerprint: str
    """SHA-256 of the certificate, 64 lower-case hexadecimal digits."""


def load_identity(certificate: Path, key: Path, authority: Path, now: datetime | None = None) -> NodeIdentity:
    """Read and check the credentials of a node.

    :raises ClockImplausible: when all would be well if the clock showed another time.
    :raises IdentityError: the first other problem that ``inspect`` finds.
    """
    now = checked_now(now)
    report = inspect(certificate, key, authority, now)
    for problem in report.problems:
        if problem not in report.clock_problems:
            raise IdentityError(problem)
    if report.problems or now.timestamp() < OLDEST_UTC_S:
        message = "; ".join(report.problems) or f"this host's clock shows {now:%Y-%m-%d %H:%M}: set it"
        is_early = now < report.not_before or now.timestamp() < OLDEST_UTC_S
        raise ClockImplausible(message, f"{certificate} {report.not_before} {report.not_after} {is_early}")
    assert report.identity is not None, "a certificate without identity is a problem"
    return NodeIdentity(
        peer=report.identity,
        credentials=CredentialFiles(certificate=certificate, key=key, authority=authority),
        not_before=report.not_before,
        not_after=report.not_after,
        serial=report.serial,
        fingerprint=report.fingerprint,
    )


def inspect(certificate: Path, key: Path, authority: Path, now: datetime | None = None) -> CertificateReport:
    """Read the three PEM files of a node and report on them. ``now`` must have a time zone; None is
    this moment.

    :raises IdentityError: a file can't be read or is not what it should be; names the file.
    """
    now = checked_now(now)
    leaf = read_certificate(certificate, "certificate")
    anchor = read_certificate(authority, "authority certificate")
    private_key = read_private_key(key, "key file")
    problems: list[str] = []
    identity: PeerIdentity | None = None
    names: x509.SubjectAlternativeName | None = None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = identity_from_untrusted_names(uris)
    except (x509.ExtensionNotFound, ValueError) as error:
        problems.append(f"certificate {certificate} has no readable URI SAN ({error}): {_REISSUE}")
    except InvalidName as error:
        problems.append(f"certificate {certificate} names no node: {error}; {_REISSUE}")
    if identity is not None and (mesh := mesh_of_authority(anchor)) not in (None, identity.mesh):
        problems.append(
            f"certificate {certificate} is for mesh {identity.mesh!r} and authority {authority} is of mesh {mesh!r}: "
            f"copy the authority.crt of {identity.mesh!r}, or {_REISSUE}"
        )
    clock_problems = (
        *_life_problems(certificate, leaf, "certificate", _REISSUE, now),
        *_life_problems(authority, anchor, "authority", "make a new one with 'meshnode mesh init'", now),
    )
    problems += clock_problems
    if leaf.public_key() != private_key.public_key():
        problems.append(
            f"key file {key} does not belong to certificate {certificate}: put back the pair that was issued "
            f"together, or {_REISSUE}"
        )
    problems += _signature_problems(certificate, leaf, authority, anchor)
    problems += _form_problems(certificate, leaf, names)
    if mode_problem := key_mode_problem(key):
        problems.append(mode_problem)
    return CertificateReport(
        identity=identity,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=leaf.serial_number,
        fingerprint=fingerprint(leaf),
        problems=tuple(problems),
        clock_problems=clock_problems,
    )


def identity_from_untrusted_names(names: Iterable[str]) -> PeerIdentity:
    """The identity among the SANs of a certificate, whatever their kinds.

    :raises InvalidName: none of them, more than one, or a wrong one is a ``spiffe://`` URI.
    """
    uris = [name for name in names if name.startswith(MESH_URI_PREFIX)]
    if not uris:
        raise InvalidName("it carries no identity of the form spiffe://<mesh>/<role>/<node-id>")
    if len(uris) > 1:
        raise InvalidName(f"it carries {len(uris)} identities where one is allowed")
    return PeerIdentity(*parse_untrusted_spiffe(uris[0]))


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def checked_now(now: datetime | None) -> datetime:
    """``now`` in UTC without fractions of a second, which certificates can't hold; None: this moment.

    :raises LocalProtocolError: it has no time zone.
    """
    if now is None:
        now = datetime.now(UTC)
    if now.tzinfo is None:
        raise LocalProtocolError(f"time {now} has no time zone: use datetime.now(UTC)")
    return now.astimezone(UTC).replace(microsecond=0)


def mesh_of_authority(anchor: x509.Certificate) -> MeshName | None:
    """The mesh that an authority names in its URI SAN ``spiffe://<mesh>``; None when it names none."""
    try:
        names = anchor.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) == 1 and uris[0].startswith(MESH_URI_PREFIX):
            return mesh_name(uris[0].removeprefix(MESH_URI_PREFIX))
    except (x509.ExtensionNotFound, ValueError, InvalidName):
        pass
    return None


def _life_problems(path: Path, certificate: x509.Certificate, what: str, way_out: str, now: datetime) -> Iterator[str]:
    if now > certificate.not_valid_after_utc:
        yield (
            f"{what} {path} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC and this clock shows "
            f"{now:%Y-%m-%d %H:%M}: {way_out}, or set the clock if it is ahead"
        )
    if now < certificate.not_valid_before_utc:
        yield (
            f"{what} {path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC and this clock "
            f"shows {now:%Y-%m-%d %H:%M}: set the clock, or {way_out}"
        )


def _signature_problems(
    path: Path, leaf: x509.Certificate, anchor_path: Path, anchor: x509.Certificate
) -> Iterator[str]:
    try:
        is_authority = anchor.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    if not is_authority:
        yield f"{anchor_path} is not the certificate of an authority: copy the mesh's authority.crt there"
    try:
        leaf.verify_directly_issued_by(anchor)
    except (InvalidSignature, TypeError, ValueError):
        yield (
            f"certificate {path} was not signed by authority {anchor_path}: copy the authority.crt of the mesh that "
            f"issued it, or {_REISSUE}"
        )


def _form_problems(path: Path, leaf: x509.Certificate, names: x509.SubjectAlternativeName | None) -> Iterator[str]:
    public_key = leaf.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        kind = (
            public_key.curve.name
            if isinstance(public_key, ec.EllipticCurvePublicKey)
            else type(public_key).__name__.removesuffix("PublicKey").lstrip("_")
        )
        yield f"certificate {path} has a key of kind {kind}, and the mesh takes ECDSA P-256 only: {_REISSUE}"
    if names is not None and SERVER_NAME not in names.get_values_for_type(x509.DNSName):
        yield f"certificate {path} lacks the DNS SAN {SERVER_NAME} that every dialer asks for: {_REISSUE}"
    try:
        purposes = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        purposes = set()
    try:
        leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        yield f"certificate {path} has no authority key identifier, so neighbours refuse it: {_REISSUE}"
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= purposes:
        yield f"certificate {path} is not for both server and client use, and a node is both: {_REISSUE}"
