"""Sensors as a part of a node."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

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

            self._sensing = Sensing(self.host, sensors)
            self._sensing.start()
            closing.push_async_callback(asyncio.to_thread, self._sensing.close)

    def statistics(self) -> Mapping[str, int]:
        """Counts of samples and of what happened to them."""
        sensing = self._sensing
        if sensing is None:
            return {}
        return {
            "sensor_samples": sensing.samples,
            "sensor_samples_skipped": sensing.skipped,
            "sensor_samples_without_position": sensing.without_position,
            "sensor_inferences_skipped": sensing.skipped_inferences,
        }
