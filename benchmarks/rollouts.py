"""``python -m benchmarks.rollouts``: how far a bad release gets among a thousand nodes, and how far a good one.

A thousand nodes meet seldom: in each epoch of half a minute, every roadside unit meets three vehicles, and one vehicle
in ten meets another one. One node in twenty lies: it signs the opposite of what is true of a release, canary or not,
and gives neighbours no genuine chunks. One in five is parked from the beginning and comes back late. There is no relay:
one roadside unit is seeded with a release and an order, and the rest goes from node to node. The bad release shows its
faults only when it has served for half of the soak time.

Bars: a bad release is never served by more nodes than the canaries and 1 %; a good one reaches 99 % in the same
scenario.

Usually what the nodes decide with is that of real nodes, and what carries metadata, words and chunks between nodes that
meet is simple (:mod:`sims.world.releases.carried`): many seeds take a minute. With ``--whole`` every node is a whole
engine with gossip and chunks by pull (:mod:`sims.world.releases.rollouts`), which takes an hour for a thousand nodes.

It is simulated in virtual time, so the figures are the same on every machine. It prints a table, writes
``build/rollouts.json``, and ends with status 1 with ``--check`` when a bar is missed.
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from random import Random
from typing import Final, Protocol

from msgspec.structs import replace

from benchmarks import command
from benchmarks.command import finish
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.membership.settings import MembershipSettings
from protocols.releases.catalogue import Listed, Order
from protocols.releases.rollout.rollouts import Rollouts
from protocols.releases.rollout.tally import quorums_of
from protocols.settings import NodeSettings
from sims.media.meetings import Meetings
from sims.virtual.driver import SimDriver
from sims.world.authors import Authors
from sims.world.releases.carried import CarriedFleet, Signed
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
LONGEST_S: Final = 4_500
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
    reached_s: float | None = None
    """When 99 % of all nodes served it, after it was published."""
    decided_s: float | None = None
    """When half of all nodes had concluded that it is promoted or halted."""
    decisions: dict[str, int] = field(default_factory=dict)
    """What the nodes conclude in the end."""
    virtual_s: float = 0
    took_s: float = 0


@dataclass(frozen=True)
class Cast:
    """Who is who."""

    rsus: tuple[NodeId, ...]
    vehicles: tuple[NodeId, ...]
    canaries: frozenset[NodeId]
    liars: frozenset[NodeId]
    parked: frozenset[NodeId]

    @property
    def names(self) -> tuple[NodeId, ...]:
        """All nodes."""
        return self.rsus + self.vehicles

    @property
    def order(self) -> Order:
        """Canaries try release 1. Until then all serve the model of their own file."""
        canaries = tuple(sorted(self.canaries))
        return Order(serial=1, path=PATH, counter=1, canaries=canaries, soak_s=SOAK_S, silence_s=SILENCE_S)


def cast(nodes: int, canaries: int, seed: int) -> Cast:
    """Choose by chance. Canaries are vehicles, of which some lie and some are parked, as it happens."""
    random = Random(f"{seed}/cast")
    rsus = max(1, int(nodes * RSU_SHARE))
    names = [NodeId(f"r{n}" if n < rsus else f"v{n}") for n in range(nodes)]
    vehicles = names[rsus:]
    return Cast(
        tuple(names[:rsus]),
        tuple(vehicles),
        frozenset(random.sample(vehicles, canaries)),
        frozenset(random.sample(names[1:], int(nodes * LIAR_SHARE))),
        frozenset(random.sample(vehicles, int(nodes * PARKED_SHARE))),
    )


class World(Protocol):
    """What carries what the nodes know."""

    def publish(self) -> None:
        """Give release 1 and its order to one roadside unit."""

    def park(self, name: NodeId) -> None:
        """Switch a node off."""

    def wake(self, name: NodeId) -> None:
        """Switch it on again."""

    def meet(self, groups: Sequence[Sequence[NodeId]]) -> None:
        """These meet for an epoch, and nobody else."""

    def run_for(self, duration_ns: int) -> None:
        """Let time pass."""

    def serving(self) -> set[NodeId]:
        """The nodes that serve release 1."""

    def plans(self) -> Sequence[Rollouts]:
        """Those of all nodes."""


class CarriedWorld:
    """A :class:`World` without engines."""

    def __init__(self, people: Cast, share_failing: float) -> None:
        roles = [(name, Role.RSU if name in people.rsus else Role.VEHICLE) for name in people.names]
        self._fleet = CarriedFleet(roles, people.liars, lambda path, counter: share_failing, SOAK_S * SECOND // 2)
        self._people = people

    def publish(self) -> None:
        """See :class:`World`."""
        signed = Signed(1, (Listed(PATH, 1, bytes(32), 100),), (self._people.order,))
        self._fleet.learn(self._fleet.nodes[self._people.rsus[0]], signed, holds=True)

    def park(self, name: NodeId) -> None:
        """See :class:`World`."""
        self._fleet.park(name)

    def wake(self, name: NodeId) -> None:
        """See :class:`World`."""
        self._fleet.wake(name)

    def meet(self, groups: Sequence[Sequence[NodeId]]) -> None:
        """See :class:`World`."""
        for group in groups:
            self._fleet.meet(group)

    def run_for(self, duration_ns: int) -> None:
        """See :class:`World`."""
        self._fleet.run_for(duration_ns)

    def serving(self) -> set[NodeId]:
        """See :class:`World`."""
        return self._fleet.served_now.setdefault((PATH, 1), set())

    def plans(self) -> Sequence[Rollouts]:
        """See :class:`World`."""
        return [node.rollouts for node in self._fleet.nodes.values()]


class WholeWorld:
    """A :class:`World` of whole engines."""

    def __init__(self, people: Cast, share_failing: float, seed: int) -> None:
        self._people, self._publisher = people, Publisher(seed)
        self._links = Meetings(len(people.names), DELAY_NS)
        self._releases = SimRollouts(
            self._publisher, lambda path, counter: share_failing, people.liars, hidden_ns=SOAK_S * SECOND // 2
        )
        authors: list[Authors] = []

        def adjust(settings: NodeSettings) -> NodeSettings:
            return replace(settings, seal=authors[0].seal(settings.node))

        membership = MembershipSettings(heartbeat_interval_ns=3 * SECOND, suspect_after_silence_ns=8 * SECOND)
        self._sim = self._releases.driver = SimDriver(
            seed, settings=membership, links=self._links, adjust=adjust, capabilities=(self._releases.capability,)
        )
        authors.append(Authors(self._sim, Random(f"{seed}/authors")))
        for name in people.names:
            self._sim.add(name, Role.RSU if name in people.rsus else Role.VEHICLE)

    def publish(self) -> None:
        """See :class:`World`."""
        self._publisher.release(PATH, 1, FILE_BYTES, order=False)
        self._publisher.order(self._people.order)
        self._publisher.sign()
        self._releases.seed(self._sim.nodes[self._people.rsus[0]])

    def park(self, name: NodeId) -> None:
        """See :class:`World`."""
        self._releases.ends(self._sim.nodes[name])
        self._sim.kill(name)

    def wake(self, name: NodeId) -> None:
        """See :class:`World`."""
        self._sim.restart(name)
        self._releases.begin(self._sim.nodes[name])

    def meet(self, groups: Sequence[Sequence[NodeId]]) -> None:
        """See :class:`World`."""
        self._links.part(range(len(self._sim.numbered)))
        for group in groups:
            nodes = [self._sim.nodes[name] for name in group]
            self._links.meet(node.number for node in nodes)
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        self._sim.hint(node, other.name, other.name)

    def run_for(self, duration_ns: int) -> None:
        """See :class:`World`."""
        self._sim.run_for(duration_ns)

    def serving(self) -> set[NodeId]:
        """See :class:`World`."""
        return self._releases.served_now.setdefault((PATH, 1), set())

    def plans(self) -> Sequence[Rollouts]:
        """See :class:`World`."""
        return list(self._releases.plans.values())


def _groups(people: Cast, driving: list[NodeId], random: Random) -> list[list[NodeId]]:
    """Who meets whom in one epoch."""
    random.shuffle(driving)
    groups = [[rsu, *(driving.pop() for _ in range(min(RSU_MEETS, len(driving))))] for rsu in people.rsus]
    return groups + [[driving.pop(), driving.pop()] for _ in range(int(len(driving) * PAIRED_SHARE) // 2)]


def fate(nodes: int, canaries: int, failing: float, seed: int, longest_s: int, whole: bool, name: str = "") -> Fate:
    """Publish a release that fails in a share of its runs, and look what becomes of it. ``name``: print about it."""
    began = time.perf_counter()
    people = cast(nodes, canaries, seed)
    world: World = WholeWorld(people, failing, seed) if whole else CarriedWorld(people, failing)
    random = Random(f"{seed}/meetings")
    for parked in sorted(people.parked):
        world.park(parked)
    driving = [vehicle for vehicle in people.vehicles if vehicle not in people.parked]
    world.publish()
    found = Fate(nodes, canaries, len(people.canaries & people.liars), len(people.canaries & people.parked))
    ever, passed_s, is_back = set[NodeId](), 0, False
    while passed_s < longest_s:
        if not is_back and passed_s >= RETURN_S:
            for parked in sorted(people.parked):
                world.wake(parked)
            driving, is_back = list(people.vehicles), True
        world.meet(_groups(people, list(driving), random))
        for _ in range(EPOCH_S):
            world.run_for(SECOND)
            serving = world.serving()
            ever |= serving
            found.most = max(found.most, len(serving))
            found.most_others = max(found.most_others, len(serving - people.canaries))
        passed_s += EPOCH_S
        decided = Counter(str(plan.decision(1) or "unknown") for plan in world.plans())
        if found.reached_s is None and found.most >= REACHED_BAR * nodes:
            found.reached_s = passed_s
        if found.decided_s is None and decided["promoted"] + decided["halted"] >= nodes / 2:
            found.decided_s = passed_s
        found.at_end, found.decisions = len(world.serving()), dict(sorted(decided.items()))
        if name and passed_s % (10 * EPOCH_S) == 0:
            print(f"{name} {passed_s:6.0f} s: {found.at_end:4} serve it, {found.decisions}", flush=True)
        if is_back and max(decided["promoted"], decided["halted"]) == nodes and found.at_end in (0, nodes):
            break
    found.ever, found.virtual_s, found.took_s = len(ever), passed_s, time.perf_counter() - began
    return found


def missed(bad: Fate, good: Fate) -> list[str]:
    """The bars that were missed, in words."""
    sentences = []
    most = bad.canaries + OVER_BAR * bad.nodes
    if bad.ever > most:
        sentences.append(f"the bad release was served by {bad.ever} nodes, and {most:g} are allowed")
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
    parser.add_argument("--seed", type=int, default=1, help="the first one; default: %(default)s")
    parser.add_argument("--seeds", type=command.between(1, 1_000), default=5, help="how many; default: %(default)s")
    parser.add_argument("--whole", action="store_true", help="simulate whole engines, of one seed")
    parser.add_argument("--longest-s", type=int, default=LONGEST_S, help="virtual seconds; default: %(default)s")
    options = parser.parse_args()
    nodes, canaries = int(options.nodes), int(options.canaries)
    seeds = range(options.seed, options.seed + (1 if options.whole else int(options.seeds)))
    with command.measuring("the fate of releases"), ProcessPoolExecutor(2, get_context("spawn")) as pool:
        runs = [
            (seed, [
                pool.submit(fate, nodes, canaries, share, seed, options.longest_s, options.whole,
                            name if options.whole else "")
                for name, share in (("bad ", BAD), ("good", GOOD))
            ])
            for seed in seeds
        ]  # fmt: skip
        fates = [(seed, pair[0].result(), pair[1].result()) for seed, pair in runs]
    quorums = quorums_of(cast(nodes, canaries, 1).order)
    print(
        f"{nodes} nodes, {int(nodes * LIAR_SHARE)} of them liars, {int(nodes * PARKED_SHARE)} parked for {RETURN_S} s; "
        f"{canaries} canaries, of which {quorums.promote} promote and {quorums.halt} halt"
    )
    print("seed      lying  parked  most  others   ever    end    decided      99 %   (canaries; nodes that serve it)")
    faults = []
    for seed, bad, good in fates:
        for name, one in (("bad", bad), ("good", good)):
            decided, reached = (f"{t:.0f} s" if t is not None else "-" for t in (one.decided_s, one.reached_s))
            print(
                f"{seed:<4} {name:4}{one.lying_canaries:>6}{one.parked_canaries:>8}{one.most:>6}{one.most_others:>8}"
                f"{one.ever:>7}{one.at_end:>7}{decided:>11}{reached:>10}"
            )
        faults += [f"{sentence} (seed {seed})" for sentence in missed(bad, good)]
    figures = {
        "whole": options.whole,
        "quorums": quorums._asdict(),
        "runs": [{"seed": seed, "bad": asdict(bad), "good": asdict(good)} for seed, bad, good in fates],
    }
    return finish(options, figures, faults)


if __name__ == "__main__":
    sys.exit(main())
