"""``python -m benchmarks.rollouts``: how far a bad release gets among a thousand nodes, and how far a good one.

A thousand nodes meet seldom: in each epoch, every roadside unit meets three vehicles, and one vehicle in ten meets
another one. One node in twenty lies: it signs the opposite of what is true of a release, canary or not, and gives
neighbours zeros instead of chunks. One in five is parked from the beginning and comes back late. There is no relay: one
roadside unit is seeded with a release and an order, and everything else is done by the machines of real nodes: gossip
of news and of what canaries say, chunks by pull, shadow, soak, promotion or halt. The bad release shows its faults only
when it has served for half of the soak time.

Bars: a bad release is never served by more nodes than the canaries and 1 %; a good one reaches 99 % in the same
scenario.

It is simulated in virtual time, so the figures are the same on every machine. It prints a table, writes
``build/rollouts.json``, and ends with status 1 with ``--check`` when a bar is missed.
"""

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from random import Random
from typing import Final

from msgspec.structs import replace

from benchmarks import command
from benchmarks.command import finish
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.membership.settings import MembershipSettings
from protocols.releases.catalogue import Order
from protocols.releases.rollout.tally import quorums_of
from protocols.settings import NodeSettings
from sims.media.meetings import Meetings
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.authors import Authors
from sims.world.releases.publisher import Publisher
from sims.world.releases.rollouts import BAD, GOOD, SimRollouts

PATH: Final = "models/plate"
DELAY_NS: Final = 5 * MS
EPOCH_S: Final = 30
FILE_BYTES: Final = 200_000
RSU_SHARE: Final = 0.02
RSU_MEETS: Final = 3
PAIRED_SHARE: Final = 0.1
LIAR_SHARE: Final = 0.05
PARKED_SHARE: Final = 0.2
RETURN_S: Final = 1_500
LONGEST_S: Final = 3 * 3_600
SOAK_S: Final = 600
SILENCE_S: Final = 3_600
OVER_BAR: Final = 0.01
REACHED_BAR: Final = 0.99


@dataclass(slots=True)
class Fate:
    """What became of one release."""

    nodes: int
    canaries: int
    lying_canaries: int
    parked_canaries: int
    most: int = 0
    """The most nodes that served it at one time …"""
    most_others: int = 0
    """… and the most of them that are no canaries."""
    ever: int = 0
    """Nodes that served it at any time."""
    at_end: int = 0
    half_s: float | None = None
    reached_s: float | None = None
    """When half of all nodes, and 99 % of them, served it, after it was published."""
    decided_s: float | None = None
    """When half of all nodes had concluded that it is promoted or halted."""
    decisions: dict[str, int] = field(default_factory=dict)
    """What the nodes conclude in the end."""
    virtual_s: float = 0
    took_s: float = 0


class Region:
    """The nodes of one scenario, and their meetings."""

    def __init__(self, nodes: int, canaries: int, share_failing: float, seed: int) -> None:
        self._random = Random(f"{seed}/region")
        rsus = max(1, int(nodes * RSU_SHARE))
        names = [NodeId(f"r{n}" if n < rsus else f"v{n}") for n in range(nodes)]
        # Canaries are vehicles that drive or are parked, and may be liars, as chance has it.
        vehicles = names[rsus:]
        self.canaries = frozenset(self._random.sample(vehicles, canaries))
        self.liars = frozenset(self._random.sample(names[1:], int(nodes * LIAR_SHARE)))
        self.parked = frozenset(self._random.sample(vehicles, int(nodes * PARKED_SHARE)))
        self.publisher = Publisher(seed)
        self.links = Meetings(nodes, DELAY_NS)
        faults = {1: GOOD, 2: share_failing}
        self.releases = SimRollouts(
            self.publisher, lambda path, counter: faults[counter], self.liars, hidden_ns=SOAK_S * SECOND // 2
        )
        authors: list[Authors] = []

        def adjust(settings: NodeSettings) -> NodeSettings:
            return replace(settings, seal=authors[0].seal(settings.node))

        membership = MembershipSettings(heartbeat_interval_ns=3 * SECOND, suspect_after_silence_ns=8 * SECOND)
        self.sim = self.releases.driver = SimDriver(
            seed, settings=membership, links=self.links, adjust=adjust, capabilities=(self.releases.capability,)
        )
        authors.append(Authors(self.sim, Random(f"{seed}/authors")))
        self._rsus = [self.sim.add(name, Role.RSU) for name in names[:rsus]]
        self._vehicles = [self.sim.add(name, Role.VEHICLE) for name in vehicles]
        self.first = Order(serial=1, path=PATH, counter=1)
        self.order = Order(
            serial=2, path=PATH, counter=2, canaries=tuple(sorted(self.canaries)), soak_s=SOAK_S, silence_s=SILENCE_S
        )

    def begin(self) -> None:
        """Everybody serves release 1, and those who are to be parked go to sleep."""
        self.publisher.release(PATH, 1, FILE_BYTES, order=False)
        self.publisher.order(self.first)
        self.publisher.sign()
        for node in self.sim.numbered:
            self.releases.seed(node)
        self.sim.run_for(30 * SECOND)
        assert len(self.releases.served_now[PATH, 1]) == len(self.sim.numbered), "all begin with release 1"
        for name in sorted(self.parked):
            node = self.sim.nodes[name]
            self.releases.ends(node)
            self.sim.kill(name)

    def publish(self) -> None:
        """Give release 2 and its order to one roadside unit."""
        self.publisher.release(PATH, 2, FILE_BYTES, order=False)
        self.publisher.order(self.order)
        self.publisher.sign()
        self.releases.seed(self._rsus[0])

    def wake(self) -> None:
        """The parked come back."""
        for name in sorted(self.parked):
            self.sim.restart(name)
            self.releases.begin(self.sim.nodes[name])

    def meet(self) -> None:
        """The meetings of one epoch."""
        self.links.part(range(len(self.sim.numbered)))
        driving = [node for node in self._vehicles if node.running]
        self._random.shuffle(driving)
        for rsu in self._rsus:
            self._meet([rsu, *(driving.pop() for _ in range(min(RSU_MEETS, len(driving))))])
        for _ in range(int(len(driving) * PAIRED_SHARE) // 2):
            self._meet([driving.pop(), driving.pop()])

    def _meet(self, nodes: list[SimNode]) -> None:
        self.links.meet(node.number for node in nodes)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    self.sim.hint(node, other.name, other.name)


def fate(nodes: int, canaries: int, share_failing: float, seed: int, longest_s: int, name: str = "") -> Fate:
    """Publish a release that fails in a share of its runs, and look what becomes of it. ``name``: print about it."""
    began = time.perf_counter()
    region = Region(nodes, canaries, share_failing, seed)
    region.begin()
    region.publish()
    sim, releases = region.sim, region.releases
    found = Fate(nodes, canaries, len(region.canaries & region.liars), len(region.canaries & region.parked))
    began_ns, ever, is_back = sim.now, set[NodeId](), False
    while sim.now - began_ns < longest_s * SECOND:
        passed_s = (sim.now - began_ns) / SECOND
        if not is_back and passed_s >= RETURN_S:
            region.wake()
            is_back = True
        region.meet()
        serving = releases.served_now.setdefault((PATH, 2), set())
        for _ in range(EPOCH_S):
            sim.run_for(SECOND)
            ever |= serving
            found.most = max(found.most, len(serving))
            found.most_others = max(found.most_others, len(serving - region.canaries))
        passed_s = (sim.now - began_ns) / SECOND
        decided = Counter(str(plan.decision(2) or "unknown") for plan in releases.plans.values())
        if found.half_s is None and len(serving) >= nodes / 2:
            found.half_s = passed_s
        if found.reached_s is None and len(serving) >= REACHED_BAR * nodes:
            found.reached_s = passed_s
        if found.decided_s is None and decided["promoted"] + decided["halted"] >= nodes / 2:
            found.decided_s = passed_s
        found.at_end, found.decisions = len(serving), dict(sorted(decided.items()))
        if name and int(passed_s) % (10 * EPOCH_S) == 0:
            print(f"{name} {passed_s:6.0f} s: {len(serving):4} serve it, {found.decisions}", flush=True)
        if is_back and max(decided["promoted"], decided["halted"]) == nodes and len(serving) in (0, nodes):
            break
    found.ever, found.virtual_s = len(ever), (sim.now - began_ns) / SECOND
    found.took_s = time.perf_counter() - began
    return found


def missed(bad: Fate, good: Fate) -> list[str]:
    """The bars that were missed, in words."""
    sentences = []
    most = bad.canaries + OVER_BAR * bad.nodes
    if bad.most > most or bad.ever > most:
        sentences.append(f"the bad release was served by {bad.most} nodes at one time and {bad.ever} ever, of {most:g}")
    if bad.at_end:
        sentences.append(f"the bad release is still served by {bad.at_end} nodes")
    if good.at_end < REACHED_BAR * good.nodes:
        sentences.append(f"the good release reached {good.at_end} of {good.nodes} nodes")
    return sentences


def main() -> int:
    """The command."""
    parser = command.parser("rollouts", __doc__, "a bad release gets too far, or a good one not far enough")
    parser.add_argument("--nodes", type=command.between(20, 10_000), default=1_000, help="default: %(default)s")
    parser.add_argument("--canaries", type=command.between(1, 64), default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--longest-s", type=int, default=LONGEST_S, help="virtual seconds; default: %(default)s")
    options = parser.parse_args()
    nodes, canaries = int(options.nodes), int(options.canaries)
    with command.measuring("the fate of releases"), ProcessPoolExecutor(2, get_context("spawn")) as pool:
        fates = [
            pool.submit(fate, nodes, canaries, share, options.seed, options.longest_s, name)
            for name, share in (("bad ", BAD), ("good", GOOD))
        ]
        bad, good = (one.result() for one in fates)
    quorums = quorums_of(
        Order(serial=1, path=PATH, counter=1, canaries=tuple(NodeId(f"c{n}") for n in range(canaries)))
    )
    print(
        f"{nodes} nodes, {int(nodes * LIAR_SHARE)} of them liars, {int(nodes * PARKED_SHARE)} parked for {RETURN_S} s; "
        f"{canaries} canaries, of which {bad.lying_canaries} lie and {bad.parked_canaries} are parked; "
        f"{quorums.promote} promote and {quorums.halt} halt"
    )
    print(
        f"{'':8}{'canaries':>10}{'others':>8}{'most':>6}{'ever':>6}{'end':>6}{'decided':>10}{'99 %':>10}{'virtual':>10}"
    )
    for name, one in (("bad", bad), ("good", good)):
        decided, reached = (f"{t:.0f} s" if t is not None else "-" for t in (one.decided_s, one.reached_s))
        print(
            f"{name:8}{one.most - one.most_others:>10}{one.most_others:>8}{one.most:>6}{one.ever:>6}{one.at_end:>6}"
            f"{decided:>10}{reached:>10}{one.virtual_s:>8.0f} s"
        )
    figures = {"seed": options.seed, "quorums": quorums._asdict(), "bad": asdict(bad), "good": asdict(good)}
    return finish(options, figures, missed(bad, good))


if __name__ == "__main__":
    sys.exit(main())
