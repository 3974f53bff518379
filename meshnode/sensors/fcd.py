"""Drives one vehicle along a SUMO trace: position, speed, and a hazard when it brakes hard.

Options: ``file`` (default: the trace of Ingolstadt that comes with the package), ``vehicle`` (an id) or ``pick`` (0 is
the vehicle that stays longest), ``start_s`` (trace time that becomes the start; default: where the vehicle appears),
``rate`` (2 plays twice as fast), ``loop``, ``hard_braking_mps2`` (a stronger deceleration is published as a hazard),
``accuracy_m`` (of the position).

Speed and heading come from the positions where the file gives none (``--fcd-output.attributes x,y``). Rows that make no
sense are skipped and counted. Of a file that is cut off the whole time steps are replayed, and the log says where it
ends.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Self

from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.fcd_trace import BadVehicles, Fix, Presence, check_beginning, fixes, presences
from meshnode.sensors.options import Options
from meshnode.sumo.floating_car import MAX_VEHICLES, shown_s
from meshnode.sumo.motion import SPEED_OVER_S
from protocols.base.errors import ConfigError
from protocols.wire.readings import Position

DEFAULT_TRACE: Final = Path(__file__).parent / "data" / "ingolstadt.fcd.xml.gz"
SENSOR: Final = "sumo-fcd"
HAZARD_LIFESPAN_MS: Final = 2_000
"""A vehicle that brakes hard has stopped by then, or no longer brakes."""
_MAX_PAST: Final = 1_024
_ROUNDING_S: Final = 1e-6


class FcdReplay:
    """Replays the fixes of one vehicle of a trace."""

    def __init__(
        self,
        prefix: str,
        path: Path,
        vehicle: str,
        start_s: float | None = None,
        rate: float = 1.0,
        loop: bool = False,
        hard_braking_mps2: float = 3.0,
        accuracy_m: float = 1.0,
        skipped: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.vehicle = vehicle
        self._prefix = prefix
        self._path = path
        self._start_s = start_s
        self._rate = rate
        self._loop = loop
        self._hard_braking_mps2 = hard_braking_mps2
        self._accuracy_m = accuracy_m
        self._skipped = skipped

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """See the module for the options. It reads the beginning of the trace; ``pick`` reads the whole of it once.

        :raises ConfigError: an option is wrong, or the file is no trace in degrees.
        """
        read = Options("fcd", options)
        path = read.file("file", context.folder, DEFAULT_TRACE)
        start_s = read.number("start_s", 0.0, 0.0, 1e9) if read.has("start_s") else None
        rate = read.number("rate", 1.0, 0.01, 100.0)
        loop = read.flag("loop", False)
        hard_braking_mps2 = read.number("hard_braking_mps2", 3.0, 0.5, 20.0)
        accuracy_m = read.number("accuracy_m", 1.0, 0.0, 1_000.0)
        named, picked = read.has("vehicle"), read.has("pick")
        vehicle = read.text("vehicle", "-")
        pick = read.integer("pick", 0, 0, MAX_VEHICLES)
        read.finish()
        if named and picked:
            raise ConfigError("sensor driver 'fcd': both 'vehicle' and 'pick' are given: keep one of them")
        check_beginning(path)
        if not named:
            bad = BadVehicles()
            vehicle = _picked(presences(path, bad), path, pick, start_s)
            for why, count in bad.apart_from(vehicle):
                context.skipped(why, count)
        return cls(context.prefix, path, vehicle, start_s, rate, loop, hard_braking_mps2, accuracy_m, context.skipped)

    def samples(self) -> Generator[Sample, None, None]:
        """Two samples for each fix, three while the vehicle brakes hard."""
        lap_starts_s = 0.0
        from_s = -math.inf if self._start_s is None else self._start_s
        bad: list[str] = []

        def skipped(vehicle: str | None, why: str) -> None:
            if vehicle == self.vehicle and not bad:
                bad.append(why)
            self._skipped(why)

        while True:
            due_s = lap_starts_s
            origin_s, previous, step_s = self._start_s, None, 0.0
            past: deque[Fix] = deque(maxlen=_MAX_PAST)
            for fix in fixes(self._path, self.vehicle, from_s, skipped):
                origin_s = fix.time_s if origin_s is None else origin_s
                due_s = lap_starts_s + (fix.time_s - origin_s) / self._rate
                if previous is not None:
                    step_s = fix.time_s - previous.time_s
                yield from self._of_fix(due_s, fix, _compared(past, fix))
                previous = fix
                past.append(fix)
            if previous is None:
                if bad:
                    raise ConfigError(f"vehicle {self.vehicle[:60]!r} has no row that makes sense: {bad[0]}")
                raise self._absent()
            if not self._loop:
                return
            # A trace of a single fix gives no step. Without a step, time would not pass in a loop.
            lap_starts_s = due_s + (step_s or 1.0) / self._rate

    def _of_fix(self, due_s: float, fix: Fix, earlier: Fix | None) -> Iterator[Sample]:
        where = Position(fix.latitude_deg, fix.longitude_deg, self._accuracy_m, None, fix.heading_deg)
        heading = {} if fix.heading_deg is None else {"heading_deg": fix.heading_deg}
        if fix.speed_mps is not None:
            if earlier is not None and earlier.speed_mps is not None and fix.time_s > earlier.time_s:
                deceleration_mps2 = (earlier.speed_mps - fix.speed_mps) / (fix.time_s - earlier.time_s)
                if deceleration_mps2 > self._hard_braking_mps2:
                    value = {
                        "kind": "hard_braking",
                        "deceleration_mps2": round(deceleration_mps2, 2),
                        "speed_mps": fix.speed_mps,
                        **heading,
                    }
                    yield Sample(
                        due_s,
                        f"{self._prefix}/hazard",
                        value,
                        sensor=SENSOR,
                        where=where,
                        priority=7,
                        lifespan_ms=HAZARD_LIFESPAN_MS,
                        hazard=True,
                    )
            yield Sample(due_s, f"{self._prefix}/speed", fix.speed_mps, "m/s", SENSOR, where, priority=4)
        position = {"latitude_deg": fix.latitude_deg, "longitude_deg": fix.longitude_deg, **heading}
        yield Sample(due_s, f"{self._prefix}/position", position, "deg", SENSOR, where, priority=4)

    def _absent(self) -> ConfigError:
        spans = {presence.vehicle: presence for presence in presences(self._path)}
        if self.vehicle in spans:
            span = spans[self.vehicle]
            return ConfigError(
                f"vehicle {self.vehicle!r} is in trace {self._path} from {shown_s(span.first_s)} to "
                f"{shown_s(span.last_s)} s: give a 'start_s' before that end instead of {shown_s(self._start_s or 0.0)}"
            )
        near = get_close_matches(self.vehicle, spans, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "use 'pick' to have one chosen"
        return ConfigError(f"vehicle {self.vehicle[:60]!r} is not in trace {self._path}: {hint}")


def _picked(there: list[Presence], path: Path, pick: int, start_s: float | None) -> str:
    def length_s(presence: Presence) -> float:
        return presence.last_s - (presence.first_s if start_s is None else start_s)

    candidates = [each for each in there if start_s is None or each.first_s <= start_s <= each.last_s]
    candidates.sort(key=length_s, reverse=True)
    if pick >= len(candidates):
        when = "" if start_s is None else f" at {shown_s(start_s)} s"
        raise ConfigError(
            f"sensor driver 'fcd': option 'pick' is {pick}, but trace {path} has {len(candidates)} vehicles{when}: "
            "give a smaller number, from 0"
        )
    return candidates[pick].vehicle


def _compared(past: deque[Fix], fix: Fix) -> Fix | None:
    """The earlier fix whose speed tells how hard the vehicle brakes: the one before. A speed that was worked out from
    rounded positions is compared with one that is ``SPEED_OVER_S`` older: each rounding would look like braking."""
    over_s = SPEED_OVER_S - _ROUNDING_S if fix.derived else 0.0
    while len(past) > 1 and fix.time_s - past[1].time_s >= over_s:
        past.popleft()
    return past[0] if past and fix.time_s - past[0].time_s >= over_s else None
