"""Functions as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.functions.running import RunningFunctions

    return RunningFunctions(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.functions.section import FunctionsSection

    return (FunctionsSection,)


FUNCTIONS: Final = Part("functions", _start, _sections)
