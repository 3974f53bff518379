"""Datagrams to all neighbours in a running node: keys, sockets, and which interfaces they use."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from meshnode.backoff import listen_now_or_later
from meshnode.links.interfaces import HostAddress
from meshnode.multicast.sealing import DatagramSealing
from meshnode.multicast.section import MulticastSection
from meshnode.multicast.sockets import GroupSockets
from meshnode.running import Host, RunningPart
from protocols.multicast.seal import DatagramSeal

_GAUGES: Final = ("multicast_listeners", "multicast_heard_nodes", "multicast_interfaces")


class RunningMulticast(RunningPart):
    """See the module. Without ``enabled`` it does nothing."""

    gauges = frozenset(_GAUGES)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._section = host.config.of(MulticastSection)
        self._sockets: GroupSockets | None = None

    def seal(self) -> DatagramSeal | None:
        """How the engine seals and checks datagrams; None: it has none."""
        return DatagramSealing().seal() if self._section.enabled else None

    async def join(self, closing: AsyncExitStack) -> None:
        """Open the sockets, now or once the port can be had, and follow the interfaces of this host."""
        if not self._section.enabled:
            return

        received = self.host.driver.datagram_received

        async def attempt() -> None:
            sockets = GroupSockets(self._section.group, self._section.port, received, self.host.troubles)
            self._sockets = sockets
            self.host.driver.cast_with(sockets.send)
            sockets.start()
            self.host.addresses.listen(self._follow)

        waiting = await listen_now_or_later(attempt, "multicast", self.host.troubles)
        if waiting is not None:
            closing.callback(waiting.cancel)
        closing.push_async_callback(self._close)

    async def _close(self) -> None:
        if self._sockets is not None:
            self.host.driver.cast_with(None)
            await asyncio.to_thread(self._sockets.close)

    def _follow(self, held: Sequence[HostAddress], interrupted: frozenset[int]) -> bool:
        chosen = self._section.interfaces
        used = [entry for entry in held if (entry.address in chosen if chosen else not entry.loopback)]
        return self._sockets is None or self._sockets.use(used, interrupted)

    def statistics(self) -> Mapping[str, int]:
        """What the sockets did; the machine counts the rest."""
        sockets = self._sockets
        if sockets is None:
            return {}
        return {
            "multicast_interfaces": sockets.interfaces, "multicast_not_sent": sockets.not_sent,
            "multicast_not_read": sockets.not_read, "multicast_not_taken": sockets.not_taken,
            "multicast_flooded": sockets.too_many,
        }  # fmt: skip
