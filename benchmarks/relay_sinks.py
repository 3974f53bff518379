"""``python -m benchmarks.relay_sinks [--records N] [--json]``: what sending records on costs the relay.

It fills a store with records of 1,000 nodes and lets one sink after another work off all of them, as after a day
without its receiver. Then it stores as many again, without and with two sinks that follow.

- ``…_per_s``: records that a sink delivers in a second; ``…_cpu_us``: processor time of this process for each of them,
  a receiver in the same process included (HTTP);
- ``grown_mib``: what resident memory grew by while all sinks worked off their backlog;
- ``store_alone_us``, ``store_beside_us``: what storing one record takes, without sinks and beside two that follow.

mosquitto, PostgreSQL and kcat are measured where they are installed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil

from benchmarks.relay_queries import NODES, record_of
from cloud_relay.config import load_config
from cloud_relay.sinks.running import Sinks
from cloud_relay.sinks.settings import sinks_of
from cloud_relay.store.contract import StorableBatch
from cloud_relay.store.sqlite import Store
from tests.tools.eventually import eventually
from tests.tools.sink_servers import HttpReceiver, KafkaBroker, Mosquitto, PostgresServer

MEMORY_BAR_MIB: Final = 256.0
"""For all kinds one after another, their libraries included."""
_BATCH: Final = 256
_LIMIT_S: Final = 600.0


def stored(store: Store, first: int, records: int) -> float:
    """Store so many records of each node, from a number on. Returns the seconds that it took."""
    random, each = Random(first), records // NODES
    begun_s = time.perf_counter()
    for node in range(NODES):
        for begin in range(first, first + each, _BATCH):
            numbers = range(begin, min(begin + _BATCH, first + each))
            batch = tuple(record_of(node, number, first + each, random) for number in numbers)
            store.submit(StorableBatch(f"veh-{node}", 1, numbers[-1] + 1, batch, (), ())).result()
    return time.perf_counter() - begun_s


def delivering(folder: Path, *tables: str) -> Sinks:
    """Sinks with these tables."""
    config = folder / "relay.toml"
    config.write_text('[relay]\nid = "relay-1"\n' + "".join(f"[[sink]]\n{table}\n" for table in tables))
    return Sinks(sinks_of(load_config(config)), folder / "relay.sqlite", folder)


def worked_off(folder: Path, kind: str, more: str, records: int) -> dict[str, float]:
    """What one sink takes for the whole store."""
    process = psutil.Process()
    with closing(delivering(folder, f'name = "{kind}"\nkind = "{kind}"\n{more}')) as sinks:
        begun_s, cpu = time.perf_counter(), process.cpu_times()

        def done() -> bool:
            told = sinks.statistics()[kind]
            return bool(told["delivered"] >= records)

        eventually(done, lambda: str(sinks.statistics()), _LIMIT_S)
        took_s, after = time.perf_counter() - begun_s, process.cpu_times()
    cpu_s = after.user + after.system - cpu.user - cpu.system
    return {f"{kind}_per_s": records / took_s, f"{kind}_cpu_us": cpu_s / records * 1e6}


def receivers(opened: ExitStack, folder: Path) -> list[tuple[str, str]]:
    """Kinds and the keys of their tables, with servers that are running."""
    http = opened.enter_context(closing(HttpReceiver()))
    http.keeps = False
    found = [
        ("parquet", f'url = "file://{folder}/lake"\nlongest_wait = "1s"'),
        ("http", f'url = "{http.url}"'),
    ]  # fmt: skip

    def add(kind: str, start: Callable[[], str]) -> None:
        try:
            found.append((kind, start()))
        except BaseException as error:  # noqa: BLE001 - how tests skip what is not installed
            print(f"{kind} is left out: {error}", file=sys.stderr)

    def postgres() -> str:
        server = opened.enter_context(PostgresServer())
        return f'url = "postgresql://127.0.0.1:{server.port}/postgres"\nuser = "postgres"'

    add("mqtt", lambda: f'url = "mqtt://127.0.0.1:{opened.enter_context(Mosquitto(folder)).port}"')
    add("kafka", lambda: f'url = "kafka://{opened.enter_context(KafkaBroker(folder)).address}"')
    add("postgresql", postgres)
    return found


def measured(records: int) -> dict[str, float]:
    """All figures."""
    records -= records % NODES
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        store = Store(folder / "relay.sqlite")
        opened.callback(store.close)
        stored(store, 1, records)
        kinds = receivers(opened, folder)
        resident = psutil.Process().memory_info().rss
        for kind, more in kinds:
            results |= worked_off(folder, kind, more, records)
        results["grown_mib"] = (psutil.Process().memory_info().rss - resident) / 2**20
        results["store_alone_us"] = stored(store, 1 + records // NODES, records) / records * 1e6
        tables = [f'name = "live-{kind}"\nkind = "{kind}"\nbegin = "newest"\n{more}' for kind, more in kinds[:2]]
        with closing(delivering(folder, *tables)):
            beside_s = stored(store, 1 + 2 * (records // NODES), records)
        results["store_beside_us"] = beside_s / records * 1e6
    return results


def main() -> None:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relay_sinks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--records", type=int, default=50_000, help="how many there are in the store")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = measured(max(arguments.records, NODES))
    if arguments.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:<22}{value:>12.1f}")
    if results["grown_mib"] > MEMORY_BAR_MIB:
        sys.exit(f"memory grew by {results['grown_mib']:.0f} MiB: {MEMORY_BAR_MIB:.0f} are allowed")


if __name__ == "__main__":
    main()
