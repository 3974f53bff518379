"""``python -m benchmarks.local``: what the local socket costs, compared with a callback in the node's process.

There are three processes: a node, an application that publishes and one that listens. Every reading carries the instant
of its publishing, so one run gives the latencies of all paths. Readings are 1 ms apart. The throughput run puts as fast
as the node takes them, so that nothing is dropped. The benchmark prints a table and writes ``build/local.json``.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import meshnode
from meshnode.config.sections import (
    DiscoverySection,
    IdentitySection,
    ListenSection,
    NodeConfig,
    NodeSection,
)
from meshnode.http.section import HttpSection
from meshnode.identity import create_mesh, issue
from meshnode.local.section import socket_of
from protocols.base.ids import node_id
from protocols.wire.readings import Position, Reading

_GAP_S = 0.001
_MAX_WAITING = 512
_START_S = 20.0


class _Latencies:
    def __init__(self) -> None:
        self.took_ns: list[int] = []

    def take(self, reading: Reading) -> None:
        self.took_ns.append(time.perf_counter_ns() - reading.value)

    def percentiles_us(self) -> tuple[float, float]:
        ordered = sorted(self.took_ns) or [0]
        return ordered[len(ordered) // 2] / 1e3, ordered[int(len(ordered) * 0.99)] / 1e3


def _publish(publisher: Any, count: int) -> None:
    for _ in range(count):
        publisher.put(time.perf_counter_ns())
        time.sleep(_GAP_S)


async def _listen(path: str) -> None:
    """Print ``ready`` and, once the end is published, the latencies and the rate of the flood as JSON."""
    down, up, ended = _Latencies(), _Latencies(), asyncio.Event()
    loop = asyncio.get_running_loop()
    flood: list[int] = []

    def flooded(reading: Reading) -> None:
        if len(flood) == 2:
            flood.pop()
        flood.append(time.perf_counter_ns())
        counts[0] += 1

    counts = [0]
    async with meshnode.connect(path, "listener") as node:
        node.subscribe("veh/bench/down", callback=down.take)
        node.subscribe("veh/bench/up", callback=up.take)
        node.subscribe("veh/bench/flood", callback=flooded)
        node.subscribe("veh/bench/end", callback=lambda _: loop.call_soon_threadsafe(ended.set))
        print("ready", flush=True)
        await ended.wait()
    rate = counts[0] / ((flood[1] - flood[0]) / 1e9) if len(flood) == 2 else 0.0
    print(json.dumps({"down": down.percentiles_us(), "up": up.percentiles_us(), "rate": rate, "flood": counts[0]}))


async def _talk(path: str, count: int, flood: int) -> None:
    async with meshnode.connect(path, "talker") as node:
        await asyncio.to_thread(_publish, node.publisher("veh/bench/up"), count)
        publisher = node.publisher("veh/bench/flood")
        for number in range(flood):
            publisher.put(number)
            while node.session.outgoing.waiting_readings > _MAX_WAITING:
                time.sleep(0.0005)  # noqa: ASYNC251 -- nothing else runs on this loop
        await node.flushed(60)


async def _measure(folder: Path, count: int, flood: int) -> dict[str, Any]:
    create_mesh(folder / "authority", "bench")
    issue(folder / "authority", "vehicle", "bench", folder)
    config = NodeConfig(
        node=NodeSection(
            id=node_id("bench"), state_dir=folder / "state", position=Position(48.7661, 11.4298, 3.0)
        ),
        identity=IdentitySection.in_folder(folder, "bench"),
        listen=ListenSection(host="127.0.0.1"),
        discovery=DiscoverySection(mdns=False),
        sections=(HttpSection(enabled=False),),
    )  # fmt: skip
    inside, from_application = _Latencies(), _Latencies()
    path = str(socket_of(config))
    async with meshnode.open(config) as node:
        listener = _child("listen", path)
        try:
            assert listener.stdout is not None
            if await asyncio.to_thread(listener.stdout.readline) != "ready\n":
                raise SystemExit("the listening application did not start")
            node.subscribe("veh/bench/down", callback=inside.take)
            await asyncio.to_thread(_publish, node.publisher("veh/bench/down"), count)
            counting = node.subscribe("veh/bench/up", callback=from_application.take)
            talker = _child("talk", path, str(count), str(flood))
            await asyncio.to_thread(talker.communicate, None, 120)
            counting.close()
            node.publish("veh/bench/end", None)
            printed, _ = await asyncio.to_thread(listener.communicate, None, _START_S)
        finally:
            listener.kill()
            listener.wait()
    seen = json.loads(printed)
    rows = {
        "in the node's process": inside.percentiles_us(),
        "node to application": seen["down"],
        "application to node": from_application.percentiles_us(),
        "application to application": seen["up"],
    }
    print(f"{'publish to callback':30}{'p50 us':>10}{'p99 us':>10}")
    for name, (p50, p99) in rows.items():
        print(f"{name:30}{p50:10.1f}{p99:10.1f}")
    print(f"application to application: {seen['rate']:,.0f} readings a second ({seen['flood']} of {flood} arrived)")
    return {
        "readings": count,
        "ways": [{"way": name, "p50_us": round(p50, 1), "p99_us": round(p99, 1)} for name, (p50, p99) in rows.items()],
        "readings_per_s": round(seen["rate"]), "flood": flood, "flood_arrived": seen["flood"],
    }  # fmt: skip


def _child(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "benchmarks.local", *arguments], stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local", description=__doc__)
    parser.add_argument("--readings", type=int, default=3_000, help="readings on each path (default 3000)")
    parser.add_argument("--flood", type=int, default=100_000, help="readings of the throughput run (default 100000)")
    parser.add_argument("--out", type=Path, default=Path("build/local.json"), help="default: %(default)s")
    commands = parser.add_subparsers(dest="role")
    commands.add_parser("listen", help=argparse.SUPPRESS).add_argument("path")
    talk = commands.add_parser("talk", help=argparse.SUPPRESS)
    for name, kind in (("path", str), ("count", int), ("size", int)):
        talk.add_argument(name, type=kind)
    options = parser.parse_args()
    if options.role == "listen":
        asyncio.run(_listen(options.path))
    elif options.role == "talk":
        asyncio.run(_talk(options.path, options.count, options.size))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(_measure(Path(folder), options.readings, options.flood))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
