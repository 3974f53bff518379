"""The section of sensors."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from meshnode.config.kinds import Name
from meshnode.config.parsing import Section
from meshnode.config.sections import PartSection


class SensorSection(Section, frozen=True, kw_only=True):
    """A source of readings. Keys other than `driver` go to the driver: see [sensor drivers](sensors.md)."""

    free_keys: ClassVar[str | None] = "options"

    driver: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=100,
            description="Name of the driver: an entry point of the group `meshnode.sensors`.",
        ),
    ]
    options: Annotated[Mapping[str, Any], Meta(description="All other keys of the table.")] = {}


class SensorsSection(PartSection, frozen=True, kw_only=True):
    """The sources of readings of the node."""

    table: ClassVar[str] = "sensors"
    free_keys: ClassVar[str | None] = "sensors"

    sensors: Annotated[Mapping[Name, SensorSection], Meta(max_length=64, description="The sources by name.")] = {}
