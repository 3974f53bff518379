"""Groups of kept aggregates: pages of them, and those that have changed.

The order is that of their buckets, then of their names. A page is bounded in groups and in the time that is spent
looking, and its cursor is the name of the group that it came to, so who follows cursors gets each group that is there
all the while exactly once. A filter of time selects buckets that have a part of that time, a box cells that have a part
of it: what is kept can't be divided any further.
"""

import re
import sqlite3
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import UNITS_PER_DEGREE, GroupName
from cloud_relay.aggregates.summary import COUNTS, EXTREMES, GroupSummary, percentile_name
from cloud_relay.query.searching import PATIENCE_S
from cloud_relay.query.selection import (
    FILTERS,
    LAST_UTC_NS,
    MAX_PAGE_RECORDS,
    PAGING,
    Box,
    NothingMatches,
    Query,
    shape_of,
    untrusted_query,
)
from cloud_relay.store.aggregates.keeping import stored_definitions
from cloud_relay.store.aggregates.tables import NAME_COLUMNS
from cloud_relay.store.schema import AGGREGATES_VERSION, store_version
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.ids import UtcNs
from protocols.base.keys import matches
from protocols.base.limits import MAX_TEXT_CHARS

KEPT_NAME: Final = "The name of an aggregate that the relay keeps."
KEPT_FILTERS: Final[Mapping[str, str]] = {
    **{name: text for name, text in FILTERS.items() if name != "min_quality"},
    "unit": "The unit of the values, a UCUM symbol.",
}
"""What selects groups, by name, and what is said of it."""
KEPT_STREAM_FILTERS: Final = tuple(name for name in KEPT_FILTERS if name not in ("since", "until"))
MAX_CHANGED_GROUPS: Final = 1_024
"""Groups that one look at changes finds."""
_CHUNK: Final = 2_048
"""Entries of the index that are looked at at once."""
MAX_CURSOR_CHARS: Final = 4_096
"""A key of 200 bytes, a node, and a rule and a unit of 200 characters of up to four bytes each take 2,500."""
TEXT_OF_CURSOR: Final = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2,3})?"
_CURSOR: Final = re.compile(r"([0-9]{1,19})\.(-?[0-9]{1,10})\.(-?[0-9]{1,10})" + rf"\.({TEXT_OF_CURSOR})" * 4, re.ASCII)
_STATE: Final = (
    "SELECT number, name, made_utc_ns, filled_to, fill_end, floor_utc_ns, below_floor, let_go, beyond, beyond_named,"
    " ahead, (SELECT count(*) FROM aggregate_groups WHERE aggregate = aggregates.number"
    " AND bucket_utc_ns >= floor_utc_ns) FROM aggregates"
    " WHERE dropped = 0 ORDER BY name"
)


@dataclass(frozen=True, slots=True)
class KeptQuery:
    """Which groups are asked for."""

    name: str
    """Of the aggregate."""
    groups: Query
    """``min_quality`` and ``after`` are not used."""
    unit: str | None = None
    after: GroupName | None = None
    """The last group of the page before."""


class KeptGroup(NamedTuple):
    """One group as the store has it."""

    change: int
    """The number of its last change."""
    name: GroupName
    summary: GroupSummary


class KeptPage(NamedTuple):
    """An answer."""

    definition: AggregateDefinition
    groups: list[KeptGroup]
    after: GroupName | None
    """Where the next page goes on; None: there is none."""


class ChangedGroups(NamedTuple):
    """What one look at changes found."""

    definition: AggregateDefinition
    groups: list[KeptGroup]
    reached: int
    """No change up to this number is missing. Go on after it."""
    newest: int
    """The number of the last change that there is."""


class UnknownAggregate(LocalProtocolError):
    """No aggregate of that name is kept."""


def untrusted_kept(
    name: str, given: Mapping[str, str], now: UtcNs, names: tuple[str, ...] = (*KEPT_FILTERS, *PAGING)
) -> KeptQuery:
    """The question about an aggregate in texts by name, of which only ``names`` may be there.

    :raises LocalProtocolError: names the value that is wrong, and the way out. It is NothingMatches only if nothing
        else is wrong.
    """
    texts = dict(given)
    unit, cursor = texts.pop("unit", None), texts.pop("cursor", None)
    if unit is not None and not (0 < len(unit) <= MAX_TEXT_CHARS and shape_of(unit).isprintable()):
        raise LocalProtocolError(f"unit {unit[:40]!r} is no unit: use a UCUM symbol such as m/s")
    after = None if cursor is None else group_at(cursor)
    query = untrusted_query(texts, now, names)
    if unit is not None and not unit.isprintable():
        raise NothingMatches(f"unit {unit[:40]!r} has a character that can't be shown: use a UCUM symbol such as m/s")
    return KeptQuery(name, query, unit, after)


def check_is_kept(db: sqlite3.Connection, name: str) -> None:
    """:raises UnknownAggregate: there is no such aggregate.
    :raises StorageError: the store is of an earlier version.
    """
    _aggregate(db, name)


def kept_page(db: sqlite3.Connection, query: KeptQuery, patience_s: float = PATIENCE_S) -> KeptPage:
    """One page. It may have fewer groups than were asked for, even none, and still be followed by another one.

    :raises UnknownAggregate: there is no such aggregate.
    :raises LocalProtocolError: it has no groups of what is asked for.
    :raises StorageError: the store is of an earlier version.
    """
    ends_s = time.monotonic() + patience_s
    number, definition = _aggregate(db, query.name)
    is_asked, limit = _filter(definition, query), min(query.groups.limit, MAX_PAGE_RECORDS)
    groups: list[KeptGroup] = []
    after, floor_utc_ns = query.after, _floor_of(db, number)
    while True:
        text, values = _chunk(number, definition, query.groups, after, floor_utc_ns)
        chunk = db.execute(text, values).fetchall()
        for row, *columns in chunk:
            after = GroupName(*columns)
            if after.bucket_utc_ns >= floor_utc_ns and is_asked(after):
                found = db.execute("SELECT change, summary FROM aggregate_groups WHERE number = ?", (row,)).fetchone()
                if found is not None:  # else it was let go just now
                    groups.append(KeptGroup(found[0], after, GroupSummary.decode(found[1])))
            if len(groups) >= limit:
                return KeptPage(definition, groups, after)
        if len(chunk) < _CHUNK:
            return KeptPage(definition, groups, None)
        if time.monotonic() > ends_s:
            return KeptPage(definition, groups, after)


def every_kept_page(db: sqlite3.Connection, query: KeptQuery) -> Iterator[KeptPage]:
    """All groups of a question, page by page."""
    left, after = query.groups.limit, query.after
    while left > 0:
        limited = replace(query.groups, limit=min(left, MAX_PAGE_RECORDS))
        page = kept_page(db, replace(query, groups=limited, after=after))
        yield page
        left, after = left - len(page.groups), page.after
        if after is None:
            return


def newest_change(db: sqlite3.Connection) -> int:
    """The number of the last change of a group; 0: there was none. :raises StorageError: the store is too old."""
    _check_version(db)
    return int(db.execute("SELECT last FROM aggregate_changes").fetchone()[0])


def changed_groups(db: sqlite3.Connection, query: KeptQuery, number: int) -> ChangedGroups:
    """The next groups that have changed, each as it is now. Times, limit and order of the query don't count."""
    newest = newest_change(db)
    aggregate, definition = _aggregate(db, query.name)
    is_asked, floor_utc_ns = _filter(definition, query), _floor_of(db, aggregate)
    rows = db.execute(
        f"SELECT number, change, {NAME_COLUMNS} FROM aggregate_groups INDEXED BY aggregate_groups_by_change"  # noqa: S608 - names of columns
        " WHERE aggregate = ? AND change > ? AND change <= ? ORDER BY change LIMIT ?",
        (aggregate, number, newest, MAX_CHANGED_GROUPS),
    ).fetchall()
    groups = []
    for row, change, *columns in rows:
        name = GroupName(*columns)
        if name.bucket_utc_ns >= floor_utc_ns and is_asked(name):
            found = db.execute("SELECT summary FROM aggregate_groups WHERE number = ?", (row,)).fetchone()
            if found is not None:
                groups.append(KeptGroup(change, name, GroupSummary.decode(found[0])))
    reached = rows[-1][1] if len(rows) == MAX_CHANGED_GROUPS else max(newest, number)
    return ChangedGroups(definition, groups, reached, newest)


def kept_aggregates(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """What each kept aggregate is and how far it is. :raises StorageError: the store is of an earlier version."""
    _check_version(db)
    definitions = stored_definitions(db)
    found = []
    for (
        number,
        name,
        made_utc_ns,
        filled_to,
        fill_end,
        floor,
        below,
        let_go,
        beyond,
        named,
        ahead,
        groups,
    ) in db.execute(_STATE).fetchall():
        definition = definitions.get(number)
        if definition is None:
            continue  # a relay that starts just now has dropped it
        found.append(
            {
                "name": name,
                "key": definition.key,
                "field": ".".join(definition.field),
                "rule": definition.rule,
                "by": list(definition.by),
                "cell_deg": None if definition.cell_e7 is None else definition.cell_e7 / UNITS_PER_DEGREE,
                "bucket_ns": definition.bucket_ns,
                "percentiles": list(definition.percentiles),
                "max_groups": definition.max_groups,
                "groups": groups,
                "made_utc_ns": made_utc_ns,
                "filled": 1.0 if filled_to >= fill_end else filled_to / fill_end,
                "whole_since_utc_ns": floor,
                "groups_let_go": let_go,
                "records_let_go": below,
                "records_beyond": beyond,
                "beyond": named,
                "records_ahead": ahead,
            }
        )
    return found


def group_columns(definition: AggregateDefinition) -> tuple[str, ...]:
    """The names in :func:`group_form`, in order."""
    by = [name for name in ("key", "origin", "rule") if name in definition.by or (name == "rule" and definition.rule)]
    cell = [] if definition.cell_e7 is None else ["south_deg", "west_deg", "cell_deg"]
    percentiles = [percentile_name(share) for share in definition.percentiles]
    return (
        "aggregate", "bucket_utc_ns", "bucket_ns", *by, "unit", *cell, *COUNTS, *EXTREMES, *percentiles,
        "percentile_error", "change",
    )  # fmt: skip


def group_form(definition: AggregateDefinition, group: KeptGroup) -> dict[str, Any]:
    """The group as programs get it."""
    name = group.name
    has = name._asdict() | {
        "aggregate": definition.name, "bucket_ns": definition.bucket_ns, "rule": name.rule or definition.rule,
        "south_deg": name.south_e7 / UNITS_PER_DEGREE, "west_deg": name.west_e7 / UNITS_PER_DEGREE,
        "cell_deg": (definition.cell_e7 or 0) / UNITS_PER_DEGREE, "change": group.change,
    }  # fmt: skip
    has |= group.summary.told(definition.percentiles)
    return {column: has[column] for column in group_columns(definition)}


def cursor_after(name: GroupName) -> str:
    """The text that the place of a group is told as: its numbers, and its texts in base64, so that the description of
    the API can say what a cursor may be."""
    numbers = (name.bucket_utc_ns, name.south_e7, name.west_e7)
    texts = (name.key, name.origin, name.rule, name.unit)
    return ".".join((*map(str, numbers), *(urlsafe_b64encode(text.encode()).decode().rstrip("=") for text in texts)))


def group_at(cursor: str) -> GroupName:
    """The place that a cursor tells. :raises LocalProtocolError: it tells none."""
    found = _CURSOR.fullmatch(cursor) if len(cursor) <= MAX_CURSOR_CHARS else None
    if found is None or int(found[1]) > LAST_UTC_NS:
        raise LocalProtocolError(f"cursor {cursor[:60]!r} is not one that a page had: give it unchanged")
    bucket, south, west, *texts = found.groups()
    key, origin, rule, unit = (
        urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode(errors="replace") for text in texts
    )
    return GroupName(int(bucket), key, origin, rule, unit, int(south), int(west))


# --- which groups ----------------------------------------------------------------------------------------------------
def _aggregate(db: sqlite3.Connection, name: str) -> tuple[int, AggregateDefinition]:
    _check_version(db)
    found = {definition.name: (number, definition) for number, definition in stored_definitions(db).items()}
    if name not in found:
        known = f"known are {', '.join(sorted(found))}" if found else "none is kept: add [[aggregate]] to relay.toml"
        raise UnknownAggregate(f"there is no aggregate {name[:40]!r}: {known}")
    return found[name]


def _check_version(db: sqlite3.Connection) -> None:
    if store_version(db) < AGGREGATES_VERSION:
        raise StorageError("the store is of an earlier version and keeps no aggregates: start the relay once")


def _floor_of(db: sqlite3.Connection, number: int) -> int:
    """Groups whose bucket is below it were let go, though their rows may still be there."""
    return int(db.execute("SELECT floor_utc_ns FROM aggregates WHERE number = ?", (number,)).fetchone()[0])


def _chunk(
    number: int, definition: AggregateDefinition, query: Query, after: GroupName | None, floor_utc_ns: int
) -> tuple[str, tuple[object, ...]]:
    """The statement for the next entries of the index. It has one bound on each side: SQLite seeks by one only."""
    first = 0 if query.since_utc_ns is None else max(0, query.since_utc_ns - definition.bucket_ns + 1)
    last = LAST_UTC_NS if query.until_utc_ns is None else query.until_utc_ns - 1
    first, last = min(max(first, floor_utc_ns), LAST_UTC_NS), max(-1, min(last, LAST_UTC_NS))
    low: tuple[str, tuple[object, ...]] = ("bucket_utc_ns >= ?", (first,))
    high: tuple[str, tuple[object, ...]] = ("bucket_utc_ns <= ?", (last,))
    if after is not None and query.newest_first and after.bucket_utc_ns <= last:
        high = (f"({NAME_COLUMNS}) < (?, ?, ?, ?, ?, ?, ?)", after)
    if after is not None and not query.newest_first and after.bucket_utc_ns >= first:
        low = (f"({NAME_COLUMNS}) > (?, ?, ?, ?, ?, ?, ?)", after)
    direction = "DESC" if query.newest_first else "ASC"
    order = ", ".join(f"{column} {direction}" for column in GroupName._fields)
    text = (
        f"SELECT number, {NAME_COLUMNS} FROM aggregate_groups INDEXED BY aggregate_groups_in_order WHERE aggregate = ?"  # noqa: S608 - our texts
        f" AND {low[0]} AND {high[0]} ORDER BY {order} LIMIT {_CHUNK}"
    )
    return text, (number, *low[1], *high[1])


def _filter(definition: AggregateDefinition, query: KeptQuery) -> Callable[[GroupName], bool]:
    """Whether a group is asked for, but for its time.

    :raises LocalProtocolError: the aggregate has no groups of what is asked for.
    """
    of = query.groups
    key, origin, rule, unit = of.key, of.origin, of.rule, query.unit
    if rule is not None and definition.rule is not None:
        if rule != definition.rule:
            return lambda _: False
        rule = None  # all records that it has are of this rule
    for asked, name in ((key, "key"), (origin, "origin"), (rule, "rule")):
        if asked is not None and name not in definition.by:
            raise LocalProtocolError(
                f"the aggregate {definition.name!r} is not by {name}: leave it out, or add it to by in relay.toml"
            )
    if of.box is not None and definition.cell_e7 is None:
        raise LocalProtocolError(
            f"the aggregate {definition.name!r} has no cells: leave box out, or set cell_deg in relay.toml"
        )
    touches = _touching(of.box, definition.cell_e7 or 0)

    def is_asked(name: GroupName) -> bool:
        return (
            (key is None or matches(key, name.key))
            and origin in (None, name.origin)
            and rule in (None, name.rule)
            and unit in (None, name.unit)
            and touches(name.south_e7, name.west_e7)
        )

    return is_asked


def _touching(box: Box | None, side: int) -> Callable[[int, int], bool]:
    """Whether a cell has a part of a box. A pole is in each box that reaches it, whatever the longitudes."""
    if box is None:
        return lambda _south, _west: True
    low, high = round(box.south * UNITS_PER_DEGREE), round(box.north * UNITS_PER_DEGREE)
    spans = [(round(west * UNITS_PER_DEGREE), round(east * UNITS_PER_DEGREE)) for west, east in box.spans()]
    north_pole, south_pole = 90 * UNITS_PER_DEGREE, (-90 * UNITS_PER_DEGREE, -180 * UNITS_PER_DEGREE)

    def touches(south: int, west: int) -> bool:
        if not (south <= high and south + side > low):
            return False
        if south == north_pole or (low == -north_pole and (south, west) == south_pole):
            return True
        return any(west <= last and west + side > first for first, last in spans)

    return touches
