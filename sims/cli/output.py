"""What several commands print of a result."""

from collections.abc import Iterable
from typing import Any

import click
import msgspec

from sims.results.result import Distribution, Result
from sims.roads.traces import LeftOut

_BULKY = frozenset(("places", "messages", "happenings", "node_infos", "load", "meetings", "distances", "dissemination"))
"""Parts of a result that ``--json`` leaves to ``--out``."""
_SHOWN_DETAILS = 3


def summary(result: Result) -> dict[str, Any]:
    """A result for programs, without the parts that take long to read; spreads come without their histograms."""
    parts: dict[str, Any] = {}
    for name in result.__struct_fields__:
        value = getattr(result, name)
        if name in _BULKY:
            continue
        if isinstance(value, Distribution):
            value = {"unit": value.unit, "count": value.count, "mean": value.mean, **value.quantiles}
        parts[name] = msgspec.to_builtins(value)
    return parts


def show_left_out(left_out: LeftOut) -> None:
    """Tell on the error output what is left out of traces."""
    if left_out.rows:
        rows = "1 row is" if left_out.rows == 1 else f"{left_out.rows} rows are"
        click.echo(f"{rows} left out of traces, the first: {left_out.first}", err=True)


def show_spreads(spreads: Iterable[tuple[str, Distribution]]) -> None:
    """Print one line for each title and spread that has values."""
    for title, spread in spreads:
        if spread.count:
            quantiles = ", ".join(f"{name} {value:.3g}" for name, value in spread.quantiles.items())
            click.echo(f"{title} ({spread.unit}): {quantiles}; {spread.count} cases")


def show_parts(result: Result) -> None:
    """Print who answered, and who ran which part of the requests that were divided, when there were some."""
    if not result.parts:
        return
    click.echo("inferences: " + ", ".join(f"{count} {by}" for by, count in result.inference_by.items()))
    for part in result.parts:
        between = f" ({part.between})" if part.between else ""
        place = f" {part.index + 1} of {part.of}" if part.of else ""
        further = f"; {part.replays} further runs" if part.replays else ""
        click.echo(
            f"  {part.model}, {part.kind}{place}{between}: {part.runs} times {part.by} "
            f"({part.device}), median {part.took_p50_ms:.3g} ms, computing {part.compute_p50_ms:.3g} ms{further}"
        )


def show_rules(result: Result) -> None:
    """Print what the relay has of each rule, and what became of the readings that came to it."""
    for name, rule in result.rules.items():
        readings = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in rule.readings.items())
        line = f"rule {name}: {rule.records} records at the relay, {rule.size_bytes} bytes"
        click.echo(f"{line}; readings: {readings}" if readings else line)


def show_goodput(result: Result) -> None:
    """Print what was offered and useful, and how many urgent readings were missed, of a result that knows it."""
    if result.offered_per_s is None or result.useful_per_s is None:
        return
    line = f"wanted: {result.offered_per_s:.4g} readings a second, {result.useful_per_s:.4g} came within their lifespan"
    if result.urgent_wanted:
        line += f"; of {result.urgent_wanted} urgent ones {result.urgent_missed} did not"
    click.echo(line)


def show_checks(result: Result) -> None:
    """Print one line for each check, and the first failures in words on the error output. A check that is ``unseen``
    had nothing to judge."""
    for name, check in sorted(result.checks.items()):
        verdict = "FAILED" if check.failed else "kept  " if check.passed else "unseen"
        click.echo(f"{verdict} {name}: {check.passed} of {check.passed + check.failed}")
        for detail in check.details[:_SHOWN_DETAILS]:
            click.echo(f"  {detail}", err=True)
