"""Converts degrees to metres and back, on the plane that touches the ellipsoid at an origin.

Radii of curvature of WGS 84 after Snyder, Map Projections: A Working Manual (USGS Professional Paper 1395, 1987),
equations 4-18 and 4-20. Within 20 km of the origin the error is below 0.2 % at latitudes up to 60°: a map of a town.
"""

import math
from typing import Final

_SEMI_MAJOR_AXIS_M: Final = 6_378_137.0
_ECCENTRICITY_SQUARED: Final = 0.00669437999014


class Plane:
    """A plane of metres east and north of an origin."""

    def __init__(self, latitude_deg: float, longitude_deg: float) -> None:
        latitude = math.radians(latitude_deg)
        bulge = 1 - _ECCENTRICITY_SQUARED * math.sin(latitude) ** 2
        self._origin = (latitude_deg, longitude_deg)
        self._east_m = math.radians(_SEMI_MAJOR_AXIS_M / math.sqrt(bulge) * math.cos(latitude))
        self._north_m = math.radians(_SEMI_MAJOR_AXIS_M * (1 - _ECCENTRICITY_SQUARED) / bulge**1.5)

    def metres(self, latitude_deg: float, longitude_deg: float) -> tuple[float, float]:
        """Metres east and north of the origin. The date line is no border."""
        east_deg = (longitude_deg - self._origin[1] + 180.0) % 360.0 - 180.0
        return east_deg * self._east_m, (latitude_deg - self._origin[0]) * self._north_m

    def degrees(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Latitude and longitude of a place in metres."""
        longitude_deg = self._origin[1] + x_m / self._east_m
        return self._origin[0] + y_m / self._north_m, (longitude_deg + 180.0) % 360.0 - 180.0
