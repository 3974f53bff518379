"""Summaries and predictions joined with the records that they are about, by columns of an export alone."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
from msgspec import Raw

from protocols.base.limits import SECOND
from protocols.records.windows.kinds import TimeWindow
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Batch, Record
from tests.protocols.records.windows.evaluator import Came
from tests.protocols.records.windows.test_windows import rule, run
from tests.tools.export_fixture import exported
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, given_relay  # noqa: F401 -- a fixture

PLACE = Position(48.7, 11.4, 2.0)


def raw(number: int) -> Reading:
    when = EventTime(BASE_NS + number * SECOND, 0)
    return Reading("veh/me/speed", "me", number, float(number), PLACE, when, Provenance("wheel", "m/s"))


def record(relay: RelayInProcess, readings: Sequence[Reading]) -> None:
    records = tuple(Record(number, "all", Raw(encode_reading(one))) for number, one in enumerate(readings, 1))
    relay.send(Batch(MAJOR, MINOR, "me", 1, len(records) + 1, records), "me")


def test_summaries_join_the_readings_of_their_windows(relay: RelayInProcess, tmp_path: Path) -> None:
    """What a rule of windows counted is what SQL finds; a prediction joins the one reading that it was made of."""
    readings = [raw(number) for number in range(1, 26)]
    came = [Came(one, one.when.utc_ns) for one in readings]
    window = TimeWindow(10 * SECOND, 10 * SECOND)
    derived = run(rule(window, ("count", "mean")), came, is_own=True)
    assert len(derived) == 3
    for number, one in enumerate(derived, 1):
        how = msgspec.structs.replace(one.how, lineage=("r", *one.how.lineage))
        readings.append(Reading("veh/me/r", "me", number, one.value, one.where, one.when, how))
    seventh = readings[6]
    how = msgspec.structs.replace(seventh.how, lineage=("wet",))
    readings.append(Reading("veh/me/wet", "me", 1, 0.9, seventh.where, seventh.when, how))
    record(relay, readings)
    file = tmp_path / "r.parquet"
    assert exported(relay, file).exit_code == 0
    with duckdb.connect() as db:
        found = db.execute(f"""
            SELECT s.derived_by, s.sequence, count(*), avg(r.value_number),
                   any_value(CAST(s.value->>'count' AS BIGINT)), any_value(CAST(s.value->>'mean' AS DOUBLE))
            FROM '{file}' s JOIN '{file}' r
              ON r.event_utc_ns >= s.about_from_utc_ns AND r.event_utc_ns < s.about_until_utc_ns
            WHERE s.derived_by IS NOT NULL AND r.derived_by IS NULL
            GROUP BY ALL ORDER BY s.sequence
        """).fetchall()
    assert [row[0] for row in found] == ["r", "r", "r", "wet"]
    assert sum(row[2] for row in found[:3]) == 25
    for _, _, count, mean, counted, averaged in found[:3]:
        assert (count, mean) == (counted, averaged)
    assert found[3][2:4] == (1, 7.0)


def test_maps_that_only_look_like_windows_are_about_their_moment(relay: RelayInProcess, tmp_path: Path) -> None:
    """A node may say anything: nothing overflows, and the last nanosecond that the store holds is exported too."""
    spans = ((5, None), ("", 9), (9, 5), (1.0, 2.0), (1, 2**64 - 1), (-1, 5))
    values = [*({"start_ns": begins, "end_ns": ends} for begins, ends in spans), 1.5]
    readings = []
    for number, value in enumerate(values, 1):
        when = EventTime(2**63 - 1 if value == 1.5 else BASE_NS, 0)
        readings.append(Reading("veh/me/x", "me", number, value, PLACE, when, Provenance("s", "1")))
    record(relay, readings)
    assert exported(relay, tmp_path / "r.parquet").exit_code == 0
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    found = [(row["about_from_utc_ns"], row["about_until_utc_ns"]) for row in rows]
    assert found == [(BASE_NS, BASE_NS + 1)] * 6 + [(2**63 - 1, 2**63 - 1)]
