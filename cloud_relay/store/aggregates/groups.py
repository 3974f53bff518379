"""The groups of one aggregate in the store, and its allowance.

An aggregate has at most so many groups. When it is full, its oldest buckets are let go, and what is sensed in them is
counted from then on and belongs to no group. These groups are below the *floor*: nobody sees them any more, and their
rows are taken away a few at a time, because a bucket may have very many. So each group that is there is whole, and
which buckets are there depends only on the records and not on their order: those from the lowest time on from which
there are few enough groups. There are two exceptions, in which a record is counted as *beyond* and its node and key are
named: when one bucket alone has more groups than the allowance, and when a node that opened more than half of all
groups would push out those of others.
"""

import sqlite3
from collections import Counter
from typing import Final

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
_MAX_NAMED_CHARS: Final = 300


class GroupTable:
    """Belongs to the thread that writes the store. Each call is part of the caller's transaction. After one that did
    not happen, make it anew."""

    def __init__(self, db: sqlite3.Connection, number: int, definition: AggregateDefinition) -> None:
        self._db, self._number, self._definition = db, number, definition
        (self._floor_utc_ns,) = db.execute("SELECT floor_utc_ns FROM aggregates WHERE number = ?", (number,)).fetchone()
        self._opened: Counter[str] = Counter(
            dict(
                db.execute(
                    "SELECT opened_by, count(*) FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns >= ?"
                    " GROUP BY opened_by",
                    (number, self._floor_utc_ns),
                ).fetchall()
            )
        )
        self._groups = self._opened.total()
        self.has_gone = True
        """Whether there may be rows of groups that were let go."""

    def add(self, name: GroupName, tally: GroupTally, change: int) -> int:
        """Add what records tell of a group. The change gets the number after ``change``. Returns the last one."""
        found = self._db.execute(_FIND, (self._number, *name)).fetchone()
        if found is not None and name.bucket_utc_ns >= self._floor_utc_ns:
            summary = GroupSummary.decode(found[1])
            summary.add(tally.readings)
            self._db.execute(_CHANGE, (change + 1, summary.encoded(), found[0]))
        elif self._has_room(name, tally):
            summary = GroupSummary()
            summary.add(tally.readings)
            self._db.execute(_OPEN, (self._number, *name, tally.origin, change + 1, summary.encoded()))
            self._opened[tally.origin] += 1
            self._groups += 1
        else:
            return change
        return change + 1

    def take_away(self, most: int) -> bool:
        """Delete the rows of at most so many groups that were let go. Returns whether there may be more."""
        self.has_gone = take_away(self._db, self._number, self._floor_utc_ns, most) == most
        return self.has_gone

    def _has_room(self, name: GroupName, tally: GroupTally) -> bool:
        """Whether a group may be opened. Else its records are counted."""
        while name.bucket_utc_ns >= self._floor_utc_ns and self._groups >= self._definition.max_groups:
            oldest, newest = self._db.execute(
                "SELECT (SELECT min(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = ?1 AND bucket_utc_ns >= ?2),"
                " (SELECT max(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = ?1)",
                (self._number, self._floor_utc_ns),
            ).fetchone()
            if name.bucket_utc_ns < oldest:
                self._raise_floor(oldest)
            elif name.bucket_utc_ns == newest == oldest or self._would_push_out_others(tally.origin, oldest):
                self._count_beyond(name, tally)
                return False
            else:
                self._let_go(oldest)
        if name.bucket_utc_ns < self._floor_utc_ns:
            self._db.execute(
                "UPDATE aggregates SET below_floor = below_floor + ? WHERE number = ?",
                (len(tally.readings), self._number),
            )
            return False
        return True

    def _would_push_out_others(self, origin: str, bucket_utc_ns: int) -> bool:
        if self._opened[origin] * 2 <= self._definition.max_groups:
            return False
        of_others = self._db.execute(
            "SELECT 1 FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ? AND opened_by != ? LIMIT 1",
            (self._number, bucket_utc_ns, origin),
        ).fetchone()
        return of_others is not None

    def _let_go(self, bucket_utc_ns: int) -> None:
        """Let the oldest bucket be below the floor."""
        for origin, count in self._opened_in(bucket_utc_ns):
            self._opened[origin] -= count
            self._groups -= count
            self._db.execute("UPDATE aggregates SET let_go = let_go + ? WHERE number = ?", (count, self._number))
        self._opened = +self._opened
        self._raise_floor(bucket_utc_ns + self._definition.bucket_ns)
        self.has_gone = True

    def _opened_in(self, bucket_utc_ns: int) -> list[tuple[str, int]]:
        """How many groups of a bucket each node has opened: by its rows if it is small, else by an index."""
        counted = "count(*) FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ?"
        which = (self._number, bucket_utc_ns)
        few = "SELECT 1 FROM aggregate_groups WHERE aggregate = ? AND bucket_utc_ns = ? LIMIT ?"
        if len(self._db.execute(few, (*which, len(self._opened) + 1)).fetchall()) <= len(self._opened):
            return self._db.execute(f"SELECT opened_by, {counted} GROUP BY opened_by", which).fetchall()
        return [
            (origin, self._db.execute(f"SELECT {counted} AND opened_by = ?", (*which, origin)).fetchone()[0])
            for origin in self._opened
        ]

    def _raise_floor(self, floor_utc_ns: int) -> None:
        self._floor_utc_ns = floor_utc_ns
        self._db.execute("UPDATE aggregates SET floor_utc_ns = ? WHERE number = ?", (floor_utc_ns, self._number))

    def _count_beyond(self, name: GroupName, tally: GroupTally) -> None:
        self._db.execute(
            "UPDATE aggregates SET beyond = beyond + ?, beyond_named = ? WHERE number = ?",
            (len(tally.readings), f"{tally.origin} {name.key}"[:_MAX_NAMED_CHARS], self._number),
        )


def take_away(db: sqlite3.Connection, number: int, floor_utc_ns: int, most: int) -> int:
    """Delete the rows of at most so many groups of an aggregate that are below its floor. Returns how many."""
    return db.execute(
        "DELETE FROM aggregate_groups WHERE number IN (SELECT number FROM aggregate_groups"
        " INDEXED BY aggregate_groups_in_order WHERE aggregate = ? AND bucket_utc_ns < ? LIMIT ?)",
        (number, floor_utc_ns, most),
    ).rowcount
