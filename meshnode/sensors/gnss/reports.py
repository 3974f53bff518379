"""The reports of gpsd: one JSON object a line, as gpsd_json(5) describes them.

gpsd runs on the same host or one that its operator trusts, but a report is still text from elsewhere: what is not of
the type and range that the manual names is left out, and a position that is out of range is no fix.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from meshnode.sensors.gnss.fixes import Ellipse, FixKind, Heard, NoFix, Pulse, SatelliteFix
from protocols.base.limits import SECOND

_KINDS: Final = {
    2: FixKind.DIFFERENTIAL,
    3: FixKind.RTK_FIXED,
    4: FixKind.RTK_FLOAT,
    5: FixKind.ESTIMATED,
    6: FixKind.ESTIMATED,
    7: FixKind.AUTONOMOUS,  # surveyed in: it gives the time only
    8: FixKind.SIMULATED,
}
"""By ``status`` of a TPV report."""
_UNKNOWN_ACCURACY_M: Final = 50.0
"""For a fix whose receiver gives no estimate of its error."""
_DEFAULT_TIME_ERROR_NS: Final = 5_000_000
"""What gpsd itself says where the receiver says nothing."""


class ReportMalformed(ValueError):
    """A line that is no report; says why."""


class Reports:
    """Reads the reports of one connection. ``device``: only those of this device; empty: of any."""

    def __init__(self, device: str = "") -> None:
        self._device = device
        self._ellipse: Ellipse | None = None
        self._satellites: int | None = None
        self._last_ns = -1
        self._fixed_by: object = None
        """The device of the last fix, which has not lost it since."""
        self._is_known = False
        """Whether the device has said something."""

    def heard(self, line: bytes) -> Heard | None:
        """What a line says; None: nothing about a fix.

        :raises ReportMalformed: it is no report.
        """
        try:
            report = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ReportMalformed(f"no JSON ({error}): {line[:60]!r}") from error
        if not isinstance(report, dict):
            raise ReportMalformed(f"no JSON object: {line[:60]!r}")
        kind = report.get("class")
        if kind == "DEVICES" and report.get("devices") == []:
            return NoFix("gpsd has no receiver: connect one, and check the devices that gpsd is started with")
        if kind == "ERROR":
            raise ReportMalformed(f"gpsd says: {str(report.get('message'))[:200]}")
        if self._device and report.get("device") != self._device:
            return self._of_another(report)
        self._is_known = True
        if kind == "SKY":
            self._note_sky(report)
        elif kind == "GST":
            self._note_errors(report)
        elif kind == "PPS":
            return _pulse(report)
        elif kind == "TPV":
            return self._fix(report)
        return None

    def _of_another(self, report: Mapping[str, Any]) -> Heard | None:
        """A name that is wrong would otherwise look like a receiver that says nothing."""
        if self._is_known or report.get("class") != "TPV":
            return None
        other = str(report.get("device"))[:80]
        return NoFix(f"gpsd has reports of {other}, and none of {self._device}: correct 'device', or leave it out")

    def _note_sky(self, report: Mapping[str, Any]) -> None:
        used = report.get("uSat")
        if used is None and isinstance(satellites := report.get("satellites"), list):
            used = sum(isinstance(each, dict) and each.get("used") is True for each in satellites)
        self._satellites = used if isinstance(used, int) and 0 <= used <= 1_000 else None

    def _note_errors(self, report: Mapping[str, Any]) -> None:
        major_m, minor_m, angle_deg = (_number(report, name, 0, 1e6) for name in ("major", "minor", "orient"))
        if major_m is not None and minor_m is not None and angle_deg is not None:
            self._ellipse = Ellipse(major_m, minor_m, angle_deg % 360.0)

    def _fix(self, report: Mapping[str, Any]) -> Heard | None:
        mode, device = report.get("mode"), report.get("device")
        if mode not in (2, 3):
            if self._fixed_by not in (None, device):
                return None  # gpsd has another receiver, which has a fix
            self._fixed_by = None
            return NoFix("the receiver has no fix: it sees too few satellites")
        latitude_deg = _number(report, "lat", -90, 90)
        longitude_deg = _number(report, "lon", -180, 180)
        if latitude_deg is None or longitude_deg is None:
            raise ReportMalformed(f"a fix without a place: lat {report.get('lat')!r}, lon {report.get('lon')!r}")
        self._fixed_by = device
        utc_ns = _utc_ns(report.get("time"))
        if utc_ns is not None:
            if utc_ns == self._last_ns:
                return None  # more of the same moment
            self._last_ns = utc_ns
        errors_s = _number(report, "ept", 0, 3_600)
        status = report.get("status")
        heading_deg = _number(report, "track", 0, 360)
        fix = SatelliteFix(
            int(mode), latitude_deg, longitude_deg, self._accuracy_m(report), utc_ns,
            _DEFAULT_TIME_ERROR_NS if errors_s is None else int(errors_s * SECOND),
            _KINDS.get(status, FixKind.AUTONOMOUS) if isinstance(status, int) else FixKind.AUTONOMOUS,
            _number(report, "altHAE", -1e5, 1e8) if mode == 3 else None,
            None if heading_deg is None else heading_deg % 360.0,
            _number(report, "speed", 0, 1e5), self._ellipse, self._satellites,
        )  # fmt: skip
        self._ellipse = None  # it belongs to one moment
        return fix

    def _accuracy_m(self, report: Mapping[str, Any]) -> float:
        """The receiver's own standard deviations if there are any, else what gpsd works out. Its ``eph`` and ``epx``
        are of no stated certainty, and rather too large than too small."""
        if self._ellipse is not None:
            return math.hypot(self._ellipse.major_m, self._ellipse.minor_m)
        whole_m = _number(report, "eph", 0, 1e6)
        if whole_m is not None:
            return whole_m
        east_m, north_m = _number(report, "epx", 0, 1e6), _number(report, "epy", 0, 1e6)
        return _UNKNOWN_ACCURACY_M if east_m is None or north_m is None else math.hypot(east_m, north_m)


def _number(report: Mapping[str, Any], name: str, at_least: float, at_most: float) -> float | None:
    value = report.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value <= at_most:
        return None  # NaN is in no range
    return float(value)


def _utc_ns(text: object) -> int | None:
    """Nanoseconds since 1970 of ``2026-11-30T23:00:00.000Z``."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None or time.year < 1980:
        return None
    whole = time.replace(microsecond=0)
    return int(whole.timestamp()) * SECOND + time.microsecond * 1_000


def _pulse(report: Mapping[str, Any]) -> Pulse | None:
    parts = [report.get(name) for name in ("real_sec", "real_nsec", "clock_sec", "clock_nsec")]
    if not all(isinstance(part, int) and 0 <= part < 1 << 40 for part in parts):
        return None
    real_s, real_ns, clock_s, clock_ns = (int(str(part)) for part in parts)
    return Pulse(real_s * SECOND + real_ns, clock_s * SECOND + clock_ns)
