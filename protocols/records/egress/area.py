"""A box in degrees, and whether a reading was sensed in it. Its place counts as a circle, so the answer may be open."""

import math
from dataclasses import dataclass
from typing import Final

from protocols.base.errors import LocalProtocolError
from protocols.wire.readings import Position

_LEAST_METRES_PER_DEGREE: Final = 110_500.0
"""Of a meridian near the equator, where it is shortest on the ellipsoid of WGS 84."""


@dataclass(frozen=True, slots=True)
class Area:
    """A box. One whose west is larger than its east holds the date line.

    :raises LocalProtocolError: when a side is not on earth, or the box holds nothing.
    """

    south_deg: float
    west_deg: float
    north_deg: float
    east_deg: float

    def __post_init__(self) -> None:
        sides = f"south {self.south_deg}, west {self.west_deg}, north {self.north_deg}, east {self.east_deg}"
        if not -90 <= self.south_deg < self.north_deg <= 90:
            raise LocalProtocolError(f"{sides}: use a south below the north, both from -90 to 90")
        if not (-180 <= self.west_deg <= 180 and -180 <= self.east_deg <= 180) or self.west_deg == self.east_deg:
            raise LocalProtocolError(f"{sides}: use a west and an east that differ, both from -180 to 180")

    def may_hold(self, where: Position) -> bool:
        """Whether some of the circle around ``where`` lies in the box."""
        to_north_deg, to_east_deg = _margins_deg(where)
        if not self.south_deg - to_north_deg <= where.latitude_deg <= self.north_deg + to_north_deg:
            return False
        from_west_deg = (where.longitude_deg - self.west_deg) % 360
        return from_west_deg <= self._width_deg + to_east_deg or from_west_deg >= 360 - to_east_deg

    def surely_holds(self, where: Position) -> bool:
        """Whether all of the circle around ``where`` lies in the box."""
        to_north_deg, to_east_deg = _margins_deg(where)
        if not self.south_deg + to_north_deg <= where.latitude_deg <= self.north_deg - to_north_deg:
            return False
        from_west_deg = (where.longitude_deg - self.west_deg) % 360
        return self._width_deg >= 360 or to_east_deg <= from_west_deg <= self._width_deg - to_east_deg

    @property
    def _width_deg(self) -> float:
        width_deg = self.east_deg - self.west_deg
        return width_deg if width_deg > 0 else width_deg + 360


def _margins_deg(where: Position) -> tuple[float, float]:
    """How far the circle around ``where`` reaches to the north and to the east at most."""
    to_north_deg = where.accuracy_m / _LEAST_METRES_PER_DEGREE
    furthest_deg = abs(where.latitude_deg) + to_north_deg
    if furthest_deg >= 89:  # it may hold a pole, and all longitudes with it
        return to_north_deg, 360.0
    return to_north_deg, to_north_deg / math.cos(math.radians(furthest_deg))
