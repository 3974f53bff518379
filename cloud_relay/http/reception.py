"""What every request passes before it reaches a route: who may knock, how, and for which kind of answer.

It keeps web pages of others out while everybody on this host may ask, tells which methods there are, refuses bodies,
because nothing is changed here, and answers of a kind that there is none of. It adds the date to answers, which the
server leaves out, and closes connections that have become too old.
"""

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, NamedTuple

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_relay.http.accepting import weight_of
from cloud_relay.http.access import is_too_old
from cloud_relay.http.problems import problem_response
from meshnode.http.guard import refusal_of

OTHER: Final = "other"
METHODS: Final = "GET, HEAD, OPTIONS"


class KnownPath(NamedTuple):
    """A path that there is."""

    template: str
    """With names in braces for what differs: there are few of them."""
    kinds: tuple[str, ...]
    """The media types of its answers."""


class Reception:
    """Middleware. ``known(path)``: what there is under a path; None: there is no such path. ``observe(seconds, path,
    status)`` is called with its template when an answer begins; all paths that there are not are one."""

    def __init__(
        self, app: ASGIApp, *, keeps_pages_out: bool, known: Callable[[str], KnownPath | None],
        observe: Callable[[float, str, str], None],
    ) -> None:  # fmt: skip
        self._app, self._keeps_pages_out, self._known, self._observe = app, keeps_pages_out, known, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        closes, began_s = is_too_old(scope), time.monotonic()
        known = self._known(scope["path"])
        path = OTHER if known is None else known.template

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(time.monotonic() - began_s, path, str(message["status"]))
                added = [(b"date", formatdate(usegmt=True).encode()), (b"x-content-type-options", b"nosniff")]
                added += [(b"connection", b"close")] if closes else []
                message["headers"] = [*message["headers"], *added]
            await send(message)

        early = self._early(scope, known)
        try:
            await (self._app if early is None else early)(scope, receive, sent)
        except ClientDisconnect:
            return  # the client has gone

    def _early(self, scope: Scope, known: KnownPath | None) -> Response | None:
        """The answer to a request that goes no further."""
        refusal = refusal_of(scope) if self._keeps_pages_out else None
        if refusal is not None:
            return problem_response(403, refusal)
        method = scope["method"]
        if known is None or method not in ("GET", "HEAD", "OPTIONS"):
            return None  # the router says so
        if _has_body(scope):
            # What is left of it would be read as the next request.
            return problem_response(
                413, "a request has no body here: put what you ask for into the URL", {"connection": "close"}
            )
        if method == "OPTIONS":
            return Response(None, 204, {"allow": METHODS})
        accepted = ",".join(_values(scope, b"accept"))
        if not any(weight_of(accepted, kind) for kind in known.kinds):
            return problem_response(
                406, f"Accept is {accepted[:80]!r}: this is only to be had as {' or '.join(known.kinds)}"
            )
        return None


def _has_body(scope: Scope) -> bool:
    return _values(scope, b"content-length") not in ([], ["0"]) or bool(_values(scope, b"transfer-encoding"))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]
