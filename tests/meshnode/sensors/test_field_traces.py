"""Traces as people export them from SUMO: few attributes, clock times, metres, bad rows, cut ends."""

import gzip
import itertools
import math
import random
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.fcd_trace import fixes
from meshnode.sumo.geodesy import Plane
from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId

FIELD = Path(__file__).parent / "field" / "fcd"


def replayed(file: str | Path, limit: int = 10_000, **options: Any) -> tuple[list[Sample], DriverContext]:
    context = DriverContext(NodeId("n-1"), FIELD, Random(1), sensor="trace")
    driver = create_driver("fcd", {"file": str(file), **options}, context)
    return list(itertools.islice(driver.samples(), limit)), context


def speeds(samples: list[Sample]) -> list[float]:
    return [s.value for s in samples if s.key.endswith("/speed")]


def headings(samples: list[Sample]) -> list[float | None]:
    return [s.value.get("heading_deg") for s in samples if s.key.endswith("/position")]


def written(folder: Path, *steps: tuple[float | str, list[str]]) -> Path:
    """A trace of time steps with the attributes of their vehicles; each tag has a line of its own."""
    lines = ["<fcd-export>"]
    for time_s, vehicles in steps:
        lines += [f'<timestep time="{time_s}">', *(f"<vehicle {each}/>" for each in vehicles), "</timestep>"]
    path = folder / "t.xml"
    path.write_text("\n".join([*lines, "</fcd-export>\n"]))
    return path


def at(x_m: float, y_m: float, vehicle: str = "a", more: str = "") -> str:
    """Attributes of a vehicle so many metres east and north of Ingolstadt, with the digits that SUMO writes."""
    latitude_deg, longitude_deg = Plane(48.766, 11.42).degrees(x_m, y_m)
    return f'id="{vehicle}" x="{longitude_deg:.6f}" y="{latitude_deg:.6f}" {more}'


# --- few attributes --------------------------------------------------------------------------------------------------
def test_trace_of_positions_only_is_replayed_with_the_speeds_that_sumo_left_out() -> None:
    """Both files are of one drive; SUMO measures its angle on the map, which is turned by 2 degrees there."""
    bare, context = replayed("attributes_x_y_only.xml", vehicle="car.0")
    full, _ = replayed("human_readable_time.xml", vehicle="car.0")
    assert [(s.key, s.due_s) for s in bare] == [(s.key, s.due_s) for s in full]
    for position_only, of_sumo in zip(speeds(bare)[1:], speeds(full)[1:], strict=True):
        assert position_only == pytest.approx(of_sumo, abs=0.2)
    assert speeds(bare)[0] == speeds(bare)[1]  # of the way on, where there is none that led there
    for one, other in zip(headings(bare), headings(full), strict=True):
        assert one == pytest.approx(other, abs=10)  # it changes lanes
    assert not any(s.hazard for s in bare)
    assert context.samples_skipped == 0


def test_trace_with_an_angle_but_no_speed_keeps_the_angle(tmp_path: Path) -> None:
    """Only what is missing is worked out."""
    path = written(tmp_path, *((t, [at(10 * t, 0, more='angle="123.4"')]) for t in range(4)))
    got, _ = replayed(path, vehicle="a")
    assert headings(got) == [123.4] * 4
    assert speeds(got) == pytest.approx([10] * 4, abs=0.15)


def test_trace_of_a_vehicle_that_turns_and_stops_keeps_its_heading_while_it_stands(tmp_path: Path) -> None:
    """Rounding would otherwise spin a vehicle that waits at a light."""
    places = [(0, 0), (10, 0), (20, 0), (20, -8), (20, -8), (20.04, -8), (20, -8), (20, -16)]
    path = written(tmp_path, *((t, [at(x, y)]) for t, (x, y) in enumerate(places)))
    got, _ = replayed(path, vehicle="a")
    assert headings(got) == pytest.approx([90, 90, 90, 180, 180, 180, 180, 180], abs=1)
    assert speeds(got) == pytest.approx([10, 10, 10, 8, 0, 0, 0, 8], abs=0.2)


def test_trace_of_a_vehicle_that_never_moves_has_no_heading_and_of_one_row_no_speed(tmp_path: Path) -> None:
    """A number that nobody knows must not be made up."""
    path = written(tmp_path, *((t, [at(0, 0)]) for t in range(3)))
    got, _ = replayed(path, vehicle="a")
    assert (speeds(got), headings(got)) == ([0, 0, 0], [None] * 3)
    assert got[0].where is not None
    assert got[0].where.heading_deg is None
    got, _ = replayed(written(tmp_path, (0, [at(0, 0)])), vehicle="a")
    assert [s.key for s in got] == ["veh/n-1/position"]


def test_trace_of_positions_ten_times_a_second_tells_no_hazard_of_its_rounding(tmp_path: Path) -> None:
    """Six digits of a degree are a tenth of a metre: from step to step that looks like braking at 10 m/s²."""
    way = [(math.sin(t / 300) * 800, 11.03 * t / 10) for t in range(600)]
    path = written(tmp_path, *((t / 10, [at(*place)]) for t, place in enumerate(way)))
    got, _ = replayed(path, vehicle="a")
    assert not any(s.hazard for s in got)
    assert speeds(got)[20:] == pytest.approx(
        [math.dist(a, b) for a, b in zip(way[10:], way[20:], strict=False)], abs=0.2
    )


@pytest.mark.parametrize("step_s", [0.1, 0.5, 1.0])
def test_trace_of_positions_only_still_tells_that_a_vehicle_brakes_hard(tmp_path: Path, step_s: float) -> None:
    """From 20 m/s to a stand at 5 m/s²."""

    def gone_m(t: float) -> float:
        braking = min(max(t - 5, 0), 4)
        return 20 * min(t, 5) + 20 * braking - 2.5 * braking**2

    times = [n * step_s for n in range(round(12 / step_s))]
    got, _ = replayed(written(tmp_path, *((t, [at(gone_m(t), 0)]) for t in times)), vehicle="a")
    hazards = [s for s in got if s.hazard]
    assert hazards
    assert all(5 < s.due_s <= 10.1 for s in hazards)
    assert max(s.value["deceleration_mps2"] for s in hazards) == pytest.approx(5, abs=0.6)


def test_trace_of_positions_with_a_gap_and_a_jump_gives_no_speed_across_them(tmp_path: Path) -> None:
    """A vehicle that SUMO lifts out of a jam has not driven the way."""
    places = {0: 0, 1: 10, 2: 20, 10: 400, 11: 410, 12: 560, 13: 570}
    path = written(tmp_path, *((t, [at(places[t], 0)] if t in places else []) for t in range(14)))
    got, context = replayed(path, vehicle="a")
    assert [s.due_s for s in got if s.key.endswith("/position")] == list(places)
    assert speeds(got) == pytest.approx([10] * 7, abs=0.2)
    assert context.samples_skipped == 0


# --- times -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["00:00:00", "00:00:01", "00:01:00"], [0, 1, 60]),
        (["23:59:59.50", "24:00:00", "1:00:00:00.50"], [0, 0.5, 1]),
        (["-00:00:01", "00:00:00", "2:03:04:05"], [0, 1, 183_846]),
        (["0", "0.50", "1e1"], [0, 0.5, 10]),
    ],
)
def test_trace_with_clock_times_is_replayed_at_those_times(
    tmp_path: Path, texts: list[str], seconds: list[float]
) -> None:
    """SUMO writes them with --human-readable-time, and days only from the second day on."""
    path = written(tmp_path, *((text, [at(n, 0, more='speed="1" angle="0"')]) for n, text in enumerate(texts)))
    got, _ = replayed(path, vehicle="a")
    assert [s.due_s for s in got[::2]] == seconds


def test_trace_with_clock_times_starts_where_start_s_says() -> None:
    """Options stay in seconds."""
    got, _ = replayed("human_readable_time.xml", vehicle="car.0", start_s=30)
    assert got[0].due_s == 0
    assert got[0].where is not None
    assert got[0].where.longitude_deg == pytest.approx(11.425, abs=0.002)


@pytest.mark.parametrize("text", ["12:30", "00:61:00", "00:00:61", "1:2:3:4:5", "noon", ":::", "１:02:03"])
def test_trace_with_a_time_that_is_none_is_refused_with_both_forms(tmp_path: Path, text: str) -> None:
    """A minute of 61 would be a silently wrong time."""
    with pytest.raises(ConfigError, match=r"line 2, .*'time' is .*expected a number of seconds, or \[days:\]hh:mm:ss"):
        replayed(written(tmp_path, (text, [at(0, 0)])), vehicle="a")


# --- metres ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{"vehicle": "a"}, {}, {"pick": 0, "start_s": 2}])
def test_trace_in_metres_that_pass_for_degrees_is_refused_before_the_node_starts(options: dict[str, Any]) -> None:
    """Its vehicle would drive through the Gulf of Guinea, and everybody would believe it."""
    with pytest.raises(ConfigError, match=r"line 10, .*779 km in 1 s, which no vehicle can.*--fcd-output\.geo.*metres"):
        replayed("metres_that_pass_for_degrees.xml", **options)


def test_trace_in_metres_of_a_vehicle_that_first_stands_gives_nothing_beyond_it(tmp_path: Path) -> None:
    """The beginning tells nothing; the first move does, and no place after it is shown."""
    vehicles = [[f'id="a" x="{max(0, t - 1_200) / 10 + 3:.2f}" y="1.50"'] for t in range(1_250)]
    path = written(tmp_path, *enumerate(vehicles))
    seen: set[float] = set()
    with pytest.raises(ConfigError, match=r"11 km in 1 s, which no vehicle can.*--fcd-output\.geo"):
        seen.update(fix.longitude_deg for fix in fixes(path, "a", skipped=lambda *_: None))
    with pytest.raises(ConfigError, match=r"--fcd-output\.geo"):
        replayed(path, vehicle="a")
    assert seen == {3.0}


def test_trace_with_one_far_place_goes_on_without_it(tmp_path: Path) -> None:
    """A digit that was lost is no reason to end, nor to show a vehicle in Siberia."""
    steps = [(t, [at(10 * t, 0, more='speed="10" angle="90"')]) for t in range(9)]
    for bad in (0, 4, 8):
        spoilt = [*steps]
        spoilt[bad] = (bad, ['id="a" x="114.20" y="48.766" speed="10" angle="90"'])
        got, context = replayed(written(tmp_path, *spoilt), vehicle="a")
        assert [s.due_s for s in got[::2]] == [t - (bad == 0) for t in range(9) if t != bad]
        assert context.samples_skipped == 1
        spoilt[bad] = (bad, ['id="a" x="1142.0" y="48.766" speed="10" angle="90"'])
        got, context = replayed(written(tmp_path, *spoilt), vehicle="a")
        assert [s.due_s for s in got[::2]] == [t - (bad == 0) for t in range(9) if t != bad]
        assert context.samples_skipped == 1


def test_trace_with_a_vehicle_that_sumo_sets_down_far_away_follows_it(tmp_path: Path) -> None:
    """It is there now; only a place that nothing confirms is left out."""
    steps = [(t, [at(10 * t + (30_000 if t > 4 else 0), 0, more='speed="10" angle="90"')]) for t in range(9)]
    got, context = replayed(written(tmp_path, *steps), vehicle="a")
    assert [s.due_s for s in got[::2]] == list(range(9))
    assert context.samples_skipped == 0


# --- other formats ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_csv_of_sumo_is_refused_with_the_name_to_give(tmp_path: Path, packed: bool) -> None:
    """SUMO chooses the format by the name of the file."""
    content = (FIELD / "sumo_output.csv").read_bytes()
    path = tmp_path / "fcd.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ConfigError, match=r"this is SUMO's CSV, but XML is wanted: .*ends in \.xml or \.xml\.gz"):
        replayed(path)


@pytest.mark.parametrize(("head", "says"), [(b"PAR1\x15\x04", "this is Parquet"), (b"PK\x03\x04\x14", "ZIP archive")])
def test_trace_in_another_container_is_named(tmp_path: Path, head: bytes, says: str) -> None:
    """What somebody has at hand is not always what was asked for."""
    path = tmp_path / "t"
    path.write_bytes(head + bytes(100))
    with pytest.raises(ConfigError, match=says):
        replayed(path, vehicle="a")


# --- bad rows --------------------------------------------------------------------------------------------------------
def test_bad_row_of_another_vehicle_does_not_matter_to_the_one_that_is_named() -> None:
    """SUMO writes -1073741824 for vehicles that are off the road."""
    got, context = replayed("other_vehicle_invalid.xml", vehicle="a")
    assert [s.due_s for s in got[::2]] == [0, 1, 2, 3, 4, 5]
    assert context.samples_skipped == 0


def test_bad_rows_are_skipped_and_counted_while_a_vehicle_is_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Two rows of a parked vehicle; the first is told with its line."""
    got, context = replayed("other_vehicle_invalid.xml")
    assert [s.due_s for s in got[::2]] == [0, 1, 2, 3, 4, 5]
    assert context.samples_skipped == 2
    [record] = caplog.records
    assert re.search(
        r"sensor trace: 2 samples skipped, the last: .*line 14, column 9: vehicle 'parked': .*2 rows", record.message
    )


def test_bad_rows_of_the_vehicle_itself_are_skipped_and_counted(tmp_path: Path) -> None:
    """Whatever is wrong with a row, the drive goes on after it."""
    good = at(0, 0, more='speed="1" angle="2"')
    bad = ['id="a" y="48"', 'id="a" x="east" y="48"', 'id="a" x="nan" y="48"', at(0, 0, more='speed="fast"'),
           at(0, 0, more='angle=""'), 'x="11" y="48"', 'id="a" x="-1073741824.00" y="-1073741824.00"']  # fmt: skip
    steps = [[good], *([row] for row in bad), [good], [good, good]]
    got, context = replayed(written(tmp_path, *enumerate(steps)), vehicle="a")
    assert [s.due_s for s in got[::2]] == [0, 8, 9]
    assert context.samples_skipped == len(bad) + 1


def test_vehicle_without_a_single_good_row_is_refused_with_the_fault() -> None:
    """It is in the trace, so "not in the trace" would lead nowhere."""
    with pytest.raises(ConfigError, match=r"vehicle 'parked' has no row that makes sense: .*line 14"):
        replayed("other_vehicle_invalid.xml", vehicle="parked")


@pytest.mark.parametrize("options", [{"vehicle": "a"}, {}])
def test_trace_without_any_position_is_refused_with_the_attribute(tmp_path: Path, options: dict[str, Any]) -> None:
    """``--fcd-output.attributes speed,lane`` is possible too."""
    path = written(tmp_path, *((t, ['id="a" speed="1" lane="ab_1"']) for t in range(3)))
    with pytest.raises(ConfigError, match=r"line 3, .*'x' is missing: expected a number\. No row of the trace"):
        replayed(path, **options)


# --- cut ends --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{"vehicle": "a"}, {}])
def test_trace_that_is_cut_off_is_replayed_to_its_last_whole_step(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """SUMO was stopped while it wrote. The step at 5 s may lack vehicles."""
    got, context = replayed("cut_off.xml", **options)
    assert [s.due_s for s in got[::2]] == [0, 1, 2, 3, 4]
    assert context.samples_skipped == 1
    [record] = caplog.records
    assert "line 23, column 1: " in record.message
    assert record.message.endswith("its whole time steps end at 4 s and are used")


def test_trace_that_is_cut_off_goes_on_in_a_loop() -> None:
    """Each round says again that the end is missing."""
    got, context = replayed("cut_off.xml", vehicle="a", loop=True, limit=24)
    assert [s.due_s for s in got[::2]] == list(range(12))
    assert context.samples_skipped == 2


def test_trace_whose_compression_is_cut_off_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    """Nothing that was unpacked before the cut may get lost."""
    noise = random.Random(1)  # the rows can't be packed well, so that a cut falls between them
    steps = [(t, [at(10 * t, 0, more=f'speed="{noise.random()}" angle="{noise.random()}"')]) for t in range(2_000)]
    whole = gzip.compress(written(tmp_path, *steps).read_bytes())
    path = tmp_path / "t.xml.gz"
    path.write_bytes(whole[: len(whole) // 2])
    got, context = replayed(path, vehicle="a")
    assert 900 < len(got) / 2 < 1_100
    assert context.samples_skipped == 1


def test_trace_that_is_cut_off_before_its_first_whole_step_is_refused(tmp_path: Path) -> None:
    """There is nothing to replay."""
    path = tmp_path / "t.xml"
    path.write_text('<fcd-export>\n<timestep time="0">\n<vehicle id="a" x="1" y="1"/>\n')
    with pytest.raises(ConfigError, match=r"ends before its last tag.*has no whole time step"):
        replayed(path, vehicle="a")


def test_absent_vehicle_of_a_trace_that_is_cut_off_is_still_suggested() -> None:
    """The better message is that about the name."""
    with pytest.raises(ConfigError, match=r"vehicle 'aa' is not in trace .*did you mean 'a'"):
        replayed("cut_off.xml", vehicle="aa")
