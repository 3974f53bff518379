"""Records as CSV (RFC 4180): a line with names, then one for each record. A cell of nothing is empty, and bytes are
Base64."""

import base64
import csv
import io
from collections.abc import Sequence
from typing import IO, Any, Final

import msgspec

from cloud_relay.export.columns import EXPORTED, Column

_TRUTHS: Final = {True: "true", False: "false"}


class CsvExport:
    """Writes rows of :func:`cloud_relay.export.columns.row_of_record` into an open file. Call ``close`` at the end."""

    def __init__(self, out: IO[bytes], columns: Sequence[Column] = EXPORTED) -> None:
        self._text = io.TextIOWrapper(out, "utf-8", newline="", write_through=False)
        self._writer = csv.writer(self._text, lineterminator="\r\n")  # texts with either are put into quotes then
        self._columns = [column for column in columns if column.kind != "time"]
        self._writer.writerow([column.name for column in self._columns])

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        self._writer.writerow([_cell(row[column.name], column.kind) for column in self._columns])

    def close(self) -> None:
        """Write what is left; the file stays open."""
        self._text.flush()
        self._text.detach()

    def abandon(self) -> None:
        """Write nothing more, because the file won't be whole."""


def _cell(value: Any, kind: str) -> Any:
    if kind == "texts":
        return msgspec.json.encode(value).decode()
    if kind == "bytes":
        return base64.b64encode(value).decode()
    if kind == "truth" and value is not None:
        return _TRUTHS[value]
    return value
