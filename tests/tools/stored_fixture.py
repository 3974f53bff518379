"""A store of a relay with passages of vehicles, as nodes would have sent them, and what a store has."""

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Raw

from cloud_relay.query.searching import StoredRecord, find_page, records_of_pages
from cloud_relay.query.selection import Query
from protocols.base.ids import Role
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Record
from tests.tools.exported_fixture import passages
from tests.tools.relay_fixture import RelayInProcess

_BATCH = 100


def store_passages(path: Path, count: int, *, first: int = 1, seed: int = 1, hotspots: int = 2) -> None:
    """Put so many passages into a store, with sequences from ``first`` on of one node."""
    path.parent.mkdir(parents=True, exist_ok=True)
    relay = RelayInProcess(path)
    readings = [
        Reading(
            "veh/v-1/passage", "v-1", first + place, msgspec.json.decode(row["value"]),
            Position(row["latitude_deg"], row["longitude_deg"], 1.0), EventTime(row["event_utc_ns"], 0),
            Provenance("trace", "1"),
        ) for place, row in enumerate(passages(count, seed=seed, hotspots=hotspots))
    ]  # fmt: skip
    try:
        for begin in range(0, count, _BATCH):
            some = readings[begin : begin + _BATCH]
            records = tuple(Record(each.sequence, "passage", Raw(encode_reading(each))) for each in some)
            batch = Batch(MAJOR, MINOR, "v-1", 1, some[-1].sequence + 1, records, ())
            assert isinstance(relay.send(batch, role=Role.VEHICLE), Acknowledgement)
    finally:
        relay.store.close()


def every_record(db: sqlite3.Connection, query: Query) -> Iterator[StoredRecord]:
    """All records of a question, at most ``query.limit``, page by page."""
    return records_of_pages(partial(find_page, db), query)
