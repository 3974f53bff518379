"""``python -m benchmarks.busy``: what a thread of the application that only computes does to readings.

Two processes play ping-pong between callbacks, first alone, then each with a thread that never lets go of the
interpreter of its own accord; with Python's switch interval of 5 ms and with the one that a node sets. Prints one-way
p50 and p99 and writes ``build/busy.json``. All four are measured in turn, twice, in one run.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import meshnode
from meshnode.config import DiscoverySection, HttpSection, IdentitySection, ListenSection, NodeConfig, NodeSection
from meshnode.identity import create_mesh, issue
from meshnode.net.transport import Address
from protocols.ids import Role, node_id
from protocols.messages import Position

PYTHONS_OWN_S = 0.005
TIMEOUT_S = 60.0


def _config(folder: Path, name: str, seeds: tuple[Address, ...] = ()) -> NodeConfig:
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1"),
        discovery=DiscoverySection(mdns=False, seeds=seeds),
        http=HttpSection(enabled=False),
    )


class Computing:
    """A thread that only computes, while inside."""

    def __init__(self, busy: bool) -> None:
        self._wanted = busy
        self._thread = threading.Thread(target=self._compute, daemon=True)

    def _compute(self) -> None:
        number = 1
        while self._wanted:
            number = number * 31 % 1_000_003

    def __enter__(self) -> None:
        if self._wanted:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._wanted = False
        if self._thread.ident is not None:
            self._thread.join()


def _far_end(folder: Path, port: int, busy: bool, interval_s: float | None, orders: Connection) -> None:
    async def main() -> None:
        async with meshnode.open(_config(folder, "veh-2", (Address("127.0.0.1", port),))) as node:
            pong = node.publisher("veh/veh-2/pong")
            node.subscribe("veh/veh-1/ping", callback=lambda reading: pong.put(reading.value), history=False)
            if interval_s is not None:
                sys.setswitchinterval(interval_s)
            with Computing(busy):
                await asyncio.to_thread(_wait, orders)

    asyncio.run(main())


def _wait(orders: Connection) -> None:
    with contextlib.suppress(EOFError):  # the parent is gone
        orders.recv()


async def measure(folder: Path, busy: bool, interval_s: float | None, count: int) -> list[float]:
    """One-way times in microseconds, half a round trip each. ``interval_s`` None: what the node sets."""
    context = multiprocessing.get_context("spawn")
    times_us: list[float] = []
    done = threading.Event()
    async with meshnode.open(_config(folder, "veh-1")) as node:
        ping = node.publisher("veh/veh-1/ping")
        begin_ns = 0

        def play() -> None:
            nonlocal begin_ns
            begin_ns = time.perf_counter_ns()
            ping.put(b"x" * 64)

        def returned(_: meshnode.Reading) -> None:
            times_us.append((time.perf_counter_ns() - begin_ns) / 2e3)
            if len(times_us) < count:
                play()
            else:
                done.set()

        node.subscribe("veh/veh-2/pong", callback=returned, history=False)
        orders, theirs = context.Pipe()
        child = context.Process(target=_far_end, args=(folder, node.port, busy, interval_s, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            await node.wait_for_peers(1, TIMEOUT_S)
            await asyncio.sleep(0.5)
            if interval_s is not None:
                sys.setswitchinterval(interval_s)
            with Computing(busy):
                play()
                await asyncio.to_thread(done.wait, TIMEOUT_S)
        finally:
            orders.close()
            await asyncio.to_thread(child.join, 10)
            if child.is_alive():
                child.kill()
    return sorted(times_us[len(times_us) // 10 :])


def main() -> int:
    """Run it once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description="Readings beside a busy thread.")
    parser.add_argument("--count", type=int, default=1_000, help="round trips a run")
    parser.add_argument("--out", type=Path, default=Path("build/busy.json"))
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="meshnode-busy-") as name:
        folder = Path(name)
        create_mesh(folder / "authority", "busy")
        for node in ("veh-1", "veh-2"):
            issue(folder / "authority", Role.VEHICLE, node, folder / node)
        for _ in range(2):
            for busy in (False, True):
                for interval_s in (PYTHONS_OWN_S, None):
                    values = asyncio.run(measure(folder, busy, interval_s, options.count))
                    result = {
                        "busy_thread": busy,
                        "switch_interval": "5 ms" if interval_s else "the node's",
                        "round_trips": len(values),
                        "p50_us": round(values[len(values) // 2], 1) if values else None,
                        "p99_us": round(values[int(len(values) * 0.99)], 1) if values else None,
                    }
                    results.append(result)
                    print(json.dumps(result), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
