"""Questions to a store in PostgreSQL, with the answers that SQLite gives."""

import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from cloud_relay.metrics.stored import StoreFigures
from cloud_relay.query.aggregating import GROUPED, AggregateQuery, check_patience, grouped
from cloud_relay.query.aggregating import PATIENCE_S as AGGREGATING_S
from cloud_relay.query.arrivals import MAX_ARRIVALS, MAX_BYTES, MAX_EXAMINED, RecordArrivals
from cloud_relay.query.audit import OriginAccount, OriginFacts, reckoned
from cloud_relay.query.newest import is_shown
from cloud_relay.query.proofs import made_proof
from cloud_relay.query.readers.postgres.conditions import SqlStatement, record_filters, stored_rule, stream_filters
from cloud_relay.query.readers.postgres.groups import PostgresGroups
from cloud_relay.query.readers.postgres.walking import walk
from cloud_relay.query.searching import COLUMNS, MAX_PAGE_BYTES, PATIENCE_S, RecordPage, StoredRecord
from cloud_relay.query.selection import LAST_UTC_NS, MAX_PAGE_RECORDS, Query, cursor_of
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.schema import NUMBER_BITS, SETTLED, check_version
from cloud_relay.store.postgres.session import ERRORS, LOST, PostgresSession, postgres_error
from cloud_relay.store.postgres.texts import shown_text
from protocols.base.errors import StorageError

STATEMENT_S: Final = 5.0
"""A look takes 50 ms; a server that needs this long for one has too much to do."""
AUDIT_STATEMENT_S: Final = 600.0
"""An audit goes through everything that an origin has."""
WAIT_S: Final = 5.0
"""For which a thread waits for a reader."""
MAX_BEHIND: Final = 16_384
"""Records that are counted after the place of a stream."""
_SLICE: Final = 64
"""Records that are fetched at once: of the largest ones, 16 MiB."""
_EXAMINED_STREAMS: Final = 20_000
IN_ORDER: Final = {"enable_sort": "off", "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""A statement is made for one index, in whose order it stops early. Statistics may not talk the server out of it."""
_SETTINGS: Final = {"default_transaction_read_only": "on", **IN_ORDER}
_TEXTS: Final = ("rule", "sensor", "unit", "calibration")
"""Columns that may stand for something else, see :mod:`cloud_relay.store.postgres.texts`."""
_COLUMNS: Final = f"{', '.join(COLUMNS[:-1])}, receipt IS NOT NULL AS has_receipt, encoded"
_ROWS: Final = f"SELECT number, {_COLUMNS} FROM records WHERE number = ANY ($1::bigint[])"  # noqa: S608 - constants only
_NEWEST_NUMBER: Final = (
    f"SELECT greatest((SELECT max(number) FROM records WHERE number < {SETTLED}), (SELECT newest_deleted FROM store))"  # noqa: S608
)
_BETWEEN: Final = (
    "SELECT before + 1, first - 1 FROM (SELECT first, max(last) OVER (ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING"
    " AND 1 PRECEDING) AS before FROM (SELECT sequence AS first, sequence AS last FROM records WHERE origin = $1"
    " UNION ALL SELECT first, last FROM known_ranges WHERE origin = $1) AS taken) AS stored WHERE first > before + 1"
)
"""What was never stored between sequences of an origin that were."""
_COUNTS: Final = (
    "SELECT stored, least(lowest, first), coalesce(greatest(highest, last), 0), with_receipt,"
    " coalesce((SELECT deleted FROM origins WHERE origin = $1), 0)"
    " FROM (SELECT count(*) AS stored, min(sequence) AS lowest, max(sequence) AS highest,"
    " count(receipt) AS with_receipt FROM records WHERE origin = $1) AS rows,"
    " (SELECT min(first) AS first, max(last) AS last FROM known_ranges WHERE origin = $1) AS known"
)
_FIGURES: Final = (
    "SELECT (SELECT coalesce(sum(records), 0)::bigint FROM streams), (SELECT count(*) FROM streams),"
    " (SELECT count(*) FROM origins), pg_database_size(current_database())"
)


@dataclass(frozen=True, slots=True)
class PostgresReader:
    """A :class:`~cloud_relay.query.readers.contract.StoreReader`. It raises ``ERRORS``, which its lender translates."""

    session: PostgresSession

    def page(self, query: Query, patience_s: float = PATIENCE_S) -> RecordPage:
        """One page."""
        ends_s = time.monotonic() + patience_s
        limit, size_bytes = min(query.limit, MAX_PAGE_RECORDS), 0
        records: list[StoredRecord] = []
        for found in walk(self.session, query):
            places = {number: place for place, number in found.records[: limit - len(records)]}
            for number, record in self._records(places):
                records.append(record)
                size_bytes += record.size_bytes
                if len(records) >= limit or size_bytes >= MAX_PAGE_BYTES:
                    return RecordPage(records, cursor_of(places[number]))
            if found.reached is not None and time.monotonic() > ends_s:
                return RecordPage(records, cursor_of(found.reached))
        return RecordPage(records, None)

    def newest(self, query: Query, after_key: str | None = None, patience_s: float = PATIENCE_S) -> RecordPage:
        """The newest record of each key."""
        ends_s = time.monotonic() + patience_s
        limit, size_bytes = min(query.limit, MAX_PAGE_RECORDS), 0
        records: list[StoredRecord] = []
        while True:
            upto = self._last_key(after_key)
            reached, more = self._newest_between(query, after_key, upto, limit)
            for key, record in more:
                if record is not None and is_shown(record, query):
                    records.append(record)
                    size_bytes += record.size_bytes
                if len(records) >= limit or size_bytes >= MAX_PAGE_BYTES:
                    return RecordPage(records, key)
            if reached is None:
                return RecordPage(records, None)
            after_key = reached
            if time.monotonic() > ends_s:
                return RecordPage(records, after_key)

    def aggregates(self, query: AggregateQuery) -> list[dict[str, Any]]:
        """Numbers about many records."""
        return grouped(self._grouped_rows(query, time.monotonic() + AGGREGATING_S), query)

    def newest_number(self) -> int:
        """The number of the last record of which all before it are known."""
        return int(self.session.row(_NEWEST_NUMBER)[0])

    def arrivals(self, query: Query, number: int) -> RecordArrivals:
        """What was stored after a number."""
        found = self.next_arrivals(query, number)
        return found._replace(behind=self._behind(found.reached, found.newest))

    def next_arrivals(
        self, query: Query, number: int, *, up_to: int = LAST_UTC_NS, most_records: int = MAX_ARRIVALS,
        most_bytes: int = MAX_BYTES,
    ) -> RecordArrivals:  # fmt: skip
        """What was stored after a number and up to another one, without how much is behind it."""
        most_records, most_bytes = min(most_records, MAX_ARRIVALS), min(most_bytes, MAX_BYTES)
        newest = self.newest_number()
        end = min(newest, up_to)
        made = SqlStatement()
        after, upto = made.value(number), made.value(end)
        wanted, most = made.put(record_filters(query)), made.value(MAX_EXAMINED)
        rows = self.session.rows(
            f"SELECT number, wanted, at FROM (SELECT number, ({wanted}) AS wanted, row_number() OVER (ORDER BY number)"  # noqa: S608 - our texts
            f" AS at FROM records WHERE number > {after} AND number <= {upto} ORDER BY number LIMIT {most}) AS seen"
            f" WHERE wanted OR at = {most}",
            *made.values,
        )
        reached = next((row[0] for row in rows if row[2] == MAX_EXAMINED), end)
        numbers = sorted(row[0] for row in rows if row[1])
        records: list[tuple[int, StoredRecord]] = []
        size_bytes = 0
        for found, record in self._records(numbers[:most_records]):
            records.append((found, record))
            size_bytes += record.size_bytes
            if size_bytes >= most_bytes or len(records) == most_records:
                reached = found
                break
        return RecordArrivals(records, max(reached, number), newest, 0)

    def state(self) -> str:
        """How much retention has deleted, and which transactions are over, of those that have begun before the newest
        record or receipt."""
        made, deleted, record, receipt, base, snapshot = self.session.row(
            "SELECT made, deleted, (SELECT max(number) FROM records), (SELECT max(number) FROM receipts), number_base,"
            " pg_current_snapshot()::text FROM store"
        )
        newest = max(record or 0, receipt or 0)
        running = [int(one) + base for one in snapshot.rsplit(":", 1)[1].split(",") if one]
        return repr((made, deleted, record, receipt, [one for one in running if one <= newest >> NUMBER_BITS]))

    def figures(self) -> StoreFigures:
        """How large it is."""
        return StoreFigures(*self.session.row(_FIGURES))

    def kept(self) -> PostgresGroups:
        """What is kept beside the records."""
        return PostgresGroups(self.session)

    def audit(self) -> list[OriginAccount]:
        """The accounts of all origins."""
        session = self.session
        with session.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            session.execute(f"SET LOCAL statement_timeout = '{AUDIT_STATEMENT_S:g}s'")
            with session.waits(AUDIT_STATEMENT_S):
                origins = session.rows(
                    "SELECT origin, next_sequence FROM origins UNION ALL SELECT origin, 1 FROM wrong_receipts"
                    " WHERE origin NOT IN (SELECT origin FROM origins)"
                )
                return [reckoned(self._facts(origin, following)) for origin, following in sorted(map(tuple, origins))]

    def proof(self, origin: str, sequence: int) -> bytes:
        """The proof of a stored record."""
        rows = self.session.rows(
            "SELECT rule, encoded, receipts.receipt, leaves, place FROM records LEFT JOIN receipts"
            " ON receipts.number = records.receipt WHERE records.origin = $1 AND sequence = $2",
            origin, sequence,
        )  # fmt: skip
        row = held = None
        if rows:
            rule, encoded, receipt, leaves, place = rows[0]
            row = shown_text(rule), encoded
            held = None if place is None or receipt is None else (receipt, leaves, place)

        def certificate(named: bytes) -> bytes | None:
            statement = "SELECT certificate FROM certificates WHERE origin = $1 AND id = $2"
            return next((bytes(one) for (one,) in self.session.rows(statement, origin, named)), None)

        return made_proof(origin, sequence, row, held, certificate)

    # --- pieces ----------------------------------------------------------------------------------------------------
    def _records(self, numbers: Iterable[int]) -> Iterator[tuple[int, StoredRecord]]:
        """Records by their numbers, in the order of these."""
        asked = list(numbers)
        for begin in range(0, len(asked), _SLICE):
            some = asked[begin : begin + _SLICE]
            rows = {row[0]: row[1:] for row in map(tuple, self.session.rows(_ROWS, some))}
            yield from ((number, _record(rows[number])) for number in some if number in rows)

    def _last_key(self, after_key: str | None) -> str | None:
        """The key up to which a bounded number of streams lies; None: up to the last one."""
        made = SqlStatement()
        after, most = made.value(after_key or ""), made.value(_EXAMINED_STREAMS)
        rows = self.session.rows(
            f"SELECT key FROM streams WHERE key > {after} ORDER BY key OFFSET {most} LIMIT 1",  # noqa: S608 - marks only
            *made.values,
        )
        return rows[0][0] if rows else None

    def _newest_between(
        self, query: Query, after_key: str | None, upto: str | None, limit: int
    ) -> tuple[str | None, Iterator[tuple[str, StoredRecord | None]]]:
        """The newest records of the next keys, at most ``limit``, and the key that was reached; None: the last one."""
        made = SqlStatement()
        filters, after = made.put(stream_filters(query)), made.value(after_key or "")
        upto_key = "true" if upto is None else f"key <= {made.value(upto)}"
        most = made.value(limit)
        found = self.session.rows(
            f"SELECT DISTINCT ON (key) key, origin, newest_utc_ns FROM streams WHERE key > {after} AND {upto_key}"  # noqa: S608 - our texts
            f" AND {filters} ORDER BY key, newest_utc_ns DESC, origin DESC LIMIT {most}",
            *made.values,
        )
        reached = found[-1][0] if len(found) == limit else upto
        return reached, self._newest_records(query, found)

    def _newest_records(self, query: Query, streams: Sequence[Any]) -> Iterator[tuple[str, StoredRecord | None]]:
        for begin in range(0, len(streams), _SLICE):
            some = streams[begin : begin + _SLICE]
            made = SqlStatement()
            keys, origins, times = (made.value([stream[at] for stream in some]) for at in range(3))
            rule = "true" if query.rule is None else f"rule = {made.value(stored_rule(query))}"
            rows = self.session.rows(
                f"SELECT its_key, newest.* FROM unnest({keys}::text[], {origins}::text[], {times}::bigint[])"  # noqa: S608 - our texts
                " AS stream (its_key, its_origin, its_utc_ns) CROSS JOIN LATERAL"
                f" (SELECT {_COLUMNS} FROM records WHERE key = its_key AND origin = its_origin"
                f" AND event_utc_ns = its_utc_ns AND {rule} ORDER BY sequence DESC LIMIT 1) AS newest",
                *made.values,
            )
            found = {row[0]: _record(row[1:]) for row in map(tuple, rows)}
            yield from ((key, found.get(key)) for key, _, _ in some)

    def _grouped_rows(self, query: AggregateQuery, ends_s: float) -> Iterator[Sequence[Any]]:
        statement = f"SELECT {', '.join(GROUPED)} FROM records WHERE number = ANY ($1::bigint[])"  # noqa: S608
        for found in walk(self.session, query.records):
            for begin in range(0, len(found.records), MAX_PAGE_RECORDS):
                numbers = [number for _, number in found.records[begin : begin + MAX_PAGE_RECORDS]]
                for key, origin, rule, unit, *rest in self.session.rows(statement, numbers):
                    yield key, origin, shown_text(rule), shown_text(unit), *rest
                check_patience(ends_s)
            if found.reached is not None:
                check_patience(ends_s)

    def _behind(self, reached: int, newest: int) -> int:
        return int(
            self.session.row(
                "SELECT count(*) FROM (SELECT 1 FROM records WHERE number > $1 AND number <= $2 LIMIT $3) AS after",
                reached, newest, MAX_BEHIND,
            )[0]
        )  # fmt: skip

    def _facts(self, origin: str, next_sequence: int) -> OriginFacts:
        session = self.session
        stored, lowest, highest, with_receipt, deleted = session.row(_COUNTS, origin)
        conflicts = session.row("SELECT count(*) FROM conflicts WHERE origin = $1", origin)[0]
        wrong = session.rows("SELECT times, why FROM wrong_receipts WHERE origin = $1", origin)
        times, why = wrong[0] if wrong else (0, "")
        fates = session.each("SELECT first, last, state FROM fates WHERE origin = $1 ORDER BY first", origin)
        between = session.each(_BETWEEN, origin)
        return OriginFacts(
            origin, next_sequence, stored, lowest, highest, conflicts, with_receipt, times, shown_text(why),
            map(_three, fates), map(_two, between), deleted,
        )  # fmt: skip


class PostgresReaders:
    """At most ``most`` connections that read, which are made when they are needed and kept."""

    def __init__(self, place: PostgresPlace, most: int) -> None:
        self._place = place
        self._idle: queue.LifoQueue[PostgresSession | None] = queue.LifoQueue()
        for _ in range(most):
            self._idle.put(None)
        self._most = most

    @contextmanager
    def reader(self) -> Iterator[PostgresReader]:
        """A reader for one thread. What the server says while it is used becomes a StorageError."""
        try:
            session = self._idle.get(timeout=WAIT_S)
        except queue.Empty:
            raise StorageError(f"all {self._most} readers of {self._place} are in use: ask again later") from None
        try:
            if session is None:
                session = PostgresSession(self._place, STATEMENT_S, _SETTINGS)
            self._connect(session)
            yield PostgresReader(session)
        except ERRORS as error:
            assert session is not None
            session.drop()
            raise postgres_error(self._place, error) from error
        finally:
            self._idle.put(session)

    def close(self) -> None:
        """Disconnect."""
        for _ in range(self._most):
            session = self._idle.get()
            if session is not None:
                session.close()
            self._idle.put(None)

    @staticmethod
    def _connect(session: PostgresSession) -> None:
        """Connect. One that was kept may have lost its server meanwhile, and is made anew then."""
        if session.is_connected:
            try:
                session.execute("SELECT 1")
            except LOST:
                session.drop()
        if not session.is_connected:
            session.connect()
            check_version(session)


def _record(row: Sequence[Any]) -> StoredRecord:
    fields = dict(zip(COLUMNS, row, strict=False))
    for name in _TEXTS:
        fields[name] = shown_text(fields[name])
    return StoredRecord(fields, row[-1])


def _three(row: Sequence[Any]) -> tuple[int, int, str]:
    return row[0], row[1], row[2]


def _two(row: Sequence[Any]) -> tuple[int, int]:
    return row[0], row[1]
