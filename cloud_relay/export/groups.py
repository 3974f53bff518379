"""Groups of a kept aggregate as Parquet or CSV: the columns of :func:`cloud_relay.query.kept.group_columns`.

Parquet has the beginning of the bucket as a time beside, and the cell as a polygon (GeoParquet 1.1) if there are cells.
Its numbers are doubles: an integer beyond 2^53 is rounded there, and exact in CSV and JSON.
"""

import csv
import io
import json
import struct
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.query.kept import group_columns

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 16_384
"""Of one row group: memory holds so many rows."""


class _About(NamedTuple):
    kind: str
    unit: str
    description: str


_ABOUT: Final = {
    "aggregate": _About("text", "", "The name of the aggregate."),
    "bucket_utc_ns": _About("integer", "ns", "When the bucket begins, since 1970 in UTC."),
    "bucket_ns": _About("integer", "ns", "How long it is."),
    "key": _About("text", "", "The key of the readings."),
    "origin": _About("text", "", "The node that sent the records."),
    "rule": _About("text", "", "The rule that chose them."),
    "unit": _About("text", "", "The unit of the values, a UCUM symbol; 1 for a bare number."),
    "south_deg": _About("real", "deg", "The southern edge of the cell, WGS 84."),
    "west_deg": _About("real", "deg", "Its western edge."),
    "cell_deg": _About("real", "deg", "Its side."),
    "records": _About("integer", "", "How many records there are."),
    "numbers": _About("integer", "", "Of these, how many have a finite number; the rest of the columns is about them."),
    "nans": _About("integer", "", "How many are not a number (NaN)."),
    "infinities": _About("integer", "", "How many are infinite."),
    "missing": _About("integer", "", "How many lack the field."),
    "others": _About("integer", "", "How many have something else there: a truth value, a text, nothing."),
    "min": _About("real", "", "The least number, in the unit of the row."),
    "mean": _About("real", "", "The mean, correctly rounded."),
    "max": _About("real", "", "The greatest number."),
    "sum": _About("real", "", "The sum, correctly rounded."),
    "percentile_error": _About("real", "1", "The relative error of the percentiles at most."),
    "change": _About("integer", "", "The number of the last change of the group; it only grows."),
}


class GroupCsv:
    """Writes rows of :func:`cloud_relay.query.kept.group_form` into an open file. Call ``close`` at the end."""

    def __init__(self, out: IO[bytes], definition: AggregateDefinition) -> None:
        self._text = io.TextIOWrapper(out, "utf-8", newline="", write_through=False)
        self._columns = group_columns(definition)
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        self._writer.writerow(self._columns)

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        self._writer.writerow([row[column] for column in self._columns])

    def close(self) -> None:
        """Write what is left; the file stays open."""
        self._text.flush()
        self._text.detach()


class GroupParquet:
    """Writes rows of :func:`cloud_relay.query.kept.group_form` into an open file. Call ``close`` at the end."""

    def __init__(self, out: IO[bytes], definition: AggregateDefinition, about: dict[str, Any]) -> None:
        """``about``: what the file's metadata says of it, as JSON.

        :raises ImportError: pyarrow is missing.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._columns = group_columns(definition)
        self._has_cells = definition.cell_e7 is not None
        types = {"text": pa.string(), "integer": pa.int64(), "real": pa.float64()}
        fields = [pa.field("bucket_time", pa.timestamp("us", tz="UTC"), nullable=False)]
        for column in self._columns:
            said = _said(column)
            metadata = {name: text for name, text in (("unit", said.unit), ("description", said.description)) if text}
            fields.append(pa.field(column, types[said.kind], said.kind == "real", metadata))
        metadata = {"meshnode": json.dumps(about | {"aggregate": json.loads(definition.identity)})}
        if self._has_cells:
            fields.append(pa.field("geometry", pa.binary(), nullable=False))
            polygons = {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"]}}
            metadata["geo"] = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": polygons})
        self._schema = pa.schema(fields, metadata)
        words = [name for name in ("aggregate", "key", "origin", "rule", "unit") if name in self._columns]
        self._writer = pq.ParquetWriter(out, self._schema, compression="zstd", use_dictionary=words, version="2.6")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._end_group()

    def close(self) -> None:
        """Write what is left, and the metadata."""
        self._end_group()
        self._writer.close()

    def _end_group(self) -> None:
        if not self._rows:
            return
        cells: list[list[Any]] = [[row["bucket_utc_ns"] // 1_000 for row in self._rows]]
        for column in self._columns:
            values = [row[column] for row in self._rows]
            is_real = _said(column).kind == "real"
            cells.append([None if value is None else float(value) for value in values] if is_real else values)
        if self._has_cells:
            cells.append([cell_polygon(row["south_deg"], row["west_deg"], row["cell_deg"]) for row in self._rows])
        self._writer.write_table(_table(cells, self._schema), row_group_size=len(self._rows))
        self._rows = []


def cell_polygon(south_deg: float, west_deg: float, side_deg: float) -> bytes:
    """The cell as a polygon in WKB, little-endian, longitude first, counter-clockwise."""
    north, east = min(90.0, south_deg + side_deg), min(180.0, west_deg + side_deg)
    corners = (west_deg, south_deg, east, south_deg, east, north, west_deg, north, west_deg, south_deg)
    return struct.pack("<BIII10d", 1, 3, 1, 5, *corners)


def _table(cells: list[list[Any]], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    arrays = [pa.array(column, field.type) for column, field in zip(cells, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _said(column: str) -> _About:
    percentile = _About(
        "real", "", f"The percentile {column}: the number of the nearest rank, within percentile_error."
    )
    return _ABOUT.get(column, percentile)
