"""Series for charts: the values of each key over time, in about as many points as a chart has room for.

Points are the groups of a span of time of :mod:`~cloud_relay.query.aggregating`. The span is rounded up to one that
people know, and begins where such spans begin in UTC. So a chart that is asked for again a minute later has the same
points, and one more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from cloud_relay.query.aggregating import AggregateQuery
from cloud_relay.query.selection import FILTERS, LAST_UTC_NS, MAX_PAGE_RECORDS, untrusted_query
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND

MAX_POINTS: Final = 1_000
DEFAULT_POINTS: Final = 200
SPANS_S: Final = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
    2_592_000, 31_536_000,
)  # fmt: skip
"""Spans of points that people know, from a second to a year; longer ones are multiples of the last."""
_DEFAULT_AGE_NS: Final = 3_600 * SECOND
CHARTING: Final[Mapping[str, str]] = {
    "points": f"About so many points for each key, from 1 to {MAX_POINTS}; {DEFAULT_POINTS} by default.",
}


def untrusted_series(given: Mapping[str, str], now: UtcNs) -> AggregateQuery:
    """The question in texts by name. Without ``since`` it is about the hour before ``until``, which is now by default.

    :raises LocalProtocolError: names the value that is wrong, and the way out.
    """
    points = given.get("points", str(DEFAULT_POINTS))
    if not (points.isascii() and points.isdigit() and len(points) <= 6 and 1 <= int(points) <= MAX_POINTS):
        raise LocalProtocolError(f"points is {points[:40]!r}: use a whole number from 1 to {MAX_POINTS}")
    plain = {name: text for name, text in given.items() if name not in CHARTING}
    query = untrusted_query(plain, now, FILTERS)
    until_ns = min(now if query.until_utc_ns is None else query.until_utc_ns, LAST_UTC_NS)
    since_ns = until_ns - _DEFAULT_AGE_NS if query.since_utc_ns is None else query.since_utc_ns
    bounded = replace(query, since_utc_ns=since_ns, limit=MAX_PAGE_RECORDS)
    return AggregateQuery(bounded, ("key",), _span_ns(max(until_ns - since_ns, 1), int(points)))


def charted(groups: Iterable[dict[str, Any]], query: AggregateQuery) -> dict[str, Any]:
    """The series of each key and unit, of the groups of ``query``."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for group in groups:
        point = {name: value for name, value in group.items() if name not in ("key", "unit")}
        found.setdefault((group["key"], group["unit"]), []).append(point)
    listed = [{"key": key, "unit": unit, "points": points} for (key, unit), points in sorted(found.items())]
    return {"span_ns": query.bucket_ns, "series": listed}


def _span_ns(whole_ns: int, points: int) -> int:
    least_ns = -(-whole_ns // points)
    for span_s in SPANS_S:
        if span_s * SECOND >= least_ns:
            return span_s * SECOND
    longest_ns = SPANS_S[-1] * SECOND
    return -(-least_ns // longest_ns) * longest_ns
