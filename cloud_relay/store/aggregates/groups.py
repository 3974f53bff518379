"""The groups of one aggregate in the store of SQLite, as its :mod:`~cloud_relay.aggregates.allowance` lets them be.

Rows of groups that were let go are taken away a few at a time, because a bucket may have very many.
"""

import sqlite3
from collections.abc import Collection
from typing import Final

from cloud_relay.aggregates.allowance import GroupAllowance
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.aggregates.tallies import GroupTally
from cloud_relay.store.aggregates.tables import NAME_COLUMNS

_FIND: Final = (
    "SELECT number, summary FROM aggregate_groups INDEXED BY aggregate_groups_in_order"  # noqa: S608 - names of columns
    f" WHERE aggregate = ? AND ({NAME_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?)"
)
_CHANGE: Final = "UPDATE aggregate_groups SET change = ?, summary = ? WHERE number = ?"
_OPEN: Final = (
    f"INSERT INTO aggregate_groups (aggregate, {NAME_COLUMNS}, opened_by, change, summary)"  # noqa: S608 - names of columns only
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class GroupTable:
    """Belongs to the thread that writes the store. Each call is part of the caller's transaction. After one that did
    not happen, make it anew."""

    def __init__(self, db: sqlite3.Connection, number: int, definition: AggregateDefinition) -> None:
        self._db, self._number = db, number
        (floor_utc_ns,) = db.execute("SELECT floor_utc_ns FROM aggregates WHERE number = ?", (number,)).fetchone()
        opened = db.execute(
            "SELECT opened_by, count(*) FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns >= ?"
            " GROUP BY opened_by",
            (number, floor_utc_ns),
        )
        self._allowance = GroupAllowance(_Accounts(db, number), definition, floor_utc_ns, dict(opened.fetchall()))

    @property
    def has_gone(self) -> bool:
        """Whether there may be rows of groups that were let go."""
        return self._allowance.has_gone

    def add(self, name: GroupName, tally: GroupTally, change: int) -> int:
        """Add what records tell of a group. The change gets the number after ``change``. Returns the last one."""
        found = self._db.execute(_FIND, (self._number, *name)).fetchone()
        if found is not None and name.bucket_utc_ns >= self._allowance.floor_utc_ns:
            summary = GroupSummary.decode(found[1])
            summary.add(tally.readings)
            self._db.execute(_CHANGE, (change + 1, summary.encoded(), found[0]))
        elif self._allowance.opens(name, tally):
            summary = GroupSummary()
            summary.add(tally.readings)
            self._db.execute(_OPEN, (self._number, *name, tally.origin, change + 1, summary.encoded()))
        else:
            return change
        return change + 1

    def take_away(self, most: int) -> bool:
        """Delete the rows of at most so many groups that were let go. Returns whether there may be more."""
        taken = take_away(self._db, self._number, self._allowance.floor_utc_ns, most)
        self._allowance.has_gone = taken == most
        return self._allowance.has_gone


class _Accounts:
    """See :class:`~cloud_relay.aggregates.allowance.GroupAccounts`."""

    def __init__(self, db: sqlite3.Connection, number: int) -> None:
        self._db, self._number = db, number

    def ends(self, floor_utc_ns: int) -> tuple[int, int]:
        oldest, newest = self._db.execute(
            "SELECT (SELECT min(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = ?1 AND bucket_utc_ns >= ?2),"
            " (SELECT max(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = ?1)",
            (self._number, floor_utc_ns),
        ).fetchone()
        return oldest, newest

    def has_of_others(self, bucket_utc_ns: int, origin: str) -> bool:
        found = self._db.execute(
            "SELECT 1 FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ? AND opened_by != ? LIMIT 1",
            (self._number, bucket_utc_ns, origin),
        ).fetchone()
        return found is not None

    def opened_in(self, bucket_utc_ns: int, origins: Collection[str]) -> list[tuple[str, int]]:
        """By the rows of a bucket if it is small, else by an index."""
        counted = "count(*) FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ?"
        which = (self._number, bucket_utc_ns)
        few = "SELECT 1 FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ? LIMIT ?"
        if len(self._db.execute(few, (*which, len(origins) + 1)).fetchall()) <= len(origins):
            return self._db.execute(f"SELECT opened_by, {counted} GROUP BY opened_by", which).fetchall()
        return [
            (origin, self._db.execute(f"SELECT {counted} AND opened_by = ?", (*which, origin)).fetchone()[0])
            for origin in origins
        ]

    def raise_floor(self, floor_utc_ns: int) -> None:
        self._db.execute("UPDATE aggregates SET floor_utc_ns = ? WHERE number = ?", (floor_utc_ns, self._number))

    def count(self, *, let_go: int = 0, below: int = 0, beyond: int = 0, named: str = "") -> None:
        self._db.execute(
            "UPDATE aggregates SET let_go = let_go + ?, below_floor = below_floor + ?, beyond = beyond + ?,"
            " beyond_named = CASE WHEN ? = '' THEN beyond_named ELSE ? END WHERE number = ?",
            (let_go, below, beyond, named, named, self._number),
        )


def take_away(db: sqlite3.Connection, number: int, floor_utc_ns: int, most: int) -> int:
    """Delete the rows of at most so many groups of an aggregate that are below its floor. Returns how many."""
    return db.execute(
        "DELETE FROM aggregate_groups WHERE number IN (SELECT number FROM aggregate_groups"
        " INDEXED BY aggregate_groups_in_order WHERE aggregate = ? AND bucket_utc_ns < ? LIMIT ?)",
        (number, floor_utc_ns, most),
    ).rowcount
