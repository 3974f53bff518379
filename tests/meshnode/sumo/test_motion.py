"""Speed and heading from positions, and metres told from degrees: what nodes and the simulator share."""

import math
from pathlib import Path

import pytest

from meshnode.sumo.motion import Motion, Moved, looks_like_metres, way_in_degrees, way_in_metres
from tests.meshnode.sumo.test_floating_car import step, written


def test_motion_is_that_of_the_way_that_led_to_a_place() -> None:
    """As SUMO's own speed: of a vehicle that starts, the first moving step has the speed."""
    motion = Motion(way_in_metres)
    places = [(0.0, 0.0), (0.0, 0.0), (0.0, 10.0), (10.0, 10.0), (10.0, 0.0), (3.0, -7.0)]
    got = [motion.to(float(t), place) for t, place in enumerate(places)]
    assert got == [
        Moved(None, None),
        Moved(0.0, None),
        Moved(10.0, 0.0),
        Moved(10.0, 90.0),
        Moved(10.0, 180.0),
        Moved(9.9, 225.0),
    ]


def test_motion_in_degrees_and_in_metres_is_the_same() -> None:
    """A node has degrees, the simulator a plane. At Ingolstadt a millidegree is 111.2 m north and 73.5 m east."""
    degrees, metres = Motion(way_in_degrees), Motion(way_in_metres)
    for t in range(5):
        of_degrees = degrees.to(t * 5.0, (11.42 + t * 0.001, 48.766 + t * 0.001))
        of_metres = metres.to(t * 5.0, (t * 73.48, t * 111.21))
    assert of_degrees.speed_mps == pytest.approx(of_metres.speed_mps, abs=0.05)
    assert of_degrees.heading_deg == pytest.approx(of_metres.heading_deg, abs=0.1)


def test_motion_of_short_steps_spans_a_second() -> None:
    """Rounded to 0.1 m, one step of a tenth of a second is 1 m/s wrong."""
    motion = Motion(way_in_metres)
    speeds = [motion.to(n / 10, (round(n * 1.234, 1), 0.0)).speed_mps for n in range(100)]
    assert all(speed == pytest.approx(12.34, abs=0.11) for speed in speeds[10:])


def test_motion_across_a_jump_begins_anew() -> None:
    """150 m in a second is no drive."""
    motion = Motion(way_in_metres)
    got = [motion.to(t, (x, 0.0)) for t, x in ((0.0, 0.0), (1.0, 10.0), (2.0, 160.0), (3.0, 170.0))]
    assert [moved.speed_mps for moved in got] == [None, 10.0, None, 10.0]
    assert got[2].heading_deg is None


def test_motion_with_two_places_at_one_time_takes_the_later() -> None:
    """There is no speed between them."""
    motion = Motion(way_in_metres)
    got = [motion.to(t, (x, 0.0)) for t, x in ((0.0, 0.0), (1.0, 10.0), (1.0, 12.0), (2.0, 22.0))]
    assert [moved.speed_mps for moved in got] == [None, 10.0, 12.0, 10.0]


def test_motion_keeps_no_more_than_it_needs() -> None:
    """A day of steps of a tenth of a second must not fill the memory."""
    motion = Motion(way_in_metres)
    for n in range(50_000):
        motion.to(n / 10, (n / 10, 0.0))
    assert len(motion._past) <= 12
    for n in range(5_000):
        motion.to(5_000 + n / 1e6, (5_000.0, 0.0))
    assert len(motion._past) <= 1_024


@pytest.mark.parametrize(
    ("xs", "metres"),
    [
        ([11.4, 11.4001, 11.4002], False),  # 7 m a step
        ([3.5, 10.5, 17.5], True),
        ([3.5, 3.51, 3.52], True),  # it creeps at 1 cm/s
        ([3.5, 3.5, 3.5], False),  # nobody knows
        ([11.4, 114.0, 11.4001, 11.4002, 11.4003, 11.4004], False),  # one wrong digit
        ([4_711.5, 4_712.5], True),
    ],
)
def test_metres_are_told_from_degrees_by_how_far_vehicles_go(tmp_path: Path, xs: list[float], metres: bool) -> None:
    """Maps of small towns in metres are within the bounds of degrees."""
    path = written(tmp_path, *(line for t, x in enumerate(xs) for line in step(t, f'id="a" x="{x}" y="1.5"')))
    assert looks_like_metres(path, -math.inf) is metres


def test_metres_are_told_from_where_vehicles_first_move(tmp_path: Path) -> None:
    """The beginning of a recording may be a car park."""
    xs = [3.0] * 20_100 + [3.5, 4.0, 4.5]
    path = written(tmp_path, *(line for t, x in enumerate(xs) for line in step(t, f'id="a" x="{x}" y="1.5"')))
    assert looks_like_metres(path, 20_099) is True
