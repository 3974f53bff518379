"""Recordings: what was read around the moment at which a rule derived something becomes records.

A recording begins when its rule derives a reading, and ends when for ``after_ns`` it has derived none: so it lasts as
long as what the rule finds, and a little longer. Meanwhile readings of its keys become records. What was sensed in the
``before_ns`` before it is wanted from whoever keeps a history (:class:`HistoryWanted`), a moment later, because
histories are written with a delay. Where nobody keeps one, nothing comes of that.

Invariants:

- A reading becomes a record of one recording once, whether it comes, is in the history, or both; and not at all when
  another rule has made it a record as it came.
  That is known of the last ``MAX_RECORDED`` such readings.
- A recording makes at most ``max_records``; what is beyond is counted. So a rule that never ceases to derive is
  bounded.
- What the recording before it has kept is not wanted again: the time before a recording begins where that one ended.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.keys import checked_expression, matches
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.records.rules import MAX_RECORD_LIFESPAN_MS
from protocols.records.wanted import HistoryWanted
from protocols.wire.readings import Reading

MAX_AROUND_NS: Final = 3_600 * SECOND
MAX_RECORDED: Final = 10_000
MAX_KEYS: Final = 16
LOOK_BACK_NS: Final = 2 * SECOND
"""How long after it began the time before a recording is asked for."""
_KNOWN_BYTES: Final = 400
"""What it takes to know a reading, with a key and an origin of a hundred characters."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a rule records when it derives something.

    :raises InvalidKey: one of the keys is no key expression. :raises LocalProtocolError: another field is out of range.
    """

    keys: tuple[str, ...]
    source: Literal["own", "any"] = "own"
    before_ns: int = 0
    after_ns: int = 0
    max_records: int = 1_000
    lifespan_ms: int = 86_400_000
    """Its records expire when they are not delivered so long after; 0: never."""

    def __post_init__(self) -> None:
        for expression in self.keys:
            checked_expression(expression)
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise BoundExceeded(f"a recording has {len(self.keys)} keys: use 1 to {MAX_KEYS}")
        if not (0 <= self.before_ns <= MAX_AROUND_NS and 0 <= self.after_ns <= MAX_AROUND_NS):
            raise BoundExceeded(
                f"a recording reaches back or on for more than {MAX_AROUND_NS // SECOND} s: record less"
            )
        if self.before_ns == self.after_ns == 0:
            raise LocalProtocolError("a recording reaches neither back nor on: give before_s or after_s")
        if not 1 <= self.max_records <= MAX_RECORDED:
            raise BoundExceeded(f"max_records is {self.max_records}: use 1 to {MAX_RECORDED}")
        if not 0 <= self.lifespan_ms <= MAX_RECORD_LIFESPAN_MS:
            raise BoundExceeded(f"lifespan_ms is {self.lifespan_ms}: use 0 to {MAX_RECORD_LIFESPAN_MS}")

    @property
    def max_bytes(self) -> int:
        """The most memory that it takes: one that goes on, and one before it that still waits for the history."""
        return 2 * self.max_records * _KNOWN_BYTES


_Name = tuple[str, str, int]
"""Origin, key and sequence of a reading."""


class Kept:
    """A reading that a recording makes a record."""

    __slots__ = ("lifespan_ms", "reading", "rule")

    def __init__(self, rule: str, reading: Reading, lifespan_ms: int) -> None:
        self.rule, self.reading, self.lifespan_ms = rule, reading, lifespan_ms


class _Running:
    __slots__ = (
        "begin_utc_ns", "is_recalled", "known", "look_ns", "number", "rule", "settings", "since_utc_ns", "until_ns",
        "until_utc_ns",
    )  # fmt: skip

    def __init__(self, number: int, rule: str, settings: Recording, since_utc_ns: int, now: int, utc_now: int) -> None:
        self.number, self.rule, self.settings = number, rule, settings
        self.since_utc_ns, self.begin_utc_ns = since_utc_ns, utc_now
        self.is_recalled = since_utc_ns >= utc_now
        self.look_ns = NEVER if self.is_recalled else now + LOOK_BACK_NS
        self.until_ns = self.until_utc_ns = 0
        self.known: set[_Name] = set()


class Recordings:
    """The recordings of all rules. Instants are monotonic nanoseconds."""

    def __init__(self) -> None:
        self._current: dict[str, _Running] = {}
        """By rule: the one that goes on."""
        self._recalling: dict[str, _Running] = {}
        """By rule: the one that has ended, and waits for the history."""
        self._ended_utc_ns: dict[str, int] = {}
        self._number = 0
        self._records: OrderedDict[_Name, None] = OrderedDict()
        """Readings that other rules made records, and that a history may give again."""
        self._counts: dict[str, Counter[str]] = {}

    @property
    def is_on(self) -> bool:
        """Whether a recording goes on."""
        return bool(self._current)

    def counters(self, rule: str) -> Mapping[str, int]:
        """Of a rule: recordings begun, records made, readings beyond the bound, and times before that were given up
        because the next recording ended first."""
        return self._counts.get(rule, {})

    def count_anew(self, rule: str) -> Mapping[str, int]:
        """Count what becomes of a rule from zero on. Returns what was counted before."""
        counted = self._counts.get(rule)
        if counted is None:
            return {}
        self._counts[rule] = Counter()
        return counted

    def keep_only(self, rules: Collection[str]) -> None:
        """Other rules are used no more."""
        tables: tuple[dict[str, Any], ...] = self._current, self._recalling, self._ended_utc_ns, self._counts
        for table in tables:
            for rule in table.keys() - rules:
                del table[rule]

    def matched(self, rule: str, settings: Recording, now: int, utc_now: int) -> None:
        """A rule has derived something."""
        current = self._current.get(rule)
        if current is None or now >= current.until_ns:
            if current is not None:
                self._finish(current)
            ended_ns = self._ended_utc_ns.get(rule, 0)
            if ended_ns > utc_now:  # the clock was set back since
                ended_ns = 0
            since_ns = max(utc_now - settings.before_ns, ended_ns)
            current = self._current[rule] = _Running(self._number, rule, settings, since_ns, now, utc_now)
            self._number += 1
            self._counts.setdefault(rule, Counter())["recordings"] += 1
        current.until_ns, current.until_utc_ns = now + settings.after_ns, utc_now + settings.after_ns

    def take(self, reading: Reading, is_own: bool, is_record: bool, now: int) -> Iterator[Kept]:
        """A reading came. ``is_record``: a rule has made it a record already."""
        for running in self._current.values():
            settings = running.settings
            is_meant = (is_own or settings.source == "any") and now <= running.until_ns
            if is_meant and any(matches(expression, reading.key) for expression in settings.keys):
                yield from self._kept(running, reading, is_record)

    def note_record(self, reading: Reading) -> None:
        """A rule has made a reading a record which a recording that begins later may find in the history."""
        self._records[reading.origin, reading.key, reading.sequence] = None
        if len(self._records) > MAX_RECORDED:
            self._records.popitem(last=False)

    def recalled(self, number: int, readings: Sequence[Reading], is_last: bool) -> Iterator[Kept]:
        """What was read before a recording began, or a part of it."""
        for places in (self._current, self._recalling):
            running = next((each for each in places.values() if each.number == number), None)
            if running is None:
                continue
            for reading in readings:
                is_record = (reading.origin, reading.key, reading.sequence) in self._records
                yield from self._kept(running, reading, is_record)
            if is_last:
                running.is_recalled = True
                self._recalling = {rule: each for rule, each in self._recalling.items() if each is not running}
            return

    def _kept(self, running: _Running, reading: Reading, is_record: bool) -> Iterator[Kept]:
        name = reading.origin, reading.key, reading.sequence
        if name in running.known:
            return
        counts = self._counts[running.rule]
        if len(running.known) >= running.settings.max_records:
            counts["not_recorded"] += not is_record
            return
        running.known.add(name)
        if not is_record:
            counts["recorded"] += 1
            yield Kept(running.rule, reading, running.settings.lifespan_ms)

    def handle_timer(self, now: int) -> list[HistoryWanted]:
        """Do what is due."""
        wanted = []
        for running in [*self._current.values(), *self._recalling.values()]:
            if running.look_ns <= now:
                running.look_ns, settings = NEVER, running.settings
                wanted.append(HistoryWanted(
                    running.rule, running.number, settings.keys, settings.source == "own", running.since_utc_ns,
                    running.begin_utc_ns, settings.max_records - len(running.known),
                ))  # fmt: skip
        for running in list(self._current.values()):
            if running.until_ns <= now:
                self._finish(running)
        return wanted

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next."""
        if not (self._current or self._recalling):
            return NEVER  # it is asked for with each reading
        current = (min(running.until_ns, running.look_ns) for running in self._current.values())
        return min((*current, *(running.look_ns for running in self._recalling.values())), default=NEVER)

    def _finish(self, running: _Running) -> None:
        del self._current[running.rule]
        self._ended_utc_ns[running.rule] = running.until_utc_ns
        if not running.is_recalled:
            if running.rule in self._recalling:
                self._counts[running.rule]["not_recalled"] += 1
            self._recalling[running.rule] = running
