"""Open windows of time, by panes of one step."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.records.windows.kinds import FUTURE_NS, TimeWindow, is_from_future
from protocols.records.windows.open import ClosedWindow
from protocols.records.windows.saving import SavedState, WindowTally, decoded_row, encoded_row, restored
from protocols.records.windows.summary import Functions, Summary
from protocols.wire.readings import Reading


class TimeStore:
    """Tumbling and sliding windows, by panes of one step. Number *n* is the pane, and the window that ends with it, of
    the *n*-th step since 1970."""

    def __init__(self, window: TimeWindow, functions: Functions, max_rows: int) -> None:
        self._window, self._functions, self._max_rows = window, functions, max_rows
        self._panes: dict[int, dict[str, Summary]] = {}
        self._rows: SharedRows[str, tuple[int, str]] = SharedRows()
        self._ends: list[tuple[int, int]] = []
        """When each open window is over, and its number; a heap."""
        self._open: set[int] = set()
        self._recent: deque[int] = deque(maxlen=2 * window.max_open)
        """The numbers of windows that were closed lately: a clock that is slewed must not open them again."""
        self._going: Iterator[ClosedWindow] | None = None
        self._changed: dict[tuple[int, str], None] = {}
        self._tracks = False
        self.tally = WindowTally()
        self.evicted = 0

    def put(self, partition: str, reading: Reading, value: Any, is_own: bool, now: int, utc_now: int) -> str:
        """See ``OpenWindows``."""
        window, when = self._window, reading.when
        if is_from_future(when, utc_now):
            return "future"
        number = when.utc_ns // window.every_ns
        closes_ns = self._closes_ns(number + window.panes - 1)
        if closes_ns <= utc_now or number + window.panes - 1 in self._recent:
            return "late"
        pane = self._panes.setdefault(number, {})
        summary = pane.get(partition)
        if summary is None:
            summary = Summary()
            if not summary.take(reading, value, self._functions, is_own):
                self._drop_if_empty(number)
                return "unfit"
            pane[partition] = summary
            self._rows.add(reading.origin, (number, partition))
            if len(self._rows) > self._max_rows:
                self._evict()
        elif not summary.take(reading, value, self._functions, is_own):
            return "unfit"
        if self._tracks:
            self._changed[number, partition] = None
        self.tally.held += 1
        for end in range(number, number + window.panes):
            if end not in self._open and end not in self._recent:
                closes_ns = self._closes_ns(end)
                if closes_ns > utc_now:
                    self._open.add(end)
                    heapq.heappush(self._ends, (now + closes_ns - utc_now, end))
        return ""

    @property
    def held(self) -> int:
        """See ``OpenWindows``."""
        return sum(summary.count for pane in self._panes.values() for summary in pane.values())

    @property
    def has_changed(self) -> bool:
        """See ``Restorable``."""
        return bool(self._changed)

    def track(self, is_on: bool) -> None:
        """See ``Restorable``."""
        self._tracks = is_on
        self._changed = (
            dict.fromkeys((number, name) for number, pane in self._panes.items() for name in pane) if is_on else {}
        )

    def changed(self, most: int) -> list[tuple[str, bytes | None]]:
        """See ``Restorable``."""
        rows: list[tuple[str, bytes | None]] = []
        for row in list(islice(self._changed, most)):
            del self._changed[row]
            number, partition = row
            summary = self._panes.get(number, {}).get(partition)
            payer = self._rows.payer_of(row) or ""
            data = None
            if summary is not None:
                open_from = min(
                    (end for end in range(number, number + self._window.panes) if end in self._open), default=0
                )
                data = encoded_row(partition, payer, number, (summary,), open_from)
            rows.append((f"{number} {partition}", data))
        return rows

    def restore(self, rows: Iterable[bytes], state: SavedState, now: int, utc_now: int) -> None:
        """See ``Restorable``."""
        for saved in map(decoded_row, rows):
            number, partition = saved.number, saved.partition
            every = range(max(number, saved.open_from), number + self._window.panes)
            ends = [end for end in every if self._closes_ns(end) > state.derived_ns]
            if not ends:
                if self._tracks:
                    self._changed[number, partition] = None
                continue
            (summary,) = (restored(summary, self._functions) for summary in saved.summaries)
            self._panes.setdefault(number, {})[partition] = summary
            self._rows.add(saved.payer, (number, partition))
            self.tally.held += summary.count
            for end in ends:
                if end not in self._open:
                    self._open.add(end)
                    left_ns = min(max(self._closes_ns(end) - utc_now, 0), self._longest_ns)  # the clock may be wrong
                    heapq.heappush(self._ends, (now + left_ns, end))
            if len(self._rows) > self._max_rows:
                self._evict()

    @property
    def _longest_ns(self) -> int:
        """The longest that a window is open."""
        return self._window.size_ns + self._window.late_ns + 2 * FUTURE_NS

    def _closes_ns(self, end: int) -> int:
        return (end + 1) * self._window.every_ns + self._window.late_ns

    def due_ns(self) -> int:
        """See ``OpenWindows``."""
        if self._going is not None:
            return -NEVER
        return self._ends[0][0] if self._ends else NEVER

    def closed(self, now: int) -> Iterator[ClosedWindow]:
        """See ``OpenWindows``."""
        while True:
            if self._going is None:
                if not self._ends or self._ends[0][0] > now:
                    return
                end = heapq.heappop(self._ends)[1]
                self._recent.append(end)
                self.tally.derived_ns = max(self.tally.derived_ns, self._closes_ns(end))
                self._going = self._close(end)
            found = next(self._going, None)
            if found is None:
                self._going = None
            else:
                yield found

    def _close(self, end: int) -> Iterator[ClosedWindow]:
        window = self._window
        numbers = range(end - window.panes + 1, end + 1)
        start_ns, end_ns = numbers[0] * window.every_ns, (end + 1) * window.every_ns
        is_oldest = min(self._open) == end
        for partition in dict.fromkeys(p for number in numbers for p in self._panes.get(number, ())):
            summary = Summary()
            for number in numbers:
                part = self._panes.get(number, {}).get(partition)
                if part is not None:
                    summary.merge(part, self._functions)
            if is_oldest:  # so that its rows don't go all at once
                self._drop(numbers[0], partition)
            if summary.count:
                yield ClosedWindow(partition, summary, start_ns, end_ns)
        self._open.discard(end)
        oldest = min(self._open, default=end + 1)
        for number in [n for n in self._panes if n <= oldest - window.panes]:
            for partition in list(self._panes[number]):
                self._drop(number, partition)

    def _drop(self, number: int, partition: str) -> None:
        """A row is in no open window any more."""
        part = self._panes.get(number, {}).pop(partition, None)
        if part is None:
            return
        self.tally.held -= part.count
        self.tally.gone += part.count
        self._rows.remove((number, partition))
        if self._tracks:
            self._changed[number, partition] = None
        self._drop_if_empty(number)

    def _evict(self) -> None:
        number, partition = row = self._rows.next_to_go()
        self._rows.remove(row)
        if self._tracks:
            self._changed[row] = None
        lost = self._panes[number].pop(partition).count
        self.evicted += lost
        self.tally.held -= lost
        self._drop_if_empty(number)

    def _drop_if_empty(self, number: int) -> None:
        if not self._panes[number]:
            del self._panes[number]
