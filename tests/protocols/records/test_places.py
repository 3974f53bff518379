"""Distances between positions."""

import pytest

from protocols.records.deriving.places import distance_m, enclosing_circle
from protocols.wire.readings import Position


@pytest.mark.parametrize(
    ("one", "other", "expected_m"),
    [
        ((48.7, 11.4), (48.7, 11.4), 0.0),
        ((0.0, 0.0), (0.0, 90.0), 10_007_557.0),
        ((90.0, 0.0), (-90.0, 0.0), 20_015_115.0),
        ((0.0, 179.9995), (0.0, -179.9995), 111.195),
        ((48.7665, 11.4258), (48.7675, 11.4258), 111.195),
    ],
)
def test_distance_is_along_the_sphere(one: tuple[float, float], other: tuple[float, float], expected_m: float) -> None:
    """Also over a pole and the date line."""
    assert distance_m(Position(*one, 1.0), Position(*other, 9.0)) == pytest.approx(expected_m, abs=1)


def test_enclosing_circle_holds_the_corners_of_its_rectangle() -> None:
    """Whoever searches in it must find each reading."""
    circle = enclosing_circle(48.70, 11.40, 48.72, 11.42, 5.0)
    for north_deg in (48.70, 48.72):
        for east_deg in (11.40, 11.42):
            assert distance_m(circle, Position(north_deg, east_deg, 0.0)) <= circle.accuracy_m
