"""Deletes from a store in PostgreSQL what retention does not keep, in the background, as long as the relay runs.

Each relay does so, in slices of which one is under way at a time, and rests after each for as long as it took. None
leads: what one relay has deleted, another one does not find.

The age of a record counts from when a relay received it. Records are gone through by their numbers, so from the oldest
on, once for each age that a rule has; a look goes on where the one before came to a record that was too young. Clocks
of relays may be apart or be set, so once a day all records are looked at. Records that are not in all kept aggregates
yet wait until they are.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.removing import SLICE_RECORDS, DueRecord, Removed, remove_slice
from cloud_relay.store.postgres.schema import SETTLED
from cloud_relay.store.postgres.session import BY_INDEX, ERRORS, PostgresSession, postgres_error
from cloud_relay.store.postgres.sizes import SIZE
from cloud_relay.store.retaining import BEYOND_AGE, BEYOND_SIZE, RetentionPolicy, shown_time
from meshnode.backoff import Backoff
from protocols.base.errors import MeshError

RETAIN_S: Final = 300.0
"""The time between two looks at whether retention deletes something."""
RETRY_S: Final = (1.0, 30.0)
"""The time until the next look after something failed, or stayed because its origin was busy, at least and at most."""
SWEEP_S: Final = 86_400.0
"""The time between two looks at all records."""
STATEMENT_S: Final = 5.0
PAGE_ROWS: Final = 4_096
"""Records that one statement looks at, in some 10 ms."""
_TRIES: Final = 5
"""How often a slice asks again for origins that were busy."""
_MAX_KEYS: Final = 65_536
"""Keys whose ages are remembered."""
_SETTINGS: Final = {"lock_timeout": "4s", **BY_INDEX}
_PAGE: Final = (
    f"SELECT number, origin, key, received_utc_ns, {SIZE} FROM records WHERE number > $1 AND number < {SETTLED}"  # noqa: S608 - constants only
    f" AND number <= coalesce((SELECT min(filled_to) FROM aggregates WHERE NOT dropped), {2**63 - 1})"
    " ORDER BY number LIMIT $2"
)
_USED: Final = "SELECT coalesce(sum(size_bytes), 0)::bigint FROM streams"
_log = logging.getLogger(__name__)


class PostgresKeeper:
    """Keeps one store small, on a thread of its own, until it is closed."""

    def __init__(
        self, place: PostgresPlace, retention: RetentionPolicy, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """``clock`` gives UTC nanoseconds."""
        self._place, self._retention = place, retention
        self._walk = AgeWalk(retention, clock)
        self._session = PostgresSession(place, STATEMENT_S, _SETTINGS, writes=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper")
        self._deleted = self._failures = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the slice that is under way. Idempotent."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._session.close()

    def statistics(self) -> dict[str, int]:
        """Counts since the start: records that this relay deleted, and looks that failed."""
        return {"deleted": self._deleted, "failures": self._failures}

    def _run(self) -> None:
        pause_s, retry = 0.0, Backoff(*RETRY_S)
        while not self._ended.wait(pause_s):
            pause_s = retry.next_s()
            try:
                self.retain_once()
                if not self._walk.has_held:
                    pause_s = RETAIN_S
                    retry.reset()
            except (*ERRORS, MeshError) as error:
                self._failures += 1
                self._session.drop()
                _log.error("retention goes on later: %s", postgres_error(self._place, error))
            except Exception:  # noqa: BLE001 - records stay, and the relay goes on
                self._failures += 1
                self._session.drop()
                _log.exception("retention deleted nothing: this is a bug of the relay")

    def retain_once(self) -> int:
        """Delete what retention does not keep now. Returns how many records. It may raise ``ERRORS``.

        :raises StorageError: a newer program has changed the tables meanwhile.
        """
        before = self._deleted
        self._session.connect()
        for removing, why in ((self._by_age, BEYOND_AGE), (self._by_size, BEYOND_SIZE)):
            told = _Told(why)
            try:
                removing(told)
            finally:
                told.tell()
        return self._deleted - before

    def _by_age(self, told: "_Told") -> None:
        self._walk.begin()
        began_s = time.monotonic()
        for page in self._walk.pages(self._session):
            read_s = time.monotonic() - began_s
            for at in range(0, len(page), SLICE_RECORDS):
                self._walk.hold(self._removed(page[at : at + SLICE_RECORDS], told))
            if self._rests(read_s):
                return
            began_s = time.monotonic()
        self._walk.end()

    def _removed(self, due: Sequence[DueRecord], told: "_Told") -> Sequence[DueRecord]:
        """Delete records, and return what stays for now."""
        for _ in range(_TRIES):
            began_s = time.monotonic()
            removed = remove_slice(self._session, partial(_itself, due))
            self._note(removed, told)
            due = removed.held
            if self._rests(time.monotonic() - began_s) or not due:
                break
        return due

    def _by_size(self, told: "_Told") -> None:
        after, tries = 0, _TRIES
        while self._retention.max_bytes is not None and not self._ended.is_set():
            began_s = time.monotonic()
            removed = remove_slice(self._session, partial(self._oldest, self._retention.max_bytes, after))
            if not removed.examined:
                return
            self._note(removed, told)
            tries -= 1
            if not removed.held or not tries:
                after, tries = removed.examined, _TRIES
            self._rests(time.monotonic() - began_s)

    def _oldest(self, max_bytes: int, after: int) -> list[DueRecord]:
        """The oldest records beyond a size, as many as a slice may have."""
        excess_bytes = self._session.row(_USED)[0] - max_bytes
        chosen: list[DueRecord] = []
        if excess_bytes > 0:
            for number, origin, _, _, size_bytes in self._session.rows(_PAGE, after, SLICE_RECORDS):
                chosen.append(DueRecord(number, origin))
                excess_bytes -= size_bytes
                if excess_bytes <= 0:
                    break
        return chosen

    def _note(self, removed: Removed, told: "_Told") -> None:
        self._deleted += removed.records
        told.note(removed)

    def _rests(self, took_s: float) -> bool:
        """Leave the server to others for as long as something took. Returns whether it is time to end."""
        return self._ended.wait(took_s)


class AgeWalk:
    """Goes through records from the oldest on, and says which are older than their rule lets them be.

    A mark says for each age up to which number records were looked at that are so old.
    """

    def __init__(self, retention: RetentionPolicy, clock: Callable[[], int]) -> None:
        self._retention, self._clock = retention, clock
        self._ages_ns = retention.ages_ns
        self._known: dict[str, int | None] = {}
        self._marks: dict[int, int] = {}
        self._coming: dict[int, int] = {}
        self._held: int | None = None
        self._swept_s: float | None = None
        self._is_sweep = False

    @property
    def has_held(self) -> bool:
        """Whether records stayed that should have gone."""
        return self._held is not None

    def begin(self) -> None:
        """Begin a look."""
        self._is_sweep = self._swept_s is None or time.monotonic() - self._swept_s >= SWEEP_S
        self._coming, self._held = {}, None

    def hold(self, held: Sequence[DueRecord]) -> None:
        """Note what could not be deleted: the next look begins before it."""
        for one in held:
            self._held = one.number if self._held is None else min(self._held, one.number)

    def end(self) -> None:
        """A look is over, and all that it found was deleted or held."""
        most = None if self._held is None else self._held - 1
        self._marks = {age: mark if most is None else min(mark, most) for age, mark in self._coming.items()}
        if self._is_sweep:
            self._swept_s = time.monotonic()

    def pages(self, session: PostgresSession) -> Iterator[list[DueRecord]]:
        """What is too old, page by page. It may raise ``ERRORS``."""
        if self._is_sweep:
            yield from self._pages(session, 0, self._ages_ns)
        else:
            for age_ns in self._ages_ns:
                yield from self._pages(session, self._marks.get(age_ns, 0), [age_ns])

    def _pages(self, session: PostgresSession, after: int, ages_ns: list[int]) -> Iterator[list[DueRecord]]:
        """The pages after a number. A look that is no sweep ends where records are too young."""
        now_ns, young, old = self._clock(), list(ages_ns), after
        while ages_ns:
            rows = session.rows(_PAGE, after, PAGE_ROWS)
            due: list[DueRecord] = []
            for number, origin, key, received_utc_ns, _ in rows:
                age_ns = now_ns - received_utc_ns
                if age_ns < 0:  # by a clock that was wrong, perhaps ours: it is for a sweep to find
                    continue
                while young and age_ns < young[-1]:
                    self._coming[young.pop()] = old
                old = number
                most_ns = self._max_age_ns(key)
                if most_ns is not None and age_ns >= most_ns:
                    due.append(DueRecord(number, origin))
            yield due
            if len(rows) < PAGE_ROWS or not (young or self._is_sweep):
                break
            after = rows[-1][0]
        self._coming.update(dict.fromkeys(young, old))

    def _max_age_ns(self, key: str) -> int | None:
        if key not in self._known:
            if len(self._known) >= _MAX_KEYS:
                self._known.clear()
            self._known[key] = self._retention.max_age_ns(key)
        return self._known[key]


@dataclass(slots=True)
class _Told:
    """What the log says of one look."""

    why: str
    records: int = 0
    oldest_utc_ns: int = 0
    newest_utc_ns: int = 0

    def note(self, removed: Removed) -> None:
        """Add a slice."""
        if removed.records:
            self.oldest_utc_ns = (
                min(self.oldest_utc_ns, removed.oldest_utc_ns) if self.records else removed.oldest_utc_ns
            )
            self.newest_utc_ns = max(self.newest_utc_ns, removed.newest_utc_ns)
            self.records += removed.records

    def tell(self) -> None:
        """Write a line, if there is something to tell."""
        if self.records:
            _log.info(
                "retention deleted %d records, received from %s to %s: %s", self.records,
                shown_time(self.oldest_utc_ns), shown_time(self.newest_utc_ns), self.why,
            )  # fmt: skip


def _itself(due: Sequence[DueRecord]) -> Sequence[DueRecord]:
    return due
