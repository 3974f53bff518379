"""Reads SUMO floating-car files (``--fcd-output``, plain or gzip), time step by time step.

Invariants:

- Memory is bounded whatever the size of the file: by the vehicles that are asked for. A single tag longer than
  ``MAX_MARKUP_BYTES`` is refused, and so is a document type, whose entities could grow without end.
- Only the span of time that is asked for is judged; in it, everything is: what is cut off, goes back in time, is no
  number or jumps is an error that names file, line and value.

Format: https://sumo.dlr.de/docs/Simulation/Output/FCDOutput.html. Of a vehicle ``id``, ``x`` and ``y`` are needed;
``speed`` and ``angle`` are used when they are there.
"""

import gzip
import math
import zlib
from collections.abc import Container, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn
from xml.parsers import expat

from sims.errors import TraceError
from sims.roads.geodesy import Plane
from sims.scenario.schema import nearest, shown

MAX_MARKUP_BYTES: Final = 256 * 1024
MAX_VEHICLES: Final = 100_000
"""Ids that are told apart when one is looked for."""
MAX_SPEED_MPS: Final = 100.0
"""Between two time steps, whatever the file says of speeds."""
JUMP_M: Final = 10.0
"""Further than a vehicle's own speeds explain. In the trace of Ingolstadt nobody who drives exceeds them by more than
4 m in a step, and nobody whom SUMO moved out of a jam by less than 18 m."""
_ACCELERATION_MPS2: Final = 5.0
"""Between two steps a vehicle may have been faster than at either: from a to b and back takes ``a t²/4``."""
_PIECE_BYTES: Final = 64 * 1024


class Sample(NamedTuple):
    """One vehicle at one time step."""

    x_m: float
    y_m: float
    speed_mps: float | None
    heading_deg: float | None
    jumped: bool
    """Since the time step before."""


class Step(NamedTuple):
    """One time step: vehicles by id, in the order of the file."""

    time_s: float
    vehicles: dict[str, Sample]


class Span(NamedTuple):
    """What of a file is used."""

    path: Path
    from_s: float
    until_s: float
    plane: Plane | None
    """None: the file has metres."""
    may_jump: bool


def chosen(span: Span, count: int, named: tuple[str, ...]) -> list[str]:
    """The ids of the vehicles that are used: ``named``, or the first ``count`` that appear. Reads the whole span.

    :raises TraceError: it has too few vehicles or can't be used.
    """
    wanted: dict[str, None] = dict.fromkeys(named)
    seen: dict[str, None] = {}
    for step in steps(span, _FirstComers(count) if not named else wanted):
        if step.time_s < span.until_s:
            seen.update(dict.fromkeys(step.vehicles))
    if named:
        for vehicle in named:
            if vehicle not in seen:
                known = sorted(_ids(span))
                raise TraceError(
                    f"trace {span.path} has no vehicle {shown(vehicle)} from {span.from_s:g} to {span.until_s:g} s"
                    f"{nearest(vehicle, known)}"
                )
        return list(named)
    if len(seen) < count:
        raise TraceError(
            f"trace {span.path} has {len(seen)} vehicles from {span.from_s:g} to {span.until_s:g} s, but the group has "
            f"count = {count}: lower it, or take another time"
        )
    return list(seen)


class _FirstComers(Container[str]):
    """Accepts the first ids that it is asked for, and stays with them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._accepted: set[str] = set()

    def __contains__(self, vehicle: object) -> bool:
        if len(self._accepted) < self._most:
            self._accepted.add(str(vehicle))
        return vehicle in self._accepted


class _Everybody(Container[str]):
    def __contains__(self, vehicle: object) -> bool:
        return True


def _ids(span: Span) -> set[str]:
    ids: set[str] = set()
    for step in steps(span._replace(may_jump=True), _Everybody()):
        ids.update(step.vehicles)
        if len(ids) > MAX_VEHICLES:
            break
    return ids


def steps(span: Span, wanted: Container[str]) -> Iterator[Step]:
    """The time steps of a span, up to the first at or after its end; of their vehicles those that are wanted.

    :raises TraceError: the file can't be used; names it, the line and the value.
    """
    parser = _StepParser(span, wanted)
    with closing(_pieces(span.path, parser)) as pieces:
        for piece in pieces:
            for step in parser.feed(piece):
                yield step
                if step.time_s >= span.until_s:
                    return
    ends_s = "is empty" if parser.time_s is None else f"ends at {parser.time_s:g} s"
    raise TraceError(
        f"trace {span.path} {ends_s}, but is needed from {span.from_s:g} until {span.until_s:g} s: "
        "lower from_s or duration_s"
    )


def _pieces(path: Path, parser: "_StepParser") -> Generator[bytes]:
    """The XML, the last piece empty."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw
            while piece := stream.read(_PIECE_BYTES):
                yield piece
        yield b""
    except EOFError as error:
        parser.fail("the compressed file is cut off: copy it again", error)
    except (zlib.error, gzip.BadGzipFile) as error:
        parser.fail(f"the compressed file is damaged ({error}): copy it again", error)
    except OSError as error:
        raise TraceError(f"trace {path} can't be read: {error.strerror or error}") from error


class _StepParser:
    def __init__(self, span: Span, wanted: Container[str]) -> None:
        self._span = span
        self._wanted = wanted
        self.time_s: float | None = None
        """Of the newest time step."""
        self._root_seen = False
        self._over = False
        self._fed_bytes = 0
        self._vehicles: dict[str, Sample] = {}
        self._before: Step | None = None
        self._steps: list[Step] = []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def feed(self, piece: bytes) -> list[Step]:
        """The steps that ``piece`` completes; an empty one is the last."""
        self._steps = []
        try:
            self._parser.Parse(piece, not piece)
        except expat.ExpatError as error:
            if self._over:
                return self._steps
            what = expat.ErrorString(error.code) if piece else "it ends before its last tag"
            self.fail(f"it is not well-formed XML ({what}): it may be cut off, export or copy it again", error)
        self._fed_bytes += len(piece)
        if self._fed_bytes - self._parser.CurrentByteIndex > MAX_MARKUP_BYTES:
            self.fail(f"one tag is longer than {MAX_MARKUP_BYTES} bytes: this is no floating-car file")
        return self._steps

    def fail(self, fault: str, cause: Exception | None = None) -> NoReturn:
        """:raises TraceError: with file, line and column."""
        line, column = self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber
        raise TraceError(f"trace {self._span.path}, line {line}, column {column + 1}: {fault}") from cause

    def _refuse_doctype(self, *_: object) -> None:
        self.fail("it declares a document type, which a floating-car file never does: remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "vehicle":
            if self.time_s is None:
                self.fail("a vehicle stands outside any time step")
            if self.time_s >= self._span.from_s:
                self._add(self.time_s, attributes)
        elif name == "timestep":
            time_s = self._number(attributes, "time")
            if self.time_s is not None and time_s <= self.time_s:
                self.fail(f"time goes from {self.time_s:g} to {time_s:g} s: sort the time steps")
            self.time_s = time_s
            self._vehicles = {}
        elif not self._root_seen and name != "fcd-export":
            self.fail(f"the root is <{name[:40]}>, not <fcd-export>: give a file made with sumo --fcd-output")
        self._root_seen = True

    def _end(self, name: str) -> None:
        if name == "timestep" and self.time_s is not None and self.time_s >= self._span.from_s:
            self._before = Step(self.time_s, self._vehicles)
            self._steps.append(self._before)
            if self.time_s >= self._span.until_s:  # the rest of the piece is judged by nobody
                self._over = True
                self._parser.StartElementHandler = self._parser.EndElementHandler = None

    def _add(self, time_s: float, attributes: dict[str, str]) -> None:
        vehicle = attributes.get("id")
        if vehicle is None:
            self.fail("a vehicle has no attribute 'id'")
        if vehicle not in self._wanted:
            return
        if vehicle in self._vehicles:
            self.fail(f"vehicle {shown(vehicle)} is twice in the time step of {time_s:g} s")
        x_m, y_m = self._place(vehicle, attributes)
        speed_mps = self._number(attributes, "speed") if "speed" in attributes else None
        heading_deg = self._number(attributes, "angle") % 360.0 if "angle" in attributes else None
        jumped = self._before is not None and self._jumps(self._before, time_s, vehicle, x_m, y_m, speed_mps)
        self._vehicles[vehicle] = Sample(x_m, y_m, speed_mps, heading_deg, jumped)

    def _place(self, vehicle: str, attributes: dict[str, str]) -> tuple[float, float]:
        x, y = self._number(attributes, "x"), self._number(attributes, "y")
        if self._span.plane is None:
            return x, y
        if not (-180 <= x <= 180 and -90 <= y <= 90):
            self.fail(
                f"x={x:g} y={y:g} of vehicle {shown(vehicle)} are not degrees: set geo = false if the file has metres, "
                "or export again with sumo --fcd-output.geo"
            )
        return self._span.plane.metres(y, x)

    def _jumps(
        self, before: Step, time_s: float, vehicle: str, x_m: float, y_m: float, speed_mps: float | None
    ) -> bool:
        sample = before.vehicles.get(vehicle)
        if sample is None:  # it came, or comes back after an absence
            return False
        way_m, took_s = math.hypot(x_m - sample.x_m, y_m - sample.y_m), time_s - before.time_s
        possible_m = MAX_SPEED_MPS * took_s
        if speed_mps is not None and sample.speed_mps is not None:
            driven_m = max(speed_mps, sample.speed_mps) * took_s + _ACCELERATION_MPS2 * took_s**2 / 4
            possible_m = min(possible_m, driven_m)
        if way_m <= possible_m + JUMP_M:
            return False
        if not self._span.may_jump:
            self.fail(
                f"vehicle {shown(vehicle)} jumps {way_m:.0f} m from {before.time_s:g} to {time_s:g} s: take other "
                "vehicles or another time, export with sumo --time-to-teleport -1, or set jumps = 'reappear'"
            )
        return True

    def _number(self, attributes: dict[str, str], name: str) -> float:
        text = attributes.get(name)
        try:
            value = float(text) if text is not None else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(f"attribute {name!r} is {'missing' if text is None else shown(text)}: expected a number")
        return value
