"""Ends what waits too long for a client that neither sends nor reads.

The library has no time-outs for either, and a thread waits meanwhile. One look every few seconds, only while something
waits, does for all: a timer for each call would cost as much as the call.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LOOK_S: Final = 2.0


class ClientPatience:
    """May be used from any thread; ends are called on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waits: dict[int, tuple[float, Callable[[], object]]] = {}
        self._looks = False

    @contextmanager
    def within(self, seconds: float, end: Callable[[], object]) -> Iterator[None]:
        """Call ``end`` once if the block takes longer than this, up to ``LOOK_S`` later. It may be called while the
        block ends."""
        number, until_s = next(self._numbers), time.monotonic() + seconds
        with self._lock:
            self._waits[number] = until_s, end
            begins, self._looks = not self._looks, True
        if begins:
            self._loop.call_soon_threadsafe(self._look_later)
        try:
            yield
        finally:
            with self._lock:
                self._waits.pop(number, None)

    def _look_later(self) -> None:
        self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            late = [number for number, (until_s, _) in self._waits.items() if until_s <= now_s]
            ends = [self._waits.pop(number)[1] for number in late]
            goes_on = self._looks = bool(self._waits)
        for end in ends:
            end()
        if goes_on:
            self._look_later()
