"""Queries: they select stored records by key, origin, time and place.

Filters are combined with AND. SQL selects by the fixed beginning of a key expression, and
``protocols.base.keys.matches`` decides about each record that is found. The newest event comes first.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.keys import checked_expression, matches
from protocols.base.limits import SECOND

COLUMNS = (
    "origin", "sequence", "rule", "key", "sensing_origin", "reading_sequence", "value", "latitude_deg", "longitude_deg",
    "accuracy_m", "altitude_m", "heading_deg", "event_utc_ns", "uncertainty_ns", "sensor", "unit", "quality",
    "calibration", "lineage", "priority", "lifespan_ms", "received_utc_ns", "has_receipt",
)  # fmt: skip
"""The columns of a result, in order. ``value`` and ``lineage`` are JSON. ``has_receipt``: whether the record can be
proved, see :mod:`cloud_relay.query.proofs`."""

_RELATIVE = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d)")
_UNITS_NS = {"ms": SECOND // 1000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
_SELECT = (
    f"SELECT {', '.join(COLUMNS[:-1])}, EXISTS (SELECT 1 FROM receipted WHERE receipted.origin = records.origin"  # noqa: S608 - constants only
    " AND receipted.sequence = records.sequence) FROM records"
)
_MAX_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in WGS 84. ``west`` greater than ``east`` crosses the 180° meridian."""

    south: float
    west: float
    north: float
    east: float


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. None stands for anything."""

    key: str | None = None
    """Key expression."""
    origin: str | None = None
    """The node that sent the record."""
    since_utc_ns: int | None = None
    """Event time, inclusive."""
    until_utc_ns: int | None = None
    """Event time, exclusive."""
    box: Box | None = None
    limit: int = 100

    def __post_init__(self) -> None:
        """:raises InvalidKey: for a key that is not an expression."""
        if self.key is not None:
            checked_expression(self.key)


def parse_instant(text: str, now: UtcNs) -> UtcNs:
    """An instant from ISO 8601 (no zone: UTC), seconds since 1970, or an age such as ``10m`` before ``now``.

    :raises LocalProtocolError: for anything else.
    """
    text = text.strip()
    if age := _RELATIVE.fullmatch(text):
        return UtcNs(now - int(age[1]) * _UNITS_NS[age[2]])
    if re.fullmatch(r"\d{1,10}(\.\d{1,9})?", text):
        whole, _, fraction = text.partition(".")
        return UtcNs(int(whole) * SECOND + int(fraction.ljust(9, "0")))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise LocalProtocolError(
            f"time {text[:80]!r} is not understood: use ISO 8601 as in 2026-01-31T12:00:00Z, seconds since 1970, "
            "or an age as in 90s, 10m, 2h, 7d"
        ) from error
    since_1970 = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return UtcNs((since_1970.days * 86_400 + since_1970.seconds) * SECOND + since_1970.microseconds * 1000)


def parse_box(text: str) -> Box:
    """A box from ``lat,lon,lat,lon``: two opposite corners, the western longitude first.

    :raises LocalProtocolError: for anything else.
    """
    try:
        lat1, lon1, lat2, lon2 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise LocalProtocolError(f"box {text[:80]!r} is not four numbers: use lat,lon,lat,lon in degrees") from error
    if not (-90 <= lat1 <= 90 and -90 <= lat2 <= 90 and -180 <= lon1 <= 180 and -180 <= lon2 <= 180):
        raise LocalProtocolError(f"box {text[:80]!r} is not on earth: latitudes ±90, longitudes ±180, latitude first")
    return Box(min(lat1, lat2), lon1, max(lat1, lat2), lon2)


def select(db: sqlite3.Connection, query: Query) -> Iterator[dict[str, Any]]:
    """The records of a query, newest event first, with ``value`` and ``lineage`` parsed."""
    conditions: list[str] = []
    values: list[object] = []

    def demand(condition: str, *with_values: object) -> None:
        conditions.append(condition)
        values.extend(with_values)

    if query.origin is not None:
        demand("origin = ?", query.origin)
    if query.key is not None:
        prefix = query.key.split("*", 1)[0]
        if prefix == query.key:
            demand("key = ?", query.key)
        elif prefix:
            # The expression `a/**` matches the key `a` too, which has no slash.
            demand("key >= ? AND key < ?", prefix.removesuffix("/"), prefix.removesuffix("/") + "\U0010ffff")
    if query.since_utc_ns is not None:
        demand("event_utc_ns >= ?", _bounded(query.since_utc_ns))
    if query.until_utc_ns is not None:
        demand("event_utc_ns < ?", _bounded(query.until_utc_ns))
    if query.box is not None:
        box = query.box
        demand("latitude_deg BETWEEN ? AND ?", box.south, box.north)
        joint = "AND" if box.west <= box.east else "OR"
        demand(f"(longitude_deg >= ? {joint} longitude_deg <= ?)", box.west, box.east)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    found = 0
    for row in db.execute(f"{_SELECT}{where} ORDER BY event_utc_ns DESC, origin, sequence", values):
        if found >= query.limit:
            return
        record = dict(zip(COLUMNS, row, strict=True))
        if query.key is None or matches(query.key, record["key"]):
            found += 1
            record["value"] = msgspec.json.decode(record["value"])
            record["has_receipt"] = bool(record["has_receipt"])
            record["lineage"] = msgspec.json.decode(record["lineage"])
            yield record


def _bounded(utc_ns: int) -> int:
    return max(-_MAX_NS, min(_MAX_NS, utc_ns))
