"""Files of series: CSV and Parquet with a column of times and columns of values, row by row.

A row of which a cell is no number is left out and told. Memory is bounded by a line of CSV, and by the pages of a
Parquet file that belong to ``_ROWS`` rows.
"""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from meshnode.sensors.numerals import NumeralInvalid, Numerals
from meshnode.sensors.series.windows import MAX_CHANNELS
from protocols.base.errors import SourceUnavailable

UNITS_S: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
MAX_LINE_CHARS: Final = 64 * 1024
PARQUET: Final = frozenset({".parquet", ".pq"})
_ROWS: Final = 4_096

Row = tuple[float, tuple[float, ...]]
"""The time in seconds and the values."""


@dataclass(frozen=True, slots=True)
class SeriesFile:
    """One file. ``columns`` empty: all but that of the times."""

    path: Path
    time_column: str
    time_unit: str
    columns: tuple[str, ...]
    delimiter: str = ","
    decimal: str = "."

    def names(self) -> tuple[str, ...]:
        """The columns of values. :raises SourceUnavailable: it can't be read, or one is missing; names it."""
        header = self._parquet_names() if self._is_parquet else self._csv_names()
        for name in (self.time_column, *self.columns):
            if name not in header:
                raise SourceUnavailable(f"{self.path} has no column {name!r}: it has {', '.join(header)[:300]}")
        names = self.columns or tuple(name for name in header if name != self.time_column)
        if not 1 <= len(names) <= MAX_CHANNELS:
            raise SourceUnavailable(f"{self.path} has {len(names)} columns of values: choose 1 to {MAX_CHANNELS}")
        return names

    def rows(self, names: tuple[str, ...], skipped: Callable[[str], None]) -> Iterator[Row]:
        """The rows in order. :raises SourceUnavailable: it can't be read."""
        yield from self._parquet_rows(names, skipped) if self._is_parquet else self._csv_rows(names, skipped)

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix.lower() in PARQUET

    # --- CSV --------------------------------------------------------------------------------------------------------
    def _csv_names(self) -> list[str]:
        with self._opened() as file:
            try:
                header = next(csv.reader(self._lines(file), delimiter=self.delimiter), [])
            except csv.Error as error:
                raise SourceUnavailable(f"{self.path} is no CSV file: its header is malformed ({error})") from error
        return [name.strip().removeprefix("\ufeff") for name in header]

    def _csv_rows(self, names: tuple[str, ...], skipped: Callable[[str], None]) -> Iterator[Row]:
        header, numerals, line = self._csv_names(), Numerals(self.decimal), 1
        places = [header.index(name) for name in (self.time_column, *names)]
        with self._opened() as file:
            lines = csv.reader(self._lines(file), delimiter=self.delimiter)
            next(lines, None)
            try:
                for line, cells in enumerate(lines, 2):
                    try:
                        time_s, *values = (numerals.number(cells[place].strip()) for place in places)
                    except IndexError:
                        skipped(f"{self.path}, row {line}: it has {len(cells)} cells, the header {len(header)}")
                    except NumeralInvalid as error:
                        skipped(f"{self.path}, row {line}: {error}")
                    else:
                        if not all(map(math.isfinite, (time_s, *values))):
                            skipped(f"{self.path}, row {line}: a number is not finite")
                            continue
                        yield time_s * UNITS_S[self.time_unit], tuple(values)
            except (csv.Error, UnicodeError) as error:
                raise SourceUnavailable(
                    f"{self.path}, row {line + 1}: this is no CSV file in UTF-8 ({error})"
                ) from error

    def _opened(self) -> TextIO:
        try:
            return self.path.open(encoding="utf-8", errors="replace", newline="")
        except OSError as error:
            raise SourceUnavailable(f"{self.path} can't be read: {error.strerror or error}") from error

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(MAX_LINE_CHARS + 1):
            if len(line) > MAX_LINE_CHARS or "\0" in line:
                raise SourceUnavailable(f"{self.path} is no CSV file: a line is too long, or has a NUL character")
            yield line

    # --- Parquet ----------------------------------------------------------------------------------------------------
    def _parquet_names(self) -> list[str]:
        with self._parquet() as file:
            return list(file.schema_arrow.names)

    def _parquet_rows(self, names: tuple[str, ...], skipped: Callable[[str], None]) -> Iterator[Row]:
        import pyarrow as pa

        number = 0
        try:
            with self._parquet() as file:
                for batch in file.iter_batches(_ROWS, columns=[self.time_column, *names]):
                    times = self._seconds(batch.column(self.time_column))
                    columns = [self._floats(batch.column(name), name) for name in names]
                    for time_s, *values in zip(times, *columns, strict=True):
                        number += 1
                        if time_s is None or any(value is None or not math.isfinite(value) for value in values):
                            skipped(f"{self.path}, row {number}: a value is missing or no finite number")
                        else:
                            yield time_s, tuple(values)
        except (pa.ArrowException, OSError) as error:
            raise SourceUnavailable(
                f"{self.path}, after row {number}: it can't be read ({str(error)[:200]})"
            ) from error

    def _seconds(self, column: Any) -> list[float | None]:
        import pyarrow as pa

        if pa.types.is_timestamp(column.type):
            scale = UNITS_S[column.type.unit]
            return [None if each is None else each * scale for each in column.cast("int64").to_pylist()]
        scale = UNITS_S[self.time_unit]
        return [None if each is None else each * scale for each in self._floats(column, self.time_column)]

    def _floats(self, column: Any, name: str) -> list[float | None]:
        import pyarrow as pa

        try:
            return list(column.cast(pa.float64(), safe=False).to_pylist())
        except pa.ArrowException as error:
            raise SourceUnavailable(f"{self.path}: column {name!r} has no numbers but {column.type}") from error

    def _parquet(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise SourceUnavailable(f"{self.path} is no Parquet file that can be read: {str(error)[:200]}") from error
