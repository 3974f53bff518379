"""Exports in Arrow's own format, and the same rows by every reader: pyarrow, pandas and DuckDB."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud_relay.export import tables
from cloud_relay.export.columns import EXPORTED
from cloud_relay.export.reading import rows_in
from protocols.base.errors import ConfigError, LocalProtocolError
from tests.tools.export_fixture import VALUES, comparable, exported, rows_of, sent
from tests.tools.relay_fixture import RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture

NAMES = [column.name for column in EXPORTED]


@pytest.fixture(name="files")
def given_files(relay: RelayInProcess, tmp_path: Path) -> dict[str, Path]:
    """Everything, in each format."""
    sent(relay)
    files = {form: tmp_path / f"records.{form}" for form in ("parquet", "csv", "arrow", "arrows")}
    for file in files.values():
        done = exported(relay, file)
        assert done.exit_code == 0, done.output
    return files


def arrow_table(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as raw:
        return (pa.ipc.open_file if file.suffix == ".arrow" else pa.ipc.open_stream)(raw).read_all()


def test_arrow_has_what_parquet_has(files: dict[str, Path]) -> None:
    """One schema with units, whichever way the rows are taken."""
    expected = pq.read_table(files["parquet"])
    for form in ("arrow", "arrows"):
        table = arrow_table(files[form])
        assert table.schema.equals(expected.schema)
        assert table.schema.field("accuracy_m").metadata[b"unit"] == b"m"
        assert b"columns" in table.schema.metadata[b"meshnode"]
        assert [comparable(row) for row in table.to_pylist()] == [comparable(row) for row in expected.to_pylist()]


def test_pandas_duckdb_and_arrow_read_equal_rows_from_parquet(relay: RelayInProcess, files: dict[str, Path]) -> None:
    """Whoever takes a notebook must not get another context than who takes SQL."""
    expected = [comparable({name: row[name] for name in NAMES}) for row in rows_of(relay)]
    by_arrow = pq.read_table(files["parquet"]).select(NAMES).to_pylist()
    frame = pd.read_parquet(files["parquet"], dtype_backend="pyarrow")
    by_pandas = [{name: cell_of(row[name]) for name in NAMES} for row in frame.to_dict("records")]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        asked = ", ".join(name if name != "event_time" else "epoch_us(event_time) AS event_time" for name in NAMES)
        cells = db.execute(f"SELECT {asked} FROM '{files['parquet']}'").fetchall()
        by_duckdb = [dict(zip(NAMES, row, strict=True)) for row in cells]
    for rows in (by_arrow, by_pandas, by_duckdb):
        for row in rows:
            if not isinstance(row["event_time"], int):
                row["event_time"] = round(pd.Timestamp(row["event_time"]).value / 1_000)
        assert [comparable(row) for row in rows] == expected


def cell_of(cell: Any) -> Any:
    """What pandas shows, as Python: it has a type of its own for nothing, and arrays for lists."""
    if cell is pd.NA or cell is None:
        return None
    return list(cell) if hasattr(cell, "tolist") and not isinstance(cell, str) else cell


def test_files_read_back_are_the_rows_that_were_written(relay: RelayInProcess, files: dict[str, Path]) -> None:
    """Our own reader, which verifies files, loses nothing either: NaN, infinities, tensors, deep values."""
    expected = rows_of(relay)
    assert len(expected) == len(VALUES)
    for form, file in files.items():
        names = [name for name in NAMES if form != "csv" or name != "event_time"]
        found = list(rows_in(file, form))
        assert [comparable({name: row[name] for name in names}) for row in found] == [
            comparable({name: row[name] for name in names}) for row in expected
        ]


@pytest.mark.parametrize("form", ["parquet", "csv", "arrow", "arrows"])
def test_damaged_files_are_refused_in_one_line(files: dict[str, Path], tmp_path: Path, form: str) -> None:
    """Half of a file, another file, and none at all."""
    whole = files[form].read_bytes()
    for content in (whole[: len(whole) * 2 // 3], b"\x00\xff\xfe" * 50, b""):
        file = tmp_path / f"damaged.{form}"
        file.write_bytes(content)
        if (form, content) == ("csv", b""):
            assert list(rows_in(file, form)) == []
            continue
        with pytest.raises(LocalProtocolError, match="can't be read as"):
            list(rows_in(file, form))
    with pytest.raises(LocalProtocolError, match="No such file"):
        list(rows_in(tmp_path / "none", form))


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("sequence", "1" + "0" * 30), ("sequence", ""), ("sequence", "9" * 5_000), ("lineage", "["), ("lineage", "[1]"),
        ("has_receipt", "yes"), ("quality", "good"), ("altitude_m", "x"),
    ],
)  # fmt: skip
def test_cells_of_another_type_are_refused_in_one_line(
    files: dict[str, Path], tmp_path: Path, column: str, cell: str
) -> None:
    """Somebody may have opened the file with a spreadsheet, and saved it."""
    with files["csv"].open(newline="", encoding="utf-8") as opened:
        header, first, *_ = csv.reader(opened)
    first[header.index(column)] = cell
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([header, first])
    with pytest.raises(LocalProtocolError, match="can't be read as csv") as caught:
        list(rows_in(tmp_path / "x.csv", "csv"))
    assert len(str(caught.value).splitlines()) == 1


def test_columns_of_another_type_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """A time that no microsecond holds, and a name that comes twice."""
    table = pq.read_table(files["parquet"]).slice(0, 1)
    twice = pa.table([table["sequence"], table["sequence"]], names=["sequence", "sequence"])
    late = pa.table([pa.array([2**62], pa.timestamp("s", "UTC"))], names=["event_time"])
    for wrong in (twice, late):
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as out, pa.ipc.new_file(out, wrong.schema) as writer:
            writer.write_table(wrong)
        with pytest.raises(LocalProtocolError, match="can't be read as arrow"):
            list(rows_in(tmp_path / "x.arrow", "arrow"))


def test_reader_without_its_library_says_the_way_out(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV needs none."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'meshnode\[export\]'"):
        list(rows_in(files["arrow"], "arrow"))
    assert len(list(rows_in(files["csv"], "csv"))) == len(VALUES)


def test_arrow_goes_out_in_batches(relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds one of them, whatever the number of records."""
    relay.send(batch(*range(1, 11), value=math.pi))
    monkeypatch.setattr(tables, "_BATCH_ROWS", 4)
    assert exported(relay, tmp_path / "r.arrow").exit_code == 0
    with pa.memory_map(str(tmp_path / "r.arrow")) as raw, pa.ipc.open_file(raw) as file:
        assert [file.get_batch(number).num_rows for number in range(file.num_record_batches)] == [4, 4, 2]
