"""``meshsim sweep``: a grid of settings and seeds over all cores, or over those of a Ray cluster.

Exit status: 0 when all is well, 1 when a check was broken or a run failed, 2 for input that can't be used, 130 when
interrupted.
"""

import os
import statistics
from collections import Counter
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sims.errors import SimulationError
from sims.runs.cluster import on_ray
from sims.runs.grid import cells_of, parse_seeds, parse_setting
from sims.runs.run import simulate
from sims.runs.sweep import RunFigures, Sweep, on_this_machine
from sims.scenario.file import load

UNUSABLE = 2
INTERRUPTED = 130
_SHOWN_FAILURES = 10
_SHOWN_RUNS = 4
_COLUMNS = (
    ("delivered\n%", "delivered_share", 100.0),
    ("useful\n/s", "useful_per_s", 1.0),
    ("latency\np50 ms", "latency_p50_ms", 1.0),
    ("latency\np99 ms", "latency_p99_ms", 1.0),
    ("urgent\np99 ms", "urgent_p99_ms", 1.0),
    ("age\np95 ms", "age_p95_ms", 1.0),
    ("discovery\np95 s", "discovery_p95_s", 1.0),
    ("spread\nt90 s", "spread_t90_s", 1.0),
    ("load\n%", "load_share", 100.0),
)
_WHERE_ROOM = ("useful_per_s", "age_p95_ms", "urgent_p99_ms")
"""Figures that are shown as far as the width allows, the first of them first. All are in sweep.csv."""
_PLAIN = 1_000
"""From here on three digits would be shown with an exponent."""
_UNBOUNDED = 10_000
_WIDE = 120
"""The number of columns where no terminal says how many there are."""


@click.command()
@click.argument("scenario")
@click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE,VALUE,…",
    help="What varies: traffic.0.rate_hz=1,5,10 or groups.car.count=10,20. Repeated: every combination.",
)  # fmt: skip
@click.option("--seeds", default="1", show_default=True, help="20 (1 to 20), 5..8, or 1,4,9.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results and sweep.csv; default: sweep-NAME here. The same call goes on where it was stopped.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1, 1024), default=None, help="Runs at a time; default: as many as processors."
)
@click.option("--ray", metavar="ADDRESS", help="On a Ray cluster: HOST:6379 of its head, ray://HOST:10001, or auto.")
def sweep(
    scenario: str, settings: tuple[str, ...], seeds: str, out: Path | None, jobs: int | None, ray: str | None
) -> None:  # fmt: skip
    """Run SCENARIO (a file or the name of one that ships) with every combination of settings and seeds."""
    console = Console(stderr=True)
    try:
        chosen = load(scenario)
        cells = cells_of(chosen, [parse_setting(text) for text in settings], parse_seeds(seeds))
        made = Sweep(out or Path(f"sweep-{chosen.name}"), chosen, cells)
        interrupted = _make(made, jobs, ray, console)
    except SimulationError as error:
        console.print(f"meshsim: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(UNUSABLE) from error
    if interrupted:
        made.look()
    table = made.write_table()
    if interrupted:
        done = len(made.cells) - len(made.missing)
        console.print(f"interrupted: {done} of {len(made.cells)} runs are finished, the same call goes on")
        raise SystemExit(INTERRUPTED)
    _show(made)
    click.echo(f"{table}: all {len(made.cells)} runs")
    if any(row.broken or row.error for row in made.rows.values()):
        raise SystemExit(1)


def _make(made: Sweep, jobs: int | None, ray: str | None, console: Console) -> bool:
    """Make the runs that are missing. Returns whether that was interrupted."""
    missing = made.missing
    finished = len(made.cells) - len(missing)
    if finished:
        console.print(f"{finished} of {len(made.cells)} runs are finished already")
    if not missing:
        return False
    if ray is not None:
        work = on_ray(missing, simulate, ray, jobs)
    else:
        work = on_this_machine(missing, simulate, min(jobs or len(os.sched_getaffinity(0)), len(missing)))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress, closing(work):
        task = progress.add_task(escape(made.scenario.name), total=len(made.cells), completed=finished, note="")
        broken = 0
        try:
            for cell, row, result in work:
                made.keep(cell, row, result)
                broken += bool(row.broken or row.error)
                progress.update(task, advance=1, note=f"{broken} broken" if broken else "")
        except KeyboardInterrupt:
            return True
    return False


def _show(made: Sweep) -> None:
    """Show a line of medians over the seeds for each combination. Then show what broke, and what occurred in the whole
    batch."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(medians(made, console))
    failures: dict[str, list[str]] = {}
    for cell, row in made.rows.items():
        if row.broken or row.error:
            failures.setdefault(row.error or ", ".join(row.broken), []).append(cell.folder)
    for what, folders in list(failures.items())[:_SHOWN_FAILURES]:
        more = f" and {len(folders) - _SHOWN_RUNS} more" if len(folders) > _SHOWN_RUNS else ""
        click.echo(f"broken: {what}: {', '.join(folders[:_SHOWN_RUNS])}{more}")
    if len(failures) > _SHOWN_FAILURES:
        click.echo(f"and {len(failures) - _SHOWN_FAILURES} other reasons")
    occurred: Counter[str] = Counter()
    for row in made.rows.values():
        occurred.update(row.sometimes)
    if occurred:
        click.echo(
            "occurred: "
            + ", ".join(f"{what} {number}" for what, number in sorted(occurred.items()) if not what.endswith(" over"))
        )
    kinds = made.scenario.random_faults.kinds if made.scenario.random_faults is not None else ()
    never = [kind for kind in kinds if not occurred[kind]]
    if never and any(not row.error for row in made.rows.values()):
        click.echo(f"never occurred, so not tested: {', '.join(never)}; more seeds may reach them")


def medians(made: Sweep, console: Console) -> Table:
    """The table, with as many of the figures in ``_WHERE_ROOM`` as it has, and as there is room for."""
    known = {name for row in made.rows.values() for name, value in row.figures.items() if value is not None}
    hidden = {name for name in _WHERE_ROOM if name not in known}
    table, unbounded = _table(made, hidden), console.options.update(max_width=_UNBOUNDED)
    for name in reversed(_WHERE_ROOM):
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        hidden.add(name)
        table = _table(made, hidden)
    return table


def _table(made: Sweep, hidden: AbstractSet[str]) -> Table:
    table = Table(title=f"{made.scenario.name}: medians over seeds", title_justify="left", box=box.SIMPLE_HEAD)
    for path, _ in made.cells[0].values:
        table.add_column(escape(path.replace(".", "\n")))
    table.add_column("runs", justify="right")
    table.add_column("broken", justify="right")
    columns = [column for column in _COLUMNS if column[1] not in hidden]
    for title, _, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for values, rows in made.combinations().items():
        broken = sum(bool(row.broken or row.error) for row in rows)
        figures = [_median(rows, name, factor) for _, name, factor in columns]
        table.add_row(*(escape(value) for _, value in values), str(len(rows)), str(broken or ""), *figures)
    return table


def _median(rows: list[RunFigures], name: str, factor: float) -> str:
    values = [value for row in rows if (value := row.figures.get(name)) is not None]
    if not values:
        return "–"
    median = statistics.median(values) * factor
    return f"{median:.0f}" if abs(median) >= _PLAIN else f"{median:.3g}"
