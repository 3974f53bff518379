"""Sinks of a store that packs its older records and lets them go by retention."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cloud_relay.query.selection import Query
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import FOLDER, MAX_GAPS, ProgressFile, SinkProgress, SkippedRecords
from cloud_relay.sinks.stores.sqlite import RecordReader
from cloud_relay.store.packs.tables import FIRST_BODY, place_of
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import HttpReceiver, given_receiver

pytest.importorskip("zstandard")
__all__ = ["given_quick_pauses", "given_receiver"]
ALL = RetentionPolicy((RetentionRule("**", 60.0),))
DEBUG = RetentionPolicy((RetentionRule("veh/*/debug/**", 60.0), RetentionRule("**", None)))


def table(url: str) -> str:
    return f'name = "out"\nkind = "http"\nurl = "{url}"\n'


def test_sink_that_was_away_gets_packed_records_in_order(tmp_path: Path, receiver: HttpReceiver) -> None:
    """A day later all that it owes is in packs."""
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        bench.store(1, 300)
        assert bench.relay.pack(70) == 5
        bench.store(301, 350)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"], counted["skipped"]) == (350, 0, 0)
    assert receiver.ids() == [f"v-1/{number}" for number in range(1, 351)]


def test_what_retention_deleted_is_told_as_a_gap_with_counts(tmp_path: Path, receiver: HttpReceiver) -> None:
    """Whoever reads what a sink made has to learn that it is not all there was, and of how much."""
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        bench.store(1, 100)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
        bench.store(101, 300)
        bench.relay.pack(50)
        assert bench.relay.retain(ALL, 61.0) == 300
        bench.store(301, 310)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"], counted["skipped"]) == (110, 200, 0)
        known = ProgressFile(bench.state_dir / FOLDER, "out").load()
        assert known is not None
        ((first, last, deleted),) = [(gap.first, gap.last, gap.deleted) for gap in known.gaps]
        assert (first, deleted) == (101, 200)
        assert last >= 300
    assert receiver.ids() == [f"v-1/{number}" for number in (*range(1, 101), *range(301, 311))]


def test_records_of_a_rule_of_retention_are_counted_between_those_that_stay(
    tmp_path: Path, receiver: HttpReceiver
) -> None:
    """A pack that was written again has holes."""
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        for number in range(1, 41):
            bench.store(number, number, key="veh/v-1/debug/x" if number % 4 == 0 else "veh/v-1/speed")
        bench.relay.pack(25)
        assert bench.relay.retain(DEBUG, 61.0) == 10
        with closing(RecordReader(bench.relay.path, Query())) as reader:
            found = reader.extend(Portion(1, 0, []), 1_000, 30)
            assert (found.portion.last, found.portion.deleted, len(found.portion.records)) == (30, 7, 23)
            found = reader.extend(Portion(1, 0, []), 10, None)
            assert (found.portion.last, found.portion.deleted, len(found.portion.records)) == (13, 3, 10)
            left, right = found.portion.halves()
            assert left.deleted + right.deleted == 3
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"]) == (30, 10)


def test_sink_waits_at_a_damaged_pack_and_says_so(tmp_path: Path, receiver: HttpReceiver) -> None:
    """To pass it by would lose records that a copy of the store still has."""
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        bench.store(1, 40)
        bench.relay.pack(20)
        with closing(sqlite3.connect(bench.relay.path)) as db:
            (content,) = db.execute("SELECT content FROM packs WHERE pack = 2").fetchone()
            place = place_of(content, FIRST_BODY)
            (block,) = db.execute("SELECT data FROM pack_blocks WHERE place = ?", (place,)).fetchone()
            db.execute("UPDATE pack_blocks SET data = x'00' WHERE place = ?", (place,))
            db.commit()
            with bench.running() as sinks:
                eventually(lambda: "pack 2 of the store is damaged" in sinks.statistics()["out"]["error"])
                assert sinks.statistics()["out"]["backlog"] > 0
                db.execute("UPDATE pack_blocks SET data = ? WHERE place = ?", (block, place))
                db.commit()
                counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"]) == (40, 0)
    assert receiver.ids() == [f"v-1/{number}" for number in range(1, 41)]


def test_gaps_of_deleted_records_that_follow_one_another_are_one() -> None:
    """A million deleted records must not push all other gaps out of the list."""
    progress = SinkProgress(0).skipping_to(10, 10, 1)
    for first in range(11, 11 + 100 * MAX_GAPS, 100):
        progress = progress.past_deleted(first, first + 99, 7, 2)
    assert progress.gaps == (SkippedRecords(1, 10, 1), SkippedRecords(11, 10 + 100 * MAX_GAPS, 2, 7 * MAX_GAPS))
    assert (progress.skipped, progress.deleted) == (10, 7 * MAX_GAPS)
    assert progress.past_deleted(1, 5, 0, 3) == progress
