"""The box around places on the earth, which may cross 180°.

The box of longitudes is the shortest one that has all of them: its complement is the widest gap that they leave. They
are kept in bins of a tenth of a degree, with the least and the greatest of each, so the memory is bounded and the edges
are exact; gaps inside one bin don't count.
"""

from itertools import pairwise
from typing import Final, NamedTuple

_BINS_PER_DEGREE: Final = 10


class EarthBox(NamedTuple):
    """In the order of RFC 7946, section 5, which GeoParquet takes: ``west`` greater than ``east`` crosses 180°."""

    west_deg: float
    south_deg: float
    east_deg: float
    north_deg: float


class PlacesSeen:
    """Takes places one by one."""

    def __init__(self) -> None:
        self._bins: dict[int, tuple[float, float]] = {}
        self._south, self._north = 90.0, -90.0

    def add(self, latitude_deg: float, longitude_deg: float) -> None:
        """Add a place."""
        self._south = min(self._south, latitude_deg)
        self._north = max(self._north, latitude_deg)
        number = int((longitude_deg + 180.0) * _BINS_PER_DEGREE)
        west, east = self._bins.get(number, (longitude_deg, longitude_deg))
        if west >= longitude_deg or east <= longitude_deg:
            self._bins[number] = min(west, longitude_deg), max(east, longitude_deg)

    def bounds(self) -> EarthBox | None:
        """The box around all of them; None: there was none."""
        if not self._bins:
            return None
        spans = [self._bins[number] for number in sorted(self._bins)]
        west, east = spans[0][0], spans[-1][1]
        widest = west + 360.0 - east  # the gap that has 180° in it
        for (_, before), (after, _) in pairwise(spans):
            if after - before > widest:
                widest, west, east = after - before, after, before
        return EarthBox(west, self._south, east, self._north)
