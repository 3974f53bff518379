"""Numbers about many records are those of the records that are stored, however late and often they came."""

import math
from contextlib import closing
from typing import Any

import pytest

from cloud_relay.query import aggregating
from cloud_relay.query.aggregating import aggregates, untrusted_aggregates
from cloud_relay.store.schema import open_for_reading
from protocols.base.errors import LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture


def groups(relay: RelayInProcess, **given: str) -> list[dict[str, Any]]:
    with closing(open_for_reading(relay.path)) as db:
        return aggregates(db, untrusted_aggregates(given, UtcNs(BASE_NS)))


def test_groups_have_counts_means_extremes_and_exact_percentiles(relay: RelayInProcess) -> None:
    """The numbers that people decide by."""
    for number in range(1, 201):
        relay.send(batch(number, value=float(number)))
    (group,) = groups(relay)
    assert group == {
        "key": "veh/v-1/speed", "unit": "m/s", "records": 200, "numbers": 200, "min": 1.0,
        "mean": pytest.approx(100.5), "max": 200.0, "p50": 100.0, "p90": 180.0, "p99": 198.0,
    }  # fmt: skip
    assert groups(relay, key="none") == []


def test_late_and_repeated_records_count_once_and_where_they_belong(relay: RelayInProcess) -> None:
    """A vehicle that was in a tunnel for a day must not be in the wrong hour, nor twice."""
    minute = BASE_NS - BASE_NS % (60 * SECOND) + 60 * SECOND
    first = (minute - BASE_NS) // SECOND
    relay.send(batch(first + 70, value=8.0))
    before = groups(relay, bucket="1m")
    for _ in range(2):
        relay.send(batch(first + 1, first + 70, value=8.0))
    after = groups(relay, bucket="1m")
    assert [group["bucket_utc_ns"] for group in after] == [minute, minute + 60 * SECOND]
    assert [group["records"] for group in after] == [1, 1]
    assert after[1:] == before


def test_groups_are_by_what_was_asked_and_never_mix_units(relay: RelayInProcess) -> None:
    """A mean of metres and seconds is a number that means nothing."""
    relay.send(batch(1, value=1.0))
    relay.send(batch(2, value=3.0, key="veh/v-1/other", latitude_deg=-0.001, longitude_deg=179.999))
    found = groups(relay, by="cell,rule")
    assert [(group["cell"], group["rule"], group["unit"], group["mean"]) for group in found] == [
        ("-0.01,179.99", "r", "m/s", 3.0),
        ("48.70,11.40", "r", "m/s", 1.0),
    ]
    assert [group["records"] for group in groups(relay, by="origin")] == [2]
    assert [group["mean"] for group in groups(relay, box="48,11,49,12")] == [1.0]


@pytest.mark.parametrize(
    ("latitude_deg", "cell"), [(0.29, "0.29"), (-0.29, "-0.29"), (0.2899999, "0.28"), (-1.1, "-1.10")]
)
def test_place_on_an_edge_is_in_the_cell_that_begins_there(
    relay: RelayInProcess, latitude_deg: float, cell: str
) -> None:
    """Places of stations have few digits, and a map of cells would show them beside where they are."""
    relay.send(batch(1, latitude_deg=latitude_deg, longitude_deg=1.13))
    assert [group["cell"] for group in groups(relay, by="cell")] == [f"{cell},1.13"]


def test_values_that_are_no_finite_numbers_are_counted_apart(relay: RelayInProcess) -> None:
    """One NaN would make each mean NaN, and leaving it out in silence would hide a broken sensor."""
    for number, value in enumerate((1e308, 1e308, -5, True, "7", math.nan, math.inf, [1.0], None), 1):
        relay.send(batch(number, value={"none": None} if value is None else value))
    (group,) = groups(relay)
    assert (group["records"], group["numbers"]) == (9, 3)
    assert (group["min"], group["max"], group["p50"]) == (-5.0, 1e308, 1e308)
    assert group["mean"] == pytest.approx(1e308 / 1.5)


@pytest.mark.parametrize(("bound", "value"), [("MAX_RECORDS", 3), ("MAX_GROUPS", 3), ("PATIENCE_S", -1.0)])
def test_question_about_too_much_is_refused_with_the_way_out(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch, bound: str, value: float
) -> None:
    """A part of the numbers would look like all of them."""
    relay.send(batch(*range(1, 6)))
    monkeypatch.setattr(aggregating, bound, value)
    with pytest.raises(LocalProtocolError, match="narrow it by since"):
        groups(relay, bucket="1s")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "kye"}, "by has 'kye'"),
        ({"by": "key,key"}, "each once"),
        ({"by": ""}, "by has ''"),
        ({"bucket": "0h"}, "'0h' is no span of time"),
        ({"bucket": "1y"}, "'1y'"),
        ({"bucket": "1y", "since": "2", "until": "1"}, "'1y'"),
        ({"by": "kye", "key": "a\u2028"}, "by has 'kye'"),
        ({"limit": "3"}, "unknown name 'limit'"),
        ({"since": "x"}, "ISO 8601"),
    ],
)
def test_wrong_question_is_refused_with_its_value(given: dict[str, str], said: str) -> None:
    """As everywhere."""
    with pytest.raises(LocalProtocolError) as raised:
        untrusted_aggregates(given, UtcNs(0))
    assert said in str(raised.value)
