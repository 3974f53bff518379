"""The section of datagrams to all neighbours."""

import ipaddress
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from meshnode.config.kinds import Interface
from meshnode.config.sections import PartSection

_LOCAL_GROUPS: Final = (
    ipaddress.ip_network("224.0.0.0/24"), ipaddress.ip_network("239.0.0.0/8"), ipaddress.ip_network("ff02::/16"),
)  # fmt: skip


def _check_group(value: str) -> str | None:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return "is not an IP address: use one of 239.0.0.0/8, 224.0.0.0/24 or ff02::/16"
    if any(address.version == group.version and address in group for group in _LOCAL_GROUPS):
        return None
    return "is no group of one network: use one of 239.0.0.0/8, 224.0.0.0/24 or ff02::/16"


class MulticastSection(PartSection, frozen=True, kw_only=True):
    """One encrypted datagram for all neighbours on the same network who listen, in place of a frame for each. On a
    channel that they share, as Wi-Fi and 802.11p are, many more vehicles have room so. Neighbours that do not hear it
    are served on their links."""

    table: ClassVar[str] = "multicast"

    enabled: Annotated[bool, Meta(description="Send such datagrams, and hear those of others.")] = False
    interfaces: Annotated[
        tuple[Interface, ...],
        Meta(
            description="IP addresses of the interfaces to use; empty: all but loopback. The node waits for those that "
            "the host does not have yet."
        ),
    ] = ()
    group: Annotated[
        str,
        Meta(
            description="Multicast group, the same for all nodes: in 239.0.0.0/8, 224.0.0.0/24 or ff02::/16.",
            extra={"check": _check_group},
        ),
    ] = "239.255.77.83"
    port: Annotated[int, Meta(ge=1, le=65_535, description="UDP port, the same for all nodes.")] = 7001
