"""Keeps the configured aggregates right.

What a batch stores newly is added in the transaction that stores it, so a record that comes again is not added again,
and a late one goes to its own bucket. An aggregate that is new is filled from the records that were there before it, up
to the number ``fill_end``, in slices, each a transaction that also notes how far it came. Records above that number are
added as they come. So each record is added once, whenever the relay is killed. Aggregates that are no longer configured
are deleted in slices, too, and so are groups that were let go: while records come, twice as many as may be opened.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cloud_relay.aggregates.definition import AggregateDefinition, stored_definition
from cloud_relay.aggregates.grouping import AggregateRecord
from cloud_relay.aggregates.tallies import Tallies
from cloud_relay.store.aggregates.before import slice_after
from cloud_relay.store.aggregates.groups import GroupTable, take_away
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.rows import (
    EVENT_COLUMN,
    KEY_COLUMN,
    LATITUDE_COLUMN,
    LONGITUDE_COLUMN,
    UNIT_COLUMN,
    VALUE_COLUMN,
    Row,
)

SLICE_RECORDS: Final = 1_024
SLICE_BYTES: Final = 4 * 1024 * 1024
"""What one slice reads. Batches wait for it: 5 ms of a processor for each new aggregate, 25 ms at worst, and 20 ms more
if it is read from a pack whose records were sensed in quite another order than they came in."""
SLICE_DROPPED: Final = 512
RETRY_S: Final = 5.0
"""After a slice failed, as it does on a full disk."""
LAST_UTC_NS: Final = 2**63 - 1
_HAS_GONE: Final = (
    "EXISTS (SELECT 1 FROM aggregate_groups WHERE aggregate = aggregates.number AND bucket_utc_ns < floor_utc_ns)"
)
_log = logging.getLogger(__name__)


class KeptAggregates:
    """Belongs to the thread that writes the store."""

    def __init__(
        self, db: sqlite3.Connection, path: Path, definitions: Sequence[AggregateDefinition] | None, now_utc_ns: int
    ) -> None:
        """``definitions``: what is kept from now on; None: what the store has.

        :raises sqlite3.Error: the store can't be read or written.
        """
        self._db, self._path = db, path
        self.failures = 0
        """Slices that failed."""
        self.unreadable = 0
        """Records of damaged packs, at most, which filling passed over."""
        self._due_s: float | None = None
        """When there is work, by the monotonic clock; None: there is none."""
        if definitions is not None:
            db.execute("BEGIN IMMEDIATE")
            self._configure(definitions, now_utc_ns)
            db.execute("COMMIT")
        self._definitions = stored_definitions(db)
        self._tables: dict[int, GroupTable] = {}
        self._tallies = Tallies(self._definitions)
        self._look_for_work()

    @property
    def pause_s(self) -> float | None:
        """How long to wait for batches until :meth:`work` is due; 0: it is; None: there is nothing to do."""
        return None if self._due_s is None else max(self._due_s - time.monotonic(), 0.0)

    def note(self, origin: str, rule: str, row: Row, received_utc_ns: int, encoded: bytes) -> None:
        """Note a record that was stored just now."""
        if self._definitions:
            self._tallies.note(
                AggregateRecord(
                    origin, rule, row[KEY_COLUMN], row[UNIT_COLUMN], row[LATITUDE_COLUMN], row[LONGITUDE_COLUMN],
                    row[EVENT_COLUMN], received_utc_ns, row[VALUE_COLUMN], encoded,
                )
            )  # fmt: skip

    def write(self) -> None:
        """Write what was noted, at the end of the caller's transaction."""
        self._write(self._tallies)
        self._tallies.clear()

    def rolled_back(self) -> None:
        """Forget what was noted in a transaction that did not happen."""
        self._tallies.clear()
        self._tables.clear()

    def work(self) -> bool:
        """Fill or drop one slice, in a transaction of its own. Returns whether groups have changed."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            has_changed = self._drop() or self._fill()
            self._db.execute("COMMIT")
            self._look_for_work()
        except Exception:  # noqa: BLE001 - batches must go on, whatever it is
            self.failures += 1
            self.rolled_back()
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.rollback()
            _log.exception("aggregates of %s can't be filled now; it is tried again in %g s", self._path, RETRY_S)
            self._due_s = time.monotonic() + RETRY_S
            return False
        return has_changed

    def _configure(self, definitions: Sequence[AggregateDefinition], now_utc_ns: int) -> None:
        wanted = {(definition.name, definition.identity): definition for definition in definitions}
        for number, definition in stored_definitions(self._db).items():
            same = wanted.pop((definition.name, definition.identity), None)
            if same is None:
                _log.warning("the aggregate %s is not configured as it was: what was kept is dropped", definition.name)
                self._db.execute("UPDATE aggregates SET dropped = 1 WHERE number = ?", (number,))
            else:
                self._db.execute(
                    "UPDATE aggregates SET percentiles = ?, max_groups = ? WHERE number = ?",
                    (same.shown, same.max_groups, number),
                )
        newest = newest_number(self._db)
        for new in wanted.values():
            self._db.execute(
                "INSERT INTO aggregates (name, identity, percentiles, max_groups, made_utc_ns, filled_to, fill_end)"
                " VALUES (?, ?, ?, ?, ?, 0, ?)",
                (new.name, new.identity, new.shown, new.max_groups, now_utc_ns, newest),
            )

    def _write(self, tallies: Tallies) -> None:
        if not tallies.groups and not tallies.ahead:
            return
        (change,) = self._db.execute("SELECT last FROM aggregate_changes").fetchone()
        # In order, so that neighbours in the file are written together.
        for (number, name), tally in sorted(tallies.groups.items(), key=lambda item: item[0]):
            table = self._tables.get(number)
            if table is None:
                table = self._tables[number] = GroupTable(self._db, number, self._definitions[number])
            change = table.add(name, tally, change)
        self._db.execute("UPDATE aggregate_changes SET last = ?", (change,))
        for table in self._tables.values():
            if table.has_gone and table.take_away(2 * len(tallies.groups)) and self._due_s is None:
                self._due_s = time.monotonic()
        for number, count in tallies.ahead.items():
            self._db.execute("UPDATE aggregates SET ahead = ahead + ? WHERE number = ?", (count, number))

    def _fill(self) -> bool:
        """Add the next records to those aggregates that are least far."""
        next_slice = self._db.execute(
            "SELECT filled_to, fill_end FROM aggregates WHERE dropped = 0 AND filled_to < fill_end"
            " ORDER BY filled_to, fill_end LIMIT 1"
        ).fetchone()
        if next_slice is None:
            return False
        reached, end = next_slice
        numbers = self._db.execute(
            "SELECT number FROM aggregates WHERE dropped = 0 AND filled_to = ? AND fill_end = ?", next_slice
        ).fetchall()
        tallies = Tallies({number: self._definitions[number] for (number,) in numbers})
        found = slice_after(self._db, reached, end, SLICE_RECORDS, SLICE_BYTES)
        for record in found.records:
            tallies.note(record)
        self._write(tallies)
        self._db.executemany(
            "UPDATE aggregates SET filled_to = ? WHERE number = ?", [(found.reached, n) for (n,) in numbers]
        )
        self.unreadable += found.unreadable
        return True

    def _drop(self) -> bool:
        """Delete groups of an aggregate that nobody wants, or that were let go. Returns whether there were."""
        found = self._db.execute("SELECT number FROM aggregates WHERE dropped = 1 LIMIT 1").fetchone()
        if found is not None:
            if take_away(self._db, found[0], LAST_UTC_NS, SLICE_DROPPED) < SLICE_DROPPED:
                self._db.execute("DELETE FROM aggregates WHERE number = ?", found)
            return True
        below = self._db.execute(f"SELECT number, floor_utc_ns FROM aggregates WHERE {_HAS_GONE} LIMIT 1").fetchone()  # noqa: S608
        return below is not None and take_away(self._db, below[0], below[1], SLICE_DROPPED) > 0

    def _look_for_work(self) -> None:
        has_work = self._db.execute(
            f"SELECT 1 FROM aggregates WHERE dropped = 1 OR filled_to < fill_end OR {_HAS_GONE} LIMIT 1"  # noqa: S608
        ).fetchone()
        self._due_s = None if has_work is None else time.monotonic()


def stored_definitions(db: sqlite3.Connection) -> dict[int, AggregateDefinition]:
    """The aggregates that a store has, by their numbers."""
    rows = db.execute("SELECT number, name, identity, percentiles, max_groups FROM aggregates WHERE dropped = 0")
    return {number: stored_definition(*row) for number, *row in rows}
