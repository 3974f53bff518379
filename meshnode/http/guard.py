"""The checks that every request passes first, and the one form that all errors have.

The API asks nobody who they are: whoever is on this host may use it. A web page that somebody on this host looks at
must not, so

- the ``Host`` header must be a loopback name (DNS rebinding makes any other name point here);
- an ``Origin`` header, which browsers add to what a page sends elsewhere, must be of loopback too;
- a request without one, as for an image, a script or a link of a page, must not say that it comes from another site:
  ``Sec-Fetch-Site``, and ``Referer`` for browsers that lack it. It could otherwise hold streams open, which are few;
- bodies that publish must be declared as JSON, which a page can't send elsewhere without asking first.
"""

import ipaddress
import re
from email.utils import formatdate
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocols.base.errors import (
    BoundExceeded,
    BudgetExhausted,
    ConfigError,
    InferenceError,
    InputInvalid,
    LocalProtocolError,
    MeshError,
    ModelInvalid,
    ModelUnknown,
    NeighbourFailed,
    NotPermitted,
    RemoteProtocolError,
    StorageError,
    TransportError,
)

_AUTHORITY_END: Final = re.compile("[/?#]")

_STATUS: Final[tuple[tuple[type[MeshError], int], ...]] = (
    (InputInvalid, 400),
    (ModelUnknown, 404),
    (ModelInvalid, 503),
    (BudgetExhausted, 504),
    (NeighbourFailed, 502),
    (InferenceError, 500),
    (NotPermitted, 403),
    (BoundExceeded, 503),
    (LocalProtocolError, 400),
    (RemoteProtocolError, 502),
    (TransportError, 502),
    (StorageError, 507),
    (ConfigError, 500),
)


class BadRequest(LocalProtocolError):
    """A request that can't be handled; ``status`` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: MeshError) -> int:
    """The HTTP status that tells a program what kind of error it was."""
    if isinstance(error, BadRequest):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``content`` as JSON. Numbers that are not finite become null."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """``{"error": message}``, as the Open Inference Protocol has it."""
    return json_response({"error": message}, status, headers)


class Guard:
    """Refuses requests that a web page could have sent, and adds the date to answers (uvicorn would wake up each second
    to do so)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"date", formatdate(usegmt=True).encode())]
            await send(message)

        refusal = refusal_of(scope)
        if refusal is not None:
            await error_response(403, refusal)(scope, receive, dated)
            return
        try:
            await self._app(scope, receive, dated)
        except ClientDisconnect:
            return  # the client has gone


def refusal_of(scope: Scope) -> str | None:
    """Why a web page may have sent a request; None: none of this host did, and no other can have."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not _is_loopback(hosts[0]):
        given = hosts[0][:100] if hosts else ""
        return f"Host {given!r} is not a name of this host: use 127.0.0.1, [::1] or localhost"
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    referers = [value.decode("latin-1") for name, value in headers if name == b"referer" and value]
    for page in origins or referers:  # an Origin says more exactly what a Referer says
        if not _is_loopback(_AUTHORITY_END.split(page.partition("://")[2], maxsplit=1)[0]):
            return f"requests of web pages from {page[:100]!r} are refused: ask from this host"
    if not origins and any(name == b"sec-fetch-site" and value.lower() == b"cross-site" for name, value in headers):
        return "requests of web pages of other sites are refused: type the address, or ask from this host"
    return None


def _is_loopback(authority: str) -> bool:
    if authority.startswith("["):
        host, _, port = authority[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = authority.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
