"""Coarse places and times still hold the true ones, and tell no more than their cell or bucket."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.limits import SECOND
from protocols.records.egress.area import Area
from protocols.records.egress.coarse import coarsened_position, coarsened_time, widened
from protocols.wire.readings import EventTime, Position
from tests.tools.strategies import NOW_UTC_NS, THOROUGH

CELLS_M = st.integers(10, 100_000)
BUCKETS_S = st.integers(1, 86_400)
LATITUDES = st.floats(-90, 90)
LONGITUDES = st.floats(-180, 180)
ACCURACIES_M = st.floats(0, 3e7) | st.just(math.inf) | st.just(1e300)
POSITIONS = st.builds(Position, LATITUDES, LONGITUDES, ACCURACIES_M, st.just(370.0), st.just(90.0))
SEMI_MAJOR_AXIS_M, FLATTENING = 6_378_137.0, 1 / 298.257223563


def on_ellipsoid(latitude_deg: float, longitude_deg: float) -> tuple[float, float, float]:
    """A place of WGS 84 in metres from the centre of the earth."""
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    squared = FLATTENING * (2 - FLATTENING)
    across_m = SEMI_MAJOR_AXIS_M / math.sqrt(1 - squared * math.sin(latitude) ** 2)
    return (
        across_m * math.cos(latitude) * math.cos(longitude),
        across_m * math.cos(latitude) * math.sin(longitude),
        across_m * (1 - squared) * math.sin(latitude),
    )


def distance_m(one: Position, other: Position) -> float:
    """The straight way through the earth, by another formula than the code uses. Over a cell it equals that on the
    surface, but for less than a metre."""
    return math.dist(
        on_ellipsoid(one.latitude_deg, one.longitude_deg), on_ellipsoid(other.latitude_deg, other.longitude_deg)
    )


@given(POSITIONS, CELLS_M)
@THOROUGH
def test_true_place_lies_within_the_accuracy_of_the_coarse_one(where: Position, cell_m: int) -> None:
    """Whoever matches coarse records with a map would otherwise exclude the place where it was."""
    coarse = coarsened_position(where, cell_m)
    if where.accuracy_m < 2e7:
        assert distance_m(where, coarse) + where.accuracy_m <= coarse.accuracy_m
    else:
        assert coarse.accuracy_m >= 2e7
    assert (coarse.altitude_m, coarse.heading_deg) == (None, None)
    assert -90 <= coarse.latitude_deg <= 90
    assert -180 <= coarse.longitude_deg <= 180


@given(POSITIONS, CELLS_M)
@THOROUGH
def test_coarse_place_stays_as_it_is(where: Position, cell_m: int) -> None:
    """A record that passes two gates must not lose accuracy for nothing."""
    coarse = coarsened_position(where, cell_m)
    assert coarsened_position(coarse, cell_m) == coarse


@given(LATITUDES, LONGITUDES, st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1), CELLS_M)
@THOROUGH
def test_places_of_one_cell_can_not_be_told_apart(
    latitude_deg: float, longitude_deg: float, accurate: float, north: float, east: float, cell_m: int
) -> None:
    """An accuracy of "distance from the centre" would put the place on a thin ring."""
    centre = coarsened_position(Position(latitude_deg, longitude_deg, 1.0), cell_m)
    near_m = cell_m * 0.49
    shifted_deg = north * near_m / 111_195
    width_deg = east * near_m / 111_195 / max(1e-6, math.cos(math.radians(centre.latitude_deg)))
    inside = Position(centre.latitude_deg + shifted_deg, centre.longitude_deg + width_deg, accurate * cell_m / 2)
    if not -180 <= inside.longitude_deg <= 180 or not -90 <= inside.latitude_deg <= 90:
        return
    assert coarsened_position(inside, cell_m) == centre


def test_cells_are_as_large_as_asked_for_and_accuracy_is_two_half_diagonals() -> None:
    """The size that an operator writes is what an observer sees."""
    home = Position(48.76612345, 11.42981234, 3.0, 370.0, 12.0)
    coarse = coarsened_position(home, 500)
    assert coarse.accuracy_m == pytest.approx(2 * math.hypot(250, 250), rel=0.02)
    rows = {
        coarsened_position(Position(home.latitude_deg + step * 0.0001, home.longitude_deg, 3.0), 500).latitude_deg
        for step in range(100)
    }
    south, *_, north = sorted(rows)
    assert (north - south) * 111_195 / (len(rows) - 1) == pytest.approx(500, rel=0.01)


@given(st.integers(0, 2**62), st.integers(0, 2**62), BUCKETS_S)
@THOROUGH
def test_true_time_lies_within_the_uncertainty_of_the_coarse_one(
    utc_ns: int, uncertainty_ns: int, bucket_s: int
) -> None:
    """And what is coarse stays as it is."""
    coarse = coarsened_time(EventTime(utc_ns, uncertainty_ns), bucket_s)
    assert abs(coarse.utc_ns - utc_ns) + uncertainty_ns <= coarse.uncertainty_ns
    assert coarsened_time(coarse, bucket_s) == coarse


@given(st.integers(0, 10**6), st.integers(0, SECOND // 2), BUCKETS_S)
@THOROUGH
def test_times_of_one_bucket_can_not_be_told_apart(offset_ns: int, uncertainty_ns: int, bucket_s: int) -> None:
    """As for places."""
    begins_ns = NOW_UTC_NS // (bucket_s * SECOND) * bucket_s * SECOND
    first = coarsened_time(EventTime(begins_ns, 0), bucket_s)
    assert coarsened_time(EventTime(begins_ns + offset_ns, uncertainty_ns), bucket_s) == first


@given(st.integers(0, 2**62), st.integers(0, 2**62), BUCKETS_S)
@THOROUGH
def test_wide_window_holds_the_true_one_and_stays_as_it_is(start_ns: int, length_ns: int, bucket_s: int) -> None:
    """A window that began within an hour may not say in which second."""
    start, end = widened(start_ns, start_ns + length_ns, bucket_s)
    assert start <= start_ns <= start_ns + length_ns <= end
    assert start % (bucket_s * SECOND) == end % (bucket_s * SECOND) == 0
    assert widened(start, end, bucket_s) == (start, end)


@pytest.mark.parametrize(
    ("area", "latitude_deg", "longitude_deg", "accuracy_m", "may", "surely"),
    [
        (Area(48, 11, 49, 12), 48.5, 11.5, 3.0, True, True),
        (Area(48, 11, 49, 12), 47.9999, 11.5, 3.0, False, False),
        (Area(48, 11, 49, 12), 47.9999, 11.5, 30.0, True, False),
        (Area(48, 11, 49, 12), 48.5, 10.9999, 30.0, True, False),
        (Area(48, 11, 49, 12), 48.5, 12.0001, 30.0, True, False),
        (Area(48, 11, 49, 12), 48.5, 12.01, 30.0, False, False),
        (Area(48, 11, 49, 12), 0.0, 0.0, math.inf, True, False),
        (Area(-1, 179, 1, -179), 0.0, -179.5, 3.0, True, True),
        (Area(-1, 179, 1, -179), 0.0, 180.0, 3.0, True, True),
        (Area(-1, 179, 1, -179), 0.0, 178.0, 3.0, False, False),
        (Area(80, 0, 90, 1), 89.9, -120.0, 20_000.0, True, False),
        (Area(-90, -180, 90, 180), 1.0, 180.0, 3.0, True, True),
    ],
)
def test_area_counts_a_place_as_a_circle(
    area: Area, latitude_deg: float, longitude_deg: float, accuracy_m: float, may: bool, surely: bool
) -> None:
    """A reading from just outside of a home's box may come from the home."""
    where = Position(latitude_deg, longitude_deg, accuracy_m)
    assert (area.may_hold(where), area.surely_holds(where)) == (may, surely)
