"""Runs the sensor drivers of a node, each on a thread of its own, paced by the due times of its samples."""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from random import Random

from meshnode.inference.running import RunningInference
from meshnode.running import Host
from meshnode.sensors import DriverContext, Sample, SensorDriver, create_driver
from meshnode.sensors.section import SensorSection
from protocols.base.errors import MeshError

_log = logging.getLogger(__name__)


class Sensing:
    """The sensors of one node."""

    def __init__(self, host: Host, sensors: Mapping[str, SensorSection]) -> None:
        """Builds every driver. :raises ConfigError: when an option of one is wrong."""
        self._host, self._inference = host, host.part(RunningInference)
        self._contexts: list[DriverContext] = []
        self._threads: list[threading.Thread] = []
        self._inferring: set[str] = set()
        self.samples = 0
        self.skipped_inferences = 0
        """Frames that came while the frame before was still being computed."""
        self.without_position = 0
        """Samples that were not published because they came before the node's position was known."""
        self.failed: dict[str, str] = {}
        for name, section in sensors.items():
            context = DriverContext(host.id, host.folder, Random(f"{host.id}/{name}"), host.role, sensor=name)
            driver = create_driver(section.driver, section.options, context)
            self._contexts.append(context)
            self._threads.append(
                threading.Thread(target=self._run, args=(name, driver, context), name=f"sensor-{name}", daemon=True)
            )

    @property
    def skipped(self) -> int:
        """Rows, frames and the like that drivers left out because they were bad."""
        return sum(context.samples_skipped for context in self._contexts)

    def start(self) -> None:
        """Start the threads of the drivers."""
        for context in self._contexts:
            context.begin()
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, driver: SensorDriver, context: DriverContext) -> None:
        try:
            samples = driver.samples()
            try:
                for sample in samples:
                    if not context.wait(sample.due_s):
                        return
                    self._publish(name, sample)
            finally:
                samples.close()
        except MeshError as error:
            self.failed[name] = str(error)
            _log.error("sensor %s ended: %s", name, error)
        except Exception as error:  # noqa: BLE001 - whatever a plugged-in driver does ends that driver alone
            self.failed[name] = repr(error)
            _log.exception("sensor %s failed", name)

    def _publish(self, name: str, sample: Sample) -> None:
        if sample.where is not None:
            self._host.position = sample.where
        self.samples += 1
        if sample.where is None and self._host.position is None:
            # A camera may be ready before the GNSS receiver is.
            self.without_position += 1
            return
        self._host.publish(
            sample.key, sample.value, unit=sample.unit, sensor=sample.sensor or name, where=sample.where,
            quality=sample.quality, priority=sample.priority, lifespan_ms=sample.lifespan_ms,
        )  # fmt: skip
        if sample.infer is not None:
            if name in self._inferring:
                self.skipped_inferences += 1
            else:
                self._inferring.add(name)
                asyncio.run_coroutine_threadsafe(self._infer(name, sample), self._host.loop)

    async def _infer(self, name: str, sample: Sample) -> None:
        asked = sample.infer
        assert asked is not None
        try:
            result = await self._inference.infer(asked.model, asked.inputs, asked.outputs, asked.budget_ms)
            if asked.key is not None:
                value = asked.interpret(result.outputs) if asked.interpret is not None else result.outputs
                self._host.publish(asked.key, value, sensor=sample.sensor or name, where=sample.where)
        except MeshError as error:
            _log.warning("sensor %s: %s", name, error)
        except Exception as error:  # noqa: BLE001 - whatever a driver makes of the outputs
            self.failed[name] = repr(error)
            _log.exception("sensor %s: its result could not be used", name)
        finally:
            self._inferring.discard(name)

    def close(self) -> None:
        """Stop and wait for the threads, a second at most."""
        for context in self._contexts:
            context.stopping.set()
        ends_s = time.monotonic() + 1.0
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, ends_s - time.monotonic()))
