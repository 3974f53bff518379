"""The groups of one aggregate in PostgreSQL, as its :mod:`~cloud_relay.aggregates.allowance` lets them be.

What the records of a slice tell is looked up by one statement for all groups, changed here, and written by two.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from cloud_relay.aggregates.allowance import GroupAllowance
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.aggregates.tallies import GroupTally
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.texts import shown_text, stored_text

NAME_COLUMNS: Final = ", ".join(GroupName._fields)
"""Those of a group's name, in order."""
NAMES_ASKED: Final = (
    "unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::int[])"
    f" AS asked ({', '.join(f'its_{column}' for column in GroupName._fields)})"
)
"""Names of groups as columns, for :func:`name_columns`."""
IS_ASKED: Final = f"({NAME_COLUMNS}) = ({', '.join(f'its_{column}' for column in GroupName._fields)})"
_FIND: Final = (
    f"SELECT {NAME_COLUMNS}, summary FROM aggregate_groups JOIN {NAMES_ASKED} ON aggregate = $1 AND {IS_ASKED}"  # noqa: S608 - constants only
)
_CHANGE: Final = (
    "UPDATE aggregate_groups SET change = told.change, summary = told.summary FROM"  # noqa: S608 - constants only
    " (SELECT * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::int[],"
    f" $9::bigint[], $10::bytea[]) AS told ({', '.join(f'its_{column}' for column in GroupName._fields)}, change,"
    f" summary)) AS told WHERE aggregate = $1 AND {IS_ASKED}"
)
_OPEN_COLUMNS: Final = ("aggregate", *GroupName._fields, "opened_by", "change", "summary")


def name_columns(names: Iterable[GroupName]) -> list[list[Any]]:
    """The columns of names as the store has them."""
    rows = [stored_name(name) for name in names]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in GroupName._fields]


def stored_name(name: GroupName) -> GroupName:
    """A name as the store has it."""
    return name._replace(rule=stored_text(name.rule), unit=stored_text(name.unit))


def shown_name(columns: Sequence[Any]) -> GroupName:
    """The name that the columns of one stand for."""
    name = GroupName(*columns)
    return name._replace(rule=shown_text(name.rule), unit=shown_text(name.unit))


class PostgresGroupTable:
    """Each call is part of the caller's transaction, which has the lock of all aggregates. After one that did not
    happen, or once somebody else has changed groups, make it anew."""

    def __init__(
        self, session: PostgresSession, number: int, definition: AggregateDefinition, floor_utc_ns: int
    ) -> None:
        self._session, self._number, self._definition = session, number, definition
        self._accounts = _Accounts(session, number)
        opened = session.rows(
            "SELECT opened_by, count(*) FROM aggregate_groups WHERE aggregate = $1 AND bucket_utc_ns >= $2 GROUP BY 1",
            number, floor_utc_ns,
        )  # fmt: skip
        self._allowance = GroupAllowance(self._accounts, definition, floor_utc_ns, dict(map(tuple, opened)))

    def is_right_for(self, definition: AggregateDefinition, floor_utc_ns: int) -> bool:
        """Whether an aggregate is still as it was for us. Groups may be let go without a change of any other."""
        return self._definition == definition and self._allowance.floor_utc_ns == floor_utc_ns

    def add(self, tallies: Mapping[GroupName, GroupTally], change: int) -> int:
        """Add what records tell of groups, in the order of their names. Changes get the numbers after ``change``.
        Returns the last one."""
        found = {
            shown_name(row[:-1]): row[-1]
            for row in map(tuple, self._session.rows(_FIND, self._number, *name_columns(tallies)))
        }
        changed: dict[GroupName, tuple[int, bytes]] = {}
        for name, tally in sorted(tallies.items(), key=lambda item: item[0]):
            encoded = found.get(name)
            if encoded is not None and name.bucket_utc_ns >= self._allowance.floor_utc_ns:
                summary = GroupSummary.decode(encoded)
                summary.add(tally.readings)
                change += 1
                changed[name] = change, summary.encoded()
            elif self._allowance.opens(name, tally):
                summary = GroupSummary()
                summary.add(tally.readings)
                change += 1
                self._accounts.opened.append(
                    (self._number, *stored_name(name), tally.origin, change, summary.encoded())
                )
        self._accounts.flush()
        if changed:
            told = [[change for change, _ in changed.values()], [summary for _, summary in changed.values()]]
            self._session.execute(_CHANGE, self._number, *name_columns(changed), *told)
        return change


class _Accounts:
    """See :class:`~cloud_relay.aggregates.allowance.GroupAccounts`."""

    def __init__(self, session: PostgresSession, number: int) -> None:
        self._session, self._number = session, number
        self.opened: list[tuple[Any, ...]] = []
        """Rows that are not in the table yet."""

    def flush(self) -> None:
        """Write what was opened."""
        if self.opened:
            self._session.copy("aggregate_groups", _OPEN_COLUMNS, self.opened)
            self.opened.clear()

    def ends(self, floor_utc_ns: int) -> tuple[int, int]:
        self.flush()
        oldest, newest = self._session.row(
            "SELECT (SELECT min(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = $1 AND bucket_utc_ns >= $2),"
            " (SELECT max(bucket_utc_ns) FROM aggregate_groups WHERE aggregate = $1)",
            self._number, floor_utc_ns,
        )  # fmt: skip
        return oldest, newest

    def has_of_others(self, bucket_utc_ns: int, origin: str) -> bool:
        self.flush()
        found = self._session.rows(
            "SELECT 1 FROM aggregate_groups WHERE aggregate = $1 AND bucket_utc_ns = $2 AND opened_by <> $3 LIMIT 1",
            self._number, bucket_utc_ns, origin,
        )  # fmt: skip
        return bool(found)

    def opened_in(self, bucket_utc_ns: int, origins: Collection[str]) -> list[tuple[str, int]]:
        self.flush()
        rows = self._session.rows(
            "SELECT opened_by, count(*) FROM aggregate_groups WHERE aggregate = $1 AND bucket_utc_ns = $2 GROUP BY 1",
            self._number, bucket_utc_ns,
        )  # fmt: skip
        return [(origin, count) for origin, count in rows]

    def raise_floor(self, floor_utc_ns: int) -> None:
        self._session.execute("UPDATE aggregates SET floor_utc_ns = $2 WHERE number = $1", self._number, floor_utc_ns)

    def count(self, *, let_go: int = 0, below: int = 0, beyond: int = 0, named: str = "") -> None:
        self._session.execute(
            "UPDATE aggregates SET let_go = let_go + $2, below_floor = below_floor + $3, beyond = beyond + $4,"
            " beyond_named = CASE WHEN $5::text = '' THEN beyond_named ELSE $5 END WHERE number = $1",
            self._number, let_go, below, beyond, stored_text(named),
        )  # fmt: skip


def take_away(session: PostgresSession, number: int, floor_utc_ns: int, most: int) -> int:
    """Delete the rows of at most so many groups of an aggregate that are below its floor. Returns how many."""
    return len(
        session.rows(
            "DELETE FROM aggregate_groups WHERE ctid = ANY (ARRAY(SELECT ctid FROM aggregate_groups"
            " WHERE aggregate = $1 AND bucket_utc_ns < $2 LIMIT $3)) RETURNING 1",
            number, floor_utc_ns, most,
        )
    )  # fmt: skip
