"""The routes of the relay's HTTP API, and who may use them. ``docs/reference/relay-http.md`` describes each.

Without tokens the server is on loopback only and whoever is on this host may ask; web pages are kept out as a node
keeps them out, see :mod:`meshnode.http.guard`. With tokens each request for records shows one, which no web page has.
"""

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud_relay.http.answering import Answers, accepts_gzip, is_named, json_response
from cloud_relay.http.openapi import described
from cloud_relay.http.problems import HttpProblem, problem_response, response_to
from cloud_relay.http.streaming import Streams, untrusted_number
from cloud_relay.http.tokens import TokenFile, TokenRole
from cloud_relay.query.aggregating import aggregates, untrusted_aggregates
from cloud_relay.query.arrivals import STREAM_FILTERS
from cloud_relay.query.newest import NEWEST_FILTERS, key_cursor, newest_page
from cloud_relay.query.searching import find_page
from cloud_relay.query.selection import FILTERS, PAGING, Query, untrusted_query
from meshnode.http.guard import refusal_of
from protocols.base.errors import MeshError, StorageError
from protocols.base.ids import UtcNs

MAX_QUERY_CHARS: Final = 8_192
"""Of a URL: the longest key expression and everything else fit several times."""
_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


class RelayApi:
    """Handlers of one relay. Made on the event loop that serves them."""

    def __init__(
        self, store: Path, tokens: TokenFile | None, statistics: Callable[[], Mapping[str, Any]], version: str
    ) -> None:
        """``tokens``: None lets everybody ask. ``statistics``: what the relay has counted."""
        self._answers, self._tokens, self._statistics = Answers(store), tokens, statistics
        self.streams = Streams(self._answers)
        """Their bell has to ring when something was stored."""
        self.cut: Callable[[tuple[str, int]], None] = lambda _: None
        """Ends the connection of a client at an address."""
        self._described = msgspec.json.encode(described(version))
        self._described_tag = f'"{hashlib.sha256(self._described).hexdigest()[:24]}"'

    def close(self) -> None:
        """Wait for what is under way."""
        self._answers.close()

    def app(self) -> Starlette:
        """The whole API as an ASGI application."""
        viewer, operator = partial(self._for, TokenRole.VIEWER), partial(self._for, TokenRole.OPERATOR)
        app = Starlette(
            routes=[
                Route("/v1/records", viewer(self.records)),
                Route("/v1/newest", viewer(self.newest)),
                Route("/v1/aggregates", viewer(self.aggregates)),
                Route("/v1/stream", viewer(self.stream)),
                Route("/v1/statistics", operator(self.statistics)),
                Route("/v1/openapi.json", self.openapi),
                Route("/healthz", self.healthz),
            ],
            middleware=[Middleware(_Door, keeps_pages_out=self._tokens is None)],
            exception_handlers={MeshError: _mesh_error, HTTPException: _http_error, Exception: _our_bug},
        )
        app.router.redirect_slashes = False
        return app

    # --- handlers --------------------------------------------------------------------------------------------------
    async def records(self, request: Request) -> Response:
        """One page of records."""
        query = untrusted_query(_given(request), UtcNs(time.time_ns()))
        return await self._answers.page(request, repr(query), partial(find_page, query=query))

    async def newest(self, request: Request) -> Response:
        """The newest record of each key."""
        given = _given(request)
        cursor = given.pop("cursor", None)
        after = None if cursor is None else key_cursor(cursor)
        query: Query = untrusted_query(given, UtcNs(time.time_ns()), (*NEWEST_FILTERS, "limit", "cursor"))
        find = partial(newest_page, query=query, after_key=after)
        return await self._answers.page(request, repr((query, "newest", after)), find)

    async def aggregates(self, request: Request) -> Response:
        """Numbers about many records."""
        query = untrusted_aggregates(_given(request), UtcNs(time.time_ns()))
        return await self._answers.tagged(request, repr(query), lambda db: ({"groups": aggregates(db, query)}, {}))

    async def stream(self, request: Request) -> Response:
        """Records as they are stored."""
        query = untrusted_query(_given(request), UtcNs(time.time_ns()), STREAM_FILTERS)
        last, client = request.headers.get("last-event-id"), request.client
        after = None if last is None else untrusted_number(last)
        if request.method == "HEAD":
            return Response(None, 200, media_type="text/event-stream")

        def may_go_on() -> bool:
            try:
                self._check(TokenRole.VIEWER, request)
            except (HttpProblem, StorageError):
                return False
            return True

        return await self.streams.stream(
            query, after, may_go_on, lambda: None if client is None else self.cut((client.host, client.port))
        )

    async def statistics(self, request: Request) -> Response:
        """What the relay has counted since its start."""
        return json_response(self._statistics(), {"cache-control": "no-store"}, zips=accepts_gzip(request))

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        headers = {"etag": self._described_tag, "cache-control": "no-cache"}
        if is_named(self._described_tag, request.headers.get("if-none-match", "")):
            return Response(None, 304, headers)
        return Response(self._described, 200, headers, "application/json")

    async def healthz(self, _: Request) -> Response:
        """Answers when the event loop runs."""
        return json_response({"alive": True}, {"cache-control": "no-store"}, zips=False)

    # --- who may ask -----------------------------------------------------------------------------------------------
    def _for(self, role: TokenRole, handler: Handler) -> Handler:
        """A handler that asks for a token of a role first."""

        async def checked(request: Request) -> Response:
            self._check(role, request)
            return await handler(request)

        return checked

    def _check(self, role: TokenRole, request: Request) -> None:
        """:raises StorageError: the file of tokens can't be read; the log has said so."""
        if self._tokens is None:
            return
        try:
            _check_untrusted_token(self._tokens, role, request.headers.getlist("authorization"))
        except StorageError as error:
            _log.error("%s", error)
            raise


def _check_untrusted_token(tokens: TokenFile, role: TokenRole, shown: list[str]) -> None:
    """:raises HttpProblem: 401 without a token that is good, 403 when it is good for less."""
    kind, _, text = (shown[0] if len(shown) == 1 else "").partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        raise HttpProblem(
            401, "this relay wants a token: send 'Authorization: Bearer TOKEN', which 'cloud-relay token create' makes",
            {"www-authenticate": 'Bearer realm="relay"'},
        )  # fmt: skip
    token = tokens.untrusted_holder(text.strip(), time.time())
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


def _given(request: Request) -> dict[str, str]:
    """The query of the URL. :raises HttpProblem: it is too long, or has a name twice."""
    if len(request.url.query) > MAX_QUERY_CHARS:
        raise HttpProblem(414, f"the query has {len(request.url.query)} characters: use at most {MAX_QUERY_CHARS}")
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise HttpProblem(
            400, f"the query has {twice[:40]!r} twice: give it once, known are {', '.join((*FILTERS, *PAGING))}"
        )
    return given


class _Door:
    """Keeps web pages out, if it has to, and adds the date to answers, which the server leaves out."""

    def __init__(self, app: ASGIApp, *, keeps_pages_out: bool) -> None:
        self._app, self._keeps_pages_out = app, keeps_pages_out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(b"date", formatdate(usegmt=True).encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        refusal = refusal_of(scope) if self._keeps_pages_out else None
        if refusal is not None:
            await problem_response(403, refusal)(scope, receive, dated)
            return
        try:
            await self._app(scope, receive, dated)
        except ClientDisconnect:
            return  # the client has gone


async def _mesh_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    return response_to(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    said = {
        404: f"there is no {path!r}: /v1/openapi.json lists what there is",
        405: f"{path!r} does not take {method}: use GET",
    }.get(error.status_code, error.detail)
    return problem_response(error.status_code, said, dict(error.headers or {}))


async def _our_bug(_: Request, error: Exception) -> Response:
    _log.error("a request was not handled: this is a bug of the relay", exc_info=error)
    return problem_response(500, f"internal error, {type(error).__name__}: the relay's log says more")
