"""Exported files read back: rows as :func:`cloud_relay.export.columns.row_of_record` gave them, with their geometry.

Memory holds a thousand rows of CSV or Arrow, or a thousand rows and a row group of Parquet as it is in the file.
"""

import base64
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from cloud_relay.export.columns import EXPORTED, GEOMETRY, READING
from protocols.base.errors import ConfigError, LocalProtocolError

_ROWS: Final = 1_000
_COLUMNS: Final = {column.name: column for column in (*EXPORTED, READING, GEOMETRY)}
_MAX_CELL_CHARS: Final = 64 * 1024 * 1024
"""Of a cell of CSV: the largest value in Base64 fits."""
_TRUTHS: Final = {"true": True, "false": False}


def rows_in(path: Path, form: str) -> Iterator[dict[str, Any]]:
    """The rows of a file, in its order. CSV has no ``event_time`` and no ``geometry``.

    :raises LocalProtocolError: it is no export of this format, or is damaged.
    :raises ConfigError: the library is missing.
    """
    try:
        yield from _csv_rows(path) if form == "csv" else _arrow_rows(path, form)
    except (OSError, ValueError, KeyError, OverflowError, csv.Error, msgspec.MsgspecError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:200]
        raise LocalProtocolError(
            f"{path} can't be read as {form} ({said}): name a whole file that an export wrote"
        ) from error


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    before = csv.field_size_limit(_MAX_CELL_CHARS)
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for cells in csv.DictReader(lines, strict=True):
                row = {name: _cell(name, cell) for name, cell in cells.items() if name in _COLUMNS}
                if row.get("value_kind") == "text" and row.get("value_text", "") is None:
                    row["value_text"] = ""  # the one empty cell that is a text
                yield row
    finally:
        csv.field_size_limit(before)


def _integer(cell: str) -> int:
    number = int(cell)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{cell[:40]} has more than 64 bits")
    return number


_CELLS: Final[dict[str, Callable[[str], Any]]] = {
    "text": str, "texts": lambda cell: msgspec.json.decode(cell, type=list[str]), "integer": _integer, "real": float,
    "truth": _TRUTHS.__getitem__, "bytes": lambda cell: base64.b64decode(cell, validate=True),
}  # fmt: skip


def _cell(name: str, cell: str | None) -> Any:
    if cell is None:
        raise ValueError("a line is too short")
    column = _COLUMNS[name]
    if not cell and column.nullable:
        return None
    return _CELLS[column.kind](cell)


def _arrow_rows(path: Path, form: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"Parquet and Arrow need pyarrow, which can't be imported ({error}): run pip install 'meshnode[export]'"
        ) from error

    def batches() -> Iterator[Any]:
        if form == "parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_ROWS)
        elif form == "arrow":
            with pa.memory_map(str(path)) as raw, pa.ipc.open_file(raw) as file:
                for number in range(file.num_record_batches):
                    yield file.get_batch(number)
        else:
            with pa.OSFile(str(path)) as raw, pa.ipc.open_stream(raw) as stream:
                yield from stream

    def columns_of(part: Any) -> dict[str, list[Any]]:
        columns = {}
        for name in part.schema.names:
            if name in _COLUMNS:
                cells = part.column(name)
                if pa.types.is_timestamp(cells.type):
                    cells = cells.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
                columns[name] = cells.to_pylist()
        return columns

    try:
        for batch in batches():
            for start in range(0, batch.num_rows, _ROWS):
                columns = columns_of(batch.slice(start, _ROWS))
                yield from (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
