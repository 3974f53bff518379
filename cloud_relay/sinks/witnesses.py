"""Records of other nodes by which a sink tells a receiver that takes nothing from a node whose records are bad.

A receiver that has refused many records in a row may want a column, a right or a topic: then it refuses everybody. Or
one node sends what it never takes. The difference is a record of another node, which may stand far behind in the store.
Looking for it is bounded in memory: the first waiting record of a few nodes is kept, and no look goes over the same
numbers twice as long as the sink stands before what was found.
"""

import asyncio
from collections.abc import Container
from typing import Final

from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.stores.contract import SinkStore

MAX_WITNESSES: Final = 64
"""Nodes whose first waiting record is kept. More than there are nodes that a sink asks about in one go."""
_LOOK_RECORDS: Final = 256


class Witnesses:
    """Belongs to the thread of its store."""

    def __init__(self, store: SinkStore) -> None:
        self._store = store
        self._found: dict[str, tuple[int, StoredRecord]] = {}
        """The first record of each node after the sink's position, with its number."""
        self._reached = 0
        """Numbers up to this one were looked at."""

    async def next(self, position: int, but: Container[str]) -> tuple[int, StoredRecord] | None:
        """The first record behind a position that is of none of the nodes ``but``, with its number.

        None: there is none yet. :raises StorageError: the store can't be read.
        """
        if self._reached < position or any(number <= position for number, _ in self._found.values()):
            self._found.clear()
            self._reached = position
        while (witness := self._known(but)) is None:
            look = self._store.extend(Portion(self._reached + 1, self._reached, []), _LOOK_RECORDS, None)
            for number, record in look.portion.records:
                if len(self._found) < MAX_WITNESSES:
                    self._found.setdefault(record.fields["origin"], (number, record))
            self._reached = look.portion.last
            if self._reached >= look.newest:
                return self._known(but)
            await asyncio.sleep(0)
        return witness

    def _known(self, but: Container[str]) -> tuple[int, StoredRecord] | None:
        others = [found for origin, found in self._found.items() if origin not in but]
        return min(others, key=lambda found: found[0]) if others else None
