"""Open windows that pauses divide."""

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from protocols.base.shares import SharedRows
from protocols.base.time import NEVER
from protocols.records.windows.kinds import FUTURE_NS, SessionWindow, is_from_future
from protocols.records.windows.open import ClosedWindow
from protocols.records.windows.saving import SavedState, WindowTally, decoded_row, encoded_row, restored
from protocols.records.windows.summary import Functions, Summary
from protocols.wire.readings import Reading


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
        if is_from_future(when, utc_now):
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
    def held(self) -> int:
        """See ``OpenWindows``."""
        return sum(each.summary.count for sessions in self._sessions.values() for each in sessions)

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
