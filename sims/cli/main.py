"""``meshsim``: tests a topology before it is on the road.

Each group of commands has a module of its own, and :data:`COMMANDS` lists the commands.

Exit statuses of ``run``: 0 every check was kept, 1 a check was broken, 2 the scenario can't be used, 130 interrupted.
"""

import json
import sys
import time
from pathlib import Path

import click

from sims.cli.check import check_command
from sims.cli.choosing import SET, chosen_scenario
from sims.cli.emulate import compare_command, emulate_command
from sims.cli.output import show_checks, show_goodput, show_left_out, show_parts, show_rules, show_spreads, summary
from sims.cli.replay import replay, require_determinism, shrink
from sims.cli.report import diff, report
from sims.cli.sweep import sweep
from sims.errors import SimulationError
from sims.report.render import render
from sims.results import saved
from sims.results.result import Result
from sims.runs import bundle
from sims.runs.run import Run
from sims.scenario.file import Scenario, load, shipped

COMMANDS: tuple[click.Command, ...] = (
    check_command,
    replay,
    shrink,
    report,
    diff,
    sweep,
    emulate_command,
    compare_command,
)
"""The commands of other modules."""
INTERRUPTED = 130
_RECORDS = ("made", "delivered", "waiting", "expired", "evicted", "refused", "lost_with_disk", "not_written")
_PROGRESS_INTERVAL_S = 0.25


@click.group()
def main() -> None:
    """Simulate a mesh in virtual time. The same seed gives the same run."""


@main.command()
@click.argument("scenario")
@SET
@click.option("--seed", type=click.IntRange(0), help="Seed that determines the whole run; default: the scenario's.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, without maps and time lines.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for result.json, tables, the report, and run.json, which `meshsim replay` repeats.",
)  # fmt: skip
@click.option("--check-determinism", is_flag=True, help="Also run under two PYTHONHASHSEEDs and compare digests.")
def run(
    scenario: str, settings: tuple[str, ...], seed: int | None, as_json: bool, out: Path | None,
    check_determinism: bool,
) -> None:  # fmt: skip
    """Run SCENARIO, a file or the name of one that ships (`meshsim scenarios`); exit 1 when a check was broken.

    Each check is printed as kept, FAILED, or unseen: in this run there was nothing for it to judge.
    """
    chosen = chosen_scenario(scenario, settings)
    try:
        taped = bundle.taped(chosen, chosen.seed if seed is None else seed)
        simulation = Run(taped.scenario, taped.seed)
    except SimulationError as error:
        raise click.UsageError(str(error)) from error
    show_left_out(simulation.world.places.left_out)
    result = simulation.go(_Progress(chosen) if sys.stderr.isatty() else None)
    if check_determinism and result.valid:
        digest = require_determinism(taped)
        if digest != result.digest:
            raise click.ClickException(
                f"not deterministic: {result.digest[:16]} here, {digest[:16]} in other processes"
            )
    if out is not None:
        try:
            saved.save(out, result, render(result))
            bundle.save(out, bundle.with_result(taped, result))
        except SimulationError as error:
            raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(summary(result), indent=2))
    else:
        _show(result)
    if not result.valid:
        raise SystemExit(INTERRUPTED)
    if result.broken:
        raise SystemExit(1)


@main.command()
def scenarios() -> None:
    """List the scenarios that ship."""
    for name in shipped():
        found = load(name)
        nodes = sum(group.count for group in found.groups)
        click.echo(f"{name:16} {nodes:5} nodes {found.duration_s:5g} s  {found.description}")


for _command in COMMANDS:
    main.add_command(_command)


class _Progress:
    """Shows how far a run is, on one line of the terminal that is written over and over."""

    def __init__(self, scenario: Scenario) -> None:
        self._duration_s = scenario.duration_s
        self._told_s = time.monotonic()

    def __call__(self, virtual_s: float, wall_s: float) -> None:
        over = virtual_s >= self._duration_s
        if over or time.monotonic() - self._told_s >= _PROGRESS_INTERVAL_S:
            self._told_s = time.monotonic()
            pace = virtual_s / wall_s if wall_s else 0.0
            text = f"\r{virtual_s:.0f} of {self._duration_s:g} s, {pace:.1f} times real time "
            click.echo("\r" + " " * len(text) + "\r" if over else text, nl=False, err=True)


def _show(result: Result) -> None:
    pace = result.figures.get("factor", 0.0)
    click.echo(
        f"{result.scenario}: {result.nodes} nodes, {result.virtual_s:g} s of virtual time in {result.wall_s:.2f} s "
        f"({pace:.1f} times real time), seed {result.seed}"
    )
    if not result.valid:
        click.echo(f"incomplete: {result.why_invalid}", err=True)
    show_spreads((
        ("met after", result.discovery), ("readings took", result.latency), ("urgent ones took", result.urgent),
        ("age of readings", result.age), ("inferences took", result.inference),
    ))  # fmt: skip
    counted = {"published": result.counters.get("published", 0), "delivered": result.counters.get("delivered", 0)}
    click.echo("readings: " + ", ".join(f"{count} {what}" for what, count in (counted | result.drops).items()))
    show_goodput(result)
    show_parts(result)
    if "records_made" in result.counters:
        kept = {what: result.counters[f"records_{what}"] for what in _RECORDS}
        took = {name: result.figures.get(f"record_took_{name}_s", 0.0) for name in ("p50", "p95", "max")}
        click.echo(
            "records: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in kept.items() if count)
            + "; took (s): " + ", ".join(f"{name} {value:.3g}" for name, value in took.items())
        )  # fmt: skip
    show_rules(result)
    if result.sometimes:
        click.echo("happened: " + ", ".join(f"{count} {what}" for what, count in result.sometimes.items()))
    show_checks(result)
    click.echo(f"digest {result.digest}")
