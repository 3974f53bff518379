"""Records in Arrow's own format (IPC): a file for programs that map it into memory, or a stream for those that read it
as it comes. The columns are those of Parquet; the batches are compressed with zstd."""

from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa

from cloud_relay.export.columns import EXPORTED, Column
from cloud_relay.export.tables import RowsGathered, schema_of


class ArrowExport:
    """Writes rows of :func:`cloud_relay.export.columns.row_of_record` into an open file. Call ``close`` at the end."""

    def __init__(
        self, out: IO[bytes], about: dict[str, Any], columns: Sequence[Column] = EXPORTED, *, streams: bool = False
    ) -> None:
        """``about``: what the metadata says of the records, as JSON."""
        schema = schema_of(columns, about)
        self._rows = RowsGathered(columns, schema)
        self._writer = (pa.ipc.new_stream if streams else pa.ipc.new_file)(
            out, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
        )

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""
        if self._rows.add(row):
            self._end_batch()

    def close(self) -> None:
        """Write what is left; the file stays open."""
        self._end_batch()
        self._writer.close()

    def abandon(self) -> None:
        """Write nothing more, because the file won't be whole."""

    def _end_batch(self) -> None:
        batch = self._rows.taken()
        if batch is not None:
            self._writer.write_batch(batch)
