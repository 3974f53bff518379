"""Aggregates of a store that packs its older records and lets them go by retention."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.store.aggregates import keeping
from cloud_relay.store.aggregates.before import slice_after
from cloud_relay.store.packs import bodies
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.packing import PackingPolicy
from cloud_relay.store.packs.tables import FIRST_BODY, newest_number, place_of
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import StorableRecord, Store
from protocols.base.limits import SECOND
from tests.tools.aggregates_fixture import START_NS, batch_of, kept_groups, pack, recomputed_groups, storable, told_of

pytest.importorskip("zstandard")

HOUR_NS = 3_600 * SECOND
HOURLY = AggregateDefinition("hourly", "veh/**", HOUR_NS)
CELLS = AggregateDefinition("cells", "veh/*/speed", HOUR_NS // 4, by=("origin",), cell_e7=10_000_000)


@pytest.fixture(name="path")
def given_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keeping, "SLICE_RECORDS", 7)
    monkeypatch.setattr(bodies, "MAX_BODY_RECORDS", 5)
    return tmp_path / "relay.sqlite"


def opened(path: Path, *kept: AggregateDefinition) -> Store:
    return Store(path, lambda: START_NS + 24 * HOUR_NS, kept)


def records() -> Iterator[StorableRecord]:
    """They come in any order of time, as from vehicles that were in tunnels."""
    minutes = list(range(0, 600, 7))
    Random(5).shuffle(minutes)
    for number, minute in enumerate(minutes, 1):
        yield storable(number, math.sin(number), minute, "veh/v-1/x" if number % 3 == 0 else "veh/v-1/speed")


def retain(path: Path, store: Store, policy: RetentionPolicy) -> int:
    packing = PackingPolicy(clock=lambda: START_NS + 100 * 24 * HOUR_NS)
    return StoreKeeper(lambda: open_for_reading(path), store.maintain, packing, policy).retain_once()


def test_new_aggregate_is_filled_from_packed_records_and_from_rows(path: Path) -> None:
    """An operator who configures one in spring wants the winter in it, too."""
    stored = list(records())
    with closing(opened(path)) as store:
        store.submit(batch_of(*stored[:60])).result()
        assert pack(path, store, 16) == 4
        store.submit(batch_of(*stored[60:])).result()
    with closing(opened(path, HOURLY, CELLS)) as store:
        store.submit(batch_of(*stored[40:], storable(900, 2.5, 30))).result()
        found = kept_groups(path)
        assert found == recomputed_groups(path)
        assert told_of(path, "hourly")["fill_end"] == len(stored)
    with closing(opened(path)):
        pass
    with closing(opened(path, HOURLY)) as store:
        pack(path, store, 1_000)
        assert kept_groups(path)["hourly"] == found["hourly"]
    with closing(opened(path, CELLS)):
        assert told_of(path, "cells")["fill_end"] == len(stored) + 1, "numbers in packs count"
        assert kept_groups(path)["cells"] == found["cells"]


def test_slice_of_large_packed_records_is_read_with_fewer(path: Path) -> None:
    """Batches wait for a slice, however large the records of an old pack are."""
    with closing(opened(path)) as store:
        for record in records():
            store.submit(batch_of(record)).result()
        pack(path, store, 1_000)
    with closing(open_for_reading(path)) as db:
        newest, reached, count = newest_number(db), 0, 0
        while reached < newest:
            found = slice_after(db, reached, newest, 50, 1_000)
            assert reached < found.reached
            assert 1 <= len(found.records) <= 10
            reached, count = found.reached, count + len(found.records)
    assert count == newest == len(list(records()))


def test_aggregates_outlive_the_records_that_retention_deletes(path: Path) -> None:
    """That is what they are kept for: years of them take less than a day of records."""
    with closing(opened(path, HOURLY)) as store:
        store.submit(batch_of(*records())).result()
        before = kept_groups(path)
        pack(path, store, 16)
        assert retain(path, store, RetentionPolicy((RetentionRule("**", 3_600.0),))) == len(list(records()))
        assert recomputed_groups(path) == {"hourly": {}}
        store.submit(batch_of(*records())).result()
        assert kept_groups(path) == before, "a deleted record that comes again is not counted again"
    with closing(opened(path, HOURLY)):
        assert kept_groups(path) == before
    with closing(opened(path, HOURLY, CELLS)):
        assert kept_groups(path) == before | {"cells": {}}, "a new one has what is there"


def test_new_aggregate_has_what_a_rule_of_retention_left_in_packs(path: Path) -> None:
    """A pack that was written again has fewer records, and the same numbers."""
    with closing(opened(path)) as store:
        store.submit(batch_of(*records())).result()
        pack(path, store, 16)
        policy = RetentionPolicy((RetentionRule("veh/*/x", 3_600.0), RetentionRule("**", None)))
        assert retain(path, store, policy) == len(list(records())) // 3
    with closing(opened(path, HOURLY)):
        found = kept_groups(path)
        assert found == recomputed_groups(path)
        assert {name.key for name in found["hourly"]} == {"veh/v-1/speed"}


def test_damaged_pack_holds_up_no_other_record(path: Path) -> None:
    """One block of a disk went bad: the rest is still worth counting, and what is not counted is told."""
    with closing(opened(path)) as store:
        store.submit(batch_of(*records())).result()
        assert pack(path, store, 16) > 3
    with closing(sqlite3.connect(path)) as db:
        content, lost = db.execute("SELECT content, records FROM packs WHERE pack = 2").fetchone()
        db.execute("UPDATE pack_blocks SET data = x'00' WHERE place = ?", (place_of(content, FIRST_BODY),))
        db.commit()
    with closing(opened(path, HOURLY)) as store:
        counted = sum(summary.records for summary in _summaries(path))
        told = store.statistics()
        assert counted + told["aggregate_unreadable"] == len(list(records()))
        assert 0 < told["aggregate_unreadable"] <= lost
        assert told["aggregate_failures"] == 0


def _summaries(path: Path) -> Iterator[GroupSummary]:
    return map(GroupSummary.decode, kept_groups(path)["hourly"].values())
