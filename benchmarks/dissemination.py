"""``python -m benchmarks.dissemination``: how fast a release reaches everybody, and what it costs the relay and others.

Nodes in full reach of each other have access links of 8 Mb/s each way, as the relay has. A release of 8 MB is published
at the relay, and all nodes take it from there and from each other, while each publishes ten positions and one urgent
reading of priority 6 and one of priority 7 a second. Bars: the relay sends at most 1.3 times the file; the last node
has it within 1.5 times ``max(F/u_s, F/d_min, N·F/(u_s+Σu_i))``, which no scheme can beat; the p99 of urgent readings is
at most 1.2 times what it was before.

The network honours what senders say of their packets (:mod:`sims.media.access`), unless ``--fifo`` is given.

It is simulated in virtual time. The figures are the same on every machine. It prints a table, writes
``build/dissemination.json``, and ends with status 1 when a bar is missed, without ``--check`` too.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from benchmarks import command
from protocols.base.ids import Role
from protocols.base.limits import MS, SECOND
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from sims.media.access import AccessLinks
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.authors import Authors
from sims.world.releases.nodes import RelayStore, SimReleases
from sims.world.releases.publisher import Publisher

NODES: Final = 20
FILE_BYTES: Final = 8_000_000
RATE_MBPS: Final = 8.0
CHUNK_BYTES: Final = 64 * 1024
DELAY_NS: Final = 2 * MS
BEFORE_S: Final = 20
LONGEST_S: Final = 300
EGRESS_BAR: Final = 1.3
TIME_BAR: Final = 1.5
P99_BAR: Final = 1.2
URGENT: Final = 6
"""The priority from which readings are urgent."""
PATH: Final = "models/plate"


@dataclass(frozen=True, slots=True)
class Spread:
    """What was measured of one release."""

    bound_s: float
    half_s: float
    """When half of the nodes had it …"""
    all_s: float
    """… and when all had, after it was published."""
    egress: float
    """What the relay sent, in files."""
    sent_bytes: int
    """What all nodes put on their links until then."""
    asked_twice: int
    p99_before_ms: float
    p99_ms: float
    """Of urgent readings, before and meanwhile."""


def _p99_ms(sim: SimDriver, from_ns: int) -> float:
    """The time that 99 of 100 urgent readings did not exceed that were published since then; what nodes have received
    is forgotten."""
    took_ns: list[int] = []
    for node in sim.numbered:
        sim.look(node)
        took_ns += [at_ns - int(reading.value) for at_ns, reading in node.received
                    if reading.priority >= URGENT and reading.value >= from_ns]  # fmt: skip
        node.received.clear()
    return sorted(took_ns)[int(0.99 * len(took_ns))] / MS if took_ns else 0.0


def spread(
    nodes: int, file_bytes: int, rate_mbps: float, chunk_bytes: int, seed: int, is_ranked: bool, readings: bool
) -> Spread:  # fmt: skip
    """Publish one release, and wait until all nodes have it. :raises TimeoutError: they don't get it."""
    bytes_per_s = int(rate_mbps * 125_000)
    links = AccessLinks(
        [bytes_per_s] * (nodes + 1), [bytes_per_s] * (nodes + 1), DELAY_NS, Random(f"{seed}/links"), is_ranked
    )
    publisher = Publisher(seed)
    releases = SimReleases(publisher)
    authors: list[Authors] = []

    def adjust(settings: NodeSettings) -> NodeSettings:
        return replace(settings, seal=authors[0].seal(settings.node))

    sim = releases.driver = SimDriver(seed, links=links, adjust=adjust, capabilities=(releases.capability,))
    authors.append(Authors(sim, Random(f"{seed}/authors")))
    relay = releases.relay = RelayStore(sim, publisher, 0, DELAY_NS)
    releases.relay_ns = lambda node, size_bytes: links.stream_ns(nodes, node.number, size_bytes, sim.now)
    for number in range(nodes):
        sim.add(f"n{number}", Role.VEHICLE)
    sim.meet()
    sim.run_for(5 * SECOND)
    if readings:
        _publish_readings(sim, Random(f"{seed}/readings"))
    sim.run_for(BEFORE_S * SECOND)
    before_ms = _p99_ms(sim, sim.now - BEFORE_S * SECOND // 2)
    publisher.release(PATH, 1, file_bytes, chunk_bytes)
    publisher.sign()
    complete: dict[str, int] = {}

    def kept(node: SimNode, digest: bytes) -> None:
        if len(releases.disk(node.name).chunks) == len(publisher.chunks):
            complete[node.name] = sim.now

    releases.on_kept = kept
    began_ns = sim.now
    sent_bytes = sum(map(links.sent_bytes, range(nodes)))
    for node in sim.numbered:
        releases.connect(node)
    while len(complete) < nodes:
        if sim.now - began_ns > LONGEST_S * SECOND:
            raise TimeoutError(f"after {LONGEST_S} s only {len(complete)} of {nodes} nodes have the release")
        sim.run_for(50 * MS)
    times = sorted((at_ns - began_ns) / SECOND for at_ns in complete.values())
    bound_s = max(file_bytes / bytes_per_s, nodes * file_bytes / (bytes_per_s * (nodes + 1)))
    twice = sum(node.engine.statistics()["releases_pieces_asked_twice"] for node in sim.numbered)
    return Spread(
        bound_s, times[nodes // 2], times[-1], relay.egress_bytes / file_bytes,
        sum(map(links.sent_bytes, range(nodes))) - sent_bytes, twice, before_ms, _p99_ms(sim, began_ns),
    )  # fmt: skip


def _publish_readings(sim: SimDriver, random: Random) -> None:
    for node in sim.numbered:
        sim.subscribe(node.name, "veh/**", Quality(own=False))
        for priority, topic, rate_hz in ((3, "position", 10), (6, "warning", 1), (7, "brake", 1)):
            _publish_often(sim, node, f"veh/{node.name}/{topic}", priority, SECOND // rate_hz, random)


def _publish_often(sim: SimDriver, node: SimNode, key: str, priority: int, period_ns: int, random: Random) -> None:
    def publish(_: Any) -> None:
        sim.publish(node.name, key, sim.now, lifespan_ms=5_000, priority=priority)
        sim.push(sim.now + period_ns, publish, None)

    sim.push(sim.now + random.randrange(period_ns), publish, None)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--file-mb", type=float, default=FILE_BYTES / 1e6)
    parser.add_argument("--rate-mbps", type=float, default=RATE_MBPS, help="of each access link, each way")
    parser.add_argument("--chunk-kib", type=int, default=CHUNK_BYTES // 1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fifo", action="store_true", help="the network treats all packets alike")
    parser.add_argument("--no-readings", action="store_true", help="nothing is published meanwhile")
    options = command.parse(parser) if hasattr(command, "parse") else parser.parse_args()
    rows: list[Spread] = []
    print("seed  bound s  half s  all s  times bound  egress  asked twice  p99 ms before  meanwhile  times  (took s)")
    for seed in range(1, options.seeds + 1):
        began = time.perf_counter()
        row = spread(
            options.nodes, int(options.file_mb * 1e6), options.rate_mbps, options.chunk_kib * 1024, seed,
            not options.fifo, not options.no_readings,
        )  # fmt: skip
        rows.append(row)
        times = row.p99_ms / row.p99_before_ms if row.p99_before_ms else 0.0
        print(f"{seed:4} {row.bound_s:8.2f} {row.half_s:7.2f} {row.all_s:6.2f} {row.all_s / row.bound_s:12.2f} "
              f"{row.egress:7.3f} {row.asked_twice:12} {row.p99_before_ms:14.2f} {row.p99_ms:10.2f} {times:6.2f}"
              f"  ({time.perf_counter() - began:.1f})")  # fmt: skip
    sys.exit(0)


if __name__ == "__main__":
    main()
