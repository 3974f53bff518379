"""Keeps an outbox in use: opens it, opens it again when that failed, and begins a new one in place of a damaged one.

A file that is in use, of a newer program, of another program or on a full disk is left alone and tried again. A
damaged one is moved aside, with its write-ahead log, to ``outbox.sqlite.damaged-<UTC>``, where a person may look into
it; what waited in it is not sent. The relay tells the new outbox at which sequence to go on.

Invariant: at most ``MAX_KEPT`` damaged files are kept. The oldest gives way to a further one, which is logged, counted
and told in the trouble of that one.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from meshnode.backoff import Backoff
from meshnode.records.outbox import Outbox
from meshnode.records.outbox_file import OutboxDamaged
from meshnode.records.uplink import UplinkDriver
from meshnode.tasks import told
from meshnode.troubles import Troubles
from protocols.base.errors import StorageError
from protocols.base.limits import SECOND
from protocols.records.uplink import REQUEST_TIMEOUT_NS

_log = logging.getLogger(__name__)
MAX_KEPT: Final = 4
"""Damaged outboxes on disk, each of which may have as many bytes as ``[outbox] max_mib`` allows."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
_LOOK_S: Final = 5.0
"""The time between two looks whether a person has removed a damaged file."""
_GAUGES: Final = frozenset({"pending", "pending_bytes", "untold_fates"})


class OutboxKeeper:
    """The outbox of one node and the uplink that empties it. All methods belong to one event loop."""

    def __init__(
        self, path: Path, max_records: int, max_bytes: int, uplink: Callable[[Outbox], UplinkDriver] | None,
        troubles: Troubles, policy: bytes = b"",
    ) -> None:  # fmt: skip
        """``uplink`` makes the uplink of an outbox; None: records stay in it. ``policy``: see :meth:`Outbox.open`."""
        self.path = path
        self._bounds, self._policy = (max_records, max_bytes), policy
        self._make_uplink, self._troubles = uplink, troubles
        self.outbox: Outbox | None = None
        self.uplink: UplinkDriver | None = None
        self.why = ""
        """Why there is no outbox."""
        self.damaged = self.damaged_removed = self.left_behind = 0
        """Outboxes that were moved aside, those that were removed for others, and records known to wait in them."""
        self._ended: dict[str, int] = {}
        """The counters of outboxes and uplinks that are no longer in use."""
        self._tasks: list[asyncio.Task[None]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._moved: list[Path] = []
        self._ready = asyncio.Event()

    async def open(self) -> None:
        """Open the outbox. When that is not possible now it is a trouble, and tried again."""
        await self._try()
        self._keeping = asyncio.create_task(self._keep(), name="outbox keeper")
        self._keeping.add_done_callback(told)

    async def close(self, flush_s: float) -> None:
        """Try for ``flush_s`` to deliver what waits, and close."""
        if self.uplink is not None:
            await self.uplink.stop(flush_s)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._end(waits=True)

    async def usable(self) -> Outbox | None:
        """The outbox, once a damaged one has been replaced; None while there is none."""
        await self._ready.wait()
        return self.outbox

    async def replaced(self, outbox: Outbox) -> None:
        """Return once ``outbox``, which is damaged, is no longer in use."""
        while self.outbox is outbox:
            self._ready.clear()  # its keeper may not have begun yet
            await self._ready.wait()

    def statistics(self) -> dict[str, int]:
        """The counters of all outboxes and uplinks of this life of the node."""
        counters = {**self._ended, "outbox_damaged": self.damaged, "outbox_damaged_removed": self.damaged_removed,
                    "outbox_left_behind": self.left_behind}  # fmt: skip
        for name, value in self._current().items():
            counters[name] = counters.get(name, 0) + value
        return counters

    def _current(self) -> dict[str, int]:
        outbox = {} if self.outbox is None else self.outbox.statistics()
        uplink = {} if self.uplink is None else self.uplink.statistics()
        return {f"outbox_{name}": value for name, value in outbox.items()} | {
            f"uplink_{name}": value for name, value in uplink.items()
        }

    # --- opening ---------------------------------------------------------------------------------------------------
    async def _try(self) -> None:
        """Open the outbox, a new one if the file is damaged."""
        for _ in range(2):
            outbox = Outbox.open(self.path, *self._bounds, policy=self._policy)
            try:
                await outbox.__aenter__()
            except StorageError as error:
                self.why = str(error)
                if isinstance(error, OutboxDamaged) and await asyncio.to_thread(self._move_aside, error.what):
                    continue
                break
            self._use(outbox)
            return
        self._troubles.begin("outbox", "", self.why)
        self._ready.set()

    def _use(self, outbox: Outbox) -> None:
        self.outbox, self.why = outbox, ""
        if self._make_uplink is not None:
            self.uplink = self._make_uplink(outbox)
            self._tasks = [asyncio.create_task(self.uplink.run(), name="uplink")]
            self._tasks[0].add_done_callback(told)
        self._troubles.end("outbox")
        self._ready.set()

    # --- while it is in use ----------------------------------------------------------------------------------------
    async def _keep(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            if self.outbox is None:
                await asyncio.sleep(backoff.next_s())
                await self._try()
            else:
                backoff.reset()
                outbox = self.outbox
                with suppress(TimeoutError):
                    await asyncio.wait_for(outbox.damaged.wait(), _LOOK_S)
                if outbox.damage is not None:
                    await self._replace(outbox, outbox.damage)
            await asyncio.to_thread(self._look)

    async def _replace(self, outbox: Outbox, damage: OutboxDamaged) -> None:
        """Go on with a new outbox."""
        self._ready.clear()
        if self.uplink is not None:  # a batch under way ends first: the relay must not take it after a new beginning
            await self.uplink.stop(REQUEST_TIMEOUT_NS / SECOND)
        self.left_behind += outbox.pending
        # while it is open: closing it must not remove the log, which may have what the database has lost
        moved = await asyncio.to_thread(self._move_aside, damage.what)
        await self._end()
        if moved:
            await self._try()
        else:
            self.why = str(damage)
            self._troubles.begin("outbox", "", self.why)
            self._ready.set()

    async def _end(self, *, waits: bool = False) -> None:
        """End the uplink and the outbox, and keep their counters. ``waits``: what is in it waits for the next life."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        outbox = self.outbox
        if outbox is not None:
            try:
                await outbox.__aexit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - SQLite may fail on what is damaged; it is not used any more
                _log.warning("the outbox %s did not close well: %s", self.path, error)
            for name, value in self._current().items():
                if waits or name.removeprefix("outbox_") not in _GAUGES:
                    self._ended[name] = self._ended.get(name, 0) + value
        self.outbox = self.uplink = None

    # --- damaged files; on a thread of their own -------------------------------------------------------------------
    def _move_aside(self, what: str) -> bool:
        """Move the damaged file and its log out of the way. Returns whether that was possible."""
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        target, number = self.path.with_name(f"{self.path.name}.damaged-{stamp}"), 1
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{number}")
        removed = ""
        try:
            kept = sorted(self._kept(), key=lambda path: path.stat().st_mtime_ns)
            for old in kept[: len(kept) - MAX_KEPT + 1] if len(kept) >= MAX_KEPT else ():
                _log.error("removing %s, the oldest of %d damaged outboxes", old, len(kept))
                old.unlink()
                _log_of(old).unlink(missing_ok=True)
                self.damaged_removed += 1
                removed = f" {old.name}, the oldest of {len(kept)} damaged ones, was removed for it."
            self.path.rename(target)  # before its log: SQLite ignores a log without a database
            if _log_of(self.path).exists():
                _log_of(self.path).rename(_log_of(target))
        except OSError as error:
            _log.error("the damaged outbox %s can't be moved: %s", self.path, error)
            return False
        self.damaged += 1
        self._moved.append(target)
        self._troubles.begin(
            "outbox", target.name,
            f"the outbox was damaged ({what}) and is now {target}; a new one is in use. What waited in the damaged one "
            f"is not sent: look into it with 'sqlite3 {target.name} .recover', then remove it.{removed}",
        )  # fmt: skip
        return True

    def _kept(self) -> list[Path]:
        beside = self.path.parent.glob(f"{self.path.name}.damaged-*")
        return [path for path in beside if not path.name.endswith("-wal")]

    def _look(self) -> None:
        """End the troubles of damaged files that are gone."""
        for path in [path for path in self._moved if not path.exists()]:
            self._moved.remove(path)
            self._troubles.end("outbox", path.name)


def _log_of(database: Path) -> Path:
    return database.with_name(f"{database.name}-wal")
