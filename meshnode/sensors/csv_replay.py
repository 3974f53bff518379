"""Replays readings from a CSV file.

The first line names the columns. ``time_s``, ``key`` and ``value`` are needed; ``unit``, ``sensor``, ``quality``,
``priority``, ``lifespan_ms``, ``latitude_deg``, ``longitude_deg``, ``altitude_m``, ``heading_deg`` and ``accuracy_m``
may follow; an empty cell is a missing one. A value that is JSON (a number, true, a list, …) is read as JSON, every
other one is a text, but what looks like a number is one or an error. Times may not decrease; the time of the first row
is the start.

A row that makes no sense, and one that is blank or has no value, is skipped and counted. What shows that the file is
read in a wrong way (delimiter, decimal sign, encoding, order of time) ends the driver.

Options: ``file``, ``rate`` (2 plays twice as fast), ``loop``, ``key_prefix`` (put before each key, with its own ``/``),
``accuracy_m`` (accuracy of positions whose row gives none), ``delimiter`` (one character), ``decimal`` (``.`` or
``,``), ``encoding`` (a name that Python knows).
"""

import csv
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TextIO

from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.numerals import DecimalMismatch, NumeralInvalid, Numerals
from meshnode.sensors.options import Options
from protocols.base.errors import ConfigError, InvalidKey, SourceUnavailable
from protocols.base.keys import checked_key
from protocols.base.limits import MAX_LIFESPAN_MS, MAX_TEXT_CHARS
from protocols.wire.readings import Position

MAX_LINE_CHARS: Final = 64 * 1024
"""The longest line, because a file without line ends must not be read whole."""
_NEEDED: Final = ("time_s", "key", "value")
_OPTIONAL: Final = (
    "unit", "sensor", "quality", "priority", "lifespan_ms",
    "latitude_deg", "longitude_deg", "altitude_m", "heading_deg", "accuracy_m",
)  # fmt: skip
_CHECKED_ROWS: Final = 1_000
"""Rows that are looked at before a node starts."""
_DELIMITERS: Final = (",", ";", "\t", "|")
_UNDECODED: Final = re.compile("[\udc80-\udcff]")
"""What is left of bytes that are not of the encoding."""
_UTF_16: Final = ("\udcff\udcfe", "\udcfe\udcff")


class _RowInvalid(SourceUnavailable):
    """One row makes no sense."""

    lines = 1
    """How many lines it takes: a quote that is not closed takes all up to the next one."""


class _Lap:
    """One pass through the file."""

    def __init__(self, starts_s: float, rate: float) -> None:
        self.due_s = starts_s
        """When the newest row is due."""
        self.fault: _RowInvalid | None = None
        """The first row that makes no sense."""
        self._starts_s, self._rate = starts_s, rate
        self._step_s = 0.0
        self._origin_s: float | None = None
        self._time_s = 0.0
        self._shown = ""

    @property
    def begun(self) -> bool:
        """Whether there was a row."""
        return self._origin_s is not None

    @property
    def next_starts_s(self) -> float:
        """When the next lap starts. Rows that all have the same time give no step. Without one, time would not pass."""
        return self.due_s + (self._step_s or 1.0) / self._rate

    def to(self, time_s: float, shown: str) -> None:
        """The next row has this time. :raises ValueError: it is earlier than the row before."""
        if self._origin_s is None:
            self._origin_s = time_s
        elif time_s < self._time_s:
            raise ValueError(f"time goes back from {self._shown} to {shown}: sort the rows")
        elif time_s > self._time_s:
            self._step_s = time_s - self._time_s
        self._time_s, self._shown = time_s, shown
        self.due_s = self._starts_s + (time_s - self._origin_s) / self._rate


class CsvReplay:
    """Replays the rows of one file."""

    def __init__(
        self,
        path: Path,
        rate: float = 1.0,
        loop: bool = False,
        key_prefix: str = "",
        accuracy_m: float = 10.0,
        delimiter: str = ",",
        decimal: str = ".",
        encoding: str = "utf-8",
        skipped: Callable[[str, int], None] = lambda *_: None,
    ) -> None:
        self._path = path
        self._rate = rate
        self._loop = loop
        self._key_prefix = key_prefix
        self._accuracy_m = accuracy_m
        self._delimiter = delimiter
        self._numerals = Numerals(decimal)
        self._encoding = encoding
        self._skipped = skipped
        self._line = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. It reads the first rows of the file.

        :raises ConfigError: an option is wrong.
        :raises SourceUnavailable: the file is, or none of its first rows makes sense.
        """
        read = Options("csv", options)
        if not read.has("file"):
            raise ConfigError("sensor driver 'csv': option 'file' is missing: name the file to replay")
        path = read.file("file", context.folder, context.folder)
        rate = read.number("rate", 1.0, 0.01, 100.0)
        loop = read.flag("loop", False)
        key_prefix = read.text("key_prefix", "-") if read.has("key_prefix") else ""
        accuracy_m = read.number("accuracy_m", 10.0, 0.0, 1e6)
        delimiter = read.text("delimiter", ",")
        if len(delimiter) != 1 or delimiter.isalnum() or delimiter in '"\r\n. -+_':
            raise read.wrong("delimiter", "give the character between two cells, such as ';' or '\\t'")
        decimal = read.choice("decimal", (".", ","), ".")
        encoding = read.text("encoding", "utf-8")
        try:
            "0".encode(encoding)
        except (LookupError, ValueError) as error:
            raise read.wrong("encoding", "give one that Python knows, such as 'cp1252' or 'utf-16'") from error
        read.finish()
        driver = cls(path, rate, loop, key_prefix, accuracy_m, delimiter, decimal, encoding, context.skipped)
        lap = _Lap(0.0, rate)
        for _ in islice(driver._through(lap), _CHECKED_ROWS):
            pass
        if lap.fault is not None and not lap.begun:
            raise lap.fault
        return driver

    def samples(self) -> Generator[Sample, None, None]:
        """One sample per row."""
        starts_s = 0.0
        while True:
            lap = _Lap(starts_s, self._rate)
            for sample in self._through(lap):
                if isinstance(sample, Sample):
                    yield sample
                else:
                    self._skipped(str(sample), sample.lines)
            if lap.fault is not None and not lap.begun:
                raise lap.fault
            if not self._loop or not lap.begun:
                return
            starts_s = lap.next_starts_s

    def _through(self, lap: _Lap) -> Iterator[Sample | _RowInvalid]:
        """The samples of one lap, and what is wrong with the rows that give none."""
        for row in self._rows():
            try:
                if isinstance(row, _RowInvalid):
                    raise row
                yield self._sample(lap, row)
            except _RowInvalid as fault:
                lap.fault = lap.fault or fault
                yield fault

    def _sample(self, lap: _Lap, row: dict[str, str]) -> Sample:
        time_s = self._number(row, "time_s", -1e12, 1e12)
        if time_s is None:
            self._fail_row("'time_s' is empty: give seconds")
        try:
            key = checked_key(self._key_prefix + row["key"])
        except InvalidKey as error:
            self._fail_row(str(error), error)
        if not row["value"].strip():
            self._fail_row("'value' is empty")
        try:
            value = self._numerals.value(row["value"])
        except NumeralInvalid as error:
            self._fail_numeral(row, "value", error)
        quality = self._number(row, "quality", 0.0, 1.0)
        priority = self._number(row, "priority", 0, 7)
        lifespan_ms = int(self._number(row, "lifespan_ms", 0, MAX_LIFESPAN_MS) or 0)
        for name in ("unit", "sensor"):
            if len(row.get(name, "")) > MAX_TEXT_CHARS:
                self._fail_row(f"{name!r} is longer than {MAX_TEXT_CHARS} characters: shorten it")
        where = self._position(row)
        try:
            lap.to(time_s, row["time_s"].strip())
        except ValueError as error:
            self._fail(str(error), error)
        return Sample(
            lap.due_s,
            key,
            value,
            row.get("unit") or "1",
            row.get("sensor") or "csv",
            where,
            1.0 if quality is None else quality,
            3 if priority is None else int(priority),
            lifespan_ms,
        )

    def _position(self, row: dict[str, str]) -> Position | None:
        latitude_deg = self._number(row, "latitude_deg", -90, 90)
        longitude_deg = self._number(row, "longitude_deg", -180, 180)
        altitude_m = self._number(row, "altitude_m", -1e5, 1e7)
        heading_deg = self._number(row, "heading_deg", 0, 360)
        accuracy_m = self._number(row, "accuracy_m", 0, 1e7)
        if latitude_deg is None or longitude_deg is None:
            if latitude_deg is not longitude_deg:
                self._fail_row("one of 'latitude_deg' and 'longitude_deg' is empty: give both or none")
            return None
        return Position(
            latitude_deg,
            longitude_deg,
            self._accuracy_m if accuracy_m is None else accuracy_m,
            altitude_m,
            None if heading_deg is None else heading_deg % 360.0,
        )

    def _number(self, row: dict[str, str], name: str, at_least: float, at_most: float) -> float | None:
        text = row.get(name, "").strip()
        if not text:
            return None
        try:
            value = self._numerals.number(text)
        except NumeralInvalid as error:
            self._fail_numeral(row, name, error, f" from {at_least:g} to {at_most:g}")
        if not at_least <= value <= at_most:
            self._fail_row(f"{name!r} is {text[:40]!r}: give a number from {at_least:g} to {at_most:g}")
        return value

    def _fail_numeral(self, row: dict[str, str], name: str, error: NumeralInvalid, bounds: str = "") -> NoReturn:
        fault = f"{name!r} is {row[name].strip()[:40]!r}: {error}{bounds}"
        if isinstance(error, DecimalMismatch):  # All others of the file would be wrong too.
            self._fail(fault, error)
        self._fail_row(fault, error)

    def _rows(self) -> Iterator[dict[str, str] | _RowInvalid]:
        self._line = 0
        try:
            # A byte that is not of the encoding is found in its line. Decoding alone would tell only the piece.
            with self._path.open(encoding=self._encoding, errors="surrogateescape", newline="") as file:
                rows = csv.reader(self._lines(file), strict=True, delimiter=self._delimiter)
                header = next(rows, None)
                self._check_header(header)
                assert header is not None
                while (cells := self._cells(rows)) is not None:
                    if isinstance(cells, _RowInvalid):
                        yield cells
                    elif not any(cell.strip() for cell in cells):
                        yield self._row_invalid("the row is blank")
                    elif len(cells) != len(header):
                        fault = f"the row has {len(cells)} cells, the header {len(header)}: add or remove some"
                        if len(cells) > len(header) and self._delimiter == ",":
                            fault += ", or put numbers with a decimal comma into quotes and set decimal = ','"
                        yield self._row_invalid(fault)
                    else:
                        yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            self._fail(f"the header is malformed ({error}): check its quotes", error)
        except UnicodeError as error:
            self._line += 1
            self._fail_encoding("cp1252", error)
        except OSError as error:
            raise SourceUnavailable(f"file {self._path} can't be read: {error.strerror or error}") from error

    def _cells(self, rows: Iterator[list[str]]) -> list[str] | _RowInvalid | None:
        before = self._line
        try:
            return next(rows, None)
        except csv.Error as error:
            invalid = self._row_invalid(
                f"the row that begins in line {before + 1} is malformed ({error}): check its quotes"
            )
            invalid.lines = max(1, self._line - before)
            return invalid

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(MAX_LINE_CHARS + 1):
            self._line += 1
            if self._line == 1:
                line = line.removeprefix("\ufeff")
                self._refuse_other_formats(line)
            if len(line) > MAX_LINE_CHARS:
                self._fail(f"the line is longer than {MAX_LINE_CHARS} characters: this is not a CSV file of readings")
            if not line.isascii() and _UNDECODED.search(line):
                self._fail_encoding("utf-16" if self._line == 1 and line.startswith(_UTF_16) else "cp1252")
            if "\0" in line:
                self._fail("the line has a NUL character: this is not a text file, or set its encoding ('utf-16')")
            yield line

    def _refuse_other_formats(self, line: str) -> None:
        if line.startswith("\x1f\udc8b"):
            self._fail("this is a gzip file: unpack it. Floating-car data of SUMO are for driver = 'fcd'")
        if line.lstrip().startswith("<"):
            self._fail("this is XML. Floating-car data of SUMO are for driver = 'fcd'")
        if "timestep_time" in line or "vehicle_id" in line:
            self._fail("this is SUMO's CSV of floating-car data: export it as XML, and replay it with driver = 'fcd'")

    def _check_header(self, header: list[str] | None) -> None:
        if not header:
            self._line = 1
            self._fail(f"the header is missing: begin the file with {','.join(_NEEDED)}")
        for delimiter in _DELIMITERS:
            if len(header) == 1 and set(_NEEDED) <= set(re.split(re.escape(delimiter), header[0].replace('"', ""))):
                also = "" if delimiter == "," else ", and decimal = ',' if its numbers have a decimal comma"
                self._fail(f"the header is one cell, {header[0][:40]!r}: set delimiter = {delimiter!r}{also}")
        for name in _NEEDED:
            if name not in header:
                self._fail(f"column {name!r} is missing: the header must name {', '.join(_NEEDED)}")
        for index, name in enumerate(header):
            if name not in _NEEDED and name not in _OPTIONAL:
                self._fail(f"column {name[:40]!r} is unknown: use {', '.join((*_NEEDED, *_OPTIONAL))}")
            if name in header[:index]:
                self._fail(f"column {name!r} appears twice: remove one")

    def _fail_encoding(self, likely: str, cause: Exception | None = None) -> NoReturn:
        name = "UTF-8" if self._encoding == "utf-8" else self._encoding
        self._fail(f"it is not {name}: save it as such, or set encoding, for example encoding = {likely!r}", cause)

    def _fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        raise SourceUnavailable(self._located(fault)) from cause

    def _fail_row(self, fault: str, cause: Exception | None = None) -> NoReturn:
        raise self._row_invalid(fault) from cause

    def _row_invalid(self, fault: str) -> _RowInvalid:
        return _RowInvalid(self._located(fault))

    def _located(self, fault: str) -> str:
        return f"file {self._path}, line {self._line}: {fault}"
