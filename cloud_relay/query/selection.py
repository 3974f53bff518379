"""Questions to the store: what they can ask for, and how they are written as text.

Commands, HTTP and exports all read a question with :func:`untrusted_query`, so a filter means the same everywhere.
Filters are combined with AND. Records are ordered by the time of sensing, then by the node that sent them and its
sequence, which no two records share.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Final

from protocols.base.errors import InvalidName, LocalProtocolError
from protocols.base.ids import UtcNs, node_id
from protocols.base.keys import checked_expression
from protocols.base.limits import MAX_KEY_BYTES, MAX_TEXT_CHARS, SECOND

MAX_PAGE_RECORDS: Final = 1_000
"""Records on one page."""
LAST_UTC_NS: Final = 2**63 - 1

_RELATIVE: Final = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d)")
_UNITS_NS: Final = {"ms": SECOND // 1000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
_CURSOR: Final = re.compile(r"(\d{1,19})\.(\d{1,19})\.([a-z0-9-]{1,63})")

Place = tuple[int, str, int]
"""Where a record stands in the order: its time of sensing in UTC nanoseconds, its node, its sequence."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in WGS 84, with its edges. ``west`` greater than ``east`` crosses the 180° meridian."""

    south: float
    west: float
    north: float
    east: float

    def spans(self) -> list[tuple[float, float]]:
        """Ranges of longitude that it consists of. The meridians 180° and −180° are one."""
        spans = [(self.west, self.east)] if self.west <= self.east else [(self.west, 180.0), (-180.0, self.east)]
        if self.west == -180 and self.east < 180:
            spans.append((180.0, 180.0))
        if self.east == 180 and self.west > -180:
            spans.append((-180.0, -180.0))
        return spans

    @property
    def has_pole(self) -> bool:
        """Whether it reaches a pole, which is one point, whatever its longitude is said to be."""
        return self.north == 90 or self.south == -90


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. None stands for anything."""

    key: str | None = None
    """Key expression."""
    origin: str | None = None
    """The node that sent the record."""
    rule: str | None = None
    """The rule that chose it."""
    since_utc_ns: int | None = None
    """Event time, inclusive."""
    until_utc_ns: int | None = None
    """Event time, exclusive."""
    box: Box | None = None
    min_quality: float | None = None
    limit: int = 100
    newest_first: bool = True
    after: Place | None = None
    """The place of the last record of the page before."""

    def __post_init__(self) -> None:
        """:raises InvalidKey: for a key that is not an expression."""
        if self.key is not None:
            checked_expression(self.key)


class NothingMatches(LocalProtocolError):
    """A question that no record can be an answer to, although each of its values has the right form: about a time
    without an instant in it, or with a character that nothing can have."""


FILTERS: Final[Mapping[str, str]] = {
    "key": "A key expression: '*' stands for one chunk, '**' for any number, as in rsu/*/hazard or veh/**.",
    "origin": "The node that sent the records.",
    "rule": "The rule that chose the records.",
    "since": "Time of sensing, inclusive: ISO 8601 (no zone: UTC), seconds since 1970, or an age as in 90s, 10m, 7d.",
    "until": "Time of sensing, exclusive, in the form of since.",
    "box": "lat,lon,lat,lon in degrees: two opposite corners, the western longitude first. It may cross 180°.",
    "min_quality": "Only records of at least this quality, from 0 to 1.",
}
"""What selects records, by name, and what is said of it."""
PAGING: Final[Mapping[str, str]] = {
    "limit": f"At most so many records on a page, from 1 to {MAX_PAGE_RECORDS}. A page may have fewer.",
    "order": "newest or oldest: which time of sensing comes first.",
    "cursor": "The cursor of the page before, unchanged, to get the next one.",
}
"""What chooses one page of them."""


def untrusted_query(given: Mapping[str, str], now: UtcNs, names: Iterable[str] = (*FILTERS, *PAGING)) -> Query:
    """The question in texts by name, of which only ``names`` may be there.

    :raises LocalProtocolError: names the value that is wrong, and the way out. It is NothingMatches only if
        nothing else is wrong.
    """
    known = list(names)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            way_out = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise LocalProtocolError(f"the query has an unknown name {name[:40]!r}: {way_out}")
    since = None if "since" not in given else parse_instant(given["since"], now)
    until = None if "until" not in given else parse_instant(given["until"], now)
    key = given.get("key")
    query = Query(
        key=None if key is None else shape_of_key(key),
        origin=None if "origin" not in given else _origin(given["origin"]),
        rule=None if "rule" not in given else _rule(given["rule"]),
        since_utc_ns=since,
        until_utc_ns=until,
        box=None if "box" not in given else parse_box(given["box"]),
        min_quality=None if "min_quality" not in given else _share("min_quality", given["min_quality"]),
        limit=_limit(given.get("limit", "100")),
        newest_first=_newest_first(given.get("order", "newest")),
        after=None if "cursor" not in given else place_of(given["cursor"]),
    )
    if since is not None and until is not None and since >= until:
        raise NothingMatches(
            f"since {given['since'][:40]!r} is not before until {given['until'][:40]!r}: nothing lies between them"
        )
    for name, taken in (("key", query.key), ("rule", query.rule)):
        if taken is not None and taken != given[name]:
            raise NothingMatches(
                f"{name} {given[name][:80]!r} has a character that can't be shown, or more than {MAX_KEY_BYTES} bytes: "
                "use a shorter one without it"
            )
    return query


def shape_of(text: str) -> str:
    """``text`` with a letter for each character beyond ASCII that can't be shown. Which ones can differs between
    versions of Unicode, so they are no matter of form: a text with one is like no other."""
    return "".join("x" if char > "\x7f" and not char.isprintable() else char for char in text)


def shape_of_key(text: str) -> str:
    """As :func:`shape_of`. A key has a bound in bytes and a form has one in characters, so one that is too long only
    because its characters are wide has a letter for each of them, too."""
    shape = shape_of(text)
    if len(shape.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES:
        return shape
    return "".join(char if char.isascii() else "x" for char in shape)


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


def cursor_of(place: Place) -> str:
    """The text that a place is told as."""
    return f"{place[0]}.{place[2]}.{place[1]}"


def place_of(cursor: str) -> Place:
    """The place that a cursor tells. :raises LocalProtocolError: it tells none."""
    found = _CURSOR.fullmatch(cursor)
    if found is None or max(int(found[1]), int(found[2])) > LAST_UTC_NS:
        raise LocalProtocolError(f"cursor {cursor[:60]!r} is not one that a page had: give it unchanged")
    return int(found[1]), found[3], int(found[2])


def _origin(text: str) -> str:
    try:
        return node_id(text)
    except InvalidName as error:
        raise LocalProtocolError(f"origin: {error}") from error


def _rule(text: str) -> str:
    text = shape_of(text)
    if not (0 < len(text) <= MAX_TEXT_CHARS and text.isprintable()):
        raise LocalProtocolError(
            f"rule {text[:40]!r} is no name of a rule: use 1 to {MAX_TEXT_CHARS} printable characters"
        )
    return text


def _share(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise LocalProtocolError(f"{name} is {text[:40]!r}: use a number from 0 to 1")
    return number


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_PAGE_RECORDS):
        raise LocalProtocolError(f"limit is {text[:40]!r}: use a whole number from 1 to {MAX_PAGE_RECORDS}")
    return int(text)


def _newest_first(text: str) -> bool:
    if text not in ("newest", "oldest"):
        raise LocalProtocolError(f"order is {text[:40]!r}: use newest or oldest")
    return text == "newest"
