"""Makes many runs over all cores of this machine; :mod:`sims.runs.cluster` makes them on the cores of many machines.
What is finished is never made again.

A run is finished when its ``row.json`` is there, which is written last and at once. A sweep that was killed loses the
runs that were under way and nothing else, and the same call goes on. Results of other code or of another scenario are
not mixed in, because the folder says what it was begun with.

Workers are spawned, not forked, and end with the process that started them, however that ended.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from sims.errors import SweepError
from sims.results.result import Result
from sims.results.saved import encode, write, write_csv
from sims.results.sweep_table import LAST_COLUMNS, SWEEP_FILE, TABLE_FILE
from sims.runs.grid import Cell
from sims.runs.versions import versions
from sims.scenario.file import Scenario, dumps

ROW_FILE = "row.json"

RunFunction = Callable[[Scenario, int], Result]


class RunFigures(Struct, omit_defaults=True):
    """What the table of a sweep keeps of a run."""

    figures: dict[str, float | None] = {}
    broken: list[str] = []
    """The names of the checks that failed."""
    sometimes: dict[str, int] = {}
    digest: str = ""
    error: str = ""
    """Why there is no result. The next call makes such a run again."""


class _Begun(Struct, frozen=True):
    scenario: str
    digest: str
    code: str


# --- one run ---------------------------------------------------------------------------------------------------------
def row_of(result: Result) -> RunFigures:
    """The row of the table for a result: figures by name, units last; None where there is none."""
    wanted, in_range = sum(result.distances.wanted), sum(result.distances.in_range)
    times = {
        name: sorted(value for entry in result.dissemination if (value := getattr(entry, name)) is not None)
        for name in ("t50_s", "t90_s", "t100_s")
    }
    complete = sum(entry.t100_s is not None for entry in result.dissemination)
    load_shares = [share for share in result.load if share >= 0]
    figures = {
        "valid": float(result.valid),
        "checks_failed": float(len(result.broken)),
        "latency_p50_ms": result.latency.quantiles.get("p50"),
        "latency_p99_ms": result.latency.quantiles.get("p99"),
        "offered_per_s": result.offered_per_s,
        "useful_per_s": result.useful_per_s,
        "urgent_p50_ms": result.urgent.quantiles.get("p50"),
        "urgent_p99_ms": result.urgent.quantiles.get("p99"),
        "urgent_missed_share": result.urgent_missed / result.urgent_wanted if result.urgent_wanted else None,
        "age_p50_ms": result.age.quantiles.get("p50"),
        "age_p95_ms": result.age.quantiles.get("p95"),
        "discovery_p50_s": result.discovery.quantiles.get("p50"),
        "discovery_p95_s": result.discovery.quantiles.get("p95"),
        "inference_p50_ms": result.inference.quantiles.get("p50"),
        "inference_p95_ms": result.inference.quantiles.get("p95"),
        "delivered_share": sum(result.distances.delivered) / wanted if wanted else None,
        "known_share": sum(result.distances.known) / in_range if in_range else None,
        **{f"spread_{name}": _middle(values) for name, values in times.items()},
        "spread_complete_share": complete / len(result.dissemination) if result.dissemination else None,
        "load_share": sum(load_shares) / len(load_shares) if load_shares else None,
        "dropped": float(sum(result.drops.values())),
        "virtual_s": result.virtual_s,
        "wall_s": result.wall_s,
    }
    return RunFigures(figures, result.broken, result.sometimes, result.digest)


def _middle(values: Sequence[float]) -> float | None:
    return values[len(values) // 2] if values else None


def compute(run: RunFunction, scenario: Scenario, seed: int) -> tuple[RunFigures, bytes]:
    """Make a run in a worker, and return what is kept of it. A run that fails must not end the others, whatever it
    fails with."""
    try:
        result = run(scenario, seed)
    except Exception as error:  # noqa: BLE001
        last = traceback.extract_tb(error.__traceback__)[-1]
        return RunFigures(error=f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"), b""
    return row_of(result), encode(result)


# --- a folder of runs ------------------------------------------------------------------------------------------------
class Sweep:
    """All cells of a sweep, those that are finished, and the folder they are in."""

    def __init__(self, folder: Path, scenario: Scenario, cells: Sequence[Cell]) -> None:
        """:raises SweepError: when the folder belongs to another sweep, or can't be used."""
        self.folder, self.scenario, self.cells = folder, scenario, list(cells)
        self.rows: dict[Cell, RunFigures] = {}
        begun = _Begun(scenario.name, sha256(dumps(scenario).encode()).hexdigest(), versions().get("code", ""))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._belongs(begun)
            self.look()
        except OSError as error:
            raise SweepError(f"can't use the folder {folder}: {error.strerror or error}") from error

    def _belongs(self, begun: _Begun) -> None:
        file = self.folder / SWEEP_FILE
        if not file.exists():
            if any(self.folder.iterdir()):
                raise SweepError(f"{self.folder} holds other things: give a new or an empty folder")
            write(file, msgspec.json.encode(begun))
            return
        try:
            before = msgspec.json.decode(file.read_bytes(), type=_Begun)
        except msgspec.DecodeError as error:
            raise SweepError(f"{file} is damaged ({error}): give a new folder") from error
        if before.digest != begun.digest:
            raise SweepError(
                f"{self.folder} was begun with another scenario ({before.scenario}, or the file has changed): "
                "give a new folder"
            )
        if before.code != begun.code:
            raise SweepError(
                f"{self.folder} was begun with other code; results of both would be mixed: give a new folder"
            )

    def look(self) -> None:
        """Take in the runs that are finished on disk. After an interrupt, which may have come in the middle of
        :meth:`keep`, these are all."""
        for cell in self.cells:
            row = _finished(self.folder / cell.folder / ROW_FILE)
            if row is not None:
                self.rows[cell] = row

    def combinations(self) -> dict[tuple[tuple[str, str], ...], list[RunFigures]]:
        """The runs that ended, by what was set to what."""
        found: dict[tuple[tuple[str, str], ...], list[RunFigures]] = {}
        for cell in self.cells:
            rows = found.setdefault(cell.values, [])
            if cell in self.rows:
                rows.append(self.rows[cell])
        return found

    @property
    def missing(self) -> list[Cell]:
        """The cells that were not made yet, or failed."""
        return [cell for cell in self.cells if cell not in self.rows or self.rows[cell].error]

    def keep(self, cell: Cell, row: RunFigures, result: bytes) -> None:
        """Keep the outcome of a run that has ended, on disk first: an interrupt leaves none that is not there."""
        if not row.error:
            place = self.folder / cell.folder
            place.mkdir(parents=True, exist_ok=True)
            write(place / "result.json", result)
            write(place / ROW_FILE, msgspec.json.encode(row))
        self.rows[cell] = row

    def write_table(self) -> Path:
        """Write ``sweep.csv``, with a line for each run. Returns its path."""
        paths = [path for path, _ in self.cells[0].values] if self.cells else []
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row.figures))
        rows = [
            (*(value for _, value in cell.values), cell.seed, *(_empty(row.figures.get(name)) for name in names),
             " ".join(row.broken), row.digest[:16], row.error)
            for cell in self.cells if (row := self.rows.get(cell)) is not None
        ]  # fmt: skip
        file = self.folder / TABLE_FILE
        write_csv(file, (*paths, "seed", *names, *LAST_COLUMNS), rows)
        return file


def _finished(file: Path) -> RunFigures | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunFigures)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _empty(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# --- where runs are made ---------------------------------------------------------------------------------------------
Ended = tuple[Cell, RunFigures, bytes]


def on_this_machine(cells: Sequence[Cell], run: RunFunction, jobs: int) -> Generator[Ended, None, None]:
    """Make runs in ``jobs`` processes. A process that is killed fails its runs; the others go on in new ones."""
    waiting = list(reversed(cells))
    while waiting:
        under_way: dict[Future[tuple[RunFigures, bytes]], Cell] = {}
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker)
        try:
            while waiting or under_way:
                while waiting and len(under_way) < jobs:
                    cell = waiting[-1]
                    under_way[pool.submit(compute, run, cell.scenario, cell.seed)] = cell
                    waiting.pop()
                ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in sorted(ended, key=lambda done: under_way[done].seed):
                    row, result = future.result()
                    yield under_way.pop(future), row, result
        except BrokenProcessPool:
            for cell in under_way.values():
                yield cell, RunFigures(error="a worker process died, perhaps for want of memory: try fewer --jobs"), b""
        finally:
            for worker in multiprocessing.active_children():
                worker.terminate()
            # Wait for the thread of the pool: the interpreter would write to a pipe that this closes, as it ends.
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end this process when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
