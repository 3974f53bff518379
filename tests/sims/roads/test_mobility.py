"""Where nodes are: every shipped scenario moves plausibly and the same each time, and bad traces are named."""

import gzip
import math
import os
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from msgspec.structs import replace

from meshnode.sumo.floating_car import MAX_MARKUP_BYTES
from meshnode.sumo.geodesy import Plane
from protocols.base.limits import MS, SECOND
from sims.errors import TraceError
from sims.media.contract import Places
from sims.roads.mobility import places
from sims.scenario.file import (
    Fixed,
    Group,
    Highway,
    Lattice,
    Mobility,
    Platoon,
    Scenario,
    Streets,
    Trace,
    Waypoints,
    load,
    shipped,
)

ROOT = Path(__file__).resolve().parents[3]


def of(mobility: Mobility, count: int = 1, duration_s: float = 60.0, folder: str = "") -> Scenario:
    """A scenario of one group."""
    return Scenario("one", "one group", duration_s, (Group("car", count, mobility),), folder=folder)


def spots(where: Places) -> list[tuple[float, float]]:
    """All places now."""
    return list(zip(where.xs_m, where.ys_m, strict=True))


# --- what ships ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", shipped())
def test_shipped_scenario_moves_everybody_at_plausible_speeds(name: str) -> None:
    """A node that teleports would be in reach of others for no reason."""
    scenario = load(name)
    where, tick_ns = places(scenario, Random(1)), 500 * MS
    before, here, came_back = spots(where), list(where.present), 0
    moved = [0.0] * len(before)
    for now in range(tick_ns, int(min(scenario.duration_s, 60) * SECOND) + 1, tick_ns):
        where.advance(now)
        for node, (old, new) in enumerate(zip(before, spots(where), strict=True)):
            way_m = math.dist(old, new)
            if name == "highway" and way_m > 1_000:
                came_back += 1
            elif where.present[node] and here[node]:
                assert way_m <= 40 * 0.5, f"{scenario.names[node]} at {now} ns"
                moved[node] += way_m
            assert 0 <= where.speeds_mps[node] <= 40
            assert 0 <= where.headings_deg[node] < 360
        before, here = spots(where), list(where.present)
    for lists in (where.xs_m, where.ys_m, where.present, where.speeds_mps, where.headings_deg):
        assert len(lists) == len(scenario.names)
    stands = [isinstance(group.mobility, Fixed | Lattice) for group in scenario.groups for _ in range(group.count)]
    assert [way_m == 0 for way_m in moved] == stands
    assert (came_back > 0) == (name == "highway")


@pytest.mark.processes
def test_shipped_scenarios_move_alike_whatever_the_hash_seed() -> None:
    """The same seed has to give the same run in another process."""
    program = (
        "import hashlib\n"
        "from random import Random\n"
        "from sims.roads.mobility import places\n"
        "from sims.scenario.file import load, shipped\n"
        "for name in shipped():\n"
        "    digest, where = hashlib.sha256(), places(load(name), Random(7))\n"
        "    for now in range(0, 10_000_000_000, 700_000_000):\n"
        "        where.advance(now)\n"
        "        digest.update(repr((where.xs_m, where.ys_m, where.present, where.speeds_mps)).encode())\n"
        "    print(name, digest.hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
            capture_output=True, check=True, timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(shipped())


def test_grid_of_a_thousand_has_eight_neighbours_in_range() -> None:
    """It is the yardstick of speed: fewer neighbours would be a flattering one."""
    scenario = load("grid-1000")
    assert scenario.radio.range_m is not None
    where = places(scenario, Random(1))
    where.advance(5 * SECOND)
    xs_m, ys_m = np.array(where.xs_m), np.array(where.ys_m)
    distances_m = np.hypot(xs_m[:, None] - xs_m, ys_m[:, None] - ys_m)
    mean = np.count_nonzero(distances_m <= scenario.radio.range_m) / 1_000 - 1  # oneself
    assert mean == pytest.approx(8, abs=0.2)


def test_intersection_keeps_twelve_nodes_within_300_metres_for_a_minute() -> None:
    """What is late in it must be late because of software and air: simulator and emulator are compared by it."""
    scenario = load("intersection")
    where = places(scenario, Random(1))
    for second in range(61):
        where.advance(second * SECOND)
        assert where.present == [True] * 12
        assert max(math.dist(one, other) for one in spots(where) for other in spots(where)) < 300


def test_backbone_clusters_never_hear_each_other() -> None:
    """Otherwise the scenario would prove nothing about wires."""
    scenario = load("rsu-backbone")
    where = places(scenario, Random(3))
    clusters = [scenario.members(group) for group in ("west", "middle", "east")]
    numbers = {name: number for number, name in enumerate(scenario.names)}
    for second in range(46):
        where.advance(second * SECOND)
        for unit, cluster in enumerate(clusters):
            for name in cluster:
                far_m = [math.dist(spots(where)[numbers[name]], spots(where)[other]) for other in range(3)]
                assert far_m.pop(unit) < 100
                assert min(far_m) > 2_000


def test_tunnel_takes_each_car_out_of_reach_of_the_relay_and_back() -> None:
    """Records have to wait, and to arrive after all."""
    scenario = load("tunnel")
    (hole,) = scenario.cellular.holes
    where, inside, covered = places(scenario, Random(1)), [False] * 11, [True]
    for second in range(121):
        where.advance(second * SECOND)
        covered = [math.dist(spot, (hole.x_m, hole.y_m)) > hole.radius_m for spot in spots(where)]
        inside = [was or not now for was, now in zip(inside, covered, strict=True)]
        assert second > 0 or all(covered)
    assert inside == [False] + [True] * 10
    assert all(covered)


# --- generated -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["grid-100", "highway", "intersection", "platoon"])
def test_places_do_not_depend_on_the_length_of_ticks(name: str) -> None:
    """The emulator ticks otherwise than the simulator, and both have to see the same roads."""
    fine, coarse = places(load(name), Random(5)), places(load(name), Random(5))
    for now in range(0, 10 * SECOND, 73 * MS):
        fine.advance(now)
    for one in (fine, coarse):
        one.advance(10 * SECOND)
    assert spots(fine) == spots(coarse)
    assert fine.headings_deg == coarse.headings_deg


def test_other_seed_drives_other_ways() -> None:
    """Seeds would otherwise repeat one sample."""
    first, second = (places(load("grid-100"), Random(seed)) for seed in (1, 2))
    assert spots(first) != spots(second)


def test_taking_a_group_away_leaves_the_ways_of_the_others() -> None:
    """The shrinker removes nodes; it would never end if each removal changed everything."""
    scenario = load("rsu-backbone")
    whole = places(scenario, Random(1))
    less = places(replace(scenario, groups=scenario.groups[:1] + scenario.groups[2:]), Random(1))
    for where in (whole, less):
        where.advance(30 * SECOND)
    assert spots(whole)[:3] + spots(whole)[9:] == spots(less)


def test_streets_are_never_left_and_turned_around_only_where_they_end() -> None:
    """Between crossings a vehicle is on a line of the grid."""
    where = places(of(Streets(blocks=3, spacing_m=100, speed_mps=10), count=20), Random(1))
    turns = 0
    headings = list(where.headings_deg)
    for now in range(0, 60 * SECOND, 100 * MS):
        where.advance(now)
        for x_m, y_m in spots(where):
            assert -1e-6 <= x_m <= 300 + 1e-6
            assert -1e-6 <= y_m <= 300 + 1e-6
            assert min(x_m % 100, -x_m % 100) < 1e-6 or min(y_m % 100, -y_m % 100) < 1e-6
        for old, new in zip(headings, where.headings_deg, strict=True):
            assert abs(old - new) != pytest.approx(180)
            turns += old != new
        headings = list(where.headings_deg)
    assert turns > 40


def test_highway_has_half_of_its_lanes_each_way() -> None:
    """Oncoming traffic is what makes links short."""
    where = places(of(Highway(length_m=1_000, lanes=4, lane_width_m=3, speed_mps=30, spread=0), count=40), Random(1))
    where.advance(SECOND)
    for y_m, heading_deg, speed_mps in zip(where.ys_m, where.headings_deg, where.speeds_mps, strict=True):
        assert (y_m, heading_deg) in {(0.0, 90.0), (3.0, 90.0), (6.0, 270.0), (9.0, 270.0)}
        assert speed_mps == 30
    assert all(0 <= x_m <= 1_000 for x_m in where.xs_m)
    lane = sorted(where.xs_m[0::4])
    assert max(b - a for a, b in pairwise(lane)) < 200


def test_platoon_keeps_its_gaps() -> None:
    """The leader is ahead."""
    where = places(of(Platoon(gap_m=15, speed_mps=20, start=(100, 5)), count=3), Random(1))
    where.advance(10 * SECOND)
    assert spots(where) == [(300.0, 5.0), (285.0, 5.0), (270.0, 5.0)]
    assert where.headings_deg == [90.0] * 3


def test_waypoints_are_reached_in_time_and_left_out_by_nobody() -> None:
    """Before the first and after the last one stands; a stagger delays the next node."""
    where = places(of(Waypoints(((10, 0, 0), (20, 0, 100), (30, 50, 100)), stagger_s=5), count=2), Random(1))
    expected = {
        0: [(0.0, 0.0), (0.0, 0.0)],
        15: [(0.0, 50.0), (0.0, 0.0)],
        20: [(0.0, 100.0), (0.0, 50.0)],
        25: [(25.0, 100.0), (0.0, 100.0)],
        60: [(50.0, 100.0), (50.0, 100.0)],
    }
    for second, at in expected.items():
        where.advance(second * SECOND)
        assert spots(where) == at
    assert where.headings_deg == [90.0, 90.0]
    assert where.speeds_mps == [0.0, 0.0]


def test_standing_nodes_have_their_points() -> None:
    """Roadside units stand where the file says."""
    where = places(of(Fixed(((1, 2), (3, 4))), count=2), Random(1))
    where.advance(5 * SECOND)
    assert spots(where) == [(1, 2), (3, 4)]
    assert where.present == [True, True]


# --- traces ----------------------------------------------------------------------------------------------------------
def fcd(*steps: tuple[float, list[str]]) -> str:
    """A floating-car file of time steps with the attributes of their vehicles."""
    lines = ["<fcd-export>"]
    for time_s, vehicles in steps:
        lines += [f'<timestep time="{time_s}">', *(f"<vehicle {each}/>" for each in vehicles), "</timestep>"]
    return "\n".join([*lines, "</fcd-export>\n"])


def car(name: str, x: float, y: float = 0.0, speed: float = 10.0) -> str:
    """Attributes of one vehicle in metres."""
    return f'id="{name}" x="{x}" y="{y}" speed="{speed}" angle="90"'


DRIVE = fcd(
    (0, [car("a", 0)]), (1, [car("a", 10), car("b", 50)]), (2, [car("a", 20), car("b", 60)]), (3, [car("b", 70)]),
    (4, [car("b", 80)]),
)  # fmt: skip


def follow(folder: Path, text: str | bytes, *, count: int = 1, seconds: float = 2.0, **settings: object) -> Places:
    """Places by a trace in metres with that content."""
    (folder / "t.xml").write_bytes(text.encode() if isinstance(text, str) else text)
    trace = Trace("t.xml", **{"geo": False, **settings})  # type: ignore[arg-type]
    return places(of(trace, count, seconds, str(folder)), Random(1))


@pytest.mark.parametrize("packed", [False, True])
def test_trace_is_interpolated_and_vehicles_come_and_go(packed: bool, tmp_path: Path) -> None:
    """A node that isn't on the map must neither send nor hear."""
    where = follow(tmp_path, gzip.compress(DRIVE.encode(), mtime=0) if packed else DRIVE, count=2, seconds=4)
    seen = {}
    for now_s in (0.0, 0.5, 1.0, 1.25, 2.0, 2.5, 4.0, 9.0):
        where.advance(int(now_s * SECOND))
        seen[now_s] = [spot if here else None for spot, here in zip(spots(where), where.present, strict=True)]
    assert seen == {
        0.0: [(0.0, 0.0), None],
        0.5: [(5.0, 0.0), None],
        1.0: [(10.0, 0.0), (50.0, 0.0)],
        1.25: [(12.5, 0.0), (52.5, 0.0)],
        2.0: [None, (60.0, 0.0)],
        2.5: [None, (65.0, 0.0)],
        4.0: [None, (80.0, 0.0)],
        9.0: [None, (80.0, 0.0)],
    }
    assert where.speeds_mps == [10.0, 10.0]
    assert where.headings_deg == [90.0, 90.0]


def test_trace_from_later_begins_with_who_is_there_then(tmp_path: Path) -> None:
    """``from_s`` chooses the part of a long file."""
    where = follow(tmp_path, DRIVE, from_s=2.0)
    assert (spots(where), where.present) == ([(20.0, 0.0)], [False])  # a's last time step
    where = follow(tmp_path, DRIVE, from_s=2.0, vehicles=("b",))
    where.advance(SECOND // 2)
    assert (spots(where), where.present) == ([(65.0, 0.0)], [True])


def test_trace_of_ingolstadt_is_where_its_degrees_say() -> None:
    """Against the figures of the file itself: 4_right.1 at 65 s, 70 m north-west of the origin of the scenario."""
    scenario = load("intersection")
    where = places(scenario, Random(1))
    text = gzip.decompress((ROOT / "sims/scenario/shipped/ingolstadt.fcd.xml.gz").read_bytes()).decode()
    step = text[text.index('<timestep time="65.00"') :]
    line = step[step.index('id="4_right.1"') :].partition("/>")[0]
    x, y = (float(line.split(f'{axis}="')[1].split('"')[0]) for axis in "xy")
    assert Plane(*scenario.origin).degrees(where.xs_m[2], where.ys_m[2]) == pytest.approx((y, x), abs=1e-9)


def test_shipped_trace_is_the_one_that_nodes_replay() -> None:
    """An emulated node's sensors and its radio have to be in one place."""
    ours = (ROOT / "sims/scenario/shipped/ingolstadt.fcd.xml.gz").read_bytes()
    assert ours == (ROOT / "meshnode/sensors/data/ingolstadt.fcd.xml.gz").read_bytes()


JUMP = fcd((0, [car("a", 0)]), (1, [car("a", 10)]), (2, [car("a", 90)]), (3, [car("a", 100)]))


def test_trace_with_a_vehicle_that_jumps_is_refused_by_name_time_and_distance(tmp_path: Path) -> None:
    """80 m in a second at 10 m/s: SUMO lifted it out of a jam, or the file is patched together."""
    with pytest.raises(TraceError, match=r"line 9, .* 'a' jumps 80 m from 1 to 2 s: .*jumps = 'reappear'"):
        follow(tmp_path, JUMP, seconds=3)


def test_trace_with_a_jump_may_have_the_vehicle_reappear(tmp_path: Path) -> None:
    """The traces that people have are full of them."""
    where = follow(tmp_path, JUMP, seconds=3, jumps="reappear")
    present = []
    for now in range(0, 3 * SECOND, SECOND // 2):
        where.advance(now)
        present.append(where.present[0])
    assert present == [True, True, False, False, True, True]
    assert spots(where) == [(95.0, 0.0)]


def test_trace_without_speeds_is_refused_above_the_speed_of_any_car(tmp_path: Path) -> None:
    """Attributes can be left out by ``--fcd-output.attributes``."""
    slow = fcd((0, ['id="a" x="0" y="0"']), (1, ['id="a" x="90" y="0"']))
    where = follow(tmp_path, slow, seconds=1)
    assert where.speeds_mps == [pytest.approx(90)]
    with pytest.raises(TraceError, match="jumps 120 m"):
        follow(tmp_path, slow.replace('"90"', '"120"'), seconds=1)


def test_trace_that_jumps_outside_the_used_part_is_used(tmp_path: Path) -> None:
    """A long recording need not be clean everywhere."""
    assert follow(tmp_path, JUMP, seconds=1).present == [True]
    assert follow(tmp_path, JUMP, seconds=1, from_s=2.0).present == [True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", r"line 1, column 1: it is not well-formed XML \(it ends before its last tag\)"),
        (DRIVE[: DRIVE.index("time=\"2\"") + 40].encode(), r"line 10, .*it ends before its last tag"),
        (DRIVE.replace('x="10', 'x=<"10').encode(), r"line 6, column \d+: it is not well-formed XML"),
        (gzip.compress(DRIVE.encode(), mtime=0)[:100], "the compressed file is cut off: copy it again"),
        (gzip.compress(DRIVE.encode(), mtime=0)[:30] + b"\x00" * 60, "the compressed file is damaged"),
        (DRIVE.replace("fcd-export", "routes").encode(), "line 1, .*the root is <routes>, not <fcd-export>"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + DRIVE.encode(), "it declares a document type"),
        (fcd((0, [car("a", 0)]), (0, [car("a", 0)])).encode(), "line 5, .*time goes from 0 to 0 s"),
        (fcd((1, [car("a", 0)]), (0.5, [car("a", 0)])).encode(), "time goes back from 1 to 0.5 s"),
        (fcd((0, ['x="0" y="0"'])).encode(), "a vehicle has no attribute 'id'"),
        (fcd((0, ['id="a" y="0"'])).encode(), "attribute 'x' is missing: expected a number"),
        (fcd((0, ['id="a" x="east" y="0"'])).encode(), "attribute 'x' is 'east': expected a number"),
        (fcd((0, ['id="a" x="nan" y="0"'])).encode(), "attribute 'x' is 'nan': expected a number"),
        (fcd((0, [car("a", 0), car("a", 1)])).encode(), "vehicle 'a' is twice in the time step of 0 s"),
        (b"<fcd-export><vehicle id='a' x='0' y='0'/></fcd-export>", "a vehicle stands outside any time step"),
        (b"<fcd-export></fcd-export>", "is empty, but is needed from 0 until 2 s"),
        (fcd((0, [car("a", 0)]), (1, [car("a", 10)])).encode(), "ends at 1 s, but is needed from 0 until 2 s: lower"),
        (fcd((0, [car("a", 0)]), (2, [])).encode().replace(b'"a"', b'"' + b"a" * (MAX_MARKUP_BYTES * 2) + b'"'),
         "one tag is longer than 262144 bytes"),
    ],
)  # fmt: skip
def test_bad_trace_is_refused_with_file_and_position(text: bytes, says: str, tmp_path: Path) -> None:
    """Somebody has to find the place in a file of gigabytes."""
    with pytest.raises(TraceError, match=rf"t\.xml.*{says}"):
        follow(tmp_path, text)


def test_trace_in_metres_taken_for_degrees_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """SUMO writes metres unless told otherwise."""
    with pytest.raises(TraceError, match=r"x=5000 y=0 of vehicle 'a' are not degrees: set geo = false"):
        follow(tmp_path, fcd((0, [car("a", 5_000)])), geo=True)


def test_trace_with_fewer_vehicles_than_nodes_is_refused(tmp_path: Path) -> None:
    """Nodes without a vehicle would stand in the middle of nowhere."""
    with pytest.raises(TraceError, match=r"has 2 vehicles from 0 to 4 s, but the group has count = 3: lower it"):
        follow(tmp_path, DRIVE, count=3, seconds=4)


def test_trace_that_begins_after_the_run_is_refused(tmp_path: Path) -> None:
    """Nobody would ever be on the map."""
    with pytest.raises(TraceError, match=r"has 0 vehicles from 0 to 2 s"):
        follow(tmp_path, fcd((2, [car("a", 0)]), (3, [car("a", 10)])))


def test_trace_without_a_named_vehicle_names_the_nearest(tmp_path: Path) -> None:
    """Ids of SUMO are long."""
    text = DRIVE.replace('"a"', '"3_right.2"')
    with pytest.raises(TraceError, match=r"has no vehicle '3_rigth.2' from 0 to 2 s: did you mean '3_right.2'\?"):
        follow(tmp_path, text, vehicles=("3_rigth.2",))


def test_long_trace_is_read_in_little_memory(tmp_path: Path) -> None:
    """A day of a town has gigabytes; only the vehicles that are asked for may be held."""
    with (tmp_path / "t.xml").open("w") as file:
        file.write("<fcd-export>\n")
        for step in range(600):
            vehicles = "".join(f"<vehicle {car(str(number), step)}/>\n" for number in range(100))
            file.write(f'<timestep time="{step / 10}">\n{vehicles}</timestep>\n')
        file.write("</fcd-export>\n")
    assert (tmp_path / "t.xml").stat().st_size > 3_000_000
    tracemalloc.start()
    where = places(of(Trace("t.xml", geo=False), 5, 59, str(tmp_path)), Random(1))
    where.advance(50 * SECOND)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert where.xs_m == [500.0] * 5
    assert peak_bytes < 1_500_000
