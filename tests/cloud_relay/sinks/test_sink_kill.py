"""The promise of sinks: a relay that is killed in mid-delivery delivers each record at least once, with its id."""

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import duckdb
import pytest

from cloud_relay.sinks.progress import locked_folder
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayInProcess, RelayProcess, batch
from tests.tools.sink_servers import HttpReceiver, given_receiver

__all__ = ["given_receiver"]
pytestmark = pytest.mark.processes
LIVES = 3
RECORDS = 2_500


def given_store(folder: Path, count: int) -> None:
    """A store with records, as a relay left it."""
    (folder / "state").mkdir(mode=0o700)
    relay = RelayInProcess(folder / "state" / "relay.sqlite")
    for first in range(1, count + 1, 200):
        relay.send(batch(*range(first, min(first + 200, count + 1))))
    relay.store.close()


def write_config(folder: Path, *tables: str) -> None:
    text = '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n'
    (folder / "relay.toml").write_text(text + "".join(f"[[sink]]\n{table}\n" for table in tables))


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cloud_relay", "sinks", "--config", str(folder / "relay.toml"), *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_relay_killed_in_mid_delivery_delivers_everything_at_least_once(tmp_path: Path, receiver: HttpReceiver) -> None:
    """Nobody trusts a copy with holes, and whoever sums it up has to be able to tell repetitions."""
    given_store(tmp_path, RECORDS)
    lake = tmp_path / "lake"
    write_config(
        tmp_path,
        f'name = "out"\nkind = "http"\nurl = "{receiver.url}"',
        f'name = "lake"\nkind = "parquet"\nurl = "file://{lake}"\nrecords_per_file = 500\nlongest_wait = "1s"',
    )
    random = Random(3)

    def take_a_while(_: object) -> int:
        time.sleep(0.02)
        return 200

    receiver.status = take_a_while
    for _ in range(LIVES):
        before = len(receiver.requests)
        with RelayProcess(tmp_path):
            eventually(lambda before=before: len(receiver.requests) > before or len(set(receiver.ids())) == RECORDS)
            wanted = receiver.tries + random.randrange(3)
            eventually(lambda wanted=wanted: receiver.tries >= wanted or len(set(receiver.ids())) == RECORDS)
    with RelayProcess(tmp_path):
        eventually(lambda: len(set(receiver.ids())) == RECORDS, lambda: f"{len(set(receiver.ids()))} came")
        told = eventually(lambda: _abreast(tmp_path))
    assert [sink["delivered"] for sink in told] == [RECORDS, RECORDS]
    assert set(receiver.ids()) == {f"v-1/{number}" for number in range(1, RECORDS + 1)}
    keys: dict[str, list[str]] = {}
    for headers, body in receiver.requests:
        ids = [record["id"] for record in body["records"]]
        assert keys.setdefault(headers["idempotency-key"], ids) == ids
    assert sum(len(ids) for ids in keys.values()) == RECORDS, "what came again came as the same request"
    numbers = duckdb.sql(f"SELECT sequence FROM '{lake}/*.parquet'").fetchall()
    assert sorted(number for (number,) in numbers) == list(range(1, RECORDS + 1)), "files never overlap"


def _abreast(folder: Path) -> list[dict[str, int]] | None:
    told: list[dict[str, int]] = json.loads(command(folder, "--json").stdout)["sinks"]
    return told if all(sink["backlog"] == 0 for sink in told) else None


def test_command_shows_sinks_and_moves_one_that_stands(tmp_path: Path, receiver: HttpReceiver) -> None:
    """An operator sees what is owed to whom, and can send a year again, or skip it."""
    given_store(tmp_path, 300)
    write_config(tmp_path, f'name = "out"\nkind = "http"\nurl = "{receiver.url}"')
    shown = command(tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[1].split() == ["out", "http", "0", "300", "0", "0", "0", "0", "0", "new"]
    assert command(tmp_path, "move", "out", "250").stdout == "out goes on after record 250 of 300\n"
    shown = command(tmp_path)
    assert "skipped 1-250" in shown.stdout
    assert shown.stdout.splitlines()[1].split()[2:7] == ["250", "50", "0", "0", "250"]
    receiver.status = lambda _: 503
    with RelayProcess(tmp_path):
        eventually(lambda: receiver.tries > 1)
        assert "fails" in eventually(lambda: _failing(tmp_path))
        refused = command(tmp_path, "move", "out", "oldest")
        assert (refused.returncode, "stop it first" in refused.stderr) == (2, True)
        receiver.status = lambda _: 200
        eventually(lambda: len(receiver.ids()) == 50, limit_s=90)  # a sink that fails pauses for a minute at most
    for words, said in (
        (("move", "nobody", "oldest"), "has no sink 'nobody'"),
        (("move", "out", "301"), "a number up to 300"),
        (("move", "out", "-1x"), "is no place"),
    ):
        wrong = command(tmp_path, *(("move", "--", *words[1:]) if words[2].startswith("-") else words))
        assert (wrong.returncode, said in wrong.stderr) == (2, True), wrong
    with locked_folder(tmp_path / "state" / "sinks"):
        pass


def _failing(folder: Path) -> str:
    shown = command(folder).stdout
    return shown if "503" in shown else ""


def test_relay_with_a_wrong_sink_does_not_start(tmp_path: Path) -> None:
    """A misspelt sink would be noticed when somebody misses a month of records."""
    given_store(tmp_path, 1)
    write_config(tmp_path, 'name = "out"\nkind = "http"\nurl = "http://127.0.0.1:1"\nmax_backlogg = 3')
    RelayProcess(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "cloud_relay", "run", "--config", str(tmp_path / "relay.toml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "did you mean 'max_backlog'?" in ran.stderr
