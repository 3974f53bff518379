"""From readings to records: the curator chooses, the outbox keeps, the uplink carries.

Readings are chosen on whichever thread they pass and handed to the event loop, where the outbox lives. The way there is
bounded; each reading that can't be kept is counted in ``not_stored``, and in the drops under its key with the reason
``outbox_behind``, ``outbox_failed`` or ``record_too_large``. A record counts only from its commit on.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from random import Random

from meshnode.config.sections import NodeConfig
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import CredentialFiles
from meshnode.records.outbox import Outbox
from meshnode.records.section import CurationRulesSection, OutboxSection, RelaySection
from meshnode.records.uplink import UplinkDriver
from protocols.base import limits
from protocols.base.errors import BoundExceeded, StorageError, ValueUnsupported
from protocols.base.ids import Incarnation, MeshName, MonotonicNs, NodeId, Role
from protocols.records.curated import Curated
from protocols.records.rules import CurationRule, Curator
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)
MAX_WAITING = 4_096
"""Chosen readings on their way to the outbox."""
MAX_WAITING_BYTES = 16 * 1024 * 1024
_GROUP = 256


def rules_of(config: NodeConfig) -> tuple[CurationRule, ...]:
    """The curation rules of a configuration, as the curator takes them."""
    return tuple(
        CurationRule(
            name=rule.name, keys=rule.keys, min_interval_ns=rule.min_interval_ms * limits.MS, source=rule.source,
            lifespan_ms=rule.lifespan_s * 1_000, priority=rule.priority,
        )
        for rule in config.of(CurationRulesSection).rules
    )  # fmt: skip


class Recorder:
    """Curator, outbox and uplink of one node. Opened and closed on the event loop."""

    def __init__(
        self, config: NodeConfig, mesh: MeshName, incarnation: Incarnation, dropped: Callable[[str, str], None]
    ) -> None:
        """``dropped(key, reason)`` counts a reading that could not be recorded; called on any thread."""
        self._config, self._dropped = config, dropped
        self._curator = Curator(rules_of(config))
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Curated]] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        bounds = config.of(OutboxSection)
        self.outbox = Outbox.open(config.node.state_dir / "outbox.sqlite", bounds.max_records, bounds.max_bytes)
        self.uplink: UplinkDriver | None = None
        self.stored = 0
        self.not_stored = 0
        self._tasks: list[asyncio.Task[None]] = []
        relay = config.given(RelaySection)
        if relay is not None:
            credentials: CredentialFiles = config.identity.credentials
            self.uplink = UplinkDriver(
                self.outbox,
                lambda: open_requester(credentials, relay.address, mesh, Role.RELAY, relay.id),
                NodeId(config.node.id), incarnation, Random(),
            )  # fmt: skip

    @property
    def expressions(self) -> tuple[str, ...]:
        """Key expressions of the rules that also take neighbours' readings."""
        return tuple(rule.keys for rule in self._curator.rules if rule.source == "any")

    async def open(self) -> None:
        """:raises StorageError: when the outbox can't be used."""
        await self.outbox.__aenter__()
        self._tasks.append(asyncio.create_task(self._store(), name="recorder"))
        if self.uplink is not None:
            self._tasks.append(asyncio.create_task(self.uplink.run(), name="uplink"))
        for task in self._tasks:
            task.add_done_callback(_told)

    def consider(self, reading: Reading, is_own: bool) -> None:
        """Record it if a rule says so. Any thread; never blocks."""
        with self._lock:
            rule = self._curator.choose(reading, is_own, MonotonicNs(time.monotonic_ns()))
            if rule is None:
                return
            if len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES:
                self._not_kept(reading.key, "outbox_behind")
                return
            encoded = _record_of(reading)
            if encoded is None:  # refused here: in the outbox it would take its whole group with it
                self._not_kept(reading.key, "record_too_large")
                return
            first = not self._waiting
            self._waiting_bytes += len(encoded)
            priority = reading.priority if rule.priority is None else rule.priority
            self._waiting.append((reading.key, Curated(rule.name, encoded, priority, rule.lifespan_ms)))
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has ended; so will we
                self._loop.call_soon_threadsafe(self._wake.set)

    def _not_kept(self, key: str, reason: str) -> None:
        self.not_stored += 1
        self._dropped(key, reason)

    async def _store(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._drain()

    async def _drain(self) -> None:
        while True:
            with self._lock:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP))]
                self._waiting_bytes -= sum(len(curated.reading) for _, curated in group)
            if not group:
                return
            try:
                await self.outbox.put(*(curated for _, curated in group))
                self.stored += len(group)
            except (StorageError, BoundExceeded) as error:
                for key, _ in group:
                    self._not_kept(key, "outbox_failed")
                _log.warning("%d records were not stored: %s", len(group), error)
                await asyncio.sleep(0.2)

    async def close(self, flush_s: float) -> None:
        """Store what was chosen, try for ``flush_s`` to deliver it, close."""
        await self._drain()
        if self.uplink is not None:
            await self.uplink.stop(flush_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for key, _ in self._waiting:  # chosen while the node was closing
            self._not_kept(key, "outbox_closed")
        self._waiting.clear()
        await self.outbox.__aexit__(None, None, None)


def _record_of(reading: Reading) -> bytes | None:
    """Its bytes; None when they are too many for a record."""
    try:
        encoded = encode_reading(reading)
    except ValueUnsupported:  # single precision that is doubled here can grow above a frame
        return None
    return encoded if len(encoded) <= limits.MAX_RECORD_BYTES else None


def _told(task: "asyncio.Task[None]") -> None:
    """A task that ends by a bug is told, for nobody awaits it before the node closes."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the task %s of the records failed", task.get_name(), exc_info=task.exception())
