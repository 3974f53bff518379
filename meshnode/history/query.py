"""Questions to the history, and their answers: in Python, as plain data for local applications, and as text.

Readings are ordered by the time of sensing, and those of the same time by when they came. An answer is a page: at most
``limit`` readings, and where to go on. A page may have fewer readings than were asked for, even none, and still be
followed by another one, because finding it may take only so long. Only a page without a cursor is the last.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from protocols.base.errors import LocalProtocolError, RemoteProtocolError
from protocols.base.ids import UtcNs
from protocols.base.keys import checked_expression
from protocols.base.limits import SECOND
from protocols.wire.parcels import decode_untrusted_reading
from protocols.wire.readings import Reading

MAX_LIMIT: Final = 1_000
"""Readings on one page: to decode more would take too long."""
LAST_UTC_NS: Final = (1 << 63) - 1
"""In 2262. SQLite holds no later times; readings that claim one are ordered as if they were of this time."""
_AGE: Final = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SECONDS: Final = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?")
_CURSOR: Final = re.compile(r"(\d{1,19})-(\d{1,19})")

Instant = int | datetime | timedelta
"""UTC in nanoseconds, a time with its offset, or an age."""
Place = tuple[int, int]
"""Where a row stands: the time of sensing in UTC nanoseconds, and the number that it got when it came."""


class HistoryBox(Struct, frozen=True):
    """A box in degrees. One whose west is larger than its east crosses 180°."""

    south_deg: float
    west_deg: float
    north_deg: float
    east_deg: float

    def contains(self, latitude_deg: float, longitude_deg: float) -> bool:
        """Whether a place is in it or on its edge."""
        if not self.south_deg <= latitude_deg <= self.north_deg:
            return False
        if self.west_deg <= self.east_deg:
            return self.west_deg <= longitude_deg <= self.east_deg
        return longitude_deg >= self.west_deg or longitude_deg <= self.east_deg

    def meets(self, south_deg: float, west_deg: float, north_deg: float, east_deg: float) -> bool:
        """Whether it has a point in common with a box that does not cross 180°."""
        if south_deg > self.north_deg or north_deg < self.south_deg:
            return False
        if self.west_deg <= self.east_deg:
            return west_deg <= self.east_deg and east_deg >= self.west_deg
        return east_deg >= self.west_deg or west_deg <= self.east_deg


class PlaceBounds(NamedTuple):
    """The places between which rows are looked for; neither belongs to them."""

    low: Place
    high: Place


class HistoryQuery(Struct, frozen=True):
    """What is asked for. Made by :func:`sought` or :func:`query_of_untrusted`, which check it."""

    expression: str
    origin: str | None = None
    since_ns: int | None = None
    """The earliest time of sensing."""
    until_ns: int | None = None
    """The time of sensing before which readings were sensed."""
    box: HistoryBox | None = None
    limit: int = 100
    newest_first: bool = True
    after: Place | None = None
    """The place of the last row of the page before."""

    @property
    def bounds(self) -> PlaceBounds:
        """See :class:`PlaceBounds`."""
        low: Place = (-1, -1) if self.since_ns is None else (min(self.since_ns, LAST_UTC_NS), -1)
        high: Place = (LAST_UTC_NS, LAST_UTC_NS)
        if self.until_ns is not None and self.until_ns <= LAST_UTC_NS:
            high = (self.until_ns, -1)
        if self.after is not None:
            if self.newest_first:
                high = min(high, self.after)
            else:
                low = max(low, self.after)
        return PlaceBounds(low, high)


class HistoryPage(Struct, frozen=True):
    """An answer."""

    readings: tuple[Reading, ...]
    cursor: str | None
    """What to ask for the next page with; None: there is none."""


class EncodedPage(NamedTuple):
    """A page whose readings are as they were stored: results of ``encode_reading``."""

    readings: list[bytes]
    cursor: str | None

    @property
    def decoded(self) -> HistoryPage:
        """The page with readings."""
        return HistoryPage(tuple(decode_untrusted_reading(data) for data in self.readings), self.cursor)


class _Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """The question of a local application."""

    expression: str = "**"
    origin: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    box: tuple[float, float, float, float] | None = None
    limit: int = 100
    newest_first: bool = True
    cursor: str | None = None


class _Answered(Struct, frozen=True):
    readings: list[bytes]
    cursor: str | None


for _kind in (_Asked, _Answered):
    msgspec.json.Decoder(_kind)  # so that msgspec knows them before threads ask for them, see meshnode.typed


# --- questions -------------------------------------------------------------------------------------------------------
def sought(
    expression: str = "**", *, since: Instant | None = None, until: Instant | None = None, origin: str | None = None,
    box: Sequence[float] | None = None, limit: int = 100, newest_first: bool = True, cursor: str | None = None,
    now: UtcNs,
) -> HistoryQuery:  # fmt: skip
    """A question. ``box``: latitude, longitude, latitude, longitude of two opposite corners, the western longitude
    first.

    :raises InvalidKey: ``expression`` is not one. :raises LocalProtocolError: something else is out of range.
    """
    if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
        raise LocalProtocolError(f"limit {limit!r} is out of range: use 1 to {MAX_LIMIT}, and the cursor for more")
    return HistoryQuery(
        checked_expression(expression), origin, _instant_ns("since", since, now), _instant_ns("until", until, now),
        None if box is None else _checked_box(box), limit, newest_first, _place_of(cursor),
    )  # fmt: skip


def query_of_untrusted(argument: Any, now: UtcNs) -> HistoryQuery:
    """The question in the plain data of a local application. :raises LocalProtocolError: as :func:`sought`."""
    try:
        asked = msgspec.convert({} if argument is None else argument, _Asked)
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"a question to the history is malformed: {error}") from error
    return sought(
        asked.expression, since=asked.since_ns, until=asked.until_ns, origin=asked.origin, box=asked.box,
        limit=asked.limit, newest_first=asked.newest_first, cursor=asked.cursor, now=now,
    )  # fmt: skip


def plain_question(query: HistoryQuery) -> dict[str, Any]:
    """The plain data of a question."""
    box = query.box
    return {
        "expression": query.expression,
        "origin": query.origin,
        "since_ns": query.since_ns,
        "until_ns": query.until_ns,
        "box": None if box is None else [box.south_deg, box.west_deg, box.north_deg, box.east_deg],
        "limit": query.limit,
        "newest_first": query.newest_first,
        "cursor": None if query.after is None else cursor_of(query.after),
    }


def plain_answer(page: EncodedPage) -> dict[str, Any]:
    """The plain data of an answer. Readings are bytes in it: a frame may have far fewer elements than they have."""
    return {"readings": page.readings, "cursor": page.cursor}


def page_of_untrusted(content: Any) -> HistoryPage:
    """The page in the plain data of an answer. :raises RemoteProtocolError: it is none."""
    try:
        answered = msgspec.convert(content, _Answered)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the node's page of the history is malformed: {error}") from error
    return EncodedPage(answered.readings, answered.cursor).decoded


def cursor_of(place: Place) -> str:
    """The text that a place is told as."""
    return f"{place[0]}-{place[1]}"


# --- text ------------------------------------------------------------------------------------------------------------
def parse_instant(name: str, text: str, now: UtcNs) -> int:
    """UTC in nanoseconds from ISO 8601, seconds since 1970, or an age such as ``10m``.

    :raises LocalProtocolError: for anything else.
    """
    if age := _AGE.fullmatch(text):
        return max(0, now - int(age[1]) * _UNIT_S[age[2]] * SECOND)
    if seconds := _SECONDS.fullmatch(text):
        return int(seconds[1]) * SECOND + int((seconds[2] or "").ljust(9, "0"))
    try:
        return _datetime_ns(name, datetime.fromisoformat(text))
    except ValueError as error:
        raise LocalProtocolError(
            f"{name} {text[:80]!r} is no time: use ISO 8601 as in 2026-01-31T12:00:00Z, seconds since 1970, or an age "
            "as in 90s, 10m, 2h, 7d"
        ) from error


def parse_box(text: str) -> tuple[float, ...]:
    """The numbers of ``lat,lon,lat,lon``, which :func:`sought` checks.

    :raises LocalProtocolError: they are none.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise LocalProtocolError(f"box {text[:80]!r} is not four numbers: use lat,lon,lat,lon in degrees") from error


# --- parts of questions ----------------------------------------------------------------------------------------------
def _instant_ns(name: str, instant: Instant | None, now: UtcNs) -> int | None:
    match instant:
        case None:
            return None
        case datetime():
            return _datetime_ns(name, instant)
        case timedelta():
            return max(0, now - _timedelta_ns(instant))
        case int() if not isinstance(instant, bool) and 0 <= instant < 1 << 64:
            return instant
        case _:
            raise LocalProtocolError(
                f"{name} {instant!r} is no time: use UTC in nanoseconds, a datetime with its offset, or a timedelta "
                "for an age"
            )


def _datetime_ns(name: str, instant: datetime) -> int:
    if instant.tzinfo is None:
        raise LocalProtocolError(f"{name} {instant.isoformat()} has no offset from UTC: append 'Z' or '+02:00'")
    return max(0, _timedelta_ns(instant - datetime(1970, 1, 1, tzinfo=UTC)))


def _timedelta_ns(span: timedelta) -> int:
    return (span.days * 86_400 + span.seconds) * SECOND + span.microseconds * 1_000


def _checked_box(corners: Sequence[float]) -> HistoryBox:
    numbers = list(corners)
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise LocalProtocolError(
            f"box {numbers[:8]!r} is no box: give latitude, longitude, latitude, longitude of two opposite corners in "
            "degrees"
        )
    one_lat, west, other_lat, east = numbers
    if not (max(abs(one_lat), abs(other_lat)) <= 90 and max(abs(west), abs(east)) <= 180):
        raise LocalProtocolError(f"box {numbers!r} is not on earth: latitudes ±90, longitudes ±180, latitude first")
    return HistoryBox(min(one_lat, other_lat), west, max(one_lat, other_lat), east)


def _place_of(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None or int(found[1]) > LAST_UTC_NS or int(found[2]) > LAST_UTC_NS:
        raise LocalProtocolError(f"cursor {cursor[:60]!r} is not one that a page had: give it unchanged")
    return int(found[1]), int(found[2])
