"""The table of a sweep, ``sweep.csv``: a line for each run, with what was set to what, the seed, and figures by name.

``sweep.json`` beside it says which scenario the folder belongs to.
"""

import csv
import io
from pathlib import Path

import msgspec
from msgspec import Struct

from sims.errors import ResultError

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
MAX_TABLE_BYTES = 256 * 1024 * 1024
"""Several times what the largest sweep writes. A wrong file is not read into memory."""
LAST_COLUMNS = ("broken", "digest", "error")
"""The columns after the figures: checks that failed, the digest, and why there is no result."""


class SweptRun(Struct, frozen=True):
    """One run of a sweep."""

    values: tuple[str, ...]
    """What the paths of the sweep were set to, in words."""
    seed: int
    figures: dict[str, float]
    """Figures by name, units last; those that the run does not have are left out."""
    broken: bool
    """Whether a check or the run itself failed."""


class SweepTable(Struct, frozen=True):
    """A sweep: ``paths`` are the settings that varied."""

    scenario: str
    paths: tuple[str, ...]
    runs: list[SweptRun]


class _Begun(Struct):
    scenario: str


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def load_table(folder: Path) -> SweepTable:
    """Read the table from the folder of a sweep.

    :raises ResultError: names the file and what is wrong with it.
    """
    begun, file = folder / SWEEP_FILE, folder / TABLE_FILE
    try:
        scenario = msgspec.json.decode(begun.read_bytes(), type=_Begun).scenario
    except (OSError, msgspec.DecodeError) as error:
        raise ResultError(f"{begun} is not of a sweep: {error}") from error
    try:
        if file.stat().st_size > MAX_TABLE_BYTES:
            raise ResultError(f"{file} is larger than {MAX_TABLE_BYTES // 1024**2} MiB, so it is not of a sweep")
        rows = list(csv.reader(io.StringIO(file.read_text("utf-8"))))
    except FileNotFoundError as error:
        raise ResultError(f"{file} is missing: give the command of the sweep again, it writes the table") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"can't read {file}: {error}") from error
    try:
        return _table(scenario, rows)
    except (ValueError, IndexError) as error:
        raise ResultError(f"{file} is not the table of a sweep, or cut off: {error}") from error


def _table(scenario: str, rows: list[list[str]]) -> SweepTable:
    """:raises ValueError: and IndexError, when these are not the rows of a table."""
    head = rows[0]
    names = len(head) - len(LAST_COLUMNS)
    if tuple(head[names:]) != LAST_COLUMNS:
        raise ValueError(f"the last columns are not {', '.join(LAST_COLUMNS)}")
    seed = names - 1 - head[:names][::-1].index("seed")  # a path may be called so too, but no figure
    runs = []
    for row in rows[1:]:
        figures = {
            name: float(row[seed + 1 + at]) for at, name in enumerate(head[seed + 1 : names]) if row[seed + 1 + at]
        }
        broken, _, error = row[names:]
        runs.append(SweptRun(tuple(row[:seed]), int(row[seed]), figures, bool(broken or error)))
    return SweepTable(scenario, tuple(head[:seed]), runs)
