"""The routes of the relay's HTTP API, and who may use them. ``docs/reference/relay-http.md`` describes each.

Without tokens the server is on loopback only and whoever is on this host may ask; web pages are kept out as a node
keeps them out, see :mod:`meshnode.http.guard`. With tokens or certificates each request for records shows one, see
:mod:`cloud_relay.http.access`.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_relay.http.access import Doorkeeper
from cloud_relay.http.answering import Answers, accepts_gzip, is_named, json_response
from cloud_relay.http.arrow_pages import MEDIA_TYPE as ARROW
from cloud_relay.http.arrow_pages import arrow_response, prefers_arrow
from cloud_relay.http.kept import FollowedGroups, check_named, kept_answer, kept_list
from cloud_relay.http.openapi import described
from cloud_relay.http.problems import HttpProblem, problem_response, response_to
from cloud_relay.http.reception import METHODS, KnownPath, Reception
from cloud_relay.http.streaming import Followed, FollowedRecords, Streams, untrusted_number
from cloud_relay.http.tokens import TokenRole
from cloud_relay.metrics.families import gauge
from cloud_relay.metrics.page import RelayMetrics
from cloud_relay.query.aggregating import untrusted_aggregates
from cloud_relay.query.arrivals import STREAM_FILTERS
from cloud_relay.query.kept import KEPT_STREAM_FILTERS, untrusted_kept
from cloud_relay.query.newest import NEWEST_FILTERS, key_cursor
from cloud_relay.query.readers.contract import StoreReaders
from cloud_relay.query.searching import RecordPage
from cloud_relay.query.selection import FILTERS, PAGING, NothingMatches, Query, untrusted_query
from cloud_relay.query.series import charted, untrusted_series
from protocols.base.errors import MeshError, StorageError
from protocols.base.ids import UtcNs

if TYPE_CHECKING:
    from prometheus_client.core import Metric

MAX_QUERY_CHARS: Final = 8_192
"""Of a URL: the longest key expression and everything else fit several times."""
_log = logging.getLogger(__name__)
JSON: Final = ("application/json",)
EVENTS: Final = ("text/event-stream",)
KINDS: Final = {
    "/v1/records": (*JSON, ARROW),
    "/v1/newest": (*JSON, ARROW),
    "/v1/aggregates/kept/{name}/stream": EVENTS,
    "/v1/stream": EVENTS,
    "/metrics": ("text/plain", "application/openmetrics-text"),
}
"""Media types of answers, by the template of the path; else JSON."""
Handler = Callable[[Request], Awaitable[Response]]


class RelayApi:
    """Handlers of one relay. Made on the event loop that serves them."""

    def __init__(
        self, readers: StoreReaders, doorkeeper: Doorkeeper, statistics: Callable[[], Mapping[str, Any]], version: str,
        metrics: RelayMetrics,
    ) -> None:  # fmt: skip
        """``statistics``: what the relay has counted."""
        self._answers, self._doorkeeper, self._statistics = Answers(readers), doorkeeper, statistics
        self._metrics = metrics
        metrics.statistics = statistics
        metrics.about = {**metrics.about, "version": version}
        metrics.sources.append(self._families)
        self.streams = Streams(self._answers)
        """Their bell has to ring when something was stored."""
        self.cut: Callable[[tuple[str, int]], None] = lambda _: None
        """Ends the connection of a client at an address."""
        self._described = msgspec.json.encode(described(version, is_open=doorkeeper.is_open))
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
                Route("/v1/series", viewer(self.series)),
                Route("/v1/aggregates/kept", viewer(self.kept)),
                Route("/v1/aggregates/kept/{name}", viewer(self.kept_groups)),
                Route("/v1/aggregates/kept/{name}/stream", viewer(self.group_stream)),
                Route("/v1/stream", viewer(self.stream)),
                Route("/v1/statistics", operator(self.statistics)),
                Route("/metrics", operator(self.metrics)),
                Route("/v1/openapi.json", self.openapi),
                Route("/healthz", self.healthz),
            ],
            exception_handlers={MeshError: _mesh_error, HTTPException: _http_error, Exception: _our_bug},
        )
        routes = [route for route in app.routes if isinstance(route, Route)]

        def known(path: str) -> KnownPath | None:
            found = next((route.path for route in routes if route.path_regex.match(path)), None)
            return None if found is None else KnownPath(found, KINDS.get(found, JSON))

        app.add_middleware(
            Reception,
            keeps_pages_out=self._doorkeeper.is_open,
            known=known,
            observe=self._metrics.questions.observe,
        )
        app.router.redirect_slashes = False
        return app

    # --- handlers --------------------------------------------------------------------------------------------------
    async def records(self, request: Request) -> Response:
        """One page of records."""
        try:
            query = untrusted_query(_given(request), UtcNs(time.time_ns()))
        except NothingMatches as error:
            return _no_records(request, error)
        return await self._answers.page(request, repr(query), lambda reader: reader.page(query))

    async def newest(self, request: Request) -> Response:
        """The newest record of each key."""
        given = _given(request)
        cursor = given.pop("cursor", None)
        after = None if cursor is None else key_cursor(cursor)
        try:
            query: Query = untrusted_query(given, UtcNs(time.time_ns()), (*NEWEST_FILTERS, "limit", "cursor"))
        except NothingMatches as error:
            return _no_records(request, error)
        name = repr((query, "newest", after))
        return await self._answers.page(request, name, lambda reader: reader.newest(query, after))

    async def aggregates(self, request: Request) -> Response:
        """Numbers about many records, computed now."""
        try:
            query = untrusted_aggregates(_given(request), UtcNs(time.time_ns()))
        except NothingMatches as error:
            return _nothing(request, {"groups": []}, error)
        return await self._answers.tagged(
            request, repr(query), lambda reader: ({"groups": reader.aggregates(query)}, {})
        )

    async def series(self, request: Request) -> Response:
        """Numbers over time, for charts."""
        try:
            query = untrusted_series(_given(request), UtcNs(time.time_ns()))
        except NothingMatches as error:
            return _nothing(request, {"span_ns": None, "series": []}, error)
        return await self._answers.tagged(
            request, repr(("series", query)), lambda reader: (charted(reader.aggregates(query), query), {})
        )

    async def kept(self, request: Request) -> Response:
        """What each kept aggregate is."""
        return await kept_list(self._answers, request)

    async def kept_groups(self, request: Request) -> Response:
        """A page of the groups of a kept aggregate."""
        name = request.path_params["name"]
        try:
            query = untrusted_kept(name, _given(request), UtcNs(time.time_ns()))
        except NothingMatches as error:
            await self._answers.read(lambda reader: check_named(reader, name))
            return _nothing(request, {"groups": [], "cursor": None}, error)
        return await kept_answer(self._answers, request, query)

    async def group_stream(self, request: Request) -> Response:
        """Groups of a kept aggregate as they change."""
        name = request.path_params["name"]
        query = untrusted_kept(name, _given(request), UtcNs(time.time_ns()), KEPT_STREAM_FILTERS)
        await self._answers.read(lambda reader: check_named(reader, name))
        return await self._stream(request, FollowedGroups(query))

    async def stream(self, request: Request) -> Response:
        """Records as they are stored."""
        query = untrusted_query(_given(request), UtcNs(time.time_ns()), STREAM_FILTERS)
        return await self._stream(request, FollowedRecords(query))

    async def _stream(self, request: Request, followed: Followed) -> Response:
        last, client = request.headers.get("last-event-id"), request.client
        after = None if last is None else untrusted_number(last)
        if request.method == "HEAD":
            return Response(None, 200, media_type="text/event-stream")

        def may_go_on() -> bool:
            try:
                self._doorkeeper.check(TokenRole.VIEWER, request)
            except (HttpProblem, StorageError):
                return False
            return True

        return await self.streams.stream(
            followed, after, may_go_on, lambda: None if client is None else self.cut((client.host, client.port))
        )

    async def statistics(self, request: Request) -> Response:
        """What the relay has counted since its start."""
        return json_response(self._statistics(), {"cache-control": "no-store"}, zips=accepts_gzip(request))

    async def metrics(self, request: Request) -> Response:
        """All metrics, for Prometheus."""
        try:
            self._metrics.store = await self._answers.read(lambda reader: reader.figures())
        except (HttpProblem, StorageError):
            self._metrics.store = None
        content, kind = await asyncio.to_thread(self._metrics.page, request.headers.get("accept", ""))
        return Response(content, 200, {"cache-control": "no-store"}, kind)

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        headers = {"etag": self._described_tag, "cache-control": "no-cache"}
        if is_named(self._described_tag, request.headers.get("if-none-match", "")):
            return Response(None, 304, headers)
        return Response(self._described, 200, headers, "application/json")

    async def healthz(self, _: Request) -> Response:
        """Answers when the event loop runs."""
        return json_response({"alive": True}, {"cache-control": "no-store"}, zips=False)

    def _families(self) -> "Iterable[Metric]":
        yield gauge("http_streams", "Streams of records that are open.", [((), float(self.streams.open))])
        yield gauge("http_requests_waiting", "Requests that look into the store or wait to.",
                    [((), float(self._answers.taken))])  # fmt: skip

    # --- who may ask -----------------------------------------------------------------------------------------------
    def _for(self, role: TokenRole, handler: Handler) -> Handler:
        """A handler that lets only a role in."""

        async def checked(request: Request) -> Response:
            self._doorkeeper.check(role, request)
            return await handler(request)

        return checked


def _nothing(request: Request, content: dict[str, Any], why: NothingMatches) -> Response:
    """The answer to a question that nothing can be an answer to. Each of its values is right, so it is no error to a
    program; ``note`` tells a person."""
    return json_response({**content, "note": str(why)}, {"cache-control": "no-store"}, zips=accepts_gzip(request))


def _no_records(request: Request, why: NothingMatches) -> Response:
    """As :func:`_nothing`, of a page of records, which may be asked for as Arrow."""
    if prefers_arrow(request):
        return arrow_response(RecordPage([], None), dict(request.query_params), {"cache-control": "no-store"})
    return _nothing(request, {"records": [], "cursor": None}, why)


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
    headers = {**(error.headers or {}), **({"allow": METHODS} if error.status_code == 405 else {})}
    return problem_response(error.status_code, said, headers)


async def _our_bug(_: Request, error: Exception) -> Response:
    _log.error("a request was not handled: this is a bug of the relay", exc_info=error)
    return problem_response(500, f"internal error, {type(error).__name__}: the relay's log says more")
