"""The batches that wait for the writer of the store, taken by turns: one batch of each origin, then the next of each.

Nodes that upload much can't delay those that upload little by more than one batch each. When the queue is full, the
origin that has most batches in it gives way with its newest one.
"""

import threading
from collections import deque
from typing import Generic, TypeVar

from protocols.base.shares import Shares

ItemT = TypeVar("ItemT")


class Turns(Generic[ItemT]):
    """A bounded queue that any thread may use."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[ItemT]] = {}
        """By origin; the origin whose turn is next comes first."""
        self._shares: Shares[str] = Shares()
        self._closed = False
        self.gave_way = 0
        """Items that were turned away because the queue was full."""

    def put(self, origin: str, item: ItemT) -> ItemT | None:
        """Queue an item. Returns the item that gave way to it, which may be this one.

        :raises ValueError: when the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise ValueError("the queue is closed")
            self._waiting.setdefault(origin, deque()).append(item)
            self._shares.add(origin)
            self._changed.notify()
            if self._shares.total <= self._capacity:
                return None
            largest = self._shares.largest()
            left = self._waiting[largest].pop()
            self._removed(largest)
            self.gave_way += 1
            return left

    def take(self, most: int, timeout_s: float | None = None) -> list[ItemT] | None:
        """Wait for items and return at most ``most``, of different origins, in turn. Empty: the queue is closed, and
        all items were taken. None: nothing came in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s):
                return None
            taken: list[ItemT] = []
            for origin in list(self._waiting)[:most]:
                waiting = self._waiting.pop(origin)
                taken.append(waiting.popleft())
                self._waiting[origin] = waiting
                self._removed(origin)
            return taken

    @property
    def waiting(self) -> int:
        """Items that nobody has taken yet."""
        return self._shares.total

    def close(self) -> None:
        """Take no more items. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _removed(self, origin: str) -> None:
        self._shares.remove(origin)
        if not self._waiting[origin]:
            del self._waiting[origin]
