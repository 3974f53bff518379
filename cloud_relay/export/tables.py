"""Records in the form of Arrow: the schema with units beside the columns, and rows gathered into batches."""

import json
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from cloud_relay.export.columns import GEOMETRY, Column, point_of

_BATCH_ROWS: Final = 4_096
_BATCH_BYTES: Final = 8 * 1024 * 1024
"""Of values. Batches bound what is held in Python's form, which is several times as large."""
_TYPES: Final = {
    "text": pa.string(), "texts": pa.list_(pa.string()), "integer": pa.int64(), "real": pa.float64(),
    "truth": pa.bool_(), "time": pa.timestamp("us", tz="UTC"), "bytes": pa.binary(), "point": pa.binary(),
}  # fmt: skip


def schema_of(columns: Sequence[Column], about: dict[str, Any]) -> pa.Schema:
    """The schema of some columns and of the geometry. ``about``: what its metadata says of the records, as JSON."""

    def field(column: Column) -> pa.Field:
        said = {"unit": column.unit, "description": column.description}
        return pa.field(
            column.name, _TYPES[column.kind], column.nullable, {name: text for name, text in said.items() if text}
        )

    every = (*columns, GEOMETRY)
    described = {column.name: {"unit": column.unit, "description": column.description} for column in every}
    metadata = {"meshnode": json.dumps(about | {"columns": described})}
    return pa.schema([field(column) for column in every], metadata)


class RowsGathered:
    """Rows of :func:`cloud_relay.export.columns.row_of_record` that are not a batch yet."""

    def __init__(self, columns: Sequence[Column], schema: pa.Schema) -> None:
        self._columns, self._schema = columns, schema
        self._rows: list[dict[str, Any]] = []
        self._size_bytes = 0

    def add(self, row: dict[str, Any]) -> bool:
        """Add the next row. True: there are enough for a batch."""
        self._rows.append(row)
        self._size_bytes += len(row["value"])
        return len(self._rows) >= _BATCH_ROWS or self._size_bytes >= _BATCH_BYTES

    def taken(self) -> pa.RecordBatch | None:
        """All rows as a batch, which are forgotten then; None: there are none."""
        if not self._rows:
            return None
        columns = [[row[column.name] for row in self._rows] for column in self._columns]
        columns.append([point_of(row) for row in self._rows])
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, self._schema, strict=True)]
        self._rows, self._size_bytes = [], 0
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)
