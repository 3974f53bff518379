"""Sensors as a part of a node."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from meshnode.running import Host, RunningPart
from meshnode.sensors.section import SensorsSection

if TYPE_CHECKING:
    from meshnode.sensors.sensing import Sensing


class RunningSensors(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._sensing: Sensing | None = None

    async def serve(self, closing: AsyncExitStack) -> None:
        """Start the sensors. :raises ConfigError: when a driver, or an option of one, is wrong."""
        sensors = self.host.config.of(SensorsSection).sensors
        if sensors:
            from meshnode.sensors.sensing import Sensing

            self._sensing = await asyncio.to_thread(Sensing, self.host, sensors)  # a driver may read a whole trace
            self._sensing.start()
            closing.push_async_callback(asyncio.to_thread, self._sensing.close)

    def statistics(self) -> Mapping[str, int]:
        """Counts of samples and of what happened to them."""
        return {} if self._sensing is None else self._sensing.statistics()

    def node_view(self) -> Mapping[str, Any]:
        """``sensors``: what each of them does."""
        return {"sensors": [] if self._sensing is None else [sensor.view() for sensor in self._sensing.sensors]}
