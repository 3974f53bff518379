"""Discovery as a part of a node."""

from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.discovery.running import RunningDiscovery

    return RunningDiscovery(host)


DISCOVERY: Final = Part("discovery", _start)
