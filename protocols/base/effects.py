"""The base classes of what machines hand out: effects for the driver, and events for the user of the node."""

from typing import ClassVar

from msgspec import Struct


class Effect(Struct, frozen=True):
    """Something for the driver to do. The effects of one machine are a closed union."""


class Event(Struct, frozen=True):
    """Something that the user of the node may want to know."""

    for_applications: ClassVar[bool] = False
    """Whether applications on the same computer are told too, or only this process."""
