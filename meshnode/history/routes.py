"""The history over HTTP: ``GET /v1/history``."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from meshnode.history.query import EncodedPage, HistoryQuery, parse_box, parse_instant, sought
from meshnode.http.guard import json_response
from meshnode.http.reading_json import reading_form
from meshnode.http.readings import UrlQuery
from protocols.base.ids import UtcNs
from protocols.wire.parcels import decode_untrusted_reading


def history_routes(begin: Callable[[HistoryQuery], Future[EncodedPage]]) -> list[BaseRoute]:
    """The routes of one node. ``begin`` looks for a page."""

    async def page(request: Request) -> Response:
        asked = UrlQuery(request.query_params, "key origin since until box limit newest_first cursor")
        now = UtcNs(time.time_ns())
        given = request.query_params
        query = sought(
            asked.text("key"),
            origin=given.get("origin"),
            since=parse_instant("since", given["since"], now) if "since" in given else None,
            until=parse_instant("until", given["until"], now) if "until" in given else None,
            box=parse_box(given["box"]) if "box" in given else None,
            limit=asked.whole("limit", 100, 1_000_000),
            newest_first=asked.flag("newest_first", True),
            cursor=given.get("cursor"),
            now=now,
        )
        found = await asyncio.wrap_future(begin(query))
        return await asyncio.to_thread(_response, found)

    return [Route("/v1/history", page, methods=["GET"])]


def _response(page: EncodedPage) -> Response:
    return json_response(page_form(page))


def page_form(page: EncodedPage) -> dict[str, Any]:
    """The page as a JSON object."""
    readings: list[dict[str, Any]] = []
    not_shown = 0
    for data in page.readings:
        try:
            readings.append(reading_form(decode_untrusted_reading(data)))
        except Exception:  # noqa: BLE001 - whatever is wrong with this one, the next may be good
            not_shown += 1
    return {"readings": readings, "cursor": page.cursor, "not_shown": not_shown}
