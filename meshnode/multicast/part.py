"""Datagrams to all neighbours as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.multicast.running import RunningMulticast

    return RunningMulticast(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.multicast.section import MulticastSection

    return (MulticastSection,)


MULTICAST: Final = Part("multicast", _start, sections=_sections)
