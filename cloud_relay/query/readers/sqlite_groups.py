"""Kept aggregates in a store in SQLite."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.query.kept import AggregateAccount, GroupSpan, KeptGroup
from cloud_relay.store.aggregates.keeping import stored_definitions
from cloud_relay.store.aggregates.tables import NAME_COLUMNS
from cloud_relay.store.schema import AGGREGATES_VERSION, store_version
from protocols.base.errors import StorageError

_ACCOUNTS: Final = (
    "SELECT number, name, made_utc_ns, CASE WHEN filled_to >= fill_end THEN 1.0 ELSE 1.0 * filled_to / fill_end END,"
    " floor_utc_ns, below_floor, let_go, beyond, beyond_named, ahead, (SELECT count(*) FROM aggregate_groups"
    " WHERE aggregate = aggregates.number AND bucket_utc_ns >= floor_utc_ns) FROM aggregates"
    " WHERE dropped = 0 ORDER BY name"
)
_STATE: Final = (
    "SELECT number, made_utc_ns, percentiles, max_groups, filled_to, dropped, floor_utc_ns, below_floor, beyond, ahead"
    " FROM aggregates"
)
"""When one was made tells it from an earlier one with the same number."""
_GROUP: Final = (
    "SELECT change, summary FROM aggregate_groups INDEXED BY aggregate_groups_in_order"  # noqa: S608 - names of columns
    f" WHERE aggregate = ? AND ({NAME_COLUMNS}) = (?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class SqliteGroups:
    """A :class:`~cloud_relay.query.kept.GroupSource`."""

    db: sqlite3.Connection
    made: int = 0
    """Which file it is."""

    def definitions(self) -> dict[int, AggregateDefinition]:
        """What is kept, by number."""
        self._check_version()
        return stored_definitions(self.db)

    def accounts(self) -> list[AggregateAccount]:
        """How far each aggregate is."""
        self._check_version()
        return [AggregateAccount(*row) for row in self.db.execute(_ACCOUNTS).fetchall()]

    def floor_utc_ns(self, number: int) -> int:
        """Below which groups were let go."""
        return int(self.db.execute("SELECT floor_utc_ns FROM aggregates WHERE number = ?", (number,)).fetchone()[0])

    def names(self, number: int, span: GroupSpan, most: int) -> list[GroupName]:
        """The next names. The statement has one bound on each side: SQLite seeks by one only."""
        low: tuple[str, tuple[object, ...]] = ("bucket_utc_ns >= ?", (span.first_utc_ns,))
        high: tuple[str, tuple[object, ...]] = ("bucket_utc_ns <= ?", (span.last_utc_ns,))
        if span.after is not None and span.newest_first:
            high = (f"({NAME_COLUMNS}) < (?, ?, ?, ?, ?, ?, ?)", span.after)
        elif span.after is not None:
            low = (f"({NAME_COLUMNS}) > (?, ?, ?, ?, ?, ?, ?)", span.after)
        direction = "DESC" if span.newest_first else "ASC"
        order = ", ".join(f"{column} {direction}" for column in GroupName._fields)
        rows = self.db.execute(
            f"SELECT {NAME_COLUMNS} FROM aggregate_groups INDEXED BY aggregate_groups_in_order WHERE aggregate = ?"  # noqa: S608 - our texts
            f" AND {low[0]} AND {high[0]} ORDER BY {order} LIMIT ?",
            (number, *low[1], *high[1], most),
        )
        return [GroupName(*row) for row in rows]

    def groups(self, number: int, names: Sequence[GroupName]) -> list[KeptGroup]:
        """The groups of these names."""
        found = ((name, self.db.execute(_GROUP, (number, *name)).fetchone()) for name in names)
        return [KeptGroup(row[0], name, GroupSummary.decode(row[1])) for name, row in found if row is not None]

    def changed(self, number: int, after: int, up_to: int, most: int) -> list[tuple[int, GroupName]]:
        """The next changes."""
        rows = self.db.execute(
            f"SELECT change, {NAME_COLUMNS} FROM aggregate_groups INDEXED BY aggregate_groups_by_change"  # noqa: S608 - names of columns
            " WHERE aggregate = ? AND change > ? AND change <= ? ORDER BY change LIMIT ?",
            (number, after, up_to, most),
        )
        return [(change, GroupName(*name)) for change, *name in rows]

    def newest_change(self) -> int:
        """The number of the last change."""
        self._check_version()
        return int(self.db.execute("SELECT last FROM aggregate_changes").fetchone()[0])

    def state(self) -> str:
        """Another text whenever a group or an aggregate has changed."""
        return repr((self.made, self.newest_change(), self.db.execute(_STATE).fetchall()))

    def _check_version(self) -> None:
        if store_version(self.db) < AGGREGATES_VERSION:
            raise StorageError("the store is of an earlier version and keeps no aggregates: start the relay once")
