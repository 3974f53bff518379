"""Goes through the records of a question in the order in which they are shown, a bounded number at a time.

As in :mod:`cloud_relay.query.sources`, records are looked for in their streams, in the cells of a small box, or along
time, whichever is a good part smaller. Here one statement looks at the next entries of all sources at once, says which
of them are wanted, and how far each source came. What lies beyond the source that came least far waits for the next
look. So each look takes a bounded time, and a page can end after any of them. Sessions that read may not sort or scan
the whole table, so the server goes along the index that the statement is made for, whatever its statistics say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from cloud_relay.query.readers.postgres.conditions import (
    SqlStatement,
    after_place,
    in_time,
    record_filters,
    stored_rule,
    stream_filters,
)
from cloud_relay.query.selection import Place, Query
from cloud_relay.query.sources import (
    FEW_RECORDS,
    MAX_EXAMINED_STREAMS,
    MAX_SOURCES,
    ROWS_PER_STREAM,
    UNEVEN,
    cells_of,
    stream_names,
)
from cloud_relay.store.postgres.session import PostgresSession

MAX_LOOK: Final = 16_384
"""Entries that one look is at, over all sources: up to 50 ms if each needs its row."""
_FIRST_LOOK: Final = (4, 128)
"""Entries of each source that are looked at first, at least and at most."""


class RecordLook(NamedTuple):
    """What one look found."""

    records: list[tuple[Place, int]]
    """Places and numbers of the records that are wanted, in order."""
    reached: Place | None
    """No record up to this place is missing; None: there are no more."""


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where to look: what there is of each source, and what picks its records."""

    table: str
    values: tuple[list[object], ...]
    fixed: str
    count: int


def walk(session: PostgresSession, query: Query) -> Iterator[RecordLook]:
    """Look until there are no more. It may raise ``ERRORS``."""
    sources = _sources(session, query)
    if not sources.count:
        yield RecordLook([], None)
        return
    least, most = _FIRST_LOOK
    size, after = min(max(2 * query.limit // sources.count, least), most), query.after
    while True:
        found = _look(session, query, sources, after, size)
        yield found
        after = found.reached
        if after is None:
            return
        size = max(size, min(4 * size, MAX_LOOK // sources.count))


def _look(session: PostgresSession, query: Query, sources: _Sources, after: Place | None, size: int) -> RecordLook:
    text, values = _statement(query, sources, after, size)
    rows = session.rows(text, *values)
    ends = [tuple(row[:3]) for row in rows if row[5] == size]
    reached = (max(ends) if query.newest_first else min(ends)) if ends else None
    records = [(tuple(row[:3]), row[3]) for row in rows if row[4]]
    records.sort(reverse=query.newest_first)
    if reached is not None:
        records = [one for one in records if (one[0] >= reached if query.newest_first else one[0] <= reached)]
    return RecordLook(records, reached)


def _statement(query: Query, sources: _Sources, after: Place | None, size: int) -> tuple[str, list[object]]:
    """What looks at the next ``size`` entries of each source: it goes along one index and ends early."""
    made = SqlStatement()
    direction = "DESC" if query.newest_first else "ASC"
    order = f"ORDER BY event_utc_ns {direction}, origin {direction}, sequence {direction}"
    marks = [made.value(values) for values in sources.values]
    bounds = made.put(in_time(query) & after_place(after, newest_first=query.newest_first))
    wanted, most = made.put(record_filters(query)), made.value(size)
    text = (
        "SELECT event_utc_ns, origin, sequence, number, wanted, at FROM"  # noqa: S608 - our texts
        f" unnest({sources.table.format(*marks)} CROSS JOIN LATERAL (SELECT event_utc_ns, origin, sequence, number,"
        f" ({wanted}) AS wanted, row_number() OVER ({order}) AS at FROM records WHERE {sources.fixed} AND {bounds}"
        f" {order} LIMIT {most}) AS seen WHERE wanted OR at = {most}"
    )
    return text, made.values


def _sources(session: PostgresSession, query: Query) -> _Sources:
    streams = _streams(session, query)
    few = streams is not None and sum(count for _, _, count in streams) <= FEW_RECORDS
    cells = None if query.box is None or few else cells_of(query.box)
    if cells is not None:
        return _Sources("{}::int[]) AS source (wanted_cell)", ([*cells],), "cell = wanted_cell", len(cells))
    if streams is not None and not _time_is_cheaper(session, streams, query):
        keys, origins = [key for key, _, _ in streams], [origin for _, origin, _ in streams]
        return _Sources(
            "{}::text[], {}::text[]) AS source (its_key, its_origin)", ([*keys], [*origins]),
            "key = its_key AND origin = its_origin", len(streams),
        )  # fmt: skip
    return _Sources("{}::int[]) AS source (whole)", ([0],), "true", 1)


def _streams(session: PostgresSession, query: Query) -> list[tuple[str, str, int]] | None:
    """Key, origin and number of records of the streams that are asked for; None: too many, or none was asked for."""
    if query.key is None and query.origin is None and query.rule is None:
        return None
    near = SqlStatement()
    named, most = near.put(stream_names(replace(query, rule=stored_rule(query)))), near.value(MAX_EXAMINED_STREAMS + 1)
    examined = session.row(
        f"SELECT count(*) FROM (SELECT 1 FROM streams WHERE {named} LIMIT {most}) AS near",  # noqa: S608 - our texts
        *near.values,
    )[0]
    if examined > MAX_EXAMINED_STREAMS:
        return None
    made = SqlStatement()
    filters, most = made.put(stream_filters(query)), made.value(MAX_SOURCES + 1)
    rows = session.rows(
        f"SELECT key, origin, sum(records)::bigint FROM streams WHERE {filters} GROUP BY key, origin LIMIT {most}",  # noqa: S608 - our texts
        *made.values,
    )
    return None if len(rows) > MAX_SOURCES else [(key, origin, count) for key, origin, count in rows]


def _time_is_cheaper(session: PostgresSession, streams: list[tuple[str, str, int]], query: Query) -> bool:
    """Whether going along time finds a page with much less work than opening all streams, if they are spread evenly."""
    total: int = session.row("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('records')")[0]
    matching = max(1, sum(count for _, _, count in streams))
    return bool(len(streams) * ROWS_PER_STREAM > UNEVEN * query.limit * max(total, matching) / matching)
