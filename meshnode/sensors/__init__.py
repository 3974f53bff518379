"""Sensor drivers: where a node's readings come from, and how other packages plug theirs in."""

from meshnode.sensors.contract import Driver, DriverContext, Inference, Sample
from meshnode.sensors.options import Options
from meshnode.sensors.plugins import available_drivers, create_driver, driver_named

__all__ = [
    "Driver",
    "DriverContext",
    "Inference",
    "Options",
    "Sample",
    "available_drivers",
    "create_driver",
    "driver_named",
]
