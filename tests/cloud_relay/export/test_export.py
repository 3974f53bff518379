"""Exports of the relay's records: what other programs read in the files is what is in the store, context included."""

import csv
import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from cloud_relay.export import parquet, tables
from cloud_relay.export.columns import EXPORTED
from cloud_relay.export.whole_file import whole_file
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.limits import SECOND
from tests.tools.export_fixture import DEEP, VALUES, comparable, exported, rows_of, sent
from tests.tools.exported_fixture import passage
from tests.tools.node_fixture import environment
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture


@pytest.fixture(name="parquet_file")
def given_parquet_file(relay: RelayInProcess, tmp_path: Path) -> Path:
    """Everything, in Parquet."""
    sent(relay)
    file = tmp_path / "records.parquet"
    done = exported(relay, file)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{len(VALUES)} records, ")
    return file


# --- Parquet ---------------------------------------------------------------------------------------------------------
def test_parquet_read_by_arrow_is_what_is_in_the_store(relay: RelayInProcess, parquet_file: Path) -> None:
    """Each column of each record, to the last bit."""
    expected = rows_of(relay)
    for row, (_, kind) in zip(expected, VALUES, strict=True):
        row["event_time"] = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row["event_time"])
        assert row["value_kind"] == kind
    table = pq.read_table(parquet_file)
    found = table.drop_columns(["geometry"]).to_pylist()
    assert [comparable(row) for row in found] == [
        comparable({column.name: row[column.name] for column in EXPORTED}) for row in expected
    ]
    points = [struct.unpack("<BIdd", point) for point in table["geometry"].to_pylist()]
    assert points == [(1, 1, row["longitude_deg"], row["latitude_deg"]) for row in expected]


def test_parquet_read_by_duckdb_is_what_is_in_the_store(relay: RelayInProcess, parquet_file: Path) -> None:
    """A program that is not of the family of Arrow reads the same, numbers that are not finite included."""
    names = [column.name for column in EXPORTED if column.kind != "time"]
    with duckdb.connect() as db:
        db.execute("SET enable_geoparquet_conversion = false")
        db.read_parquet(str(parquet_file)).create_view("records")
        found = db.execute(f"SELECT {', '.join(names)} FROM records ORDER BY sequence").fetchall()
        expected = rows_of(relay)
        for cells, row in zip(found, expected, strict=True):
            assert comparable(dict(zip(names, cells, strict=True))) == comparable({name: row[name] for name in names})
        asked = "SELECT count(*) FROM records WHERE isnan(value_number) OR isinf(value_number)"
        assert db.execute(asked).fetchone() == (3,)
        assert db.execute("SELECT value->'a'->0->'b' FROM records WHERE value_kind = 'map'").fetchone() == (
            '[[[["deep"]]]]',
        )
        times = db.execute("SELECT epoch_us(event_time) * 1000, event_utc_ns FROM records").fetchall()
        assert all(0 <= exact - shown < 1_000 for shown, exact in times)


def test_values_in_the_file_are_whole_and_typed(relay: RelayInProcess, parquet_file: Path) -> None:
    """Who computes takes the number; who must have everything takes the JSON."""
    rows = {row["sequence"]: row for row in pq.read_table(parquet_file).to_pylist()}
    assert json.loads(rows[2]["value"]) == {"$float": "nan"}
    assert math.isnan(rows[2]["value_number"])
    assert (rows[7]["value_number"], rows[7]["value_integer"], rows[7]["value"]) == (2.0**64, None, str(2**64 - 1))
    assert (rows[8]["value_number"], rows[8]["value_integer"]) == (-(2.0**63), -(2**63))
    assert (rows[9]["value_bool"], rows[9]["value_number"]) == (True, None)
    assert (rows[12]["value_text"], rows[11]["value_text"]) == ("", None)
    assert json.loads(rows[16]["value"]) == DEEP
    assert json.loads(rows[17]["value"])["$tensor"]["shape"] == [4]
    assert json.loads(rows[18]["value"]) == {"$time": "2026-01-31T12:00:00Z"}


def test_metadata_says_units_places_and_what_was_asked(parquet_file: Path) -> None:
    """A file that was found years later explains itself."""
    file = pq.ParquetFile(parquet_file)
    metadata = file.metadata.metadata
    geo = json.loads(metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Point"])
    assert column["bbox"] == pytest.approx([-11.0 - len(VALUES) / 7, 48.1, -11.0 - 1 / 7, 48.0 + len(VALUES) / 10])
    about = json.loads(metadata[b"meshnode"])
    assert about["columns"]["accuracy_m"]["unit"] == "m"
    assert file.schema_arrow.field("uncertainty_ns").metadata[b"unit"] == b"ns"
    assert all(file.schema_arrow.field(name).metadata[b"description"] for name in file.schema_arrow.names)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_are_ranges_of_time_that_do_not_overlap(
    relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that asks for an hour of a year reads an hour."""
    relay.send(batch(*(hour * 60 * 60 + second for hour in range(5) for second in range(1, 11)), value=1.5))
    monkeypatch.setattr(tables, "_BATCH_ROWS", 4)
    monkeypatch.setattr(parquet, "MAX_GROUP_ROWS", 8)
    assert exported(relay, tmp_path / "r.parquet", "--row-group", "1h").exit_code == 0
    groups = pq.ParquetFile(tmp_path / "r.parquet").metadata
    named = [next(c.statistics for c in columns_of(groups, number) if c.path_in_schema == "event_utc_ns")
             for number in range(groups.num_row_groups)]  # fmt: skip
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [8, 2] * 5
    hour_ns = 3_600 * SECOND
    assert all(one.max < other.min for one, other in pairwise(named))
    assert all(one.min // hour_ns == one.max // hour_ns for one in named)


def test_scattered_times_make_no_row_group_of_each_row(tmp_path: Path) -> None:
    """A node may tell a time of another day with each record; the file would be mostly metadata."""
    day_ns = 86_400 * SECOND
    rows = [passage(number, "v-bad", 86_400 * number, 1) for number in range(10_000)]
    honest = [passage(number, "v-1", 86_400 * 20_000 + number, 1) for number in range(3_000)]
    file = tmp_path / "a.parquet"
    with file.open("wb") as out:
        writer = parquet.ParquetExport(out, day_ns, {})
        for row in (*rows, *honest):
            writer.add(row)
        writer.close()
    groups = pq.ParquetFile(file)
    sizes = [groups.metadata.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert len(sizes) <= parquet.MAX_SMALL_GROUPS + 13_000 // parquet.SMALL_GROUP_ROWS + 1
    assert sizes[: parquet.MAX_SMALL_GROUPS] == [1] * parquet.MAX_SMALL_GROUPS
    assert sum(sizes) == 13_000
    times = groups.read(columns=["event_utc_ns"])["event_utc_ns"].to_pylist()
    assert times == sorted(times), "so no two groups overlap"


def columns_of(groups: Any, number: int) -> list[Any]:
    group = groups.row_group(number)
    return [group.column(index) for index in range(group.num_columns)]


# --- CSV, filters, wrong requests ------------------------------------------------------------------------------------
def test_csv_has_the_same_in_text(relay: RelayInProcess, tmp_path: Path) -> None:
    """What other programs read as text is as whole."""
    sent(relay)
    file = tmp_path / "records.csv"
    assert exported(relay, file).exit_code == 0
    with file.open(newline="", encoding="utf-8") as opened:
        found = list(csv.DictReader(opened))
    for cells, row in zip(found, rows_of(relay), strict=True):
        assert cells.keys() == row.keys() - {"event_time", "reading"}
        assert json.loads(cells["lineage"]) == ["raw", "fil,tered"]
        assert cells["value"] == row["value"]
        assert cells["event_utc_ns"] == str(row["event_utc_ns"])
        assert cells["has_receipt"] == "false"
        assert cells["value_text"] == (row["value_text"] or "")
        if row["value_number"] is not None:
            assert repr(float(cells["value_number"])) == repr(row["value_number"])
    with duckdb.connect() as db:
        count = db.execute("SELECT count(*), count(DISTINCT sequence) FROM read_csv(?)", [str(file)]).fetchone()
    assert count == (len(VALUES), len(VALUES))


def test_filters_choose_what_is_exported(relay: RelayInProcess, tmp_path: Path) -> None:
    """The grammar is that of queries; nothing found is a file without rows, and not an error."""
    sent(relay)
    for options, count in ((["--key", "veh/*/k1"], 7), (["--box", "48,-12,48.25,-11"], 2), (["--rule", "no"], 0)):
        file = tmp_path / f"{count}.parquet"
        assert exported(relay, file, *options).exit_code == 0
        assert pq.read_table(file).num_rows == count
        about = json.loads(pq.ParquetFile(file).metadata.metadata[b"meshnode"])
        assert about["query"] == {options[0].removeprefix("--"): options[1]}


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ([], "records.txt", "add --format parquet or --format csv"),
        (["--row-group", "1y"], "records.parquet", "'1y' is no span of time"),
        (["--since", "yesterday"], "records.parquet", "'yesterday'"),
        ([], "there.csv", "add --overwrite"),
        (["--format", "csv"], ".", "is a folder"),
        ([], "none/records.csv", "can't be written"),
    ],
)
def test_wrong_export_is_refused_in_one_line(
    relay: RelayInProcess, tmp_path: Path, options: list[str], name: str, said: str
) -> None:
    """And nothing that was there is touched."""
    (tmp_path / "there.csv").write_text("mine")
    done = exported(relay, tmp_path / name, *options)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.splitlines()) == 1
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_missing_library_is_told_with_the_way_out(
    relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay does not need 175 MB of Arrow to run."""
    monkeypatch.setitem(sys.modules, "cloud_relay.export.parquet", None)
    done = exported(relay, tmp_path / "records.parquet")
    assert (done.exit_code, "pip install 'meshnode[export]'" in done.output) == (2, True)
    assert exported(relay, tmp_path / "records.csv").exit_code == 0


# --- whole or not at all ---------------------------------------------------------------------------------------------
def test_file_is_there_when_it_is_whole_and_only_its_owners(tmp_path: Path) -> None:
    """Whoever waits for the file must not read half of it."""
    with whole_file(tmp_path / "x", overwrite=False) as out:
        out.write(b"half")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    with pytest.raises(RuntimeError), whole_file(tmp_path / "x", overwrite=True):
        raise RuntimeError
    with pytest.raises(LocalProtocolError, match="--overwrite"), whole_file(tmp_path / "x", overwrite=False):
        pass
    with pytest.raises(StorageError, match="can't be written"), whole_file(tmp_path / "y", overwrite=False):
        raise OSError(28, "No space left on device")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_export_leaves_nothing_and_shows_how_far_it_came(
    relay: RelayInProcess, tmp_path: Path, number: signal.Signals
) -> None:
    """On a terminal it says how far it is; whoever ends it finds the folder as it was."""
    for first in range(1, 2_000, 200):
        relay.send(batch(*range(first, first + 200), value=[0.5] * 50))
    folder = tmp_path / "out"
    folder.mkdir()
    code = (
        "import signal, os, cloud_relay.export.commands as c; c._TOLD_EACH_S = 0.0\n"
        "from cloud_relay.export.commas import CsvExport\n"
        "add = CsvExport.add\n"
        "def slow(self, row):\n"
        "    add(self, row)\n"
        f"    if row['sequence'] == 1000: os.kill(os.getpid(), {int(number)})\n"
        "CsvExport.add = slow\n"
        "from cloud_relay.cli import main; main()\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "export", "--store", str(relay.path), str(folder / "r.csv")],
        env=environment(), stderr=theirs, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65_536):
            shown += more
    except OSError:
        pass  # the other end of a terminal is closed
    os.close(ours)
    assert process.wait(60) == {signal.SIGINT: 1, signal.SIGTERM: 143}[number]
    assert b"768 records, up to 2023-11-14T" in shown
    assert list(folder.iterdir()) == []
