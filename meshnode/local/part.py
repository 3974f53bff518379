"""Local applications as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.local.running import RunningLocal

    return RunningLocal(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.local.section import LocalSection

    return (LocalSection,)


LOCAL: Final = Part("local", _start, _sections)
