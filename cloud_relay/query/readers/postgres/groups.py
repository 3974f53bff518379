"""Kept aggregates in a store in PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.query.kept import AggregateAccount, GroupSpan, KeptGroup
from cloud_relay.query.readers.postgres.conditions import SqlStatement
from cloud_relay.store.postgres.aggregates.following import stored_aggregates
from cloud_relay.store.postgres.aggregates.groups import (
    IS_ASKED,
    NAME_COLUMNS,
    NAMES_ASKED,
    name_columns,
    shown_name,
    stored_name,
)
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.texts import shown_text

_ACCOUNTS: Final = (
    "SELECT number, name, made_utc_ns, CASE WHEN filled_to >= fill_end THEN 1.0::float8"
    " ELSE (filled_to - fill_begin)::float8 / (fill_end - fill_begin) END, floor_utc_ns, below_floor, let_go, beyond,"
    " beyond_named, ahead, (SELECT count(*) FROM aggregate_groups WHERE aggregate = aggregates.number"
    " AND bucket_utc_ns >= floor_utc_ns) FROM aggregates WHERE NOT dropped ORDER BY name"
)
_STATE: Final = (
    "SELECT made, last, (SELECT string_agg(concat_ws(' ', number, made_utc_ns, percentiles, max_groups, filled_to,"
    " dropped, floor_utc_ns, below_floor, beyond, ahead), ';' ORDER BY number) FROM aggregates)"
    " FROM store, aggregate_changes"
)
_GROUPS: Final = (
    f"SELECT {NAME_COLUMNS}, change, summary FROM {NAMES_ASKED} CROSS JOIN LATERAL"  # noqa: S608 - constants only
    f" (SELECT {NAME_COLUMNS}, change, summary FROM aggregate_groups WHERE aggregate = $1 AND {IS_ASKED}) AS found"
)


@dataclass(frozen=True, slots=True)
class PostgresGroups:
    """A :class:`~cloud_relay.query.kept.GroupSource`. It raises ``ERRORS``, as its reader does."""

    session: PostgresSession

    def definitions(self) -> dict[int, AggregateDefinition]:
        """What is kept, by number."""
        return stored_aggregates(self.session)

    def accounts(self) -> list[AggregateAccount]:
        """How far each aggregate is."""
        rows = [AggregateAccount(*row) for row in self.session.rows(_ACCOUNTS)]
        return [account._replace(beyond_named=shown_text(account.beyond_named)) for account in rows]

    def floor_utc_ns(self, number: int) -> int:
        """Below which groups were let go."""
        found = self.session.rows("SELECT floor_utc_ns FROM aggregates WHERE number = $1", number)
        return int(found[0][0]) if found else 0  # it was dropped just now

    def names(self, number: int, span: GroupSpan, most: int) -> list[GroupName]:
        """The next names."""
        made = SqlStatement()
        aggregate, first, last = made.value(number), made.value(span.first_utc_ns), made.value(span.last_utc_ns)
        beyond = "true"
        if span.after is not None:
            marks = ", ".join(made.value(each) for each in stored_name(span.after))
            beyond = f"({NAME_COLUMNS}) {'<' if span.newest_first else '>'} ({marks})"
        direction = "DESC" if span.newest_first else "ASC"
        order = ", ".join(f"{column} {direction}" for column in GroupName._fields)
        rows = self.session.rows(
            f"SELECT {NAME_COLUMNS} FROM aggregate_groups WHERE aggregate = {aggregate} AND bucket_utc_ns >= {first}"  # noqa: S608 - our texts
            f" AND bucket_utc_ns <= {last} AND {beyond} ORDER BY {order} LIMIT {made.value(most)}",
            *made.values,
        )
        return [shown_name(row) for row in rows]

    def groups(self, number: int, names: Sequence[GroupName]) -> list[KeptGroup]:
        """The groups of these names."""
        rows = self.session.rows(_GROUPS, number, *name_columns(names)) if names else []
        found = {shown_name(row[:-2]): (row[-2], row[-1]) for row in map(tuple, rows)}
        return [KeptGroup(found[name][0], name, GroupSummary.decode(found[name][1])) for name in names if name in found]

    def changed(self, number: int, after: int, up_to: int, most: int) -> list[tuple[int, GroupName]]:
        """The next changes."""
        rows = self.session.rows(
            f"SELECT change, {NAME_COLUMNS} FROM aggregate_groups WHERE aggregate = $1 AND change > $2"  # noqa: S608 - constants only
            " AND change <= $3 ORDER BY change LIMIT $4",
            number, after, up_to, most,
        )  # fmt: skip
        return [(row[0], shown_name(row[1:])) for row in map(tuple, rows)]

    def newest_change(self) -> int:
        """The number of the last change."""
        return int(self.session.row("SELECT last FROM aggregate_changes")[0])

    def state(self) -> str:
        """Another text whenever a group or an aggregate has changed."""
        return repr(tuple(self.session.row(_STATE)))
