"""Series for charts: every record counts once, in few points that stay where they are."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.query.series import MAX_POINTS, SPANS_S, untrusted_series
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND
from tests.tools.relay_fixture import BASE_NS, batch
from tests.tools.relay_http_fixture import RelayWeb, given_web

__all__ = ["given_web"]
NOW = UtcNs(BASE_NS + 3_600 * SECOND)


def at(seconds: int) -> str:
    return str(BASE_NS // SECOND + seconds)


def charted(web: RelayWeb, **question: Any) -> dict[str, Any]:
    answer = web.get("/v1/series", **question)
    assert answer.status == 200, answer
    content: dict[str, Any] = answer.json
    return content


def test_series_count_each_record_once_in_few_points(web: RelayWeb) -> None:
    """A chart of a day must not need a day of records."""
    for first in range(1, 121, 40):
        web.relay.send(batch(*range(first, first + 40), value=float(first)))
    web.relay.send(batch(121, key="veh/v-1/hazard"))
    chart = charted(web, since=at(0), until=at(200), points=10)
    assert chart["span_ns"] == 30 * SECOND
    hazard, speed = chart["series"]
    assert (hazard["key"], speed["key"], speed["unit"]) == ("veh/v-1/hazard", "veh/v-1/speed", "m/s")
    assert hazard["points"][0]["numbers"] == 0
    points = speed["points"]
    assert sum(point["records"] for point in points) == 120
    assert len(points) <= 10
    assert [point["bucket_utc_ns"] % chart["span_ns"] for point in points] == [0] * len(points)
    assert (points[0]["min"], points[-1]["max"]) == (1.0, 81.0)
    later = charted(web, since=at(0), until=at(210), points=10)
    assert later["series"] == chart["series"], "points stay where they are"


def test_series_of_no_time_and_of_the_last_hour(web: RelayWeb) -> None:
    """What is not said has a meaning of its own."""
    web.relay.send(batch(1))
    assert charted(web)["series"] == []
    assert charted(web, until=at(10))["series"] != []
    assert "nothing lies between" in charted(web, since=at(5), until=at(5))["note"]


@pytest.mark.parametrize("points", ["0", "-1", "1001", "1e2", "", "٣"])
def test_wrong_number_of_points_is_refused(points: str) -> None:
    """A value that is misread gives a chart that looks like a true one."""
    with pytest.raises(LocalProtocolError, match="points is"):
        untrusted_series({"points": points}, NOW)


@given(st.integers(1, 10**12), st.integers(1, MAX_POINTS))
def test_span_of_points_is_known_and_never_too_short(seconds: int, points: int) -> None:
    """Whatever the time, a chart has at most one point more than it asked for, where two spans are cut."""
    since = max(0, BASE_NS // SECOND - seconds)
    query = untrusted_series({"since": str(since), "until": at(0), "points": str(points)}, NOW)
    span_ns = query.bucket_ns
    assert span_ns is not None
    assert span_ns * points >= (BASE_NS // SECOND - since) * SECOND
    assert span_ns // SECOND in SPANS_S or span_ns % (SPANS_S[-1] * SECOND) == 0
