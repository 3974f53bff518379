"""The reader of floating-car data that nodes and the simulator share: what it yields and where it stops.

Malformed files are tested where people meet them: in tests/meshnode/sensors and tests/sims/roads.
"""

from itertools import pairwise
from pathlib import Path

import pytest

from meshnode.sumo.floating_car import BadRow, TimeStep, TraceCutOff, TraceInvalid, VehicleRow, rows, shown_s


def written(folder: Path, *lines: str, closed: bool = True) -> Path:
    """A file of those lines between the tags of the root, each tag on a line of its own."""
    path = folder / "trace.xml"
    path.write_text("\n".join(["<fcd-export>", *lines, *(["</fcd-export>"] if closed else [])]))
    return path


def step(time_s: float, *vehicles: str) -> list[str]:
    return [f'<timestep time="{time_s}">', *(f"<vehicle {vehicle}/>" for vehicle in vehicles), "</timestep>"]


def test_rows_come_before_their_time_step_and_carry_what_the_file_has(tmp_path: Path) -> None:
    """A simulation takes a step when it is complete, and traces without speed and angle are common."""
    path = written(
        tmp_path,
        *step(0, 'id="a" x="1" y="2"', 'id="b" x="3" y="4" speed="5" angle="360"'),
        *step(1),
        '<person id="p"/>',
    )
    first, second = TimeStep(0.0, 2, 1), TimeStep(1.0, 6, 1)
    assert list(rows(path)) == [
        VehicleRow(first, "a", 1.0, 2.0, None, None, 3, 1),
        VehicleRow(first, "b", 3.0, 4.0, 5.0, 0.0, 4, 1),
        first,
        second,
    ]


def test_rows_of_wanted_vehicles_and_times_ignore_faults_of_others(tmp_path: Path) -> None:
    """A long recording need not be clean everywhere: only what is used is judged."""
    path = written(
        tmp_path,
        *step(0, 'id="a" x="east" y="0"'),
        *step(1, 'id="a" x="1" y="0"', 'id="b"'),
        *step(2, 'id="a" x="2" y="0"'),
        *step(3, 'id="a"'),
        "<timestep",
    )
    found = list(rows(path, {"a"}, 1.0, 2.0))
    assert [row.x if isinstance(row, VehicleRow) else f"until {row.time_s:g}" for row in found] == [
        "until 0",
        1.0,
        "until 1",
        2.0,
        "until 2",
    ]


def test_rows_before_a_fault_are_yielded_before_it_is_raised(tmp_path: Path) -> None:
    """A recording that was cut off is used up to the cut, wherever the file is cut into pieces."""
    path = written(tmp_path, *step(0, 'id="a" x="1" y="2"'), '<timestep time="1"><vehicle id="a" x="1', closed=False)
    read = rows(path)
    assert [type(next(read)) for _ in range(2)] == [VehicleRow, TimeStep]
    says = r"line 5, column 20: .*\(it ends before its last tag\).*its whole time steps end at 0 s"
    with pytest.raises(TraceCutOff, match=says):
        next(read)


def test_bad_rows_are_told_at_once_and_left_out(tmp_path: Path) -> None:
    """The simulator gives the place of a vehicle without a good row to another one, while it reads."""
    path = written(tmp_path, *step(0, 'id="a" x="1" y="2"', 'id="b" x="1"', 'x="1" y="2"', 'id="c" x="?" y="2"'))
    told: list[BadRow] = []
    read = rows(path, skipped=told.append)
    assert isinstance(next(read), VehicleRow)
    assert told == [
        BadRow("b", "vehicle 'b': attribute 'y' is missing: expected a number", 4, 1),
        BadRow(None, "a vehicle has no attribute 'id'", 5, 1),
        BadRow("c", "vehicle 'c': attribute 'x' is '?': expected a number", 6, 1),
    ]
    assert list(read) == [TimeStep(0.0, 2, 1)]


def test_rows_with_numbers_that_sumo_does_not_know_come_without_them(tmp_path: Path) -> None:
    """It writes -2^30 for them."""
    path = written(tmp_path, *step(0, 'id="a" x="1" y="2" speed="-1073741824.00" angle="-1073741824.00"'))
    row = next(rows(path))
    assert isinstance(row, VehicleRow)
    assert (row.speed_mps, row.heading_deg) == (None, None)


@pytest.mark.parametrize(("time_s", "text"), [(1_700_000_000.25, "1700000000.25"), (5.0, "5"), (0.1, "0.1")])
def test_times_are_shown_with_as_many_digits_as_tell_them_apart(time_s: float, text: str) -> None:
    """A message that time goes back from 1.7e+09 to 1.7e+09 helps nobody."""
    assert shown_s(time_s) == text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ['<timestep time="0"><timestep time="1"/></timestep>'],
            "line 2, column 20: a time step begins inside another",
        ),
        ([*step(0), '<vehicle id="a" x="0" y="0"/>'], "line 4, column 1: a vehicle stands outside any time step"),
    ],
)
def test_rows_of_a_file_with_misplaced_tags_are_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    """A vehicle that belongs to no time step must not be given the time of another."""
    with pytest.raises(TraceInvalid, match=says):
        list(rows(written(tmp_path, *lines)))


def test_rows_of_a_long_file_keep_their_order_over_all_pieces(tmp_path: Path) -> None:
    """The file is read in pieces of 64 KiB; tags that lie across two of them must not get lost."""
    path = written(tmp_path, *(line for t in range(2_000) for line in step(t, f'id="a" x="{t % 180}" y="0" speed="1"')))
    assert path.stat().st_size > 2 * 64 * 1024
    found = list(rows(path))
    assert len(found) == 4_000
    lines = [row.line for row in found if isinstance(row, VehicleRow)]
    assert all(late - early == 3 for early, late in pairwise(lines))
