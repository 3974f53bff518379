"""What a satellite receiver found out, whichever protocol told it."""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class FixKind(Enum):
    """How a fix came about, best first."""

    RTK_FIXED = "rtk_fixed"
    RTK_FLOAT = "rtk_float"
    DIFFERENTIAL = "differential"
    AUTONOMOUS = "autonomous"
    ESTIMATED = "estimated"
    """Dead reckoning: worked out from earlier fixes."""
    SIMULATED = "simulated"
    """Made up, or typed in by hand."""


QUALITY: Final = {
    FixKind.RTK_FIXED: 1.0,
    FixKind.RTK_FLOAT: 0.9,
    FixKind.DIFFERENTIAL: 0.9,
    FixKind.AUTONOMOUS: 0.8,
    FixKind.ESTIMATED: 0.3,
    FixKind.SIMULATED: 0.1,
}
"""The quality of a reading by the kind of its fix in three dimensions."""
FLAT_SHARE: Final = 0.6
"""What is left of the quality of a fix in two dimensions: three satellites, and a height that is assumed."""


@dataclass(frozen=True, slots=True)
class Ellipse:
    """The error ellipse of a position, one standard deviation."""

    major_m: float
    minor_m: float
    orientation_deg: float
    """Of the major axis, clockwise from true north."""


@dataclass(frozen=True, slots=True)
class SatelliteFix:
    """One fix, in WGS 84."""

    dimensions: int
    """2 or 3."""
    latitude_deg: float
    longitude_deg: float
    accuracy_m: float
    """The radius of the 68 % circle, or more."""
    utc_ns: int | None = None
    """When it was so; None: the receiver does not know the time."""
    time_error_ns: int = 0
    kind: FixKind = FixKind.AUTONOMOUS
    altitude_m: float | None = None
    """Height above the ellipsoid."""
    heading_deg: float | None = None
    """Direction of motion, clockwise from true north, below 360."""
    speed_mps: float | None = None
    ellipse: Ellipse | None = None
    satellites: int | None = None

    @property
    def quality(self) -> float:
        """0 to 1, by its kind and dimensions."""
        return QUALITY[self.kind] * (1.0 if self.dimensions == 3 else FLAT_SHARE)


@dataclass(frozen=True, slots=True)
class NoFix:
    """The receiver says that it has none."""

    why: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """A pulse per second: the true time at which this host's clock showed ``clock_utc_ns``."""

    utc_ns: int
    clock_utc_ns: int


Heard = SatelliteFix | NoFix | Pulse
"""What a line of a receiver says."""
