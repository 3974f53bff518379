"""Works out how vehicles move from where they are: for traces without speed and angle, and to tell metres from degrees.

Invariants:

- Speed and heading describe the way that led to a place, as SUMO's own ``speed`` does with its default Euler steps:
  ``speed(t) = |place(t) - place(t - dt)| / dt`` (https://sumo.dlr.de/docs/Simulation/Basic_Definition.html).
- Positions in degrees are written with six digits, which is a tenth of a metre. So a speed spans at least
  ``SPEED_OVER_S`` and a heading at least ``HEADING_OVER_M``; a vehicle that stands keeps its heading.
- Nothing is worked out across a gap or a jump.
"""

import math
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from meshnode.sumo.floating_car import TraceCutOff, VehicleRow, rows
from meshnode.sumo.geodesy import Plane

SPEED_OVER_S: Final = 1.0
"""With half of it, rounding to 0.1 m could look like braking at 1 m/s²."""
HEADING_OVER_M: Final = 2.0
"""Rounding to 0.1 m turns it by 3 degrees at most."""
MAX_SPEED_MPS: Final = 100.0
"""No vehicle is faster between two time steps, whatever speeds the file gives."""
JUMP_M: Final = 10.0
"""A vehicle jumps when it is this much further than its own speeds explain. In the trace of Ingolstadt no driving
vehicle exceeds them by more than 4 m in a step, and no vehicle that SUMO moved out of a jam by less than 18 m."""
IMPOSSIBLE_MPS: Final = 1_000.0
"""A vehicle that creeps at 0.01 m/s has this speed when its metres are taken for degrees. SUMO lifts vehicles out of
jams at 140 m/s."""
_LOOKED_AT_ROWS: Final = 20_000
"""Rows that are read to tell metres from degrees: a quarter of a second."""
_MAX_PAST: Final = 1_024
"""Places of one vehicle that are kept. More than that would be time steps below a millisecond."""
_ROUNDING_S: Final = 1e-6

Place = tuple[float, float]
"""``x`` and ``y``: longitude and latitude in degrees, or metres to the east and to the north."""
Way = Callable[[Place, Place], tuple[float, float]]
"""Metres east and north from one place to another."""


class Moved(NamedTuple):
    """How a vehicle came to where it is, with as many digits as SUMO would write."""

    speed_mps: float | None
    """None: it has just appeared."""
    heading_deg: float | None
    """Clockwise from north. None: it has not moved far enough yet."""


def way_in_degrees(from_place: Place, to_place: Place) -> tuple[float, float]:
    """The way between two places in degrees."""
    return Plane(from_place[1], from_place[0]).metres(to_place[1], to_place[0])


def way_in_metres(from_place: Place, to_place: Place) -> tuple[float, float]:
    """The way between two places in metres."""
    return to_place[0] - from_place[0], to_place[1] - from_place[1]


class Motion:
    """The motion of one vehicle. Begin another one after a gap."""

    __slots__ = ("_heading_deg", "_past", "_turned_at", "_way")

    def __init__(self, way: Way) -> None:
        self._way = way
        self._past: deque[tuple[float, Place]] = deque(maxlen=_MAX_PAST)
        """Times and places, back to the newest one that is at least ``SPEED_OVER_S`` old."""
        self._turned_at: Place | None = None
        """Where the heading was last worked out."""
        self._heading_deg: float | None = None

    def to(self, time_s: float, place: Place) -> Moved:
        """The vehicle is at ``place``. ``time_s`` never goes back."""
        past = self._past
        if past and time_s <= past[-1][0]:
            past.pop()  # Two places at one time give no speed; the later one counts.
        if past and jumps(math.hypot(*self._way(past[-1][1], place)), time_s - past[-1][0]):
            past.clear()
            self._turned_at = self._heading_deg = None
        while len(past) > 1 and time_s - past[1][0] >= SPEED_OVER_S - _ROUNDING_S:
            past.popleft()
        speed_mps = None
        if past:
            since_s, before = past[0]
            speed_mps = round(math.hypot(*self._way(before, place)) / (time_s - since_s), 2)
        past.append((time_s, place))
        if self._turned_at is None:
            self._turned_at = place
        east_m, north_m = self._way(self._turned_at, place)
        if math.hypot(east_m, north_m) >= HEADING_OVER_M:
            self._turned_at = place
            self._heading_deg = round(math.degrees(math.atan2(east_m, north_m)), 1) % 360.0
        return Moved(speed_mps, self._heading_deg)


def jumps(way_m: float, took_s: float) -> bool:
    """Whether a vehicle can't have driven that way in that time."""
    return way_m > MAX_SPEED_MPS * took_s + JUMP_M


def impossible(way_m: float, took_s: float) -> bool:
    """Whether nothing on a road moves like that, not even a vehicle that SUMO lifts out of a jam."""
    return way_m > IMPOSSIBLE_MPS * took_s + JUMP_M


def looks_like_metres(path: Path, from_s: float) -> bool:
    """Whether the positions of a file are metres although degrees were expected: fewer vehicles drive than are out of
    the bounds of degrees or move impossibly far. It looks at the beginning and, if nobody moves there, from ``from_s``.

    :raises TraceInvalid: the file can't be read. Bad rows and a cut end do not matter.
    """
    driven, flown = _driven_and_flown(path, -math.inf)
    if not driven and not flown:
        driven, flown = _driven_and_flown(path, from_s)
    return flown > driven


def _driven_and_flown(path: Path, from_s: float) -> tuple[int, int]:
    driven = flown = looked_at = 0
    before: dict[str, VehicleRow] = {}
    now: dict[str, VehicleRow] = {}
    with closing(rows(path, from_s=from_s, skipped=lambda _: None)) as found, suppress(TraceCutOff):
        for row in found:
            if not isinstance(row, VehicleRow):
                before, now = now, {}
                continue
            looked_at += 1
            if looked_at > _LOOKED_AT_ROWS:
                break
            if not row.may_be_degrees:
                flown += 1
                continue
            now[row.vehicle] = row
            last = before.get(row.vehicle)
            if last is not None:
                way_m = math.hypot(*way_in_degrees((last.x, last.y), (row.x, row.y)))
                if impossible(way_m, row.step.time_s - last.step.time_s):
                    flown += 1
                elif way_m > 0:
                    driven += 1
    return driven, flown
