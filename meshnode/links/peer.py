"""The parts of a handshake that need no connection: URLs of addresses, names in certificates, and the check that PEM
files fit together.

Invariants: nothing from an advert or a certificate reaches a URL or an identity unchecked. A certificate names a peer
only if exactly one of its alternative names is an identity URI. The link engine ``nng`` reads names without their type
and cut at NUL, so a DNS name that spells an identity counts as one; our authority signs either only for its owner.
"""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshnode.links.transport import Address, CredentialFiles
from protocols.base.errors import IdentityError, InvalidName, TransportError
from protocols.base.ids import MeshName, PeerIdentity, parse_untrusted_spiffe

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")
_MAX_CREDENTIAL_BYTES = 256 * 1024
_SCHEME = "tls+tcp"
_IPV6_PREFIX = 64


@dataclass(frozen=True, slots=True)
class PemCredentials:
    """The text of a node's PEM files, which were checked to fit together."""

    certificate: str
    key: str
    authority: str


def url_of(address: Address) -> str:
    """The URL of an inbox. :raises TransportError: the host can't be part of a URL, or the port is out of range."""
    if not 0 <= address.port <= 65_535:
        raise TransportError(f"port {address.port} is out of range: use 0 to 65535")
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        if not _HOST_NAME.fullmatch(address.host):
            raise TransportError(
                f"host {address.host[:80]!r} is neither an IP address nor a host name: use one, as in '192.0.2.7'"
            ) from None
        return f"{_SCHEME}://{address.host}:{address.port}"
    if ip.version == 6 and ip.scope_id is not None:
        raise TransportError(f"address {address.host[:80]!r} has a scope, which links can't dial: use a global address")
    return f"{_SCHEME}://[{ip}]:{address.port}" if ip.version == 6 else f"{_SCHEME}://{ip}:{address.port}"


def identify(names: Sequence[str], mesh: MeshName, not_after_utc_ns: int = 0) -> tuple[PeerIdentity | None, str]:
    """The identity among the alternative names of a certificate. Without one the text says why."""
    uris = [name for name in names if name.lower().startswith("spiffe:")]
    if len(uris) != 1:
        return (
            None,
            f"its certificate carries {len(uris)} identities, exactly one is needed: issue it with 'mesh issue'",
        )
    try:
        found, role, node = parse_untrusted_spiffe(uris[0])
    except InvalidName as error:
        return None, str(error)
    if found != mesh:
        return None, f"its certificate is of mesh {found!r}, this is mesh {mesh!r}"
    return PeerIdentity(found, role, node, not_after_utc_ns), ""


@lru_cache(maxsize=256)  # a host that opens one connection after the other is parsed once: it takes 20 µs
def plain_host(text: str) -> str:
    """An IP address in its shortest form. An IPv4 address seen through an IPv6 socket becomes IPv4 again."""
    ip = ipaddress.ip_address(text)
    mapped = ip.ipv4_mapped if ip.version == 6 else None
    return str(mapped or ip)


@lru_cache(maxsize=256)
def payer_of(host: str) -> str:
    """Who pays for a connection from an IP address in its shortest form: an IPv4 address for itself, one of IPv6 as the
    /64 that it is in, because whoever has one address there has 2^64 of them (RFC 7934)."""
    return str(ipaddress.ip_network((host, _IPV6_PREFIX), strict=False)) if ":" in host else host


def read_credentials(credentials: CredentialFiles) -> PemCredentials:
    """Read PEM files and check that they fit together, so that a mistake is reported at the start and not by each
    handshake.

    :raises IdentityError: names the file and the fault.
    """
    texts = []
    for path, what in (
        (credentials.certificate, "certificate"),
        (credentials.key, "key"),
        (credentials.authority, "authority"),
    ):
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_CREDENTIAL_BYTES + 1)
            if len(data) > _MAX_CREDENTIAL_BYTES:
                raise IdentityError(
                    f"{what} file {path} is larger than {_MAX_CREDENTIAL_BYTES} bytes: is it a PEM file?"
                )
            text = data.decode("ascii")
        except OSError as error:
            raise IdentityError(
                f"{what} file {path} can't be read ({error.strerror}): issue it with 'mesh issue'"
            ) from error
        except UnicodeDecodeError as error:
            raise IdentityError(f"{what} file {path} is not a PEM file: issue it with 'mesh issue'") from error
        texts.append(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # an encrypted key must fail here and not ask a terminal for its passphrase
        context.load_cert_chain(credentials.certificate, credentials.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise IdentityError(
            f"certificate {credentials.certificate} and key {credentials.key} can't be used together ({error}): "
            "issue both anew with 'mesh issue'"
        ) from error
    try:
        context.load_verify_locations(credentials.authority)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise IdentityError(
            f"authority file {credentials.authority} holds no certificate: copy it from the mesh"
        ) from error
    return PemCredentials(*texts)
