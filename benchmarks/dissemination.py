"""``python -m benchmarks.dissemination``: how fast a release reaches everybody, and what it costs the relay and others.

Nodes in full reach of each other have access links of 8 Mb/s each way, as the relay has. A release of 8 MB is published
at the relay, and all nodes take it from there and from each other, while each publishes ten positions and one urgent
reading of priority 6 and one of priority 7 a second. Bars: the relay sends at most 1.3 times the file; the last node
has it within 1.5 times ``max(F/u_s, F/d_min, N·F/(u_s+Σu_i))``, which no scheme can beat; the p99 of urgent readings is
at most 1.2 times what it was before, where a reading that has not come counts as if it came at the end. The means over
the seeds are held against them.

The network honours what senders say of their packets (:mod:`sims.media.access`), unless ``--fifo`` is given.

It is simulated in virtual time, so the figures are the same on every machine. With ``--radio`` the same nodes also
share one channel of 54 Mb/s, and the airtime of all pieces is stated. With ``--large`` a release also spreads among
1,000 nodes. In both all checks of the simulator have to be kept. It prints a table and writes
``build/dissemination.json``.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import fmean
from typing import Any, Final

from msgspec.structs import replace

from benchmarks import command
from benchmarks.command import between, finish
from protocols.base import limits
from protocols.base.ids import Role
from protocols.base.limits import MS, SECOND
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from sims.media.access import AccessLinks
from sims.media.airtime import ACKNOWLEDGED_NS, airtime_ns
from sims.media.tcp import SEGMENT_BYTES, TCP_IP_BYTES, segments_of
from sims.runs.run import simulate
from sims.scenario.file import load, loads
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
LIFESPAN_MS: Final = 5_000
PATH: Final = "models/plate"
_RADIO: Final = """
name = "one-channel"
description = "One neighbourhood takes a release from the relay and from each other, on one channel of 54 Mb/s"
duration_s = 240
releases = {{ size_mib = {size_mib}, published_at_s = 20 }}
radio = {{ model = "ideal", range_m = 500, bit_rate_mbps = 54 }}
cellular = {{ bit_rate_mbps = 8 }}
groups = [
    {{ name = "car", count = {nodes}, relay = true, mobility = {{ kind = "lattice", spacing_m = 20 }} }},
]
traffic = [
    {{ group = "car", topic = "position", rate_hz = 10 }},
    {{ group = "car", topic = "brake", rate_hz = 1, priority = 7 }},
]
"""


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
    lost: int
    """Urgent readings that a node has not received although their lifespan is over."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An urgent reading that all other nodes want."""

    origin: str
    key: str
    at_ns: int
    """When it was published, which is also its value."""


def urgent_p99(sim: SimDriver, sent: Sequence[Sent], from_ns: int) -> tuple[float, int]:
    """Of urgent readings that were published since then: the time in milliseconds that 99 of 100 did not exceed, and
    how many are lost. What has not come took until now at least. What nodes have received is forgotten."""
    took_ns: list[int] = []
    lost = 0
    wanted = [each for each in sent if each.at_ns >= from_ns]
    for node in sim.numbered:
        sim.look(node)
        came_ns = {(reading.key, reading.value): at_ns for at_ns, reading in node.received}
        node.received.clear()
        for each in wanted:
            if each.origin != node.name:
                at_ns = came_ns.get((each.key, each.at_ns))
                took_ns.append((sim.now if at_ns is None else at_ns) - each.at_ns)
                lost += at_ns is None and took_ns[-1] > LIFESPAN_MS * MS
    return (sorted(took_ns)[int(0.99 * len(took_ns))] / MS if took_ns else 0.0), lost


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
    sent: list[Sent] = []
    if readings:
        _publish_readings(sim, Random(f"{seed}/readings"), sent)
    sim.run_for(BEFORE_S * SECOND)
    before_ms, _ = urgent_p99(sim, sent, sim.now - BEFORE_S * SECOND // 2)
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
    sent_bytes = sum(map(links.sent_bytes, range(nodes))) - sent_bytes
    return Spread(
        bound_s, times[nodes // 2], times[-1], relay.egress_bytes / file_bytes, sent_bytes, twice, before_ms,
        *urgent_p99(sim, sent, began_ns),
    )  # fmt: skip


def _publish_readings(sim: SimDriver, random: Random, sent: list[Sent]) -> None:
    for node in sim.numbered:
        sim.subscribe(node.name, "veh/**", Quality(own=False))
        for priority, topic, rate_hz in ((3, "position", 10), (6, "warning", 1), (7, "brake", 1)):
            _publish_often(sim, node, f"veh/{node.name}/{topic}", priority, SECOND // rate_hz, random, sent)


def _publish_often(
    sim: SimDriver, node: SimNode, key: str, priority: int, period_ns: int, random: Random, sent: list[Sent]
) -> None:  # fmt: skip
    """The pauses differ, so that no two publishers stay in step for a whole run."""

    def publish(_: Any) -> None:
        sim.publish(node.name, key, sim.now, lifespan_ms=LIFESPAN_MS, priority=priority)
        if priority >= URGENT:
            sent.append(Sent(node.name, key, sim.now))
        sim.push(sim.now + period_ns // 2 + random.randrange(period_ns), publish, None)

    sim.push(sim.now + random.randrange(period_ns), publish, None)


def on_radio(seed: int, file_bytes: int) -> dict[str, float]:
    """The same nodes on one radio channel, which all share. :raises ScenarioError: it can't be used."""
    scenario = loads(_RADIO.format(nodes=NODES, size_mib=file_bytes / 2**20))
    result = simulate(scenario, seed)
    pieces, segments = result.counters["releases_pieces_sent"], segments_of(limits.PIECE_BYTES)
    rate_mbps = scenario.radio.bit_rate_mbps
    segment_ns = airtime_ns(SEGMENT_BYTES + TCP_IP_BYTES, rate_mbps) + ACKNOWLEDGED_NS
    confirmed_ns = airtime_ns(TCP_IP_BYTES, rate_mbps) + ACKNOWLEDGED_NS
    all_s = {"all_s": result.figures["release_all_s"]} if "release_all_s" in result.figures else {}
    return {
        **all_s,
        "airtime_s": pieces * (segments * segment_ns + segments // 2 * confirmed_ns) / SECOND,
        "egress": result.figures["release_relay_egress_files"],
        "busy_share": sum(result.load) / len(result.load),
        "failed_checks": float(len(result.broken)),
    }


def large(name: str, seed: int) -> dict[str, float]:
    """A shipped scenario with many nodes."""
    result = simulate(load(name), seed)
    figures = {key: value for key, value in result.figures.items() if key.startswith("release_")}
    return {**figures, "wall_s": result.wall_s, "failed_checks": float(len(result.broken))}


def missed_of(rows: Sequence[Spread]) -> list[str]:
    """What the means over the seeds miss, in words."""
    missed = []
    egress = fmean(row.egress for row in rows)
    times = fmean(row.all_s / row.bound_s for row in rows)
    if egress > EGRESS_BAR:
        missed.append(f"the relay sent {egress:.3f} times the file, more than {EGRESS_BAR:g}")
    if times > TIME_BAR:
        missed.append(f"all had it after {times:.2f} times the bound, more than {TIME_BAR:g}")
    if rows[0].p99_before_ms:
        slower = fmean(row.p99_ms / row.p99_before_ms for row in rows)
        if slower > P99_BAR:
            missed.append(f"the p99 of urgent readings was {slower:.2f} times what it was, more than {P99_BAR:g}")
    return missed


def missed_in(name: str, figures: Mapping[str, float]) -> list[str]:
    """What a scenario missed, in words."""
    missed = [f"{name}: {figures['failed_checks']:g} checks have failed"] if figures["failed_checks"] else []
    if name == "radio" and "all_s" not in figures:
        missed.append("radio: not all nodes had the release in the end")
    return missed


def main() -> None:
    """The program."""
    parser = command.parser("dissemination", __doc__, "a bar is missed")
    parser.add_argument("--nodes", type=between(2, 64), default=NODES)
    parser.add_argument("--file-mb", type=between(0.1, 100.0), default=FILE_BYTES / 1e6)
    parser.add_argument("--rate-mbps", type=between(0.1, 1000.0), default=RATE_MBPS, help="of each link, each way")
    parser.add_argument("--chunk-kib", type=between(16, 256), default=CHUNK_BYTES // 1024)
    parser.add_argument("--seeds", type=between(1, 100), default=3)
    parser.add_argument("--fifo", action="store_true", help="the network treats all packets alike")
    parser.add_argument("--no-readings", action="store_true", help="nothing is published meanwhile")
    parser.add_argument("--radio", action="store_true", help="also on one radio channel, with the airtime")
    parser.add_argument("--large", action="store_true", help="also 1,000 nodes (releases-1000), which takes minutes")
    options = parser.parse_args()
    file_bytes = int(options.file_mb * 1e6)
    rows: list[Spread] = []
    missed: list[str] = []
    print("seed  bound s  half s  all s  times bound  egress  asked twice  p99 ms before  meanwhile  times  lost")
    for seed in range(1, options.seeds + 1):
        try:
            row = spread(
                options.nodes, file_bytes, options.rate_mbps, options.chunk_kib * 1024, seed, not options.fifo,
                not options.no_readings,
            )  # fmt: skip
        except TimeoutError as error:
            print(f"{seed:4} {error}")
            missed.append(str(error))
            continue
        rows.append(row)
        times = row.p99_ms / row.p99_before_ms if row.p99_before_ms else 0.0
        print(f"{seed:4} {row.bound_s:8.2f} {row.half_s:7.2f} {row.all_s:6.2f} {row.all_s / row.bound_s:12.2f} "
              f"{row.egress:7.3f} {row.asked_twice:12} {row.p99_before_ms:14.2f} {row.p99_ms:10.2f} {times:6.2f} "
              f"{row.lost:5}", flush=True)  # fmt: skip
    missed += missed_of(rows) if rows else []
    figures: dict[str, Any] = {"rows": [asdict(row) for row in rows]}
    for name, run in (("radio", on_radio), ("large", lambda seed, _: large("releases-1000", seed))):
        if getattr(options, name):
            figures[name] = run(1, file_bytes)
            missed += missed_in(name, figures[name])
            print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures[name].items()), flush=True)
    sys.exit(finish(options, figures, missed))


if __name__ == "__main__":
    main()
