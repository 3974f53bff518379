"""``python -m benchmarks.busy``: how much threads and programs that only compute delay readings.

Two processes play ping-pong between callbacks in three situations: alone; each with a thread that never releases the
interpreter by itself, at several switch intervals; and beside other programs that keep every core busy, at each
priority of the receiving thread. The benchmark prints one-way p50 and p99 and writes ``build/busy.json``. All cases are
measured in turn, twice, in one run.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

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

PYTHONS_OWN_S = 0.005
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """One situation to measure."""

    busy_thread: bool = False
    interval_s: float | None = None
    """Python's switch interval; None: what the node sets."""
    other_programs: bool = False
    """Whether as many other programs as there are cores compute without end."""
    priority: Literal["normal", "high", "realtime"] = "normal"


CASES = (
    Case(interval_s=PYTHONS_OWN_S),
    Case(),
    Case(busy_thread=True, interval_s=PYTHONS_OWN_S),
    Case(busy_thread=True, interval_s=0.0005),
    Case(busy_thread=True),
    Case(busy_thread=True, interval_s=0.0001),
    Case(other_programs=True),
    Case(other_programs=True, priority="high"),
    Case(other_programs=True, priority="realtime"),
)


def _config(folder: Path, name: str, case: Case, seeds: tuple[Address, ...] = ()) -> NodeConfig:
    return NodeConfig(
        node=NodeSection(id=node_id(name), state_dir=folder / name / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(folder / name, name),
        listen=ListenSection(host="127.0.0.1", priority=case.priority),
        discovery=DiscoverySection(mdns=False, seeds=seeds),
        sections=(HttpSection(enabled=False),),
    )


class Computing:
    """A context in which a thread only computes."""

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


def _compute_until(end: Connection) -> None:
    with Computing(True):
        _wait(end)


@contextlib.contextmanager
def _other_programs(wanted: bool) -> Iterator[None]:
    """A context in which a program computes on every core, if ``wanted``."""
    context = multiprocessing.get_context("spawn")
    running = []
    for _ in range(len(os.sched_getaffinity(0)) if wanted else 0):
        ours, theirs = context.Pipe()
        process = context.Process(target=_compute_until, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    try:
        yield
    finally:
        for process, ours in running:
            ours.close()
            process.join(10)
            if process.is_alive():
                process.kill()


def _far_end(folder: Path, port: int, case: Case, orders: Connection) -> None:
    async def main() -> None:
        async with meshnode.open(_config(folder, "veh-2", case, (Address("127.0.0.1", port),))) as node:
            pong = node.publisher("veh/veh-2/pong")
            node.subscribe("veh/veh-1/ping", callback=lambda reading: pong.put(reading.value), history=False)
            if case.interval_s is not None:
                sys.setswitchinterval(case.interval_s)
            with Computing(case.busy_thread):
                await asyncio.to_thread(_wait, orders)

    asyncio.run(main())


def _wait(orders: Connection) -> None:
    with contextlib.suppress(EOFError):  # the parent is gone
        orders.recv()


async def measure(folder: Path, case: Case, count: int) -> list[float]:
    """Measure one case. Returns one-way times in microseconds, each half a round trip, sorted."""
    context = multiprocessing.get_context("spawn")
    times_us: list[float] = []
    done = threading.Event()
    async with meshnode.open(_config(folder, "veh-1", case)) as node:
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
        child = context.Process(target=_far_end, args=(folder, node.port, case, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            await node.wait_for_peers(1, TIMEOUT_S)
            await asyncio.sleep(0.5)
            if case.interval_s is not None:
                sys.setswitchinterval(case.interval_s)
            with Computing(case.busy_thread), _other_programs(case.other_programs):
                play()
                await asyncio.to_thread(done.wait, TIMEOUT_S)
        finally:
            orders.close()
            await asyncio.to_thread(child.join, 10)
            if child.is_alive():
                child.kill()
    return sorted(times_us[len(times_us) // 10 :])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description="Readings beside a busy thread.")
    parser.add_argument("--count", type=int, default=1_000, help="round trips of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each case (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/busy.json"))
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="meshnode-busy-") as name:
        folder = Path(name)
        create_mesh(folder / "authority", "busy")
        for node in ("veh-1", "veh-2"):
            issue(folder / "authority", Role.VEHICLE, node, folder / node)
        for _, case in itertools.product(range(options.rounds), CASES):
            values = asyncio.run(measure(folder, case, options.count))
            result = {
                "busy_thread": case.busy_thread,
                "switch_interval": f"{case.interval_s * 1_000:g} ms" if case.interval_s else "the node's",
                "other_programs": case.other_programs,
                "priority": case.priority,
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
