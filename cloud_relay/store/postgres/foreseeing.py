"""What retention would delete now from a store in PostgreSQL, counted in one look at all records."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.sizes import SIZE
from cloud_relay.store.retaining import BEYOND_AGE, BEYOND_SIZE, RetentionPolicy

STATEMENT_S: Final = 600.0
_KEYS: Final = "SELECT key, sum(records)::bigint FROM streams GROUP BY key ORDER BY key"
_OLD: Final = (
    f"SELECT key, count(*), sum({SIZE})::bigint FROM records"  # noqa: S608 - constants only
    " JOIN unnest($1::text[], $2::bigint[]) AS told (old, utc_ns) ON key = old AND received_utc_ns <= utc_ns"
    " GROUP BY key ORDER BY key"
)
_USED: Final = "SELECT coalesce(sum(size_bytes), 0)::bigint FROM streams"
_OLDEST: Final = (
    "SELECT count(*), coalesce(sum(size), 0)::bigint FROM"  # noqa: S608 - constants only
    " (SELECT size, sum(size) OVER (ORDER BY number) - size AS before FROM"
    f" (SELECT number, {SIZE} AS size FROM records LEFT JOIN unnest($1::text[], $2::bigint[]) AS told (old, utc_ns)"
    " ON key = old AND received_utc_ns <= utc_ns WHERE old IS NULL) AS kept) AS added WHERE before < $3"
)


class Doomed(NamedTuple):
    """Records that would go."""

    key: str | None
    """None: of any key."""
    records: int
    of: int
    """How many there are of that key, or in the store."""
    size_bytes: int
    """About."""
    why: str


def doomed(session: PostgresSession, policy: RetentionPolicy, now_utc_ns: int) -> Iterator[Doomed]:
    """What would go by age, key by key, and then by size. It may raise ``ERRORS``."""
    counts = {key: int(records) for key, records in session.rows(_KEYS)}
    ages = {key: policy.max_age_ns(key) for key in counts}
    keys = [key for key, age_ns in ages.items() if age_ns is not None]
    until = [now_utc_ns - (ages[key] or 0) for key in keys]
    old_bytes = old = 0
    for key, records, size_bytes in session.rows(_OLD, keys, until):
        old, old_bytes = old + records, old_bytes + size_bytes
        yield Doomed(key, records, counts[key], size_bytes, BEYOND_AGE)
    if policy.max_bytes is not None:
        excess_bytes = session.row(_USED)[0] - old_bytes - policy.max_bytes
        if excess_bytes > 0:
            records, size_bytes = session.row(_OLDEST, keys, until, excess_bytes)
            yield Doomed(None, records, sum(counts.values()) - old, size_bytes, BEYOND_SIZE)
