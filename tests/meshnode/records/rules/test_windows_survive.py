"""Windows of a real node over kills, closes and a damaged file: each reading is counted once, or as lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from msgspec import Raw

import meshnode
from protocols.wire.parcels import decode_untrusted_record
from protocols.wire.records import Record
from tests.tools.mesh_fixture import House

RULES = """
[[rule]]
name = "counts"
keys = "veh/*/n"
window = { size_s = 0.7, late_s = 0.1 }
compute = ["count"]
output = { key = "veh/{node}/counts", unit = "1" }
"""
LIFE = """
import asyncio, json, sys, time
import meshnode

async def main(config, seconds):
    async with meshnode.open(config) as node:
        lost = node.statistics().get("rules_lost", 0)
        print(json.dumps({"lost": lost}), flush=True)
        publisher = node.publisher("veh/veh-1/n", unit="1", sensor="s")
        end_s, count = time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            publisher.put(float(count))
            count += 1
            print(json.dumps({"put": count}), flush=True)
            await asyncio.sleep(0.002)
        if seconds < 60:
            await asyncio.sleep(1.5)  # until the last window is over
asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


def recorded(state: Path) -> list[dict[str, int]]:
    """The values of the records in the outbox."""
    with closing(sqlite3.connect(state / "outbox.sqlite")) as database:
        rows = database.execute("SELECT reading FROM records").fetchall()
    return [decode_untrusted_record(Record(1, "r", Raw(data))).value for (data,) in rows]


@pytest.mark.processes
def test_node_killed_again_and_again_counts_each_reading_once_or_as_lost(tmp_path: Path) -> None:
    """The account holds over SIGKILL: windows are at most a second old, and what came since is known to be lost."""
    (tmp_path / "rules.toml").write_text(RULES)
    config = House(tmp_path).file(
        "veh-1", f'[discovery]\nmdns = false\n[rules]\nfiles = ["{tmp_path}/rules.toml"]\n'
    )  # fmt: skip
    random, put, lost, kills = Random(5), 0, 0, 4
    for life in range(kills + 1):
        is_last = life == kills
        seconds = "1" if is_last else "60"
        with subprocess.Popen(
            [sys.executable, "-c", LIFE, str(config), seconds], stdout=subprocess.PIPE, text=True
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lost += json.loads(process.stdout.readline())["lost"]
            began_s, alive_s, last = time.monotonic(), random.uniform(0.3, 2.5), 0
            for line in process.stdout:
                last = json.loads(line)["put"]
                if not is_last and time.monotonic() - began_s > alive_s:
                    os.kill(process.pid, signal.SIGKILL)
                    rest = process.stdout.read().splitlines()
                    last = max([last, *(json.loads(text)["put"] for text in rest if text.endswith("}"))])
                    break
            put += last
        assert process.returncode == (0 if is_last else -signal.SIGKILL)
    values = recorded(tmp_path / "veh-1" / "state")
    assert len({value["end_ns"] for value in values}) == len(values), "no window comes twice"
    there = sum(value["count"] for value in values)
    # One may have been taken in each life that its program had no time to tell. A window that was stored in the very
    # moment of a kill counts as lost, too.
    assert put <= there + lost <= put + kills + 500
    assert there > put / 2


IDLE = """
import asyncio, json, sys, time
import meshnode

async def main(config, number):
    async with meshnode.open(config) as node:
        at_ns = time.time_ns()  # one instant is in one window
        for value in range(number):
            node.publish("veh/veh-1/n", float(value), unit="1", sensor="s", time_ns=at_ns)
        while node.statistics().get("rules_derived", 0) < (2 if number else 0):
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.5)  # what was derived is stored, and nothing changes any more
        statistics = node.statistics()
        print(json.dumps([statistics.get("rules_lost", 0), statistics["outbox_issued"]]), flush=True)
        await asyncio.sleep(60)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.processes
def test_node_killed_while_nothing_happens_derives_nothing_again_and_has_lost_nothing(tmp_path: Path) -> None:
    """Its windows were saved long before: they were derived again, and readings of rules without records were lost."""
    silent = RULES.replace('"counts"', '"silent"').replace(
        '/counts", unit = "1"', '/silent", unit = "1", record = false'
    )
    (tmp_path / "rules.toml").write_text(RULES.replace("size_s = 0.7", "size_s = 4") + silent)
    config = House(tmp_path).file(
        "veh-1", f'[discovery]\nmdns = false\n[rules]\nfiles = ["{tmp_path}/rules.toml"]\n'
    )  # fmt: skip
    for number in (3, 0):
        with subprocess.Popen(
            [sys.executable, "-c", IDLE, str(config), str(number)], stdout=subprocess.PIPE, text=True
        ) as process:  # fmt: skip
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            process.kill()
        assert told == [0, 1]
    assert len(recorded(tmp_path / "veh-1" / "state")) == 1


async def test_windows_of_a_node_that_was_closed_go_on_and_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES.replace("size_s = 0.7, late_s = 0.1", "count = 3"))
    config = House(tmp_path).file(
        "veh-1", f'[discovery]\nmdns = false\n[rules]\nfiles = ["{tmp_path}/rules.toml"]\n'
    )  # fmt: skip
    saved = tmp_path / "veh-1" / "state" / "rules.sqlite"

    async def life(number: int) -> dict[str, int]:
        async with meshnode.open(config) as node:
            for value in range(number):
                node.publish("veh/veh-1/n", float(value), unit="1", sensor="s")
            return dict(node.statistics())

    await life(2)
    assert (await life(1))["rules_derived"] == 1
    assert oct(saved.stat().st_mode)[-3:] == "600"
    await life(2)
    saved.write_bytes(b"this is no database" * 100)
    assert "rules_derived" not in await life(1)
    assert (await life(2))["rules_derived"] == 1
    with closing(sqlite3.connect(saved)) as database:
        database.execute("UPDATE windows SET data = x'00'")
        database.execute("INSERT INTO windows VALUES ('counts', 'x', x'00')")
        database.commit()
    assert "rules_derived" not in await life(1)
    (tmp_path / "rules.toml").write_text(RULES.replace("size_s = 0.7, late_s = 0.1", "count = 2"))
    assert "rules_derived" not in await life(1), "a window of three is none of two"
