"""A sweep as its page carries it: medians over the seeds for each combination, and which of them make a line.

Layouts, which ``sweep.js`` reads:

- ``rows``: [values in words, runs, broken runs, {figure: [median, least, most]}] for each combination.
- ``families``: [name, [[x, row], …]] for each set of charts. ``x`` is the value of ``axis``, the setting over which
  figures are drawn: the one with most numbers. The others tell families apart.
"""

import math
import statistics
from typing import Any

from sims.results.sweep_table import SweepTable, SweptRun

MAX_FAMILIES = 12
MAX_ROWS = 2_000
"""Six hundred bytes each. The page stays below two megabytes."""


def compact_sweep(table: SweepTable) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    combinations: dict[tuple[str, ...], list[SweptRun]] = {}
    for run in table.runs:
        combinations.setdefault(run.values, []).append(run)
    chosen = list(combinations)[:MAX_ROWS]
    axis = _axis(table.paths, chosen)
    varied = [len({values[at] for values in chosen}) > 1 for at in range(len(table.paths))]
    families: dict[str, list[tuple[float, int]]] = {}
    if axis is not None:
        for number, values in enumerate(chosen):
            x = _number(values[axis])
            if x is not None:
                others = (f"{path} = {value}" for path, value in zip(table.paths, values, strict=True))
                name = ", ".join(word for at, word in enumerate(others) if varied[at] and at != axis)
                families.setdefault(name, []).append((x, number))
    left_out = []
    if len(combinations) > MAX_ROWS:
        left_out.append(f"combinations: the first {MAX_ROWS} of {len(combinations)}; all are in sweep.csv")
    if len(families) > MAX_FAMILIES:
        left_out.append(f"charts: the first {MAX_FAMILIES} of {len(families)} sets; the table has all")
    return {
        "scenario": table.scenario, "paths": table.paths, "axis": None if axis is None else table.paths[axis],
        "runs": len(table.runs), "broken": sum(run.broken for run in table.runs),
        "seeds": len({run.seed for run in table.runs}),
        "rows": [_row(values, combinations[values]) for values in chosen],
        "families": [[name, sorted(points)] for name, points in list(families.items())[:MAX_FAMILIES]],
        "left_out": left_out,
    }  # fmt: skip


def _axis(paths: tuple[str, ...], combinations: list[tuple[str, ...]]) -> int | None:
    """The position of the setting with most numbers, at least two; the first one of several."""
    numbers = [
        len({x for values in combinations if (x := _number(values[position])) is not None})
        for position in range(len(paths))
    ]
    most = max(numbers, default=0)
    return numbers.index(most) if most > 1 else None


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _row(values: tuple[str, ...], runs: list[SweptRun]) -> list[Any]:
    figures: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.figures.items():
            figures.setdefault(name, []).append(value)
    spans = {name: [_short(statistics.median(all_of)), min(all_of), max(all_of)] for name, all_of in figures.items()}
    return [values, len(runs), sum(run.broken for run in runs), spans]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
