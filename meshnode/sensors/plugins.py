"""Finds drivers by name: those that come with a node, then entry points of the group ``meshnode.sensors``.

A built-in name can't be taken over: a package that is installed for one driver must not quietly replace another.
"""

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from meshnode.sensors.contract import DriverContext, SensorDriver
from protocols.base.errors import ConfigError, MeshError, SourceUnavailable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "meshnode.sensors"

_BUILT_IN: Final = {
    "camera": "meshnode.sensors.camera.driver:Camera",
    "can": "meshnode.sensors.can_bus.driver:CanDriver",
    "csv": "meshnode.sensors.csv_replay:CsvReplay",
    "fcd": "meshnode.sensors.fcd:FcdReplay",
    "gpsd": "meshnode.sensors.gnss.gpsd:GpsdDriver",
    "host": "meshnode.sensors.host:HostMetrics",
    "images": "meshnode.sensors.images:ImageFolder",
    "nmea": "meshnode.sensors.gnss.nmea:NmeaDriver",
    "series": "meshnode.sensors.series.driver:SeriesReplay",
}


def available_drivers() -> list[str]:
    """The sorted names of all drivers."""
    from importlib.metadata import entry_points

    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def driver_named(name: str) -> type[SensorDriver]:
    """The driver class of that name.

    :raises ConfigError: there is none (the message lists those that exist), or its package can't be imported.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    # Imported only here: reading the metadata of packages is slow, and nodes start without other packages' drivers.
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=name):
        return _loaded(point)
    names = available_drivers()
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"there is no sensor driver {name[:60]!r}: {hint}Installed are {', '.join(names)}; "
        f"others plug in by an entry point of the group {GROUP!r}"
    )


def create_driver(name: str, options: Mapping[str, Any], context: DriverContext) -> SensorDriver:
    """A driver ready to give samples.

    :raises ConfigError: there is none of that name, or an option is wrong; as a :class:`SourceUnavailable`, what an
        option names can't be used now.
    """
    driver = driver_named(name)
    try:
        return driver.from_options(options, context)
    except MeshError:
        raise
    except Exception as error:  # a foreign driver may raise anything, such as the error of a device
        raise SourceUnavailable(f"sensor driver {name!r} could not begin: {error!r}") from error


def _loaded(point: "EntryPoint") -> type[SensorDriver]:
    package = point.dist.name if point.dist else "unknown"
    try:
        driver = point.load()
    except Exception as error:  # A foreign module may raise anything when it is imported.
        raise ConfigError(
            f"sensor driver {point.name!r} of package {package!r} can't be imported ({error!r}): repair or remove it"
        ) from error
    if not callable(getattr(driver, "from_options", None)) or not callable(getattr(driver, "samples", None)):
        raise ConfigError(
            f"sensor driver {point.name!r} of package {package!r} is {point.value!r}, which has no 'from_options' and "
            "'samples': see meshnode.sensors.SensorDriver"
        )
    return driver  # type: ignore[no-any-return]
