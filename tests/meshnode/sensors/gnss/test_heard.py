"""What receivers say, well and badly: reports of gpsd and sentences of NMEA 0183."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fake_receiver import fix_sentences, no_fix_sentences, sentence
from meshnode.sensors.gnss.fixes import Ellipse, FixKind, NoFix, Pulse, SatelliteFix
from meshnode.sensors.gnss.reports import ReportMalformed, Reports
from meshnode.sensors.gnss.sentences import SentenceMalformed, Sentences
from protocols.base.limits import MS, SECOND

UTC_S = 1_796_083_200.25
TPV = {
    "class": "TPV", "device": "/dev/ttyS0", "mode": 3, "status": 2, "time": "2026-11-30T23:00:00.250Z", "ept": 0.002,
    "lat": -33.5, "lon": -70.25, "altHAE": 570.5, "altMSL": 545.0, "track": 360.0, "speed": 12.5, "eph": 4.5,
}  # fmt: skip


def report(reports: Reports, **fields: Any) -> Any:
    return reports.heard(json.dumps({**TPV, **fields}).encode())


def said(sentences: Sentences, data: bytes) -> list[Any]:
    """What the lines of ``data`` came to."""
    return [heard for line in data.splitlines() if (heard := sentences.heard(line)) is not None]


# --- gpsd ------------------------------------------------------------------------------------------------------------
def test_report_of_gpsd_becomes_a_fix_with_everything_it_says() -> None:
    """Heights count from the ellipsoid, 360° is north, and a status of 2 is a corrected fix."""
    reports = Reports()
    assert reports.heard(b'{"class":"SKY","device":"/dev/ttyS0","uSat":9}') is None
    assert reports.heard(b'{"class":"GST","device":"/dev/ttyS0","major":3,"minor":4,"orient":370}') is None
    fix = report(reports)
    assert fix == SatelliteFix(
        3, -33.5, -70.25, 5.0, 1_796_079_600 * SECOND + 250 * MS, 2 * MS, FixKind.DIFFERENTIAL, 570.5, 0.0, 12.5,
        Ellipse(3.0, 4.0, 10.0), 9,
    )  # fmt: skip
    assert report(reports) is None, "the same moment again"
    later = report(reports, time="2026-11-30T23:00:01Z", mode=2)
    assert (later.dimensions, later.altitude_m, later.accuracy_m, later.ellipse) == (2, None, 4.5, None)
    assert later.quality < fix.quality


def test_report_without_a_fix_says_why_and_other_devices_do_not_count() -> None:
    """The one receiver that was named is asked for, and no other; a name that gpsd does not know is told."""
    reports = Reports("/dev/ttyS0")
    other = report(reports, device="/dev/ttyS1")
    assert isinstance(other, NoFix)
    assert "reports of /dev/ttyS1, and none of /dev/ttyS0" in other.why
    assert isinstance(report(reports, mode=1), NoFix)
    assert report(reports, device="/dev/ttyS1") is None
    assert isinstance(reports.heard(b'{"class":"DEVICES","devices":[]}'), NoFix)
    assert reports.heard(
        b'{"class":"PPS","device":"/dev/ttyS0","real_sec":5,"real_nsec":0,"clock_sec":4,"clock_nsec":999}'
    ) == Pulse(5 * SECOND, 4 * SECOND + 999)
    assert reports.heard(b'{"class":"PPS","device":"/dev/ttyS0","real_sec":-5}') is None


def test_second_receiver_without_a_fix_does_not_end_that_of_the_first() -> None:
    """Once a second there would be no fix, and then there would be one again."""
    reports = Reports()
    assert isinstance(report(reports, device="/dev/ttyS1", mode=1), NoFix)
    assert isinstance(report(reports), SatelliteFix)
    assert report(reports, device="/dev/ttyS1", mode=1) is None
    assert isinstance(report(reports, mode=1), NoFix), "the first has lost its fix"
    assert isinstance(report(reports, device="/dev/ttyS1", mode=1), NoFix)


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff", b"[]", b"{", b"[" * 100_000, b'{"class":"ERROR","message":"no"}', b'{"class":"TPV","mode":3}',
     b'{"class":"TPV","mode":3,"lat":91,"lon":0}', b'{"class":"TPV","mode":3,"lat":NaN,"lon":0}',
     b'{"class":"TPV","mode":2,"lat":"1","lon":true}'],
    ids=lambda line: line[:24].decode("ascii", "replace"),
)  # fmt: skip
def test_report_that_makes_no_sense_is_named(line: bytes) -> None:
    """A driver counts it and goes on."""
    with pytest.raises(ReportMalformed):
        Reports().heard(line)


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["TPV", "SKY", "GST", "PPS", "VERSION", "DEVICES", "ERROR", "X"]), st.data())
def test_report_with_any_fields_is_a_fix_within_bounds_or_refused(kind: str, data: st.DataObject) -> None:
    """Whatever gpsd, or what listens in its place, may say."""
    names = [*TPV, "uSat", "satellites", "major", "minor", "orient", "real_sec", "clock_sec", "epx", "epy"]
    fields = data.draw(st.dictionaries(st.sampled_from(names), odd, max_size=8))
    with suppress(ReportMalformed):
        heard = Reports().heard(json.dumps({**TPV, **fields, "class": kind}).encode())
        if isinstance(heard, SatelliteFix):
            assert -90 <= heard.latitude_deg <= 90
            assert -180 <= heard.longitude_deg <= 180
            assert 0 <= heard.accuracy_m <= 2e6
            assert heard.heading_deg is None or 0 <= heard.heading_deg < 360
            assert heard.time_error_ns >= 0


# --- NMEA 0183 -------------------------------------------------------------------------------------------------------
def test_sentences_of_one_moment_become_one_fix() -> None:
    """South and west are negative, knots become metres a second, heights count from the ellipsoid."""
    sentences = Sentences(5.0)
    heard = said(sentences, fix_sentences(UTC_S, -33.5, -70.25, 12.5, 271.5, quality=4))
    assert len(heard) == 1
    (fix,) = heard
    assert (fix.latitude_deg, fix.longitude_deg) == pytest.approx((-33.5, -70.25), abs=1e-7)
    assert (fix.utc_ns, fix.kind, fix.satellites) == (int(UTC_S * 100) * 10 * MS, FixKind.RTK_FIXED, 9)
    assert (fix.speed_mps, fix.heading_deg, fix.altitude_m) == pytest.approx((12.5, 271.5, 416.0), abs=1e-3)
    assert fix.accuracy_m == pytest.approx(4.5), "dilution times the error of one distance, until the receiver says it"
    (following,) = said(sentences, fix_sentences(UTC_S + 1, -33.5, -70.25))
    assert following.ellipse == Ellipse(2.0, 1.5, 30.0)
    assert following.accuracy_m == pytest.approx(2.5)


def test_midnight_belongs_to_the_new_day() -> None:
    """The date is in RMC only, and GGA of the old day may come last."""
    sentences = Sentences(5.0)
    midnight_s = 1_796_083_200
    times = [
        fix.utc_ns
        for step_s in (-1.0, -0.5, 0.0, 0.5)
        for fix in said(sentences, fix_sentences(midnight_s + step_s, 48.7, 11.4))
    ]
    assert times == [(midnight_s * 2 + half) * SECOND // 2 for half in (-2, -1, 0, 1)]


def test_receiver_without_a_fix_says_so_and_nothing_of_before_is_left() -> None:
    """A GGA of before must not complete a fix of afterwards."""
    sentences = Sentences(5.0)
    assert said(sentences, fix_sentences(UTC_S, 48.7, 11.4).split(b"\r\n", 1)[0]) == []
    lost = said(sentences, no_fix_sentences(UTC_S + 1))
    assert lost
    assert all(isinstance(heard, NoFix) for heard in lost)


@pytest.mark.parametrize(
    "line",
    [b"$GPRMC,1", b"\xff\xfe\x00", b"$GPGGA,120000,4807.0,N,01131.0,E,1,08,0.9,545.4,M,46.9,M,,*00", b"GPRMC",
     sentence("GPRMC,250000.00,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W"),
     sentence("GPRMC,120000.00,A,9907.038,N,01131.000,E,022.4,084.4,230394,003.1,W"),
     sentence("GPRMC,120000.00,A,,N,,E,022.4,084.4,230394,003.1,W"),
     sentence("GPRMC,120000.00,A,4807.038,N,01131.000,E,nan,084.4,230394,003.1,W"),
     sentence("GPGGA,120000,4807.0,N,01131.0,E,x,08,0.9,545.4,M,46.9,M,,")],
    ids=["cut", "binary", "checksum", "no dollar", "hour", "latitude", "no place", "nan", "quality"],
)  # fmt: skip
def test_sentence_that_makes_no_sense_is_named(line: bytes) -> None:
    """Lines get lost characters; a wrong baud rate makes noise of all of them."""
    with pytest.raises(SentenceMalformed):
        Sentences(5.0).heard(line)


@given(
    st.lists(
        st.binary(max_size=90)
        | st.text(max_size=80).map(lambda text: sentence(text.encode("ascii", "ignore").decode()))
        | st.sampled_from(["RMC", "GGA", "GST", "GSA", "ZDA"]).flatmap(
            lambda kind: st.lists(
                st.sampled_from(
                    ["", "A", "V", "N", "120000.00", "4807.038", "99999999999999999999", "-1", "1e400", "x", "230394"]
                ),
                max_size=15,
            ).map(lambda fields: sentence("GP" + kind + "," + ",".join(fields)))
        ),
        max_size=12,
    )
)
def test_any_lines_are_fixes_within_bounds_or_refused(lines: list[bytes]) -> None:
    """Whatever a line brings, nothing else is raised and no fix is out of range."""
    sentences = Sentences(5.0)
    for line in lines:
        with suppress(SentenceMalformed):
            heard = sentences.heard(line)
            if isinstance(heard, SatelliteFix):
                assert -90 <= heard.latitude_deg <= 90
                assert -180 <= heard.longitude_deg <= 180
                assert heard.accuracy_m >= 0
