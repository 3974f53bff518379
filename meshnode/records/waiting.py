"""Chosen readings on their way to the outbox, in a queue that own readings and those of other nodes share.

Own records are taken first. Other nodes are taken by turns. When the queue is full, the other node that holds most of
it gives way with its newest record, and own records only when nothing of others waits.
"""

from collections import OrderedDict, deque
from typing import Final, NamedTuple

from protocols.base.shares import Shares
from protocols.records.curated import Curated
from protocols.records.pending import OWN

MAX_WAITING: Final = 4_096
"""Chosen readings on their way to the outbox."""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024


class Waiting(NamedTuple):
    """A record, and the key of its reading."""

    key: str
    curated: Curated


class WaitingRecords:
    """Not thread-safe: its owner has a lock."""

    def __init__(self) -> None:
        self._own: deque[Waiting] = deque()
        self._others: OrderedDict[str, deque[Waiting]] = OrderedDict()
        """By node; the one whose turn is next comes first."""
        self._bytes: Shares[str] = Shares()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, waiting: Waiting) -> list[Waiting]:
        """Add a record. Returns those that gave way to it; it may be among them."""
        payer = waiting.curated.payer
        if payer == OWN:
            self._own.append(waiting)
        else:
            self._others.setdefault(payer, deque()).append(waiting)
        self._bytes.add(payer, waiting.curated.size_bytes)
        self._count += 1
        gave_way = []
        while self._count > MAX_WAITING or self._bytes.total > MAX_WAITING_BYTES:
            gave_way.append(self._newest_of_largest())
        return gave_way

    def take(self, most: int) -> list[Waiting]:
        """Remove and return at most ``most`` records, in turn."""
        taken = [self._own.popleft() for _ in range(min(most, len(self._own)))]
        while self._others and len(taken) < most:
            payer, queue = self._others.popitem(last=False)
            taken.append(queue.popleft())
            if queue:
                self._others[payer] = queue
        for waiting in taken:
            self._bytes.remove(waiting.curated.payer, waiting.curated.size_bytes)
        self._count -= len(taken)
        return taken

    def _newest_of_largest(self) -> Waiting:
        if self._others:
            payer = max(self._others, key=self._bytes.held)
            waiting = self._others[payer].pop()
            if not self._others[payer]:
                del self._others[payer]
        else:
            waiting = self._own.pop()
        self._bytes.remove(waiting.curated.payer, waiting.curated.size_bytes)
        self._count -= 1
        return waiting
