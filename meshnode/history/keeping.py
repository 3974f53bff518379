"""Takes readings for the history on any thread, and writes them on a thread of its own.

Whoever publishes or receives a reading appends it to a bounded queue and goes on. The thread writes what has gathered
for ``GATHER_S``, or sooner when the queue is a quarter full. When there is no room, the oldest readings of the node
that has most in the queue are dropped and counted as ``history_behind``. A disk that is full or fails is a trouble:
what was to be written then is dropped as ``history_failed``, and the next group is tried again.

A value that may still change, or that keeps a whole frame in memory, is encoded before it waits.
"""

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from meshnode.history.contents import Placed
from meshnode.history.query import LAST_UTC_NS
from meshnode.history.segment import KeptReading
from meshnode.history.store import HistoryStore
from meshnode.troubles import Troubles
from protocols.base.errors import BoundExceeded, StorageError, ValueUnsupported
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.keys import matches
from protocols.base.shares import SharedRows
from protocols.records.last_chosen import LastChosen
from protocols.records.steps import ClockSteps
from protocols.wire.parcels import encode_reading, reading_in_alone
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)
GATHER_S: Final = 0.9
"""How long readings gather, so that a reading is on the disk a second after it came."""
MAX_WAITING: Final = 16_384
"""Readings that wait for the disk: those of a second at the highest rate, which take some 10 MiB …"""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
"""… and what they may take when they are large."""
_LOOK_S: Final = 30.0
"""How often old readings are looked for, and a folder that could not be used is tried again, while nothing comes."""
_CONTEXT_BYTES: Final = 400
"""What a small reading takes in memory."""
_UNCHANGING: Final = frozenset((type(None), bool, int, float, str, bytes))


def _steady_ns() -> MonotonicNs:
    """Time that also passes while the computer sleeps, and that nobody can set."""
    return MonotonicNs(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class _Waiting(NamedTuple):
    key: str
    origin: str
    placed: Placed
    encoded: Callable[[], bytes]
    """Encodes it, if that was not done yet. :raises BoundExceeded, ValueUnsupported: it is too large."""
    size_bytes: int


class HistoryKeeper:
    """The history of one node while it runs."""

    def __init__(
        self, store: HistoryStore, keys: Sequence[str], min_interval_ns: int, troubles: Troubles,
        dropped: Callable[[str, str], None], clock: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        """``dropped(key, reason)`` counts a reading that was not kept; it is called on any thread. ``clock`` gives UTC
        nanoseconds."""
        self.store = store
        self._keys, self._min_interval_ns = tuple(keys), min_interval_ns
        self._troubles, self._dropped = troubles, dropped
        self._last = LastChosen()
        self._clock = clock
        self._steps = ClockSteps(UtcNs(clock()), _steady_ns())
        self._lock = threading.Lock()
        self._number = 0
        """Of the reading that came last."""
        self._waiting: dict[int, _Waiting] = {}
        self._shared: SharedRows[str, int] = SharedRows()
        """Their bytes, by origin. What is smaller counts as one of ``MAX_WAITING``, so that both bounds are one."""
        self._came, self._hurry = threading.Event(), threading.Event()
        self._closing = False
        self._counters: Counter[str] = Counter({"stored": 0, "behind": 0, "failed": 0, "too_large": 0})
        self._told: dict[str, Path] = {}
        """Damaged segments by the name of their trouble."""
        self._thread = threading.Thread(target=self._run, name="meshnode-history", daemon=True)

    # --- life --------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Open the folder, and begin to write. One that can't be used is a trouble, and tried again."""
        self._opened()
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and close. It blocks."""
        self._closing = True
        self._hurry.set()
        self._came.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.store.close()

    # --- readings in -------------------------------------------------------------------------------------------------
    def consider(self, reading: Reading, alone: bytes | None = None) -> None:
        """Keep a reading if its key is wanted. ``alone``: the result of ``encode_alone`` for it, if the caller has it.
        May be called from any thread, and waits for no disk."""
        key = reading.key
        if not any(matches(expression, key) for expression in self._keys):
            return
        value, where = reading.value, reading.where
        encoded: Callable[[], bytes]
        if alone is not None:
            encoded, size_bytes = partial(reading_in_alone, alone), len(alone)
        elif type(value) in _UNCHANGING:
            encoded = partial(encode_reading, reading)
            size_bytes = _CONTEXT_BYTES + (len(value) if isinstance(value, str | bytes) else 0)
        else:
            try:
                data = encode_reading(reading)
            except (BoundExceeded, ValueUnsupported):
                self._count(key, "too_large")
                return
            encoded, size_bytes = partial(bytes, data), len(data)
        placed = min(reading.when.utc_ns, LAST_UTC_NS), where.latitude_deg, where.longitude_deg
        waiting = _Waiting(key, reading.origin, placed, encoded, size_bytes)
        with self._lock:
            if self._min_interval_ns and not self._is_due(key, reading.origin):
                return
            self._number += 1
            self._waiting[self._number] = waiting
            self._shared.add(waiting.origin, self._number, max(size_bytes, MAX_WAITING_BYTES // MAX_WAITING))
            gave_way = []
            while self._shared.shares.total > MAX_WAITING_BYTES:
                number = self._shared.next_to_go()
                self._shared.remove(number)
                gave_way.append(self._waiting.pop(number))
            is_much = self._shared.shares.total >= MAX_WAITING_BYTES // 4
        for gone in gave_way:
            self._count(gone.key, "behind")
        if not self._came.is_set():
            self._came.set()
        elif is_much:
            self._hurry.set()

    def _is_due(self, key: str, origin: str) -> bool:
        stream, now = (origin, key), time.monotonic_ns()
        if now - self._last.when(stream) < self._min_interval_ns:
            return False
        self._last.note(stream, origin, now)
        return True

    def _count(self, key: str, what: str) -> None:
        with self._lock:
            self._counters[what] += 1
        self._dropped(key, f"history_{what}")

    # --- what it tells -----------------------------------------------------------------------------------------------
    def statistics(self) -> Mapping[str, int]:
        """Counters and gauges, each beginning with ``history_``."""
        with self._lock:
            counters = {f"history_{name}": count for name, count in self._counters.items()}
            waiting = len(self._waiting)
        return counters | {
            "history_rows": self.store.rows, "history_bytes": self.store.size_bytes, "history_waiting": waiting,
        }  # fmt: skip

    # --- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            is_last = self._closing
            if not is_last and self._came.wait(_LOOK_S):
                self._hurry.wait(GATHER_S)
            try:
                self._write()
            except Exception:  # noqa: BLE001 - the thread must not end while the node lives
                _log.exception("the history failed")
            if is_last:
                return

    def _write(self) -> None:
        with self._lock:
            group, self._waiting, self._shared = tuple(self._waiting.values()), {}, SharedRows()
            self._came.clear()
            if not self._closing:
                self._hurry.clear()
        utc_now = self._clock()
        step_ns = self._steps.since(UtcNs(utc_now), _steady_ns())
        if not self._opened():
            self._lost(waiting.key for waiting in group)
            return
        kept = self._encoded(group)
        before = self.store.last_number
        try:
            if step_ns:
                self.store.clock_was_set(step_ns)
            self.store.append(kept, utc_now)
            self.store.tidy(utc_now)
        except (sqlite3.Error, OSError) as error:
            self._trouble(error)
            self._lost(reading.key for reading in kept[self.store.last_number - before :])
        else:
            self._troubles.end("history")
        with self._lock:
            self._counters["stored"] += self.store.last_number - before
        self._tell_damage()

    def _encoded(self, group: Iterable[_Waiting]) -> list[KeptReading]:
        kept: list[KeptReading] = []
        for waiting in group:
            try:
                encoded = waiting.encoded()
            except (BoundExceeded, ValueUnsupported):
                encoded = b""
            if 0 < len(encoded) <= self.store.max_reading_bytes:
                kept.append(KeptReading(waiting.key, waiting.origin, waiting.placed, encoded))
            else:
                self._count(waiting.key, "too_large")
        return kept

    def _lost(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._count(key, "failed")

    # --- troubles ----------------------------------------------------------------------------------------------------
    def _opened(self) -> bool:
        if self.store.is_open:
            return True
        try:
            self.store.open(self._clock())
        except (sqlite3.Error, OSError, StorageError) as error:
            self._trouble(error)
            return False
        self._troubles.end("history")
        for number, why in enumerate(self.store.foreign):
            self._troubles.begin("history", f"foreign {number}", f"{why}; it is left alone")
        self._tell_damage()
        return True

    def _trouble(self, error: Exception) -> None:
        why = str(error)
        if not isinstance(error, StorageError):
            why = (
                f"the history in {self.store.folder} can't be written: {error}; free space on that disk and check that "
                "the folder is writable"
            )
        self._troubles.begin("history", "", why)

    def _tell_damage(self) -> None:
        while self.store.damaged:
            path, what = self.store.damaged.pop()
            self._told[path.name] = path
            self._troubles.begin(
                "history", path.name,
                f"a segment of the history was damaged ({what}) and is now {path}; the node goes on without it. Look "
                f"into it with 'sqlite3 {path.name} .recover', then remove it",
            )  # fmt: skip
        for name in [name for name, path in self._told.items() if not path.exists()]:
            del self._told[name]
            self._troubles.end("history", name)
