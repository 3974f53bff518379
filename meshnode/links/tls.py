"""TLS for the express links: contexts with the only settings that are allowed, and what a failed handshake means.

Invariants:
- TLS 1.3 with certificates of the mesh's authority on both sides. No session is ever resumed: each handshake proves the
  certificate again, so that an expired or replaced one is never accepted;
- every failure is counted by kind; the log names a peer that fails again and again once a minute at most;
- the last failures are remembered with their peers. Failures of strangers who dial us don't push out those of peers
  whom we dial.
"""

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from meshnode.links.peer import read_credentials
from meshnode.links.transport import CredentialFiles, FailedLink
from protocols.base.ids import SERVER_NAME
from protocols.base.limits import SECOND

_log = logging.getLogger(__name__)

_LOG_PERIOD_NS = 60 * SECOND
_MAX_TOLD = 64
"""The most lines in one period, so that nobody fills a disk by failing from ever new addresses."""


MAX_REMEMBERED = 64
"""The most failures that are remembered of each direction, by peer and kind."""
UNREACHABLE, REFUSED = "unreachable", "refused"
"""Kinds of failure outside the handshake."""


class FailureKind(StrEnum):
    """The reasons for a failed handshake that statistics count apart."""

    EXPIRED = "expired"
    AUTHORITY = "other_authority"
    NO_CERTIFICATE = "no_certificate"
    NAME = "wrong_name"
    CERTIFICATE = "bad_certificate"
    VERSION = "old_tls"
    NOT_OURS = "not_our_protocol"
    REJECTED = "rejects_ours"
    HUNG_UP = "hung_up"
    MUTE = "mute"
    CROWDED = "crowded_out"
    OTHER = "other"


# X509_V_ERR_* of OpenSSL
_VERIFY = {
    9: (FailureKind.EXPIRED, "its certificate is not valid yet: compare the clocks"),
    10: (FailureKind.EXPIRED, "its certificate has expired: renew it there, or compare the clocks"),
    2: (FailureKind.AUTHORITY, "its certificate was signed by another authority"),
    18: (FailureKind.AUTHORITY, "its certificate was signed by itself and not by the authority of the mesh"),
    19: (FailureKind.AUTHORITY, "its certificate was signed by another authority"),
    20: (FailureKind.AUTHORITY, "its certificate was signed by another authority"),
    21: (FailureKind.AUTHORITY, "its certificate was signed by another authority"),
    7: (FailureKind.AUTHORITY, "its certificate was signed by another authority of the same name"),
    62: (FailureKind.NAME, f"its certificate lacks the name {SERVER_NAME}: issue it with 'mesh issue'"),
}
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (FailureKind.NO_CERTIFICATE, "it showed no certificate"),
    "UNSUPPORTED_PROTOCOL": (FailureKind.VERSION, "it offers an older TLS than 1.3"),
    "WRONG_VERSION_NUMBER": (FailureKind.NOT_OURS, "it does not speak TLS"),
    "HTTP_REQUEST": (FailureKind.NOT_OURS, "it speaks HTTP and not TLS"),
    "HTTPS_PROXY_REQUEST": (FailureKind.NOT_OURS, "it speaks HTTP and not TLS"),
    "TLSV1_ALERT_PROTOCOL_VERSION": (FailureKind.VERSION, "it does not take TLS 1.3"),
    "TLSV1_ALERT_UNKNOWN_CA": (FailureKind.REJECTED, "it does not trust the authority of our certificate"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (FailureKind.REJECTED, "it says that our certificate has expired"),
    "SSLV3_ALERT_BAD_CERTIFICATE": (FailureKind.REJECTED, "it does not take our certificate"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (FailureKind.REJECTED, "it does not take our certificate"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (FailureKind.REJECTED, "it says that our certificate is revoked"),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (FailureKind.REJECTED, "it wants a certificate from us"),
    "TLSV1_ALERT_DECRYPT_ERROR": (
        FailureKind.REJECTED,
        "it could not verify our certificate: is it of another authority of the same name?",
    ),
}


@dataclass(frozen=True, slots=True)
class Contexts:
    """One node's credentials, ready for handshakes of both directions."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    authority: str
    """The PEM text of the authority that they trust."""

    def vouch_for(self, certificate: bytes) -> bool:
        """Whether the authority signed this certificate (DER), which a handshake has proved before. It takes 0.1 ms."""
        leaf = x509.load_der_x509_certificate(certificate)
        for authority in x509.load_pem_x509_certificates(self.authority.encode()):
            try:
                leaf.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
        return False


def contexts(credentials: CredentialFiles) -> Contexts:
    """The contexts of these credentials. :raises IdentityError: they can't be used; names the file and the fault."""
    authority = read_credentials(credentials).authority
    server, client = (_context(credentials, side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    return Contexts(server, client, authority)


def explain(error: ssl.SSLError) -> tuple[FailureKind, str]:
    """The meaning of OpenSSL's error, as a kind for statistics and as text for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = f"its certificate is refused ({error.verify_message})"
        return _VERIFY.get(error.verify_code, (FailureKind.CERTIFICATE, detail))
    reason = error.reason or "unknown error"
    return _REASONS.get(reason, (FailureKind.OTHER, reason.replace("_", " ").lower()))


def proved(tls: ssl.SSLObject) -> tuple[list[str], int]:
    """The URI names of the certificate that the peer has proved, and its end in nanoseconds since 1970."""
    certificate: Any = tls.getpeercert()
    assert certificate, "a handshake without certificate fails"
    names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return names, _utc_ns(certificate["notAfter"])


@lru_cache(maxsize=256)
def _utc_ns(not_after: str) -> int:
    """When a certificate ends. To parse the time takes 50 µs, and whoever opens pipe after pipe has one certificate."""
    return int(ssl.cert_time_to_seconds(not_after)) * SECOND


class Failures:
    """Counts and logs links that failed, with a bound on the log. It belongs to one thread, except where a method says
    otherwise."""

    def __init__(self, now_ns: Callable[[], int], utc_now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns, self._utc_now_ns = now_ns, utc_now_ns
        self._came: dict[tuple[str, str], FailedLink] = {}
        self._dialled: dict[tuple[str, str], FailedLink] = {}
        self._counts = dict.fromkeys(FailureKind, 0)
        self._told: set[tuple[str, str]] = set()
        self._period_ends_ns = 0

    def note(self, kind: FailureKind, peer: str, why: str, dialled: bool = False) -> None:
        """A handshake with ``peer`` failed."""
        self._counts[kind] += 1
        self.tell(kind, peer, why, dialled)

    def remember(self, about: str, peer: str, why: str, dialled: bool = False) -> None:
        """Remember a failure for :meth:`recent`."""
        links, key = self._dialled if dialled else self._came, (peer, str(about))
        before = links.pop(key, None)
        if len(links) >= MAX_REMEMBERED:
            del links[next(iter(links))]
        links[key] = FailedLink(peer, str(about), why, before.count + 1 if before else 1, self._utc_now_ns())

    def recent(self) -> list[FailedLink]:
        """The remembered failures, the newest one last. Any thread may call it."""
        return sorted([*self._dialled.values(), *self._came.values()], key=lambda link: link.last_utc_ns)

    def tell(self, about: str, peer: str, why: str, dialled: bool = False) -> None:
        """Remember a failure, and log it unless the same was logged about this peer in this period."""
        self.remember(about, peer, why, dialled)
        now_ns = self._now_ns()
        if now_ns >= self._period_ends_ns:
            self._told.clear()
            self._period_ends_ns = now_ns + _LOG_PERIOD_NS
        if (peer, about) in self._told or len(self._told) > _MAX_TOLD:
            return
        self._told.add((peer, about))
        if len(self._told) > _MAX_TOLD:
            _log.warning("too many failed links: further ones are only counted for a minute")
        else:
            _log.warning("no link with %s: %s", peer, why)

    def statistics(self) -> dict[str, int]:
        """The counters by kind, and their sum. Any thread may call it."""
        counts = {f"handshakes_failed_{kind}": count for kind, count in self._counts.items()}
        return {"handshakes_failed": sum(counts.values()), **counts}


def _context(credentials: CredentialFiles, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(credentials.certificate, credentials.key)
    context.load_verify_locations(credentials.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # RFC 5280 as written; Python 3.13 and later do so by default
    context.options |= ssl.OP_NO_TICKET
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context
