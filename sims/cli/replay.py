"""``meshsim replay`` and ``meshsim shrink``, and the work of ``meshsim run --check-determinism``."""

from pathlib import Path

import click

from sims.cli.output import show_checks
from sims.errors import SimulationError
from sims.runs.bundle import SavedRun, digests_under_hash_seeds, load, save
from sims.runs.bundle import replay as replay_run
from sims.runs.shrink import MAX_RUNS, described
from sims.runs.shrink import shrink as shrink_run

_FILE = click.Path(path_type=Path)


def require_determinism(run: SavedRun) -> str:
    """The digest that the run has in two processes with different ``PYTHONHASHSEED``.

    :raises click.ClickException: when they differ, or a process fails.
    """
    try:
        digests = digests_under_hash_seeds(run)
    except SimulationError as error:
        raise click.ClickException(str(error)) from error
    if len(set(digests)) > 1:
        raise click.ClickException(
            f"not deterministic: {' and '.join(digest[:16] for digest in digests)} under different PYTHONHASHSEED"
        )
    return digests[0]


@click.command()
@click.argument("file", type=_FILE)
def replay(file: Path) -> None:
    """Repeat a saved run to the same digest. Exit status 1: checks fail in it; 3: it can't be repeated."""
    try:
        run = load(file)
        result = replay_run(run)
    except SimulationError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(3) from error
    click.echo(f"{run.scenario.name}, seed {run.seed}: {described(run.scenario)}")
    show_checks(result)
    click.echo(f"digest {result.digest}, as saved")
    if result.broken:
        raise SystemExit(1)


@click.command()
@click.argument("file", type=_FILE)
@click.option("--check", "check_name", default="", help="Check that must go on failing; default: the first that fails.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Where to save it; default: *.small.json beside FILE."
)
@click.option("--most-runs", default=MAX_RUNS, show_default=True, type=click.IntRange(1), help="Stop after N runs.")
def shrink(file: Path, check_name: str, output: Path | None, most_runs: int) -> None:
    """Reduce a saved run that fails: fewer faults, then fewer nodes, then less time, while the same check fails."""
    try:
        before = load(file)
        done = shrink_run(before, check_name, max_runs=most_runs, told=lambda line: click.echo(line, err=True))
        stem = (file / "run" if file.is_dir() else file).with_suffix("")
        target = output or stem.with_name(f"{stem.name}.small.json")
        save(target, done.run)
    except SimulationError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(3) from error
    click.echo(f"{done.check} fails in {described(done.run.scenario)} (before: {described(before.scenario)})")
    for fault in done.run.scenario.faults:
        sides = ", ".join(fault.nodes) + (f" | {', '.join(fault.others)}" if fault.others else "")
        click.echo(f"  {fault.at_s:g} s for {fault.for_s:g} s: {fault.kind} {sides}".rstrip())
    if done.exhausted:
        click.echo(f"stopped after {done.runs} runs: it may get smaller with --most-runs")
    click.echo(f"saved as {target} after {done.runs} runs")
