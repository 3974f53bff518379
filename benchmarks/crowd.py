"""``python -m benchmarks.crowd``: one node with 30 neighbours, each publishing ten readings a second.

It measures in the node: the time from ``put`` at a neighbour to the callback here (one host, one clock), and the share
of one core that its process takes. The neighbours are whole nodes in a few other processes. They talk to the one node
only, so that the two cores of a small computer are not the limit. It writes ``build/crowd.json``; with ``--check`` the
bars are 3 ms at p99 and 12 % of a core.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
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
from meshnode.links.transport import Address
from protocols.base.ids import Role, node_id
from protocols.wire.readings import Position

MAX_P99_MS = 3.0
MAX_CORE_SHARE = 0.12
_WHERE = Position(48.7657, 11.4237, 1.0)


def _config(folder: Path, name: str, engine: str, seeds: tuple[Address, ...] = ()) -> NodeConfig:
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=_WHERE),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1", link_engine=engine),  # type: ignore[arg-type]
        discovery=DiscoverySection(mdns=False, seeds=seeds),
        sections=(HttpSection(enabled=False),),
    )


def neighbours(folder: Path, names: list[str], port: int, rate_hz: float, engine: str, orders: Connection) -> None:
    """Run several nodes in one process, which publish until they are told to stop or the parent is gone."""

    async def one(name: str, index: int, stop: asyncio.Event) -> None:
        async with meshnode.open(_config(folder, name, engine, (Address("127.0.0.1", port),))) as node:
            await node.wait_for_peers(1, 30.0)
            publisher = node.publisher(f"veh/{name}/speed", unit="m/s", sensor="benchmark")
            await asyncio.sleep(index / (rate_hz * len(names)))  # not all at once
            due_s = time.monotonic()
            while not stop.is_set():
                publisher.put(13.9)
                due_s += 1 / rate_hz
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def main() -> None:
        stop = asyncio.Event()
        waiting = asyncio.create_task(asyncio.to_thread(_wait, orders))
        waiting.add_done_callback(lambda _: stop.set())
        await asyncio.gather(*(one(name, index, stop) for index, name in enumerate(names)))

    asyncio.run(main())


def _wait(orders: Connection) -> None:
    with contextlib.suppress(EOFError):  # the parent is gone
        orders.recv()


async def measure(
    folder: Path, count: int, processes: int, rate_hz: float, seconds: float, engine: str
) -> dict[str, Any]:
    """Measure the one node, which runs in this process."""
    context = multiprocessing.get_context("spawn")
    children, pipes = [], []
    async with meshnode.open(_config(folder, "rsu-1", engine)) as node:
        latencies_us: list[float] = []

        def received(reading: meshnode.Reading) -> None:
            latencies_us.append((time.time_ns() - reading.when.utc_ns) / 1e3)

        node.subscribe("veh/*/speed", callback=received, history=False)
        for number in range(processes):
            names = [f"veh-{index}" for index in range(number, count, processes)]
            ours, theirs = context.Pipe()
            arguments = (folder, names, node.port, rate_hz, engine, theirs)
            children.append(context.Process(target=neighbours, args=arguments, daemon=True))
            pipes.append(ours)
        try:
            for child in children:
                child.start()
            await node.wait_for_peers(count, 60.0)
            await asyncio.sleep(2.0)
            latencies_us.clear()
            cpu_s, begin_s = time.process_time(), time.monotonic()
            await asyncio.sleep(seconds)
            share = (time.process_time() - cpu_s) / (time.monotonic() - begin_s)
            values = sorted(latencies_us)
        finally:
            for pipe in pipes:
                pipe.close()
            for child in children:
                await asyncio.to_thread(child.join, 10)
                if child.is_alive():
                    child.kill()
    if not values:
        raise SystemExit("no reading arrived")
    return {
        "engine": engine, "neighbours": count, "rate_hz": rate_hz, "seconds": seconds, "readings": len(values),
        "expected": round(count * rate_hz * seconds), "p50_us": round(values[len(values) // 2], 1),
        "p99_us": round(values[int(len(values) * 0.99)], 1), "max_us": round(values[-1], 1),
        "core_share": round(share, 4),
    }  # fmt: skip


def main() -> int:
    """Run the command line: measure once for each engine that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description="One node with many neighbours.")
    parser.add_argument("--neighbours", type=int, default=30)
    parser.add_argument("--rate-hz", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--engine", choices=("express", "nng"), action="append", help="may be repeated; default express"
    )
    parser.add_argument("--check", action="store_true", help="end with status 1 when a promised bar is missed")
    parser.add_argument("--out", type=Path, default=Path("build/crowd.json"))
    options = parser.parse_args()
    results = []
    for engine in options.engine or ["express"]:
        with tempfile.TemporaryDirectory(prefix="meshnode-crowd-") as name:
            folder = Path(name)
            create_mesh(folder / "authority", "crowd")
            issue(folder / "authority", Role.RSU, "rsu-1", folder / "rsu-1")
            for index in range(options.neighbours):
                issue(folder / "authority", Role.VEHICLE, f"veh-{index}", folder / f"veh-{index}")
            results.append(asyncio.run(measure(
                folder, options.neighbours, 3, options.rate_hz, options.seconds, engine
            )))  # fmt: skip
        print(json.dumps(results[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1))
    missed = [r for r in results if r["p99_us"] > MAX_P99_MS * 1e3 or r["core_share"] > MAX_CORE_SHARE]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
