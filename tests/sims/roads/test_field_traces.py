"""Traces as people export them from SUMO, in the simulator: the files that tests/meshnode/sensors replays in a node."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from meshnode.sensors.fcd_trace import fixes
from protocols.base.limits import SECOND
from sims.cli.main import main
from sims.errors import TraceError
from sims.roads.mobility import Map, places
from sims.scenario.file import Group, Scenario, Trace

FIELD = Path(__file__).resolve().parents[2] / "meshnode" / "sensors" / "field" / "fcd"
ORIGIN = (48.766, 11.42)


def follow(file: str, *, folder: Path = FIELD, count: int = 1, seconds: float = 4.0, **settings: object) -> Map:
    """Places of the vehicles of a file, at the start."""
    trace = Trace(file, **settings)  # type: ignore[arg-type]
    groups = (Group("car", count, trace),)
    return places(Scenario("one", "one group", seconds, groups, origin=ORIGIN, folder=str(folder)), Random(1))


def written(folder: Path, *steps: tuple[float | str, list[str]]) -> str:
    """A trace of time steps with the attributes of their vehicles; each tag has a line of its own."""
    lines = ["<fcd-export>"]
    for time_s, vehicles in steps:
        lines += [f'<timestep time="{time_s}">', *(f"<vehicle {each}/>" for each in vehicles), "</timestep>"]
    (folder / "t.xml").write_text("\n".join([*lines, "</fcd-export>\n"]))
    return "t.xml"


def test_trace_of_positions_only_moves_a_node_of_the_simulator_as_it_moves_a_real_one() -> None:
    """Both have to say the same of one drive: an emulated node has its sensors from the one and its place from the
    other."""
    where = follow("attributes_x_y_only.xml", seconds=30, vehicles=("car.0",))
    for fix in fixes(FIELD / "attributes_x_y_only.xml", "car.0"):
        if fix.time_s >= 30:
            break
        where.advance(round(fix.time_s * SECOND))
        assert where.speeds_mps[0] == pytest.approx(fix.speed_mps, rel=0.005, abs=0.02)
        assert where.headings_deg[0] == pytest.approx(fix.heading_deg, abs=0.5)


def test_trace_of_positions_only_gives_no_speed_across_a_jump(tmp_path: Path) -> None:
    """A vehicle that is set down elsewhere goes on at the speed of what follows."""
    xs = [0, 10, 20, 500, 510, 520]
    file = written(tmp_path, *((t, [f'id="a" x="{x}" y="0"']) for t, x in enumerate(xs)))
    where = follow(file, folder=tmp_path, seconds=5, geo=False, jumps="reappear")
    seen = []
    for t in range(6):
        where.advance(t * SECOND)
        seen.append((where.present[0], where.speeds_mps[0]))
    assert seen == [(True, 10), (True, 10), (False, 10), (True, 10), (True, 10), (True, 10)]


def test_trace_with_clock_times_is_followed() -> None:
    """The same drive, in seconds and as hours."""
    clock = follow("human_readable_time.xml", seconds=20, from_s=10, vehicles=("car.1",))
    plain = follow("attributes_x_y_only.xml", seconds=20, from_s=10, vehicles=("car.1",))
    for where in (clock, plain):
        where.advance(7 * SECOND)
    assert (clock.xs_m, clock.ys_m) == (plain.xs_m, plain.ys_m)


@pytest.mark.parametrize("jumps", ["refuse", "reappear"])
def test_trace_in_metres_that_pass_for_degrees_is_refused_with_both_ways_out(jumps: str) -> None:
    """With "reappear" its vehicle would never be there, and nobody would be told."""
    says = r"line 10, .*779 km from 0 to 1 s, which no vehicle can.*set geo = false .*--fcd-output\.geo"
    with pytest.raises(TraceError, match=says):
        follow("metres_that_pass_for_degrees.xml", jumps=jumps)
    where = follow("metres_that_pass_for_degrees.xml", jumps=jumps, geo=False)
    where.advance(SECOND)
    assert where.xs_m == [10.5]


def test_trace_in_degrees_that_is_taken_for_metres_is_refused() -> None:
    """All vehicles would stand in one spot, at 7.3 m/s."""
    with pytest.raises(TraceError, match=r"these look like degrees, set geo = true"):
        follow("other_vehicle_invalid.xml", geo=False)


def test_csv_of_sumo_is_refused_with_the_name_to_give() -> None:
    """SUMO chooses the format by the name of the file."""
    with pytest.raises(TraceError, match=r"this is SUMO's CSV, but XML is wanted"):
        follow("sumo_output.csv")


def test_bad_row_of_another_vehicle_does_not_matter_to_those_that_are_named() -> None:
    """Only what is used is judged."""
    where = follow("other_vehicle_invalid.xml", vehicles=("a",))
    assert (where.present, where.left_out.rows) == ([True], 0)


def test_bad_rows_are_left_out_and_counted_and_take_no_place(tmp_path: Path) -> None:
    """A parked vehicle without a position must not become a node that is nowhere."""
    where = follow("other_vehicle_invalid.xml")
    assert (where.present, where.left_out.rows) == ([True], 0)  # "a" comes first, and nobody else is looked at
    nowhere = 'id="parked" x="-1073741824.00" y="-1073741824.00" speed="0" angle="0"'
    steps = [(t, [nowhere, f'id="a" x="{10 * t}" y="0" speed="10" angle="90"']) for t in range(5)]
    where = follow(written(tmp_path, *steps), folder=tmp_path, geo=False)
    where.advance(SECOND)
    assert (where.xs_m, where.present, where.left_out.rows) == ([10], [True], 1)  # then "a" has its place
    assert "line 3, column 1: vehicle 'parked': x=-1073741824" in where.left_out.first


def test_bad_row_of_the_vehicle_itself_makes_it_absent_for_that_step(tmp_path: Path) -> None:
    """It has been somewhere, but nobody knows where."""
    rows = [f'id="a" x="{10 * t}" y="0" speed="10" angle="90"' for t in range(6)]
    rows[2] = 'id="a" x="" y="0" speed="10" angle="90"'
    where = follow(written(tmp_path, *((t, [row]) for t, row in enumerate(rows))), folder=tmp_path, geo=False)
    present = []
    for t in range(5):
        where.advance(t * SECOND)
        present.append(where.present[0])
    assert present == [True, False, False, True, True]
    assert where.left_out.rows == 1


def test_refusal_of_a_trace_with_bad_rows_tells_the_first_of_them(tmp_path: Path) -> None:
    """They are the likely reason."""
    file = written(tmp_path, *((t, ['id="a" x="east" y="0"']) for t in range(5)))
    says = r"has 0 vehicles from 0 to 4 s.*; 5 rows were left out, the first: .*line 3, .*'x' is 'east'"
    with pytest.raises(TraceError, match=says):
        follow(file, folder=tmp_path, geo=False)


def test_trace_that_is_cut_off_is_used_to_its_last_whole_step_and_refused_beyond() -> None:
    """The run must not end in a standing town; the message says how long it may be."""
    where = follow("cut_off.xml", seconds=4)
    where.advance(4 * SECOND)
    assert where.xs_m[0] == pytest.approx(29.4, abs=0.2)
    says = r"line 23, .*whole time steps end at 4 s, but it is needed from 0 until 4\.5 s: lower from_s or duration_s"
    with pytest.raises(TraceError, match=says):
        follow("cut_off.xml", seconds=4.5)


def test_run_with_bad_rows_says_so_on_the_error_output_and_counts_them(tmp_path: Path) -> None:
    """A result without some of its traffic must not look like one with all of it."""
    shutil.copy(FIELD / "other_vehicle_invalid.xml", tmp_path / "t.xml")
    text = (tmp_path / "t.xml").read_text()
    first, _, second = text.partition('<timestep time="1.00">')
    parked = '<vehicle id="parked" x="-1073741824.00" y="-1073741824.00"/>'
    (tmp_path / "t.xml").write_text(
        first.replace("<vehicle", f"{parked}\n<vehicle") + '<timestep time="1.00">' + second
    )
    scenario = tmp_path / "town.toml"
    scenario.write_text(
        'name = "town"\ndescription = "one car"\nduration_s = 4\norigin = [48.766, 11.42]\n'
        '[[groups]]\nname = "car"\ncount = 1\nmobility = { kind = "trace", file = "t.xml" }\n'
    )
    ran = CliRunner().invoke(main, ["run", str(scenario), "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["counters"]["trace_rows_left_out"] == 1
    assert "1 row is left out of traces, the first: trace" in ran.stderr
    assert "vehicle 'parked'" in ran.stderr
