"""Questions to the relay over the HTTP API of a node: ``GET /v1/query``."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from meshnode.asking.question import MAX_RADIUS_M, RelayAnswer, RelayQuestion, relay_question
from meshnode.history.query import Instant, parse_box, parse_instant
from meshnode.http.guard import BadRequest, json_response
from meshnode.http.reading_json import reading_form
from meshnode.http.readings import UrlQuery
from protocols.base.ids import UtcNs
from protocols.base.limits import MAX_TOLD_RECORDS, SECOND


def query_routes(begin: Callable[[RelayQuestion], Future[RelayAnswer]]) -> list[BaseRoute]:
    """The routes of one node. ``begin`` asks the relay."""

    async def page(request: Request) -> Response:
        given = request.query_params
        asked = UrlQuery(given, "key newest since box near radius_m limit cursor")
        now = UtcNs(time.time_ns())
        question = relay_question(
            asked.text("key"),
            newest=asked.flag("newest", False),
            since=_since(given["since"], now) if "since" in given else None,
            box=parse_box(given["box"]) if "box" in given else None,
            near=_near(given["near"]) if "near" in given else None,
            radius_m=asked.number("radius_m", 0, MAX_RADIUS_M),
            limit=asked.whole("limit", MAX_TOLD_RECORDS, 1_000_000),
            cursor=given.get("cursor"),
        )
        answer = await asyncio.wrap_future(begin(question))
        return await asyncio.to_thread(lambda: json_response(answer_form(answer)))

    return [Route("/v1/query", page, methods=["GET"])]


def answer_form(answer: RelayAnswer) -> dict[str, Any]:
    """The answer as a JSON object: readings as everywhere, each with its age."""
    readings: list[dict[str, Any]] = []
    not_shown = 0
    for aged in answer.readings:
        try:
            form = reading_form(aged.reading)
        except Exception:  # noqa: BLE001 - whatever is wrong with this one, the next may be good
            not_shown += 1
            continue
        readings.append(form | {
            "sent_by": aged.sent_by,
            "rule": aged.rule,
            "age_s": aged.age_ns / SECOND,
            "age_uncertainty_s": aged.age_uncertainty_ns / SECOND,
        })  # fmt: skip
    return {"readings": readings, "cursor": answer.cursor, "now_utc_ns": answer.now_utc_ns, "not_shown": not_shown}


def _since(text: str, now: UtcNs) -> Instant:
    """An age stays one, so that it counts by the clock of the relay."""
    instant = parse_instant("since", text, now)
    return timedelta(microseconds=(now - instant) // 1_000) if text[-1:] in "smhd" else instant


def _near(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadRequest(f"near {text[:80]!r} is not two numbers: use lat,lon in degrees") from error
