"""Reads SUMO floating-car data (``--fcd-output``, plain or gzip) as a stream of fixes.

Invariants:

- Memory is bounded whatever the size of the file: it is parsed piece by piece, and a single piece of markup that is
  longer than ``MAX_MARKUP_BYTES`` is refused.
- A document type is refused, and with it every entity: the format has none, and expansion is an attack.
- Fixes come in the order of the file, which is the order of time; a file that goes back in time is malformed.

Format: https://sumo.dlr.de/docs/Simulation/Output/FCDOutput.html. Positions must be WGS 84 (``--fcd-output.geo``).
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn
from xml.parsers import expat

from protocols.base.errors import ConfigError

MAX_MARKUP_BYTES: Final = 256 * 1024
MAX_VEHICLES: Final = 100_000
"""Vehicles that are told apart when the longest presence is looked for."""
_PIECE_BYTES: Final = 64 * 1024


class Fix(NamedTuple):
    """One vehicle at one instant."""

    time_s: float
    """Of the simulation."""
    vehicle: str
    latitude_deg: float
    longitude_deg: float
    speed_mps: float
    heading_deg: float


class Presence(NamedTuple):
    """From when to when a vehicle is in a trace."""

    vehicle: str
    first_s: float
    last_s: float


def fixes(path: Path, vehicle: str | None = None, start_s: float = -math.inf) -> Iterator[Fix]:
    """The fixes of one vehicle (None: of all) from ``start_s`` on.

    :raises ConfigError: the file can't be read, is cut off or malformed; names file, line and column.
    """
    parser = _TraceParser(path, vehicle, start_s)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw
            while piece := stream.read(_PIECE_BYTES):
                yield from parser.feed(piece)
            yield from parser.feed(b"", last=True)
    except EOFError as error:
        parser.fail("the compressed file is cut off: copy it again", error)
    except (zlib.error, gzip.BadGzipFile) as error:
        parser.fail(f"the compressed file is damaged ({error}): copy it again", error)
    except OSError as error:
        raise ConfigError(f"trace {path} can't be read: {error.strerror or error}") from error


def presences(path: Path) -> list[Presence]:
    """When each vehicle is in the trace, in order of first appearance. Reads the whole file.

    :raises ConfigError: as :func:`fixes`, or the trace has more than ``MAX_VEHICLES`` vehicles.
    """
    seen: dict[str, list[float]] = {}
    for fix in fixes(path):
        span = seen.get(fix.vehicle)
        if span is not None:
            span[1] = fix.time_s
        elif len(seen) < MAX_VEHICLES:
            seen[fix.vehicle] = [fix.time_s, fix.time_s]
        else:
            raise ConfigError(f"trace {path} has more than {MAX_VEHICLES} vehicles: cut it, or name the vehicle")
    return [Presence(vehicle, first_s, last_s) for vehicle, (first_s, last_s) in seen.items()]


class _TraceParser:
    def __init__(self, path: Path, vehicle: str | None, start_s: float) -> None:
        self._path = path
        self._vehicle = vehicle
        self._start_s = start_s
        self._time_s: float | None = None
        self._root_seen = False
        self._fed_bytes = 0
        self._fixes: list[Fix] = []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def feed(self, piece: bytes, last: bool = False) -> list[Fix]:
        """The fixes that ``piece`` completes."""
        self._fixes = []
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            what = "ends before its last tag" if last else expat.ErrorString(error.code)
            self.fail(f"it is not well-formed XML ({what}): it may be cut off, export or copy it again", error)
        self._fed_bytes += len(piece)
        if self._fed_bytes - self._parser.CurrentByteIndex > MAX_MARKUP_BYTES:
            self.fail(f"one tag is longer than {MAX_MARKUP_BYTES} bytes: this is no floating-car data")
        return self._fixes

    def fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        """:raises ConfigError: with file, line and column."""
        line, column = self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber
        raise ConfigError(f"trace {self._path}, line {line}, column {column + 1}: {fault}") from cause

    def _refuse_doctype(self, *_: object) -> None:
        self.fail("it declares a document type, which floating-car data never does: remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "vehicle":
            self._add(attributes)
        elif name == "timestep":
            time_s = self._number(attributes, "time")
            if self._time_s is not None and time_s < self._time_s:
                self.fail(f"time goes back from {self._time_s:g} to {time_s:g}: sort the time steps")
            self._time_s = time_s
        elif not self._root_seen and name != "fcd-export":
            self.fail(f"the root is <{name[:40]}>, not <fcd-export>: give a file made with sumo --fcd-output")
        self._root_seen = True

    def _add(self, attributes: dict[str, str]) -> None:
        if self._time_s is None:
            self.fail("a vehicle stands outside any time step")
        if self._time_s < self._start_s:
            return
        vehicle = attributes.get("id")
        if vehicle is None:
            self.fail("a vehicle has no attribute 'id'")
        if self._vehicle is not None and vehicle != self._vehicle:
            return
        longitude_deg, latitude_deg = self._number(attributes, "x"), self._number(attributes, "y")
        if not (-180 <= longitude_deg <= 180 and -90 <= latitude_deg <= 90):
            self.fail(
                f"x={longitude_deg:g} y={latitude_deg:g} of vehicle {vehicle[:60]!r} are not degrees: "
                "export again with sumo --fcd-output.geo"
            )
        self._fixes.append(
            Fix(
                self._time_s,
                vehicle,
                latitude_deg,
                longitude_deg,
                self._number(attributes, "speed"),
                self._number(attributes, "angle") % 360.0,
            )
        )

    def _number(self, attributes: dict[str, str], name: str) -> float:
        text = attributes.get(name)
        try:
            value = float(text) if text is not None else None
        except ValueError:
            value = None
        if value is None or not math.isfinite(value):
            self.fail(f"attribute {name!r} is {'missing' if text is None else repr(text[:40])}: expected a number")
        return value
