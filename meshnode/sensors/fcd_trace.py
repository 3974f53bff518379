"""The fixes of vehicles in SUMO floating-car data whose positions are WGS 84 (``--fcd-output.geo``).

Invariants:

- Memory is bounded by the vehicles of two time steps.
- Only whole time steps give fixes.
- A fix whose place no neighbouring time step confirms is left out. A file in metres is refused.
- Fixes come one time step late, because the speed of a vehicle that appears is that with which it goes on.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from meshnode.sumo.floating_car import (
    MAX_VEHICLES,
    TraceCutOff,
    TraceInvalid,
    VehicleRow,
    located,
    rows,
    shown_s,
)
from meshnode.sumo.motion import Motion, Moved, impossible, looks_like_metres, way_in_degrees

_CHECKED_FIXES: Final = 1_000
"""Fixes that are looked at before a node starts."""
_MAX_BAD_VEHICLES: Final = 1_000
_OTHERS: Final = ""
"""Stands for the vehicles beyond that."""
_NEAR_DEG: Final = 0.005
"""Whoever moves no more than that in a second, in longitude and latitude, is slower than ``IMPOSSIBLE_MPS``."""

Tell = Callable[[str | None, str], None]
"""Is told what is left out: the vehicle (None: it is not known, or the end of the file), and one line that names file,
line, column and fault."""


class Fix(NamedTuple):
    """One vehicle at one instant."""

    time_s: float
    """Seconds of the simulation's time."""
    vehicle: str
    latitude_deg: float
    longitude_deg: float
    speed_mps: float | None
    """From the file, or worked out from the positions. None: the vehicle is there for one time step only."""
    heading_deg: float | None
    """As the speed. None also while a vehicle has not moved yet."""
    derived: bool = False
    """Whether the speed comes from the positions, where it is an average over :data:`SPEED_OVER_S` or a time step."""


class Presence(NamedTuple):
    """The first and the last time at which a vehicle is in a trace."""

    vehicle: str
    first_s: float
    last_s: float


def fixes(
    path: Path, vehicle: str | None = None, start_s: float = -math.inf, skipped: Tell | None = None
) -> Iterator[Fix]:
    """The fixes of one vehicle (None: of all) from ``start_s`` on, in the order of time.

    ``skipped`` is told of each row that is left out, and of the end of a file that is cut off.

    :raises TraceInvalid: the file can't be read, is malformed or in metres; names file, line and column. Without
        ``skipped``, one bad row or a file that is cut off is enough.
    """
    drives = _Drives(path, skipped)
    wanted = None if vehicle is None else (vehicle,)
    tell = None if skipped is None else lambda bad: skipped(bad.vehicle, located(path, bad, bad.fault))
    try:
        with closing(rows(path, wanted, start_s, skipped=tell)) as found:
            for row in found:
                if isinstance(row, VehicleRow):
                    drives.add(row)
                else:
                    yield from drives.step()
    except TraceCutOff as error:
        yield from drives.rest()
        if skipped is None or not drives.begun:
            raise
        skipped(None, f"{error} and are used")
    except TraceInvalid:
        yield from drives.rest()
        raise
    else:
        yield from drives.rest()


def presences(path: Path, bad: "BadVehicles | None" = None) -> list[Presence]:
    """The presence of each vehicle in the trace, in order of first appearance. Reads the whole file. ``bad`` gets the
    rows that make no sense.

    :raises TraceInvalid: as :func:`fixes`, or the trace has more than ``MAX_VEHICLES`` vehicles. Bad rows and a cut end
        do not matter.
    """
    seen: dict[str, list[float]] = {}
    for fix in fixes(path, skipped=_ignored if bad is None else bad.add):
        span = seen.get(fix.vehicle)
        if span is not None:
            span[1] = fix.time_s
        elif len(seen) < MAX_VEHICLES:
            seen[fix.vehicle] = [fix.time_s, fix.time_s]
        else:
            raise TraceInvalid(f"trace {path} has more than {MAX_VEHICLES} vehicles: cut it, or name the vehicle")
    return [Presence(vehicle, first_s, last_s) for vehicle, (first_s, last_s) in seen.items()]


class BadVehicles:
    """Vehicles with rows that make no sense, by id. The first thousand are told apart."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}
        """Number of rows, and the first fault."""

    def add(self, vehicle: str | None, why: str) -> None:
        """Count one row. Faults that belong to no vehicle are left to those who read its fixes."""
        if vehicle is not None:
            vehicle = vehicle if vehicle in self._found or len(self._found) < _MAX_BAD_VEHICLES else _OTHERS
            count, first = self._found.get(vehicle, (0, why))
            self._found[vehicle] = count + 1, first

    def apart_from(self, vehicle: str) -> Iterator[tuple[str, int]]:
        """The first fault and the number of rows of each vehicle but one."""
        for other, (count, first) in self._found.items():
            if other != vehicle:
                yield first if count == 1 else f"{first} (the first of {count} rows)", count


def check_beginning(path: Path) -> None:
    """Look at the first fixes of a trace.

    :raises TraceInvalid: it is of another format or in metres, malformed, or no row of it makes sense.
    """
    bad: list[str] = []

    def told(vehicle: str | None, why: str) -> None:
        if vehicle is not None and not bad:
            bad.append(why)

    found = sum(1 for _ in islice(fixes(path, skipped=told), _CHECKED_FIXES))
    if bad and not found:
        raise TraceInvalid(f"{bad[0]}. No row of the trace makes sense")


def _ignored(vehicle: str | None, why: str) -> None:
    """Somebody else is told."""


class _Stop:
    """A vehicle at one time step, until the next one says whether it can be there."""

    __slots__ = ("confirmed", "doubted", "last_good", "motion", "moved", "row")

    def __init__(self, row: VehicleRow) -> None:
        self.row = row
        self.confirmed = False
        """The vehicle can have come from the step before, or have gone to the step after."""
        self.doubted = False
        """It can't have come from the step before, or not have gone to the step after."""
        self.last_good: VehicleRow | None = None
        """The newest confirmed row before this one, if this one does not follow it."""
        self.motion: Motion | None = None
        self.moved = Moved(None, None)

    def fix(self) -> Fix:
        row, (speed_mps, heading_deg) = self.row, self.moved
        return Fix(
            row.step.time_s,
            row.vehicle,
            row.y,
            row.x,
            speed_mps if row.speed_mps is None else row.speed_mps,
            heading_deg if row.heading_deg is None else row.heading_deg,
            row.speed_mps is None,
        )


class _Drives:
    """Joins the rows of each vehicle from one time step to the next."""

    def __init__(self, path: Path, skipped: Tell | None) -> None:
        self.begun = False
        """There was a whole time step."""
        self._path = path
        self._skipped = skipped
        self._rows: dict[str, VehicleRow] = {}
        """Those of the time step that has not ended."""
        self._stops: dict[str, _Stop] = {}
        """Those of the newest whole time step."""
        self._in_degrees = False
        """The file was looked at, and has degrees."""

    def add(self, row: VehicleRow) -> None:
        """:raises TraceInvalid: the file is in metres, or there is nobody to tell of a bad row."""
        if not row.may_be_degrees:
            what = f"x={row.x:.10g} y={row.y:.10g} of vehicle {row.vehicle[:60]!r} are not degrees"
            self._refuse_metres(row, row.step.time_s, what)
            self._leave_out(row, what)
        elif row.vehicle in self._rows:
            self._leave_out(row, f"vehicle {row.vehicle[:60]!r} is twice in this time step")
        elif len(self._rows) >= MAX_VEHICLES:
            raise TraceInvalid(located(self._path, row, f"the time step has more than {MAX_VEHICLES} vehicles"))
        else:
            self._rows[row.vehicle] = row

    def step(self) -> Iterator[Fix]:
        """The time step has ended. Yields the fixes of the one before."""
        self.begun = True
        # If joining finds out that the file is in metres, none of these is a fix.
        before, self._stops = self._stops, {}
        rows_now, self._rows = self._rows, {}
        stops: dict[str, _Stop] = {}
        for vehicle, row in rows_now.items():
            stop = stops[vehicle] = _Stop(row)
            last = before.get(vehicle)
            if last is not None:
                self._join(last, stop)
            if row.speed_mps is None or row.heading_deg is None:
                _move(last, stop)
        self._stops = stops
        yield from self._judged(before)

    def rest(self) -> Iterator[Fix]:
        """The file has ended. Yields the fixes of the last time step."""
        before, self._stops = self._stops, {}
        yield from self._judged(before)

    def _judged(self, stops: dict[str, _Stop]) -> Iterator[Fix]:
        for stop in stops.values():
            if stop.confirmed or not stop.doubted:
                yield stop.fix()
            else:
                row = stop.row
                what = f"vehicle {row.vehicle[:60]!r} can't get to x={row.x:.10g} y={row.y:.10g} and away in time"
                self._leave_out(row, what)

    def _join(self, last: _Stop, stop: _Stop) -> None:
        if _can_drive(last.row, stop.row):
            last.confirmed = stop.confirmed = True
            return
        took_s = stop.row.step.time_s - last.row.step.time_s
        way_km = math.hypot(*way_in_degrees((last.row.x, last.row.y), (stop.row.x, stop.row.y))) / 1_000
        self._refuse_metres(
            stop.row,
            last.row.step.time_s,
            f"vehicle {stop.row.vehicle[:60]!r} would go {way_km:.0f} km in {shown_s(round(took_s, 6))} s, which no "
            "vehicle can, so x and y are no degrees",
        )
        if last.confirmed:
            stop.last_good = last.row
        else:
            last.doubted = True
            stop.last_good = last.last_good
        if not last.confirmed and stop.last_good is not None and _can_drive(stop.last_good, stop.row):
            stop.confirmed = True
        else:
            stop.doubted = True

    def _refuse_metres(self, row: VehicleRow, from_s: float, what: str) -> None:
        if self._in_degrees:
            return
        if looks_like_metres(self._path, from_s):
            self._stops = {}
            fault = f"{what}: export again with sumo --fcd-output.geo, these look like metres"
            raise TraceInvalid(located(self._path, row, fault))
        self._in_degrees = True

    def _leave_out(self, row: VehicleRow, what: str) -> None:
        if self._skipped is None:
            raise TraceInvalid(located(self._path, row, what))
        self._skipped(row.vehicle, located(self._path, row, what))


def _can_drive(row: VehicleRow, to: VehicleRow) -> bool:
    took_s = to.step.time_s - row.step.time_s
    if abs(to.x - row.x) <= _NEAR_DEG * took_s and abs(to.y - row.y) <= _NEAR_DEG * took_s:
        return True
    return not impossible(math.hypot(*way_in_degrees((row.x, row.y), (to.x, to.y))), took_s)


def _move(last: _Stop | None, stop: _Stop) -> None:
    """Work out speed and heading. A vehicle that has just appeared gets those with which it goes on."""
    came = last if last is not None and stop.confirmed else None
    stop.motion = came.motion if came is not None and came.motion is not None else Motion(way_in_degrees)
    stop.moved = stop.motion.to(stop.row.step.time_s, (stop.row.x, stop.row.y))
    if came is not None and came.moved.speed_mps is None:
        came.moved = stop.moved
