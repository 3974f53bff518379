"""Follows vehicles through SUMO floating-car files, time step by time step, and judges whether they can be followed.

Invariants:

- Memory is bounded whatever the size of the file: by the vehicles that are asked for.
- Only the span of time that is asked for is judged. In it, a file that is cut off, a time that does not grow, a value
  that is not a number and a vehicle that jumps are errors that name file, line and value.
"""

import math
from collections.abc import Container, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from meshnode.sumo.floating_car import MAX_VEHICLES, TraceInvalid, VehicleRow, located, rows
from meshnode.sumo.geodesy import Plane
from sims.errors import TraceError
from sims.scenario.schema import nearest, shown

MAX_SPEED_MPS: Final = 100.0
"""No vehicle is faster between two time steps, whatever speeds the file gives."""
JUMP_M: Final = 10.0
"""A vehicle jumps when it is this much further than its own speeds explain. In the trace of Ingolstadt no driving
vehicle exceeds them by more than 4 m in a step, and no vehicle that SUMO moved out of a jam by less than 18 m."""
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
    """Accepts the first ids that it is asked for, and no others later."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._accepted: set[str] = set()

    def __contains__(self, vehicle: object) -> bool:
        if len(self._accepted) < self._most:
            self._accepted.add(str(vehicle))
        return vehicle in self._accepted


def _ids(span: Span) -> set[str]:
    ids: set[str] = set()
    for step in steps(span._replace(may_jump=True), None):
        ids.update(step.vehicles)
        if len(ids) > MAX_VEHICLES:
            break
    return ids


def steps(span: Span, wanted: Container[str] | None) -> Iterator[Step]:
    """The time steps of a span, up to the first at or after its end, with those of their vehicles that are wanted
    (None: with all).

    :raises TraceError: the file can't be used; names it, the line and the value.
    """
    time_s: float | None = None
    before: Step | None = None
    vehicles: dict[str, Sample] = {}
    try:
        with closing(rows(span.path, wanted, span.from_s, span.until_s)) as found:
            for row in found:
                step = row.step if isinstance(row, VehicleRow) else row
                if time_s is not None and step.time_s <= time_s:
                    fault = f"time goes from {time_s:g} to {step.time_s:g} s: sort the time steps"
                    raise TraceError(located(span.path, step, fault))
                if isinstance(row, VehicleRow):
                    if row.vehicle in vehicles:
                        fault = f"vehicle {shown(row.vehicle)} is twice in the time step of {step.time_s:g} s"
                        raise TraceError(located(span.path, row, fault))
                    vehicles[row.vehicle] = _sample(span, row, before)
                    continue
                time_s = step.time_s
                if time_s >= span.from_s:
                    before, vehicles = Step(time_s, vehicles), {}
                    yield before
                    if time_s >= span.until_s:
                        return
    except TraceInvalid as error:
        raise TraceError(str(error)) from error
    ends_s = "is empty" if time_s is None else f"ends at {time_s:g} s"
    raise TraceError(
        f"trace {span.path} {ends_s}, but is needed from {span.from_s:g} until {span.until_s:g} s: "
        "lower from_s or duration_s"
    )


def _sample(span: Span, row: VehicleRow, before: Step | None) -> Sample:
    x_m, y_m = row.x, row.y
    if span.plane is not None:
        if not row.may_be_degrees:
            fault = f"x={row.x:g} y={row.y:g} of vehicle {shown(row.vehicle)} are not degrees: set geo = false if the "
            raise TraceError(
                located(span.path, row, f"{fault}file has metres, or export again with sumo --fcd-output.geo")
            )
        x_m, y_m = span.plane.metres(row.y, row.x)
    jumped = before is not None and _jumps(span, before, row, x_m, y_m)
    return Sample(x_m, y_m, row.speed_mps, row.heading_deg, jumped)


def _jumps(span: Span, before: Step, row: VehicleRow, x_m: float, y_m: float) -> bool:
    """Whether a vehicle is further from where it was ``before`` than it can have driven.

    :raises TraceError: it is, and the span says that no vehicle may.
    """
    sample = before.vehicles.get(row.vehicle)
    if sample is None:  # it is new, or comes back after an absence
        return False
    way_m, took_s = math.hypot(x_m - sample.x_m, y_m - sample.y_m), row.step.time_s - before.time_s
    possible_m = MAX_SPEED_MPS * took_s
    if row.speed_mps is not None and sample.speed_mps is not None:
        driven_m = max(row.speed_mps, sample.speed_mps) * took_s + _ACCELERATION_MPS2 * took_s**2 / 4
        possible_m = min(possible_m, driven_m)
    if way_m <= possible_m + JUMP_M:
        return False
    if not span.may_jump:
        fault = (
            f"vehicle {shown(row.vehicle)} jumps {way_m:.0f} m from {before.time_s:g} to {row.step.time_s:g} s: "
            "take other vehicles or another time, export with sumo --time-to-teleport -1, or set jumps = 'reappear'"
        )
        raise TraceError(located(span.path, row, fault))
    return True
