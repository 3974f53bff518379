"""The context of a reading on its whole way: from a vehicle by way of two roadside units and a relay into files."""

import math
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import meshnode
from cloud_relay.cli import main
from cloud_relay.query.selection import Query
from cloud_relay.store.schema import open_for_reading
from protocols.base.limits import MS
from protocols.wire.parcels import decode_untrusted_reading, encode_reading
from protocols.wire.readings import EventTime, Position, Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, wanted
from tests.tools.relay_fixture import RelayProcess
from tests.tools.stored_fixture import every_record

pytestmark = pytest.mark.processes

KEY = "veh/veh-1/surface"
WHERE = Position(-0.1 - 0.2, 179.999999999, 2.7182818284590451, -12.25, 359.99999999999994)
HOW: dict[str, Any] = {
    "sensor": "friction, µ", "unit": "m/s2", "quality": 0.1 + 0.2, "calibration": "cal|7", "lineage": ("fusion", "raw"),
    "priority": 6, "lifespan_ms": 3_600_000,
}  # fmt: skip
VALUES: tuple[Any, ...] = (0.1 + 0.2, math.inf, {"ice": [True, None, {"deep": [[-0.0]]}]}, "black ice", 2**63 - 1)


ACCESS = """
[access]
rules = [
    { role = "vehicle", verb = "publish", keys = "veh/{id}/**" }, { role = "vehicle", verb = "subscribe", keys = "**" },
    { role = "rsu", verb = "publish", keys = "**" }, { role = "rsu", verb = "subscribe", keys = "**" },
    { role = "vehicle", verb = "carry", keys = "**" }, { role = "rsu", verb = "carry", keys = "**" },
]
"""
"""Units at the road may record what vehicles say."""


def config(house: House, node: str, role: str, seeds: list[int], tables: str = "") -> Path:
    listed = ", ".join(f'"127.0.0.1:{port}"' for port in seeds)
    return house.file(node, f"[discovery]\nmdns = false\nseeds = [{listed}]\n{tables}", role=role)


async def sent_through(house: House, relay: RelayProcess, began_ns: int) -> list[Reading]:
    """A vehicle publishes; `rsu-1` records it and passes it on; `rsu-2`, which the vehicle does not reach, hears it,
    and carries the records of `rsu-1` to the relay. Returns what `rsu-2` heard."""
    uplink = f'[relay]\naddress = "127.0.0.1:{relay.address.port}"\n[carrying]\nhand_over = false\n'
    carried = '[relay]\naddress = "127.0.0.1:1"\n[carrying]\nafter_s = 0\ncarry = false\n'
    rule = f'[[curation]]\nname = "surface"\nkeys = "{KEY}"\nsource = "any"\n'
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(meshnode.open(config(house, "rsu-2", "rsu", [], uplink + ACCESS)))
        near = await stack.enter_async_context(
            meshnode.open(config(house, "rsu-1", "rsu", [far.port], carried + rule + ACCESS))
        )
        vehicle = await stack.enter_async_context(meshnode.open(config(house, "veh-1", "vehicle", [near.port], ACCESS)))
        heard: list[Reading] = []
        far.subscribe(KEY, callback=heard.append, hops=1)
        await near.wait_for_peers(2)
        await wanted(vehicle, KEY)
        await until(lambda: "veh-1" in {one.author for one in far.entries()}, "its certificate has spread")
        for number, value in enumerate(VALUES):
            vehicle.publish(KEY, value, where=WHERE, time_ns=began_ns + number, hops=1, **HOW)
        await until(lambda: len(heard) == len(VALUES), "it has come over two hops")
        await until(
            lambda: near.statistics()["outbox_delivered"] == len(VALUES),
            lambda: f"the relay has all: {near.statistics()}",
        )
        assert {peer.node for peer in far.peers()} == {"rsu-1"}
        assert near.statistics()["readings_forwarded"] == len(VALUES)
        return heard


async def test_two_hops_and_a_relay_leave_the_context_untouched(tmp_path: Path) -> None:
    """Real nodes and a real relay over TLS: to the last bit, in Parquet and Arrow, by every reader."""
    house = House(tmp_path)
    relay, began_ns = RelayProcess(tmp_path, house.mesh), time.time_ns()
    (tmp_path / "relay.toml").write_text(f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n{ACCESS}')
    with relay:
        heard = await sent_through(house, relay, began_ns)
    store = tmp_path / "state" / "relay.sqlite"
    with closing(open_for_reading(store)) as db:
        records = list(every_record(db, Query(limit=100, newest_first=False)))
    for number, (record, value, reading) in enumerate(zip(records, VALUES, heard, strict=True)):
        arrived = decode_untrusted_reading(record.encoded)
        assert record.fields["origin"] == "rsu-1"
        assert (arrived.key, arrived.origin) == (KEY, "veh-1")
        assert (arrived.where, arrived.when) == (WHERE, EventTime(began_ns + number, 10 * MS))
        assert repr(arrived.value) == repr(value)
        said = {name: getattr(arrived.how, name, None) or getattr(arrived, name, None) for name in HOW}
        assert said == HOW
        assert record.encoded == encode_reading(msgspec.structs.replace(reading, hops=1))  # one was used up on the way
    files = {form: tmp_path / f"surface.{form}" for form in ("parquet", "arrow", "csv")}
    for words in (["create", "surface"], *(["export", "surface", str(file)] for file in files.values())):
        done = CliRunner().invoke(main, ["dataset", words[0], "--config", str(tmp_path / "relay.toml"), *words[1:]])
        assert done.exit_code == 0, done.output
    with pa.memory_map(str(files["arrow"])) as raw:
        by_arrow = pa.ipc.open_file(raw).read_all().to_pylist()
    by_parquet = pq.read_table(files["parquet"]).to_pylist()
    by_pandas = pd.read_parquet(files["parquet"], dtype_backend="pyarrow").to_dict("records")
    names = [
        "latitude_deg",
        "longitude_deg",
        "accuracy_m",
        "altitude_m",
        "heading_deg",
        "event_utc_ns",
        "uncertainty_ns",
        "quality",
    ]
    texts = ["key", "sensing_origin", "sensor", "unit", "calibration", "priority", "lifespan_ms"]
    with duckdb.connect() as db2:
        columns = [*names, *texts, "lineage"]
        by_duckdb = [
            dict(zip(columns, cells, strict=True))
            for cells in db2.execute(f"SELECT {', '.join(columns)} FROM '{files['parquet']}'").fetchall()
        ]
    for rows in (by_arrow, by_parquet, by_pandas, by_duckdb):
        for number, row in enumerate(rows):
            assert [repr(row[name]) for name in names] == [
                repr(of) for of in (
                    WHERE.latitude_deg, WHERE.longitude_deg, WHERE.accuracy_m, WHERE.altitude_m, WHERE.heading_deg,
                    began_ns + number, 10 * MS, HOW["quality"],
                )
            ]  # fmt: skip
            assert [row[name] for name in texts] == [
                KEY, "veh-1", HOW["sensor"], HOW["unit"], HOW["calibration"], HOW["priority"], HOW["lifespan_ms"]
            ]  # fmt: skip
            assert tuple(row["lineage"]) == HOW["lineage"]
