"""One slice of retention: a transaction that deletes a bounded number of records, and lets all tables follow.

One slice is under way at a time, whichever relay does it. It takes the locks of its origins as a group of batches does,
but waits for none: records of an origin whose batch is being stored stay for a later slice. So no batch waits for more
than one slice, and nobody waits in a circle. A relay that is killed leaves a slice done or not begun.

What is left of a deleted record is its sequence, see :mod:`cloud_relay.store.postgres.ranges`. Its receipt goes with
the last record that it covers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from cloud_relay.store.postgres.group import ORIGIN_LOCKS, origin_lock
from cloud_relay.store.postgres.ranges import StoredRange, gaps_between, joined_ranges
from cloud_relay.store.postgres.schema import check_known
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.sizes import SIZE

RETAINING: Final = 0x6D6E7274
"""The lock of a slice."""
SLICE_RECORDS: Final = 512
MAX_COUNTED: Final = 16_384
"""Sequences between deleted records that one slice looks at, to see whether all are stored. The shortest gaps come
first; what is beyond becomes ranges that are not joined."""
MAX_SAME_KEY: Final = 100_000
"""Newer records that one slice looks through for one of the same key, origin and rule, in equal parts for each stream.
Nodes may invent rules, and a slice that takes too long would be tried for ever."""
MAX_SINK_DELETIONS: Final = 1_000
"""Slices that are listed for a sink that has not come to what they deleted. While there are so many, the last one takes
in the next."""
_FREE: Final = "SELECT lock FROM unnest($2::int[]) AS lock WHERE pg_try_advisory_xact_lock($1, lock)"
_DELETE: Final = (
    "DELETE FROM records WHERE number = ANY ($1::bigint[]) RETURNING number, origin, sequence, key, rule, event_utc_ns,"  # noqa: S608 - constants only
    f" received_utc_ns, receipt, {SIZE}"
)
_NEAR: Final = """
SELECT DISTINCT told.origin, near.first, near.last FROM unnest($1::text[], $2::bigint[]) AS told (origin, sequence)
CROSS JOIN LATERAL (
    (SELECT first, last FROM known_ranges WHERE origin = told.origin AND first <= told.sequence
     ORDER BY first DESC LIMIT 1) UNION ALL
    (SELECT first, last FROM known_ranges WHERE origin = told.origin AND first > told.sequence
     ORDER BY first LIMIT 1)) AS near
"""
_STORED: Final = """
SELECT told.origin, told.first, told.last
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS told (origin, first, last)
WHERE (SELECT count(*) FROM records WHERE origin = told.origin AND sequence BETWEEN told.first AND told.last)
    = told.last - told.first + 1
"""
_LEAVE_STREAMS: Final = """
UPDATE streams SET records = streams.records - told.records, size_bytes = streams.size_bytes - told.size_bytes
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS told (key, origin, rule, records, size_bytes, newest_utc_ns)
WHERE (streams.key, streams.origin, streams.rule) = (told.key, told.origin, told.rule)
RETURNING streams.key, streams.origin, streams.rule, streams.records, streams.newest_utc_ns <= told.newest_utc_ns
"""
_END_STREAMS: Final = """
DELETE FROM streams USING unnest($1::text[], $2::text[], $3::text[]) AS told (key, origin, rule)
WHERE (streams.key, streams.origin, streams.rule) = (told.key, told.origin, told.rule)
"""
_NEWEST: Final = """
UPDATE streams SET newest_utc_ns = coalesce(
    (SELECT event_utc_ns FROM (SELECT event_utc_ns, rule FROM records WHERE key = told.key AND origin = told.origin
        ORDER BY event_utc_ns DESC LIMIT $4) AS near
     WHERE near.rule = told.rule ORDER BY event_utc_ns DESC LIMIT 1),
    (SELECT event_utc_ns FROM records WHERE key = told.key AND origin = told.origin
     ORDER BY event_utc_ns DESC OFFSET $4 - 1 LIMIT 1), newest_utc_ns)
FROM unnest($1::text[], $2::text[], $3::text[]) AS told (key, origin, rule)
WHERE (streams.key, streams.origin, streams.rule) = (told.key, told.origin, told.rule)
"""
_END_RECEIPTS: Final = (
    "DELETE FROM receipts USING unnest($1::bigint[], $2::int[]) AS told (number, records)"
    " WHERE receipts.number = told.number AND receipts.records <= told.records"
)
_LEAVE_RECEIPTS: Final = (
    "UPDATE receipts SET records = receipts.records - told.records FROM unnest($1::bigint[], $2::int[])"
    " AS told (number, records) WHERE receipts.number = told.number"
)
_LEAVE_ORIGINS: Final = (
    "UPDATE origins SET deleted = deleted + told.records, known_ranges = known_ranges + told.ranges"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS told (origin, records, ranges)"
    " WHERE origins.origin = told.origin"
)
_TELL_SINKS: Final = """
INSERT INTO sink_deletions AS known (sink, slot, first, last, records)
SELECT sinks.number,
    (SELECT coalesce(max(slot), 0) + (count(*) < $2)::int FROM sink_deletions WHERE sink = sinks.number),
    min(gone.number), max(gone.number), count(*)
FROM sinks JOIN unnest($1::bigint[]) AS gone (number) ON gone.number > sinks.position GROUP BY sinks.number
ON CONFLICT (sink, slot) DO UPDATE SET
    first = least(known.first, excluded.first), last = greatest(known.last, excluded.last),
    records = known.records + excluded.records
"""
_NOTE: Final = "UPDATE store SET deleted = deleted + $1, newest_deleted = greatest(newest_deleted, $2)"


class DueRecord(NamedTuple):
    """A record that may go."""

    number: int
    origin: str


class Removed(NamedTuple):
    """What one slice did."""

    records: int
    oldest_utc_ns: int
    """When the first of them was received; 0: there was none."""
    newest_utc_ns: int
    held: tuple[DueRecord, ...]
    """What stays for now, because batches of its origin are being stored."""
    examined: int
    """The highest number of those that were chosen; 0: there was none."""


class _Gone(NamedTuple):
    """A record that was deleted just now."""

    number: int
    origin: str
    sequence: int
    key: str
    rule: str
    event_utc_ns: int
    received_utc_ns: int
    receipt: int | None
    size_bytes: int


def remove_slice(session: PostgresSession, choose: Callable[[], Sequence[DueRecord]]) -> Removed:
    """Delete what ``choose`` names, within the transaction: at most :data:`SLICE_RECORDS`. It may raise ``ERRORS``.

    :raises StorageError: a newer program has changed the tables meanwhile.
    """
    with session.transaction():
        session.rows("SELECT pg_advisory_xact_lock($1)", RETAINING)
        check_known(session, session.row("SELECT version FROM store")[0])
        chosen = choose()
        if not chosen:
            return Removed(0, 0, 0, (), 0)
        locks = {one.origin: origin_lock(one.origin) for one in chosen}
        free = {lock for (lock,) in session.rows(_FREE, ORIGIN_LOCKS, sorted(set(locks.values())))}
        numbers = [one.number for one in chosen if locks[one.origin] in free]
        gone = [_Gone(*row) for row in session.rows(_DELETE, numbers)] if numbers else []
        if gone:
            _leave_streams(session, gone)
            _leave_receipts(session, gone)
            _leave_origins(session, gone)
            session.execute(_TELL_SINKS, [one.number for one in gone], MAX_SINK_DELETIONS)
            session.execute(_NOTE, len(gone), max(one.number for one in gone))
        times = [one.received_utc_ns for one in gone]
        held = tuple(one for one in chosen if locks[one.origin] not in free)
        examined = max(one.number for one in chosen)
        return Removed(len(gone), min(times, default=0), max(times, default=0), held, examined)


def _leave_streams(session: PostgresSession, gone: Sequence[_Gone]) -> None:
    """Streams have fewer records, perhaps none, and their newest may be another one."""
    leaving: defaultdict[tuple[str, str, str], list[_Gone]] = defaultdict(list)
    for one in gone:
        leaving[one.key, one.origin, one.rule].append(one)
    rows = [
        (*name, len(some), sum(one.size_bytes for one in some), max(one.event_utc_ns for one in some))
        for name, some in leaving.items()
    ]
    left = session.rows(_LEAVE_STREAMS, *_columns(rows))
    if ended := [(key, origin, rule) for key, origin, rule, records, _ in left if records <= 0]:
        session.execute(_END_STREAMS, *_columns(ended))
    if older := [(key, origin, rule) for key, origin, rule, records, is_newest in left if records > 0 and is_newest]:
        session.execute(_NEWEST, *_columns(older), MAX_SAME_KEY // len(older))


def _leave_receipts(session: PostgresSession, gone: Sequence[_Gone]) -> None:
    covered = Counter(one.receipt for one in gone if one.receipt is not None)
    if covered:
        columns = _columns([*covered.items()])
        session.execute(_END_RECEIPTS, *columns)
        session.execute(_LEAVE_RECEIPTS, *columns)


def _leave_origins(session: PostgresSession, gone: Sequence[_Gone]) -> None:
    """The sequences of what is gone become part of ranges, which are joined as far as each sequence was stored."""
    deleted: defaultdict[str, list[int]] = defaultdict(list)
    for one in gone:
        deleted[one.origin].append(one.sequence)
    known: defaultdict[str, list[StoredRange]] = defaultdict(list)
    for origin, first, last in session.rows(_NEAR, *_columns([(one.origin, one.sequence) for one in gone])):
        known[origin].append(StoredRange(first, last))
    stored = _stored_gaps(
        session, [(origin, gap) for origin, own in deleted.items() for gap in gaps_between(known[origin], own)]
    )
    before = {(origin, *one) for origin, ranges in known.items() for one in ranges}
    after = {
        (origin, *one) for origin, own in deleted.items() for one in joined_ranges(known[origin], own, stored[origin])
    }
    if ended := sorted(before - after):
        session.execute(
            "DELETE FROM known_ranges USING unnest($1::text[], $2::bigint[]) AS told (origin, first)"
            " WHERE (known_ranges.origin, known_ranges.first) = (told.origin, told.first)", *_columns(ended)[:2],
        )  # fmt: skip
    if new := sorted(after - before):
        session.copy("known_ranges", ("origin", "first", "last"), new)
    more = Counter(origin for origin, _, _ in after)
    more.subtract(Counter(origin for origin, _, _ in before))
    session.execute(_LEAVE_ORIGINS, *_columns([(origin, len(own), more[origin]) for origin, own in deleted.items()]))


def _stored_gaps(session: PostgresSession, gaps: list[tuple[str, StoredRange]]) -> defaultdict[str, set[StoredRange]]:
    """By origin, the gaps of which each record is there, among the shortest ones."""
    asked, counted = list[tuple[str, int, int]](), 0
    for origin, gap in sorted(gaps, key=lambda one: one[1].length):
        counted += gap.length
        if counted > MAX_COUNTED:
            break
        asked.append((origin, *gap))
    stored: defaultdict[str, set[StoredRange]] = defaultdict(set)
    if asked:
        for origin, first, last in session.rows(_STORED, *_columns(asked)):
            stored[origin].add(StoredRange(first, last))
    return stored


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
