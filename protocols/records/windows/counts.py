"""Open windows of so many readings."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.records.windows.kinds import CountWindow
from protocols.records.windows.open import ClosedWindow
from protocols.records.windows.saving import SavedState, WindowTally, decoded_row, encoded_row, restored
from protocols.records.windows.summary import Functions, Summary
from protocols.wire.readings import Reading


class _Counted:
    __slots__ = ("full", "pane")

    def __init__(self) -> None:
        self.pane = Summary()
        self.full: deque[Summary] = deque()


class CountStore:
    """Windows of so many readings, in the order in which they came."""

    def __init__(self, window: CountWindow, functions: Functions, max_rows: int) -> None:
        self._window, self._functions, self._max_rows = window, functions, max_rows
        self._counted: dict[str, _Counted] = {}
        self._rows: SharedRows[str, str] = SharedRows()
        self._over: deque[ClosedWindow] = deque()
        self._changed: dict[str, None] = {}
        self._tracks = False
        self.tally = WindowTally()
        self.evicted = 0

    def put(self, partition: str, reading: Reading, value: Any, is_own: bool, now: int, utc_now: int) -> str:
        """See ``OpenWindows``."""
        counted = self._counted.get(partition) or _Counted()
        if not counted.pane.take(reading, value, self._functions, is_own):
            return "unfit"
        if partition not in self._counted:
            self._counted[partition] = counted
            self._rows.add(reading.origin, partition)
            if len(self._rows) * self._window.max_open > self._max_rows:
                gone = self._rows.next_to_go()
                self._rows.remove(gone)
                if self._tracks:
                    self._changed[gone] = None
                lost = self._counted.pop(gone)
                lost_count = lost.pane.count + sum(pane.count for pane in lost.full)
                self.evicted += lost_count
                self.tally.held -= lost_count
        if self._tracks:
            self._changed[partition] = None
        self.tally.held += 1
        if counted.pane.count == self._window.every:
            counted.full.append(counted.pane)
            counted.pane = Summary()
            if len(counted.full) == self._window.panes:
                summary = Summary()
                for pane in counted.full:
                    summary.merge(pane, self._functions)
                oldest = counted.full.popleft()
                self.tally.held -= oldest.count
                self.tally.gone += oldest.count
                self._over.append(ClosedWindow(partition, summary, summary.first_ns, summary.last_ns))
        return ""

    def due_ns(self) -> int:
        """See ``OpenWindows``."""
        return -NEVER if self._over else NEVER

    def closed(self, now: int) -> Iterator[ClosedWindow]:
        """See ``OpenWindows``."""
        while self._over:
            yield self._over.popleft()

    @property
    def held(self) -> int:
        """See ``OpenWindows``."""
        return sum(each.pane.count + sum(pane.count for pane in each.full) for each in self._counted.values())

    @property
    def has_changed(self) -> bool:
        """See ``Restorable``."""
        return bool(self._changed)

    def track(self, is_on: bool) -> None:
        """See ``Restorable``."""
        self._tracks = is_on
        self._changed = dict.fromkeys(self._counted) if is_on else {}

    def changed(self, most: int) -> list[tuple[str, bytes | None]]:
        """See ``Restorable``."""
        rows: list[tuple[str, bytes | None]] = []
        for partition in list(islice(self._changed, most)):
            del self._changed[partition]
            counted = self._counted.get(partition)
            payer = self._rows.payer_of(partition) or ""
            data = None if counted is None else encoded_row(partition, payer, 0, (*counted.full, counted.pane))
            rows.append((partition, data))
        return rows

    def restore(self, rows: Iterable[bytes], state: SavedState, now: int, utc_now: int) -> None:
        """See ``Restorable``."""
        for saved in map(decoded_row, rows):
            if not state.clean:
                if self._tracks:
                    self._changed[saved.partition] = None
                continue
            counted = self._counted[saved.partition] = _Counted()
            *full, counted.pane = (restored(summary, self._functions) for summary in saved.summaries)
            counted.full.extend(full)
            self._rows.add(saved.payer, saved.partition)
            self.tally.held += sum(summary.count for summary in saved.summaries)
