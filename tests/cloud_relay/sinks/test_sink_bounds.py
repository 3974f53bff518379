"""What a sink can make grow: nothing by being down for long, a bounded file by refusing, and no half file on a full
disk."""

import gc
import json
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from cloud_relay.query.selection import Query
from cloud_relay.sinks import refusals
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import MAX_GAPS, MAX_REFUSED_NODES, ProgressFile, RefusedOrigin, SinkProgress
from cloud_relay.sinks.refusals import RefusedRecords, SetAside
from cloud_relay.sinks.running import Sinks
from cloud_relay.sinks.stores import contract
from cloud_relay.sinks.stores.sqlite import RecordReader
from cloud_relay.sinks.targets import parquet
from protocols.base.errors import StorageError
from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import HttpReceiver, given_receiver

__all__ = ["given_quick_pauses", "given_receiver"]


def table(url: str) -> str:
    return f'name = "out"\nkind = "http"\nurl = "{url}"\n'


def test_sink_that_is_down_takes_no_memory_however_much_is_stored(tmp_path: Path, receiver: HttpReceiver) -> None:
    """A receiver that is away for a day must cost the relay nothing but the records in its store."""
    receiver.status, receiver.keeps = lambda _: 503, False
    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        bench.store(1, 500)
        with bench.running() as sinks:
            eventually(lambda: sinks.statistics()["out"]["failures"] > 2)
            tracemalloc.start()
            try:
                bench.store(501, 4_000, value="x" * 500)
                held_bytes = min(held_after_a_try(sinks) for _ in range(4))
                assert sinks.statistics()["out"]["backlog"] == 4_000
            finally:
                tracemalloc.stop()
            assert held_bytes < 2 * 1024 * 1024, "3,500 records of 1 kB would be more"
            receiver.status = lambda _: 200
            assert bench.delivered_all(sinks)["delivered"] == 4_000


def held_after_a_try(sinks: Sinks) -> int:
    """Memory in bytes some time after another try, which itself takes up to two megabytes, here and at the receiver."""
    failures = sinks.statistics()["out"]["failures"]
    eventually(lambda: sinks.statistics()["out"]["failures"] > failures)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_portion_ends_where_its_bytes_or_records_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of the largest records must fit into memory too."""
    with closing(SinkBench(tmp_path)) as bench, closing(RecordReader(bench.relay.path, Query())) as reader:
        bench.store(1, 40, value="x" * 1_000)
        nothing = Portion(1, 0, [])
        found = reader.extend(nothing, 15, None)
        assert (found.portion.last, found.whole, len(found.portion.records)) == (15, True, 15)
        found = reader.extend(nothing, 1_000, 22)
        assert (found.portion.last, found.whole) == (22, True)
        found = reader.extend(nothing, 1_000, None)
        assert (found.portion.last, found.whole, found.newest) == (40, False, 40)
        monkeypatch.setattr(contract, "MAX_PORTION_BYTES", 10_000)
        found = reader.extend(nothing, 1_000, None)
        assert found.whole
        assert 0 < found.portion.last < 10
        left, right = found.portion.halves()
        assert (left.first, left.last + 1, right.last) == (1, right.first, found.portion.last)
        assert left.records + right.records == found.portion.records


def test_file_of_refused_records_is_bounded_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver with a new rule may refuse for months."""
    monkeypatch.setattr(refusals, "MAX_FILE_BYTES", 5_000)
    with closing(SinkBench(tmp_path)) as bench, closing(RecordReader(bench.relay.path, Query())) as reader:
        bench.store(1, 1)
        ((_, record),) = reader.extend(Portion(1, 0, []), 1, None).portion.records
    refused = RefusedRecords(tmp_path, "out")
    for number in range(100):
        refused.add([SetAside(number, record, "no")])
    (path,) = tmp_path.glob("out.refused*")
    assert path.stat().st_size < 6_000
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 99
    assert path.stat().st_mode & 0o777 == 0o600


def test_refused_records_of_one_node_push_out_no_other_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an insider makes what was refused of others vanish, with the reason."""
    monkeypatch.setattr(refusals, "MAX_FILE_BYTES", 5_000)
    with closing(SinkBench(tmp_path)) as bench, closing(RecordReader(bench.relay.path, Query())) as reader:
        bench.store(1, 1)
        bench.store(1, 1, node="v-bad")
        (_, honest), (_, bad) = reader.extend(Portion(1, 0, []), 2, None).portion.records
    refused = RefusedRecords(tmp_path, "out")
    refused.add([SetAside(1, honest, "no")])
    for number in range(2, 100):
        refused.add([SetAside(number, bad, "no")])
    (path,) = tmp_path.glob("out.refused*")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (lines[0]["record"]["origin"], lines[-1]["number"]) == ("v-1", 99)
    numbers = [line["number"] for line in lines[1:]]
    assert numbers == list(range(numbers[0], 100))


def test_nodes_that_are_listed_as_refused_are_bounded_and_all_are_counted() -> None:
    """A receiver may refuse records of a whole fleet."""
    progress = SinkProgress(0)
    for number in range(3 * MAX_REFUSED_NODES):
        for node in (f"v-{number}", "v-again"):
            progress = progress.refusing(RefusedOrigin(node, 1, number, number, 0, "x" * 10_000))
    assert len(progress.refused_by) == MAX_REFUSED_NODES
    last = progress.refused_by[-1]
    assert (last.origin, last.records, last.first, last.last) == ("v-again", 300, 0, 299)
    assert progress.refused == 6 * MAX_REFUSED_NODES


def test_gaps_that_are_listed_are_bounded_and_all_are_counted() -> None:
    """A sink that is always too slow skips again and again."""
    progress = SinkProgress(0)
    for number in range(10, 10 * MAX_GAPS * 3, 10):
        progress = progress.skipping_to(number, 10, 0)
    assert len(progress.gaps) == MAX_GAPS
    assert progress.skipped == progress.position


def test_full_disk_leaves_no_part_of_a_file_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the folder must never meet a half file; nothing may be given up."""
    out = tmp_path / "lake"
    mine = f'name = "out"\nkind = "parquet"\nurl = "file://{out}"\nlongest_wait = "1s"'

    def full(_: object, __: str, ___: bytes) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")

    with closing(SinkBench(tmp_path, mine)) as bench:
        bench.store(1, 100)
        write = parquet._write_on_disk
        monkeypatch.setattr(parquet, "_write_on_disk", full)
        with bench.running() as sinks:
            eventually(lambda: "No space left" in sinks.statistics()["out"]["error"], lambda: str(sinks.statistics()))
            monkeypatch.setattr(parquet, "_write_on_disk", write)
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["refused"]) == (100, 0)
        assert [path.suffix for path in out.iterdir()] == [".parquet"]


def test_position_that_can_not_be_kept_stops_the_sink_until_it_can(
    tmp_path: Path, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that went on would send everything since then again after a restart."""
    saved = ProgressFile.save

    def full(_: ProgressFile, __: SinkProgress) -> None:
        raise StorageError("no space")

    with closing(SinkBench(tmp_path, table(receiver.url))) as bench:
        bench.store(1, 10)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            with monkeypatch.context() as spoilt:
                spoilt.setattr(ProgressFile, "save", full)
                bench.store(11, 2_000)
                eventually(lambda: sinks.statistics()["out"]["failures"] >= 3)
                assert len(set(receiver.ids())) <= 10 + 256, "one portion at most"
            assert ProgressFile.save is saved
            bench.delivered_all(sinks)
    assert set(receiver.ids()) == {f"v-1/{number}" for number in range(1, 2_001)}
