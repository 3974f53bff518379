"""Reads SUMO floating-car data (``--fcd-output``, plain or gzip) as a stream of vehicles and time steps.

Invariants:

- Memory is bounded whatever the size of the file: it is parsed piece by piece, and a single piece of markup that is
  longer than ``MAX_MARKUP_BYTES`` is refused.
- A document type is refused, and every entity with it: the format has none, and entity expansion is an attack.
- Rows come in the order of the file, which is the order of time; a file that goes back in time is malformed.
- Everything before a fault is yielded before the fault is raised.
- Only the vehicles and the span of time that are asked for are checked.

Format: https://sumo.dlr.de/docs/Simulation/Output/FCDOutput.html. A vehicle needs ``id``, ``x`` and ``y``; ``speed``
and ``angle`` may be missing. Whether positions have to be degrees (``--fcd-output.geo``) is for the caller to decide.
"""

import gzip
import math
import zlib
from collections.abc import Container, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn
from xml.parsers import expat

from protocols.base.errors import SourceUnavailable

MAX_MARKUP_BYTES: Final = 256 * 1024
MAX_VEHICLES: Final = 100_000
"""The most vehicles of one file that a caller tells apart, so that a file can't fill the memory with ids."""
_PIECE_BYTES: Final = 64 * 1024
_MAX_SHOWN_CHARS: Final = 40


class TraceInvalid(SourceUnavailable):
    """A file of floating-car data can't be read, is cut off or is malformed; names file, line and column."""


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


def rows(
    path: Path, wanted: Container[str] | None = None, from_s: float = -math.inf, until_s: float = math.inf
) -> Generator[VehicleRow | TimeStep]:
    """The rows of the ``wanted`` vehicles (None: of all) from ``from_s`` on, and each time step after its vehicles.

    Stops after the first time step at or after ``until_s``; what follows it in the file is not looked at.

    :raises TraceInvalid: the file can't be read, is cut off or malformed.
    """
    parser = _Parser(path, wanted, from_s, until_s)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw
            while piece := stream.read(_PIECE_BYTES):
                yield from parser.feed(piece)
                if parser.over:
                    return
            yield from parser.feed(b"")
    except EOFError as error:
        parser.fail("the compressed file is cut off: copy it again", error)
    except (zlib.error, gzip.BadGzipFile) as error:
        parser.fail(f"the compressed file is damaged ({error}): copy it again", error)
    except OSError as error:
        raise TraceInvalid(f"trace {path} can't be read: {error.strerror or error}") from error


def located(path: Path, row: VehicleRow | TimeStep, fault: str) -> str:
    """``fault`` as a message with the file, the line and the column of ``row``."""
    return _located(path, row.line, row.column, fault)


def _located(path: Path, line: int, column: int, fault: str) -> str:
    return f"trace {path}, line {line}, column {column}: {fault}"


class _Over(Exception):
    """The last time step that is wanted has ended."""


class _Parser:
    def __init__(self, path: Path, wanted: Container[str] | None, from_s: float, until_s: float) -> None:
        self.over = False
        """Nothing more is wanted of the file."""
        self._path = path
        self._wanted = wanted
        self._from_s, self._until_s = from_s, until_s
        self._step: TimeStep | None = None
        """The time step that has begun and not ended."""
        self._time_s = -math.inf
        """The time of the newest time step."""
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
        try:
            self._parser.Parse(piece, not piece)
        except _Over:
            self.over = True
            return
        except expat.ExpatError as error:
            what = expat.ErrorString(error.code) if piece else "it ends before its last tag"
            self.fail(f"it is not well-formed XML ({what}): it may be cut off, export or copy it again", error)
        self._fed_bytes += len(piece)
        if self._fed_bytes - self._parser.CurrentByteIndex > MAX_MARKUP_BYTES:
            self.fail(f"one tag is longer than {MAX_MARKUP_BYTES} bytes: this is not floating-car data")

    def fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        """:raises TraceInvalid: with the place that the parser has reached."""
        raise TraceInvalid(_located(self._path, *self._place(), fault)) from cause

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
            time_s = self._number(attributes, "time")
            if time_s < self._time_s:
                self.fail(f"time goes back from {self._time_s:g} to {time_s:g} s: sort the time steps")
            self._time_s = time_s
            self._step = TimeStep(time_s, *self._place())
        elif not self._root_seen and name != "fcd-export":
            self.fail(f"the root is <{name[:40]}>, not <fcd-export>: give a file made with sumo --fcd-output")
        self._root_seen = True

    def _end(self, name: str) -> None:
        if name == "timestep" and self._step is not None:
            self._found.append(self._step)
            self._step = None
            if self._time_s >= self._until_s:
                raise _Over

    def _add(self, step: TimeStep, attributes: dict[str, str]) -> None:
        vehicle = attributes.get("id")
        if vehicle is None:
            self.fail("a vehicle has no attribute 'id'")
        if self._wanted is not None and vehicle not in self._wanted:
            return
        self._found.append(
            VehicleRow(
                step,
                vehicle,
                self._number(attributes, "x"),
                self._number(attributes, "y"),
                self._number(attributes, "speed") if "speed" in attributes else None,
                self._number(attributes, "angle") % 360.0 if "angle" in attributes else None,
                *self._place(),
            )
        )

    def _number(self, attributes: dict[str, str], name: str) -> float:
        text = attributes.get(name)
        try:
            value = float(text) if text is not None else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            given = "missing" if text is None else repr(text[:_MAX_SHOWN_CHARS])
            self.fail(f"attribute {name!r} is {given}: expected a number")
        return value
