"""Questions to the relay, and its answers: in Python, as frames, and as plain data for local applications.

How old a reading is, is told by the clock of the relay: that of a vehicle may be wrong, and the relay compares what all
its nodes say with one clock. It is as uncertain as the clock of whoever sensed it was.
"""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct

from meshnode.history.query import Instant, sought
from protocols.base.errors import LocalProtocolError, RemoteProtocolError
from protocols.base.ids import UtcNs
from protocols.base.keys import checked_expression
from protocols.base.limits import MAX_TEXT_CHARS, MAX_TOLD_RECORDS
from protocols.records.deriving.places import EARTH_RADIUS_M, distance_m
from protocols.wire.asking.frames import AskedBox, RecordsAsked, RecordsTold
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import Position, Reading

MAX_RADIUS_M: Final = 1_000_000.0
_MARGIN: Final = 1.01
"""By which the box around a circle is larger, so that rounding cuts nothing off."""
_NO_AGE: Final = UtcNs(0)
"""What ages count from where there is none."""
_LONGEST_AGE: Final = timedelta(days=36_500)


class Circle(Struct, frozen=True):
    """A place and what is near it."""

    latitude_deg: float
    longitude_deg: float
    radius_m: float

    def contains(self, where: Position) -> bool:
        """Whether a place is in it."""
        return distance_m(Position(self.latitude_deg, self.longitude_deg, 0.0), where) <= self.radius_m

    def box(self) -> AskedBox:
        """The least box around it, and a little more. Around a pole it goes around the earth."""
        reach_deg = math.degrees(self.radius_m / EARTH_RADIUS_M) * _MARGIN
        south, north = self.latitude_deg - reach_deg, self.latitude_deg + reach_deg
        if south <= -90 or north >= 90:
            return AskedBox(max(south, -90.0), -180.0, min(north, 90.0), 180.0)
        across_deg = math.degrees(
            math.asin(min(1.0, math.sin(math.radians(reach_deg)) / math.cos(math.radians(self.latitude_deg))))
        )
        west, east = self.longitude_deg - across_deg, self.longitude_deg + across_deg
        return AskedBox(south, _around(west), north, _around(east))


class RelayQuestion(Struct, frozen=True):
    """What the relay is asked for. Made by :func:`relay_question`, which checks it."""

    frame: RecordsAsked
    circle: Circle | None
    """Readings outside of it are left out of the answer."""


class AgedReading(Struct, frozen=True):
    """A reading that the relay had, as its node sent it, and how old it was when the relay answered."""

    reading: Reading
    sent_by: str
    """The node that sent it to the relay, and vouches for it."""
    rule: str
    """The rule of curation that chose it there."""
    age_ns: int
    """By the clock of the relay. It is below 0 when the clock of whoever sensed it was ahead of that."""
    age_uncertainty_ns: int
    """Of the clock of whoever sensed it. That of the relay is not known and not in it."""


class RelayAnswer(Struct, frozen=True):
    """One page of an answer."""

    readings: tuple[AgedReading, ...]
    cursor: str | None
    """What to ask for the next page with; None: there is none. A page may be empty and have a next one."""
    now_utc_ns: int
    """The time at the relay when it answered."""


class _Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """The question of a local application."""

    expression: str = "**"
    newest: bool = False
    since_ns: int | None = None
    max_age_ms: int | None = None
    box: tuple[float, float, float, float] | None = None
    near: tuple[float, float] | None = None
    radius_m: float | None = None
    limit: int = MAX_TOLD_RECORDS
    cursor: str | None = None


class _Answered(Struct, frozen=True):
    readings: list[tuple[bytes, str, str, int]]
    """Each as its node encoded it, who sent it, the rule, and its age in nanoseconds."""
    cursor: str | None
    now_utc_ns: int


for _kind in (_Asked, _Answered):
    msgspec.json.Decoder(_kind)  # so that msgspec knows them before threads ask for them, see meshnode.typed


def relay_question(
    expression: str = "**", *, newest: bool = False, since: Instant | None = None, box: Sequence[float] | None = None,
    near: Sequence[float] | None = None, radius_m: float | None = None, limit: int = MAX_TOLD_RECORDS,
    cursor: str | None = None,
) -> RelayQuestion:  # fmt: skip
    """A question; see :meth:`meshnode.node.Node.query`.

    :raises InvalidKey: ``expression`` is not one. :raises LocalProtocolError: something else is out of range.
    """
    checked_expression(expression)
    if type(limit) is not int or not 1 <= limit <= MAX_TOLD_RECORDS:
        raise LocalProtocolError(
            f"limit {limit!r} is out of range: use 1 to {MAX_TOLD_RECORDS}, and the cursor for more"
        )
    if cursor is not None and not 0 < len(cursor) <= MAX_TEXT_CHARS:
        raise LocalProtocolError(f"cursor {cursor[:60]!r} is not one that a page had: give it unchanged")
    circle = _circle(near, radius_m)
    if circle is not None and box is not None:
        raise LocalProtocolError("box and near say both where to look: give one of them")
    max_age_ms, since_ns = 0, 0
    if isinstance(since, timedelta):
        if not timedelta() < since <= _LONGEST_AGE:
            raise LocalProtocolError(f"since {since} is no age: use more than nothing and at most 100 years")
        max_age_ms = max(1, since // timedelta(milliseconds=1))
    else:
        since_ns = sought(since=since, now=_NO_AGE).since_ns or 0
    wanted = None if circle is None else circle.box()
    if box is not None:
        checked = sought(box=box, now=_NO_AGE).box
        assert checked is not None, "one was given"
        wanted = AskedBox(checked.south_deg, checked.west_deg, checked.north_deg, checked.east_deg)
    return RelayQuestion(RecordsAsked(expression, newest, since_ns, max_age_ms, wanted, limit, cursor or ""), circle)


def answer_of(told: RecordsTold, question: RelayQuestion) -> RelayAnswer:
    """The answer in a frame of the relay. :raises RemoteProtocolError: a reading in it can't be read."""
    circle, aged = question.circle, list[AgedReading]()
    for record in told.records:
        reading = decode_untrusted_reading(bytes(record.reading))
        if circle is None or circle.contains(reading.where):
            age_ns = told.now_utc_ns - reading.when.utc_ns
            aged.append(AgedReading(reading, record.node, record.rule, age_ns, reading.when.uncertainty_ns))
    return RelayAnswer(tuple(aged), told.cursor or None, told.now_utc_ns)


# --- plain data ------------------------------------------------------------------------------------------------------
def plain_relay_question(
    expression: str, newest: bool, since: Instant | None, box: Sequence[float] | None, near: Sequence[float] | None,
    radius_m: float | None, limit: int, cursor: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The plain data of a question. :raises LocalProtocolError: as :func:`relay_question`."""
    question = relay_question(
        expression, newest=newest, since=since, box=box, near=near, radius_m=radius_m, limit=limit, cursor=cursor,
    )  # fmt: skip
    return {
        "expression": expression, "newest": newest, "since_ns": question.frame.since_utc_ns or None,
        "max_age_ms": question.frame.max_age_ms or None, "box": None if box is None else list(box),
        "near": None if near is None else list(near), "radius_m": radius_m, "limit": limit, "cursor": cursor,
    }  # fmt: skip


def relay_question_of_untrusted(argument: Any) -> RelayQuestion:
    """The question in the plain data of a local application. :raises LocalProtocolError: as :func:`relay_question`."""
    try:
        asked = msgspec.convert({} if argument is None else argument, _Asked)
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"a question to the relay is malformed: {error}") from error
    since: Instant | None = asked.since_ns
    if asked.max_age_ms is not None:
        since = timedelta(milliseconds=min(asked.max_age_ms, 10**13))
    return relay_question(
        asked.expression, newest=asked.newest, since=since, box=asked.box, near=asked.near, radius_m=asked.radius_m,
        limit=asked.limit, cursor=asked.cursor,
    )  # fmt: skip


def plain_relay_answer(answer: RelayAnswer) -> dict[str, Any]:
    """The plain data of an answer. Readings are bytes in it: a frame may have far fewer elements than they have."""
    told = [(encode_reading(aged.reading), aged.sent_by, aged.rule, aged.age_ns) for aged in answer.readings]
    return {"readings": told, "cursor": answer.cursor, "now_utc_ns": answer.now_utc_ns}


def relay_answer_of_untrusted(content: Any) -> RelayAnswer:
    """The answer in plain data. :raises RemoteProtocolError: it is none."""
    try:
        answered = msgspec.convert(content, _Answered)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the node's answer of the relay is malformed: {error}") from error
    readings = []
    for data, sent_by, rule, age_ns in answered.readings:
        reading = decode_untrusted_reading(data)
        readings.append(AgedReading(reading, sent_by, rule, age_ns, reading.when.uncertainty_ns))
    return RelayAnswer(tuple(readings), answered.cursor, answered.now_utc_ns)


# --- parts of questions ----------------------------------------------------------------------------------------------
def _circle(near: Sequence[float] | None, radius_m: float | None) -> Circle | None:
    if near is None and radius_m is None:
        return None
    numbers = list(near or ())
    if radius_m is None or len(numbers) != 2 or not all(math.isfinite(number) for number in (*numbers, radius_m)):
        raise LocalProtocolError(
            f"near {numbers[:4]!r} and radius_m {radius_m!r} are no circle: give latitude and longitude in degrees, "
            "and a radius in metres"
        )
    if abs(numbers[0]) > 90 or abs(numbers[1]) > 180 or not 0 < radius_m <= MAX_RADIUS_M:
        raise LocalProtocolError(
            f"near {numbers!r} with radius_m {radius_m:g} is out of range: latitudes ±90, longitudes ±180, a radius of "
            f"at most {MAX_RADIUS_M:g} m"
        )
    return Circle(numbers[0], numbers[1], radius_m)


def _around(longitude_deg: float) -> float:
    return (longitude_deg + 180.0) % 360.0 - 180.0
