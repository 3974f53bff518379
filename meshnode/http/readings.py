"""Readings over HTTP: publish one, and stream readings as they come."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from difflib import get_close_matches
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meshnode.http.guard import BadRequest, json_response
from meshnode.http.reading_json import MAX_READING_BYTES, parse_untrusted_publish, reading_form
from meshnode.readings.subscriptions import Subscription
from meshnode.running import Host, HttpService
from protocols.base import limits

_log = logging.getLogger(__name__)
MAX_STREAMS: Final = 32
"""Streams of readings at once; each takes one of the node's subscriptions."""
_MAX_COUNT: Final = 1_000_000_000
_MAX_TIMEOUT_S: Final = 86_400.0
_OFF_LOOP_BYTES: Final = 64 * 1024


class ReadingsApi:
    """Handlers of one node."""

    def __init__(self, host: Host, service: HttpService) -> None:
        self._host, self._service = host, service
        self._streams: set[Subscription] = set()

    def routes(self) -> list[Route]:
        """Paths of the handlers below."""
        return [
            Route("/v1/readings", self.stream_readings, methods=["GET"]),
            Route("/v1/readings", self.publish, methods=["POST"]),
        ]

    def end_streams(self) -> None:
        """End all streams, because the node leaves."""
        for subscription in list(self._streams):
            subscription.close()

    async def stream_readings(self, request: Request) -> Response:
        """Stream readings as they come, one JSON object a line."""
        asked = UrlQuery(request.query_params, "key conflate every history own count timeout_s max_rate_hz hops")
        count = asked.whole("count", 0, _MAX_COUNT)
        timeout_s = asked.number("timeout_s", 0.0, _MAX_TIMEOUT_S)
        if self._service.leaving:
            raise BadRequest(f"the node {self._host.id} is leaving", 503)
        if len(self._streams) >= MAX_STREAMS:
            raise BadRequest(f"{MAX_STREAMS} streams of readings are open: close one first", 503)
        subscription = self._host.subscribe(
            asked.text("key"),
            conflate=asked.flag("conflate", False),
            every=asked.flag("every", False),
            history=asked.flag("history", True),
            own=asked.flag("own", True),
            max_rate_hz=asked.number("max_rate_hz", 0.0, 1e6) or 0.0,
            hops=asked.whole("hops", 0, limits.MAX_HOPS),
        )
        self._streams.add(subscription)
        return _ReadingStream(subscription, count, timeout_s, self._streams, self._host)

    async def publish(self, request: Request) -> Response:
        """Publish one reading."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise BadRequest(f"Content-Type is {kind[:60]!r}: send application/json", 415)
        async with self._service.body(request, MAX_READING_BYTES) as body:
            if len(body) > _OFF_LOOP_BYTES:
                form = await asyncio.to_thread(parse_untrusted_publish, body)
            else:
                form = parse_untrusted_publish(body)
            put = self._host.publish(
                form.key, form.value, unit=form.unit, sensor=form.sensor, where=form.position, time_ns=form.time_ns,
                quality=form.quality, calibration=form.calibration, lineage=form.lineage, priority=form.priority,
                lifespan_ms=form.lifespan_ms, hops=form.hops,
            )  # fmt: skip
        return json_response({"key": form.key, "origin": self._host.id, **msgspec.to_builtins(put)})


class _ReadingStream(StreamingResponse):
    """A response that owns its subscription, and ends it however the response ends."""

    def __init__(
        self, subscription: Subscription, count: int, timeout_s: float | None, streams: set[Subscription], host: Host
    ) -> None:
        self._subscription, self._streams = subscription, streams
        super().__init__(
            _lines(subscription, count, timeout_s, host),
            media_type="application/x-ndjson",
            headers={"cache-control": "no-store"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._subscription.close()
            self._streams.discard(self._subscription)


async def _lines(subscription: Subscription, count: int, timeout_s: float | None, host: Host) -> AsyncIterator[bytes]:
    ends_s = None if timeout_s is None else time.monotonic() + timeout_s
    sent = told = not_shown = 0
    while not count or sent < count:
        try:
            reading = await subscription.next(None if ends_s is None else max(ends_s - time.monotonic(), 0.0))
        except (TimeoutError, StopAsyncIteration):
            return
        if subscription.dropped != told:
            told = subscription.dropped
            yield msgspec.json.encode({"dropped": told}) + b"\n"
        try:
            line = msgspec.json.encode(reading_form(reading)) + b"\n"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this one, the next may be good
            not_shown += 1
            _count_not_shown(host, reading.key)
            if not_shown & (not_shown - 1) == 0:  # 1, 2, 4, 8 …
                _log.warning("a reading of %s has no form in JSON (%d so far): %r", reading.key, not_shown, error)
            yield msgspec.json.encode({"not_shown": not_shown}) + b"\n"
            continue
        yield line
        sent += 1


def _count_not_shown(host: Host, key: str) -> None:
    host.driver.look(lambda engine, _: engine.drops.count("", key, "not_shown"))


class UrlQuery:
    """The query of a URL, each value checked where it is read."""

    def __init__(self, given: Mapping[str, str], known: str) -> None:
        self._given = given
        names = known.split()
        for name in given:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
                raise BadRequest(f"the query has an unknown name {name[:40]!r}: {hint}")

    def text(self, name: str) -> str:
        """A text that must be given."""
        if name not in self._given:
            raise BadRequest(f"the query lacks {name!r}: add ?{name}=…, as in ?key=veh/**")
        return self._given[name]

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        words = {"true": True, "1": True, "false": False, "0": False}
        text = self._given.get(name, str(default).lower()).lower()
        if text not in words:
            raise BadRequest(f"{name} is {text[:40]!r}: use true or false")
        return words[text]

    def whole(self, name: str, default: int, most: int) -> int:
        """A whole number from 0 to ``most``."""
        text = self._given.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= most):
            raise BadRequest(f"{name} is {text[:40]!r}: use a whole number from 0 to {most}")
        return int(text)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number from ``least`` to ``most``; None when it is not there."""
        text = self._given.get(name)
        if text is None:
            return None
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise BadRequest(f"{name} is {text[:40]!r}: use a number from {least:g} to {most:g}")
        return number
