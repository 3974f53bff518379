"""Places and times made coarse: a position becomes the centre of a cell of a fixed grid, an instant the middle of a
bucket.

Invariants:

- Everything in one cell or bucket looks the same. What is told of the error is a multiple of half the cell or bucket,
  so it does not say how far from the centre the original was.
- The true place lies within ``accuracy_m`` of the centre if it lay within that of the original, and the true time
  within ``uncertainty_ns`` of the middle.
- What is coarse already stays as it is.

The grid has rows of equal height between the poles, each divided into columns of equal width, so that cells are at
least as high and as wide as asked for and the grid closes at the date line.
"""

import math
from typing import Final

from protocols.base.limits import SECOND
from protocols.wire.readings import EventTime, Position

_METRES_PER_DEGREE: Final = 111_195.0
"""Of a great circle of a sphere with the mean radius of the earth."""
_ELLIPSOID: Final = 1.01
"""Distances on the ellipsoid of WGS 84 are up to 0.7 % longer than on that sphere."""
_ANYWHERE_M: Final = 20_040_000.0
"""No two places are further apart: half of the equator."""


def coarsened_position(where: Position, cell_m: int) -> Position:
    """The centre of the cell that holds ``where``, without altitude and heading. A cell is at least ``cell_m`` wide."""
    rows = max(1, int(180 * _METRES_PER_DEGREE / cell_m))
    height_deg = 180 / rows
    row = min(int((where.latitude_deg + 90) / height_deg), rows - 1)
    latitude_deg = (row + 0.5) * height_deg - 90
    columns = max(1, int(360 * _METRES_PER_DEGREE * math.cos(math.radians(latitude_deg)) / cell_m))
    width_deg = 360 / columns
    column = int((where.longitude_deg + 180) / width_deg) % columns
    longitude_deg = (column + 0.5) * width_deg - 180
    is_coarse = where.latitude_deg == latitude_deg and where.longitude_deg == longitude_deg
    reach_m = _reach_m(latitude_deg, height_deg, width_deg)
    reaches = math.ceil(min(where.accuracy_m, _ANYWHERE_M) / reach_m) + (not is_coarse)
    return Position(latitude_deg, longitude_deg, min(_ANYWHERE_M, max(2, reaches) * reach_m))


def _reach_m(latitude_deg: float, height_deg: float, width_deg: float) -> float:
    """A whole number of metres that is at least the distance from the centre of a cell to its corners.

    A straight line in degrees is no shorter than the way on the sphere, and its part to the east is longest where the
    cell is nearest to the equator.
    """
    nearest_equator_deg = max(0.0, abs(latitude_deg) - height_deg / 2)
    to_east_deg = width_deg / 2 * math.cos(math.radians(nearest_equator_deg))
    return float(math.ceil(math.hypot(height_deg / 2, to_east_deg) * _METRES_PER_DEGREE * _ELLIPSOID))


def coarsened_time(when: EventTime, bucket_s: int) -> EventTime:
    """The middle of the bucket that holds ``when``. Buckets of ``bucket_s`` seconds begin at 1970-01-01T00:00:00Z."""
    bucket_ns = bucket_s * SECOND
    half_ns = bucket_ns // 2
    middle_ns = when.utc_ns // bucket_ns * bucket_ns + half_ns
    halves = -(-when.uncertainty_ns // half_ns) + (when.utc_ns != middle_ns)
    return EventTime(middle_ns, max(2, halves) * half_ns)


def widened(start_ns: int, end_ns: int, bucket_s: int) -> tuple[int, int]:
    """The shortest interval of whole buckets that holds another one."""
    bucket_ns = bucket_s * SECOND
    return start_ns // bucket_ns * bucket_ns, -(-end_ns // bucket_ns) * bucket_ns
