"""The demonstration of curation, as a person runs it, and that its search finds what it looks for."""

import base64
import gzip
import io
import json
import struct
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import pytest
from PIL import Image

from demo.curation.camera import found_in, pictures
from demo.curation.reader import QUICK, PlateReader, wrong_characters
from demo.curation.search import HOME, PLATE, READ, VIN, Left, Secrets, apart_m, contents, searched
from demo.curation.stage import FILES, LONG_S, SHORT_S, SIDE, Vehicle, around, secrets_of, vehicles
from demo.curation.story import Told, judged
from demo.promises import Outcome
from meshnode.models import ModelSpec, load_model
from meshnode.models.plate import OUTPUTS, find_detector, preprocess
from meshnode.records.egress.pictures import redrawn_picture
from meshnode.records.rules.compiling import rules_in
from protocols.base.errors import ModelInvalid
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import Position
from tests.tools.strategies import reading

ROOT = Path(__file__).resolve().parents[2]
HOME_AT = (48.774908, 11.423369)
NUMBER = "WVWZZZ1JZ3W386752"
SECRETS = Secrets("5AU5341", (NUMBER,), (HOME_AT,))
AROUND_PLATE = (230, 140, 480, 250)
"""A part of the street scene, because reading all of it takes seconds."""
FAR = Position(48.777, 11.426, 100.0)
DETECTOR_MISSING = ""
try:
    find_detector()
except ModelInvalid as missing:
    DETECTOR_MISSING = str(missing)
needs_detector = pytest.mark.skipif(bool(DETECTOR_MISSING), reason=DETECTOR_MISSING)


def found(*values: Any, where: Position = FAR, frames: bytes = b"") -> set[str]:
    """What the search finds, without reading pictures."""
    left = Left([reading(value=value, where=where) for value in values], {"veh-1": frames}, {"relay.sqlite": frames})
    search = searched(left, SECRETS, lambda _, __: "")
    return {kind for kind, places in search.found.items() if places}


def picture(**exif: Any) -> bytes:
    """A grey picture with a text and a place in its metadata."""
    written, out = Image.Exif(), io.BytesIO()
    written[0x010E] = exif.get("text", "")
    if at := exif.get("at"):
        sides = [(int(side), int(side % 1 * 60), side % 1 * 60 % 1 * 60) for side in at]
        written.get_ifd(0x8825).update({1: "N", 2: sides[0], 3: "E", 4: sides[1]})
    Image.new("RGB", (16, 16)).save(out, "JPEG", exif=written)
    return out.getvalue()


PACKED = gzip.compress(b"vin: " + NUMBER.encode(), mtime=0)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("behind 5au-5341!", {PLATE}),
        ({"seen": [{"5AU 5341": 1}]}, {PLATE}),
        (NUMBER.lower().encode("utf-16"), {VIN}),
        (PACKED, {VIN}),
        ({"log": base64.b64encode(PACKED).decode()}, {VIN}),
        (base64.urlsafe_b64encode(base64.b64encode(PACKED)), {VIN}),
        (picture(text=f"{NUMBER} 5AU5341"), {VIN, PLATE}),
        (picture(at=HOME_AT), {HOME}),
        ([1, {"lat": HOME_AT[0] + 0.00005}, {"lon": HOME_AT[1]}], {HOME}),
        (f"at {HOME_AT[0]}, {HOME_AT[1]}", {HOME}),
        ([HOME_AT[0] + 0.0002, HOME_AT[1]], set()),
        ([HOME_AT[0], 11.44], set()),
        ("5AU 534", set()),
        (picture(text="a street", at=(48.78, 11.44)), set()),
        ({"count": 3, "mean": 13.96, "none": None, "yes": True}, set()),
    ],
)
def test_search_finds_what_is_packed_into_a_record_and_nothing_else(value: Any, kinds: set[str]) -> None:
    """That nothing was found says something only about a search that finds."""
    assert found(value) == kinds


def test_search_looks_into_the_context_of_records_and_into_raw_bytes() -> None:
    """A home is the position of a record, a VIN part of its key, and files hold more than records."""
    assert found(1, where=Position(HOME_AT[0] + 0.00008, HOME_AT[1], 3.0)) == {HOME}
    assert found(1, where=Position(HOME_AT[0] + 0.0001, HOME_AT[1], 3.0)) == set()
    left = Left([reading(f"veh/{NUMBER.lower()}/x", where=FAR)])
    assert searched(left, SECRETS, lambda _, __: "").found[VIN]
    for form in (">d", "<d", ">f", "<f"):
        assert found(frames=b"abc" + struct.pack(form, HOME_AT[0]) + b"x" + struct.pack(form, HOME_AT[1])) == {HOME}
    assert found(frames=struct.pack(">d", HOME_AT[0]) + bytes(200) + struct.pack(">d", HOME_AT[1])) == set()
    assert found(frames=b"..." + NUMBER.encode() + b"...") == {VIN}
    assert found(frames=b"..." + picture(at=HOME_AT) + b"...") == {HOME}
    assert found(frames=encode_reading(reading(value="5AU 5341", where=Position(*HOME_AT, 3.0)))) == {PLATE, HOME}


def test_picture_that_leaves_twice_is_read_once() -> None:
    """It is in the record and in the frame; reading it takes seconds."""
    one, other = picture(), picture(text="the same pixels")
    left = Left([reading(value={"a": one, "b": [other]}, where=FAR)], {"rsu-1": b"." + one})
    search = searched(left, SECRETS, lambda _, plate: plate)
    assert (len(search.pictures), search.found[READ]) == (1, ["a picture that reads '5AU5341'"])
    assert any(isinstance(one, Image.Image) for one in contents([one]))


def test_plate_is_told_by_most_of_its_characters() -> None:
    """A recogniser takes an 8 for a B, and what is left finds the owner."""
    assert [wrong_characters(text, "5AU5341") for text in ("5AU5341", "X5AU5341Y", "5A5341", "SAUS341", "")] == [
        0, 0, 1, 2, 7,
    ]  # fmt: skip


@needs_detector
def test_plate_is_read_where_it_shows_and_not_where_it_is_covered() -> None:
    """By windows over the whole picture, so that the search does not depend on the detector that covered it."""
    (car, *_), reader = vehicles(SHORT_S), PlateReader(QUICK)
    taken = pictures(car)[0]
    with Image.open(io.BytesIO(taken)) as shown:
        assert reader.reads(shown.crop(AROUND_PLATE), "5AU5341")
        import numpy as np

        inputs = preprocess(np.asarray(shown.convert("RGB")), SIDE)
    plates = found_in(taken, dict(load_model(ModelSpec("plate", find_detector())).run(inputs, OUTPUTS)))
    boxes = [(each["left"], each["top"], each["right"], each["bottom"]) for each in plates]
    with Image.open(io.BytesIO(redrawn_picture(taken, (), boxes))) as covered:
        assert not reader.reads(covered.crop(AROUND_PLATE), "5AU5341")


@pytest.mark.parametrize("stretch_s", [SHORT_S, LONG_S])
def test_vehicles_brake_far_from_their_homes_and_near_one_another(stretch_s: tuple[float, float]) -> None:
    """Otherwise the middle of a cell might be a home, by chance, and the search could not tell."""
    cars = vehicles(stretch_s)
    assert len({*secrets_of(cars).homes}) == len({*secrets_of(cars).vins}) == len(cars) == 3
    braking = [_brakes_at(car) for car in cars]
    assert all(apart_m(one, other) < 60 for one in braking for other in braking)
    assert all(apart_m(at, car.home) > 15 for at, car in zip(braking, cars, strict=True))


def _brakes_at(car: Vehicle) -> tuple[float, float]:
    speeds = [(fix.speed_mps or 0.0, (fix.latitude_deg, fix.longitude_deg)) for fix in car.way]
    return max(pairwise(speeds), key=lambda pair: pair[0][0] - pair[1][0])[1][1]


def test_files_of_the_demonstration_are_those_of_its_page() -> None:
    """Who copies them from there gets what was tried."""
    page = (ROOT / "docs" / "howto" / "report-hard-braking.md").read_text()
    for path in FILES.glob("*.toml"):
        text = Template(path.read_text()).safe_substitute(around(vehicles(LONG_S)[0].home))
        assert text.strip() in page, path.name
    for name, rules in (("vehicle", ["braking"]), ("rsu", ["cluster", "alert"])):
        assert [rule.name for rule in rules_in([FILES / f"{name}-rules.toml"], "n-1")] == rules
    tomllib.loads((FILES / "rsu-egress.toml").read_text())


def _told(**found: list[str]) -> Told:
    search = searched(Left(), SECRETS, lambda _, __: "")
    search.pictures.update({str(number): Image.new("L", (1, 1)) for number in range(3)})
    kinds = {"plate": PLATE, "read": READ, "vin": VIN, "home": HOME}
    search.found.update({kinds[kind]: places for kind, places in found.items()})
    return Told([[4.5, 4.4, 3.9]], 1_000_000, 19_999, 9, {"veh-1": 1, "veh-2": 1}, 1, 0, search)


def test_promises_are_broken_by_what_is_found_and_by_a_search_that_finds_nothing() -> None:
    """A search that never finds anything would keep every promise."""
    everything = _told(plate=["x"], read=["x"], vin=["x"], home=["x"])
    assert _broken(_told(), everything) == []
    assert len(_broken(_told(), _told())) == 4
    (broken,) = _broken(_told(read=["a picture"]), everything)
    assert "plate in pictures" in broken


def _broken(kept: Told, whole: Told) -> list[str]:
    return [promise.name for promise in judged(kept, whole) if promise.outcome is not Outcome.KEPT]


@pytest.mark.processes
@pytest.mark.timeout(600)
@needs_detector
def test_hard_braking_becomes_a_hotspot_without_plates_an_alert_and_a_sign(tmp_path: Path) -> None:
    """The whole way, with real processes, with a policy and without one."""
    done = subprocess.run(
        [sys.executable, "-m", "demo.curation", "--short", "--out", str(tmp_path)], capture_output=True, text=True,
        check=False, cwd=ROOT, timeout=580,
    )  # fmt: skip
    told = json.loads((tmp_path / "summary.json").read_text()) if done.returncode in (0, 1) else {}
    assert done.returncode == 0, (done.stdout[-3_000:], done.stderr[-3_000:])
    assert len(told["promises"]) == 9
    assert {promise["outcome"] for promise in told["promises"]} == {"kept"}
    assert len(list(tmp_path.glob("with-*.png"))) == len(list(tmp_path.glob("without-*.png"))) == 3
