"""Metres on the plane that touches the ellipsoid, which the simulator and the nodes share."""

import pytest

from meshnode.sumo.geodesy import Plane


def test_plane_measures_metres_on_the_ellipsoid() -> None:
    """A degree of latitude at 48° is 111.2 km, one of longitude 74.6 km (tables of WGS 84)."""
    plane = Plane(48.0, 11.0)
    assert plane.metres(49.0, 11.0)[1] == pytest.approx(111_200, abs=20)
    assert plane.metres(48.0, 12.0)[0] == pytest.approx(74_628, abs=5)
    assert plane.degrees(*plane.metres(48.1, 11.2)) == pytest.approx((48.1, 11.2))
    assert Plane(0.0, 179.9).metres(0.0, -179.9)[0] == pytest.approx(22_264, abs=5)  # over the date line
