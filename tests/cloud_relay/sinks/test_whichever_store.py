"""What a sink promises holds whichever store its records are in."""

from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cloud_relay.sinks.progress import FOLDER, SinkProgress
from cloud_relay.sinks.stores.opening import sink_store
from cloud_relay.store.places import StorePlace
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from tests.tools.postgres_fixture import given_place, given_postgres
from tests.tools.sink_fixture import SinkBench, given_quick_pauses

__all__ = ["given_place", "given_postgres", "given_quick_pauses"]
pytestmark = pytest.mark.processes
DEBUG = RetentionPolicy((RetentionRule("veh/*/debug/**", 60.0), RetentionRule("**", None)))


def test_file_under_way_is_not_replaced_by_what_retention_left_of_it(tmp_path: Path, place: StorePlace) -> None:
    """The relay was killed after the file was written and before it noted that, and came back a month later."""
    out = tmp_path / "lake"
    mine = f'name = "out"\nkind = "parquet"\nurl = "file://{out}"\nlongest_wait = "1s"\n'
    with closing(SinkBench(tmp_path, mine, place=place)) as bench:
        for number in range(1, 41):
            bench.store(number, number, key="veh/v-1/debug/x" if number % 4 == 2 else "veh/v-1/speed")
        with bench.running() as sinks:
            told = bench.delivered_all(sinks)
        (whole,) = out.iterdir()
        written = whole.read_bytes()
        with closing(sink_store(place, bench.settings[0], bench.state_dir / FOLDER)) as store:
            assert store.take()
            store.save(SinkProgress(0, under_way=told["position"]))
        if isinstance(place, Path):
            bench.relay.pack(25)
        assert bench.relay.retain(DEBUG, 61.0) == 10
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"]) == (30, 10)
        assert whole.read_bytes() == written
        others = [path for path in out.iterdir() if path != whole]
        assert sum(pq.read_metadata(path).num_rows for path in others) == 30
