"""Groups of kept aggregates: pages of them, and those that have changed.

The order is that of their buckets, then of their names. A page is bounded in groups and in the time that is spent
looking, and its cursor is the name of the group that it came to, so who follows cursors gets each group that is there
all the while exactly once. A filter of time selects buckets that have a part of that time, a box cells that have a part
of it: what is kept can't be divided any further.
"""

import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

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
from protocols.base.errors import LocalProtocolError
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


class GroupSpan(NamedTuple):
    """Which names of groups are looked for."""

    first_utc_ns: int
    last_utc_ns: int
    """Of buckets."""
    newest_first: bool
    after: GroupName | None
    """Only names beyond this one, in the order that is asked for."""


class AggregateAccount(NamedTuple):
    """How far an aggregate is, and what it does not have."""

    number: int
    name: str
    made_utc_ns: int
    filled: float
    """How much of the records that were there before it is in it; 1: all."""
    floor_utc_ns: int
    below_floor: int
    let_go: int
    beyond: int
    beyond_named: str
    ahead: int
    groups: int


class GroupSource(Protocol):
    """The kept aggregates of a store. A call may raise StorageError if the store is of an earlier version."""

    def definitions(self) -> dict[int, AggregateDefinition]:
        """What is kept, by number."""
        ...

    def accounts(self) -> list[AggregateAccount]:
        """How far each aggregate is, in the order of their names."""
        ...

    def floor_utc_ns(self, number: int) -> int:
        """Groups of an aggregate whose bucket is below it were let go, though their rows may still be there."""
        ...

    def names(self, number: int, span: GroupSpan, most: int) -> list[GroupName]:
        """The next names of groups, in order."""
        ...

    def groups(self, number: int, names: Sequence[GroupName]) -> list[KeptGroup]:
        """The groups of these names that are still there, in the same order."""
        ...

    def changed(self, number: int, after: int, up_to: int, most: int) -> list[tuple[int, GroupName]]:
        """The next changes of groups, each with its number."""
        ...

    def newest_change(self) -> int:
        """The number of the last change of a group; 0: there was none."""
        ...

    def state(self) -> str:
        """A text that changes whenever an answer could."""
        ...


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


def check_is_kept(source: GroupSource, name: str) -> None:
    """:raises UnknownAggregate: there is no such aggregate.
    :raises StorageError: the store is of an earlier version.
    """
    _aggregate(source, name)


def kept_page(source: GroupSource, query: KeptQuery, patience_s: float = PATIENCE_S) -> KeptPage:
    """One page. It may have fewer groups than were asked for, even none, and still be followed by another one.

    :raises UnknownAggregate: there is no such aggregate.
    :raises LocalProtocolError: it has no groups of what is asked for.
    :raises StorageError: the store is of an earlier version.
    """
    ends_s = time.monotonic() + patience_s
    number, definition = _aggregate(source, query.name)
    is_asked, limit = _filter(definition, query), min(query.groups.limit, MAX_PAGE_RECORDS)
    groups: list[KeptGroup] = []
    after, floor_utc_ns = query.after, source.floor_utc_ns(number)
    while True:
        chunk = source.names(number, _span(definition, query.groups, after, floor_utc_ns), _CHUNK)
        asked = [name for name in chunk if name.bucket_utc_ns >= floor_utc_ns and is_asked(name)]
        wanted = asked[: limit - len(groups)]
        groups += source.groups(number, wanted)  # some may have been let go just now
        if len(groups) >= limit or len(wanted) < len(asked):
            return KeptPage(definition, groups, wanted[-1])
        after = chunk[-1] if chunk else after
        if len(chunk) < _CHUNK:
            return KeptPage(definition, groups, None)
        if time.monotonic() > ends_s:
            return KeptPage(definition, groups, after)


def every_kept_page(source: GroupSource, query: KeptQuery) -> Iterator[KeptPage]:
    """All groups of a question, page by page."""
    left, after = query.groups.limit, query.after
    while left > 0:
        limited = replace(query.groups, limit=min(left, MAX_PAGE_RECORDS))
        page = kept_page(source, replace(query, groups=limited, after=after))
        yield page
        left, after = left - len(page.groups), page.after
        if after is None:
            return


def changed_groups(source: GroupSource, query: KeptQuery, number: int) -> ChangedGroups:
    """The next groups that have changed, each as it is now. Times, limit and order of the query don't count."""
    newest = source.newest_change()
    aggregate, definition = _aggregate(source, query.name)
    is_asked, floor_utc_ns = _filter(definition, query), source.floor_utc_ns(aggregate)
    rows = source.changed(aggregate, number, newest, MAX_CHANGED_GROUPS)
    changes = {name: change for change, name in rows if name.bucket_utc_ns >= floor_utc_ns and is_asked(name)}
    # One that changed again meanwhile has the number that it was found by, or whoever goes on after it misses others.
    groups = [group._replace(change=changes[group.name]) for group in source.groups(aggregate, [*changes])]
    reached = rows[-1][0] if len(rows) == MAX_CHANGED_GROUPS else max(newest, number)
    return ChangedGroups(definition, groups, reached, newest)


def kept_aggregates(source: GroupSource) -> list[dict[str, Any]]:
    """What each kept aggregate is and how far it is. :raises StorageError: the store is of an earlier version."""
    definitions = source.definitions()
    found = []
    for account in source.accounts():
        definition = definitions.get(account.number)
        if definition is None:
            continue  # a relay that starts just now has dropped it
        found.append(
            {
                "name": account.name,
                "key": definition.key,
                "field": ".".join(definition.field),
                "rule": definition.rule,
                "by": list(definition.by),
                "cell_deg": None if definition.cell_e7 is None else definition.cell_e7 / UNITS_PER_DEGREE,
                "bucket_ns": definition.bucket_ns,
                "percentiles": list(definition.percentiles),
                "max_groups": definition.max_groups,
                "groups": account.groups,
                "made_utc_ns": account.made_utc_ns,
                "filled": account.filled,
                "whole_since_utc_ns": account.floor_utc_ns,
                "groups_let_go": account.let_go,
                "records_let_go": account.below_floor,
                "records_beyond": account.beyond,
                "beyond": account.beyond_named,
                "records_ahead": account.ahead,
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
def _aggregate(source: GroupSource, name: str) -> tuple[int, AggregateDefinition]:
    found = {definition.name: (number, definition) for number, definition in source.definitions().items()}
    if name not in found:
        known = f"known are {', '.join(sorted(found))}" if found else "none is kept: add [[aggregate]] to relay.toml"
        raise UnknownAggregate(f"there is no aggregate {name[:40]!r}: {known}")
    return found[name]


def _span(definition: AggregateDefinition, query: Query, after: GroupName | None, floor_utc_ns: int) -> GroupSpan:
    """The names that may be asked for, after the last one."""
    first = 0 if query.since_utc_ns is None else max(0, query.since_utc_ns - definition.bucket_ns + 1)
    last = LAST_UTC_NS if query.until_utc_ns is None else query.until_utc_ns - 1
    first, last = min(max(first, floor_utc_ns), LAST_UTC_NS), max(-1, min(last, LAST_UTC_NS))
    if after is not None and not (after.bucket_utc_ns <= last if query.newest_first else after.bucket_utc_ns >= first):
        after = None
    return GroupSpan(first, last, query.newest_first, after)


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
