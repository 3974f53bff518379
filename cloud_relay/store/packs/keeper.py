"""Packs older records and deletes what retention does not keep, in the background, as long as the relay runs."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any, Final

from cloud_relay.store.packs.columns import zstandard
from cloud_relay.store.packs.packing import Job, Packer, PackingPolicy
from cloud_relay.store.packs.reading import PackDamaged
from cloud_relay.store.packs.retention import Removal, Remover, packing_for, removals
from cloud_relay.store.retaining import RetentionPolicy, shown_time
from protocols.base.errors import StorageError

LOOK_S: Final = 1.0
"""The time between two looks at whether there is something to pack."""
RETAIN_S: Final = 300.0
"""The time between two looks at whether retention deletes something. One reads the streams of each pack that is old
enough for some rule, in 4 ms for 4,000 streams."""
RETRY_S: Final = 30.0
"""The time until the next look after something failed."""
_log = logging.getLogger(__name__)


class StoreKeeper:
    """Keeps one store small, on a thread of its own, until it is closed."""

    def __init__(
        self, open_reading: Callable[[], sqlite3.Connection], write: Callable[[Job], "Future[Any]"],
        packing: PackingPolicy, retention: RetentionPolicy,
    ) -> None:  # fmt: skip
        """``write`` hands a slice to the writer of the store."""
        self._open, self._retention, self._clock = open_reading, retention, packing.clock
        self._packer = Packer(open_reading, write, packing_for(retention, packing))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper")
        self._deleted = self._failures = 0

    def start(self) -> None:
        """Begin. Without zstandard nothing is packed or deleted, and the log says so."""
        try:
            zstandard()
        except StorageError as error:
            _log.warning("older records are neither packed nor deleted: %s", error)
            return
        self._thread.start()

    def close(self) -> None:
        """End after the slice that is under way. Idempotent."""
        self._ended.set()
        self._packer.end()
        if self._thread.is_alive():
            self._thread.join()

    def statistics(self) -> dict[str, int]:
        """Counts since the start: packs made, their records, records that retention deleted, and looks that failed."""
        return {
            "packs": self._packer.packs,
            "packed": self._packer.packed,
            "deleted": self._deleted,
            "failures": self._failures,
        }

    def _run(self) -> None:
        pause_s, retains_s = 0.0, time.monotonic()
        while not self._ended.wait(pause_s):
            pause_s = LOOK_S
            try:
                if self._packer.pack_once():
                    pause_s = 0.0
                elif time.monotonic() >= retains_s:
                    self.retain_once()
                    retains_s = time.monotonic() + RETAIN_S
            except (sqlite3.Error, StorageError) as error:
                self._failures += 1
                _log.error("older records stay as they are for now: %s", error)
                pause_s = RETRY_S
            except Exception:  # noqa: BLE001 - records stay, and the relay goes on
                self._failures += 1
                _log.exception("older records were neither packed nor deleted: this is a bug of the relay")
                pause_s = RETRY_S

    def retain_once(self) -> int:
        """Delete what retention does not keep now. Returns how many records.

        :raises StorageError, sqlite3.Error: the store can't be read or written.
        """
        before = self._deleted
        with closing(self._open()) as db:
            remover = Remover(db, self._packer.write, self._packer.write_blocks)
            try:
                remover.resume()
            except PackDamaged as error:
                self._failures += 1
                _log.error("the counts of a pack stay as they were before a part of it was deleted: %s", error)
                remover.settle()
            for removal in list(removals(db, self._retention, self._clock())):
                try:
                    if not remover.remove(removal):
                        break
                except PackDamaged as error:  # it goes once all of it may go, and until then holds up no other one
                    self._failures += 1
                    _log.error("retention can't take a part out of a pack: %s", error)
                    continue
                self._deleted += removal.records
                self._packer.has_remains = True
                _tell(removal)
            remover.settle()
            if self._packer.has_remains:
                self._packer.clear_remains(db)
                self._packer.give_back(db)
        return self._deleted - before


def _tell(removal: Removal) -> None:
    entry = removal.entry
    _log.info(
        "retention deleted %d of %d records of pack %d, received from %s to %s: %s", removal.records, entry.records,
        entry.pack, shown_time(entry.first_received_utc_ns), shown_time(entry.last_received_utc_ns), removal.why,
    )  # fmt: skip
