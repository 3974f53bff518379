"""Numbers about many records: how many there are in each group, and the mean, extremes and percentiles of their values.

Values of different units are never put together: the unit is a part of each group. All is computed from the records
themselves each time, so a record that comes late counts where it belongs, and one that comes twice counts once. What
one answer looks at and how many groups it has are bounded; beyond, it is refused with the way out, because a part of
the numbers would look like all of them. Percentiles are exact, by the nearest rank.
"""

import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from cloud_relay.query.packed import one_moment
from cloud_relay.query.selection import FILTERS, MAX_PAGE_RECORDS, Query, untrusted_query
from cloud_relay.query.sources import merged_steps, prepare
from cloud_relay.query.steps import NOTHING, OPENING
from cloud_relay.spans import untrusted_span_s
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.schema import CELLS_PER_DEGREE
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND

MAX_RECORDS: Final = 100_000
"""Records that one answer is about: a second of a thread, and 3 MB of numbers."""
MAX_GROUPS: Final = 10_000
PATIENCE_S: Final = 3.0
PERCENTILES: Final = (50, 90, 99)
GROUPINGS: Final = ("key", "origin", "rule", "cell")
"""``cell``: 0.01° by 0.01°."""
AGGREGATING: Final[Mapping[str, str]] = {
    "by": f"What has a group of its own: some of {', '.join(GROUPINGS)}, joined by commas; key by default.",
    "bucket": "A span of time that has groups of its own, as in 10m, 1h, 1d; none by default.",
}
GROUPED: Final = ("key", "origin", "rule", "unit", "latitude_deg", "longitude_deg", "event_utc_ns", "value")
"""The columns that groups are made of."""
_ROW: Final = f"SELECT {', '.join(GROUPED)} FROM records WHERE rowid = ?"  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class AggregateQuery:
    """What is asked for."""

    records: Query
    by: tuple[str, ...]
    bucket_ns: int | None


@dataclass(slots=True)
class _Group:
    records: int = 0
    numbers: list[float] = field(default_factory=list)


def untrusted_aggregates(given: Mapping[str, str], now: UtcNs) -> AggregateQuery:
    """The question in texts by name.

    :raises LocalProtocolError: names the value that is wrong, and the way out. It is NothingMatches only if nothing
        else is wrong.
    """
    by = tuple(given.get("by", "key").split(","))
    for name in by:
        if name not in GROUPINGS or by.count(name) > 1:
            raise LocalProtocolError(f"by has {name[:40]!r}: use some of {', '.join(GROUPINGS)}, each once")
    bucket_ns = _span_ns(given.get("bucket"))
    query = untrusted_query(given, now, (*FILTERS, *AGGREGATING))
    return AggregateQuery(replace(query, limit=MAX_PAGE_RECORDS), by, bucket_ns)


def aggregates(db: sqlite3.Connection, query: AggregateQuery, cache: PackCache | None = None) -> list[dict[str, Any]]:
    """The groups, in order. Of values that are not finite numbers only the records are counted. ``cache`` is that of
    the store for all questions.

    :raises LocalProtocolError: there are too many records or groups.
    """
    prepare(db)
    ends_s = time.monotonic() + PATIENCE_S
    with one_moment(db, cache) as packed:
        return grouped((_row(db, packed, number) for number in _numbers(db, packed, query.records, ends_s)), query)


def grouped(rows: Iterable[Sequence[Any]], query: AggregateQuery) -> list[dict[str, Any]]:
    """The groups of records, of each of which there are ``GROUPED``. Raises what :func:`aggregates` does."""
    groups: dict[tuple[Any, ...], _Group] = {}
    for found, row in enumerate(rows, 1):
        key, origin, rule, unit, latitude_deg, longitude_deg, event_utc_ns, value = row
        of = {"key": key, "origin": origin, "rule": rule, "cell": _cell(latitude_deg, longitude_deg)}
        bucket = () if query.bucket_ns is None else (event_utc_ns - event_utc_ns % query.bucket_ns,)
        group = groups.setdefault((*bucket, *(of[name] for name in query.by), unit), _Group())
        group.records += 1
        if (measured := _number(value)) is not None:
            group.numbers.append(measured)
        if found > MAX_RECORDS or len(groups) > MAX_GROUPS:
            raise LocalProtocolError(
                f"the question is about more than {MAX_RECORDS} records or {MAX_GROUPS} groups: narrow it by since, "
                "until, key or box, or group by less"
            )
    names = (*(() if query.bucket_ns is None else ("bucket_utc_ns",)), *query.by, "unit")
    return [dict(zip(names, name, strict=True)) | _told(groups[name]) for name in sorted(groups)]


def _row(db: sqlite3.Connection, packed: PackReader, number: int) -> tuple[Any, ...]:
    if number > packed.up_to:
        return tuple(db.execute(_ROW, (number,)).fetchone())
    record = packed.with_number(number)
    assert record is not None, "its step was of the same moment"
    key, _, _, value, latitude_deg, longitude_deg, _, _, _, event_utc_ns, _, _, unit, *_ = record.row
    return key, record.origin, record.rule, unit, latitude_deg, longitude_deg, event_utc_ns, value


def _numbers(db: sqlite3.Connection, packed: PackReader, query: Query, ends_s: float) -> Iterator[int]:
    for step in merged_steps(db, query, packed):
        if step.number not in (NOTHING, OPENING):
            yield step.number
        check_patience(ends_s)


def check_patience(ends_s: float) -> None:
    """:raises LocalProtocolError: the time of a question, which ends at ``ends_s``, is over."""
    if time.monotonic() > ends_s:
        raise LocalProtocolError(
            f"the question takes longer than {PATIENCE_S:g} s: narrow it by since, until, key or box"
        )


def _told(group: _Group) -> dict[str, Any]:
    numbers = sorted(group.numbers)
    told: dict[str, Any] = {"records": group.records, "numbers": len(numbers)}
    if numbers:
        told |= {"min": numbers[0], "mean": math.fsum(number / len(numbers) for number in numbers), "max": numbers[-1]}
        told |= {f"p{share}": numbers[-(-share * len(numbers) // 100) - 1] for share in PERCENTILES}
    return told


def _number(value: str) -> float | None:
    """The value in JSON, if it is a number. One that is not finite is null there."""
    if value[0] not in "-0123456789":
        return None
    return float(msgspec.json.decode(value))


def _cell(latitude_deg: float, longitude_deg: float) -> str:
    """The south-western corner of a cell of the grid, as text."""
    return f"{_edge(latitude_deg):.2f},{_edge(longitude_deg):.2f}"


def _edge(degrees: float) -> float:
    """The highest edge of the grid that is not above ``degrees``. A place that is said to be on an edge is on it,
    although 0.29 times 100 is below 29 here."""
    step = math.floor(degrees * CELLS_PER_DEGREE)
    following = (step + 1) / CELLS_PER_DEGREE
    return following if following <= degrees else step / CELLS_PER_DEGREE


def _span_ns(text: str | None) -> int | None:
    if text is None:
        return None
    span_s = untrusted_span_s(text)
    if span_s is None:
        raise LocalProtocolError(f"bucket {text[:40]!r} is no span of time: use one as in 10m, 1h or 1d")
    return span_s * SECOND
