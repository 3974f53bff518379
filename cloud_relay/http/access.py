"""Who may ask the relay over HTTP, and for what: by a token, or by a certificate of the mesh.

A certificate is proved by the TLS handshake of its connection. One of the role ``tool`` is a viewer's; it is an
operator's if the configuration names its id. Nodes and relays have no business here: their certificates are on
computers by the road. A request that shows a token is judged by the token alone.

A connection ends like a link does. No request is answered once its certificate has ended, streams included, and after
about an hour each connection is closed behind an answer, so that the next handshake proves the certificate again.
"""

import logging
import time
from typing import Final

from starlette.requests import Request
from starlette.types import Scope

from cloud_relay.config import CertificateRules
from cloud_relay.http.problems import HttpProblem
from cloud_relay.http.tokens import TokenFile, TokenRole
from meshnode.http.server import CLIENT_CERTIFICATE, ClientCertificate
from protocols.base.errors import InvalidName, StorageError
from protocols.base.ids import MeshName, Role, parse_untrusted_spiffe

MAX_CONNECTION_AGE_S: Final = 3_600.0
"""Of a connection with a certificate: as that of a link which can't see when a certificate ends."""
_BEARER_WANTED: Final = "send 'Authorization: Bearer TOKEN', which 'cloud-relay token create' makes"
_CERTIFICATE_WANTED: Final = "show a certificate of the mesh with the role tool, which 'meshnode mesh issue' makes"
_log = logging.getLogger(__name__)


class Doorkeeper:
    """Judges requests. Belongs to the event loop."""

    def __init__(
        self, tokens: TokenFile | None, certificates: CertificateRules | None, mesh: MeshName | None = None
    ) -> None:
        """``tokens``, ``certificates``: None: nobody gets in by one. With neither, everybody does: the server is on
        loopback then. ``mesh``: whose certificates count."""
        self._tokens, self._certificates, self._mesh = tokens, certificates, mesh

    @property
    def is_open(self) -> bool:
        """Whether everybody who reaches the server may ask."""
        return self._tokens is None and self._certificates is None

    def check(self, role: TokenRole, request: Request) -> None:
        """:raises HttpProblem: 401 for who shows nothing that is good, 403 when it is good for less.
        :raises StorageError: the file of tokens can't be read; the log has said so.
        """
        if self.is_open:
            return
        shown = request.headers.getlist("authorization")
        certificate = certificate_of(request.scope)
        if shown or certificate is None or self._certificates is None:
            self._check_untrusted_token(role, shown)
        else:
            self._check_untrusted_certificate(role, certificate, self._certificates)

    def _check_untrusted_token(self, role: TokenRole, shown: list[str]) -> None:
        kind, _, text = (shown[0] if len(shown) == 1 else "").partition(" ")
        if self._tokens is None or kind.lower() != "bearer" or not text.strip():
            wanted = [] if self._tokens is None else [f"a token: {_BEARER_WANTED}"]
            wanted += [] if self._certificates is None else [f"a certificate: {_CERTIFICATE_WANTED}"]
            raise HttpProblem(
                401, f"this relay wants {', or '.join(wanted)}", {"www-authenticate": 'Bearer realm="relay"'}
            )
        try:
            token = self._tokens.untrusted_holder(text.strip(), time.time())
        except StorageError as error:
            _log.error("%s", error)
            raise
        if token is None:
            raise HttpProblem(
                401, "the token is unknown, revoked or expired: ask the operator of the relay for a new one",
                {"www-authenticate": 'Bearer realm="relay", error="invalid_token"'},
            )  # fmt: skip
        if not token.may(role):
            raise HttpProblem(
                403, f"the token {token.name!r} is one of a {token.role}: this needs one of the role {role}",
                {"www-authenticate": f'Bearer realm="relay", error="insufficient_scope", scope="{role}"'},
            )  # fmt: skip

    def _check_untrusted_certificate(
        self, role: TokenRole, certificate: ClientCertificate, rules: CertificateRules
    ) -> None:
        if certificate.ends_utc_ns <= time.time_ns():
            raise HttpProblem(401, "the certificate has ended: renew it", {"connection": "close"})
        identities = [name for name in certificate.names if name.lower().startswith("spiffe:")]
        try:
            mesh, holder, node = parse_untrusted_spiffe(identities[0] if len(identities) == 1 else "")
        except InvalidName as error:
            raise HttpProblem(
                403, "the certificate carries not exactly one identity of a mesh: issue it with 'meshnode mesh issue'"
            ) from error
        if holder is not Role.TOOL or mesh != self._mesh:
            raise HttpProblem(
                403, f"the certificate is that of {holder} {node} of the mesh {mesh}: {_CERTIFICATE_WANTED}"
            )
        if role is TokenRole.OPERATOR and node not in rules.operators:
            raise HttpProblem(
                403, f"the certificate of {node} is one of a viewer: this needs an operator, which [http] operators "
                "names",
            )  # fmt: skip


def certificate_of(scope: Scope) -> ClientCertificate | None:
    """The certificate that the handshake of a connection has proved; None: it showed none."""
    found = scope.get("state", {}).get(CLIENT_CERTIFICATE)
    return found if isinstance(found, ClientCertificate) else None


def is_too_old(scope: Scope) -> bool:
    """Whether a connection has to prove its certificate again."""
    certificate = certificate_of(scope)
    return certificate is not None and time.monotonic() - certificate.proved_s >= MAX_CONNECTION_AGE_S
