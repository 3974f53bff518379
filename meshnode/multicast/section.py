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
    """One encrypted datagram for all neighbours on the same network who listen, in place of a frame for each.

    Switch it on where ten or more vehicles share one channel, as with Wi-Fi and 802.11p, on all of them: of a simulated
    channel of 6 Mb/s, twelve vehicles that want 1,333 readings a second of each other get 1,330 in place of about
    1,040, and thirty get 8,300 in place of 1,050. Leave it off with few neighbours and on cables, where it gains
    nothing, and where the processor is scarce: each datagram costs a receiver 73 µs. Whoever does not hear it is served
    on its link. An ordinary reading in a lost datagram is not sent again, a hazard is.
    """

    table: ClassVar[str] = "multicast"

    enabled: Annotated[
        bool, Meta(description="Send such datagrams, and hear those of others. Nodes without it are served on links.")
    ] = False
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
