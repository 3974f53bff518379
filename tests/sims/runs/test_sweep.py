"""``meshsim sweep``: every combination once, over processes, and nothing finished is lost or made again."""

import csv
import io
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

import sims.cli.sweep
import sims.runs.cluster
import sims.runs.sweep
from sims.cli.main import main as meshsim
from sims.errors import ScenarioError, SweepError
from sims.results.saved import load as load_result
from sims.results.sweep_table import TABLE_FILE
from sims.runs.grid import MAX_CELLS, Cell, Setting, cells_of, parse_seeds, parse_setting, with_settings
from sims.runs.run import simulate
from sims.runs.sweep import ROW_FILE, RunFigures, Sweep, on_this_machine
from sims.runs.versions import versions
from sims.scenario.file import load
from tests.tools.eventually import eventually
from tests.tools.result_fixture import run_that_may_kill


def cells(*settings: str, seeds: str = "2", scenario: str = "partition-heal") -> list[Cell]:
    """Of a scenario that ships."""
    return cells_of(load(scenario), [parse_setting(text) for text in settings], parse_seeds(seeds))


def lines_of(table: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    return list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))


# --- the grid --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("traffic.0.rate_hz=1,5,10", "traffic.0.rate_hz", (1, 5, 10)),
        ("radio.environment=urban,highway", "radio.environment", ("urban", "highway")),
        ("radio.shared=true,false", "radio.shared", (True, False)),
        ("radio.loss=0.1, 0.1 ,0.2", "radio.loss", (0.1, 0.2)),
        ("traffic.0.to=['car'],['car','rsu']", "traffic.0.to", (["car"], ["car", "rsu"])),
        ("origin=[48.1,11.5]", "origin", ([48.1, 11.5],)),
    ],
)  # fmt: skip
def test_setting_is_read_with_its_values(text: str, path: str, values: tuple[object, ...]) -> None:
    """What a person types in a shell, quotes left out."""
    assert parse_setting(text) == Setting(path, values)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (1, 2, 3)), ("5..7", (5, 6, 7)), ("1,4,9", (1, 4, 9)), ("1..3,2..4", (1, 2, 3, 4)), ("7..7", (7,))],
)
def test_seeds_are_read(text: str, seeds: tuple[int, ...]) -> None:
    """A number says how many, a range says which."""
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "5..1", "1..", "-3", "1..99999999", "1,,2"])
def test_seeds_that_make_no_sense_are_named(text: str) -> None:
    """A typing error must not start a day of work, nor none."""
    with pytest.raises(SweepError, match="--seeds"):
        parse_seeds(text)


def test_cells_are_every_combination_with_every_seed() -> None:
    """A missing combination would be missed only in the figure made of it."""
    made = cells("traffic.car.rate_hz=1,5", "radio.environment=urban,highway", seeds="1..3")
    assert len(made) == 12
    assert {(cell.scenario.traffic[0].rate_hz, cell.scenario.radio.environment, cell.seed) for cell in made} == {
        (rate, environment, seed) for rate in (1, 5) for environment in ("urban", "highway") for seed in (1, 2, 3)
    }
    assert len({cell.folder for cell in made}) == 12


def test_cells_without_settings_are_the_scenario_as_it_is_written() -> None:
    """Many seeds of one scenario are the commonest sweep."""
    made = cells(seeds="1..4")
    assert [cell.seed for cell in made] == [1, 2, 3, 4]
    assert all(cell.scenario == load("partition-heal") for cell in made)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("traffic.9.rate_hz=1", "there is no 9"),
        ("traffic.bus.rate_hz=1", "no 'bus'"),
        ("name.first=a", "nothing is inside"),
        ("rate_hz", "give a path"),
        ("a=", "give a path"),
        ("radio.loss=0.1,,0.2", "between two commas"),
    ],
)
def test_setting_that_leads_nowhere_is_named(setting: str, says: str) -> None:
    """A sweep over nothing would give a fine table of equal figures."""
    with pytest.raises(SweepError, match=says):
        cells(setting)


@pytest.mark.parametrize("setting", ["radio.enviroment=urban", "radio.loss=0.5,2", "traffic.0.rate_hz=often"])
def test_value_that_the_scenario_refuses_stops_the_sweep_before_it_starts(setting: str) -> None:
    """Found after an hour it would be an hour too late."""
    with pytest.raises(ScenarioError, match=f"with {setting.partition('=')[0]}"):
        cells(setting)


def test_one_run_takes_one_value_of_each_setting() -> None:
    """Whoever plays a scenario with thirty vehicles needs no copy of it, and is told where several values go."""
    chosen = with_settings(load("jam"), ["groups.car.count=30", "groups.car.multicast=true"])
    (car,) = chosen.groups
    assert (car.count, car.multicast, chosen.traffic) == (30, True, load("jam").traffic)
    assert with_settings(load("jam"), []) == load("jam")
    with pytest.raises(SweepError, match="a run has one value; 'meshsim sweep' makes a run for each"):
        with_settings(load("jam"), ["groups.car.count=12,30"])


def test_too_many_cells_are_refused() -> None:
    """Nobody means a million runs."""
    with pytest.raises(SweepError, match=str(MAX_CELLS)):
        cells(*(f"radio.{name}=1,2,3,4,5,6,7,8,9" for name in ("d50_m", "slope_m", "range_m")), seeds="200")


def test_cell_with_odd_values_gets_a_folder_of_plain_letters() -> None:
    """A value with a slash must not leave the folder of the sweep."""
    odd = Cell(load("partition-heal"), 1, (("description", "../../etc" + "x" * 300),))
    assert "/" not in odd.folder.removesuffix("/seed-1")
    assert len(odd.folder) < 150
    assert odd.folder != Cell(odd.scenario, 1, (("description", "../../etc" + "x" * 301),)).folder


# --- running ---------------------------------------------------------------------------------------------------------
@pytest.mark.processes
def test_runs_over_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    """More cores must not change a single figure."""
    scenario = load("partition-heal")
    made = Sweep(tmp_path, scenario, cells(seeds="1..2"))
    for cell, row, result in on_this_machine(made.missing, simulate, 2):
        made.keep(cell, row, result)
    for cell in made.cells:
        alone = simulate(scenario, cell.seed)
        kept = load_result(tmp_path / cell.folder)
        assert kept.digest == alone.digest == made.rows[cell].digest
        assert made.rows[cell].figures["latency_p50_ms"] == alone.latency.quantiles["p50"]


@pytest.mark.processes
def test_run_that_fails_is_told_and_made_again(tmp_path: Path) -> None:
    """One bad cell must cost neither the others nor its own second chance."""
    made = Sweep(tmp_path, load("partition-heal"), cells(seeds="12..14"))
    for cell, row, result in on_this_machine(made.missing, run_that_may_kill, 2):
        made.keep(cell, row, result)
    failed = [cell for cell, row in made.rows.items() if row.error]
    assert [cell.seed for cell in failed] == [13]
    assert "ValueError: an unlucky run (result_fixture.py:" in made.rows[failed[0]].error
    again = Sweep(tmp_path, load("partition-heal"), cells(seeds="12..14"))
    assert [cell.seed for cell in again.missing] == [13]


@pytest.mark.processes
def test_process_that_is_killed_loses_only_what_it_ran(tmp_path: Path) -> None:
    """The kernel ends the largest process when memory is short."""
    made = Sweep(tmp_path, load("partition-heal"), cells(seeds="1,666,2,3,4"))
    for cell, row, result in on_this_machine(made.missing, run_that_may_kill, 1):
        made.keep(cell, row, result)
    assert {cell.seed for cell, row in made.rows.items() if not row.error} == {1, 2, 3, 4}
    (dead,) = [row for row in made.rows.values() if row.error]
    assert "--jobs" in dead.error


def test_table_has_a_line_for_each_run(tmp_path: Path) -> None:
    """What goes into a notebook."""
    made = Sweep(tmp_path, load("partition-heal"), cells("traffic.0.rate_hz=1,5", seeds="2"))
    for cell in made.cells:
        made.keep(cell, RunFigures({"latency_p50_ms": 1.5, "age_p50_ms": None}, ["one"], {}, "d" * 64), b"{}")
    rows = lines_of(made.write_table())
    assert [(row["traffic.0.rate_hz"], row["seed"]) for row in rows] == [("1", "1"), ("1", "2"), ("5", "1"), ("5", "2")]
    assert {row["latency_p50_ms"] for row in rows} == {"1.5"}
    assert {row["age_p50_ms"] for row in rows} == {""}


def test_larger_sweep_takes_over_what_a_smaller_one_finished(tmp_path: Path) -> None:
    """Ten more seeds should cost ten runs."""
    small = Sweep(tmp_path, load("partition-heal"), cells(seeds="2"))
    for cell in small.cells:
        small.keep(cell, RunFigures({"latency_p50_ms": 1.0}), b"{}")
    large = Sweep(tmp_path, load("partition-heal"), cells(seeds="5"))
    assert [cell.seed for cell in large.missing] == [3, 4, 5]


def test_folder_of_another_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of two scenarios, or of two states of the code, in one table are worth nothing."""
    Sweep(tmp_path / "a", load("partition-heal"), cells())
    with pytest.raises(SweepError, match="another scenario"):
        Sweep(tmp_path / "a", load("platoon"), cells(scenario="platoon"))
    monkeypatch.setattr(sims.runs.sweep, "versions", lambda: {"code": "other"})
    with pytest.raises(SweepError, match="other code"):
        Sweep(tmp_path / "a", load("partition-heal"), cells())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(SweepError, match="other things"):
        Sweep(tmp_path / "b", load("partition-heal"), cells())


def test_half_written_row_does_not_count_as_finished(tmp_path: Path) -> None:
    """A disk that filled up leaves such files; the run is simply made again."""
    made = Sweep(tmp_path, load("partition-heal"), cells())
    for cell in made.cells:
        made.keep(cell, RunFigures({"latency_p50_ms": 1.0}), b"{}")
    (tmp_path / made.cells[0].folder / ROW_FILE).write_bytes(b'{"figu')
    assert [cell.seed for cell in Sweep(tmp_path, load("partition-heal"), cells()).missing] == [1]


@pytest.mark.parametrize("is_written", [False, True], ids=["before the row is written", "after that"])
def test_interrupt_while_a_run_is_kept_leaves_what_is_on_disk(
    is_written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes at any moment: the table had a line of a run that the next call made again."""
    made = Sweep(tmp_path, load("partition-heal"), cells())
    write = sims.runs.sweep.write

    def interrupted(path: Path, data: bytes) -> None:
        if is_written:
            write(path, data)
        if path.name == ROW_FILE:
            raise KeyboardInterrupt

    monkeypatch.setattr(sims.runs.sweep, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.keep(made.cells[0], RunFigures({"latency_p50_ms": 1.0}), b"{}")
    made.look()
    assert len(lines_of(made.write_table())) == len(list(tmp_path.rglob(ROW_FILE))) == is_written


# --- the command -----------------------------------------------------------------------------------------------------
def begun(out: Path, seeds: int, finished: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A sweep under way of which some runs are finished, and its workers."""
    process = subprocess.Popen(command(out, seeds), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def enough() -> bool:
        assert process.poll() is None, process.communicate()
        return len(list(out.rglob(ROW_FILE))) >= finished

    eventually(enough, "some runs are finished", 60.0)
    return process, psutil.Process(process.pid).children(recursive=True)


def command(out: Path, seeds: int) -> list[str]:
    """The program as a person calls it."""
    program = [sys.executable, "-c", "from sims.cli.main import main; main()"]
    return [*program, "sweep", "partition-heal", "--seeds", str(seeds), "--jobs", "2", "--out", str(out)]


@pytest.mark.processes
def test_sweep_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """A night's work must survive a reboot, and leave no process behind."""
    out = tmp_path / "sweep"
    first, workers = begun(out, 24, 2)
    first.kill()
    first.communicate()
    finished = {file: file.stat().st_mtime_ns for file in out.rglob(ROW_FILE)}
    assert 2 <= len(finished) < 24
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    second = subprocess.run(command(out, 24), capture_output=True, text=True, timeout=100, check=False)
    assert second.returncode == 0, second.stderr + second.stdout
    assert f"{len(finished)} of 24 runs are finished already" in second.stderr
    assert len(list(out.rglob(ROW_FILE))) == 24
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(lines_of(out / TABLE_FILE)) == 24
    assert "occurred: " in second.stdout


@pytest.mark.processes
def test_sweep_interrupted_keeps_what_was_computed_and_leaves_no_process(tmp_path: Path) -> None:
    """Ctrl-C is how a person says that they have seen enough."""
    out = tmp_path / "sweep"
    process, workers = begun(out, 500, 1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "of 500 runs are finished, the same call goes on" in told
    assert "Traceback" not in told
    assert len(lines_of(out / TABLE_FILE)) == len(list(out.rglob(ROW_FILE))) >= 1
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_sweep_command_with_a_typing_error_ends_with_status_two_and_makes_no_folder(tmp_path: Path) -> None:
    """Nothing is begun that can't be finished."""
    for arguments in (
        ["partition-heel"],
        ["partition-heal", "--set", "radio.los=1"],
        ["partition-heal", "--seeds", "x"],
    ):
        done = CliRunner().invoke(meshsim, ["sweep", *arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2, done.output
        assert "meshsim: " in done.output
        assert not (tmp_path / "out").exists()


FIGURES = {
    "delivered_share": 1.0, "latency_p50_ms": 1.0, "latency_p99_ms": 2.0, "useful_per_s": 1_333.3,
    "urgent_p99_ms": 19.5, "age_p95_ms": 101.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("width", "left_out", "shown"),
    [
        (120, {}, {"useful", "age", "urgent"}),
        (120, {"urgent_p99_ms": None}, {"useful", "age"}),
        (110, {}, {"useful", "age"}),
        (100, {}, {"useful"}),
        (90, {}, set()),
    ],
)
def test_table_has_the_figures_for_which_there_is_room(
    tmp_path: Path, width: int, left_out: dict[str, float | None], shown: set[str]
) -> None:
    """A table whose columns are cut off in the middle of a number misleads."""
    made = Sweep(tmp_path, load("partition-heal"), cells("traffic.0.rate_hz=1,5", seeds="1"))
    for cell in made.cells:
        made.keep(cell, RunFigures(FIGURES | left_out), b"{}")
    console = Console(width=width, file=io.StringIO())
    console.print(sims.cli.sweep.medians(made, console))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert {name for name in ("useful", "age", "urgent") if name in text} == shown
    assert "…" not in text
    assert ("1333" in text) == ("useful" in shown)
    assert "latency" in text


# --- on a cluster: what needs none; the rest is in test_sweep_ray.py --------------------------------------------------
def test_sweep_on_ray_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The extra is large, so most will not have it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(meshsim, ["sweep", "partition-heal", "--ray", "auto", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert "meshsim: --ray auto needs the extra 'ray': pip install 'meshnode[ray]'" in done.output


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "can't reach a Ray cluster at '127.0.0.1:1': Connection refused"),
        ("ray://127.0.0.1:1", "can't reach a Ray cluster at 'ray://127.0.0.1:1': Connection refused"),
        ("[::1]:1", "can't reach a Ray cluster at '[::1]:1': "),
        ("my-cluster", "'my-cluster' is not an address: give HOST:6379"),
        ("127.0.0.1:99999", "'127.0.0.1:99999' is not an address"),
        ("127.0.0.1", "'127.0.0.1' is not an address"),
        ("", "'' is not an address"),
        ("local", "leave --ray out"),
    ],
)
def test_address_where_no_cluster_is_is_named_at_once(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray itself would try for a quarter of an hour; an empty variable in a script must not mean this machine."""
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    done = CliRunner().invoke(meshsim, ["sweep", "partition-heal", "--ray", address, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert says in done.output


def test_machine_with_other_code_makes_no_run() -> None:
    """Figures of two states of the code in one table are worth nothing."""
    scenario = load("partition-heal")
    row, _ = sims.runs.cluster._compute_there(run_that_may_kill, scenario, 1, versions()["code"])
    assert not row.error
    with pytest.raises(SweepError, match=r"has other code of this package .*, here changed"):
        sims.runs.cluster._compute_there(run_that_may_kill, scenario, 1, "changed")
