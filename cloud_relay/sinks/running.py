"""All sinks of a relay: a thread and an event loop each, so that none can hold up another, nor the relay.

Nothing is handed to them: they read the store by themselves. A sink that is stopped while its receiver is silent is
left behind after a while; what it was sending comes again after the next start.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Final
from weakref import WeakSet

from cloud_relay.sinks.contract import SinkTarget
from cloud_relay.sinks.delivering import SinkDelivery
from cloud_relay.sinks.progress import FOLDER, locked_folder
from cloud_relay.sinks.refusals import RefusedRecords
from cloud_relay.sinks.settings import SinkKind, SinkSettings
from cloud_relay.sinks.stores.contract import SinkStore
from cloud_relay.sinks.stores.opening import sink_store
from cloud_relay.store.places import StorePlace
from protocols.base.errors import ConfigError

PATIENCE_S: Final = 5.0
"""How long a relay that stops waits for its sinks, all together."""
_log = logging.getLogger(__name__)


class Sinks:
    """Deliver from when it is made until ``close``."""

    def __init__(self, settings: Sequence[SinkSettings], place: StorePlace, state_dir: Path) -> None:
        """:raises ConfigError: a library is missing.
        :raises LocalProtocolError: another relay delivers from this state folder.
        :raises StorageError: the state folder can't be written.
        """
        targets = [(one, target_of(one)) for one in settings]
        self._closing = ExitStack()
        self._threads: list[_SinkThread] = []
        if settings:
            folder = state_dir / FOLDER
            self._closing.enter_context(locked_folder(folder))
            self._threads = [_SinkThread(one, target, place, folder) for one, target in targets]

    def statistics(self) -> dict[str, dict[str, Any]]:
        """How far each sink has come, by name. May be called from any thread."""
        return {thread.name: thread.statistics() for thread in self._threads}

    def close(self) -> None:
        """Stop all. Idempotent."""
        for thread in self._threads:
            thread.stop()
        ends_s = time.monotonic() + PATIENCE_S
        for thread in self._threads:
            if not thread.has_ended(ends_s - time.monotonic()):
                _log.warning("sink %s is left behind: its receiver does not answer", thread.name)
        self._closing.close()


class SinkLoop(asyncio.SelectorEventLoop):
    """An event loop that can end all its connections, so that none outlives the try that made it.

    Libraries may forget some: one of aiokafka was still open after its producer had been stopped while the broker was
    silent. Tries go on for as long as a receiver is away, and file descriptors are few.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: WeakSet[asyncio.BaseTransport] = WeakSet()

    async def create_connection(self, *given: Any, **named: Any) -> Any:
        """As every loop does."""
        transport, protocol = await super().create_connection(*given, **named)
        self._made.add(transport)
        return transport, protocol

    def end_connections(self) -> int:
        """End those that are still open. Returns how many there were."""
        left = [one for one in self._made if isinstance(one, asyncio.Transport) and not one.is_closing()]
        for transport in left:
            transport.abort()
        return len(left)


class _SinkThread:
    def __init__(self, settings: SinkSettings, target: SinkTarget, place: StorePlace, folder: Path) -> None:
        self.name = settings.name
        self._stopping = threading.Event()
        self._store: SinkStore = sink_store(place, settings, folder, self._stopping.is_set)
        self._delivery = SinkDelivery(
            settings, target, self._store, RefusedRecords(folder, settings.name), Random(), self._end_connections
        )
        self._loop = SinkLoop()
        self._thread = threading.Thread(target=self._run, name=f"sink {settings.name}"[:15], daemon=True)
        self._thread.start()

    def statistics(self) -> dict[str, Any]:
        return self._delivery.statistics()

    def stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._loop.call_soon_threadsafe(self._cancel)

    def has_ended(self, within_s: float) -> bool:
        self._thread.join(max(within_s, 0.0))
        return not self._thread.is_alive()

    def _end_connections(self) -> None:
        if left := self._loop.end_connections():
            _log.debug("sink %s: a library left %d connections open", self.name, left)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._until_stopped())
        except asyncio.CancelledError:
            pass
        finally:
            self._store.close()

    async def _until_stopped(self) -> None:
        self._task = asyncio.current_task()
        if not self._stopping.is_set():
            await self._delivery.run()

    def _cancel(self) -> None:
        if (task := getattr(self, "_task", None)) is not None:
            task.cancel()


def target_of(settings: SinkSettings) -> SinkTarget:
    """What delivers to a sink. Nothing is connected yet. :raises ConfigError: a library is missing."""
    try:
        match settings.kind:
            case SinkKind.PARQUET:
                from cloud_relay.sinks.targets.parquet import ParquetTarget

                return ParquetTarget(settings)
            case SinkKind.POSTGRESQL:
                from cloud_relay.sinks.targets.postgresql import PostgresqlTarget

                return PostgresqlTarget(settings)
            case SinkKind.MQTT:
                from cloud_relay.sinks.targets.mqtt import MqttTarget

                return MqttTarget(settings)
            case SinkKind.KAFKA:
                from cloud_relay.sinks.targets.kafka import KafkaTarget

                return KafkaTarget(settings)
            case SinkKind.HTTP:
                from cloud_relay.sinks.targets.http import HttpTarget

                return HttpTarget(settings)
    except ImportError as error:
        raise ConfigError(
            f"sink {settings.name!r} of kind {settings.kind} needs a library that can't be imported ({error}): run "
            "pip install 'meshnode[sinks]'"
        ) from error
