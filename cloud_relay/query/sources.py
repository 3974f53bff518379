"""Where the records of a question are looked for: in streams, in cells of the earth, or in time.

A *source* is a part of one index that has records in the order in which they are shown. Questions about few keys or
nodes merge a source for each of their streams, questions about a small box one for each cell, and all others go along
time. Packed records are sources of their own, see :mod:`cloud_relay.query.packed`. Each looks at a bounded number of
entries before it says how far it came, so whoever merges them can stop: no
question is looked at for longer than its patience, whatever it asks and however little it finds.
"""

import heapq
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloud_relay.query.packed import pack_sources
from cloud_relay.query.selection import LAST_UTC_NS, Box, Place, Query
from cloud_relay.query.steps import LAST_NAME, NOTHING, OPENING, Step
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.packs.tables import newest_number
from cloud_relay.store.schema import CELL, CELLS_AROUND, CELLS_PER_DEGREE, INDEXED_VERSION, store_version
from protocols.base.keys import matches

MAX_SOURCES: Final = 1_024
"""Streams or cells that one question merges. Beyond, time is cheaper."""
MAX_EXAMINED_STREAMS: Final = 200_000
"""Streams whose key is compared with an expression: nodes may invent keys, and each costs a microsecond."""
FEW_RECORDS: Final = 50_000
"""So many records of streams are looked through before cells are."""
_FIRST_CHUNKS: Final = (4, 128)
"""Entries that are looked at first, at least and at most."""
_MAX_CHUNK: Final = 16_384
"""Entries of an index that are looked at at once: up to 50 ms if each needs its row."""
ROWS_PER_STREAM: Final = 25
"""Rows that can be looked at in the time that one stream takes to open."""
UNEVEN: Final = 8
"""How much cheaper time has to look than streams: records may lie elsewhere in time than most."""


@dataclass(frozen=True, slots=True)
class SqlCondition:
    """A piece of SQL and the values for its marks."""

    text: str
    values: tuple[object, ...] = ()

    def __and__(self, other: "SqlCondition") -> "SqlCondition":
        if other == ALL or self == ALL:
            return self if other == ALL else other
        return SqlCondition(f"{self.text} AND {other.text}", self.values + other.values)


ALL: Final = SqlCondition("1 = 1")


@dataclass(frozen=True, slots=True)
class RecordSource:
    """A part of one index. Its order is that of places, because what is fixed in it comes before."""

    index: str
    """``INDEXED BY`` a name, or nothing for a store without such indexes."""
    fixed: SqlCondition
    demanded: SqlCondition
    """What a record has to be beside that."""
    origin: str | None = None
    """The one that is fixed."""
    newest_utc_ns: int = LAST_UTC_NS
    """No record in it is newer."""


def sources_of(
    db: sqlite3.Connection, query: Query, streams: "list[_Stream] | None", live: SqlCondition
) -> list[RecordSource]:
    """The sources that together have all rows of a question. ``live``: which rows are no remains."""
    demanded = _box(query.box) & _row_filters(query) & live
    if store_version(db) < INDEXED_VERSION:
        return [RecordSource("", ALL, demanded & _name_filters(query))]
    few = streams is not None and sum(stream.records for stream in streams) <= FEW_RECORDS
    cells = None if query.box is None or few else cells_of(query.box)
    if cells is not None:
        demanded &= _name_filters(query)
        return [
            RecordSource("INDEXED BY records_in_cells", SqlCondition(f"{CELL} = ?", (cell,)), demanded)
            for cell in cells
        ]
    if streams is not None and not _time_is_cheaper(db, streams, query):
        return [
            RecordSource(
                "INDEXED BY records_in_streams", SqlCondition("key = ? AND origin = ?", (stream.key, stream.origin)),
                demanded, stream.origin, stream.newest_utc_ns,
            )
            for stream in streams
        ]  # fmt: skip
    return [RecordSource("INDEXED BY records_in_time", ALL, demanded & _name_filters(query))]


def steps(db: sqlite3.Connection, source: RecordSource, query: Query, first_chunk: int) -> Iterator[Step]:
    """The records of a source in the order that is asked for, and how far it came where it found none. The first look
    is at ``first_chunk`` entries."""
    newest_first = query.newest_first
    begin, far = _time_bounds(query, source.newest_utc_ns)
    if newest_first:
        yield Step(min(source.newest_utc_ns, LAST_UTC_NS), LAST_NAME, LAST_UTC_NS, OPENING)
    else:
        yield Step(0, "", 0, OPENING)
    if query.after is not None:
        begin = _beyond(query.after, source, newest_first) & begin
    direction = "DESC" if newest_first else "ASC"
    start = f"SELECT event_utc_ns, origin, sequence, rowid FROM records {source.index} WHERE {source.fixed.text} AND"  # noqa: S608 - our texts
    order = f"ORDER BY event_utc_ns {direction}, origin {direction}, sequence {direction}"
    size = first_chunk
    while True:
        asked = begin & far
        if source.demanded == ALL:
            found = db.execute(
                f"{start} {asked.text} {order} LIMIT ?", (*source.fixed.values, *asked.values, size)
            ).fetchall()
            end = found[-1] if len(found) == size else None
        else:
            end = db.execute(
                f"{start} {asked.text} {order} LIMIT 1 OFFSET ?", (*source.fixed.values, *asked.values, size - 1)
            ).fetchone()
            asked = (asked if end is None else begin & _up_to(end[:3], source, newest_first)) & source.demanded
            found = db.execute(f"{start} {asked.text} {order}", (*source.fixed.values, *asked.values)).fetchall()
        for row in found:
            yield Step._make(row)
        if end is None:
            return
        begin = _beyond(end[:3], source, newest_first)  # one bound on each side: SQLite seeks by only one of several
        yield Step(end[0], end[1], end[2], NOTHING)
        size = min(4 * size, _MAX_CHUNK)


def merged_steps(db: sqlite3.Connection, query: Query, packed: PackReader) -> Iterator[Step]:
    """The steps of all sources of a question, in order. Rows and packs are those of one moment."""
    streams = None if store_version(db) < INDEXED_VERSION else _streams(db, query)
    sources = sources_of(db, query, streams, live_rows(db, packed))
    names = None if streams is None else {stream[:2] for stream in streams}
    least, most = _FIRST_CHUNKS
    first_chunk = min(max(2 * query.limit // max(1, len(sources)), least), most)
    return heapq.merge(
        *(steps(db, source, query, first_chunk) for source in sources), *pack_sources(db, packed, query, names),
        reverse=query.newest_first,
    )  # fmt: skip


def live_rows(db: sqlite3.Connection, packed: PackReader) -> SqlCondition:
    """Which rows are no remains of records that are in packs. Mostly all are."""
    (lowest,) = db.execute("SELECT min(rowid) FROM records").fetchone()
    return ALL if lowest is None or lowest > packed.up_to else SqlCondition("rowid > ?", (packed.up_to,))


def prepare(db: sqlite3.Connection) -> None:
    """Give a connection the function that compares keys with expressions."""
    db.create_function("key_matches", 2, matches, deterministic=True)


# --- which sources ---------------------------------------------------------------------------------------------------
class _Stream(NamedTuple):
    key: str
    origin: str
    records: int
    newest_utc_ns: int


def _streams(db: sqlite3.Connection, query: Query) -> list[_Stream] | None:
    """The streams of the keys, nodes and rules that are asked for; None: too many, or none was asked for."""
    if query.key is None and query.origin is None and query.rule is None:
        return None
    near = stream_names(query)
    examined = db.execute(f"SELECT count(*) FROM (SELECT 1 FROM streams WHERE {near.text} LIMIT ?)",  # noqa: S608 - our texts
                          (*near.values, MAX_EXAMINED_STREAMS + 1)).fetchone()[0]  # fmt: skip
    if examined > MAX_EXAMINED_STREAMS:
        return None
    exact = near & key_filter(query)
    rows = db.execute(
        f"SELECT key, origin, sum(records), max(newest_utc_ns) FROM streams WHERE {exact.text}"  # noqa: S608 - our texts
        " GROUP BY key, origin LIMIT ?",
        (*exact.values, MAX_SOURCES + 1),
    ).fetchall()
    return None if len(rows) > MAX_SOURCES else [_Stream(*row) for row in rows]


def _time_is_cheaper(db: sqlite3.Connection, streams: list[_Stream], query: Query) -> bool:
    """Whether going along time finds a page with much less work than opening all streams, if they are spread evenly."""
    total = newest_number(db)  # streams count packed records, too
    matching = max(1, sum(stream.records for stream in streams))
    return len(streams) * ROWS_PER_STREAM > UNEVEN * query.limit * total / matching


def cells_of(box: Box) -> list[int] | None:
    """The cells that a box touches; None: too many, or it has a pole, where longitudes mean nothing."""
    if box.has_pole:
        return None
    rows = range(_step(box.south + 90.0), _step(box.north + 90.0) + 1)
    spans = [(_step(west + 180.0), _step(east + 180.0)) for west, east in box.spans()]
    if len(rows) * sum(east - west + 1 for west, east in spans) > MAX_SOURCES:
        return None
    columns = {column for west, east in spans for column in range(west, east + 1)}
    return [row * CELLS_AROUND + column for row in rows for column in sorted(columns)]


def _step(degrees: float) -> int:
    return int(degrees * CELLS_PER_DEGREE)  # as SQLite computes it, see schema.CELL


# --- conditions ------------------------------------------------------------------------------------------------------
def stream_names(query: Query) -> SqlCondition:
    """What an index can say of the streams of a question: it may leave more than there are."""
    found = ALL
    if query.origin is not None:
        found &= SqlCondition("origin = ?", (query.origin,))
    if query.rule is not None:
        found &= SqlCondition("rule = ?", (query.rule,))
    if query.key is not None:
        prefix = query.key.split("*", 1)[0]
        if prefix == query.key:
            found &= SqlCondition("key = ?", (query.key,))
        elif prefix:
            # The expression `a/**` matches the key `a` too, which has no slash.
            beginning = prefix.removesuffix("/")
            found &= SqlCondition("key >= ? AND key < ?", (beginning, beginning + LAST_NAME))
    return found


def key_filter(query: Query) -> SqlCondition:
    """What decides about the key; ``key_matches`` is a function of the connection, see :func:`prepare`."""
    if query.key is None or query.key == "**" or "*" not in query.key:
        return ALL
    return SqlCondition("key_matches(?, key)", (query.key,))


def all_filters(query: Query) -> SqlCondition:
    """All that a record has to be, but for its time, in no particular index."""
    return _box(query.box) & _row_filters(query) & _name_filters(query)


def _name_filters(query: Query) -> SqlCondition:
    return stream_names(query) & key_filter(query)


def _row_filters(query: Query) -> SqlCondition:
    found = ALL
    if query.rule is not None:
        found &= SqlCondition("rule = ?", (query.rule,))
    if query.min_quality is not None:
        found &= SqlCondition("quality >= ?", (query.min_quality,))
    return found


def _box(box: Box | None) -> SqlCondition:
    if box is None:
        return ALL
    spans = box.spans()
    longitudes = " OR ".join(["longitude_deg BETWEEN ? AND ?"] * len(spans) + ["latitude_deg IN (-90, 90)"])
    return SqlCondition(
        f"latitude_deg BETWEEN ? AND ? AND ({longitudes})",
        (box.south, box.north, *(edge for span in spans for edge in span)),
    )


def _time_bounds(query: Query, newest_utc_ns: int) -> tuple[SqlCondition, SqlCondition]:
    """Where the question begins, and where it ends at the latest. Nothing after ``newest_utc_ns`` is looked at: there
    are only records of other rules, and a step there would come after steps that are older."""
    low = 0 if query.since_utc_ns is None else max(0, min(query.since_utc_ns, LAST_UTC_NS))
    high = newest_utc_ns if query.until_utc_ns is None else max(-1, min(query.until_utc_ns - 1, newest_utc_ns))
    if query.after is not None:  # the bound of time beside it is one that SQLite can seek by
        low, high = (low, min(high, query.after[0])) if query.newest_first else (max(low, query.after[0]), high)
    ends = SqlCondition("event_utc_ns >= ?", (low,)), SqlCondition("event_utc_ns <= ?", (high,))
    return ends[::-1] if query.newest_first else ends


def _beyond(place: Place, source: RecordSource, newest_first: bool) -> SqlCondition:
    """What comes after a place."""
    event_utc_ns, origin, sequence = place
    sign = "<" if newest_first else ">"
    if source.origin is None:
        return SqlCondition(f"(event_utc_ns, origin, sequence) {sign} (?, ?, ?)", place)
    if source.origin == origin:
        return SqlCondition(f"(event_utc_ns, sequence) {sign} (?, ?)", (event_utc_ns, sequence))
    if (source.origin < origin) == newest_first:
        return SqlCondition(f"event_utc_ns {sign}= ?", (event_utc_ns,))
    return SqlCondition(f"event_utc_ns {sign} ?", (event_utc_ns,))


def _up_to(place: Place, source: RecordSource, newest_first: bool) -> SqlCondition:
    """What comes no later than a place of the source."""
    event_utc_ns, _, sequence = place
    sign = ">=" if newest_first else "<="
    if source.origin is None:
        return SqlCondition(f"(event_utc_ns, origin, sequence) {sign} (?, ?, ?)", place)
    return SqlCondition(f"(event_utc_ns, sequence) {sign} (?, ?)", (event_utc_ns, sequence))
