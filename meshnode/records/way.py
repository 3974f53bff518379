"""The way to the relay: by which network interface it leads now, and which records may take it.

The relay is not asked to find out: the kernel says from which address it would send there, and whose interface has it.
What the name of the relay stands for is asked once in a while, as for a connection.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from meshnode.links.interfaces import host_addresses
from meshnode.links.transport import Address
from protocols.records.uplink import NO_PRIORITY

RESOLVE_S: Final = 60.0
"""How long is believed what a name stands for. A question may itself go over a way that costs money."""
LOOK_S: Final = 1.0
"""How often the kernel is asked at most."""


Target = tuple[socket.AddressFamily, Any]
"""A family of addresses, and an address of it."""


def resolved(address: Address) -> list[Target]:
    """What a name stands for; nothing: nobody knows it."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [(family, target) for family, _, _, _, target in found]


def interface_towards(targets: Sequence[Target]) -> str | None:
    """The interface by which packets to the first of these that can be reached would leave; None: there is no way."""
    for family, target in targets:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)  # a datagram socket only looks for a route
                source = str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
        return next((held.interface for held in host_addresses() if held.address == source), None)
    return None


@dataclass(frozen=True, slots=True)
class Permission:
    """Which records may be sent, and by which interface they go."""

    interface: str | None
    least_priority: int = 0
    why: str = ""
    """What holds back those of a lower priority; empty: none are held back."""


class Way:
    """What may be sent to a relay by the interface that leads there now. Not thread-safe; it may wait for a name."""

    def __init__(
        self, address: Address, interfaces: Sequence[str], urgent_priority: int | None,
        find: Callable[[Sequence[Target]], str | None] = interface_towards,
    ) -> None:  # fmt: skip
        """``interfaces``: names or patterns of those that all records may take; none: every one. ``urgent_priority``:
        records of at least this one take any. ``find``: finds the interface."""
        self._address, self._interfaces = address, tuple(interfaces)
        self._least = NO_PRIORITY if urgent_priority is None else urgent_priority
        self._find = find
        self._targets: list[Target] = []
        self._resolved_s = -RESOLVE_S
        self._looked_s = -LOOK_S
        self._last = Permission(None)

    def look(self) -> Permission:
        """Which records may be sent now."""
        now_s = time.monotonic()
        if self._interfaces and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            if not self._targets or now_s - self._resolved_s >= RESOLVE_S:
                self._targets, self._resolved_s = resolved(self._address) or self._targets, now_s
            interface = self._find(self._targets)
            if interface is not None and any(fnmatchcase(interface, pattern) for pattern in self._interfaces):
                self._last = Permission(interface)
            else:
                leads = "there is no way to the relay" if interface is None else f"the way leads over {interface}"
                why = f"{leads}, and records wait for {', '.join(self._interfaces)}"
                self._last = Permission(interface, self._least, why)
        return self._last
