"""Reads SUMO floating-car data (``--fcd-output``, plain or gzip) as a stream of vehicles and time steps.

Invariants:

- Memory is bounded whatever the size of the file: it is parsed piece by piece, and a single piece of markup that is
  longer than ``MAX_MARKUP_BYTES`` is refused.
- A document type is refused, and every entity with it: the format has none, and entity expansion is an attack.
- Rows come in the order of the file, which is the order of time; a file that goes back in time is malformed.
- Everything before a fault is yielded before the fault is raised. The rows of a time step that the file cuts off come
  without the step itself.
- Only the vehicles and the span of time that are asked for are checked.
- One bad row does not spoil the others: a caller that names a ``skipped`` is told of it.

Format: https://sumo.dlr.de/docs/Simulation/Output/FCDOutput.html. A vehicle needs ``id``, ``x`` and ``y``; ``speed``
and ``angle`` may be missing (``--fcd-output.attributes``). Times are seconds or, with ``--human-readable-time``,
``[days:]hh:mm:ss``. Whether positions have to be degrees (``--fcd-output.geo``) is for the caller to decide.
"""

import gzip
import math
import re
import zlib
from collections.abc import Callable, Container, Generator, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple, NoReturn
from xml.parsers import expat

from protocols.base.errors import SourceUnavailable

MAX_MARKUP_BYTES: Final = 256 * 1024
MAX_VEHICLES: Final = 100_000
"""The most vehicles of one file that a caller tells apart, so that a file can't fill the memory with ids."""
_PIECE_BYTES: Final = 64 * 1024
_MAX_SHOWN_CHARS: Final = 40
_NO_VALUE: Final = -(2.0**30)
"""What SUMO writes for a number that it doesn't know (``INVALID_DOUBLE_VALUE``), of vehicles that are off the road."""
_CLOCK: Final = re.compile(r"(-)?(?:(\d{1,9}):)?(\d{1,9}):([0-5]?\d):([0-5]?\d(?:\.\d*)?)", re.ASCII)
"""Days if there are more than one, hours, minutes and seconds."""
_CSV_HEADERS: Final = (b"timestep_time", b"vehicle_id", b"vehicle_x")
"""Columns of which one begins the CSV that SUMO 1.24 and later write for a file name that ends in ``.csv``."""


class TraceInvalid(SourceUnavailable):
    """A file of floating-car data can't be read, is cut off or is malformed; names file, line and column."""


class TraceCutOff(TraceInvalid):
    """The file ends too early. All time steps before the end were yielded."""


class TimeStep(NamedTuple):
    """One time step. The place is that of its opening tag."""

    time_s: float
    line: int
    column: int


class VehicleRow(NamedTuple):
    """One vehicle in one time step."""

    step: TimeStep
    vehicle: str
    x: float
    """Longitude in degrees, or metres to the east."""
    y: float
    """Latitude in degrees, or metres to the north."""
    speed_mps: float | None
    """None: the file gives none."""
    heading_deg: float | None
    """From 0 to below 360, clockwise from north. None: the file gives none."""
    line: int
    column: int

    @property
    def may_be_degrees(self) -> bool:
        """Whether ``x`` and ``y`` are within the bounds of longitude and latitude."""
        return -180 <= self.x <= 180 and -90 <= self.y <= 90


class BadRow(NamedTuple):
    """A vehicle in a time step whose attributes make no sense."""

    vehicle: str | None
    """None: it has no ``id``."""
    fault: str
    line: int
    column: int


Skipped = Callable[[BadRow], None]
"""Is told of a row that is left out, as soon as it is read: before the rows ahead of it are yielded."""


def rows(
    path: Path,
    wanted: Container[str] | None = None,
    from_s: float = -math.inf,
    until_s: float = math.inf,
    skipped: Skipped | None = None,
) -> Generator[VehicleRow | TimeStep]:
    """The rows of the ``wanted`` vehicles (None: of all) from ``from_s`` on, and each time step after its vehicles.

    Stops after the first time step at or after ``until_s``; what follows it in the file is not looked at.

    :raises TraceCutOff: the file ends before its last tag.
    :raises TraceInvalid: it can't be read or is malformed. Without ``skipped``, one bad row is enough.
    """
    parser = _Parser(path, wanted, from_s, until_s, skipped)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw
            # One read of the compressed file at a time: otherwise what was unpacked before a cut would be lost.
            while piece := stream.read1(_PIECE_BYTES):
                yield from parser.feed(piece)
                if parser.over:
                    return
            yield from parser.feed(b"")
    except EOFError as error:
        parser.cut_off("the compressed file is cut off: copy it again", error)
    except (zlib.error, gzip.BadGzipFile) as error:
        parser.fail(f"the compressed file is damaged ({error}): copy it again", error)
    except OSError as error:
        raise TraceInvalid(f"trace {path} can't be read: {error.strerror or error}") from error


def shown_s(time_s: float) -> str:
    """A time in seconds with as many digits as it takes to tell it from any other."""
    return repr(time_s).removesuffix(".0")


def located(path: Path, row: VehicleRow | TimeStep | BadRow, fault: str) -> str:
    """``fault`` as a message with the file, the line and the column of ``row``."""
    return _located(path, row.line, row.column, fault)


def _located(path: Path, line: int, column: int, fault: str) -> str:
    return f"trace {path}, line {line}, column {column}: {fault}"


class _Over(Exception):
    """The last time step that is wanted has ended."""


class _Parser:
    def __init__(
        self, path: Path, wanted: Container[str] | None, from_s: float, until_s: float, skipped: Skipped | None
    ) -> None:
        self.over = False
        """Nothing more is wanted of the file."""
        self._path = path
        self._wanted = wanted
        self._from_s, self._until_s = from_s, until_s
        self._skipped = skipped
        self._step: TimeStep | None = None
        """The time step that has begun and not ended."""
        self._time_s = -math.inf
        """The time of the newest time step."""
        self._whole_s: float | None = None
        """The time of the newest time step that has ended."""
        self._root_seen = False
        self._fed_bytes = 0
        self._found: list[VehicleRow | TimeStep] = []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def feed(self, piece: bytes) -> Iterator[VehicleRow | TimeStep]:
        """Yield the rows that ``piece`` completes. An empty piece ends the file. :raises TraceInvalid: after them."""
        self._found = []
        try:
            self._parse(piece)
        except TraceInvalid:
            yield from self._found
            raise
        yield from self._found

    def _parse(self, piece: bytes) -> None:
        if self._fed_bytes == 0:
            self._refuse_other_formats(piece)
        try:
            self._parser.Parse(piece, not piece)
        except _Over:
            self.over = True
            return
        except expat.ExpatError as error:
            way_out = "it may be cut off, export or copy it again"
            if not piece:
                self.cut_off(f"it is not well-formed XML (it ends before its last tag): {way_out}", error)
            what = expat.ErrorString(error.code)
            self.fail(f"it is not well-formed XML ({what}): {way_out}", error)
        self._fed_bytes += len(piece)
        if self._fed_bytes - self._parser.CurrentByteIndex > MAX_MARKUP_BYTES:
            self.fail(f"one tag is longer than {MAX_MARKUP_BYTES} bytes: this is not floating-car data")

    def fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        """:raises TraceInvalid: with the place that the parser has reached."""
        raise TraceInvalid(_located(self._path, *self._place(), fault)) from cause

    def cut_off(self, fault: str, cause: Exception) -> NoReturn:
        """:raises TraceCutOff: with the place that the parser has reached, and the last whole time step."""
        whole = "; it has no whole time step" if self._whole_s is None else ""
        until = f"; its whole time steps end at {shown_s(self._whole_s)} s" if self._whole_s is not None else whole
        raise TraceCutOff(_located(self._path, *self._place(), fault + until)) from cause

    def _refuse_other_formats(self, head: bytes) -> None:
        given = None
        if head.startswith(b"PAR1"):
            given = "Parquet"
        elif head.removeprefix(b"\xef\xbb\xbf").startswith(_CSV_HEADERS):
            given = "SUMO's CSV"
        elif head.startswith(b"PK\x03\x04"):
            self.fail("this is a ZIP archive: unpack it, or compress the trace with gzip")
        if given is not None:
            self.fail(f"this is {given}, but XML is wanted: give sumo --fcd-output a name that ends in .xml or .xml.gz")

    def _place(self) -> tuple[int, int]:
        """Line and column, both from 1."""
        return self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber + 1

    def _refuse_doctype(self, *_: object) -> None:
        self.fail("it declares a document type, which floating-car data never does: remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "vehicle":
            if self._step is None:
                self.fail("a vehicle stands outside any time step")
            if self._step.time_s >= self._from_s:
                self._add(self._step, attributes)
        elif name == "timestep":
            if self._step is not None:
                self.fail("a time step begins inside another")
            time_s = self._time(attributes)
            if time_s < self._time_s:
                self.fail(f"time goes back from {shown_s(self._time_s)} to {shown_s(time_s)} s: sort the time steps")
            self._time_s = time_s
            self._step = TimeStep(time_s, *self._place())
        elif not self._root_seen and name != "fcd-export":
            self.fail(f"the root is <{name[:40]}>, not <fcd-export>: give a file made with sumo --fcd-output")
        self._root_seen = True

    def _end(self, name: str) -> None:
        if name == "timestep" and self._step is not None:
            self._found.append(self._step)
            self._step, self._whole_s = None, self._time_s
            if self._time_s >= self._until_s:
                raise _Over

    def _add(self, step: TimeStep, attributes: dict[str, str]) -> None:
        vehicle = attributes.get("id")
        if vehicle is None:
            self._leave_out(None, "a vehicle has no attribute 'id'")
            return
        if self._wanted is not None and vehicle not in self._wanted:
            return
        try:
            x, y = _number(attributes, "x"), _number(attributes, "y")
            speed_mps = _number(attributes, "speed") if "speed" in attributes else None
            heading_deg = _number(attributes, "angle") if "angle" in attributes else None
        except ValueError as error:
            self._leave_out(vehicle, str(error))
            return
        if x == _NO_VALUE or y == _NO_VALUE:
            self._leave_out(vehicle, f"x={x:.10g} y={y:.10g} is what SUMO writes for a vehicle that is nowhere")
            return
        self._found.append(
            VehicleRow(
                step,
                vehicle,
                x,
                y,
                None if speed_mps == _NO_VALUE else speed_mps,
                None if heading_deg is None or heading_deg == _NO_VALUE else heading_deg % 360.0,
                *self._place(),
            )
        )

    def _leave_out(self, vehicle: str | None, fault: str) -> None:
        if vehicle is not None:
            fault = f"vehicle {vehicle[:_MAX_SHOWN_CHARS]!r}: {fault}"
        if self._skipped is None:
            self.fail(fault)
        self._skipped(BadRow(vehicle, fault, *self._place()))

    def _time(self, attributes: dict[str, str]) -> float:
        clock = _CLOCK.fullmatch(attributes.get("time", "").strip())
        if clock is None:
            try:
                return _number(attributes, "time")
            except ValueError as error:
                self.fail(f"{error} of seconds, or [days:]hh:mm:ss")
        sign, days, hours, minutes, seconds = clock.groups()
        time_s = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)
        return -time_s if sign else time_s


def _number(attributes: dict[str, str], name: str) -> float:
    """:raises ValueError: it is missing, or no finite number; says which."""
    text = attributes.get(name)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        given = "missing" if text is None else repr(text[:_MAX_SHOWN_CHARS])
        raise ValueError(f"attribute {name!r} is {given}: expected a number")
    return value
