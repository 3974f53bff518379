"""Compiles files of rules into the machines that carry them out. Everything that can be wrong is found here, before a
node uses a rule: names, units, expressions, and how much memory a rule may need."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from meshnode.config.parsing import Problem, TableReader, problem_report, shown
from meshnode.config.toml import read_toml
from meshnode.records.rules.cycles import refuse_cycles
from meshnode.records.rules.expressions import CompiledExpression, ExpressionInvalid, compiled
from meshnode.records.rules.sketches import DATA_SKETCHES
from meshnode.records.rules.tables import (
    OtherTable,
    OutputTable,
    RecordingTable,
    RepeatedTable,
    RuleFile,
    RuleTable,
    WindowTable,
)
from protocols.base.errors import BoundExceeded, ConfigError, MeshError
from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.records.deriving.each import EachRule
from protocols.records.deriving.output import Output
from protocols.records.deriving.sources import Source
from protocols.records.patterns.absence import AbsenceRule
from protocols.records.patterns.join import JoinRule, both_described
from protocols.records.patterns.nearness import Nearness
from protocols.records.patterns.repetition import RepetitionRule
from protocols.records.patterns.sequence import SequenceRule
from protocols.records.predicting import ModelStep, PredictionRule
from protocols.records.recordings import Recording
from protocols.records.windows.kinds import CountWindow, SessionWindow, TimeWindow, Window
from protocols.records.windows.rule import MIB, WindowRule, by_key, by_origin, undivided
from protocols.records.windows.summary import Functions
from protocols.wire.readings import Reading

Rule = WindowRule | EachRule | SequenceRule | AbsenceRule | RepetitionRule | JoinRule | PredictionRule
"""A rule that a node can use."""

_PARTITIONS: Final[dict[str, Callable[[Reading], object]]] = {"key": by_key, "origin": by_origin, "none": undivided}
_OTHERS: Final = ("followed_by", "not_followed_by", "joined_with")
"""Kinds of rules with a second source."""
_LONGEST: Final = 60
"""How many gaps a session may last when nothing else is said."""


def rules_in(paths: Sequence[Path], node: NodeId) -> list[Rule]:
    """The rules of all files, in order. :raises ConfigError: with all that is wrong in the first file that has faults,
    or with two rules of one name, or with rules that derive from one another in a circle."""
    found = [(path, rules_of_file(path, node)) for path in paths]
    check_together(found, node)
    return [rule for _, rules in found for rule in rules]


def check_together(found: "Sequence[tuple[Path, list[Rule]]]", node: NodeId) -> None:
    """:raises ConfigError: when rules of several files can't be used together."""
    places: dict[str, Path] = {}
    for path, rules in found:
        for rule in rules:
            if rule.name in places:
                raise ConfigError(f"rule {rule.name!r} is in {places[rule.name]} and in {path}: give each its own name")
            places[rule.name] = path
    refuse_cycles([rule for _, rules in found for rule in rules], node)


def check_needs(rules: Sequence[Rule], max_bytes: int) -> None:
    """:raises BoundExceeded: when rules may need more memory together than a node allows."""
    needs_bytes = sum(rule.max_state_bytes for rule in rules)
    if needs_bytes > max_bytes:
        largest = max(rules, key=lambda rule: rule.max_state_bytes)
        raise BoundExceeded(
            f"the rules may need {needs_bytes / MIB:.1f} MiB of memory together, {largest.name!r} alone "
            f"{largest.max_state_bytes / MIB:.1f}, and [rules] max_mib allows {max_bytes // MIB}: allow fewer "
            "partitions, or raise it"
        )


def rules_of_file(path: Path, node: NodeId) -> list[Rule]:
    """The rules of a file. :raises ConfigError: with all that is wrong in it."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: correct the path, or write a [[rule]] into it")
    reader = TableReader()
    file = reader.read_table(RuleFile, read_toml(path), "")
    if reader.problems or not isinstance(file, RuleFile):
        raise ConfigError(problem_report(str(path), tuple(reader.problems)))
    text = path.read_text(encoding="utf-8")
    problems: list[Problem] = []
    rules = [
        _rule(table, node, f"rule[{index}]", _Lines(text, index), problems) for index, table in enumerate(file.rule)
    ]
    if problems:
        raise ConfigError(problem_report(str(path), tuple(problems)))
    whole = [rule for rule in rules if rule is not None]
    try:
        refuse_cycles(whole, node)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return whole


class _Lines:
    """Where the keys of the rule with number ``index`` stand in a file, so that an error can name the line."""

    def __init__(self, text: str, index: int) -> None:
        starts = [found.start() for found in re.finditer(r"(?m)^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", text)]
        self._text, self._start = text, starts[index] if index < len(starts) else 0
        self._end = starts[index + 1] if index + 1 < len(starts) else len(text)

    def of(self, key: str) -> tuple[int, int]:
        """The line of a key, and the column at which its text begins, both from 1; 0, 0: not found."""
        table, _, key = key.rpartition(".")
        start = self._start
        if table:
            head = re.compile(rf"(?m)^[ \t]*(\[rule\.{table}\]|{table}[ \t]*=)").search(self._text, start, self._end)
            start = self._end if head is None else head.end()
        opening = rf"(?m)(?:^|[{{,])[ \t]*{key}[ \t]*=[ \t]*(\"\"\"\n?|'''\n?|\"|')"
        found = re.compile(opening).search(self._text, start, self._end)
        if found is None:
            return 0, 0
        at = found.end()
        return self._text.count("\n", 0, at) + 1, at - self._text.rfind("\n", 0, at)


def _rule(table: RuleTable, node: NodeId, place: str, lines: _Lines, problems: list[Problem]) -> Rule | None:
    before = len(problems)

    def expression(key: str, text: str | None, wanted: tuple[str, ...] = ()) -> CompiledExpression | None:
        if text is None:
            return None
        try:
            found = compiled(text)
        except ExpressionInvalid as error:
            line, column = lines.of(key)
            where = f"column {error.column}" if error.line == 1 else f"line {error.line}, column {error.column} of it"
            if line:
                column = error.column + (column - 1 if error.line == 1 else 0)
                where = f"line {line + error.line - 1}, column {column}"
            problems.append(Problem(f"{place}.{key}", shown(text), f"{where}: {error.complaint}"))
            return None
        if wanted and found.type_name not in (*wanted, "DYN"):
            problems.append(Problem(
                f"{place}.{key}", shown(text), f"gives {found.type_name}: it has to give {' or '.join(wanted)}"
            ))  # fmt: skip
        return found

    def source(table: RuleTable | OtherTable, place: str = "") -> Source | None:
        where = expression(f"{place}where", table.where, ("BOOL",))
        value = expression(f"{place}value", table.value)
        return None if len(problems) > before else Source(table.keys, table.source, table.unit, where, value)

    first = source(table)
    others = [source(other, f"{name}.") for name in _OTHERS if (other := getattr(table, name)) is not None]
    partition = _PARTITIONS.get(table.by) or expression("by", table.by, ("STRING", "INT", "UINT", "BOOL"))
    if partition is undivided and "{partition}" in table.output.key:
        problems.append(Problem(
            f"{place}.output.key", shown(table.output.key), "has {partition}, and nothing divides: add by = \"origin\""
        ))  # fmt: skip
    if len(problems) > before or partition is None or first is None:
        return None
    try:
        rule = _machine(table, node, first, others[0] if others else None, partition)
    except MeshError as error:
        problems.append(Problem(place, shown(table.name), str(error)))
        return None
    rule.definition = repr(table)
    if table.recording is not None:
        rule.recording = _recording(table.recording)
        rule.max_state_bytes += rule.recording.max_bytes
    return rule


def _machine(
    table: RuleTable, node: NodeId, first: Source, other: Source | None, partition: Callable[[Reading], object]
) -> Rule:
    name, output, most = table.name, _output(table.output), table.max_partitions
    if table.window is not None:
        functions = Functions(table.compute, DATA_SKETCHES)
        return WindowRule(name, node, first, _window(table.window), functions, output, partition, most)
    if (repeated := table.repeated) is not None:
        return RepetitionRule(
            name, node, first, repeated.times, _nearness(repeated), output, repeated.distinct_origins, partition, most,
            table.max_held,
        )  # fmt: skip
    if (step := table.infer) is not None:
        asked = ModelStep(
            step.model, step.input or "", step.outputs, step.deadline_ms * MS, step.max_waiting, step.at_once
        )
        return PredictionRule(name, node, first, asked, output, partition)
    if other is None:
        return EachRule(name, node, first, output, partition)
    if (joined := table.joined_with) is not None:
        return JoinRule(
            name, node, first, other, _nearness(joined), output, both_described, partition, most, table.max_held
        )  # fmt: skip
    if (following := table.followed_by) is not None:
        return SequenceRule(name, node, first, other, _nearness(following), output, partition, most, table.max_held)
    missing = table.not_followed_by
    assert missing is not None, "the other source is of one of the three"
    return AbsenceRule(name, node, first, other, _nearness(missing), output, partition, most, table.max_held)


def _nearness(table: OtherTable | RepeatedTable) -> Nearness:
    return Nearness(_ns(table.within_s), _ns(table.late_s), table.within_m, table.certain)


def _window(table: WindowTable) -> Window:
    late_ns = _ns(table.late_s)
    if table.size_s is not None:
        size_ns = _ns(table.size_s)
        return TimeWindow(size_ns, size_ns if table.every_s is None else _ns(table.every_s), late_ns)
    if table.gap_s is not None:
        gap_ns = _ns(table.gap_s)
        return SessionWindow(gap_ns, _LONGEST * gap_ns if table.max_s is None else _ns(table.max_s), late_ns)
    assert table.count is not None, "a window is of one kind"
    return CountWindow(table.count, table.every or table.count)


def _output(table: OutputTable) -> Output:
    record_lifespan_ms = table.record_lifespan_s * 1_000 if table.record else None
    return Output(table.key, table.unit, table.priority, table.lifespan_s * 1_000, record_lifespan_ms)


def _recording(table: RecordingTable) -> Recording:
    return Recording(
        table.keys, table.source, _ns(table.before_s), _ns(table.after_s), table.max_records,
        table.record_lifespan_s * 1_000,
    )  # fmt: skip


def _ns(span_s: float) -> int:
    return round(span_s * 1_000) * (SECOND // 1_000)
