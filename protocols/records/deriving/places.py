"""Distances between the positions of readings, and the circle that holds several of them."""

import math
from typing import Final

from protocols.wire.readings import Position

EARTH_RADIUS_M: Final = 6_371_008.8
"""The mean radius of WGS 84."""


def distance_m(one: Position, other: Position) -> float:
    """The distance of two positions on the sphere, by the haversine formula; their heights and accuracies don't
    count. The sphere makes it wrong by at most 0.6 %."""
    north, other_north = math.radians(one.latitude_deg), math.radians(other.latitude_deg)
    east = math.radians(other.longitude_deg - one.longitude_deg)
    chord = math.sin((other_north - north) / 2) ** 2 + math.cos(north) * math.cos(other_north) * math.sin(east / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(chord)))


def enclosing_circle(
    south_deg: float, west_deg: float, north_deg: float, east_deg: float, accuracy_m: float
) -> Position:
    """The circle around a rectangle, wider by ``accuracy_m``. A rectangle that lies on both sides of the date line gets
    one that is too large."""
    latitude_deg = (south_deg + north_deg) / 2
    longitude_deg = (west_deg + east_deg) / 2
    to_north_m = math.radians(north_deg - south_deg) / 2 * EARTH_RADIUS_M
    to_east_m = math.radians(east_deg - west_deg) / 2 * EARTH_RADIUS_M
    nearest_equator_deg = 0.0 if south_deg <= 0 <= north_deg else min(abs(south_deg), abs(north_deg))
    to_east_m *= math.cos(math.radians(nearest_equator_deg))
    return Position(latitude_deg, longitude_deg, math.hypot(to_north_m, to_east_m) + accuracy_m)
