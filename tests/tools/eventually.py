"""Waiting for a condition that comes true in its own time.

The limit ends a test that hangs, and judges nothing: it is far beyond what anything takes on a busy machine. What has
to be fast is measured by ``benchmarks``.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 30.0
"""Three waits of this length fit into the time that one test may take."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05
"""Pauses grow by half. So a condition that is true at once is seen at once, and a long wait costs little."""

What = str | Callable[[], str]
"""A text about the condition. A function is called when the time is up, so that the text can say what was reached."""


def eventually(condition: Callable[[], T], what: What = "it comes true", limit_s: float = LIMIT_S) -> T:
    """The first true value of ``condition``, asked again and again while this thread sleeps in between.

    :raises AssertionError: when it did not come true in time.
    """
    pauses = _pauses(what, limit_s)
    while True:
        if value := condition():
            return value
        time.sleep(next(pauses))


async def until(condition: Callable[[], T], what: What = "it comes true", limit_s: float = LIMIT_S) -> T:
    """As :func:`eventually`, while the event loop goes on."""
    pauses = _pauses(what, limit_s)
    while True:
        if value := condition():
            return value
        await asyncio.sleep(next(pauses))


def _pauses(what: What, limit_s: float) -> Iterator[float]:
    ends_s, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
    while time.monotonic() < ends_s:
        yield pause_s
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    raise AssertionError(f"not within {limit_s:g} s: {what if isinstance(what, str) else what()}")
