"""Answers to requests for records: found on threads of their own, tagged, compressed.

How many requests are looked for at once and how many wait is bounded. An answer has an entity tag that says what the
store had and what was asked, so that a client that asks again is told ``304`` without a search when nothing has come
since.
"""

import asyncio
import gzip
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cloud_relay.http.arrow_pages import arrow_response, prefers_arrow
from cloud_relay.http.problems import HttpProblem
from cloud_relay.query.forms import record_form
from cloud_relay.query.readers.contract import StoreReader, StoreReaders
from cloud_relay.query.searching import RecordPage
from protocols.base.errors import StorageError

THREADS: Final = 4
"""Requests that are looked for at once. Beyond, they only take turns on the processors, and the writer waits longer."""
MAX_WAITING: Final = 64
"""Requests beside these that wait for a thread: at half a second each, the last waits for 8 s."""
_MIN_GZIP_BYTES: Final = 1_024
_GZIP_LEVEL: Final = 4
_COMMON: Final = {"cache-control": "private, no-cache", "vary": "accept, accept-encoding, authorization"}
ResultT = TypeVar("ResultT")
_log = logging.getLogger(__name__)


class Answers:
    """Answers requests from one store. Belongs to the event loop."""

    def __init__(self, readers: StoreReaders) -> None:
        self._readers = readers
        self._threads = ThreadPoolExecutor(THREADS, "http-query")
        self.taken = 0
        """Requests that are looked for or wait for it."""

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.submit(self._readers.close)  # connections may have loops of their own, which can't run on ours
        self._threads.shutdown()

    async def page(self, request: Request, name: str, find: Callable[[StoreReader], RecordPage]) -> Response:
        """The page that ``find`` finds, as JSON or Arrow. ``name``: what was asked, the same for the same question."""
        path, given = request.url.path, dict(request.query_params)
        as_arrow = prefers_arrow(request)

        def found(reader: StoreReader) -> tuple[object, dict[str, str]]:
            page = find(reader)
            following = {} if page.cursor is None else {"link": next_link(path, given | {"cursor": page.cursor})}
            if as_arrow:
                return page, following
            return {"records": [record_form(record) for record in page.records], "cursor": page.cursor}, following

        return await self.tagged(request, f"{name} in Arrow" if as_arrow else name, found)

    async def tagged(
        self,
        request: Request,
        name: str,
        find: Callable[[StoreReader], tuple[object, dict[str, str]]],
        state: Callable[[StoreReader], str] | None = None,
    ) -> Response:
        """The content and the headers that ``find`` finds, as JSON, or a page as Arrow, unless the client has it
        already. ``state``: a text for what it depends on; None: it depends on the records."""
        asked_for, zips = request.headers.get("if-none-match", ""), accepts_gzip(request)

        def answer(reader: StoreReader) -> Response:
            tag = _tag(reader.state() if state is None else state(reader), name)
            headers = {**_COMMON, "etag": tag}
            if is_named(tag, asked_for):
                return Response(None, 304, headers)
            content, more = find(reader)
            if isinstance(content, RecordPage):
                return arrow_response(content, dict(request.query_params), headers | more)
            return json_response(content, headers | more, zips=zips)

        return await self.read(answer)

    async def read(self, look: Callable[[StoreReader], ResultT]) -> ResultT:
        """What ``look`` finds in the store, on a thread.

        :raises HttpProblem: too many wait.
        :raises StorageError: the store can't be read.
        """
        if self.taken >= THREADS + MAX_WAITING:
            raise HttpProblem(503, f"{self.taken} requests are under way: ask again later", {"retry-after": "1"})
        self.taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, look)
        finally:
            self.taken -= 1

    def _read(self, look: Callable[[StoreReader], ResultT]) -> ResultT:
        try:
            with self._readers.reader() as reader:
                return look(reader)
        except StorageError as error:
            _log.error("%s", error)
            raise


def json_response(content: object, headers: dict[str, str], *, zips: bool) -> Response:
    """``content`` as JSON, compressed if it may be and is worth it."""
    body = msgspec.json.encode(content)
    if zips and len(body) >= _MIN_GZIP_BYTES:
        body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        headers = {**headers, "content-encoding": "gzip"}
    return Response(body, 200, headers, "application/json")


def next_link(path: str, given: dict[str, str]) -> str:
    """The header ``Link`` of a page that another one follows. ``given``: what that one is asked for with."""
    return f'<{path}?{urlencode(given)}>; rel="next"'


def accepts_gzip(request: Request) -> bool:
    """Whether the client takes gzip."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def is_named(tag: str, asked_for: str) -> bool:
    """Whether an ``If-None-Match`` names a tag, by weak comparison."""
    named = [one.strip().removeprefix("W/") for one in asked_for.split(",")]
    return "*" in named or tag.removeprefix("W/") in named


def _tag(state: str, name: str) -> str:
    return f'W/"{hashlib.sha256(repr((state, name)).encode()).hexdigest()[:24]}"'
