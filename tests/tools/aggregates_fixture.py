"""A store with aggregates, what is kept in it, and what a recomputation from its records gives."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import AggregateRecord, GroupName
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.aggregates.tallies import Tallies
from cloud_relay.query.searching import StoredRecord
from cloud_relay.query.selection import Query
from cloud_relay.store.aggregates.keeping import stored_definitions
from cloud_relay.store.contract import StorableBatch, StorableRecord
from cloud_relay.store.packs.packing import Packer, PackingPolicy
from cloud_relay.store.rows import Cost, row_of
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import Store
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from tests.tools.eventually import eventually
from tests.tools.stored_fixture import every_record

START_NS = 1_699_999_200 * SECOND
"""A full hour."""
HOUR_NS = 3_600 * SECOND
HOURLY = AggregateDefinition("hourly", "veh/**", HOUR_NS)
CHOICE = (
    HOURLY,
    AggregateDefinition("cells", "veh/*/speed", HOUR_NS // 4, by=("origin",), cell_e7=10_000_000),
    AggregateDefinition("field", "**", HOUR_NS, ("a", "0"), by=(), rule="r"),
    AggregateDefinition("hourly", "veh/*/speed", HOUR_NS),
)
"""Aggregates of each kind."""

Groups = dict[str, dict[GroupName, bytes]]
"""The summary of each group, by the name of its aggregate."""


def storable(
    sequence: int, value: Any = 1.5, minute: float = 0, key: str = "veh/v-1/speed", rule: str = "r",
    unit: str = "m/s", place: tuple[float, float] = (48.7, 11.4), node: str = "v-1",
) -> StorableRecord:  # fmt: skip
    """A record that was sensed in this minute after ``START_NS``."""
    when = EventTime(START_NS + round(minute * 60) * SECOND, 0)
    reading = Reading(key, node, sequence, value, Position(*place, 1.0), when, Provenance("s", unit))
    encoded = encode_reading(reading)
    return StorableRecord(sequence, rule, row_of(reading, encoded, Cost()), encoded)


def batch_of(*records: StorableRecord, node: str = "v-1") -> StorableBatch:
    """A batch that a node may send at any time."""
    return StorableBatch(node, 1, 2**40, records, (), ())


def kept_groups(path: Path) -> Groups:
    """What a store has kept, once all of it is filled."""

    def is_filled() -> bool:
        with closing(open_for_reading(path)) as db:
            query = "SELECT count(*) FROM aggregates WHERE dropped OR filled_to < fill_end"
            return db.execute(query).fetchone() == (0,)  # type: ignore[no-any-return]

    eventually(is_filled)
    with closing(open_for_reading(path)) as db:
        found: Groups = {definition.name: {} for definition in stored_definitions(db).values()}
        for aggregate, *name, summary in db.execute(
            "SELECT name, bucket_utc_ns, key, origin, rule, unit, south_e7, west_e7, summary FROM aggregate_groups"
            " JOIN aggregates ON aggregates.number = aggregate WHERE bucket_utc_ns >= floor_utc_ns"
        ):
            found[aggregate][GroupName(*name)] = summary
    return found


def recomputed_groups(path: Path) -> Groups:
    """The same from the records that it has, each group in one go."""
    with closing(open_for_reading(path)) as db:
        return recomputed(stored_definitions(db), every_record(db, Query(limit=10**9)))


def recomputed(definitions: Mapping[int, AggregateDefinition], records: Iterable[StoredRecord]) -> Groups:
    """What these records give, each group in one go."""
    tallies = Tallies(definitions)
    for record in records:
        of = record.fields
        tallies.note(AggregateRecord(*(of[name] for name in AggregateRecord._fields[:-1]), record.encoded))
    found: Groups = {definition.name: {} for definition in definitions.values()}
    for (number, name), tally in tallies.groups.items():
        summary = GroupSummary()
        summary.add(tally.readings)
        found[definitions[number].name][name] = summary.encoded()
    return found


def pack(path: Path, store: Store, pack_records: int) -> int:
    """Pack all records of a store. Returns into how many packs."""
    policy = PackingPolicy(0.0, 0, pack_records=pack_records, clock=lambda: START_NS + 365 * 86_400 * SECOND)
    packer = Packer(lambda: open_for_reading(path), store.maintain, policy)
    made = 0
    while packer.pack_once():
        made += 1
    return made


def told_of(path: Path, aggregate: str) -> dict[str, Any]:
    """The row of an aggregate."""
    with closing(open_for_reading(path)) as db:
        cursor = db.execute("SELECT * FROM aggregates WHERE name = ? AND NOT dropped", (aggregate,))
        return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
