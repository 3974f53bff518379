"""The promise of the relay: killed with SIGKILL twenty times under load, it holds every acknowledged record once."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import pytest

from cloud_relay.query.audit import audit
from cloud_relay.store.schema import open_for_reading
from demo.processes import free_port
from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address
from meshnode.records.outbox import Outbox
from meshnode.records.uplink import UplinkDriver
from protocols.base.ids import Incarnation, MeshName, Role, node_id
from protocols.records.curated import Curated
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from tests.tools.eventually import until

pytestmark = pytest.mark.processes

LIVES = 20
MOST_PENDING = 20_000
"""A fifth of what the outbox holds: none is evicted, however long the lives are."""


def encoded_reading(number: int) -> bytes:
    """A reading whose value tells it apart."""
    return encode_reading(
        Reading(
            "veh/v-1/speed",
            "v-1",
            number,
            {"number": number, "note": "x" * 200},
            Position(48.7, 11.4, 2.0),
            EventTime(1_700_000_000_000_000_000 + number, 1_000_000),
            Provenance("wheel", "m/s"),
        )
    )


def start_relay(folder: Path, port: int) -> tuple["subprocess.Popen[str]", int]:
    """A relay process and its port, once nodes can connect."""
    config = folder / "relay.toml"
    config.write_text(f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = {port}\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud_relay", "run", "--config", str(config), "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    assert "ready on 127.0.0.1:" in line, line
    return process, int(line.rsplit(":", 1)[1])


async def test_relay_killed_twenty_times_under_load_holds_every_record_once(tmp_path: Path) -> None:
    """Nobody trusts a relay that loses what it acknowledged, or counts it twice."""
    create_mesh(tmp_path / "authority", "demo")
    issue(tmp_path / "authority", Role.RELAY, "relay-1", tmp_path)
    node = issue(tmp_path / "authority", Role.VEHICLE, "v-1", tmp_path)
    random = Random(7)
    relay, port = await asyncio.to_thread(start_relay, tmp_path, free_port())
    kills = 0
    put = 0

    async def produce(outbox: Outbox) -> None:
        nonlocal put
        while True:
            if outbox.pending < MOST_PENDING:
                put += len(await outbox.put(*(Curated("speed", encoded_reading(put + i)) for i in range(10))))
            await asyncio.sleep(0.005)

    try:
        async with Outbox.open(tmp_path / "outbox.sqlite", 100_000, 2**28) as outbox:
            uplink = UplinkDriver(
                outbox,
                lambda: open_requester(node.credentials, Address("127.0.0.1", port), MeshName("demo")),
                node_id("v-1"),
                Incarnation(1),
                random,
            )
            tasks = [asyncio.create_task(uplink.run()), asyncio.create_task(produce(outbox))]

            def standing() -> str:
                return f"something arrives: {kills} kills, {uplink.state}, {uplink.detail}, {outbox.statistics()}"

            for _ in range(LIVES):
                before = outbox.statistics()["delivered"]
                await until(lambda before=before: outbox.statistics()["delivered"] > before, standing)
                await asyncio.sleep(random.uniform(0, 0.05))  # anywhere in the next exchanges
                relay.kill()
                assert await asyncio.to_thread(relay.wait) == -signal.SIGKILL
                kills += 1
                relay, _ = await asyncio.to_thread(start_relay, tmp_path, port)
            tasks[1].cancel()
            with suppress(asyncio.CancelledError):
                await tasks[1]
            await until(lambda: not outbox.pending, standing)
            await uplink.stop(5.0)
            await tasks[0]
            account = outbox.statistics()
            issued = account["issued"]
        relay.terminate()
        assert await asyncio.to_thread(relay.wait, 60) == 0
    finally:
        relay.kill()
        relay.wait()
    assert kills == LIVES
    assert account["delivered"] == issued >= put > LIVES
    with closing(open_for_reading(tmp_path / "state" / "relay.sqlite")) as db:
        (origin,) = audit(db)
        assert origin.adds_up
        assert (origin.issued, origin.stored, origin.outstanding) == (issued, issued, 0)
        distinct = db.execute("SELECT count(DISTINCT sequence), min(sequence), max(sequence) FROM records").fetchone()
        assert distinct == (issued, 1, issued)
        numbers = [row[0] for row in db.execute("SELECT reading_sequence FROM records ORDER BY sequence")]
        assert numbers[:put] == list(range(put)), "each record is stored under its own sequence"
    with closing(sqlite3.connect(tmp_path / "state" / "relay.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
