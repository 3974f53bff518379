"""The parts that every node has, and how those of other packages are found.

A part of another package has an entry point in the group ``meshnode.parts``, whose name is the part's. It is loaded
only where it is asked for by that name: by a table of the configuration, or by a command. A package that is merely
installed changes nothing, and none can take the place of a part that is listed here.
"""

from typing import TYPE_CHECKING, Final

from meshnode.applications.part import APPLICATIONS
from meshnode.asking.part import ASKING
from meshnode.discovery.part import DISCOVERY
from meshnode.functions.part import FUNCTIONS
from meshnode.gossip.part import GOSSIP
from meshnode.grpc.part import GRPC
from meshnode.history.part import HISTORY
from meshnode.http.part import HTTP
from meshnode.inference.part import INFERENCE
from meshnode.local.part import LOCAL
from meshnode.mqtt.part import MQTT
from meshnode.multicast.part import MULTICAST
from meshnode.part import Part
from meshnode.records.part import RECORDS
from meshnode.releases.part import RELEASES
from meshnode.sensors.part import SENSORS
from protocols.base.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "meshnode.parts"

CAPABILITIES: Final = (RECORDS, HISTORY, ASKING, RELEASES, INFERENCE, GOSSIP, MULTICAST)
"""Capabilities in the order in which they open. Parts that are handed over follow them."""
DOORS: Final = (DISCOVERY, HTTP, GRPC, LOCAL, FUNCTIONS, SENSORS, MQTT, APPLICATIONS)
"""Parts that use all others and open after them."""


def installed_part(name: str) -> Part | None:
    """The part of another package by its name; None when there is none.

    :raises ConfigError: when its package can't be imported, or offers something else.
    """
    from importlib.metadata import entry_points  # takes 20 ms, and most commands don't need it

    for point in entry_points(group=GROUP, name=name):
        return _loaded(point)
    return None


def _loaded(point: "EntryPoint") -> Part:
    package = point.dist.name if point.dist else "unknown"
    try:
        part = point.load()
    except Exception as error:  # a foreign module may raise anything when it is imported
        raise ConfigError(
            f"part {point.name!r} of package {package!r} can't be imported ({error!r}): repair or remove it"
        ) from error
    if not (isinstance(part, Part) and part.name == point.name):
        raise ConfigError(
            f"part {point.name!r} of package {package!r} is {point.value!r}, which is not a meshnode.part.Part of "
            "that name: correct its entry point"
        )
    return part
