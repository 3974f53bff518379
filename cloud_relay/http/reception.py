"""What every request passes before it reaches a route: who may knock, how, and for which kind of answer.

It keeps web pages of others out while everybody on this host may ask, tells which methods there are, refuses bodies,
because nothing is changed here, and answers of a kind that there is none of. It adds the date to answers, which the
server leaves out, and closes connections that have become too old.
"""

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_relay.http.access import is_too_old
from cloud_relay.http.problems import problem_response
from meshnode.http.guard import refusal_of

OTHER: Final = "other"
METHODS: Final = "GET, HEAD, OPTIONS"


class Reception:
    """Middleware. ``kinds_of(path)``: the media types of the answers of a path; None: there is no such path.
    ``observe(seconds, path, status)`` is called when an answer begins; all paths that there are not are one."""

    def __init__(
        self, app: ASGIApp, *, keeps_pages_out: bool, kinds_of: Callable[[str], tuple[str, ...] | None],
        observe: Callable[[float, str, str], None],
    ) -> None:  # fmt: skip
        self._app, self._keeps_pages_out, self._kinds_of, self._observe = app, keeps_pages_out, kinds_of, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        closes, began_s = is_too_old(scope), time.monotonic()
        path = scope["path"] if self._kinds_of(scope["path"]) is not None else OTHER

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(time.monotonic() - began_s, path, str(message["status"]))
                added = [(b"date", formatdate(usegmt=True).encode()), (b"x-content-type-options", b"nosniff")]
                added += [(b"connection", b"close")] if closes else []
                message["headers"] = [*message["headers"], *added]
            await send(message)

        early = self._early(scope)
        try:
            await (self._app if early is None else early)(scope, receive, sent)
        except ClientDisconnect:
            return  # the client has gone

    def _early(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        refusal = refusal_of(scope) if self._keeps_pages_out else None
        if refusal is not None:
            return problem_response(403, refusal)
        kinds, method = self._kinds_of(scope["path"]), scope["method"]
        if kinds is None or method not in ("GET", "HEAD", "OPTIONS"):
            return None  # the router says so
        if _has_body(scope):
            # What is left of it would be read as the next request.
            return problem_response(
                413, "a request has no body here: put what you ask for into the URL", {"connection": "close"}
            )
        if method == "OPTIONS":
            return Response(None, 204, {"allow": METHODS})
        accepted = ",".join(_values(scope, b"accept"))
        if not any(takes(accepted, kind) for kind in kinds):
            return problem_response(406, f"Accept is {accepted[:80]!r}: this is only to be had as {' or '.join(kinds)}")
        return None


def takes(accepted: str, kind: str) -> bool:
    """Whether an ``Accept`` header takes a media type; an empty one takes anything."""
    if not accepted.strip():
        return True
    weights: dict[str, bool] = {}
    for part in accepted.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weights[name] = not any(
            parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters
        )
    for name in (kind, f"{kind.partition('/')[0]}/*", "*/*"):  # the most exact one decides
        if name in weights:
            return weights[name]
    return False


def _has_body(scope: Scope) -> bool:
    return _values(scope, b"content-length") not in ([], ["0"]) or bool(_values(scope, b"transfer-encoding"))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]
