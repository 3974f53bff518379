"""``meshnode rules``: check rules of curation, try them on readings in a file, and say what they do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from meshnode.console.printing import print_json, printable
from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId
from protocols.base.limits import SECOND

if TYPE_CHECKING:
    from meshnode.records.rules.compiling import Rule
    from meshnode.records.rules.trying import CaseResult
    from protocols.records.deriving.sources import Source
    from protocols.records.patterns.absence import AbsenceRule
    from protocols.records.patterns.join import JoinRule
    from protocols.records.patterns.repetition import RepetitionRule
    from protocols.records.patterns.sequence import SequenceRule
    from protocols.records.predicting import ModelStep
    from protocols.records.windows.kinds import Window

_NODE: Final = NodeId("node")
_LINE_CHARS: Final = 2_000
_FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE..."
)  # fmt: skip


@click.group()
def rules() -> None:
    """Check, try and explain rules that derive readings and records. It needs the extra meshnode[rules]."""


@rules.command()
@_FILES
def check(files: Sequence[Path]) -> None:
    """Check files of rules: names, units, expressions, and how much memory each rule may need.

    The exit status is 1 when something is wrong.
    """
    for path, found in _compiled(files):
        needs = _mib(sum(rule.max_state_bytes for rule in found))
        click.echo(f"{printable(str(path), _LINE_CHARS)}: {len(found)} rules, at most {needs}")


@rules.command("test")
@_FILES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def try_cases(files: Sequence[Path], as_json: bool) -> None:
    """Try rules on readings in files of cases, and compare what they derive with what is expected.

    The exit status is 1 when a case is not as expected.
    """
    from meshnode.records.rules.trying import cases_of_file, tried

    results: list[tuple[Path, CaseResult]] = []
    for path in files:
        try:
            rules_file, cases = cases_of_file(path)
            results += [(path, tried(rules_file, case)) for case in cases]
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
    failed = sum(bool(result.differences) for _, result in results)
    if as_json:
        print_json([_as_json(path, result) for path, result in results])
    else:
        for path, result in results:
            outcome = "FAILED" if result.differences else "ok"
            click.echo(f"{outcome:6} {printable(str(path), _LINE_CHARS)}: {printable(result.name)}")
            for line in result.differences:
                click.echo(f"       {printable(line, _LINE_CHARS)}")
            if result.differences:
                _echo_counters(result)
        click.echo(f"{len(results) - failed} of {len(results)} cases are as expected")
    if failed:
        raise SystemExit(1)


@rules.command()
@_FILES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(files: Sequence[Path], as_json: bool) -> None:
    """Say in words what each rule does, what it may need, and what of it leaves the node."""
    explained = [(path, rule, _explained(rule)) for path, found in _compiled(files) for rule in found]
    if as_json:
        print_json([
            {"file": str(path), "name": rule.name, "max_state_bytes": rule.max_state_bytes, "text": lines}
            for path, rule, lines in explained
        ])  # fmt: skip
        return
    for _, rule, lines in explained:
        click.echo(click.style(printable(rule.name), bold=True))
        for line in lines:
            click.echo(f"  {printable(line, _LINE_CHARS)}")


def _compiled(files: Sequence[Path]) -> "list[tuple[Path, list[Rule]]]":
    from meshnode.records.rules.compiling import check_together, rules_of_file

    try:
        found = [(path, rules_of_file(path, _NODE)) for path in files]
        check_together(found, _NODE)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    return found


def _explained(rule: "Rule") -> list[str]:
    from protocols.records.patterns.base import PatternRule
    from protocols.records.predicting import PredictionRule
    from protocols.records.windows.rule import WindowRule

    first, *others = rule.sources
    output = rule.output
    lines = [f"takes {_source_text(first)}"]
    if isinstance(rule, PatternRule):
        lines.append(_pattern_text(rule))
        lines += [f"  {_source_text(other)}" for other in others]
        lines.append(f"it needs at most {_mib(rule.max_state_bytes)}")
    elif isinstance(rule, PredictionRule):
        lines.append(_step_text(rule.step))
        lines.append(f"it needs at most {_mib(rule.max_state_bytes)}")
    elif isinstance(rule, WindowRule):
        lines.append(_window_text(rule.window))
        lines.append(f"each window becomes one reading with {', '.join(rule.functions.names)}")
        lines.append(f"it needs at most {_mib(rule.max_state_bytes)}")
    else:
        lines.append("each becomes one reading, and nothing is kept")
    lines.append(f"published as {output.key} in {output.unit or 'the same unit'}, priority {output.priority}")
    if output.record_lifespan_ms is None:
        lines.append("no record: it does not go to the relay")
    else:
        lines.append(f"a record for the relay, for {output.record_lifespan_ms // 1_000:,} s at most")
    if (recording := rule.recording) is not None:
        whose = "this node's readings" if recording.source == "own" else "readings of this node and of neighbours"
        lines.append(
            f"then {whose} of {', '.join(recording.keys)} become records, from {_s(recording.before_ns)} before to "
            f"{_s(recording.after_ns)} after it has derived something, {recording.max_records:,} at most"
        )
    return lines


def _step_text(step: "ModelStep") -> str:
    outputs = f"the outputs {', '.join(step.outputs)}" if step.outputs else "all outputs"
    given = f"as input {step.input_name}" if step.input_name else "with inputs by name"
    return (
        f"the model {step.model} is given each {given}, {step.at_once} at a time, and {outputs} become one reading if "
        f"they come within {_s(step.deadline_ns)}; {step.max_waiting} may wait, the newest goes first"
    )


def _source_text(source: "Source") -> str:
    whose = "this node's readings" if source.source == "own" else "readings of this node and of neighbours"
    unit = f" in {source.unit}" if source.unit is not None else ""
    where = "" if source.where is None else f", only where {_text(source.where)}"
    value = "" if source.value is None else f"; of each it takes {_text(source.value)}"
    return f"{whose} of {source.keys}{unit}{where}{value}"


def _pattern_text(rule: "SequenceRule | AbsenceRule | RepetitionRule | JoinRule") -> str:
    from protocols.records.patterns.absence import AbsenceRule
    from protocols.records.patterns.join import JoinRule
    from protocols.records.patterns.repetition import RepetitionRule

    nearness = rule.nearness
    near = _s(nearness.span_ns) + ("" if nearness.within_m is None else f" and {nearness.within_m:g} m")
    sure = ", for sure" if nearness.certain else ""
    match rule:
        case AbsenceRule():
            return f"derives a reading when within {near}{sure} after one there is none of"
        case JoinRule():
            return f"derives a reading from each and the nearest within {near}{sure} of"
        case RepetitionRule():
            origins = " of different nodes" if rule.distinct_origins else ""
            return f"derives a reading from {rule.times} of them{origins} within {near}{sure}"
        case _:
            return f"derives a reading when within {near}{sure} after one there is one of"


def _window_text(window: "Window") -> str:
    from protocols.records.windows.kinds import CountWindow, SessionWindow, TimeWindow

    match window:
        case TimeWindow() if window.size_ns == window.every_ns:
            return f"windows of {_s(window.size_ns)} follow one another, open for {_s(window.late_ns)} longer"
        case TimeWindow():
            each = f"a window of {_s(window.size_ns)} begins every {_s(window.every_ns)}"
            return f"{each}, open for {_s(window.late_ns)} longer"
        case SessionWindow():
            return f"a window ends after {_s(window.gap_ns)} without a reading, and after {_s(window.max_ns)}"
        case CountWindow() if window.size == window.every:
            return f"every {window.size} readings make a window"
        case CountWindow():
            return f"every {window.every} readings make a window of the last {window.size}"


def _text(expression: Any) -> str:
    return getattr(expression, "text", repr(expression))


def _s(span_ns: int) -> str:
    return f"{span_ns / SECOND:g} s"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB of memory"


def _echo_counters(result: "CaseResult") -> None:
    for name, counters in result.counters.items():
        parts = ", ".join(f"{what} {number}" for what, number in counters.items())
        click.echo(f"       rule {printable(name)}: {parts or 'no reading came to it'}")


def _as_json(path: Path, result: "CaseResult") -> dict[str, Any]:
    return {
        "file": str(path), "case": result.name, "ok": not result.differences, "differences": list(result.differences),
        "counters": {name: dict(counters) for name, counters in result.counters.items()},
        "derived": [
            {"at_s": d.at_s, "rule": d.rule, "key": d.reading.key, "value": d.reading.value, "record": d.record}
            for d in result.derived
        ],
    }  # fmt: skip
