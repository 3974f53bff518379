"""Sensors as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.sensors.running import RunningSensors

    return RunningSensors(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.sensors.section import SensorsSection

    return (SensorsSection,)


SENSORS: Final = Part("sensors", _start, _sections)
