"""From fixes and their absence to samples.

While there is no fix, the position of the node stays where it was last, and its accuracy grows with the way that the
node may have gone since. Once a second a reading of ``<prefix>/gnss`` says why there is none, so no gap is unexplained.
"""

from collections.abc import Iterator
from typing import Any, Final

from meshnode.sensors.contract import DriverContext, Sample
from meshnode.sensors.gnss.clocking import ClockBounds
from meshnode.sensors.gnss.fixes import Pulse, SatelliteFix
from protocols.base.limits import SECOND
from protocols.wire.readings import EventTime, Position

HEADING_FROM_MPS: Final = 0.5
"""Below this the direction of motion is noise: the heading stays what it was."""
FASTER_MPS: Final = 2.0
"""What is added to the last speed, for each second without a fix up to ten: a vehicle may accelerate meanwhile."""
_ACCELERATES_S: Final = 10.0
MAX_ACCURACY_M: Final = 1e6
"""Beyond this nothing is said by the position any more."""
SILENT_S: Final = 2.0
"""A receiver that has said nothing for this long is silent: most give a fix each second."""
STATUS_EVERY_S: Final = 10.0
"""How often the state is told while it does not change. Without a fix it is every second."""
_EARLIEST_UTC_NS: Final = 1_735_689_600 * SECOND
"""2025-01-01. A fix before it comes from a receiver whose count of weeks has begun again."""


class Tracker:
    """The receiver of one node as it is known now. ``replays``: fixes of a file, whose times say nothing of now."""

    def __init__(self, context: DriverContext, sensor: str, latency_ns: int, replays: bool = False) -> None:
        self._context, self._sensor, self._replays = context, sensor, replays
        self._clock = ClockBounds(context.clock_uncertainty_ns, latency_ns)
        self._last: SatelliteFix | None = None
        self._heading_deg: float | None = None
        self._fixed_s = self._heard_s = self._told_s = -1e9
        self._status: dict[str, Any] = {}
        self._why: str | None = None

    def pulsed(self, pulse: Pulse) -> None:
        """Note a pulse per second."""
        self._clock.pulsed(pulse.utc_ns, pulse.clock_utc_ns)

    def fixed(self, fix: SatelliteFix, due_s: float, clock_utc_ns: int) -> Iterator[Sample]:
        """The samples of a fix that came at ``due_s``, when the clock showed ``clock_utc_ns``: position, speed, and now
        and then the state."""
        if fix.speed_mps is None or fix.speed_mps >= HEADING_FROM_MPS:
            self._heading_deg = fix.heading_deg
        self._last, self._fixed_s, self._heard_s = fix, due_s, due_s
        if self._why != "":
            self._why = ""
            self._context.trouble("")
        when, uncertainty_ns = self._timed(fix, clock_utc_ns)
        where = Position(
            fix.latitude_deg, fix.longitude_deg, min(fix.accuracy_m, MAX_ACCURACY_M), fix.altitude_m, self._heading_deg
        )
        prefix, quality = self._context.prefix, fix.quality
        yield Sample(
            due_s, f"{prefix}/position", self._value(fix), "deg", self._sensor, where, quality, 4,
            when=when, clock_uncertainty_ns=uncertainty_ns,
        )  # fmt: skip
        if fix.speed_mps is not None:
            yield Sample(due_s, f"{prefix}/speed", fix.speed_mps, "m/s", self._sensor, where, quality, 4, when=when)
        status: dict[str, Any] = {"fix": f"{fix.dimensions}d", "kind": fix.kind.value}
        if status != self._status or due_s - self._told_s >= STATUS_EVERY_S:
            yield self._told(status, due_s, where, fix.satellites)

    def missing(self, why: str, due_s: float) -> Iterator[Sample]:
        """There is no fix now, and why: at most one sample a second."""
        self._heard_s = due_s
        if why != self._why:
            self._why = why
            self._context.trouble(why)
        if due_s - self._told_s >= 1.0 or self._status.get("fix") != "none":
            status: dict[str, Any] = {"fix": "none", "why": why}
            if self._last is not None:
                status["since_s"] = round(due_s - self._fixed_s, 1)
            yield self._told(status, due_s, self._grown(due_s))

    def waited(self, due_s: float, silent: str) -> Iterator[Sample]:
        """Time has passed. ``silent``: what to say of a receiver that says nothing."""
        if self._heard_s < 0:
            self._heard_s = due_s
        if due_s - self._heard_s >= SILENT_S:
            heard_s = self._heard_s
            yield from self.missing(silent, due_s)
            self._heard_s = heard_s

    def _told(
        self, status: dict[str, Any], due_s: float, where: Position | None, satellites: int | None = None
    ) -> Sample:
        self._status, self._told_s = status, due_s
        value = status if satellites is None else {**status, "satellites": satellites}
        return Sample(due_s, f"{self._context.prefix}/gnss", value, "1", self._sensor, where, priority=3)

    def _grown(self, due_s: float) -> Position | None:
        """Where the node is by the last fix, which it may have left since."""
        fix = self._last
        if fix is None:
            return None
        gone_s = due_s - self._fixed_s
        speed_mps = (fix.speed_mps or 0.0) + FASTER_MPS * min(gone_s, _ACCELERATES_S)
        accuracy_m = min(fix.accuracy_m + speed_mps * gone_s, MAX_ACCURACY_M)
        return Position(fix.latitude_deg, fix.longitude_deg, accuracy_m, fix.altitude_m, self._heading_deg)

    def _timed(self, fix: SatelliteFix, clock_utc_ns: int) -> tuple[EventTime | None, int | None]:
        """The time of a fix, and what the node's clock is worth."""
        if fix.utc_ns is None or self._replays:
            return None, None
        if fix.utc_ns < _EARLIEST_UTC_NS:
            self._context.skipped(
                f"the receiver says it is {fix.utc_ns // SECOND} s after 1970, which is long ago: its count of weeks "
                "has begun again; its time is not used. Update or replace it"
            )
            return None, None
        self._clock.fixed(fix.utc_ns, fix.time_error_ns, clock_utc_ns)
        return EventTime(fix.utc_ns, fix.time_error_ns), self._clock.uncertainty_ns(clock_utc_ns)

    def _value(self, fix: SatelliteFix) -> dict[str, Any]:
        value: dict[str, Any] = {
            "latitude_deg": fix.latitude_deg,
            "longitude_deg": fix.longitude_deg,
            "fix": f"{fix.dimensions}d",
            "kind": fix.kind.value,
        }
        if self._heading_deg is not None:
            value["heading_deg"] = self._heading_deg
        if fix.altitude_m is not None:
            value["altitude_m"] = fix.altitude_m
        if fix.ellipse is not None:
            value["error_ellipse"] = {
                "major_m": fix.ellipse.major_m,
                "minor_m": fix.ellipse.minor_m,
                "orientation_deg": fix.ellipse.orientation_deg,
            }
        return value
