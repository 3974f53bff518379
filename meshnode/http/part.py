"""The HTTP server as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.http.running import RunningHttp

    return RunningHttp(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.http.section import HttpSection

    return (HttpSection,)


HTTP: Final = Part("http", _start, _sections)
