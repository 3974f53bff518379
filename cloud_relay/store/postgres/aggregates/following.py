"""Keeps the configured aggregates right: one slice of records after the other, each in one transaction.

Numbers of records below :data:`~cloud_relay.store.postgres.schema.SETTLED` are final: nothing appears among them any
more. So an aggregate follows them, and a slice notes in its transaction how far it came. Each record is added once,
whichever relay does the slice and whenever one is killed; one that came twice is stored once, and a late one goes to
its own bucket. One slice is under way at a time, by a lock that ends with its transaction, so no relay leads.

An aggregate that is new follows from the first record on, in turn with those that are further. Groups that were let go,
and aggregates that are no longer configured, are deleted in slices, too. Which aggregates there are stands in the
store: the relay that was started last has said so.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cloud_relay.aggregates.definition import AggregateDefinition, stored_definition
from cloud_relay.aggregates.grouping import AggregateRecord, GroupName
from cloud_relay.aggregates.tallies import GroupTally, Tallies
from cloud_relay.store.postgres.aggregates.groups import PostgresGroupTable, take_away
from cloud_relay.store.postgres.schema import SETTLED, check_known
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.texts import shown_text

AGGREGATING: Final = 0x6D6E7275
"""The lock of a slice."""
SLICE_RECORDS: Final = 4_096
SLICE_BYTES: Final = 4 * 1024 * 1024
"""What one slice reads."""
SLICE_DROPPED: Final = 2_048
_END: Final = 2**63 - 1
"""Beyond all numbers of records, and all times."""
_ROWS: Final = (
    "SELECT number, origin, rule, key, unit, latitude_deg, longitude_deg, event_utc_ns, received_utc_ns, value, encoded"  # noqa: S608 - constants only
    f" FROM records WHERE number > $1 AND number <= $2 AND number < {SETTLED} ORDER BY number LIMIT $3"
)
_BEGIN: Final = f"least(coalesce(min(number), 1), {SETTLED}) - 1"
_ROWS_AT_ONCE: Final = 256
_AGGREGATES: Final = (
    "SELECT number, name, identity, percentiles, max_groups, filled_to, floor_utc_ns FROM aggregates"
    " WHERE NOT dropped ORDER BY number"
)
_log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """An aggregate as the store has it."""

    definition: AggregateDefinition
    filled_to: int
    floor_utc_ns: int


def configure(session: PostgresSession, definitions: Sequence[AggregateDefinition], now_utc_ns: int) -> None:
    """Keep these aggregates from now on, and no others. It may raise ``ERRORS``.

    A new one begins before the first record, and before those that transactions under way may store below it.
    """
    with session.transaction():
        session.rows("SELECT pg_advisory_xact_lock($1)", AGGREGATING)
        wanted = {(definition.name, definition.identity): definition for definition in definitions}
        for number, kept in _kept(session).items():
            same = wanted.pop((kept.definition.name, kept.definition.identity), None)
            if same is None:
                _log.warning(
                    "the aggregate %s is not configured as it was: what was kept is dropped", kept.definition.name
                )
                session.execute("UPDATE aggregates SET dropped = true WHERE number = $1", number)
            else:
                session.execute(
                    "UPDATE aggregates SET percentiles = $2, max_groups = $3 WHERE number = $1", number, same.shown,
                    same.max_groups,
                )  # fmt: skip
        for new in wanted.values():
            session.execute(
                "INSERT INTO aggregates (name, identity, percentiles, max_groups, made_utc_ns, fill_begin, filled_to,"  # noqa: S608 - constants only
                f" fill_end) SELECT $1, $2, $3, $4, $5, {_BEGIN}, {_BEGIN}, coalesce(max(number), 0) FROM records",
                new.name, new.identity, new.shown, new.max_groups, now_utc_ns,
            )  # fmt: skip


class AggregateFollower:
    """Follows on one session, which nobody else uses meanwhile."""

    def __init__(self, session: PostgresSession) -> None:
        self._session = session
        self._tables: dict[int, PostgresGroupTable] = {}
        self._change = -1
        """The last change when our tables were right."""
        self._turn = self._slices = 0

    def work(self) -> bool:
        """One slice. Returns whether there may be more to do at once. It may raise ``ERRORS``.

        :raises StorageError: a newer program has changed the tables meanwhile.
        """
        try:
            with self._session.transaction():
                if not self._session.row("SELECT pg_try_advisory_xact_lock($1)", AGGREGATING)[0]:
                    return False  # another relay is at it
                check_known(self._session, self._session.row("SELECT version FROM store")[0])
                return self._slice()
        except BaseException:
            self._tables.clear()
            raise

    def _slice(self) -> bool:
        self._slices += 1
        if self._slices % 2 and self._drop():  # every second slice, so that neither waits for ever
            return True
        aggregates = _kept(self._session)
        places = sorted({kept.filled_to for kept in aggregates.values()}, reverse=True)
        for _ in places:
            self._turn = (self._turn + 1) % len(places)
            place = places[self._turn]
            up_to = _END if self._turn == 0 else places[self._turn - 1]
            following = {number: kept for number, kept in aggregates.items() if kept.filled_to == place}
            if self._follow(following, place, up_to):
                return True
        return self._drop()

    def _follow(self, aggregates: Mapping[int, _Kept], place: int, up_to: int) -> bool:
        """Add the records after a number to aggregates that came to it. Returns whether there were any."""
        tallies, reached = Tallies({number: kept.definition for number, kept in aggregates.items()}), place
        size_bytes = 0
        for number, *fields in self._session.each(_ROWS, place, up_to, SLICE_RECORDS, size=_ROWS_AT_ONCE):
            record = AggregateRecord(*fields)
            tallies.note(record._replace(rule=shown_text(record.rule), unit=shown_text(record.unit)))
            reached = number
            size_bytes += len(record.value) + len(record.encoded)
            if size_bytes >= SLICE_BYTES:
                break
        else:
            if reached == place and up_to == _END:
                return False
            if reached == place:
                reached = up_to  # retention has deleted what lay between
        self._write(tallies, aggregates)
        self._session.execute(
            "UPDATE aggregates SET filled_to = $2 WHERE number = ANY ($1::bigint[])", [*aggregates], reached
        )
        return True

    def _write(self, tallies: Tallies, aggregates: Mapping[int, _Kept]) -> None:
        session = self._session
        for number, count in tallies.ahead.items():
            session.execute("UPDATE aggregates SET ahead = ahead + $2 WHERE number = $1", number, count)
        if not tallies.groups:
            return
        change: int = session.row("SELECT last FROM aggregate_changes")[0]
        if change != self._change:
            self._tables.clear()  # another relay has changed groups
        by_aggregate: defaultdict[int, dict[GroupName, GroupTally]] = defaultdict(dict)
        for (number, name), tally in tallies.groups.items():
            by_aggregate[number][name] = tally
        for number, groups in sorted(by_aggregate.items()):
            kept, table = aggregates[number], self._tables.get(number)
            if table is None or not table.is_right_for(kept.definition, kept.floor_utc_ns):
                table = PostgresGroupTable(session, number, kept.definition, kept.floor_utc_ns)
                self._tables[number] = table
            change = table.add(groups, change)
        session.execute("UPDATE aggregate_changes SET last = $1", change)
        self._change = change

    def _drop(self) -> bool:
        """Delete groups of an aggregate that nobody wants, or that were let go. Returns whether there were."""
        dropped = self._session.rows("SELECT number FROM aggregates WHERE dropped LIMIT 1")
        if dropped:
            if take_away(self._session, dropped[0][0], _END, SLICE_DROPPED) < SLICE_DROPPED:
                self._session.execute("DELETE FROM aggregates WHERE number = $1", dropped[0][0])
            return True
        below = self._session.rows(
            "SELECT number, floor_utc_ns FROM aggregates WHERE EXISTS (SELECT FROM aggregate_groups"
            " WHERE aggregate = aggregates.number AND bucket_utc_ns < floor_utc_ns) LIMIT 1"
        )
        return bool(below) and take_away(self._session, below[0][0], below[0][1], SLICE_DROPPED) > 0


def stored_aggregates(session: PostgresSession) -> dict[int, AggregateDefinition]:
    """The aggregates that a store has, by their numbers."""
    return {number: kept.definition for number, kept in _kept(session).items()}


def _kept(session: PostgresSession) -> dict[int, _Kept]:
    rows: list[Any] = session.rows(_AGGREGATES)
    return {
        number: _Kept(stored_definition(name, identity, percentiles, max_groups), filled_to, floor_utc_ns)
        for number, name, identity, percentiles, max_groups, filled_to, floor_utc_ns in rows
    }
