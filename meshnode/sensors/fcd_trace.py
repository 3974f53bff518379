"""The fixes of vehicles in SUMO floating-car data whose positions are WGS 84 (``--fcd-output.geo``)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from meshnode.sumo.floating_car import MAX_VEHICLES, TraceInvalid, VehicleRow, located, rows


class Fix(NamedTuple):
    """One vehicle at one instant."""

    time_s: float
    """Seconds of the simulation's time."""
    vehicle: str
    latitude_deg: float
    longitude_deg: float
    speed_mps: float
    heading_deg: float


class Presence(NamedTuple):
    """The first and the last time at which a vehicle is in a trace."""

    vehicle: str
    first_s: float
    last_s: float


def fixes(path: Path, vehicle: str | None = None, start_s: float = -math.inf) -> Iterator[Fix]:
    """The fixes of one vehicle (None: of all) from ``start_s`` on, in the order of time. Memory is bounded.

    :raises TraceInvalid: the file can't be read, is cut off or malformed; names file, line and column.
    """
    for row in rows(path, None if vehicle is None else (vehicle,), start_s):
        if isinstance(row, VehicleRow):
            yield _fix(path, row)


def presences(path: Path) -> list[Presence]:
    """The presence of each vehicle in the trace, in order of first appearance. Reads the whole file.

    :raises TraceInvalid: as :func:`fixes`, or the trace has more than ``MAX_VEHICLES`` vehicles.
    """
    seen: dict[str, list[float]] = {}
    for fix in fixes(path):
        span = seen.get(fix.vehicle)
        if span is not None:
            span[1] = fix.time_s
        elif len(seen) < MAX_VEHICLES:
            seen[fix.vehicle] = [fix.time_s, fix.time_s]
        else:
            raise TraceInvalid(f"trace {path} has more than {MAX_VEHICLES} vehicles: cut it, or name the vehicle")
    return [Presence(vehicle, first_s, last_s) for vehicle, (first_s, last_s) in seen.items()]


def _fix(path: Path, row: VehicleRow) -> Fix:
    if not row.may_be_degrees:
        fault = f"x={row.x:g} y={row.y:g} of vehicle {row.vehicle[:60]!r} are not degrees: export again with "
        raise TraceInvalid(located(path, row, f"{fault}sumo --fcd-output.geo"))
    if row.speed_mps is None or row.heading_deg is None:
        name = "speed" if row.speed_mps is None else "angle"
        raise TraceInvalid(located(path, row, f"attribute {name!r} is missing: expected a number"))
    return Fix(row.step.time_s, row.vehicle, row.y, row.x, row.speed_mps, row.heading_deg)
