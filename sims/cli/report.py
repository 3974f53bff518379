"""``meshsim report`` and ``meshsim diff``: commands that use results which are there already.

Exit status: 0 when all is well, 1 for a regression, 2 for input that can't be used.
"""

import json
from pathlib import Path

import click

from sims.errors import ResultError
from sims.report.render import render, render_sweep
from sims.results.diff import DEFAULT_TOLERANCE, Trend, compare, parse_tolerances
from sims.results.saved import REPORT_FILE, load, write
from sims.results.sweep_table import is_sweep, load_table

UNUSABLE = 2


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file; default: report.html beside RESULT.")
def report(result: Path, output: Path | None) -> None:
    """Make the HTML report of a saved RESULT (its folder or result.json), or of a sweep (its folder)."""
    page = output or (result if result.is_dir() else result.parent) / REPORT_FILE
    try:
        data = (render_sweep(load_table(result)) if is_sweep(result) else render(load(result))).encode("utf-8")
        write(page, data)
    except ResultError as error:
        _unusable(str(error))
    except OSError as error:
        _unusable(f"can't write {page}: {error.strerror or error}")
    else:
        click.echo(f"{page}: {len(data) / 1e6:.2f} MB, opens in any browser")


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--tolerance", "tolerances", multiple=True, metavar="[GROUP=]SHARE",
    help=f"Share by which figures may get worse; default {DEFAULT_TOLERANCE:g}. With a group (latency, urgent, "
    "age, discovery, inference, dissemination, delivery, load, drops) for that alone. Can be repeated.",
)  # fmt: skip
@click.option("--across-scenarios", is_flag=True, help="Compare results of different scenarios all the same.")
@click.option("--all", "everything", is_flag=True, help="Show what stayed the same too.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def diff(
    before: Path, after: Path, tolerances: tuple[str, ...], across_scenarios: bool, everything: bool, as_json: bool
) -> None:
    """Compare two results: did AFTER get worse than BEFORE? Exit status 1 if so, 2 if they can't be compared."""
    try:
        changes = compare(load(before), load(after), parse_tolerances(tolerances), across_scenarios)
    except ResultError as error:
        _unusable(str(error))
        return
    worse = [change for change in changes if change.verdict is Trend.WORSE]
    if as_json:
        click.echo(json.dumps({"worse": len(worse), "changes": [change.as_dict() for change in changes]}, indent=2))
    else:
        for change in changes:
            if everything or change.verdict is not Trend.SAME:
                click.echo(change.line())
        click.echo(f"{len(worse)} of {len(changes)} got worse" if worse else f"none of {len(changes)} got worse")
    if worse:
        raise SystemExit(1)


def _unusable(message: str) -> None:
    click.echo(f"meshsim: {message}", err=True)
    raise SystemExit(UNUSABLE)
