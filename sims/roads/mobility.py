"""Where the nodes of a scenario are: all groups in one object, which is moved in place.

All motion is legs, which are straight and steady from one instant to another. A tick therefore costs two
multiplications per moving node, done by numpy for a whole group, and a look at the heap of the legs that end. Nodes
that stand cost nothing.

The same seed gives the same ways, whatever the length of the ticks: each node that chooses has its own ``Random``, made
from the seed and its name. Taking away one group or node therefore leaves the ways of the others as they were.

Headings are degrees clockwise from north. A node that stops keeps its last heading.
"""

import math
from collections.abc import Iterator
from heapq import heapify, heapreplace
from random import Random
from typing import Final, NamedTuple, Protocol, assert_never

import numpy as np

from meshnode.sumo.geodesy import Plane
from protocols.base.limits import SECOND
from sims.roads.traces import LeftOut, Sample, Span, Step, chosen, steps
from sims.scenario.file import (
    Fixed,
    Group,
    Highway,
    Lattice,
    Platoon,
    Point,
    Scenario,
    Streets,
    Trace,
    Waypoints,
    trace_path,
)

NEVER_NS: Final = 1 << 62


class Leg(NamedTuple):
    """A straight and steady motion from ``from_ns`` until ``until_ns``."""

    from_ns: int
    until_ns: int
    x_m: float
    y_m: float
    vx_mps: float = 0.0
    vy_mps: float = 0.0


class Map:
    """The places of all nodes: a :class:`sims.media.contract.Places`."""

    def __init__(self, nodes: int) -> None:
        self.xs_m = [0.0] * nodes
        self.ys_m = [0.0] * nodes
        self.present = [True] * nodes
        self.speeds_mps = [0.0] * nodes
        self.headings_deg = [0.0] * nodes
        self.movers: list[Mover] = []
        self.left_out = LeftOut()
        """What is left out of traces."""

    def advance(self, now_ns: int) -> None:
        """Move all nodes to where they are at ``now_ns``, which never goes back. :raises TraceError: when a trace can't
        be used."""
        for mover in self.movers:
            mover.advance(now_ns)


class Mover(Protocol):
    """Moves the nodes of one group."""

    def advance(self, now_ns: int) -> None:
        """As :meth:`Map.advance`."""


class Legs:
    """The present leg of each node of a group, and where on it they are."""

    def __init__(self, places: Map, first: int, count: int) -> None:
        self._places = places
        self._first = first
        self._nodes = slice(first, first + count)
        self._from_ns = np.zeros(count)
        self._xs_m = np.zeros(count)
        self._ys_m = np.zeros(count)
        self._vxs = np.zeros(count)  # metres per nanosecond
        self._vys = np.zeros(count)

    def begin(self, number: int, leg: Leg) -> None:
        """The node with this number in its group is now on ``leg``."""
        self._from_ns[number] = leg.from_ns
        self._xs_m[number], self._ys_m[number] = leg.x_m, leg.y_m
        self._vxs[number], self._vys[number] = leg.vx_mps / SECOND, leg.vy_mps / SECOND
        node, speed_mps = self._first + number, math.hypot(leg.vx_mps, leg.vy_mps)
        self._places.speeds_mps[node] = speed_mps
        if speed_mps > 0:
            self._places.headings_deg[node] = math.degrees(math.atan2(leg.vx_mps, leg.vy_mps)) % 360.0

    def show(self, now_ns: int) -> None:
        """Compute the places of all nodes of the group for ``now_ns``."""
        elapsed_ns = now_ns - self._from_ns
        self._places.xs_m[self._nodes] = (self._xs_m + self._vxs * elapsed_ns).tolist()
        self._places.ys_m[self._nodes] = (self._ys_m + self._vys * elapsed_ns).tolist()


class Journeys:
    """Nodes whose next leg is known when one ends."""

    def __init__(self, places: Map, first: int, journeys: list[Iterator[Leg]]) -> None:
        """``journeys``: the legs of each node, of which the last ends at ``NEVER_NS``."""
        self._journeys = journeys
        self._legs = Legs(places, first, len(journeys))
        self._ends: list[tuple[int, int]] = []
        for number, journey in enumerate(journeys):
            leg = next(journey)
            self._legs.begin(number, leg)
            self._ends.append((leg.until_ns, number))
        heapify(self._ends)
        self._legs.show(0)

    def advance(self, now_ns: int) -> None:
        """As :meth:`Map.advance`."""
        while self._ends[0][0] <= now_ns:
            number = self._ends[0][1]
            leg = next(self._journeys[number])
            self._legs.begin(number, leg)
            heapreplace(self._ends, (leg.until_ns, number))
        self._legs.show(now_ns)


class Drives:
    """Vehicles of a trace. A vehicle is present where two time steps in a row have it, and between them it is on the
    line that joins its places."""

    def __init__(self, places: Map, first: int, vehicles: list[str], track: Iterator[Step], zero_s: float) -> None:
        """``zero_s``: the time in the trace that is 0 here."""
        self._places = places
        self._first = first
        self._numbers = {vehicle: number for number, vehicle in enumerate(vehicles)}
        self._legs = Legs(places, first, len(vehicles))
        self._track = track
        self._zero_s = zero_s
        self._next: Step | None = next(track)
        places.present[first : first + len(vehicles)] = [False] * len(vehicles)
        self.advance(0)

    def advance(self, now_ns: int) -> None:
        """As :meth:`Map.advance`. After the last time step all vehicles stand."""
        while self._next is not None and self._ns(self._next) <= now_ns:
            step, self._next = self._next, next(self._track, None)
            self._begin(step, self._next)
        self._legs.show(now_ns)

    def _ns(self, step: Step) -> int:
        return round((step.time_s - self._zero_s) * SECOND)

    def _begin(self, step: Step, then: Step | None) -> None:
        from_ns, present = self._ns(step), [False] * len(self._numbers)
        until_ns = self._ns(then) if then is not None else NEVER_NS
        for vehicle, sample in step.vehicles.items():
            number = self._numbers[vehicle]
            goal = then.vehicles.get(vehicle) if then is not None else sample
            present[number] = goal is not None and not goal.jumped
            self._legs.begin(number, _between(sample, goal if present[number] and goal else sample, from_ns, until_ns))
            if sample.speed_mps is not None:
                self._places.speeds_mps[self._first + number] = sample.speed_mps
            if sample.heading_deg is not None:
                self._places.headings_deg[self._first + number] = sample.heading_deg
        self._places.present[self._first : self._first + len(present)] = present


def _between(sample: Sample, goal: Sample, from_ns: int, until_ns: int) -> Leg:
    took_s = (until_ns - from_ns) / SECOND
    return Leg(
        from_ns, until_ns, sample.x_m, sample.y_m, (goal.x_m - sample.x_m) / took_s, (goal.y_m - sample.y_m) / took_s
    )


def places(scenario: Scenario, random: Random) -> Map:
    """The places of all nodes at the start, in the order of ``scenario.names``. Draws one number from ``random``.

    :raises TraceError: when a trace can't be used, or has fewer vehicles than a group has nodes.
    """
    seed = random.getrandbits(64)
    made, first = Map(sum(group.count for group in scenario.groups)), 0
    for group in scenario.groups:
        _place(made, first, scenario, group, [f"{seed} {name}" for name in scenario.members(group.name)])
        first += group.count
    return made


def _place(made: Map, first: int, scenario: Scenario, group: Group, seeds: list[str]) -> None:
    match group.mobility:
        case Fixed(points=points):
            _stand(made, first, list(points))
        case Lattice() as lattice:
            _stand(made, first, _lattice_points(lattice, group.count))
        case Waypoints() as way:
            ways = [_waypoints(way, round(number * way.stagger_s * SECOND)) for number in range(group.count)]
            made.movers.append(Journeys(made, first, ways))
        case Streets() as streets:
            made.movers.append(Journeys(made, first, [_streets(streets, Random(seed)) for seed in seeds]))
        case Highway() as highway:
            drives = [_highway(highway, number, group.count, Random(seed)) for number, seed in enumerate(seeds)]
            made.movers.append(Journeys(made, first, drives))
        case Platoon() as platoon:
            made.movers.append(Journeys(made, first, [_platoon(platoon, number) for number in range(group.count)]))
        case Trace() as trace:
            made.movers.append(_drives(made, first, scenario, group, trace))
        case unknown:
            assert_never(unknown)


def _drives(made: Map, first: int, scenario: Scenario, group: Group, trace: Trace) -> Drives:
    """The vehicles of a trace. The file is read twice, to judge everything that will be used before anything starts."""
    plane = Plane(*scenario.origin) if trace.geo else None
    until_s = trace.from_s + scenario.duration_s
    span = Span(trace_path(scenario, trace), trace.from_s, until_s, plane, trace.jumps == "reappear")
    vehicles = chosen(span, group.count, trace.vehicles, made.left_out)
    return Drives(made, first, vehicles, steps(span, dict.fromkeys(vehicles)), trace.from_s)


def _stand(made: Map, first: int, points: list[Point]) -> None:
    for node, (x_m, y_m) in enumerate(points, first):
        made.xs_m[node], made.ys_m[node] = x_m, y_m


def _lattice_points(lattice: Lattice, count: int) -> list[Point]:
    columns = math.ceil(math.sqrt(count))
    x_m, y_m = lattice.corner
    return [
        (x_m + lattice.spacing_m * (number % columns), y_m + lattice.spacing_m * (number // columns))
        for number in range(count)
    ]


def _waypoints(way: Waypoints, late_ns: int) -> Iterator[Leg]:
    points = [(round(at_s * SECOND) + late_ns, x_m, y_m) for at_s, x_m, y_m in way.points]
    at_ns, x_m, y_m = points[0]
    if at_ns > 0:
        yield Leg(0, at_ns, x_m, y_m)
    for to_ns, to_x_m, to_y_m in points[1:]:
        took_s = (to_ns - at_ns) / SECOND
        yield Leg(at_ns, to_ns, x_m, y_m, (to_x_m - x_m) / took_s, (to_y_m - y_m) / took_s)
        at_ns, x_m, y_m = to_ns, to_x_m, to_y_m
    yield Leg(at_ns, NEVER_NS, x_m, y_m)


_TURNS: Final = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""The directions in streets: east, north, west, south."""


def _streets(streets: Streets, random: Random) -> Iterator[Leg]:
    """A way from crossing to crossing. A vehicle turns around only where there is no other way."""
    last, leg_ns = streets.blocks, round(streets.spacing_m / streets.speed_mps * SECOND)
    column, row = random.randrange(last + 1), random.randrange(last + 1)
    came, (x_m, y_m) = (0, 0), streets.corner
    # It starts somewhere on its first street: with whole blocks all vehicles would turn at once.
    from_ns = -random.randrange(leg_ns)
    while True:
        ways = [
            (east, north)
            for east, north in _TURNS
            if 0 <= column + east <= last and 0 <= row + north <= last and (east, north) != (-came[0], -came[1])
        ]
        came = random.choice(ways)
        yield Leg(
            from_ns, from_ns + leg_ns, x_m + column * streets.spacing_m,
            y_m + row * streets.spacing_m, came[0] * streets.speed_mps, came[1] * streets.speed_mps,
        )  # fmt: skip
        column, row, from_ns = column + came[0], row + came[1], from_ns + leg_ns


def _highway(highway: Highway, number: int, count: int, random: Random) -> Iterator[Leg]:
    """A way along a lane, with equal gaps at the start. Vehicles of one lane pass through each other, which the air
    does not mind."""
    lane, rank = number % highway.lanes, number // highway.lanes
    in_lane = len(range(lane, count, highway.lanes))
    east = lane < (highway.lanes + 1) // 2
    speed_mps = highway.speed_mps * (1 + highway.spread * random.uniform(-1, 1))
    gone_m = highway.length_m * (rank + random.random()) / in_lane
    from_ns, (x_m, y_m) = -round(gone_m / speed_mps * SECOND), highway.corner
    took_ns = max(1, round(highway.length_m / speed_mps * SECOND))
    while True:
        start_m, velocity_mps = (0.0, speed_mps) if east else (highway.length_m, -speed_mps)
        yield Leg(from_ns, from_ns + took_ns, x_m + start_m, y_m + lane * highway.lane_width_m, velocity_mps)
        from_ns += took_ns


def _platoon(platoon: Platoon, number: int) -> Iterator[Leg]:
    x_m, y_m = platoon.start
    yield Leg(0, NEVER_NS, x_m - number * platoon.gap_m, y_m, platoon.speed_mps)
