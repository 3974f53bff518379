"""Sensor drivers: where a node's readings come from, and how other packages plug theirs in."""

from meshnode.sensors.contract import DriverContext, InferenceSample, Sample, SensorDriver
from meshnode.sensors.options import Options
from meshnode.sensors.plugins import available_drivers, create_driver, driver_named

__all__ = [
    "DriverContext",
    "InferenceSample",
    "Options",
    "Sample",
    "SensorDriver",
    "available_drivers",
    "create_driver",
    "driver_named",
]
