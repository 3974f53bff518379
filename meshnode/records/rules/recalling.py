"""Looks up in the history of this node what was read before a recording began, and hands it on page by page.

A page is looked up only once most of what waits for the outbox is stored, so that a recording does not push out records
that others have chosen.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from meshnode.tasks import Tasks
from protocols.base.errors import MeshError
from protocols.records.wanted import HistoryWanted
from protocols.wire.parcels import decode_untrusted_reading
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)

PAGE: Final = 100
MAX_AT_ONCE: Final = 8
"""Recordings that are looked up at one time."""
_ROOM: Final = 256
"""So many records may wait for the outbox when the next page is looked up."""

Ask = Callable[[Mapping[str, Any]], "Future[Any]"]
"""Asks the history of the node, see ``query_of_untrusted`` there. :raises MeshError: it has none."""


class Recaller:
    """See the module. It belongs to the event loop."""

    def __init__(
        self, node: str, ask: Ask, waiting: Callable[[], int], take: Callable[[int, Sequence[Reading], bool], None]
    ) -> None:
        """``waiting``: how many records wait for the outbox. ``take``: see ``Curator.recalled``."""
        self._node, self._ask, self._waiting, self._take = node, ask, waiting, take
        self._tasks = Tasks()
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self.stored = asyncio.Event()
        """To be set whenever records that waited were stored."""
        self.failed = 0
        """Times before recordings that could not be looked up."""

    def begin(self, wanted: HistoryWanted) -> None:
        """Look up what a recording wants. Nothing is begun any more once this is closed."""
        self._tasks.begin(self._recall(wanted), "recording")

    async def _recall(self, wanted: HistoryWanted) -> None:
        left = wanted.most
        try:
            async with self._places:
                for expression in wanted.keys:
                    left -= await self._of(expression, wanted, left)
        except MeshError as error:
            self.failed += 1
            if self.failed & (self.failed - 1) == 0:  # 1, 2, 4, 8 …
                _log.warning("what was read before a recording began is not recorded: %s", error)
        finally:
            self._take(wanted.number, (), True)

    async def _of(self, expression: str, wanted: HistoryWanted, most: int) -> int:
        """Take the newest readings of some keys, at most so many. Returns how many there were."""
        question: dict[str, Any] = {
            "expression": expression, "since_ns": wanted.since_ns, "until_ns": wanted.until_ns, "newest_first": True,
            "origin": self._node if wanted.own_only else None,
        }  # fmt: skip
        found, cursor = 0, None
        while found < most:
            while self._waiting() > _ROOM:
                self.stored.clear()
                await self.stored.wait()
            page = await asyncio.wrap_future(
                self._ask({**question, "cursor": cursor, "limit": min(PAGE, most - found)})
            )
            readings = await asyncio.to_thread(lambda data: [*map(decode_untrusted_reading, data)], page["readings"])
            found += len(readings)
            self._take(wanted.number, readings[::-1], False)
            cursor = page["cursor"]
            if cursor is None:
                break
        return found

    async def close(self) -> None:
        """Give up what is under way."""
        await self._tasks.close()
