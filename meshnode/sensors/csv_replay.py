"""Replays readings from a CSV file.

The first line names the columns. ``time_s``, ``key`` and ``value`` are needed; ``unit``, ``sensor``, ``quality``,
``priority``, ``lifespan_ms``, ``latitude_deg``, ``longitude_deg``, ``altitude_m``, ``heading_deg`` and ``accuracy_m``
may follow; an empty cell is a missing one. A value that is JSON (a number, true, a list, …) is read as JSON, every
other one is a text. Times may not decrease; the time of the first row is the start.

Options: ``file``, ``rate`` (2 plays twice as fast), ``loop``, ``key_prefix`` (put before each key, with its own ``/``),
``accuracy_m`` (accuracy of positions whose row gives none).
"""

import csv
import json
import math
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TextIO

from meshnode.sensors.contract import DriverContext, Sample
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


class CsvReplay:
    """Replays the rows of one file."""

    def __init__(
        self, path: Path, rate: float = 1.0, loop: bool = False, key_prefix: str = "", accuracy_m: float = 10.0
    ) -> None:
        self._path = path
        self._rate = rate
        self._loop = loop
        self._key_prefix = key_prefix
        self._accuracy_m = accuracy_m
        self._line = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. :raises ConfigError: one is wrong, or the header of the file is."""
        read = Options("csv", options)
        if not read.has("file"):
            raise ConfigError("sensor driver 'csv': option 'file' is missing: name the file to replay")
        path = read.file("file", context.folder, context.folder)
        rate = read.number("rate", 1.0, 0.01, 100.0)
        loop = read.flag("loop", False)
        key_prefix = read.text("key_prefix", "-") if read.has("key_prefix") else ""
        accuracy_m = read.number("accuracy_m", 10.0, 0.0, 1e6)
        read.finish()
        driver = cls(path, rate, loop, key_prefix, accuracy_m)
        for _ in driver._rows():  # The header and the first row are checked before the node starts.
            break
        return driver

    def samples(self) -> Generator[Sample, None, None]:
        """One sample per row."""
        lap_starts_s = 0.0
        while True:
            origin_s = previous_s = None
            step_s = due_s = 0.0
            for row in self._rows():
                time_s = self._number(row, "time_s", -1e12, 1e12)
                if time_s is None:
                    self._fail("'time_s' is empty: give seconds")
                if previous_s is not None and time_s < previous_s:
                    self._fail(f"time goes back from {previous_s:g} to {time_s:g}: sort the rows")
                origin_s = time_s if origin_s is None else origin_s
                step_s = time_s - previous_s if previous_s is not None and time_s > previous_s else step_s
                previous_s = time_s
                due_s = lap_starts_s + (time_s - origin_s) / self._rate
                yield self._sample(due_s, row)
            if not self._loop or previous_s is None:
                return
            # Rows that all have the same time give no step. Without a step, time would not pass in a loop.
            lap_starts_s = due_s + (step_s or 1.0) / self._rate

    def _sample(self, due_s: float, row: dict[str, str]) -> Sample:
        try:
            key = checked_key(self._key_prefix + row["key"])
        except InvalidKey as error:
            self._fail(str(error), error)
        quality = self._number(row, "quality", 0.0, 1.0)
        priority = self._number(row, "priority", 0, 7)
        for name in ("unit", "sensor"):
            if len(row.get(name, "")) > MAX_TEXT_CHARS:
                self._fail(f"{name!r} is longer than {MAX_TEXT_CHARS} characters: shorten it")
        return Sample(
            due_s,
            key,
            _value(row["value"]),
            row.get("unit") or "1",
            row.get("sensor") or "csv",
            self._position(row),
            1.0 if quality is None else quality,
            3 if priority is None else int(priority),
            int(self._number(row, "lifespan_ms", 0, MAX_LIFESPAN_MS) or 0),
        )

    def _position(self, row: dict[str, str]) -> Position | None:
        latitude_deg = self._number(row, "latitude_deg", -90, 90)
        longitude_deg = self._number(row, "longitude_deg", -180, 180)
        altitude_m = self._number(row, "altitude_m", -1e5, 1e7)
        heading_deg = self._number(row, "heading_deg", 0, 360)
        accuracy_m = self._number(row, "accuracy_m", 0, 1e7)
        if latitude_deg is None or longitude_deg is None:
            if latitude_deg is not longitude_deg:
                self._fail("one of 'latitude_deg' and 'longitude_deg' is empty: give both or none")
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
            value = float(text)
        except ValueError:
            value = math.nan
        if not at_least <= value <= at_most:
            self._fail(f"{name!r} is {text[:40]!r}: give a number from {at_least:g} to {at_most:g}")
        return value

    def _rows(self) -> Iterator[dict[str, str]]:
        self._line = 0
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(self._lines(file), strict=True)
                header = next(rows, None)
                self._check_header(header)
                assert header is not None
                for cells in rows:
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        self._fail(f"the row has {len(cells)} cells, the header {len(header)}: add or remove some")
                    yield dict(zip(header, cells, strict=True))
        except UnicodeDecodeError as error:
            self._line += 1
            self._fail("it is not UTF-8: save it as such", error)
        except csv.Error as error:
            self._fail(f"the row is malformed ({error}): check its quotes", error)
        except OSError as error:
            raise SourceUnavailable(f"file {self._path} can't be read: {error.strerror or error}") from error

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(MAX_LINE_CHARS + 1):
            self._line += 1
            if len(line) > MAX_LINE_CHARS:
                self._fail(f"the line is longer than {MAX_LINE_CHARS} characters: this is not a CSV file of readings")
            if "\0" in line:
                self._fail("the line has a NUL character: this is not a text file")
            yield line

    def _check_header(self, header: list[str] | None) -> None:
        if not header:
            self._line = 1
            self._fail(f"the header is missing: begin the file with {','.join(_NEEDED)}")
        for name in _NEEDED:
            if name not in header:
                self._fail(f"column {name!r} is missing: the header must name {', '.join(_NEEDED)}")
        for index, name in enumerate(header):
            if name not in _NEEDED and name not in _OPTIONAL:
                self._fail(f"column {name[:40]!r} is unknown: use {', '.join((*_NEEDED, *_OPTIONAL))}")
            if name in header[:index]:
                self._fail(f"column {name!r} appears twice: remove one")

    def _fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        raise SourceUnavailable(f"file {self._path}, line {self._line}: {fault}") from cause


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # An integer beyond 64 bits can travel only as a float.
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value
