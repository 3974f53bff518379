"""Parquet on a disk, which may be full, and in the bucket of an S3 server."""

import json
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from cloud_relay.sinks.targets import parquet
from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import s3_server

__all__ = ["given_quick_pauses"]


def table(url: str, more: str = "") -> str:
    return f'name = "out"\nkind = "parquet"\nurl = "{url}"\nlongest_wait = "1s"\n{more}'


def rows_in(folder: Path) -> list[tuple[int, str]]:
    return duckdb.sql(f"SELECT sequence, value FROM '{folder}/*.parquet' ORDER BY filename, sequence").fetchall()


def test_files_are_named_after_their_numbers_and_are_read_by_duckdb(tmp_path: Path) -> None:
    """A folder of files is a table; a name says what is in each."""
    out = tmp_path / "lake"
    with closing(SinkBench(tmp_path, table(f"file://{out}", "records_per_file = 400"))) as bench:
        bench.store(1, 1000)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
    names = sorted(path.name for path in out.iterdir())
    spans = [(1, 400), (401, 800), (801, 1000)]
    assert names == [f"records-{first:019}-{last:019}.parquet" for first, last in spans]
    assert rows_in(out) == [
        (number, json.dumps({"number": number}, separators=(",", ":"))) for number in range(1, 1001)
    ]
    assert (counted["delivered"], counted["failures"]) == (1000, 0)


def test_file_that_may_be_there_is_written_again_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was written just before a crash must not overlap with the next one, which would double rows."""
    out = tmp_path / "lake"
    wrote = parquet._write_on_disk

    def write_and_fail(folder: Path, name: str, content: bytes) -> None:
        wrote(folder, name, content)
        raise OSError("it ended here")

    with closing(SinkBench(tmp_path, table(f"file://{out}"))) as bench:
        bench.store(1, 100)
        with monkeypatch.context() as spoilt:
            spoilt.setattr(parquet, "_write_on_disk", write_and_fail)
            with bench.running() as sinks:
                eventually(lambda: sinks.statistics()["out"]["failures"] >= 1)
        (path,) = out.iterdir()
        before = path.read_bytes()
        bench.store(101, 200)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
        assert path.read_bytes() == before, "the same bytes"
    assert [number for number, _ in rows_in(out)] == list(range(1, 201))


def test_bucket_gets_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drivers of fsspec are used as they are, here with S3."""
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as address:
        files = s3fs.S3FileSystem(key="k", secret="s", client_kwargs={"endpoint_url": address, "region_name": "eu"})
        files.mkdir("records")
        monkeypatch.setenv("TEST_S3_SECRET", "s")
        more = (
            "records_per_file = 300\n"
            f'options = {{ endpoint_url = "{address}", client_kwargs = {{ region_name = "eu" }} }}\n'
            'secrets = { key = { env = "TEST_S3_SECRET" }, secret = { env = "TEST_S3_SECRET" } }'
        )
        with closing(SinkBench(tmp_path, table("s3://records/mesh", more))) as bench:
            bench.store(1, 1000)
            with bench.running() as sinks:
                bench.delivered_all(sinks)
        for path in files.ls("records/mesh"):
            files.get_file(path, str(tmp_path / Path(path).name))
    assert [number for number, _ in rows_in(tmp_path)] == list(range(1, 1001))


def test_missing_bucket_is_waited_for(tmp_path: Path) -> None:
    """Somebody can make it; nothing may be given up meanwhile."""
    pytest.importorskip("s3fs")
    with s3_server() as address:
        more = (
            f'options = {{ endpoint_url = "{address}", client_kwargs = {{ region_name = "eu-west-1" }} }}\n'
            'secrets = { key = { file = "k" }, secret = { file = "k" } }'
        )
        (tmp_path / "k").write_text("s")
        with closing(SinkBench(tmp_path, table("s3://nowhere/mesh", more))) as bench:
            bench.store(1, 10)
            with bench.running() as sinks:
                eventually(lambda: "can't be written" in sinks.statistics()["out"]["error"])
                assert (sinks.statistics()["out"]["position"], sinks.statistics()["out"]["refused"]) == (0, 0)


def test_unknown_driver_is_told_at_the_start(tmp_path: Path) -> None:
    """It would be noticed a day later otherwise."""
    from cloud_relay.sinks.running import target_of
    from protocols.base.errors import ConfigError

    with closing(SinkBench(tmp_path, table("nonsense://x/y"))) as bench, pytest.raises(ConfigError, match="nonsense"):
        target_of(bench.settings[0])
