"""``python -m benchmarks.hostile``: how much strangers and insiders that misbehave hurt others.

Strangers: six neighbours publish ten readings a second to one node, and a seventh plays ping-pong with it. These times
are measured before, during and after the torment of ``benchmarks.strangers``: 500 half-open connections at once, peers
that send one byte a second, that never read, that reset in the middle of a frame, and floods of garbage outside and
inside of TLS. All three phases are of one run, on one host with one clock.

An insider: ``benchmarks.siege`` lets one neighbour do its worst to a node, by one trick after the other, and
``benchmarks.relay_siege`` lets one node do so to a relay. The benchmark writes ``build/hostile.json``.

The tormentors share the cores with the nodes that are measured, so the share of one core that they took is written
beside the figures. So is the share that other programs took. If it was more than ``MAX_OTHERS_SHARE`` of the computer,
a missed bar says so, because late readings then prove little.
"""

import asyncio
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import meshnode
from benchmarks import command
from benchmarks import crowd as neighbourhood
from benchmarks.children import Child, child
from benchmarks.churners import config
from benchmarks.command import between, finish, measuring
from benchmarks.insiders import NAMES
from benchmarks.load import Cores, percentiles
from benchmarks.relay_siege import RelayTrick, besiege_relay, relay_table
from benchmarks.siege import Siege, besiege
from benchmarks.strangers import Crowd, insiders, torment
from meshnode.identity import create_mesh, issue
from meshnode.links.transport import Address
from protocols.base.effects import Event
from protocols.membership.events import NeighbourDead, NeighbourLeft, NeighbourSuspected

MAX_P99_MS = 3.0
MAX_OTHERS_SHARE = 0.15
ENGINES = ("express", "nng")
SCENES = ("strangers", "insider", "relay")
PHASES = ("before", "during", "after")
NEIGHBOURS = 6
RATE_HZ = 10.0
_PING_GAP_S = 0.01
_MEET_S = 30.0
_SETTLE_S = 2.0


@dataclass(slots=True)
class Phase:
    """Figures of one phase. The time of a reading is from ``put`` to the callback, that of a ping half a round trip."""

    readings: int = 0
    reading_p50_us: float = 0.0
    reading_p99_us: float = 0.0
    reading_max_us: float = 0.0
    pings: int = 0
    ping_p50_us: float = 0.0
    ping_p99_us: float = 0.0
    ping_max_us: float = 0.0
    core_share: float = 0.0
    """The share of one core that the node under torment took."""
    others_share: float = 0.0
    """The share of all cores that programs outside this benchmark took."""
    suspected: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Real neighbours that were called dead, or left."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a run on one engine."""

    engine: str
    seconds: float
    phases: dict[str, Phase] = field(default_factory=dict)
    torment: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    """The node's counters of links."""
    load_average: float = 0.0

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = []
        for name, phase in self.phases.items():
            missed += [f"{self.engine}: {who} was lost {name} the torment" for who in phase.lost]
            if phase.readings < 0.95 * NEIGHBOURS * RATE_HZ * self.seconds:
                missed.append(f"{self.engine}: only {phase.readings} readings came {name} the torment")
        during = self.phases["during"]
        for what, p99_us in (("readings", during.reading_p99_us), ("pings", during.ping_p99_us)):
            if p99_us > MAX_P99_MS * 1e3:
                others = during.others_share
                doubt = f" (other programs took {others:.0%} of the cores)" if others > MAX_OTHERS_SHARE else ""
                missed.append(f"{self.engine}: p99 of {what} during the torment {p99_us / 1e3:.2f} ms{doubt}")
        return missed


# --- the node --------------------------------------------------------------------------------------------------------
def _besieged(folder: Path, engine: str, orders: Connection) -> None:
    asyncio.run(_serve(folder, engine, orders))


async def _serve(folder: Path, engine: str, orders: Connection) -> None:
    """Answer each order with what was measured since the order before, until the parent is gone."""
    latencies_us: list[float] = []
    suspected: list[str] = []
    lost: list[str] = []

    def received(reading: meshnode.Reading) -> None:
        if not reading.origin.startswith("veh-bad"):
            latencies_us.append((time.time_ns() - reading.when.utc_ns) / 1e3)

    def noticed(event: Event) -> None:
        match event:
            case NeighbourSuspected(node=node) if not node.startswith("veh-bad"):
                suspected.append(node)
            case NeighbourDead(node=node) | NeighbourLeft(node=node) if not node.startswith("veh-bad"):
                lost.append(node)

    async with meshnode.open(config(folder, "rsu-1", engine)) as node:
        node.on_event(noticed)
        pong = node.publisher("rsu/rsu-1/pong", sensor="benchmark")
        node.subscribe("veh/*/speed", callback=received, history=False)
        node.subscribe("veh/veh-ping/ping", callback=lambda reading: pong.put(reading.value), history=False)
        orders.send(node.port)
        feeding = asyncio.create_task(_feed(node))
        cpu_s, begin_s = time.process_time(), time.monotonic()
        while True:
            try:
                await asyncio.to_thread(orders.recv)
            except (EOFError, ConnectionError):
                feeding.cancel()
                return
            share = (time.process_time() - cpu_s) / (time.monotonic() - begin_s)
            orders.send((latencies_us[:], share, suspected[:], lost[:], node.statistics()))
            latencies_us.clear()
            suspected.clear()
            lost.clear()
            cpu_s, begin_s = time.process_time(), time.monotonic()


async def _feed(node: meshnode.Node) -> None:
    """Publish something large for the peers that ask for it and never read it."""
    while True:
        node.publish("rsu/rsu-1/image", bytes(200_000), sensor="benchmark")
        await asyncio.sleep(0.1)


# --- the run ---------------------------------------------------------------------------------------------------------
class _Pinger:
    """Ping-pong at a steady pace."""

    def __init__(self, node: meshnode.Node) -> None:
        self._ping = node.publisher("veh/veh-ping/ping", sensor="benchmark")
        self.times_us: list[float] = []
        self._stop = threading.Event()
        self._back = threading.Event()
        node.subscribe("rsu/rsu-1/pong", callback=self._returned, history=False)
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _returned(self, reading: meshnode.Reading) -> None:
        self.times_us.append((time.perf_counter_ns() - reading.value) / 2e3)
        self._back.set()

    def _play(self) -> None:
        while not self._stop.is_set():
            self._back.clear()
            self._ping.put(time.perf_counter_ns())
            self._back.wait(1.0)
            self._stop.wait(_PING_GAP_S)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)


async def measure(folder: Path, engine: str, seconds: float, crowd: Crowd) -> Outcome:
    """Make one run. :raises ChildFailed: when a process does not answer."""
    outcome = Outcome(engine, seconds)
    settle_s = min(_SETTLE_S, seconds)
    create_mesh(folder / "authority", "hostile")
    good = [f"veh-{number}" for number in range(NEIGHBOURS)]
    bad = insiders(crowd)
    for name in ("rsu-1", "veh-ping", *good, *bad):
        issue(folder / "authority", "rsu" if name == "rsu-1" else "vehicle", name, folder / name)
    files = [config(folder, name, engine).identity.credentials for name in bad]
    spawn = multiprocessing.get_context("spawn")
    with child(spawn, _besieged, folder, engine) as besieged:
        port = besieged.answer()
        to = Address("127.0.0.1", port)
        arguments = folder, good, port, RATE_HZ, engine
        with child(spawn, neighbourhood.neighbours, *arguments):
            async with meshnode.open(config(folder, "veh-ping", engine, to)) as node:
                await node.wait_for_peers(1, _MEET_S)
                pinger = _Pinger(node)
                try:
                    await _flowing(besieged)
                    await asyncio.sleep(2 * settle_s)
                    outcome.phases["before"] = await _phase(besieged, pinger, seconds)
                    with child(spawn, torment, port, files, crowd) as tormentors:
                        tormentors.answer()
                        await asyncio.sleep(settle_s)
                        outcome.phases["during"] = await _phase(besieged, pinger, seconds)
                        tormentors.orders.send(None)
                        outcome.torment = await asyncio.to_thread(tormentors.answer)
                    await asyncio.sleep(settle_s)
                    outcome.phases["after"] = await _phase(besieged, pinger, seconds, outcome.counters)
                finally:
                    await asyncio.to_thread(pinger.stop)
    outcome.load_average = os.getloadavg()[0]
    return outcome


async def _asked(besieged: Child) -> Any:
    """What the besieged node has measured since it was asked last."""
    besieged.orders.send(None)
    return await asyncio.to_thread(besieged.answer)


async def _flowing(besieged: Child) -> None:
    """Return when readings come: on a busy machine the neighbours take seconds to start. The bars tell it when none
    ever does."""
    ends_at = time.monotonic() + _MEET_S
    while True:
        if (await _asked(besieged))[0] or time.monotonic() > ends_at:
            return
        await asyncio.sleep(0.1)


async def _phase(besieged: Child, pinger: _Pinger, seconds: float, counters: dict[str, int] | None = None) -> Phase:
    await _asked(besieged)  # discard what was measured before
    pinger.times_us.clear()
    cores = Cores()
    await asyncio.sleep(seconds)
    others_share = cores.others_share()
    latencies_us, share, suspected, lost, counted = await _asked(besieged)
    if counters is not None:
        kinds = ("link_handshakes", "link_mute", "pipes_", "frames_malformed", "suspicions", "deaths", "local_stalls")
        counters.update({name: value for name, value in counted.items() if name.startswith(kinds)})
    pings_us = pinger.times_us[:]
    return Phase(
        len(latencies_us), *percentiles(latencies_us), len(pings_us), *percentiles(pings_us), round(share, 3),
        round(others_share, 3), suspected, lost,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("hostile", "Neighbours under torment.", "the promised bar is missed")
    seconds, half_open = between(0.5, 600.0), between(0, 2_000)
    parser.add_argument("--seconds", type=seconds, default=20.0, help="length of each phase (default: %(default)s)")
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both", help="default: %(default)s")
    parser.add_argument("--half-open", type=half_open, default=500, help="half-open connections (default: %(default)s)")
    parser.add_argument("--only", choices=SCENES, help="default: all")
    parser.add_argument("--trick", choices=NAMES, action="append", help="of the insider; may be repeated; default: all")
    parser.add_argument(
        "--window", type=between(0.2, 60.0), default=3.0, help="of a trick, in s (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=between(1, 100), default=3, help="of all tricks (default: %(default)s)")
    options = parser.parse_args(arguments)
    chosen = (options.only,) if options.only else ("insider",) if options.trick else SCENES
    outcomes: list[Outcome] = []
    sieges: list[Siege] = []
    for engine in ENGINES if options.engine == "both" else (options.engine,):
        if "strangers" in chosen:
            with measuring(f"hostile on {engine}") as folder:
                outcomes.append(
                    asyncio.run(measure(folder, engine, options.seconds, Crowd(half_open=options.half_open)))
                )
            print(_table(outcomes[-1]), flush=True)
        if "insider" in chosen:
            with measuring(f"an insider on {engine}") as folder:
                tricks = options.trick or NAMES
                sieges.append(asyncio.run(besiege(folder, engine, options.window, options.rounds, tricks)))
            print(sieges[-1].table(), flush=True)
    relayed: list[RelayTrick] = []
    if "relay" in chosen:
        with measuring("an insider at a relay") as folder:
            relayed = besiege_relay(folder, options.window, options.rounds)
        print(relay_table(relayed), flush=True)
    missed = [sentence for outcome in outcomes for sentence in outcome.missed_bars()]
    missed += [sentence for siege in sieges for sentence in siege.missed_bars()]
    missed += [sentence for trick in relayed for sentence in trick.missed_bars()]
    figures = {
        "runs": [asdict(outcome) for outcome in outcomes],
        "insider": [asdict(siege) for siege in sieges],
        "relay": [asdict(trick) for trick in relayed],
    }
    return finish(options, figures, missed)


def _table(outcome: Outcome) -> str:
    """The outcome as a table for people: one-way times in microseconds, and processor time as a share of one core (the
    node) and of all cores (other programs)."""
    lines = [f"{outcome.engine:8}  reading p50      p99   ping p50      p99   node  others  lost  suspected"]
    for name, phase in outcome.phases.items():
        reading = f"{phase.reading_p50_us:11.0f} {phase.reading_p99_us:8.0f}"
        ping = f"{phase.ping_p50_us:10.0f} {phase.ping_p99_us:8.0f}"
        shares = f"{phase.core_share:6.0%} {phase.others_share:7.0%}"
        lines.append(f"{name:8}  {reading} {ping} {shares} {len(phase.lost):5} {len(phase.suspected):10}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
