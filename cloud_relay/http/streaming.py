"""Records as they are stored, and groups of aggregates as they change, as server-sent events.

A client has no queue here: its stream has a number, and what comes next is read from the store, at most 256 records or
1 MiB at a time. So a slow client takes as much memory as a fast one. One that was abreast and then falls too far
behind is told so and ended. One that takes nothing for a while is cut off, because nothing can be told to it. Both go
on with ``Last-Event-ID`` and miss nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cloud_relay.http.answering import Answers
from cloud_relay.http.problems import HttpProblem
from cloud_relay.query.forms import record_form
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.selection import LAST_UTC_NS, Query
from protocols.base.errors import StorageError

MAX_STREAMS: Final = 32
"""At once. Each looks into the store when something was stored."""
MAX_BEHIND: Final = 10_000
"""Records by which a stream that was abreast may fall behind."""
PATIENCE_S: Final = 10.0
"""A client that takes nothing for so long is cut off."""
_PAUSE_S: Final = 0.1
"""Between two looks, so that many small batches cost one."""
_QUIET_S: Final = 15.0
"""A comment is sent when nothing else was for so long, so that proxies keep the connection."""


class StreamLook(NamedTuple):
    """What one look found."""

    items: list[tuple[int, Any]]
    """The contents of events, with their numbers."""
    reached: int
    """Nothing up to this number is missing. Go on after it."""
    behind: int
    """How much there is after it, of whatever kind."""


class Followed(Protocol):
    """What a stream shows: things in the store with numbers that only grow."""

    event: str
    """What its events are called."""

    def newest(self, reader: StoreReader) -> int:
        """The highest number that there is; 0: there is nothing."""

    def after(self, reader: StoreReader, number: int) -> StreamLook:
        """What comes next."""


class FollowedRecords:
    """The records that a query selects."""

    event = "record"

    def __init__(self, query: Query) -> None:
        self._query = query

    def newest(self, reader: StoreReader) -> int:
        """See :class:`Followed`."""
        return reader.newest_number()

    def after(self, reader: StoreReader, number: int) -> StreamLook:
        """See :class:`Followed`."""
        found = reader.arrivals(self._query, number)
        return StreamLook([(at, record_form(record)) for at, record in found.records], found.reached, found.behind)


class Bell:
    """Rings when something was stored. ``ring`` may be called from any thread, all else on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Something was stored."""
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._wake)

    def next(self) -> asyncio.Event:
        """What is set when it rings next."""
        return self._next

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


class Streams:
    """The streams of one server. Belongs to the event loop."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.open = 0
        """How many there are."""
        self._leaving = False
        self.bell = Bell()

    def leave(self) -> None:
        """End all of them."""
        self._leaving = True
        self.bell.ring()

    async def stream(
        self, followed: Followed, after: int | None, may_go_on: Callable[[], bool], cut: Callable[[], None]
    ) -> StreamingResponse:
        """A stream of what is followed, after a number (None: of what comes from now on).
        ``may_go_on``: whether its token is still good. ``cut`` ends its connection.

        :raises HttpProblem: there are too many, or no record has that number yet.
        """
        if self.open >= MAX_STREAMS or self._leaving:
            raise HttpProblem(503, f"{self.open} streams are open: end one first", {"retry-after": "5"})
        self.open += 1  # before anything is waited for, or all that come together would find a place
        try:
            number = await self._begin(followed, after)
        except BaseException:
            self._ended()
            raise
        return _EventStream(self._events(followed, number, after is None, may_go_on), cut, self._ended)

    async def _begin(self, followed: Followed, after: int | None) -> int:
        """The number that a stream goes on after. It is known before the answer begins, so whatever is stored once a
        client sees the answer is in its stream."""
        newest = await self._answers.read(followed.newest)
        if after is not None and after > newest:
            raise HttpProblem(
                400, f"Last-Event-ID {after} is above {newest}, the newest that there is, so it is of another store: "
                "begin without it",
            )  # fmt: skip
        return newest if after is None else after

    def _ended(self) -> None:
        self.open -= 1

    async def _events(
        self, followed: Followed, number: int, was_abreast: bool, may_go_on: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        yield b"retry: 1000\nid: %d\n\n" % number
        while not self._leaving:
            rung = self.bell.next()  # taken before the look, or what is stored between both would wait for the next
            try:
                found = await self._look(followed, number)
            except StorageError:
                yield _event("ended", {"why": "the store can't be read now: ask again later"}, number)
                return
            if not may_go_on():
                yield _event(
                    "ended", {"why": "the token or certificate was revoked, has ended, or can't be checked now"}, number
                )
                return
            behind = found.behind
            if was_abreast and behind > MAX_BEHIND:
                yield _event("dropped", {"why": f"{behind} {followed.event}s behind: go on with Last-Event-ID"}, number)
                return
            for at, content in found.items:
                yield _event(followed.event, content, at)
            if found.reached > number and (not found.items or found.items[-1][0] < found.reached):
                yield b"id: %d\n\n" % found.reached  # so that who comes back need not look through these again
            number, was_abreast = found.reached, was_abreast or not behind
            if not behind and not await _is_set(rung, _QUIET_S):
                yield b": nothing new\n\n"

    async def _look(self, followed: Followed, number: int) -> StreamLook:
        while True:
            await asyncio.sleep(_PAUSE_S)
            try:
                return await self._answers.read(lambda reader: followed.after(reader, number))
            except HttpProblem:
                continue  # too many wait for a thread


class _EventStream(StreamingResponse):
    """A response that is cut off when its client takes nothing. ``ended`` is called once it is over."""

    def __init__(self, events: AsyncIterator[bytes], cut: Callable[[], None], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._cut, self._ended = events, cut, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()

    async def stream_response(self, send: Send) -> None:
        """Send what there is, as long as it is taken."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                except TimeoutError:
                    self._cut()
                    break
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def untrusted_number(text: str) -> int:
    """The number in a ``Last-Event-ID``. :raises HttpProblem: there is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= LAST_UTC_NS):
        raise HttpProblem(400, f"Last-Event-ID {text[:40]!r} is not one that a stream had: give it unchanged")
    return int(text)


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _event(name: str, content: Any, number: int) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode(), msgspec.json.encode(content))
