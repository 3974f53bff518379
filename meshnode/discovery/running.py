"""Discovery by multicast DNS as a part of a node: what is heard becomes hints, and it follows the host's interfaces.

Invariant: a node starts without any network, and when the port of mDNS can't be used. Then it says so
(:mod:`meshnode.troubles`), goes on trying, and says when it works.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from meshnode.links.interfaces import HostAddress, host_addresses
from meshnode.running import Host, RunningPart
from protocols.base.errors import TransportError
from protocols.base.ids import NodeId

if TYPE_CHECKING:
    from meshnode.links.adverts import Advert
    from meshnode.links.mdns import Discovery

AdvertListener = Callable[[NodeId], None]
_PART: Final = "discovery"


class RunningDiscovery(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._lock = threading.Lock()
        self._closed = False
        self._discovery: Discovery | None = None
        self._listeners: list[AdvertListener] = []

    def on_advert(self, listener: AdvertListener) -> None:
        """See :meth:`meshnode.opening.ConfiguredNode.on_advert`."""
        self._listeners.append(listener)

    async def join(self, closing: AsyncExitStack) -> None:
        """Announce this node and listen for others, as far as that is possible now."""
        if self.host.config.discovery.mdns:
            closing.push_async_callback(asyncio.to_thread, self._close)
            await asyncio.to_thread(self._follow, await asyncio.to_thread(host_addresses), frozenset())
            self.host.addresses.listen(self._follow)

    def _close(self) -> None:
        with self._lock:
            self._closed, discovery = True, self._discovery
        if discovery is not None:
            discovery.close()

    def _follow(self, held: Sequence[HostAddress], interrupted: frozenset[int]) -> bool:
        with self._lock:
            if self._closed:
                return True
            if not self.host.port:  # there is nothing to announce yet; the inbox is a trouble of its own
                return False
            if self._discovery is None:
                try:
                    self._discovery = self._opened()
                except TransportError as error:
                    self.host.troubles.begin(_PART, "", str(error))
                    return False
            followed = self._discovery.follow(held, interrupted)
            self._judge(self._discovery, held)
        return followed

    def _opened(self) -> "Discovery":
        from meshnode.links.mdns import open_discovery

        host, config = self.host, self.host.config
        discovery = open_discovery(
            host.mesh, host.id, host.incarnation, host.port, config.listen.advertise or None,
            config.discovery.interfaces, self._seen, self._gone,
        )  # fmt: skip
        try:
            discovery.announce()
        except TransportError:
            discovery.close()
            raise
        return discovery

    def _judge(self, discovery: "Discovery", held: Sequence[HostAddress]) -> None:
        chosen, joined = self.host.config.discovery.interfaces, discovery.view().interfaces
        if joined if chosen else any(not entry.loopback for entry in joined):
            self.host.troubles.end(_PART)
            return
        known = {entry.address for entry in held}
        if chosen and known.isdisjoint(chosen):
            why = (
                f"no interface of this host that is up has the address {' or '.join(chosen)}: connect it, or correct "
                "[discovery] interfaces; the node waits for it"
            )
        elif chosen or any(not entry.loopback and ":" not in entry.address for entry in held):
            why = "no interface takes part in multicast: see the log, or set [discovery] mdns = false and seeds"
        else:
            why = "no network interface with an IPv4 address is up: connect one; the node waits for it"
        self.host.troubles.begin(_PART, "", why)

    # --- threads of discovery --------------------------------------------------------------------------------------
    def _seen(self, advert: "Advert") -> None:
        driver = self.host.driver
        if advert.node == self.host.id:
            driver.act(lambda engine, _: engine.membership.duplicate_hint(advert.addresses[0].host))
            return
        at = tuple((address.host, address.port) for address in advert.addresses)
        driver.act(lambda engine, now: engine.membership.hint(advert.node, advert.node, at, now))
        for listener in self._listeners:
            listener(advert.node)

    def _gone(self, other: NodeId) -> None:
        self.host.driver.act(lambda engine, _: engine.membership.withdraw(other))

    # --- what it tells ---------------------------------------------------------------------------------------------
    def statistics(self) -> Mapping[str, int]:
        """Adverts by what became of them."""
        discovery = self._discovery
        counts = {} if discovery is None else discovery.statistics()
        return {f"discovery_{name}": count for name, count in counts.items()}

    def node_view(self) -> Mapping[str, Any]:
        """What is announced where; null where mDNS is off or could not begin."""
        discovery = self._discovery
        if discovery is None:
            return {"discovery": None}
        view = discovery.view()
        return {
            "discovery": {
                "interfaces": [{"name": entry.interface, "address": entry.address} for entry in view.interfaces],
                "addresses": list(view.addresses),
                "announced_s": None if view.announced_s is None else round(view.announced_s, 1),
                "heard": [
                    {"node": advert.node, "addresses": [str(address) for address in advert.addresses]}
                    for advert in view.heard
                ],
            }
        }
