"""The readings that a pattern waits with: bounded, by partition, and in the order of their times.

There are three bounds. A reading that holds more than ``MAX_HELD_BYTES`` is not kept at all. A partition keeps at most
``max_held`` readings, so that each that comes is compared with few. And all partitions together keep at most
``max_bytes``. Who sensed a reading pays for it; where a bound is reached, the largest holder gives way with its oldest
one. So a neighbour that invents readings or keys pushes out its own first.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from typing import Final, Generic, TypeVar

from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.records.windows.rule import MIB
from protocols.wire.encoding.values import TENSOR_BYTES, kept_alive, object_bytes, weight_bytes
from protocols.wire.readings import Reading
from protocols.wire.tensors import Tensor

ROW_BYTES: Final = 2_048
"""What a reading with texts and a value of usual length takes, with its places in the tables here."""
MAX_HELD_BYTES: Final = 16 * 1024
_READING_BYTES: Final = 704
"""The objects of a reading without its texts and its value."""
_PLACES_BYTES: Final = 700
"""The row itself and its places in the tables."""
_HELD: Final = (type(None), bool, int, float, str, bytes, list, dict)
_FORGOTTEN_AT_ONCE: Final = 4


class WaitingRow:
    """A row that waits in a partition until ``due_ns`` by the monotonic clock."""

    __slots__ = ("due_ns", "is_gone", "partition")

    def __init__(self, partition: str, due_ns: int) -> None:
        self.partition, self.due_ns = partition, due_ns
        self.is_gone = False


RowT = TypeVar("RowT", bound=WaitingRow)


class RowDeadlines(Generic[RowT]):
    """Which row is due next. A row may come to be due later than when it was added, but not earlier."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, RowT]] = []
        self._adds = self._live = 0

    def add(self, row: RowT) -> None:
        """Wait with a row."""
        self._live += 1
        self._push(row)

    def discard(self, row: RowT) -> None:
        """Wait with a row no longer."""
        row.is_gone = True
        self._live -= 1
        if len(self._heap) > 2 * self._live + 64:
            self._heap = [place for place in self._heap if not place[2].is_gone]
            heapq.heapify(self._heap)

    def next(self) -> RowT | None:
        """The row that is due first."""
        while self._heap:
            due_ns, _, row = self._heap[0]
            if not row.is_gone and row.due_ns <= due_ns:
                return row
            heapq.heappop(self._heap)
            if not row.is_gone:
                self._push(row)
        return None

    def _push(self, row: RowT) -> None:
        self._adds += 1
        heapq.heappush(self._heap, (row.due_ns, self._adds, row))


class HeldReading(WaitingRow):
    """A reading that a pattern waits with."""

    __slots__ = ("reading", "twin")

    def __init__(self, partition: str, reading: Reading, due_ns: int) -> None:
        super().__init__(partition, due_ns)
        self.reading = reading
        self.twin: HeldReading | None = None
        """The same reading where it is held for another part that it may play."""


def time_order(reading: Reading) -> tuple[int, str, str, int]:
    """By time; those of one moment by what identifies them, so that the order in which they came doesn't count."""
    return reading.when.utc_ns, reading.origin, reading.key, reading.sequence


def _place(held: HeldReading) -> tuple[int, str, str, int]:
    return time_order(held.reading)


def _utc_ns(held: HeldReading) -> int:
    return held.reading.when.utc_ns


def held_bytes(reading: Reading, partition: str) -> int:
    """The most memory that it takes to hold a reading; more than ``MAX_HELD_BYTES`` when its value can't travel."""
    value, how = reading.value, reading.how
    if type(value) is Tensor:
        value_bytes = len(kept_alive(value)) + TENSOR_BYTES
    elif type(value) in _HELD:
        value_bytes = weight_bytes(value) if type(value) in (list, dict) else object_bytes(value)
    else:
        return MAX_HELD_BYTES + 1
    size_bytes = _READING_BYTES + _PLACES_BYTES + value_bytes + object_bytes(partition) + object_bytes(reading.key)
    size_bytes += object_bytes(reading.origin) + object_bytes(how.sensor) + object_bytes(how.unit)
    size_bytes += object_bytes(how.calibration)
    if how.lineage:
        size_bytes += object_bytes(how.lineage) + sum(map(object_bytes, how.lineage))
    return size_bytes


class HeldReadings:
    """See the module."""

    def __init__(self, max_partitions: int, max_held: int) -> None:
        self.max_bytes = bytes_for(max_partitions, max_held)
        self._max_held = max_held
        self._held: dict[str, list[HeldReading]] = {}
        self._rows: SharedRows[str, HeldReading] = SharedRows()
        self._deadlines: RowDeadlines[HeldReading] = RowDeadlines()
        self.evicted = 0
        """How many readings gave way."""

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, partition: str, reading: Reading, due_ns: int) -> HeldReading:
        """Hold a reading, which takes at most ``MAX_HELD_BYTES``."""
        held = HeldReading(partition, reading, due_ns)
        readings = self._held.setdefault(partition, [])
        insort(readings, held, key=_place)
        self._rows.add(reading.origin, held, held_bytes(reading, partition))
        self._deadlines.add(held)
        if len(readings) > self._max_held:
            holders = Counter(one.reading.origin for one in readings)
            largest = max(holders, key=holders.__getitem__)
            self._evict(next(one for one in readings if one.reading.origin == largest))
        while self._rows.shares.total > self.max_bytes:
            self._evict(self._rows.next_to_go())
        return held

    def between(self, partition: str, first_ns: int, last_ns: int) -> list[HeldReading]:
        """The readings of a partition sensed from ``first_ns`` to ``last_ns``, both included, in the order of time."""
        readings = self._held.get(partition)
        if not readings:
            return []
        return readings[bisect_left(readings, first_ns, key=_utc_ns) : bisect_right(readings, last_ns, key=_utc_ns)]

    def drop(self, held: HeldReading) -> None:
        """Hold a reading no longer; nothing happens when it is gone."""
        if held.is_gone:
            return
        self._deadlines.discard(held)
        self._rows.remove(held)
        readings = self._held[held.partition]
        del readings[bisect_left(readings, _place(held), key=_place)]
        if not readings:
            del self._held[held.partition]

    def due_ns(self) -> int:
        """When the next reading is due; ``NEVER`` when none is held."""
        held = self._deadlines.next()
        return NEVER if held is None else held.due_ns

    def take_due(self, now: int) -> HeldReading | None:
        """A reading that is due, which is held no longer."""
        held = self._deadlines.next()
        if held is None or held.due_ns > now:
            return None
        self.drop(held)
        return held

    def forget_due(self, now: int) -> None:
        """Forget a few readings that are due: more than one comes at a time, so none stays for long while any come."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            if self.take_due(now) is None:
                return

    def _evict(self, held: HeldReading) -> None:
        self.evicted += 1
        self.drop(held)


def bytes_for(max_partitions: int, max_held: int) -> int:
    """What the readings of so many partitions may take: at least a mebibyte, so that a few large ones have room."""
    return max(max_partitions * max_held * ROW_BYTES, MIB)
