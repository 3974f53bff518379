"""``meshsim emulate`` and ``meshsim compare``: scenarios with real nodes. They need Linux and root.

Exit statuses: 0 all is well; 1 a check was broken, a bound not kept, or the harnesses disagree; 2 the scenario can't be
used, or this host can't emulate; 3 the emulation is invalid because the wire was too late; 130 interrupted.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

import click
import msgspec

from sims.cli.choosing import SET, chosen_scenario
from sims.cli.output import show_checks, show_goodput, show_spreads, summary
from sims.emulator.run import emulate
from sims.errors import SimulationError
from sims.report.render import render
from sims.results import saved
from sims.results.compare import WITHIN, Comparison, busy_host, compare, host_of
from sims.results.result import Result
from sims.runs.run import simulate
from sims.scenario.file import Scenario

INVALID = 3
INTERRUPTED = 130
_SEED = click.option("--seed", type=click.IntRange(0), help="Seed of positions and radio; default: the scenario's.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(name="emulate")
@click.argument("scenario")
@SET
@_SEED
@_JSON
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for result.json, tables, the report, and the nodes' journals.")  # fmt: skip
@click.option("--found-within", "found_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Exit 1 unless every node found all others within this time after the last start.")  # fmt: skip
@click.option("--linked-within", "linked_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Exit 1 unless all links were up both ways within this time after the last start.")  # fmt: skip
def emulate_command(
    scenario: str, settings: tuple[str, ...], seed: int | None, as_json: bool, out: Path | None,
    found_s: float | None, linked_s: float | None,
) -> None:  # fmt: skip
    """Run SCENARIO with real nodes: a process and a network each, on an emulated radio. Linux, root."""
    chosen, seed = _load(scenario, settings, seed)
    result = _emulated(chosen, seed, out)
    missed = [
        _late(result, figure, bound_s)
        for figure, bound_s in (("found_all_s", found_s), ("linked_all_s", linked_s))
        if bound_s is not None
    ]
    if out is not None:
        _save(out, result)
    if as_json:
        click.echo(json.dumps(summary(result), indent=2))
    else:
        _show(result)
    for complaint in filter(None, missed):
        click.echo(f"FAILED {complaint}", err=True)
    _exit(result, bool(result.broken or any(missed)))


@click.command(name="compare")
@click.argument("scenario")
@SET
@_SEED
@_JSON
@click.option("--within", type=click.FloatRange(0.01, 10), default=WITHIN, show_default=True,
              help="How far apart emulator and simulator may be, as a share of the smaller figure.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Folder for comparison.json and the results: emulator/, simulator/, apart/.")  # fmt: skip
def compare_command(
    scenario: str, settings: tuple[str, ...], seed: int | None, as_json: bool, within: float, out: Path | None
) -> None:
    """Run SCENARIO with real nodes and in virtual time, and set the figures side by side. Linux, root.

    The column "apart" is the simulator's figure when each node has a processor to itself, as on the road. It is shown
    and not judged.
    """
    chosen, seed = _load(scenario, settings, seed)
    emulated = _emulated(chosen, seed, None if out is None else out / "emulator")
    if emulated.why_invalid.startswith("interrupted"):
        click.echo(f"meshsim: {emulated.why_invalid}: nothing to compare", err=True)
        raise SystemExit(INTERRUPTED)
    simulated, apart = simulate(chosen, seed, processors=host_of(emulated)), simulate(chosen, seed)
    comparison = compare(emulated, simulated, within, apart)
    if out is not None:
        _save(out / "emulator", emulated)
        _save(out / "simulator", simulated)
        _save(out / "apart", apart)
        (out / "comparison.json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison)))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(comparison) | {"agrees": comparison.agrees}, indent=2))
    else:
        _show_comparison(comparison)
    _exit(emulated, not comparison.agrees)


def _load(scenario: str, settings: tuple[str, ...], seed: int | None) -> tuple[Scenario, int]:
    chosen = chosen_scenario(scenario, settings)
    return chosen, chosen.seed if seed is None else seed


def _emulated(scenario: Scenario, seed: int, journals: Path | None) -> Result:
    def say(what: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"meshsim: {what}", err=True)

    def told_to_end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, told_to_end)  # it ends the run with the results so far, as Ctrl-C does
    try:
        return emulate(scenario, seed, say, None if journals is None else journals / "journals")
    except SimulationError as error:
        click.echo(f"meshsim: {error}", err=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:  # before the run began
        raise SystemExit(INTERRUPTED) from error


def _save(folder: Path, result: Result) -> None:
    try:
        saved.save(folder, result, render(result))
    except SimulationError as error:
        raise click.ClickException(str(error)) from error


def _exit(result: Result, failed: bool) -> None:
    if not result.valid:
        raise SystemExit(INTERRUPTED if result.why_invalid.startswith("interrupted") else INVALID)
    if failed:
        raise SystemExit(1)


def _late(result: Result, figure: str, bound_s: float) -> str:
    took_s = result.figures.get(figure)
    if took_s is None:
        return f"{figure}: some pairs are missing after {result.virtual_s:g} s"
    return f"{figure}: {took_s:.2f} s, more than {bound_s:g} s" if took_s > bound_s else ""


# --- for people ----------------------------------------------------------------------------------------------------
def _show(result: Result) -> None:
    figures = result.figures
    click.echo(
        f"{result.scenario}: {result.nodes} real nodes for {result.virtual_s:g} s ({result.wall_s:.1f} s with making "
        f"and loading them), seed {result.seed}"
    )
    if not result.valid:
        click.echo(f"INVALID: {result.why_invalid}", err=True)
    for title, name, pairs in (("found", "found_all_s", "pairs_found"), ("linked", "linked_all_s", "pairs_linked")):
        reached = f"{figures[name]:.2f} s after the last start" if name in figures else "not all"
        click.echo(f"all {title}: {reached}; {figures[pairs]:.0f} pairs")
    show_spreads((
        ("met after", result.discovery), ("readings took", result.latency), ("urgent ones took", result.urgent),
        ("age of readings", result.age), ("inferences took", result.inference),
    ))  # fmt: skip
    show_goodput(result)
    if result.inference_by:
        click.echo("inferences: " + ", ".join(f"{count} {by}" for by, count in result.inference_by.items()))
    for entry in result.dissemination:
        if entry.author.endswith("/spread"):
            took = "never" if entry.t100_s is None else f"{entry.t100_s * 1e3:.1f} ms"
            click.echo(f"entry of {entry.author.partition('/')[0]}: everywhere after {took}, {entry.holders} holders")
    if "trace_rows_left_out" in result.counters:
        click.echo(f"left out of traces: {result.counters['trace_rows_left_out']} rows")
    _show_wire(figures, busy_host(result))
    if result.drops:
        click.echo("drops: " + ", ".join(f"{count} {reason}" for reason, count in result.drops.items()))
    if result.sometimes:
        click.echo("happened: " + ", ".join(f"{count} {what}" for what, count in result.sometimes.items()))
    show_checks(result)


def _show_wire(figures: dict[str, float], busy: float) -> None:
    click.echo(
        f"wire: {figures.get('wire_frames', 0):.0f} frames, late p50 {figures.get('wire_late_p50_ms', 0):.2f} ms, p99 "
        f"{figures.get('wire_late_p99_ms', 0):.2f} ms (bound {figures.get('wire_late_bound_ms', 0):.2f}), at most "
        f"{figures.get('wire_late_max_ms', 0):.2f} ms; {figures.get('wire_cpu_s', 0):.1f} s of processor"
    )
    until = figures.get("nodes_cpu_until_linked_s")
    click.echo(
        f"nodes: {figures.get('nodes_cpu_s', 0):.1f} s of processor"
        + (f", {until:.1f} s until all were linked" if until is not None else "")
        + f"; with the wire {busy:.0%} of this host"
    )


def _show_comparison(comparison: Comparison) -> None:
    click.echo(f"{comparison.scenario}: {comparison.nodes} nodes, seed {comparison.seed}")
    if not comparison.valid:
        click.echo(f"INVALID: {comparison.why_invalid}", err=True)
    slowness = comparison.wire["host_slowness"]
    click.echo(f"simulator: on as many processors as this host has, where all took {slowness:.2f} times the usual")
    click.echo("apart: on one for each node")
    click.echo(f"{'':24} {'emulator':>10} {'simulator':>10} {'ratio':>6}       {'':6} {'apart':>10}")
    for row in comparison.rows:
        apart = "-" if row.apart is None else format(row.apart, ".4g")
        values = "".join(f" {'-' if v is None else format(v, '.4g'):>10}" for v in (row.emulator, row.simulator))
        verdict = "" if not row.judged or row.agrees is None else "agree" if row.agrees else "DIFFER"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        click.echo(f"{row.figure:24}{values} {ratio:>6} {row.unit:5} {verdict:6} {apart:>10}")
        if row.why and row.judged:
            click.echo(f"    {row.why}")
    _show_wire(comparison.wire, comparison.wire["host_busy"])
    verdict = "agree" if comparison.agrees else "do not agree"
    click.echo(f"the harnesses {verdict} within {comparison.within:.0%} in what is judged")
