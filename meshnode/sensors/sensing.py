"""Runs the sensor drivers of a node, each on a thread of its own, paced by the due times of its samples.

A driver that fails is a trouble of the node. It is built again and started after pauses that double, and counts as
working once it has run ``SETTLED_S`` without failing. A driver that ends by itself is done. A sample that can't be
published, and a result of a model that the driver can't use, are left out and counted.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from random import Random
from typing import Any, Final

from meshnode.backoff import Backoff
from meshnode.inference.running import RunningInference
from meshnode.running import Host
from meshnode.sensors import DriverContext, Sample, SensorDriver, create_driver
from meshnode.sensors.section import SensorSection
from protocols.base.errors import ConfigError, MeshError, SourceUnavailable
from protocols.wire.readings import Provenance

_log = logging.getLogger(__name__)
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""A device that was plugged in again is used within a minute."""
SETTLED_S: Final = 5.0
"""What has not failed for this long works."""


class DriverState(Enum):
    """What the driver of a sensor does."""

    RUNNING = "running"
    WAITING = "waiting"
    """It failed, and is started again after a while."""
    ENDED = "ended"
    """It gave all its samples."""


class Sensor:
    """One sensor and its driver."""

    def __init__(self, name: str, section: SensorSection, host: Host, inference: RunningInference) -> None:
        """Builds the driver. What the world may mend is a trouble, and tried again.

        :raises ConfigError: when an option is wrong.
        """
        self.name, self._section = name, section
        self._host, self._inference = host, inference
        self.context = DriverContext(
            host.id, host.folder, Random(f"{host.id}/{name}"), host.role, sensor=name,
            clock_uncertainty_ns=host.clock_uncertainty_ns, uncertainty_now_ns=lambda: host.clock_uncertainty_ns,
            trouble=self._source_tells,
        )  # fmt: skip
        self.state = DriverState.WAITING
        self.samples = self.samples_failed = self.without_position = 0
        self.inferences_failed = self.inferences_skipped = self.results_unusable = 0
        self.failures = self.restarts = 0
        self._inferring = False
        self._newest: Sample | None = None
        """What the model computes next: a slot of one, so a slow model costs no memory."""
        self._lock = threading.Lock()
        self._whys: dict[str, str] = {}
        self._failed_s: dict[str, float] = {}
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._driver: SensorDriver | None = None
        try:
            self._driver = self._created()
        except MeshError as error:
            if isinstance(error, ConfigError) and not isinstance(error, SourceUnavailable):
                raise
            self._failed(error)
        self.thread = threading.Thread(target=self._run, name=f"sensor-{name}", daemon=True)

    def view(self) -> dict[str, Any]:
        """How it does, for people."""
        return {
            "name": self.name,
            "driver": self._section.driver,
            "state": self.state.value,
            "samples": self.samples,
            "samples_failed": self.samples_failed,
            "samples_skipped": self.context.samples_skipped,
            "failures": self.failures,
            "restarts": self.restarts,
        }

    # --- the driver ------------------------------------------------------------------------------------------------
    def _created(self) -> SensorDriver:
        return create_driver(self._section.driver, self._section.options, self.context)

    def _run(self) -> None:
        """The thread of the sensor."""
        stopping = self.context.stopping
        while not stopping.is_set():
            if self._driver is None:
                if stopping.wait(self._backoff.next_s()):
                    return
                self.restarts += 1
            try:
                self._play(self._driver or self._created())
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a driver does ends that driver alone
                self._driver = None
                if not stopping.is_set():
                    self._failed(error)
            else:
                if not stopping.is_set():
                    self._ended()
                return

    def _play(self, driver: SensorDriver) -> None:
        """Publish all samples of a driver. Raises what the driver raises."""
        self.context.begin()
        self.state = DriverState.RUNNING
        failures = self.failures
        if failures:
            self._call_soon(lambda: self._host.loop.call_later(SETTLED_S, self._settled, failures))
        samples = driver.samples()
        try:
            for sample in samples:
                if not self.context.wait(sample.due_s):
                    return
                self._take(sample)
        finally:
            samples.close()

    def _failed(self, error: BaseException) -> None:
        why = str(error) if isinstance(error, MeshError) else repr(error)
        with self._lock:
            known = self._whys.get("driver") == why
            self.failures += 1
            self.state = DriverState.WAITING
            self._begin("driver", why)
        if not known and not isinstance(error, MeshError):
            _log.error("the driver %r of sensor %s failed", self._section.driver, self.name, exc_info=error)

    def _settled(self, failures: int) -> None:
        """The driver has run for a while since it failed for the last time; called on the event loop."""
        with self._lock:
            if self.failures == failures and self.state is DriverState.RUNNING:
                self._backoff.reset()
                self._end("driver")

    def _ended(self) -> None:
        with self._lock:
            self.state = DriverState.ENDED
            for kind in tuple(self._whys):
                self._end(kind)
        _log.info("sensor %s has ended after %d samples", self.name, self.samples)

    # --- its samples -----------------------------------------------------------------------------------------------
    def _take(self, sample: Sample) -> None:
        self.samples += 1
        try:
            self._publish(sample)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this one, the next may be good
            self.samples_failed += 1
            self._skipped("samples", self.samples_failed, "samples could not be published", error)
        else:
            self._good("samples")

    def _publish(self, sample: Sample) -> None:
        if sample.where is not None:
            self._host.position = sample.where
        if sample.clock_uncertainty_ns is not None:
            self._host.clock_uncertainty_ns = sample.clock_uncertainty_ns
        if sample.where is None and self._host.position is None:
            # A camera may be ready before the GNSS receiver is.
            self.without_position += 1
            return
        how = Provenance(sample.sensor or self.name, sample.unit, sample.quality)
        publisher = self._host.kept_publisher(sample.key, how, sample.priority, sample.lifespan_ms)
        if sample.when is None:
            publisher.put(sample.value, where=sample.where)
        else:
            where = sample.where or self._host.position
            assert where is not None, "it was looked at above"
            publisher.put_sensed(sample.value, where, sample.when)
        if sample.infer is not None:
            self._ask(sample)

    def _ask(self, sample: Sample) -> None:
        """Have the model compute it: now, or when it is free, unless a newer sample takes its place until then."""
        with self._lock:
            if self._inferring:
                self.inferences_skipped += self._newest is not None
                self._newest = sample
                return
            self._inferring = True
        asyncio.run_coroutine_threadsafe(self._infer_newest(sample), self._host.loop)

    async def _infer_newest(self, sample: Sample | None) -> None:
        while sample is not None:
            await self._infer(sample)
            with self._lock:
                sample, self._newest = self._newest, None
                self._inferring = sample is not None

    async def _infer(self, sample: Sample) -> None:
        asked = sample.infer
        assert asked is not None
        try:
            inputs = await asyncio.to_thread(asked.inputs) if callable(asked.inputs) else asked.inputs
            result = await self._inference.infer(asked.model, inputs, asked.outputs, asked.budget_ms)
        except Exception as error:  # noqa: BLE001 - the driver's inputs may be anything
            if self.context.stopping.is_set():
                return  # its run was ended with the node
            self.inferences_failed += 1
            if _is_told(self.inferences_failed):
                why = error if isinstance(error, MeshError) else repr(error)
                _log.warning("sensor %s: %d inferences failed, the last: %s", self.name, self.inferences_failed, why)
            return
        try:
            if asked.key is not None:
                value = asked.interpret(result.outputs) if asked.interpret is not None else result.outputs
                self._publish_result(asked.key, value, sample)
        except Exception as error:  # noqa: BLE001 - whatever a driver makes of the outputs
            self.results_unusable += 1
            self._skipped(
                "results", self.results_unusable, f"results of model {asked.model!r} could not be used", error
            )
        else:
            self._good("results")

    def _publish_result(self, key: str, value: Any, sample: Sample) -> None:
        """What a model says of a sample is of the place and the time of the sample."""
        where = sample.where or self._host.position
        if sample.when is None or where is None:
            self._host.publish(key, value, sensor=sample.sensor or self.name, where=sample.where)
        else:
            how = Provenance(sample.sensor or self.name, "1")
            self._host.kept_publisher(key, how).put_sensed(value, where, sample.when)

    def _source_tells(self, why: str) -> None:
        """The driver goes on, and its source gives nothing; an empty text: it does again."""
        with self._lock:
            if not why:
                self._end("source")
            elif self._whys.get("source") != why:
                self._begin("source", why)

    # --- what does not work ----------------------------------------------------------------------------------------
    def _skipped(self, kind: str, count: int, what: str, error: Exception) -> None:
        """Tell of something that was left out: the first time, and whenever the count is a power of two."""
        with self._lock:
            self._failed_s[kind] = time.monotonic()
            if kind not in self._whys or _is_told(count):
                why = error if isinstance(error, MeshError) else repr(error)
                self._begin(kind, f"{count} {what}, the last because: {why}")

    def _good(self, kind: str) -> None:
        """End the trouble of that kind, when it has not come back for a while."""
        if kind in self._whys and time.monotonic() - self._failed_s[kind] > SETTLED_S:
            with self._lock:
                self._end(kind)

    def _begin(self, kind: str, why: str) -> None:
        self._whys[kind] = why
        self._host.troubles.begin("sensor", self.name, "; ".join(self._whys.values()))

    def _end(self, kind: str) -> None:
        if self._whys.pop(kind, None) is None:
            return
        if self._whys:
            self._host.troubles.begin("sensor", self.name, "; ".join(self._whys.values()))
        else:
            self._host.troubles.end("sensor", self.name)

    def _call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so will this node
            self._host.loop.call_soon_threadsafe(callback)


class Sensing:
    """The sensors of one node."""

    def __init__(self, host: Host, sensors: Mapping[str, SensorSection]) -> None:
        """Builds every driver, which may read whole files. :raises ConfigError: when an option of one is wrong."""
        inference = host.part(RunningInference)
        self.sensors = [Sensor(name, section, host, inference) for name, section in sensors.items()]

    def start(self) -> None:
        """Start the threads of the drivers."""
        for sensor in self.sensors:
            sensor.thread.start()

    def statistics(self) -> dict[str, int]:
        """Counts of samples, inferences and failures."""
        sensors = self.sensors
        return {
            "sensor_samples": sum(sensor.samples for sensor in sensors),
            "sensor_samples_failed": sum(sensor.samples_failed for sensor in sensors),
            "sensor_samples_skipped": sum(sensor.context.samples_skipped for sensor in sensors),
            "sensor_samples_without_position": sum(sensor.without_position for sensor in sensors),
            "sensor_inferences_failed": sum(sensor.inferences_failed for sensor in sensors),
            "sensor_inferences_skipped": sum(sensor.inferences_skipped for sensor in sensors),
            "sensor_results_unusable": sum(sensor.results_unusable for sensor in sensors),
            "sensor_failures": sum(sensor.failures for sensor in sensors),
            "sensor_restarts": sum(sensor.restarts for sensor in sensors),
        }

    def close(self) -> None:
        """Stop and wait for the threads, a second at most."""
        for sensor in self.sensors:
            sensor.context.stopping.set()
        ends_s = time.monotonic() + 1.0
        for sensor in self.sensors:
            if sensor.thread.is_alive():
                sensor.thread.join(max(0.0, ends_s - time.monotonic()))


def _is_told(count: int) -> bool:
    """1, 2, 4, 8 …: what fails at each sample can't fill a disk."""
    return count & (count - 1) == 0
