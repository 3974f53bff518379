"""Parquet files, read row by row in bounded memory, and written column by column. Only this module of the room imports
pyarrow."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from protocols.base.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ParquetTable:
    """A file that is open for reading."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
        self.count: int = file.metadata.num_rows

    def rows(
        self, columns: Sequence[str], batch: int, begin: int = 0, end: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows from ``begin`` to before ``end``, as they stand in the file; row groups outside are not read.

        :raises StorageError: the file is damaged.
        """
        import pyarrow as pa

        end = self.count if end is None else end
        groups, at, first = [], 0, None
        for number in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(number).num_rows
            if at < end and at + size > begin:
                first = at if first is None else first
                groups.append(number)
            at += size
        if first is None:
            return
        try:
            for some in self._file.iter_batches(batch, row_groups=groups, columns=list(columns)):
                low, high = max(begin - first, 0), min(end - first, some.num_rows)
                first += some.num_rows
                if low < high:
                    yield from some.slice(low, high - low).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, error) from error


@contextmanager
def opened_table(path: Path) -> Iterator[ParquetTable]:
    """A Parquet file. :raises ConfigError: pyarrow is missing. :raises StorageError: it is none, or can't be read."""
    with needing_pyarrow():
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    with file:
        yield ParquetTable(path, file)


def write_table(
    path: Path, columns: "Mapping[str, NDArray[Any] | list[Any]]", about: Mapping[str, str] | None = None,
    types: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write columns of one length as a file, zstd. ``types``: of columns, as Arrow calls them.

    :raises OSError: it can't be written.
    """
    with needing_pyarrow():
        import pyarrow as pa
        import pyarrow.parquet as pq
    known = types or {}
    table = pa.table({name: pa.array(each, _type_of(known.get(name))) for name, each in columns.items()})
    pq.write_table(table.replace_schema_metadata(dict(about or {})), path, compression="zstd")


def _type_of(name: str | None) -> Any:
    import pyarrow as pa

    if name is None:
        return None
    return pa.list_(pa.float32()) if name == "list<float>" else pa.type_for_alias(name)


class Joining:
    """Puts Parquet files of one form behind one another into an open file. Call ``close`` at the end."""

    def __init__(self, out: IO[bytes], about: Mapping[str, str]) -> None:
        self._out, self._about = out, dict(about)
        self._writer: Any = None
        self.rows = 0

    def add(self, path: Path) -> dict[str, str]:
        """Add the rows of a file. Returns what is told about it. :raises StorageError: it can't be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
        told = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
        self.rows += table.num_rows
        table = table.replace_schema_metadata(self._about)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._out, table.schema, compression="zstd", version="2.6")
        if table.num_rows:
            self._writer.write_table(table)
        return told

    def close(self) -> None:
        """Write the end. Without a file before, nothing is written."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def needing_pyarrow() -> Iterator[None]:
    """Say what to install. :raises ConfigError: the block fails to import pyarrow."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"Parquet needs pyarrow, which can't be imported ({error}): run pip install 'meshnode[learning]'"
        ) from error


def _unreadable(path: Path, error: Exception) -> StorageError:
    """What is told of a file that is no table."""
    return StorageError(
        f"{path} can't be read as Parquet ({' '.join(str(error).split())[:200]}): export it again with 'cloud-relay "
        "export'"
    )
