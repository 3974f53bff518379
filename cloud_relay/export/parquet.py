"""Records as a Parquet file: zstd, one row group for each range of time, places as GeoParquet 1.1, and units beside the
columns.

Rows come in the order of time. A row group ends where the next span of time begins, or before that when it is large, so
the groups of a file never overlap in time, and a program that asks for an hour reads one of them. Memory holds one row
group in Arrow's form and a batch of rows in Python's.

A node may tell any time, so a file could have a row group for each of its rows, 5 kB and 1 ms each. Once it has many
small ones, further ones go on over the end of their span until they have enough rows.
"""

import json
from collections.abc import Sequence
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cloud_relay.export.columns import EXPORTED, GEOMETRY, Column
from cloud_relay.export.places import PlacesSeen
from cloud_relay.export.tables import RowsGathered, schema_of

MAX_GROUP_ROWS: Final = 131_072
MAX_GROUP_BYTES: Final = 64 * 1024 * 1024
"""Of one row group in memory."""
MAX_SMALL_GROUPS: Final = 1_000
"""Row groups with fewer than ``SMALL_GROUP_ROWS``: those of a month by the hour."""
SMALL_GROUP_ROWS: Final = 1_024
_WORDS: Final = ("origin", "rule", "key", "sensing_origin", "sensor", "unit", "calibration", "value_kind")
"""Columns with few different texts, which are kept as numbers of a dictionary. Values would only fill it up."""


class ParquetExport:
    """Writes rows of :func:`cloud_relay.export.columns.row_of_record` into an open file. Call ``close`` at the end."""

    def __init__(
        self, out: IO[bytes], span_ns: int, about: dict[str, Any], columns: Sequence[Column] = EXPORTED
    ) -> None:
        """``span_ns``: the span of time of a row group. ``about``: what the file's metadata says of it, as JSON."""
        self._span_ns = span_ns
        self._schema = schema_of(columns, about)
        self._writer = pq.ParquetWriter(
            out, self._schema, compression="zstd", use_dictionary=list(_WORDS), write_statistics=True, version="2.6"
        )
        self._rows = RowsGathered(columns, self._schema)
        self._batches: list[pa.RecordBatch] = []
        self._group = -1
        self._group_rows = self._small_groups = 0
        self._places = PlacesSeen()

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        group = row["event_utc_ns"] // self._span_ns
        if group != self._group:
            if self._group_rows >= SMALL_GROUP_ROWS or self._small_groups < MAX_SMALL_GROUPS:
                self._end_group()
            self._group = group
        self._group_rows += 1
        self._places.add(row["latitude_deg"], row["longitude_deg"])
        if self._rows.add(row):
            self._end_batch()
            rows = sum(batch.num_rows for batch in self._batches)
            if rows >= MAX_GROUP_ROWS or sum(batch.nbytes for batch in self._batches) >= MAX_GROUP_BYTES:
                self._end_group()

    def close(self) -> None:
        """Write what is left, and the metadata."""
        self._end_group()
        geometry: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
        bounds = self._places.bounds()
        if bounds is not None:
            geometry["bbox"] = list(bounds)
        geo = {"version": "1.1.0", "primary_column": GEOMETRY.name, "columns": {GEOMETRY.name: geometry}}
        self._writer.add_key_value_metadata({"geo": json.dumps(geo)})
        self._writer.close()

    def abandon(self) -> None:
        """Write nothing more, because the file won't be whole."""
        self._writer.is_open = False  # else it writes the end of the file when it is collected, and complains

    def _end_batch(self) -> None:
        batch = self._rows.taken()
        if batch is not None:
            self._batches.append(batch)

    def _end_group(self) -> None:
        self._end_batch()
        if self._batches:
            table = pa.Table.from_batches(self._batches, self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._batches = []
            self._small_groups += self._group_rows < SMALL_GROUP_ROWS
            self._group_rows = 0
