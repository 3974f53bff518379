"""The table of a sweep is read as it was written, or refused by name."""

from pathlib import Path

import pytest

from sims.errors import ResultError
from sims.results.sweep_table import SweptRun, is_sweep, load_table
from sims.runs.grid import cells_of, parse_setting
from sims.runs.sweep import RunFigures, Sweep
from sims.scenario.file import load


def written(folder: Path, *settings: str) -> Path:
    """A sweep of two seeds of which one run failed; its figures are made up."""
    scenario = load("pair")
    made = Sweep(folder, scenario, cells_of(scenario, [parse_setting(text) for text in settings], (1, 2)))
    for number, cell in enumerate(made.cells):
        made.keep(cell, RunFigures({"age_p95_ms": 100.0 + number, "urgent_p99_ms": None}), b"{}")
    made.keep(made.cells[-1], RunFigures(error="killed"), b"")
    made.write_table()
    return folder


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A page of figures that are not those of the runs would be worse than none."""
    table = load_table(written(tmp_path, "traffic.0.rate_hz=1,5", "radio.environment=urban,highway"))
    assert is_sweep(tmp_path)
    assert (table.scenario, table.paths) == ("pair", ("traffic.0.rate_hz", "radio.environment"))
    assert len(table.runs) == 8
    assert table.runs[2] == SweptRun(("1", "highway"), 1, {"age_p95_ms": 102.0}, False)
    assert table.runs[-1] == SweptRun(("5", "highway"), 2, {}, True)


def test_setting_that_is_called_seed_is_not_taken_for_the_column_of_seeds(tmp_path: Path) -> None:
    """A scenario has such a key, so somebody will set it."""
    table = load_table(written(tmp_path, "seed=7,8"))
    assert table.paths == ("seed",)
    assert [(run.values, run.seed) for run in table.runs] == [(("7",), 1), (("7",), 2), (("8",), 1), (("8",), 2)]


def test_folder_without_a_table_says_what_to_do(tmp_path: Path) -> None:
    """A sweep that was killed has not written it yet."""
    (written(tmp_path) / "sweep.csv").unlink()
    with pytest.raises(ResultError, match=r"sweep\.csv is missing: give the command of the sweep again"):
        load_table(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "a,broken,digest,error\n1,,,\n", "seed,x,broken,digest,error\n1,soon,,,\n",
     "seed,x,broken,digest,error\n1,2\n"],
)  # fmt: skip
def test_file_that_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    """Somebody's own notes may have the name."""
    (written(tmp_path) / "sweep.csv").write_text(text)
    with pytest.raises(ResultError, match=r"sweep\.csv is not the table of a sweep"):
        load_table(tmp_path)


def test_folder_of_anything_else_is_no_sweep(tmp_path: Path) -> None:
    """The command then takes it for the result of one run."""
    assert not is_sweep(tmp_path)
    with pytest.raises(ResultError, match=r"sweep\.json is not of a sweep"):
        load_table(tmp_path)
