"""Curation: which readings become records for the relay, how often, and what is derived from them.

The curator is told of every reading that may matter, own ones and those of neighbours, and of the time. It answers with
outputs: records, and readings derived from others, which the node publishes as its own and which come back like them.

Rules choose single readings. They are tried in order, and the first whose key expression and source match decides
alone: when its interval has not passed, no later rule is asked. A pattern looks at several readings, or at their
absence, and is shown each reading that it considers, whatever the rules decide. A derived reading has the name of its
pattern in its lineage, and a pattern is not shown what was derived through its own name, here or at a neighbour: so
patterns may build on one another, and can't feed themselves for ever.

A pattern may have a recording: what it derives has further readings become records, see
:mod:`protocols.records.recordings`.

The memory of the rules is bounded, whatever keys neighbours invent: ``MAX_CACHED_KEYS`` own keys and as many of other
nodes, which share them. When they are full, the node that holds most of them gives way. When a key was forgotten, its
next reading is chosen: pressure on the memory can add records but never suppress them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, assert_never

from msgspec.structs import replace

from protocols.base.effects import Effect
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.keys import matches
from protocols.base.limits import MAX_CACHED_KEYS
from protocols.base.time import NEVER
from protocols.records.last_chosen import LastChosen
from protocols.records.recordings import Kept, Recording, Recordings
from protocols.records.rules import CurationRule
from protocols.records.wanted import HistoryWanted, PredictionWanted
from protocols.wire.readings import EventTime, Position, Provenance, Reading


class RecordChosen(Effect, frozen=True, gc=False):
    """A reading becomes a record."""

    rule: str
    """Name of the rule or pattern that chose it."""
    reading: Reading
    priority: int
    lifespan_ms: int


class ReadingDerived(Effect, frozen=True):
    """A reading that follows from others, for this node to publish."""

    rule: str
    """Name of the pattern that derived it."""
    key: str
    value: Any
    where: Position
    when: EventTime
    how: Provenance
    priority: int = 3
    lifespan_ms: int = 0


CurationOutput = RecordChosen | ReadingDerived | HistoryWanted | PredictionWanted


class Pattern(Protocol):
    """A machine inside the curator. Instants are monotonic nanoseconds."""

    @property
    def name(self) -> str:
        """No rule and no other pattern has it."""

    @property
    def expressions(self) -> tuple[str, ...]:
        """Key expressions of the readings that it wants from neighbours."""

    @property
    def record_lifespan_ms(self) -> int | None:
        """What it derives becomes a record, which expires when it is not delivered this long after (0: never), and no
        rule is asked; None: rules decide as on any other reading."""

    @property
    def recording(self) -> Recording | None:
        """What is recorded when it derives something."""

    def counters(self) -> Mapping[str, int]:
        """How many readings it has derived, has taken, and has left out, each by its reason."""

    def considers(self, key: str, is_own: bool) -> bool:
        """Whether it wants to be shown readings of a key that this node publishes (``is_own``), or that come from
        neighbours. The answer for a key stays the same, and is kept."""

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """A reading came that it considers; ``is_own``: this node published it. What the pattern derives has the
        lineage of what it was derived from; the curator puts the name of the pattern before it."""

    def predicted(
        self, number: int, value: Any, failure: Literal["", "late", "not_predicted"], now: MonotonicNs
    ) -> Sequence[CurationOutput]:  # fmt: skip
        """What it has asked for by a :class:`~protocols.records.wanted.PredictionWanted` was computed. ``failure``: why
        it was not."""

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """Do what is due."""

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next, at the latest; ``NEVER`` when nothing is due."""


def _recording(patterns: Iterable[Pattern]) -> dict[str, int]:
    """The patterns whose readings become records, by name, with the lifespan of these."""
    return {pattern.name: pattern.record_lifespan_ms for pattern in patterns if pattern.record_lifespan_ms is not None}


def _looked_back(patterns: Iterable[Pattern]) -> tuple[str, ...]:
    """Key expressions of the readings that recordings take out of the history."""
    recordings = (pattern.recording for pattern in patterns)
    keys = (key for recording in recordings if recording is not None and recording.before_ns for key in recording.keys)
    return tuple(dict.fromkeys(keys))


_Concerned = tuple[CurationRule | None, tuple[Pattern, ...]]
"""The rule that decides on the readings of a key, and the patterns that consider them."""


class Curator:
    """Chooses and derives. Instants are monotonic nanoseconds."""

    def __init__(self, rules: Iterable[CurationRule], patterns: Iterable[Pattern] = ()) -> None:
        """:raises LocalProtocolError: when two of them have one name, because their records could not be told apart."""
        self._rules, self._patterns = tuple(rules), tuple(patterns)
        self.check(self._patterns)
        self._recording = _recording(self._patterns)
        self._concerned_own: OrderedDict[str, _Concerned] = OrderedDict()
        self._concerned_others: OrderedDict[str, _Concerned] = OrderedDict()
        self._last_own = LastChosen()
        self._last_others = LastChosen()
        self._chosen = self._limited = self._derived = 0
        self._recordings = Recordings()
        self._looked_back = _looked_back(self._patterns)
        self._ahead_ns = 0
        """By how much the clock is ahead of the monotonic one."""

    def check(self, patterns: Sequence[Pattern]) -> None:
        """:raises LocalProtocolError: when patterns can't be used together, or not beside the rules."""
        names = [rule.name for rule in self._rules] + [pattern.name for pattern in patterns]
        for name in names:
            if names.count(name) > 1:
                raise LocalProtocolError(f"two curation rules are named {name!r}: give each its own name")

    def exchange(self, patterns: Sequence[Pattern]) -> None:
        """Go on with other patterns, which :meth:`check` has passed, between two readings. What those before them have
        derived, and comes back only now, still becomes a record, unless a new one of that name makes none."""
        before = _recording(self._patterns)
        names = {pattern.name for pattern in patterns}
        self._patterns = tuple(patterns)
        gone = {name: lifespan_ms for name, lifespan_ms in before.items() if name not in names}
        self._recording = gone | _recording(patterns)
        self._recordings.keep_only(names)
        self._looked_back = _looked_back(patterns)
        self._concerned_own.clear()
        self._concerned_others.clear()

    @property
    def expressions(self) -> tuple[str, ...]:
        """Key expressions of the readings that are wanted from neighbours, each once."""
        of_rules = (rule.keys for rule in self._rules if rule.source == "any")
        of_patterns = (expression for pattern in self._patterns for expression in pattern.expressions)
        return tuple(dict.fromkeys((*of_rules, *of_patterns)))

    def receive(self, reading: Reading, is_own: bool, now: MonotonicNs, utc_now: UtcNs) -> Sequence[CurationOutput]:
        """What becomes of a reading that was published here (``is_own``) or came from a neighbour, in order."""
        rule, patterns = self._concerned_by(reading.key, is_own)
        self._ahead_ns = utc_now - now
        lineage = reading.how.lineage
        if lineage and is_own and lineage[0] in self._recording:
            self._chosen += 1
            name = lineage[0]
            outputs: Sequence[CurationOutput] = (
                RecordChosen(name, reading, reading.priority, self._recording[name]),
            )  # fmt: skip
        elif rule is None or (rule.min_interval_ns and not self._is_due(rule, reading, is_own, now)):
            outputs = ()
        else:
            self._chosen += 1
            priority = reading.priority if rule.priority is None else rule.priority
            outputs = (RecordChosen(rule.name, reading, priority, rule.lifespan_ms),)
        for pattern in patterns:
            if pattern.name not in lineage:
                derived = pattern.receive(reading, is_own, now, utc_now)
                if derived:
                    outputs = (*outputs, *self._counted(pattern, derived, now))
        if not (self._looked_back or self._recordings.is_on):
            return outputs
        is_record = any(isinstance(output, RecordChosen) and output.reading is reading for output in outputs)
        if is_record and any(matches(expression, reading.key) for expression in self._looked_back):
            self._recordings.note_record(reading)
        if self._recordings.is_on:
            outputs = (*outputs, *self._recorded(self._recordings.take(reading, is_own, is_record, now)))
        return outputs

    def recalled(self, number: int, readings: Sequence[Reading], is_last: bool) -> Sequence[CurationOutput]:
        """What was read before a recording began, as :class:`~protocols.records.wanted.HistoryWanted` has asked, or
        a part of it. ``is_last``: there is no more, or it can't be had."""
        return list(self._recorded(self._recordings.recalled(number, readings, is_last)))

    def predicted(
        self, wanted: PredictionWanted, value: Any, failure: Literal["", "late", "not_predicted"], now: MonotonicNs
    ) -> Sequence[CurationOutput]:  # fmt: skip
        """What a pattern has asked for was computed. ``failure``: why it was not."""
        for pattern in self._patterns:
            if pattern.name == wanted.rule:
                return list(self._counted(pattern, pattern.predicted(wanted.number, value, failure, now), now))
        return ()

    def _recorded(self, kept: Iterable[Kept]) -> Iterator[CurationOutput]:
        for each in kept:
            self._chosen += 1
            yield RecordChosen(each.rule, each.reading, each.reading.priority, each.lifespan_ms)

    def handle_timer(self, now: MonotonicNs) -> Sequence[CurationOutput]:
        """Do what is due; returns what becomes of it, in order."""
        outputs: list[CurationOutput] = []
        for pattern in self._patterns:
            if pattern.next_timer_at() <= now:
                outputs += self._counted(pattern, pattern.handle_timer(now), now)
        return [*outputs, *self._recordings.handle_timer(now)]

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next, at the latest; ``NEVER`` when nothing is due."""
        due_ns = min((pattern.next_timer_at() for pattern in self._patterns), default=NEVER)
        return min(due_ns, self._recordings.next_timer_at())

    def recording_counters(self, name: str) -> Mapping[str, int]:
        """What was recorded because of what a pattern derived."""
        return self._recordings.counters(name)

    def count_recordings_anew(self, name: str) -> Mapping[str, int]:
        """Another pattern takes the name of one. Returns what :meth:`recording_counters` did; they begin at zero."""
        return self._recordings.count_anew(name)

    def counters(self) -> dict[str, int]:
        """Records chosen, readings left out because the interval of their rule had not passed, readings derived, and
        keys forgotten because there were too many."""
        return {
            "chosen": self._chosen, "limited": self._limited, "derived": self._derived,
            "keys_forgotten": self._last_own.forgotten + self._last_others.forgotten,
        }  # fmt: skip

    def _counted(self, pattern: Pattern, outputs: Sequence[CurationOutput], now: int) -> Iterator[CurationOutput]:
        """The outputs of a pattern, each derived reading with the name of the pattern in its lineage."""
        for output in outputs:
            match output:
                case RecordChosen():
                    self._chosen += 1
                    yield output
                case ReadingDerived():
                    self._derived += 1
                    if pattern.recording is not None:
                        self._recordings.matched(pattern.name, pattern.recording, now, now + self._ahead_ns)
                    how = replace(output.how, lineage=(pattern.name, *output.how.lineage))
                    yield replace(output, how=how)
                case HistoryWanted() | PredictionWanted():
                    yield output
                case _:
                    assert_never(output)

    def _is_due(self, rule: CurationRule, reading: Reading, is_own: bool, now: MonotonicNs) -> bool:
        """Whether the interval of the rule has passed for this key, whoever its readings come from."""
        stream = (rule.name, reading.key)
        last = self._last_own if is_own else self._last_others
        last_ns = max(self._last_own.when(stream), self._last_others.when(stream))
        if now - last_ns < rule.min_interval_ns:
            self._limited += 1
            return False
        last.note(stream, reading.origin, now)
        return True

    def _concerned_by(self, key: str, is_own: bool) -> "_Concerned":
        known = self._concerned_own if is_own else self._concerned_others
        if key in known:
            known.move_to_end(key)
            return known[key]
        rule = next((r for r in self._rules if (is_own or r.source == "any") and matches(r.keys, key)), None)
        found = known[key] = rule, tuple(p for p in self._patterns if p.considers(key, is_own))
        if len(known) > MAX_CACHED_KEYS:
            known.popitem(last=False)
        return found
