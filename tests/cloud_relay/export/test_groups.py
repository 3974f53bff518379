"""Kept aggregates on the screen and as files: other programs read what is in the store."""

import csv
import json
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.cli import main
from cloud_relay.export import groups
from cloud_relay.export.groups import cell_polygon
from cloud_relay.store.sqlite import Store
from protocols.base.limits import SECOND
from tests.tools.aggregates_fixture import START_NS, batch_of, storable

HOUR_NS = 3_600 * SECOND
KEPT = (
    AggregateDefinition("speed", "veh/**", HOUR_NS, percentiles=(50, 99.9)),
    AggregateDefinition("map", "veh/**", HOUR_NS, by=(), cell_e7=100_000_000, max_groups=3),
)
VALUES: tuple[Any, ...] = (1.5, -2.0, 2**53 + 1, "x", float("nan"), True, {"a": 1})


@pytest.fixture(name="store")
def given_store(tmp_path: Path) -> Path:
    path = tmp_path / "relay.sqlite"
    with closing(Store(path, lambda: START_NS + 24 * HOUR_NS, KEPT)) as store:
        for number, value in enumerate(VALUES, 1):
            record = storable(number, value, 20 * number, f"veh/v-{number % 2}/speed", place=(5.0 * number, 178.0))
            store.submit(batch_of(record)).result()
    return path


def run(command: str, store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["aggregates", command, "--store", str(store), *arguments])


def shown(store: Path, name: str = "speed", *options: str) -> list[dict[str, Any]]:
    done = run("show", store, name, "--format", "json", *options)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


def test_parquet_has_what_is_shown(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two other programs read each number as it is."""
    monkeypatch.setattr(groups, "_ROWS", 2)
    file = tmp_path / "speed.parquet"
    done = run("export", store, "speed", str(file))
    assert done.output.startswith("6 groups, "), done.output
    expected = shown(store, "speed", "--order", "oldest")
    table = pq.read_table(file)
    found = table.drop_columns(["bucket_time"]).to_pylist()
    assert found == [
        {
            name: float(cell) if name in ("min", "max", "p50", "p99.9") and cell is not None else cell
            for name, cell in row.items()
        }
        for row in expected
    ]
    assert table["bucket_time"][0].as_py().timestamp() * SECOND == START_NS
    assert table.schema.field("mean").metadata == {b"description": b"The mean, correctly rounded."}
    with duckdb.connect() as db:
        rows = db.execute(f"SELECT records, mean, \"p99.9\" FROM '{file}' ORDER BY bucket_utc_ns, key").fetchall()
    assert rows == [(row["records"], row["mean"], row["p99.9"]) for row in found]


def test_parquet_of_cells_has_polygons_and_stops_at_poles_and_date_line(store: Path, tmp_path: Path) -> None:
    """A map draws cells, and nothing beyond the earth."""
    file = tmp_path / "map.parquet"
    assert run("export", store, "map", str(file)).exit_code == 0
    table = pq.read_table(file)
    assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    row = table.to_pylist()[0]
    assert row["geometry"] == cell_polygon(row["south_deg"], row["west_deg"], 10.0)
    *_, east, north = struct.unpack("<BIII10d", cell_polygon(90.0, 175.0, 10.0))[:10]
    assert (east, north) == (180.0, 90.0)


def test_csv_has_what_is_shown_and_large_integers_whole(store: Path, tmp_path: Path) -> None:
    """What a spreadsheet gets."""
    file = tmp_path / "speed.csv"
    assert run("export", store, "speed", str(file)).exit_code == 0
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    expected = shown(store, "speed", "--order", "oldest")
    assert [row["max"] for row in rows] == ["" if row["max"] is None else str(row["max"]) for row in expected]
    assert str(2**53 + 1) in [row["max"] for row in rows]
    on_screen = run("show", store, "speed", "--order", "oldest", "--format", "csv")
    assert on_screen.stdout_bytes == file.read_bytes()


def test_table_and_list_are_for_people(store: Path) -> None:
    """What is kept, and what an allowance did not let in."""
    table = run("show", store, "speed", "--limit", "2").output.splitlines()
    assert table[0].split()[:5] == ["bucket_utc_ns", "key", "rule", "unit", "records"]
    assert table[1].startswith("2023-11-15T00:00:00Z")
    assert len(table) == 3
    listed = run("list", store).output
    assert "speed: 6 of 100000 groups, 100 % filled; veh/** by key, rule and 3600 s" in listed
    assert "map: 3 of 3 groups, since 2023-11-14T23:00:00Z" in listed
    assert json.loads(run("list", store, "--json").output)["aggregates"][0]["groups_let_go"] > 0
    assert run("show", store, "speed", "--key", "none").output == "there are no groups of what was asked for\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nope"), "known are map, speed"),
        (("show", "speed", "--box", "0,0,1,1"), "has no cells"),
        (("export", "speed", "file.txt"), "does not say in which format"),
        (("export", "nope", "file.csv"), "known are map, speed"),
    ],
)
def test_wrong_command_is_one_line_and_leaves_no_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """As all commands."""
    monkeypatch.chdir(tmp_path)
    done = run(arguments[0], store, *arguments[1:])
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.glob("file*"))
    assert not list(tmp_path.glob(".file*"))
