"""The open windows of a rule by partition: what readings are put into, and what comes out when a window is over.

Each store is bounded by ``max_rows`` rows (a pane or a session of one partition). Who sent the first reading of a row
pays for it; when the store is full, the largest holder gives way with its oldest row, whose readings are counted as
evicted. So a neighbour that invents keys pushes out its own rows first.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, assert_never

from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.records.windows.kinds import FUTURE_NS, CountWindow, SessionWindow, TimeWindow, Window
from protocols.records.windows.saving import (
    Restorable,
    SavedState,
    WindowTally,
    decoded_row,
    encoded_row,
    restored,
)
from protocols.records.windows.summary import Functions, Summary
from protocols.wire.readings import Reading


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """A window that is over."""

    partition: str
    summary: Summary
    start_ns: int
    """When it begins, in UTC."""
    end_ns: int
    """When it ends."""


class OpenWindows(Restorable, Protocol):
    """The open windows of one rule."""

    tally: WindowTally
    """Where readings are that were taken."""
    evicted: int
    """How many readings were lost because there were too many rows."""

    def put(self, partition: str, reading: Reading, value: Any, is_own: bool, now: int, utc_now: int) -> str:
        """Take a reading; returns why it was not: ``late``, ``future`` or ``unfit``; empty when it was."""

    def due_ns(self) -> int:
        """When a window is over, by the monotonic clock; ``NEVER`` when none is open."""

    def closed(self, now: int) -> Iterator[ClosedWindow]:
        """The windows that are over, one by one. What is not fetched stays over."""


def open_windows_for(window: Window, functions: Functions, max_rows: int) -> OpenWindows:
    """The store for a kind of window."""
    match window:
        case TimeWindow():
            return TimeStore(window, functions, max_rows)
        case SessionWindow():
            return SessionStore(window, functions, max_rows)
        case CountWindow():
            return CountStore(window, functions, max_rows)
        case _:
            assert_never(window)


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
        if when.utc_ns > utc_now + FUTURE_NS + min(when.uncertainty_ns, FUTURE_NS):
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


class _Session:
    __slots__ = ("due_ns", "is_gone", "number", "partition", "summary")

    def __init__(self, partition: str, number: int) -> None:
        self.partition, self.number, self.summary = partition, number, Summary()
        self.due_ns, self.is_gone = NEVER, False


class SessionStore:
    """Windows that pauses divide."""

    def __init__(self, window: SessionWindow, functions: Functions, max_rows: int) -> None:
        self._window, self._functions, self._max_rows = window, functions, max_rows
        self._sessions: dict[str, list[_Session]] = {}
        self._rows: SharedRows[str, _Session] = SharedRows()
        self._heap: list[tuple[int, int, _Session]] = []
        """When each session is over at the earliest; one that has grown since is put back."""
        self._puts = self._begun = 0
        self._changed: dict[_Session, None] = {}
        self._tracks = False
        self.tally = WindowTally()
        self.evicted = 0

    def put(self, partition: str, reading: Reading, value: Any, is_own: bool, now: int, utc_now: int) -> str:
        """See ``OpenWindows``."""
        window, when = self._window, reading.when
        if when.utc_ns > utc_now + FUTURE_NS + min(when.uncertainty_ns, FUTURE_NS):
            return "future"
        closes_ns = when.utc_ns + window.gap_ns + window.late_ns
        if closes_ns <= utc_now:
            return "late"
        near = [session for session in self._sessions.get(partition, ()) if self._reaches(session, when.utc_ns)]
        session = near[0] if near else _Session(partition, self._begun)
        if not session.summary.take(reading, value, self._functions, is_own):
            return "unfit"
        if self._tracks:
            self._changed[session] = None
        self.tally.held += 1
        if not near:
            self._begun += 1
            self._sessions.setdefault(partition, []).append(session)
            self._rows.add(reading.origin, session)
            if len(self._rows) > self._max_rows:
                self._evict()
        for other in near[1:]:  # the reading closes the gap between them
            if self._length_ns(session, other) <= window.max_ns:
                session.summary.merge(other.summary, self._functions)
                session.due_ns = max(session.due_ns, other.due_ns) if session.due_ns < NEVER else other.due_ns
                self._forget(other)
        due_ns = now + session.summary.last_ns + window.gap_ns + window.late_ns - utc_now
        if session.due_ns == NEVER:
            session.due_ns = due_ns
            self._puts += 1
            heapq.heappush(self._heap, (due_ns, self._puts, session))
        else:
            session.due_ns = max(session.due_ns, due_ns)
        return ""

    def due_ns(self) -> int:
        """See ``OpenWindows``."""
        while self._heap:
            due_ns, _, session = self._heap[0]
            if not session.is_gone and session.due_ns <= due_ns:
                return due_ns
            heapq.heappop(self._heap)
            if not session.is_gone:
                self._puts += 1
                heapq.heappush(self._heap, (session.due_ns, self._puts, session))
        return NEVER

    def closed(self, now: int) -> Iterator[ClosedWindow]:
        """See ``OpenWindows``."""
        while self.due_ns() <= now:
            session = heapq.heappop(self._heap)[2]
            summary, window = session.summary, self._window
            self.tally.held -= summary.count
            self.tally.gone += summary.count
            self.tally.derived_ns = max(self.tally.derived_ns, summary.last_ns + window.gap_ns + window.late_ns)
            self._forget(session)
            yield ClosedWindow(session.partition, summary, summary.first_ns, summary.last_ns)

    @property
    def has_changed(self) -> bool:
        """See ``Restorable``."""
        return bool(self._changed)

    def track(self, is_on: bool) -> None:
        """See ``Restorable``."""
        self._tracks = is_on
        self._changed = (
            dict.fromkeys(each for sessions in self._sessions.values() for each in sessions) if is_on else {}
        )

    def changed(self, most: int) -> list[tuple[str, bytes | None]]:
        """See ``Restorable``."""
        rows: list[tuple[str, bytes | None]] = []
        for session in list(islice(self._changed, most)):
            del self._changed[session]
            data = None
            if not session.is_gone:
                payer = self._rows.payer_of(session) or ""
                data = encoded_row(session.partition, payer, session.number, (session.summary,))
            rows.append((f"{session.number} {session.partition}", data))
        return rows

    def restore(self, rows: Iterable[bytes], state: SavedState, now: int, utc_now: int) -> None:
        """See ``Restorable``."""
        window = self._window
        for saved in map(decoded_row, rows):
            session = _Session(saved.partition, saved.number)
            self._begun = max(self._begun, saved.number + 1)
            (session.summary,) = (restored(summary, self._functions) for summary in saved.summaries)
            closes_ns = session.summary.last_ns + window.gap_ns + window.late_ns
            if closes_ns <= state.derived_ns:
                session.is_gone = True
                if self._tracks:
                    self._changed[session] = None
                continue
            self._sessions.setdefault(saved.partition, []).append(session)
            self._rows.add(saved.payer, session)
            longest_ns = window.gap_ns + window.late_ns + 2 * FUTURE_NS  # the clock may be wrong
            session.due_ns = now + min(max(closes_ns - utc_now, 0), longest_ns)
            self._puts += 1
            heapq.heappush(self._heap, (session.due_ns, self._puts, session))
            self.tally.held += session.summary.count
            if len(self._rows) > self._max_rows:
                self._evict()

    def _reaches(self, session: _Session, utc_ns: int) -> bool:
        """Whether a reading of that time belongs to a session."""
        summary, gap_ns = session.summary, self._window.gap_ns
        if not summary.first_ns - gap_ns < utc_ns < summary.last_ns + gap_ns:
            return False
        return max(summary.last_ns, utc_ns) - min(summary.first_ns, utc_ns) <= self._window.max_ns

    def _length_ns(self, one: _Session, other: _Session) -> int:
        first_ns = min(one.summary.first_ns, other.summary.first_ns)
        return max(one.summary.last_ns, other.summary.last_ns) - first_ns

    def _evict(self) -> None:
        session = self._rows.next_to_go()
        self.evicted += session.summary.count
        self.tally.held -= session.summary.count
        self._forget(session)

    def _forget(self, session: _Session) -> None:
        """A session is over, or was merged into another one. Its place in the heap is dropped when its turn comes."""
        if self._tracks:
            self._changed[session] = None
        self._rows.remove(session)
        sessions = self._sessions[session.partition]
        sessions.remove(session)
        if not sessions:
            del self._sessions[session.partition]
        session.is_gone, session.summary = True, Summary()
        if len(self._heap) > 2 * len(self._rows) + 64:
            self._heap = [place for place in self._heap if not place[2].is_gone]
            heapq.heapify(self._heap)


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
