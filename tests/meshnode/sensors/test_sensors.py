"""Sensor drivers: real traces and pictures replayed, bad options and malformed files refused by name and line."""

import gzip
import io
import itertools
import struct
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meshnode.models import ModelSpec, load_model, plate
from meshnode.sensors import DriverContext, Sample, available_drivers, create_driver, driver_named
from meshnode.sensors.fcd import DEFAULT_TRACE
from meshnode.sensors.fcd_trace import fixes
from protocols.base.errors import ConfigError, ModelInvalid
from protocols.base.ids import NodeId, Role
from protocols.base.keys import checked_key
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading


def context(folder: Path, role: Role = Role.VEHICLE, seed: int = 1) -> DriverContext:
    return DriverContext(NodeId("n-1"), folder, Random(seed), role)


def samples(driver: str, options: dict[str, Any], folder: Path, limit: int = 10_000, seed: int = 1) -> list[Sample]:
    made = create_driver(driver, options, context(folder, seed=seed))
    return list(itertools.islice(made.samples(), limit))


def assert_travels(sample: Sample) -> None:
    """What a driver yields must survive the wire, or the node would drop it."""
    checked_key(sample.key)
    where = sample.where or Position(0.0, 0.0, 0.0)
    how = Provenance(sample.sensor, sample.unit, sample.quality)
    reading = Reading(
        sample.key, "n-1", 1, sample.value, where, EventTime(1, 0), how, sample.priority, sample.lifespan_ms
    )
    assert decode_untrusted_reading(encode_reading(reading)) == reading


# --- finding drivers -------------------------------------------------------------------------------------------------
def test_driver_of_an_unknown_name_lists_those_that_exist() -> None:
    """The message is the only place where a user learns the names."""
    with pytest.raises(
        ConfigError, match=r"no sensor driver 'imges': did you mean 'images'\? Installed are camera, can, csv"
    ):
        driver_named("imges")
    assert {"csv", "fcd", "host", "images"} <= set(available_drivers())


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs a package with one driver, as another author's package would be."""

    def install(entry_points: str, source: str) -> None:
        info = tmp_path / "lidar_driver-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lidar-driver\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[meshnode.sensors]\n{entry_points}\n")
        (tmp_path / "lidar_driver.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "lidar_driver", raising=False)

    return install


LIDAR = """
from meshnode.sensors import Options, Sample

class Lidar:
    def __init__(self, beams):
        self.beams = beams

    @classmethod
    def from_options(cls, options, context):
        read = Options("lidar", options)
        beams = read.integer("beams", 16, 1, 128)
        read.finish()
        return cls(beams)

    def samples(self):
        yield Sample(0.0, "veh/n-1/beams", self.beams)
"""


def test_driver_of_another_package_plugs_in_by_entry_point(plug_in: Callable[[str, str], None], tmp_path: Path) -> None:
    """Integrators add sensors without touching this repository; a built-in name stays ours."""
    plug_in("lidar = lidar_driver:Lidar\nfcd = lidar_driver:Lidar", LIDAR)
    assert "lidar" in available_drivers()
    assert [sample.value for sample in samples("lidar", {"beams": 32}, tmp_path)] == [32]
    assert driver_named("fcd").__module__ == "meshnode.sensors.fcd"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import a_module_that_is_not_there", "of package 'lidar-driver' can't be imported"),
        ("Lidar = 3", "has no 'from_options' and 'samples'"),
        ("", "can't be imported"),
    ],
)
def test_driver_of_a_broken_package_is_named(plug_in: Callable[[str, str], None], source: str, says: str) -> None:
    """A foreign package's fault must point at that package, not end in a traceback."""
    plug_in("lidar = lidar_driver:Lidar", source)
    with pytest.raises(ConfigError, match=says):
        driver_named("lidar")


@pytest.mark.parametrize(
    ("driver", "options", "says"),
    [
        ("fcd", {"vehicel": "a"}, "has no option 'vehicel': did you mean 'vehicle'"),
        ("fcd", {"zzz": 1}, "has no option 'zzz': it has file, start_s"),
        ("fcd", {"file": "absent.xml"}, r"option 'file' is 'absent\.xml': there is no file"),
        ("fcd", {"file": 3}, "option 'file' is 3: give a text"),
        ("fcd", {"file": "a\0b"}, "no NUL"),
        ("fcd", {"rate": "fast"}, r"option 'rate' is 'fast': give a number from 0\.01 to 100"),
        ("fcd", {"rate": float("nan")}, "option 'rate' is nan"),
        ("fcd", {"rate": True}, "option 'rate' is True"),
        ("fcd", {"loop": 1}, "option 'loop' is 1: give true or false"),
        ("fcd", {"pick": -1}, "option 'pick' is -1: give a whole number from 0"),
        ("fcd", {"pick": 5_000}, "has 374 vehicles: give a smaller number"),
        ("fcd", {"pick": 50, "start_s": 0}, "has 7 vehicles at 0 s"),
        ("fcd", {"pick": 0, "vehicle": "a"}, "both 'vehicle' and 'pick' are given"),
        ("images", {"image": "absent.png"}, "there is no file"),
        ("images", {"folder": "absent"}, "there is no folder"),
        ("images", {"folder": "."}, "it has 0 pictures"),
        ("images", {"folder": ".", "image": "a.png"}, "both|there is no|0 pictures"),
        ("images", {"preprocess": "plat"}, "did you mean 'plate'"),
        ("images", {"preprocess": 7}, "use one of plate, rgb"),
        ("images", {"side": 333}, "option 'side' is 333: give a multiple of 32"),
        ("images", {"rate_hz": 0}, "option 'rate_hz' is 0"),
        ("csv", {}, "option 'file' is missing"),
        ("host", {"interval_s": 0}, r"option 'interval_s' is 0: give a number from 0\.1"),
        ("host", {"interval": 1}, "did you mean 'interval_s'"),
    ],
)
def test_driver_option_that_is_wrong_is_refused_by_name(
    tmp_path: Path, driver: str, options: dict[str, Any], says: str
) -> None:
    """Configuration faults are found before the node starts, and say driver, option, value and way out."""
    with pytest.raises(ConfigError, match=says):
        create_driver(driver, options, context(tmp_path))


# --- floating-car data -----------------------------------------------------------------------------------------------
def test_fcd_replay_of_a_real_vehicle_gives_position_speed_and_hard_braking(tmp_path: Path) -> None:
    """The demo stands on this: vehicle 3_right.2 brakes hard 7 s after second 65 of the trace."""
    got = samples("fcd", {"vehicle": "3_right.2", "start_s": 65}, tmp_path)
    assert got[0].due_s == 0.0
    assert all(early.due_s <= late.due_s for early, late in itertools.pairwise(got))
    assert {sample.key for sample in got} == {"veh/n-1/position", "veh/n-1/speed", "veh/n-1/hazard"}
    speeds = [sample for sample in got if sample.key.endswith("speed")]
    assert all(s.unit == "m/s" and 0 <= s.value < 30 for s in speeds)
    assert speeds[1].due_s - speeds[0].due_s == pytest.approx(0.5)
    hazards = [sample for sample in got if sample.hazard]
    assert [s.due_s for s in hazards[:3]] == pytest.approx([7.0, 7.5, 8.5])
    assert all(s.priority == 7 and s.lifespan_ms == 2_000 and s.value["deceleration_mps2"] > 3 for s in hazards)
    where = got[0].where
    assert where is not None
    assert (where.latitude_deg, where.longitude_deg) == pytest.approx((48.77, 11.43), abs=0.02)
    for sample in got[:20] + hazards:
        assert_travels(sample)


def test_fcd_replay_at_another_rate_only_changes_the_pace(tmp_path: Path) -> None:
    """Twice as fast is the same drive; speeds are those of the trace."""
    once = samples("fcd", {"vehicle": "3_right.2", "start_s": 65}, tmp_path)
    twice = samples("fcd", {"vehicle": "3_right.2", "start_s": 65, "rate": 2}, tmp_path)
    assert [s.due_s / 2 for s in once] == pytest.approx([s.due_s for s in twice])
    assert [s.value for s in once] == [s.value for s in twice]


def test_fcd_replay_with_a_higher_bound_tells_fewer_hazards(tmp_path: Path) -> None:
    """The bound is the user's."""
    options = {"vehicle": "3_right.2", "start_s": 65}
    many = sum(s.hazard for s in samples("fcd", options, tmp_path))
    few = sum(s.hazard for s in samples("fcd", {**options, "hard_braking_mps2": 3.8}, tmp_path))
    assert 0 < few < many


def _trace(path: Path, body: str) -> Path:
    path.write_text(f"<?xml version='1.0'?>\n<fcd-export>\n{body}</fcd-export>\n")
    return path


def _step(time_s: float, speed: float | str = 10, vehicle: str = "a", **other: str) -> str:
    attributes = {"id": vehicle, "x": "11.4", "y": "48.7", "angle": "360.0", "speed": str(speed), **other}
    text = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return f'<timestep time="{time_s}"><vehicle {text}/></timestep>\n'


def test_fcd_replay_picking_vehicles_takes_those_that_stay_longest(tmp_path: Path) -> None:
    """Four nodes get four different vehicles by number; with 'start_s' only vehicles on the road then count."""
    present = {"a": range(3), "b": range(1, 9), "c": range(4, 10), "d": range(5, 7)}
    body = "".join(_step(t, vehicle=name) for t in range(10) for name, times in present.items() if t in times)
    _trace(tmp_path / "t.xml", body)

    def picked(**options: Any) -> str:
        return create_driver("fcd", {"file": "t.xml", **options}, context(tmp_path)).vehicle  # type: ignore[attr-defined, no-any-return]

    assert [picked(), *(picked(pick=n) for n in range(4))] == ["b", "b", "c", "a", "d"]
    assert [picked(pick=n, start_s=5) for n in range(3)] == ["c", "b", "d"]


def test_fcd_replay_in_a_loop_goes_on_in_time_without_a_hazard_at_the_seam(tmp_path: Path) -> None:
    """From the end (slow) back to the start (fast) and round again: time grows, and nobody brakes at the jump."""
    path = _trace(tmp_path / "t.xml", _step(5, 2) + _step(5.5, 3) + _step(6, 30))
    got = samples("fcd", {"file": str(path), "vehicle": "a", "loop": True}, tmp_path, limit=14)
    assert [s.due_s for s in got[::2]] == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert not any(s.hazard for s in got)
    assert got[0].where is not None
    assert got[0].where.heading_deg == 0.0


def test_fcd_replay_of_a_single_fix_in_a_loop_lets_time_pass(tmp_path: Path) -> None:
    """A loop without progress in time would be a busy loop in the node."""
    path = _trace(tmp_path / "t.xml", _step(5))
    got = samples("fcd", {"file": "t.xml", "vehicle": "a", "loop": True}, path.parent, limit=6)
    assert [s.due_s for s in got[::2]] == [0, 1, 2]


def test_fcd_replay_of_an_absent_vehicle_suggests_others(tmp_path: Path) -> None:
    """Names of vehicles are easy to mistype, and easy to start too late."""
    with pytest.raises(ConfigError, match=r"'3_rigth\.2' is not in trace .*did you mean '3_right\.2'"):
        samples("fcd", {"vehicle": "3_rigth.2"}, tmp_path)
    with pytest.raises(ConfigError, match=r"is in trace .* from 60 to 211\.5 s: give a 'start_s' before that end"):
        samples("fcd", {"vehicle": "3_right.2", "start_s": 500}, tmp_path)


BOMB = """<?xml version="1.0"?>
<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<fcd-export><timestep time="0"><vehicle id="&c;" x="1" y="1" speed="1" angle="1"/></timestep></fcd-export>"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, r"line 2, column \d+: it declares a document type"),
        ("", "ends before its last tag"),
        ("speed,position\n1,2\n", "line 1, column .*not well-formed XML"),
        ("<html/>", "the root is <html>, not <fcd-export>"),
        ("<fcd-export>\n" + _step(1) + "<timestep", r"line 3, .*ends before its last tag.*may be cut off"),
        ("<fcd-export>\n" + _step(1) + _step(0.5) + "</fcd-export>", r"line 3, .*time goes back from 1 to 0\.5"),
        ("<fcd-export>\n" + _step(1, x="abc") + "</fcd-export>", "line 2, .*attribute 'x' is 'abc': expected a number"),
        ("<fcd-export>\n" + _step(1, speed="nan") + "</fcd-export>", "line 2, .*attribute 'speed' is 'nan'"),
        ("<fcd-export>\n" + _step(1, x="4711.5") + "</fcd-export>", r"not degrees: export again with .*output\.geo"),
        ('<fcd-export><timestep time="1"><vehicle id="a"/></timestep></fcd-export>', "attribute 'x' is missing"),
        ('<fcd-export><timestep time="1"><vehicle x="1"/></timestep></fcd-export>', "has no attribute 'id'"),
        ('<fcd-export><vehicle id="a"/></fcd-export>', "outside any time step"),
        ("<fcd-export><timestep/></fcd-export>", "attribute 'time' is missing"),
        ('<fcd-export><x y="' + "z" * 2_000_000 + '"/></fcd-export>', "one tag is longer than 262144 bytes"),
    ],
)
def test_fcd_trace_that_is_malformed_is_refused_with_its_position(tmp_path: Path, content: str, says: str) -> None:
    """Traces come from other tools and other people; the message leads to the line."""
    path = tmp_path / "t.xml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        list(fixes(path))


def test_fcd_trace_cut_off_or_damaged_in_its_compression_is_refused(tmp_path: Path) -> None:
    """An interrupted download still replays to the cut, then says so."""
    whole = DEFAULT_TRACE.read_bytes()
    path = tmp_path / "t.xml.gz"
    path.write_bytes(whole[:100_000])
    read = fixes(path)
    assert len(list(itertools.islice(read, 1_000))) == 1_000
    with pytest.raises(ConfigError, match=r"line \d+, column \d+: the compressed file is cut off"):
        list(read)
    path.write_bytes(whole[:50_000] + bytes(64) + whole[50_064:100_000])
    with pytest.raises(ConfigError, match="line"):
        list(fixes(path))


def test_fcd_trace_a_thousand_times_its_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A small file may unpack to anything."""
    path = tmp_path / "t.xml.gz"
    with gzip.open(path, "wt", compresslevel=9) as file:
        file.write("<fcd-export>" + " " * 64_000_000 + "</fcd-export>")
    tracemalloc.start()
    try:
        assert list(fixes(path)) == []
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# --- pictures --------------------------------------------------------------------------------------------------------
def test_images_varied_from_one_picture_repeat_with_the_seed(tmp_path: Path) -> None:
    """A failing frame must come again; another seed must give other frames."""
    options = {"vary": 4, "seed": 5, "rate_hz": 4, "loop": False}
    first = samples("images", options, tmp_path, seed=1)
    assert [s.value for s in first] == [s.value for s in samples("images", options, tmp_path, seed=2)]
    assert [s.value for s in first] != [s.value for s in samples("images", {**options, "seed": 6}, tmp_path)]
    assert [s.due_s for s in first] == [0, 0.25, 0.5, 0.75]
    assert {s.key for s in first} == {"veh/n-1/camera"}
    assert len({tuple(s.value["crop"]) for s in first}) == 4
    assert all(s.infer is None for s in first)
    for sample in first:
        assert_travels(sample)


def test_images_of_a_folder_come_in_order_of_their_names(tmp_path: Path) -> None:
    """A recorded drive is a folder of numbered frames; other files in it don't matter."""
    for name in ("b.png", "a.jpg", "c.bmp"):
        Image.new("RGB", (8, 4), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    got = samples("images", {"folder": ".", "loop": True}, tmp_path, limit=4)
    assert [s.value["picture"] for s in got] == ["a.jpg", "b.png", "c.bmp", "a.jpg"]
    assert got[0].value["width"] == 8


def test_images_for_a_model_carry_the_frame_and_the_meaning_of_its_answer(tmp_path: Path) -> None:
    """Boxes are told in pixels of the picture, whatever part of it was shown."""
    [sample] = samples("images", {"vary": 1, "seed": 3, "loop": False, "model": "plates", "side": 320}, tmp_path)
    infer = sample.infer
    assert infer is not None
    assert (infer.model, infer.key, infer.outputs) == ("plates", "veh/n-1/plates", ("loc", "conf"))
    assert {name: (np.asarray(array).dtype.str, array.shape) for name, array in infer.inputs.items()} == {
        "image": ("<f4", (1, 3, 320, 320))
    }
    count = sum(2 * (320 // stride) ** 2 for stride in (8, 16, 32))
    outputs = {"loc": np.zeros((1, count, 4), np.float32), "conf": np.zeros((1, count, 2), np.float32)}
    assert infer.interpret is not None
    assert infer.interpret(outputs) == []
    middle = 2 * (20 * 40 + 20)  # the cell at the centre of the finest grid
    outputs["conf"][0, middle, 1] = 0.9
    [box] = infer.interpret(outputs)
    left, top, right, bottom = sample.value["crop"]
    assert (box["left"] + box["right"]) / 2 == pytest.approx(left + (right - left) * 20.5 / 40, abs=0.2)
    assert (box["top"] + box["bottom"]) / 2 == pytest.approx(top + (bottom - top) * 20.5 / 40, abs=0.2)


@pytest.mark.parametrize("preprocess", ["plate", "rgb"])
def test_images_sent_as_jpeg_carry_the_encoded_frame(tmp_path: Path, preprocess: str) -> None:
    """A model with a manifest prepares them where it is computed, from a fiftieth of the bytes."""
    options = {"loop": False, "model": "m", "preprocess": preprocess, "send": "jpeg"}
    [sample] = samples("images", options, tmp_path)
    assert sample.infer is not None
    given = np.asarray(sample.infer.inputs["image"])
    assert (given.dtype, given.ndim) == (np.uint8, 1)
    with Image.open(io.BytesIO(given.tobytes())) as picture:
        assert (picture.format, picture.size) == ("JPEG", (518, 331))
    assert len(given) < 80_000
    assert (sample.infer.key is not None) == (preprocess == "plate")


def test_images_for_a_model_without_preprocessing_carry_plain_pixels(tmp_path: Path) -> None:
    """Any model that takes pixels can be fed."""
    options = {"loop": False, "model": "m", "preprocess": "rgb", "input": "pixels", "budget_ms": 50}
    [sample] = samples("images", options, tmp_path)
    assert sample.infer is not None
    [(name, array)] = sample.infer.inputs.items()
    assert (name, array.shape, sample.infer.budget_ms) == ("pixels", (1, 331, 518, 3), 50)
    assert sample.value["brightness"] == 1.0


def test_images_varied_keep_the_plate_findable(tmp_path: Path) -> None:
    """The demo promises that the plate is found in every frame."""
    try:
        detector = plate.find_detector()
    except ModelInvalid as error:
        pytest.skip(str(error))
    model = load_model(ModelSpec("plates", detector))
    for sample in samples("images", {"vary": 4, "seed": 9, "loop": False, "model": "plates"}, tmp_path):
        assert sample.infer is not None
        assert sample.infer.interpret is not None
        outputs = dict(model.run(sample.infer.inputs, sample.infer.outputs))
        boxes = sample.infer.interpret(outputs)
        assert any(abs(box["left"] - 311) < 14 and abs(box["top"] - 191) < 8 for box in boxes), boxes


@pytest.mark.parametrize("content", [b"", b"no picture", DEFAULT_TRACE.read_bytes()[:999]])
def test_images_that_are_none_are_named(tmp_path: Path, content: bytes) -> None:
    """One broken file in a thousand must be found by its name."""
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"picture .*x\.png is not a picture"):
        samples("images", {"image": "x.png"}, tmp_path)


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_images_cut_off_or_huge_are_named(tmp_path: Path) -> None:
    """A cut-off file decodes half way; a tiny file may claim a gigapixel."""
    whole = (Path(DEFAULT_TRACE).parent / "street_plate.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"picture .*cut\.png can't be read"):
        samples("images", {"image": "cut.png"}, tmp_path, limit=1)
    (tmp_path / "huge.png").write_bytes(_png_that_claims(8_000, 8_000))
    with pytest.raises(ConfigError, match="8000 x 8000 pixels, more than"):
        samples("images", {"image": "huge.png"}, tmp_path, limit=1)
    (tmp_path / "bomb.png").write_bytes(_png_that_claims(60_000, 60_000))
    with pytest.raises(ConfigError, match=r"picture .*bomb\.png"):
        samples("images", {"image": "bomb.png"}, tmp_path, limit=1)


# --- CSV -------------------------------------------------------------------------------------------------------------
GOOD_CSV = """time_s,key,value,unit,latitude_deg,longitude_deg,priority,heading_deg
10,veh/7/speed,13.5,m/s,48.7,11.4,5,360
10.5,veh/7/gear,D,,,,,

12,veh/7/lamps,"[true, false]",1,,,, """


def test_csv_replay_gives_typed_values_with_their_context(tmp_path: Path) -> None:
    """Numbers stay numbers, text stays text, and empty cells mean 'not given'."""
    (tmp_path / "r.csv").write_text(GOOD_CSV)
    speed, gear, lamps = samples("csv", {"file": "r.csv", "key_prefix": "fleet/"}, tmp_path)
    assert (speed.due_s, speed.key, speed.value, speed.unit, speed.priority) == (0, "fleet/veh/7/speed", 13.5, "m/s", 5)
    assert speed.where == Position(48.7, 11.4, 10.0, None, 0.0)
    assert (gear.due_s, gear.value, gear.unit, gear.where, gear.priority) == (0.5, "D", "1", None, 3)
    assert (lamps.due_s, lamps.value) == (2, [True, False])
    for sample in (speed, gear, lamps):
        assert_travels(sample)


def test_csv_replay_in_a_loop_at_twice_the_rate_goes_on_in_time(tmp_path: Path) -> None:
    """Time grows over the seam by the last step, and passes even when all rows have one time."""
    (tmp_path / "r.csv").write_text("time_s,key,value\n1,a,1\n2,a,99999999999999999999999\n")
    got = samples("csv", {"file": "r.csv", "loop": True, "rate": 2}, tmp_path, limit=5)
    assert [s.due_s for s in got] == [0, 0.5, 1, 1.5, 2]
    assert got[1].value == 1e23
    (tmp_path / "r.csv").write_text("time_s,key,value\n1,a,1\n")
    assert [s.due_s for s in samples("csv", {"file": "r.csv", "loop": True}, tmp_path, limit=3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1: the header is missing: begin the file with time_s,key,value"),
        (b"time_s,key\n", "line 1: column 'value' is missing"),
        (b"time_s,key,value,speeed\n", "line 1: column 'speeed' is unknown"),
        (b"time_s,key,value,key\n", "line 1: column 'key' appears twice"),
        (b"time_s,key,value\nx,a,1\n", "line 2: 'time_s' is 'x': give a number"),
        (b"time_s,key,value\n\n,a,1\n", "line 2: the row is blank"),
        (b"time_s,key,value\n,a,1\n", "line 2: 'time_s' is empty"),
        (b"time_s,key,value\nnan,a,1\n", "line 2: 'time_s' is 'nan'"),
        (b"time_s,key,value\n2,a,1\n1,a,1\n", "line 3: time goes back from 2 to 1"),
        (b"time_s,key,value\n1,a\n", "line 2: the row has 2 cells, the header 3"),
        (b"time_s,key,value\n1,a//b,1\n", "line 2: key 'a//b' has an empty chunk"),
        (b"time_s,key,value\n1,a/*,1\n", "line 2: key 'a/\\*' has a wildcard"),
        (b'time_s,key,value\n1,a,"1\n', "line 2: the row that begins in line 2 is malformed"),
        (b"time_s,key,value\n1,a,\xff\xfe\n", "line 2: it is not UTF-8"),
        (b"time_s,key,value\n1,a,\0\n", "line 2: the line has a NUL"),
        (b"time_s,key,value\n1,a," + b"9" * 70_000 + b"\n", "line 2: the line is longer than"),
        (b"time_s,key,value,priority\n1,a,1,9\n", "line 2: 'priority' is '9': give a number from 0 to 7"),
        (b"time_s,key,value,latitude_deg,longitude_deg\n1,a,1,91,0\n", "line 2: 'latitude_deg' is '91'"),
        (b"time_s,key,value,latitude_deg,longitude_deg\n1,a,1,9,\n", "line 2: one of 'latitude_deg' and"),
        (b"time_s,key,value,unit\n1,a,1," + b"m" * 201 + b"\n", "line 2: 'unit' is longer than 200"),
    ],
)
def test_csv_row_that_is_malformed_is_refused_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    """Spreadsheets produce every one of these; the message leads to the row."""
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        samples("csv", {"file": "r.csv"}, tmp_path)


# --- the host --------------------------------------------------------------------------------------------------------
def test_host_metrics_measure_until_the_node_stops(tmp_path: Path) -> None:
    """A live driver must end at once when the node does, even in the middle of a long interval."""
    where = context(tmp_path, Role.RSU)
    driver = create_driver("host", {"interval_s": 0.1}, where)
    running: Iterator[Sample] = driver.samples()
    got = list(itertools.islice(running, 4))
    assert {"rsu/n-1/host/cpu", "rsu/n-1/host/memory"} <= {s.key for s in got}
    assert all(0 <= s.value <= 100 and s.unit == "%" for s in got if not s.key.endswith("temperature"))
    assert all(early.due_s <= late.due_s for early, late in itertools.pairwise(got))
    assert got[0].due_s >= 0.1
    for sample in got:
        assert_travels(sample)
    quiet = create_driver("host", {"interval_s": 3_600}, where)
    ended = threading.Event()

    def drain() -> None:
        assert list(quiet.samples()) == []
        ended.set()

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    where.stopping.set()
    assert ended.wait(30)
    thread.join(30)
