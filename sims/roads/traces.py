"""Follows vehicles through SUMO floating-car files, time step by time step, and judges whether they can be followed.

Invariants:

- Memory is bounded whatever the size of the file: by the vehicles that are asked for.
- Only the span of time that is asked for is judged. In it, a file that is cut off, a time that does not grow, metres
  for degrees (or the other way round) and a vehicle that jumps are errors that name file, line and value.
- A row that makes no sense is left out and counted: its vehicle is absent at that time step.
- Speed and heading that the file does not give come from the positions, as in a node (:mod:`meshnode.sumo.motion`).
"""

import math
from collections.abc import Container, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from meshnode.sumo.floating_car import (
    MAX_VEHICLES,
    BadRow,
    Skipped,
    TraceCutOff,
    TraceInvalid,
    VehicleRow,
    located,
    rows,
    shown_s,
)
from meshnode.sumo.geodesy import Plane
from meshnode.sumo.motion import (
    JUMP_M,
    MAX_SPEED_MPS,
    Motion,
    Moved,
    impossible,
    looks_like_metres,
    way_in_degrees,
    way_in_metres,
)
from sims.errors import TraceError
from sims.scenario.schema import nearest, shown

_ACCELERATION_MPS2: Final = 5.0
"""Between two steps a vehicle may have been faster than at both of them: that adds up to ``a t²/4`` to its way."""


class Sample(NamedTuple):
    """One vehicle at one time step."""

    x_m: float
    y_m: float
    speed_mps: float | None
    heading_deg: float | None
    jumped: bool
    """It jumped since the time step before."""


class Step(NamedTuple):
    """One time step: vehicles by id, in the order of the file."""

    time_s: float
    vehicles: dict[str, Sample]


class Span(NamedTuple):
    """The part of a file that is used."""

    path: Path
    from_s: float
    until_s: float
    plane: Plane | None
    """None: the file has metres."""
    may_jump: bool

    @property
    def between(self) -> str:
        """For messages."""
        return f"from {shown_s(self.from_s)} to {shown_s(self.until_s)} s"

    @property
    def times(self) -> str:
        """For messages about what a run needs."""
        return f"from {shown_s(self.from_s)} until {shown_s(self.until_s)} s"


class LeftOut:
    """The rows that were left out because they make no sense."""

    def __init__(self) -> None:
        self.rows = 0
        self.first = ""
        """The first of them: file, line, column and fault."""

    def add(self, path: Path, row: BadRow) -> None:
        """Count one row."""
        self.first = self.first or located(path, row, row.fault)
        self.rows += 1


def chosen(span: Span, count: int, named: tuple[str, ...], left_out: LeftOut) -> list[str]:
    """The ids of the vehicles that are used: ``named``, or the first ``count`` that appear. Reads the whole span.

    :raises TraceError: it has too few vehicles or can't be used.
    """
    before = left_out.rows
    try:
        return _chosen(span, count, named, left_out)
    except TraceError as error:
        if left_out.rows == before:
            raise
        text = f"{error}; {left_out.rows} rows were left out, the first: {left_out.first}"
        raise TraceError(text) from error


def _chosen(span: Span, count: int, named: tuple[str, ...], left_out: LeftOut) -> list[str]:
    wanted: dict[str, None] = dict.fromkeys(named)
    comers = _FirstComers(count)
    seen: dict[str, None] = {}

    def skipped(row: BadRow) -> None:
        left_out.add(span.path, row)
        if row.vehicle is not None:
            comers.give_back(row.vehicle)

    for step in steps(span, comers if not named else wanted, skipped):
        if step.time_s < span.until_s:
            seen.update(dict.fromkeys(step.vehicles))
    if named:
        for vehicle in named:
            if vehicle not in seen:
                known = sorted(_ids(span))
                raise TraceError(
                    f"trace {span.path} has no vehicle {shown(vehicle)} {span.between}{nearest(vehicle, known)}"
                )
        return list(named)
    if len(seen) < count:
        raise TraceError(
            f"trace {span.path} has {len(seen)} vehicles {span.between}, but the group has "
            f"count = {count}: lower it, or take another time"
        )
    return list(seen)


class _FirstComers(Container[str]):
    """Accepts the first ids that it is asked for, and no others later."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._accepted: dict[str, int] = {}
        """How many rows each of them has that may be good."""

    def __contains__(self, vehicle: object) -> bool:
        if vehicle in self._accepted or len(self._accepted) < self._most:
            self._accepted[str(vehicle)] = self._accepted.get(str(vehicle), 0) + 1
            return True
        return False

    def give_back(self, vehicle: str) -> None:
        """A row was bad. A vehicle that has only bad rows takes no place."""
        if vehicle in self._accepted:
            self._accepted[vehicle] -= 1
            if not self._accepted[vehicle]:
                del self._accepted[vehicle]


def _ids(span: Span) -> set[str]:
    ids: set[str] = set()
    for step in steps(span._replace(may_jump=True), None):
        ids.update(step.vehicles)
        if len(ids) > MAX_VEHICLES:
            break
    return ids


def steps(span: Span, wanted: Container[str] | None, skipped: Skipped = lambda _: None) -> Iterator[Step]:
    """The time steps of a span, up to the first at or after its end, with those of their vehicles that are wanted
    (None: with all). ``skipped`` is told of rows of theirs that are left out.

    :raises TraceError: the file can't be used; names it, the line and the value.
    """
    time_s: float | None = None
    judge = _Judge(span, skipped)
    try:
        with closing(rows(span.path, wanted, span.from_s, span.until_s, skipped)) as found:
            for row in found:
                step = row.step if isinstance(row, VehicleRow) else row
                if time_s is not None and step.time_s <= time_s:
                    fault = f"time goes from {shown_s(time_s)} to {shown_s(step.time_s)} s: sort the time steps"
                    raise TraceError(located(span.path, step, fault))
                if isinstance(row, VehicleRow):
                    judge.add(row)
                    continue
                time_s = step.time_s
                if time_s >= span.from_s:
                    yield judge.step(time_s)
                    if time_s >= span.until_s:
                        judge.refuse_degrees()
                        return
    except TraceCutOff as error:
        raise TraceError(f"{error}, but it is needed {span.times}: lower from_s or duration_s") from error
    except TraceInvalid as error:
        raise TraceError(str(error)) from error
    ends_s = "is empty" if time_s is None else f"ends at {shown_s(time_s)} s"
    raise TraceError(f"trace {span.path} {ends_s}, but is needed {span.times}: lower from_s or duration_s")


class _Judge:
    """Makes samples of rows, and judges them by the time step before."""

    def __init__(self, span: Span, skipped: Skipped) -> None:
        self._span, self._skipped = span, skipped
        self._before: Step | None = None
        self._vehicles: dict[str, Sample] = {}
        """Those of the time step that has not ended."""
        self._motions: dict[str, Motion] = {}
        """Of vehicles that were there in the step before."""
        self._moving: dict[str, Motion] = {}
        self._in_degrees = False
        """The file was looked at, and has degrees."""
        self._drove = self._crept = 0
        """Rows in metres: as far from the row before as their speeds say, and far less than a thousandth of that."""

    def step(self, time_s: float) -> Step:
        """The time step has ended."""
        self._before, self._vehicles = Step(time_s, self._vehicles), {}
        self._motions, self._moving = self._moving, {}
        return self._before

    def add(self, row: VehicleRow) -> None:
        """Take a row into the time step. :raises TraceError: the file can't be used."""
        span = self._span
        if row.vehicle in self._vehicles:
            fault = f"vehicle {shown(row.vehicle)} is twice in the time step of {shown_s(row.step.time_s)} s"
            self._skipped(BadRow(row.vehicle, fault, row.line, row.column))
            return
        x_m, y_m = row.x, row.y
        if span.plane is not None:
            if not row.may_be_degrees:
                fault = f"x={row.x:.10g} y={row.y:.10g} of vehicle {shown(row.vehicle)} are not degrees"
                self._refuse_metres(row, row.step.time_s, fault)
                self._skipped(BadRow(row.vehicle, fault, row.line, row.column))
                return
            x_m, y_m = span.plane.metres(row.y, row.x)
        jumped = self._before is not None and self._jumps(self._before, row, x_m, y_m)
        speed_mps, heading_deg = row.speed_mps, row.heading_deg
        if speed_mps is None or heading_deg is None:
            moved = self._moved(row, x_m, y_m, jumped)
            speed_mps = moved.speed_mps if speed_mps is None else speed_mps
            heading_deg = moved.heading_deg if heading_deg is None else heading_deg
        self._vehicles[row.vehicle] = Sample(x_m, y_m, speed_mps, heading_deg, jumped)

    def refuse_degrees(self) -> None:
        """:raises TraceError: positions that were taken for metres are degrees: vehicles hardly move."""
        if self._crept > self._drove:
            raise TraceError(
                f"trace {self._span.path} is taken for metres, but its vehicles move less than a thousandth of what "
                "their speeds say: these look like degrees, set geo = true"
            )

    def _moved(self, row: VehicleRow, x_m: float, y_m: float, jumped: bool) -> Moved:
        motion = None if jumped else self._motions.get(row.vehicle)
        motion = self._moving[row.vehicle] = motion or Motion(way_in_metres)
        return motion.to(row.step.time_s, (x_m, y_m))

    def _refuse_metres(self, row: VehicleRow, from_s: float, what: str) -> None:
        if self._in_degrees:
            return
        if looks_like_metres(self._span.path, from_s):
            fault = f"{what}: set geo = false if the file has metres, or export again with sumo --fcd-output.geo"
            raise TraceError(located(self._span.path, row, fault))
        self._in_degrees = True

    def _jumps(self, before: Step, row: VehicleRow, x_m: float, y_m: float) -> bool:
        """Whether a vehicle is further from where it was ``before`` than it can have driven.

        :raises TraceError: it is, and the span says that no vehicle may.
        """
        span, sample = self._span, before.vehicles.get(row.vehicle)
        if sample is None:  # it is new, or comes back after an absence
            return False
        way_m, took_s = math.hypot(x_m - sample.x_m, y_m - sample.y_m), row.step.time_s - before.time_s
        possible_m = MAX_SPEED_MPS * took_s
        if row.speed_mps is not None and sample.speed_mps is not None:
            fastest_m = max(row.speed_mps, sample.speed_mps) * took_s
            possible_m = min(possible_m, fastest_m + _ACCELERATION_MPS2 * took_s**2 / 4)
            if span.plane is None and row.may_be_degrees and min(row.speed_mps, sample.speed_mps) >= 1:
                self._drove += way_m > fastest_m / 1_000
                self._crept += way_m <= fastest_m / 1_000
        if way_m <= possible_m + JUMP_M:
            return False
        from_s, to_s = shown_s(before.time_s), shown_s(row.step.time_s)
        if span.plane is not None:
            latitude_deg, longitude_deg = span.plane.degrees(sample.x_m, sample.y_m)
            flown_m = math.hypot(*way_in_degrees((longitude_deg, latitude_deg), (row.x, row.y)))
            if impossible(flown_m, took_s):
                what = f"vehicle {shown(row.vehicle)} would go {flown_m / 1_000:.0f} km from {from_s} to {to_s} s"
                self._refuse_metres(row, before.time_s, f"{what}, which no vehicle can, so x and y are no degrees")
        if not span.may_jump:
            fault = (
                f"vehicle {shown(row.vehicle)} jumps {way_m:.0f} m from {from_s} to {to_s} s: "
                "take other vehicles or another time, export with sumo --time-to-teleport -1, or set jumps = 'reappear'"
            )
            raise TraceError(located(span.path, row, fault))
        return True
