"""NMEA 0183: sentences of one moment become a fix.

A receiver says what it knows of a moment in several sentences: RMC has date, time, place and motion, GGA the kind of
the fix, height and satellites, GST the errors, GSA the dimensions. A fix is complete with RMC and GGA of one time of
day, and whatever else has come since the moment before. A sentence without a checksum that fits is left out.
"""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Final

from meshnode.sensors.gnss.fixes import Ellipse, FixKind, Heard, NoFix, SatelliteFix
from protocols.base.limits import MS, SECOND

_KINDS: Final = {
    1: FixKind.AUTONOMOUS, 2: FixKind.DIFFERENTIAL, 3: FixKind.AUTONOMOUS, 4: FixKind.RTK_FIXED, 5: FixKind.RTK_FLOAT,
    6: FixKind.ESTIMATED, 7: FixKind.SIMULATED, 8: FixKind.SIMULATED,
}  # fmt: skip
"""By the quality indicator of GGA; 0 is no fix, 3 the precise service of GPS."""
_KNOT_MPS: Final = 1852 / 3600
_UNKNOWN_DILUTION: Final = 5.0
_TIME_ERROR_NS: Final = 10 * MS
"""Times have two decimals, mostly zeros."""
NO_FIX: Final = NoFix("the receiver has no fix: it sees too few satellites")


class SentenceMalformed(ValueError):
    """A line that is no sentence; says why."""


@dataclass(slots=True)
class _Moment:
    """What was said of one time of day."""

    at: time
    day: date | None = None
    place: tuple[float, float] | None = None
    speed_mps: float | None = None
    heading_deg: float | None = None
    kind: FixKind | None = None
    dilution: float | None = None
    altitude_m: float | None = None
    satellites: int | None = None
    ellipse: Ellipse | None = None
    told: bool = False


class Sentences:
    """Reads the sentences of one receiver. ``error_m``: how far the distance to one satellite is off, one standard
    deviation; with the dilution of precision it gives the accuracy where the receiver does not."""

    def __init__(self, error_m: float) -> None:
        self._error_m = error_m
        self._moment: _Moment | None = None
        self._dimensions = 3

    def heard(self, line: bytes) -> Heard | None:
        """What is known now that this line has come; None: nothing new about a fix.

        :raises SentenceMalformed: it is no sentence.
        """
        import pynmea2

        text = line.strip().decode("ascii", "replace")
        if text.startswith("!"):  # AIS
            return None
        try:
            sentence = pynmea2.parse(text, check=True)
        except pynmea2.SentenceTypeError:
            return None  # of a type that the library does not know
        except (ValueError, TypeError, IndexError) as error:
            raise SentenceMalformed(f"no NMEA sentence ({error}): {text[:80]!r}") from error
        kind = getattr(sentence, "sentence_type", "")
        try:
            if kind == "RMC":
                return self._recommended(sentence)
            if kind == "GGA":
                return self._fix_data(sentence)
            if kind == "GST":
                self._errors(sentence)
            elif kind == "GSA":
                self._dimensions = 2 if str(sentence.mode_fix_type) == "2" else 3
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise SentenceMalformed(f"a field of {kind} makes no sense ({error}): {text[:80]!r}") from error
        return None

    def _recommended(self, sentence: Any) -> Heard | None:
        if sentence.status != "A":
            self._moment = None
            return NO_FIX
        moment = self._of(sentence.timestamp)
        moment.day = sentence.datestamp if isinstance(sentence.datestamp, date) else None
        moment.place = _place(sentence)
        speed, track = _finite(sentence.spd_over_grnd), _finite(sentence.true_course)
        moment.speed_mps = None if speed is None else speed * _KNOT_MPS
        moment.heading_deg = None if track is None else track % 360.0
        return self._fix(moment)

    def _fix_data(self, sentence: Any) -> Heard | None:
        quality = int(sentence.gps_qual or 0)
        if quality == 0:
            self._moment = None
            return NO_FIX
        moment = self._of(sentence.timestamp)
        moment.kind = _KINDS.get(quality, FixKind.AUTONOMOUS)
        moment.dilution = _finite(sentence.horizontal_dil)
        above_sea_m, geoid_m = _finite(sentence.altitude), _finite(sentence.geo_sep)
        if above_sea_m is not None and geoid_m is not None:
            moment.altitude_m = above_sea_m + geoid_m  # Position counts from the ellipsoid
        count = str(sentence.num_sats or "")
        moment.satellites = int(count) if count.isdigit() and len(count) < 4 else None
        return self._fix(moment)

    def _errors(self, sentence: Any) -> None:
        moment = self._of(sentence.timestamp)
        major_m, minor_m = _finite(sentence.std_dev_major), _finite(sentence.std_dev_minor)
        angle_deg = _finite(sentence.orientation)
        if major_m is not None and minor_m is not None and angle_deg is not None and min(major_m, minor_m) >= 0:
            moment.ellipse = Ellipse(major_m, minor_m, angle_deg % 360.0)

    def _of(self, at: object) -> _Moment:
        if not isinstance(at, time):
            raise TypeError(f"the time of day is {str(at)[:20]!r}")
        at = at.replace(tzinfo=None)
        if self._moment is None or self._moment.at != at:
            ellipse = self._moment.ellipse if self._moment is not None else None  # GST may come last
            self._moment = _Moment(at, ellipse=ellipse)
        return self._moment

    def _fix(self, moment: _Moment) -> SatelliteFix | None:
        if moment.told or moment.kind is None or moment.place is None:
            return None
        moment.told = True
        if moment.ellipse is not None:
            accuracy_m = math.hypot(moment.ellipse.major_m, moment.ellipse.minor_m)
        else:
            accuracy_m = self._error_m * (_UNKNOWN_DILUTION if moment.dilution is None else max(moment.dilution, 0.1))
        return SatelliteFix(
            self._dimensions, *moment.place, accuracy_m, _utc_ns(moment), _TIME_ERROR_NS, moment.kind,
            moment.altitude_m if self._dimensions == 3 else None, moment.heading_deg, moment.speed_mps, moment.ellipse,
            moment.satellites,
        )  # fmt: skip


def _place(sentence: Any) -> tuple[float, float]:
    latitude_deg, longitude_deg = float(sentence.latitude), float(sentence.longitude)
    if not sentence.lat or not sentence.lon:
        raise ValueError("no place")
    if not (-90 <= latitude_deg <= 90 and -180 <= longitude_deg <= 180):
        raise ValueError(f"the place is {latitude_deg}, {longitude_deg}")
    return latitude_deg, longitude_deg


def _finite(value: object) -> float | None:
    if value is None or value == "":
        return None
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"a number is {str(value)[:20]!r}")
    return number


def _utc_ns(moment: _Moment) -> int | None:
    if moment.day is None:
        return None
    whole = datetime.combine(moment.day, moment.at.replace(microsecond=0), UTC)
    return int(whole.timestamp()) * SECOND + moment.at.microsecond * 1_000
