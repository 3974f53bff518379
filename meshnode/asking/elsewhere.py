"""What a node tells of readings that it does not hear: those of the last hours, and those of elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from meshnode.asking.question import RelayAnswer, relay_question
from meshnode.asking.running import TIMEOUT_S, RunningAsking
from meshnode.history.query import HistoryPage, Instant, sought
from meshnode.history.running import RunningHistory
from meshnode.running import RunningPart
from protocols.base import limits
from protocols.base.ids import UtcNs

_P = TypeVar("_P", bound=RunningPart)


class PastAndElsewhere(ABC):
    """The methods of a node that look back and beyond."""

    @abstractmethod
    def part(self, kind: type[_P]) -> _P:
        """See :meth:`meshnode.running.Host.part`."""

    async def history(
        self, expression: str = "**", *, since: Instant | None = None, until: Instant | None = None,
        origin: str | None = None, box: Sequence[float] | None = None, limit: int = 100, newest_first: bool = True,
        cursor: str | None = None,
    ) -> HistoryPage:  # fmt: skip
        """Readings of the last hours, from the disk of a node with ``[history]``, in the order of sensing.

        ``since`` (inclusive) and ``until`` (exclusive): UTC in nanoseconds, a ``datetime`` with its offset, or a
        ``timedelta`` for an age. ``origin``: the node that published them. ``box``: latitude, longitude, latitude,
        longitude of two opposite corners, the western longitude first. ``limit``: 1 to 1,000. ``cursor``: that of the
        page before. A page may have fewer readings than the limit; only the last one has no cursor.

        :raises InvalidKey: ``expression`` is not one. :raises LocalProtocolError: the node keeps no history, or
            something else is out of range. :raises StorageError: the disk fails.
        """
        query = sought(
            expression, since=since, until=until, origin=origin, box=box, limit=limit, newest_first=newest_first,
            cursor=cursor, now=UtcNs(time.time_ns()),
        )  # fmt: skip
        return await self.part(RunningHistory).find(query)

    async def query(
        self, expression: str, *, newest: bool = False, since: Instant | None = None,
        box: Sequence[float] | None = None, near: Sequence[float] | None = None, radius_m: float | None = None,
        limit: int = limits.MAX_TOLD_RECORDS, cursor: str | None = None, timeout_s: float = TIMEOUT_S,
    ) -> RelayAnswer:  # fmt: skip
        """Readings of elsewhere, which the relay has; each comes with its age by the clock of the relay.

        ``newest``: only the newest of each key. ``since``, ``box``, ``cursor``: as in :meth:`history`. ``near``,
        ``radius_m``: latitude and longitude, and metres. ``limit``: 1 to 100. It raises ``InvalidKey`` and the errors
        of :meth:`meshnode.asking.running.RunningAsking.begin`: NotPermitted by the relay's table of access, say."""
        question = relay_question(
            expression, newest=newest, since=since, box=box, near=near, radius_m=radius_m, limit=limit, cursor=cursor,
        )  # fmt: skip
        return await self.part(RunningAsking).find(question, timeout_s)
