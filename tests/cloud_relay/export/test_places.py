"""The box around places, and the metadata of GeoParquet, judged by its specification.

The rules are written down from the specification of GeoParquet 1.1.0 (https://geoparquet.org/releases/v1.1.0/), its
JSON schema, and RFC 7946, section 5, on boxes that cross 180°.
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.export.places import PlacesSeen
from tests.tools.export_fixture import exported
from tests.tools.relay_fixture import RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture

_GEOMETRY_TYPE = re.compile(r"(GeometryCollection|(Multi)?(Point|LineString|Polygon))( Z)?")
_ENCODINGS = {"WKB", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon"}


def faults_of_geoparquet(path: Path) -> list[str]:
    """What in a file contradicts GeoParquet 1.1.0."""
    file = pq.ParquetFile(path)
    geo = json.loads((file.metadata.metadata or {}).get(b"geo", b"{}"))
    if not {"version", "primary_column", "columns"} <= geo.keys():
        return ["the key `geo` lacks version, primary_column or columns"]
    faults = []
    if geo["version"] != "1.1.0":
        faults.append(f"version {geo['version']}")
    if geo["primary_column"] not in geo["columns"]:
        faults.append("the primary column is not described")
    for name, column in geo["columns"].items():
        faults += [f"{name}: {fault}" for fault in _faults_of_column(file, name, column)]
    return faults


def _faults_of_column(file: pq.ParquetFile, name: str, column: dict[str, Any]) -> list[str]:
    faults = []
    if not {"encoding", "geometry_types"} <= column.keys() or column["encoding"] not in _ENCODINGS:
        faults.append("encoding or geometry_types")
    types = column["geometry_types"]
    if len(set(types)) != len(types) or not all(_GEOMETRY_TYPE.fullmatch(one) for one in types):
        faults.append(f"geometry types {types}")
    if unknown := column.keys() - {
        "encoding",
        "geometry_types",
        "crs",
        "edges",
        "orientation",
        "bbox",
        "epoch",
        "covering",
    }:
        faults.append(f"unknown {unknown}")
    stored = [file.schema.column(index) for index in range(len(file.schema))]
    (physical,) = [one for one in stored if one.path.split(".")[0] == name]  # at the root and not nested
    if physical.path != name or physical.max_repetition_level or physical.physical_type != "BYTE_ARRAY":
        faults.append("it is nested, repeated, or not of bytes")
    points = [_point(data) for data in file.read([name])[name].to_pylist()]
    if points and types != ["Point"]:
        faults.append("not all are points, as it says")
    if "bbox" in column:
        west, south, east, north = column["bbox"]
        for longitude, latitude in points:
            inside = west <= longitude <= east if west <= east else longitude >= west or longitude <= east
            if not (inside and south <= latitude <= north):
                faults.append(f"{longitude}, {latitude} is outside of the box")
    return faults


def _point(data: bytes) -> tuple[float, float]:
    order, kind, longitude, latitude = struct.unpack("<BIdd", data)
    assert (order, kind) == (1, 1), "not a point in little-endian WKB"
    return longitude, latitude


def seen(*places: tuple[float, float]) -> tuple[float, ...] | None:
    bounds = PlacesSeen()
    for place in places:
        bounds.add(*place)
    return bounds.bounds()


@pytest.mark.parametrize(
    ("places", "box"),
    [
        ([], None),
        ([(48.7, 11.4)], (11.4, 48.7, 11.4, 48.7)),
        ([(48.7, 11.4), (-3.0, -11.0)], (-11.0, -3.0, 11.4, 48.7)),
        ([(1.0, 179.5), (2.0, -179.25)], (179.5, 1.0, -179.25, 2.0)),
        ([(1.0, 180.0), (2.0, -180.0)], (180.0, 1.0, -180.0, 2.0)),
        ([(90.0, 0.0), (-90.0, 0.0)], (0.0, -90.0, 0.0, 90.0)),
        ([(0.0, -90.0), (0.0, 0.0), (0.0, 90.0), (0.0, 180.0)], (-90.0, 0.0, 180.0, 0.0)),
        ([(0.0, 11.123), (0.0, 11.127), (0.0, 11.125)], (11.123, 0.0, 11.127, 0.0)),
    ],
)
def test_box_is_the_shortest_that_has_all_places(
    places: list[tuple[float, float]], box: tuple[float, ...] | None
) -> None:
    """Two cars on either side of the date line are not a box around the earth."""
    assert seen(*places) == box


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=30))
def test_box_has_every_place_and_its_edges_are_places(places: list[tuple[float, float]]) -> None:
    """Whatever the places are, no reader that goes by the box misses one."""
    box = seen(*places)
    assert box is not None
    west, south, east, north = box
    for latitude, longitude in places:
        assert south <= latitude <= north
        assert west <= longitude <= east if west <= east else longitude >= west or longitude <= east
    longitudes, latitudes = {longitude for _, longitude in places}, {latitude for latitude, _ in places}
    assert {west, east} <= longitudes
    assert {south, north} <= latitudes


@pytest.mark.parametrize(
    "places", [[], [(48.7, 11.4)], [(66.0, 179.9), (67.0, -179.9)], [(90.0, 5.0), (-90.0, -180.0)]]
)
def test_exported_places_are_geoparquet(
    relay: RelayInProcess, tmp_path: Path, places: list[tuple[float, float]]
) -> None:
    """A GIS opens the file by its specification, and not by what one library happens to write."""
    for number, (latitude, longitude) in enumerate(places, 1):
        relay.send(batch(number, value=1.0, latitude_deg=latitude, longitude_deg=longitude))
    assert exported(relay, tmp_path / "r.parquet").exit_code == 0
    assert faults_of_geoparquet(tmp_path / "r.parquet") == []
    assert pq.read_metadata(tmp_path / "r.parquet").num_rows == len(places)


def test_judge_of_geoparquet_finds_what_is_wrong(relay: RelayInProcess, tmp_path: Path) -> None:
    """A judge that finds nothing would let everything pass."""
    relay.send(batch(1, value=1.0))
    assert exported(relay, tmp_path / "r.parquet").exit_code == 0
    table = pq.read_table(tmp_path / "r.parquet")
    wrong = {"version": "1.1.0", "primary_column": "geometry",
             "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Dot"], "bbox": [0, 0, 1, 1]}}}  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(wrong)}), tmp_path / "wrong.parquet")
    faults = faults_of_geoparquet(tmp_path / "wrong.parquet")
    assert any("Dot" in fault for fault in faults)
    assert any("outside of the box" in fault for fault in faults)
