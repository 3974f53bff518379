"""Records as a Parquet file: zstd, one row group for each range of time, places as GeoParquet 1.1, and units beside the
columns.

Rows come in the order of time. A row group ends where the next span of time begins, or before that when it is large, so
the groups of a file never overlap in time, and a program that asks for an hour reads one of them. Memory holds one row
group in Arrow's form and 4,096 rows in Python's.
"""

import json
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cloud_relay.export.columns import EXPORTED, GEOMETRY, Column, point_of

MAX_GROUP_ROWS: Final = 131_072
MAX_GROUP_BYTES: Final = 64 * 1024 * 1024
"""Of one row group in memory."""
_BATCH_ROWS: Final = 4_096
_BATCH_BYTES: Final = 8 * 1024 * 1024
_WORDS: Final = ("origin", "rule", "key", "sensing_origin", "sensor", "unit", "calibration", "value_kind")
"""Columns with few different texts, which are kept as numbers of a dictionary. Values would only fill it up."""


class ParquetExport:
    """Writes rows of :func:`cloud_relay.export.columns.row_of_record` into an open file. Call ``close`` at the end."""

    def __init__(self, out: IO[bytes], span_ns: int, about: dict[str, Any]) -> None:
        """``span_ns``: the span of time of a row group. ``about``: what the file's metadata says of it, as JSON."""
        self._span_ns = span_ns
        self._schema = _schema(about)
        self._writer = pq.ParquetWriter(
            out, self._schema, compression="zstd", use_dictionary=list(_WORDS), write_statistics=True, version="2.6"
        )
        self._rows: list[dict[str, Any]] = []
        self._rows_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._group = -1
        self._bbox: list[float] | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        group = row["event_utc_ns"] // self._span_ns
        if group != self._group:
            self._end_group()
            self._group = group
        self._rows.append(row)
        self._rows_bytes += len(row["value"])
        self._extend(row["longitude_deg"], row["latitude_deg"])
        if len(self._rows) >= _BATCH_ROWS or self._rows_bytes >= _BATCH_BYTES:
            self._end_batch()
            rows = sum(batch.num_rows for batch in self._batches)
            if rows >= MAX_GROUP_ROWS or sum(batch.nbytes for batch in self._batches) >= MAX_GROUP_BYTES:
                self._end_group()

    def close(self) -> None:
        """Write what is left, and the metadata."""
        self._end_group()
        geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
        if self._bbox is not None:
            geometry["bbox"] = self._bbox
        geo = {"version": "1.1.0", "primary_column": GEOMETRY.name, "columns": {GEOMETRY.name: geometry}}
        self._writer.add_key_value_metadata({"geo": json.dumps(geo)})
        self._writer.close()

    def _end_batch(self) -> None:
        if not self._rows:
            return
        columns = [[row[column.name] for row in self._rows] for column in EXPORTED]
        columns.append([point_of(row) for row in self._rows])
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows, self._rows_bytes = [], 0

    def _end_group(self) -> None:
        self._end_batch()
        if self._batches:
            table = pa.Table.from_batches(self._batches, self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._batches = []

    def _extend(self, longitude_deg: float, latitude_deg: float) -> None:
        if self._bbox is None:
            self._bbox = [longitude_deg, latitude_deg, longitude_deg, latitude_deg]
        else:
            west, south, east, north = self._bbox
            self._bbox = [
                min(west, longitude_deg), min(south, latitude_deg), max(east, longitude_deg), max(north, latitude_deg)
            ]  # fmt: skip


def _schema(about: dict[str, Any]) -> pa.Schema:
    types = {
        "text": pa.string(), "texts": pa.list_(pa.string()), "integer": pa.int64(), "real": pa.float64(),
        "truth": pa.bool_(), "time": pa.timestamp("us", tz="UTC"), "point": pa.binary(),
    }  # fmt: skip

    def field(column: Column) -> pa.Field:
        said = {"unit": column.unit, "description": column.description}
        return pa.field(
            column.name, types[column.kind], column.nullable, {name: text for name, text in said.items() if text}
        )

    columns = (*EXPORTED, GEOMETRY)
    described = {column.name: {"unit": column.unit, "description": column.description} for column in columns}
    metadata = {"meshnode": json.dumps(about | {"columns": described})}
    return pa.schema([field(column) for column in columns], metadata)
