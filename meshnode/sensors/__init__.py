"""Sensor drivers: where a node's readings come from, and how other packages plug theirs in.

Names are imported when they are used: a command that only lists the node's parts must not load them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.sensors.contract import CheckedDriver, DriverContext, InferenceSample, Sample, SensorDriver, checked
    from meshnode.sensors.options import Options
    from meshnode.sensors.plugins import available_drivers, create_driver, driver_named

_HOMES = {
    "CheckedDriver": "meshnode.sensors.contract",
    "DriverContext": "meshnode.sensors.contract",
    "InferenceSample": "meshnode.sensors.contract",
    "Options": "meshnode.sensors.options",
    "Sample": "meshnode.sensors.contract",
    "SensorDriver": "meshnode.sensors.contract",
    "checked": "meshnode.sensors.contract",
    "available_drivers": "meshnode.sensors.plugins",
    "create_driver": "meshnode.sensors.plugins",
    "driver_named": "meshnode.sensors.plugins",
}

__all__ = [
    "CheckedDriver",
    "DriverContext",
    "InferenceSample",
    "Options",
    "Sample",
    "SensorDriver",
    "available_drivers",
    "checked",
    "create_driver",
    "driver_named",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshnode.sensors' has no attribute {name!r}")
    return getattr(import_module(home), name)
