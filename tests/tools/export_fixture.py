"""Records with every kind of value, exported, and the rows that files of them have to have."""

import math
import struct
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from msgspec import Raw

from cloud_relay.cli import main
from cloud_relay.export.columns import row_of_record
from cloud_relay.query.selection import Query
from cloud_relay.store.schema import open_for_reading
from protocols.base.limits import SECOND
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Batch, Record
from protocols.wire.tensors import tensor_of
from tests.tools.relay_fixture import BASE_NS, RelayInProcess
from tests.tools.stored_fixture import every_record

DEEP: Any = {"a": [{"b": [[[["deep"]]]]}], "ü": None}
VALUES: tuple[tuple[Any, str], ...] = (
    (13.5, "float"), (math.nan, "float"), (math.inf, "float"), (-math.inf, "float"), (-0.0, "float"), (7, "int"),
    (2**64 - 1, "int"), (-(2**63), "int"), (True, "bool"), (False, "bool"), (None, "null"), ("", "text"),
    ('quo"te,\n;=1+1 ü\U0001f697', "text"), (b"\x00\xff", "bytes"), ([1, math.nan, "x"], "list"), (DEEP, "map"),
    (tensor_of(memoryview(struct.pack("<4f", 1, 2, math.nan, 4)).cast("f")), "tensor"),
    (datetime(2026, 1, 31, 12, tzinfo=UTC), "time"), ("two\rlines", "text"),
)  # fmt: skip


def sent(relay: RelayInProcess) -> None:
    """Records with every kind of value, one an hour."""
    records = []
    for number, (value, _) in enumerate(VALUES, 1):
        where = Position(48.0 + number / 10, -11.0 - number / 7, 2.5, None if number % 2 else 365.25, 359.5)
        reading = Reading(
            f"veh/v-1/k{number % 3}", "v-1", number, value, where,
            EventTime(BASE_NS + number * 3_600 * SECOND + number, 1_500_000),
            Provenance("wheel", "m/s", 0.1 * (number % 10), "cal-7", ("raw", "fil,tered")), 4, 5_000,
        )  # fmt: skip
        records.append(Record(number, "rule-1", Raw(encode_reading(reading))))
    relay.send(Batch(MAJOR, MINOR, "v-1", 1, len(records) + 1, tuple(records)))


def exported(relay: RelayInProcess, file: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["export", "--store", str(relay.path), *options, str(file)])


def rows_of(relay: RelayInProcess) -> list[dict[str, Any]]:
    with closing(open_for_reading(relay.path)) as db:
        return [row_of_record(record) for record in every_record(db, Query(limit=10**6, newest_first=False))]


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose NaN equals itself, and whose −0.0 does not equal 0.0."""
    return {name: repr(value) if isinstance(value, float) else value for name, value in row.items()}
