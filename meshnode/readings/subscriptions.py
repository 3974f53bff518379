"""A subscription as an application holds it: a handle, with a bounded queue for ``async for``."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from protocols.base.shares import Shares
from protocols.wire.readings import Reading


class Subscription:
    """Readings of one key expression. Iterate with ``async for``, unless it was made with a callback.

    The queue is bounded: a reader that falls behind loses the oldest readings of the node that has most of them there
    (with ``conflate``, the older one of the same key), and :attr:`dropped` says how many. So a node that floods the
    queue loses its own. Leaving the ``with`` block, or :meth:`close`, ends it.
    """

    def __init__(self, expression: str, depth: int, conflate: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        self.expression = expression
        self.dropped = 0
        """How many readings were dropped because this reader was too slow."""
        self.deadlines_missed = 0
        """How often a stream was silent for longer than the deadline."""
        self._depth, self._conflate, self._loop = depth, conflate, loop
        self._lock = threading.Lock()
        self._waiting: deque[Reading] = deque()
        self._newest: dict[tuple[str, str], Reading] = {}
        self._held: Shares[str] = Shares()
        """What waits, by origin."""
        self._arrived = asyncio.Event()
        self._asleep = False
        self._closed = False
        self._on_close: Callable[[], None] | None = None

    def bind(self, on_close: Callable[[], None]) -> None:
        """Set what :meth:`close` calls. The node does so once the subscription is registered."""
        self._on_close = on_close

    def take(self, reading: Reading) -> None:
        """Queue a reading. May be called from any thread."""
        with self._lock:
            if self._conflate:
                stream = (reading.origin, reading.key)
                if stream in self._newest:
                    if reading.sequence > self._newest[stream].sequence:  # history may come later
                        self._newest[stream] = reading
                    self.dropped += 1
                    return
                self._newest[stream] = reading
            else:
                self._waiting.append(reading)
            self._held.add(reading.origin)
            if self._held.total > self._depth:
                self._give_way(self._held.largest())
            wake, self._asleep = self._asleep, False
        if wake:
            self._wake()

    def _give_way(self, origin: str) -> None:
        """Drop the oldest reading of an origin."""
        if self._conflate:
            del self._newest[next(stream for stream in self._newest if stream[0] == origin)]
        else:
            del self._waiting[next(at for at, waiting in enumerate(self._waiting) if waiting.origin == origin)]
        self._held.remove(origin)
        self.dropped += 1

    def _wake(self) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the event loop has ended, and with it the reader
            self._closed = True

    def _next(self) -> Reading | None:
        with self._lock:
            if self._held.total:
                first = next(iter(self._newest), None)
                reading = self._waiting.popleft() if first is None else self._newest.pop(first)
                self._held.remove(reading.origin)
                return reading
            self._asleep = True
            return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reading:
        if self._loop is None:
            raise TypeError("this subscription has a callback; make one without to iterate over it")
        while True:
            self._arrived.clear()
            reading = self._next()
            if reading is not None:
                return reading
            if self._closed:
                raise StopAsyncIteration
            await self._arrived.wait()

    async def next(self, timeout_s: float | None = None) -> Reading:
        """The next reading. :raises TimeoutError: when none came in time."""
        async with asyncio.timeout(timeout_s):
            return await self.__anext__()

    def close(self) -> None:
        """End it; an ``async for`` over it ends after what is queued. Idempotent. May be called from any thread."""
        if not self._closed:
            self._closed = True
            if self._on_close is not None:
                self._on_close()
            if self._loop is not None and not self._loop.is_closed():
                self._wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
