"""Tries rules on readings in a file: what they derive is compared with what the file expects.

Time is that of the file, so a day takes no time. Each case begins with rules that have seen nothing. What a rule
derives is shown to the other rules, as on a node.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from meshnode.config.parsing import Problem, Section, TableReader, problem_report
from meshnode.config.toml import read_toml
from meshnode.records.rules.compiling import rules_of_file
from meshnode.records.rules.tables import MAX_NAME
from protocols.base.errors import ConfigError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.keys import matches
from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.records.curation import CurationOutput, Curator, ReadingDerived, RecordChosen
from protocols.records.predicting import Failure
from protocols.records.wanted import HistoryWanted, PredictionWanted
from protocols.wire.readings import EventTime, Position, Provenance, Reading

_START_NS: Final = 1_767_225_600 * SECOND
"""2026-01-01, from which the seconds of a file count: windows are aligned to whole hours and days there."""
_BOOT_NS: Final = 1_000 * SECOND
_MOST_STEPS: Final = 1_000_000
_TOLERANCE: Final = 1e-6

_Text = Annotated[str, Meta(min_length=1, max_length=200)]
_Seconds = Annotated[float, Meta(ge=0, le=366 * 86_400)]


class GivenReading(Section, frozen=True, kw_only=True):
    """A reading that comes."""

    key: Annotated[_Text, Meta(description="Its key.")]
    value: Annotated[Any, Meta(description="Its value: a number, text, truth value, list or table.")]
    at_s: Annotated[_Seconds, Meta(description="When it comes, in seconds from the start.")]
    sensed_s: Annotated[
        _Seconds | None, Meta(description="When it was sensed.", extra={"default": "when it comes"})
    ] = None
    uncertainty_s: Annotated[float, Meta(ge=0, le=3_600, description="Half the width of that time.")] = 0.0
    origin: Annotated[NodeId | None, Meta(description="Who sensed it.", extra={"default": "the node of the case"})] = (
        None
    )
    unit: Annotated[str, Meta(max_length=200, description="Its unit.")] = "1"
    quality: Annotated[float, Meta(ge=0, le=1, description="How good it is.")] = 1.0
    latitude_deg: Annotated[float, Meta(ge=-90, le=90, description="Where it was sensed.")] = 48.7665
    longitude_deg: Annotated[float, Meta(ge=-180, le=180, description="Where it was sensed.")] = 11.4258
    accuracy_m: Annotated[float, Meta(ge=0, le=1e6, description="How well that is known.")] = 1.0


class ExpectedReading(Section, frozen=True, kw_only=True):
    """A reading that is derived."""

    key: Annotated[_Text, Meta(description="Its key.")]
    value: Annotated[
        Any, Meta(description="Its value. Of a table, the keys that are named; numbers may differ by a millionth.")
    ]
    at_s: Annotated[
        _Seconds | None, Meta(description="When it is derived, to a millisecond.", extra={"default": "at any time"})
    ] = None
    record: Annotated[bool | None, Meta(description="Whether it becomes a record.", extra={"default": "either"})] = None


class ExpectedRecord(Section, frozen=True, kw_only=True):
    """A reading that a recording makes a record."""

    key: Annotated[_Text, Meta(description="Its key.")]
    value: Annotated[Any, Meta(description="Its value, as above.", extra={"default": "any"})] = None
    rule: Annotated[str | None, Meta(max_length=MAX_NAME, description="The rule.", extra={"default": "any"})] = None


class GivenPrediction(Section, frozen=True, kw_only=True):
    """What a model computes. No model runs while rules are tried."""

    model: Annotated[_Text, Meta(description="Its name.")]
    value: Annotated[Any, Meta(description="Its outputs by name.")]


class Case(Section, frozen=True, kw_only=True):
    """Readings, and what has to be derived from them, in order."""

    name: Annotated[_Text, Meta(description="What it shows.")]
    node: Annotated[NodeId, Meta(description="The node on which the rules run.")] = NodeId("veh-1")
    reading: Annotated[
        tuple[GivenReading, ...], Meta(min_length=1, max_length=100_000, description="In the order in which they come.")
    ]
    prediction: Annotated[
        tuple[GivenPrediction, ...],
        Meta(
            max_length=100_000,
            description="What models compute, each model's in the order in which it is asked. Beyond, they fail.",
        ),
    ] = ()
    expected: Annotated[
        tuple[ExpectedReading, ...], Meta(max_length=100_000, description="In the order in which they are derived.")
    ] = ()
    recorded: Annotated[
        tuple[ExpectedRecord, ...] | None,
        Meta(
            max_length=100_000, description="In the order in which they become records of recordings.",
            extra={"default": "anything"},
        ),
    ] = None  # fmt: skip

    def conflicts(self) -> Iterator[Problem]:
        """Readings out of order."""
        for number, (one, other) in enumerate(zip(self.reading, self.reading[1:], strict=False)):
            if other.at_s < one.at_s:
                yield Problem(
                    f"reading[{number + 1}].at_s", str(other.at_s), "comes before the one above it: sort them"
                )


class CaseFile(Section, frozen=True, kw_only=True):
    """A file of cases."""

    rules: Annotated[str, Meta(description="The file of rules, from the folder of this file.")]
    case: Annotated[tuple[Case, ...], Meta(min_length=1, max_length=1_000, description="The cases.")]


@dataclass(frozen=True, slots=True)
class DerivedAt:
    """A reading that was derived, when, and whether it became a record."""

    at_s: float
    reading: Reading
    rule: str
    record: bool


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How a case ended."""

    name: str
    differences: tuple[str, ...]
    """One line each; none: it is as expected."""
    derived: tuple[DerivedAt, ...]
    counters: Mapping[str, Mapping[str, int]]
    """By rule: readings that were taken or left out, by reason."""


def cases_of_file(path: Path) -> tuple[Path, tuple[Case, ...]]:
    """The file of rules that a file is about, and its cases. :raises ConfigError: with all that is wrong in it."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: correct the path, or write a [[case]] into it")
    reader = TableReader()
    file = reader.read_table(CaseFile, read_toml(path), "")
    if reader.problems or not isinstance(file, CaseFile):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    return path.parent / file.rules, file.case


def tried(rules: Path, case: Case) -> CaseResult:
    """Carry a case out. :raises ConfigError: when the rules are wrong."""
    machines = rules_of_file(rules, case.node)
    trial = _Trial(Curator((), machines), case.node, case.prediction)
    for number, given in enumerate(case.reading, 1):
        now_ns = round(given.at_s * SECOND)
        trial.go_on_to(now_ns)
        trial.show(_reading(given, case.node, number), now_ns)
    trial.go_on_to(NEVER // 4)
    differences = (*_differences(case.expected, trial.derived), *_record_differences(case.recorded, trial.recorded))
    counters = {
        machine.name: dict(sorted({**machine.counters(), **trial.recording_counters(machine.name)}.items()))
        for machine in machines
    }
    return CaseResult(case.name, differences, tuple(trial.derived), counters)


class _Trial:
    """A curator in the time of a file."""

    def __init__(self, curator: Curator, node: NodeId, predictions: Sequence[GivenPrediction]) -> None:
        self._curator, self._node = curator, node
        self._predictions = list(predictions)
        self.derived: list[DerivedAt] = []
        self.recorded: list[RecordChosen] = []
        """What recordings have made records."""
        self._shown: list[Reading] = []
        self._steps = 0
        self._latest_ns = 0

    def go_on_to(self, until_ns: int) -> None:
        """Call every timer that is due. Time never goes back: a rule that has more to derive than it derives at once
        asks for its next turn at a time long past."""
        while (due_ns := self._curator.next_timer_at()) <= until_ns + _BOOT_NS:
            self._latest_ns = max(due_ns - _BOOT_NS, self._latest_ns)
            self._take(self._curator.handle_timer(MonotonicNs(self._latest_ns + _BOOT_NS)), self._latest_ns)

    def show(self, reading: Reading, now_ns: int) -> None:
        """A reading comes."""
        self._latest_ns = max(now_ns, self._latest_ns)
        outputs = self._receive(reading, now_ns)
        self._note_records(outputs, None)
        self._take(outputs, now_ns)

    def recording_counters(self, rule: str) -> Mapping[str, int]:
        """What was recorded because of a rule."""
        return self._curator.recording_counters(rule)

    def _recall(self, wanted: HistoryWanted) -> None:
        """What came before, as from a history that keeps everything."""
        found = [
            reading for reading in self._shown
            if wanted.since_ns <= reading.when.utc_ns < wanted.until_ns
            and (reading.origin == self._node or not wanted.own_only)
            and any(matches(expression, reading.key) for expression in wanted.keys)
        ]  # fmt: skip
        found.sort(key=lambda reading: reading.when.utc_ns)
        self._note_records(self._curator.recalled(wanted.number, found[max(len(found) - wanted.most, 0) :], True), None)

    def _predict(self, wanted: PredictionWanted, now_ns: int) -> Sequence[CurationOutput]:
        given = next((each for each in self._predictions if each.model == wanted.model), None)
        if given is not None:
            self._predictions.remove(given)
        failure: Failure = "not_predicted" if given is None else ""
        value = None if given is None else given.value
        return self._curator.predicted(wanted, value, failure, MonotonicNs(now_ns + _BOOT_NS))

    def _note_records(self, outputs: Sequence[CurationOutput], derived: Reading | None) -> bool:
        """Note records of recordings. ``derived``: a reading that a rule has derived, which is a record of its own.
        Returns whether it is."""
        is_record = False
        for output in outputs:
            if isinstance(output, RecordChosen):
                if output.reading is derived and derived.how.lineage[:1] == (output.rule,):
                    is_record = True
                else:
                    self.recorded.append(output)
        return is_record

    def _receive(self, reading: Reading, now_ns: int) -> Sequence[CurationOutput]:
        now, utc_now = MonotonicNs(now_ns + _BOOT_NS), UtcNs(now_ns + _START_NS)
        self._shown.append(reading)
        return self._curator.receive(reading, reading.origin == self._node, now, utc_now)

    def _take(self, outputs: Sequence[CurationOutput], now_ns: int) -> None:
        for output in outputs:
            if isinstance(output, HistoryWanted):
                self._recall(output)
            elif isinstance(output, PredictionWanted):
                self._take(self._predict(output, now_ns), now_ns)
            if not isinstance(output, ReadingDerived):
                continue
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise ConfigError(f"more than {_MOST_STEPS} readings are derived: give fewer readings")
            reading = Reading(
                output.key, self._node, self._steps, output.value, output.where, output.when, output.how,
                output.priority, output.lifespan_ms,
            )  # fmt: skip
            outcome = self._receive(reading, now_ns)
            record = self._note_records(outcome, reading)
            self.derived.append(DerivedAt(now_ns / SECOND, reading, output.rule, record))
            self._take(outcome, now_ns)


def _reading(given: GivenReading, node: NodeId, number: int) -> Reading:
    sensed_s = given.at_s if given.sensed_s is None else given.sensed_s
    when = EventTime(_START_NS + round(sensed_s * SECOND), round(given.uncertainty_s * SECOND))
    where = Position(given.latitude_deg, given.longitude_deg, given.accuracy_m)
    how = Provenance("given", given.unit, given.quality)
    return Reading(given.key, given.origin or node, number, given.value, where, when, how)


def _differences(expected: Sequence[ExpectedReading], derived: Sequence[DerivedAt]) -> Iterator[str]:
    for number, (wanted, got) in enumerate(zip(expected, derived, strict=False), 1):
        for what, one, other in (
            ("key", wanted.key, got.reading.key),
            ("value", wanted.value, _plain(got.reading.value)),
            ("at_s", wanted.at_s, round(got.at_s, 3)),
            ("record", wanted.record, got.record),
        ):
            if (what in ("key", "value") or one is not None) and not _is_alike(one, other):
                yield f"expected[{number - 1}].{what}: {one!r} was expected, {other!r} was derived"
    for wanted in expected[len(derived) :]:
        yield f"{wanted.key} = {wanted.value!r} was expected and was not derived"
    for got in derived[len(expected) :]:
        yield f"{got.reading.key} = {_plain(got.reading.value)!r} at {got.at_s:.3f} s was derived and not expected"


def _record_differences(expected: Sequence[ExpectedRecord] | None, recorded: Sequence[RecordChosen]) -> Iterator[str]:
    for number, (wanted, got) in enumerate(zip(expected or (), recorded, strict=False)):
        for what, one, other in (
            ("key", wanted.key, got.reading.key),
            ("value", wanted.value, got.reading.value),
            ("rule", wanted.rule, got.rule),
        ):
            if one is not None and not _is_alike(one, other):
                yield f"recorded[{number}].{what}: {one!r} was expected, {other!r} was recorded"
    if expected is not None:
        for wanted in expected[len(recorded) :]:
            yield f"a record of {wanted.key} = {wanted.value!r} was expected and not made"
        for got in recorded[len(expected) :]:
            yield f"a record of {got.reading.key} = {got.reading.value!r} was made and not expected"


def _is_alike(wanted: Any, got: Any) -> bool:
    match wanted:
        case dict():
            return isinstance(got, dict) and all(key in got and _is_alike(wanted[key], got[key]) for key in wanted)
        case list():
            return isinstance(got, list) and len(got) == len(wanted) and all(map(_is_alike, wanted, got))
        case bool() | str() | None:
            return type(got) is type(wanted) and got == wanted
        case int() | float():
            is_number = isinstance(got, int | float) and not isinstance(got, bool)
            return is_number and math.isclose(wanted, got, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        case _:
            return bool(wanted == got)


def _plain(value: Any) -> Any:
    """A value for a person: the times of a window in seconds from the start."""
    if not isinstance(value, dict):
        return value
    shown = {key: part for key, part in value.items() if key not in ("start_ns", "end_ns")}
    for name in ("start", "end"):
        if f"{name}_ns" in value:
            shown[f"{name}_s"] = round((value[f"{name}_ns"] - _START_NS) / SECOND, 3)
    return shown
