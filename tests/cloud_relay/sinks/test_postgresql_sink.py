"""Records into a real PostgreSQL, which is restarted, and can't hold every text."""

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import PostgresServer

__all__ = ["given_quick_pauses"]
pytestmark = pytest.mark.processes


@pytest.fixture(name="server", scope="module")
def given_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def table(server: PostgresServer, name: str) -> str:
    return (
        f'name = "out"\nkind = "postgresql"\nurl = "postgresql://127.0.0.1:{server.port}/postgres"\n'
        f'user = "postgres"\ntable = "{name}"\n'
    )


def asked(server: PostgresServer, statement: str) -> list[Any]:
    async def ask() -> list[Any]:
        db = await asyncpg.connect(host="127.0.0.1", port=server.port, user="postgres", database="postgres")
        try:
            return list(await db.fetch(statement))
        finally:
            await db.close()

    return asyncio.run(ask())


def test_rows_have_the_whole_context_and_come_once(server: PostgresServer, tmp_path: Path) -> None:
    """What comes again after a crash must not be counted twice by whoever sums up the table."""
    with closing(SinkBench(tmp_path, table(server, "once"))) as bench:
        bench.store(1, 500)
        bench.store(501, 501, value=math.nan)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
        (bench.state_dir / "sinks" / "out.json").unlink()
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
    assert counted["delivered"] == 501
    rows = asked(server, "SELECT * FROM once ORDER BY sequence")
    assert [row["sequence"] for row in rows] == list(range(1, 502))
    first, last = rows[0], rows[-1]
    assert (first["key"], first["unit"], first["quality"], first["lineage"]) == (
        "veh/v-1/speed", "m/s", 0.9, ["raw", "filtered"],
    )  # fmt: skip
    assert json.loads(first["value"]) == {"number": 1}
    assert first["event_time"].timestamp() * 1e9 == first["event_utc_ns"]
    assert math.isnan(last["value_number"])


def test_text_that_it_can_not_hold_is_refused_and_the_rest_arrives(server: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL has no U+0000, and a whole portion fails by it."""
    with closing(SinkBench(tmp_path, table(server, "texts"))) as bench:
        bench.store(1, 400)
        bench.store(401, 401, value="a\0b")
        bench.store(402, 600)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["refused"]) == (600 - 1, 1)
        assert json.loads(bench.refused())["record"]["id"] == "v-1/401"
    assert asked(server, "SELECT count(*) FROM texts")[0][0] == 599


def test_server_that_is_restarted_gets_everything(server: PostgresServer, tmp_path: Path) -> None:
    """An update of the server is an ordinary day."""
    with closing(SinkBench(tmp_path, table(server, "restarted"))) as bench:
        bench.store(1, 50)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            server.stop()
            bench.store(51, 150)
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 2)
            server.start()
            bench.delivered_all(sinks)
    assert asked(server, "SELECT count(*), count(DISTINCT sequence) FROM restarted")[0] == (150, 150)


def test_missing_right_is_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    """A person can grant it; no record may be given up meanwhile."""
    asked(server, "CREATE ROLE guest LOGIN")
    mine = table(server, "closed").replace('user = "postgres"', 'user = "guest"') + "create_table = false\n"
    with closing(SinkBench(tmp_path, mine)) as bench:
        bench.store(1, 30)
        with bench.running() as sinks:
            eventually(lambda: "closed" in sinks.statistics()["out"]["error"], lambda: str(sinks.statistics()))
            assert sinks.statistics()["out"]["refused"] == 0
            open_to_all = table(server, "closed")
            with closing(SinkBench(_fresh(tmp_path), open_to_all)) as other, other.running() as others:
                other.store(1, 1)
                other.delivered_all(others)
            asked(server, "GRANT SELECT, INSERT ON closed TO guest")
            bench.delivered_all(sinks)
    assert asked(server, "SELECT count(*) FROM closed")[0][0] == 30


def _fresh(folder: Path) -> Path:
    (folder / "other").mkdir()
    return folder / "other"
