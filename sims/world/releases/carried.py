"""Rollouts without engines: many nodes at little cost, for how far a release gets and not for how long it takes.

Each node has the :class:`protocols.releases.rollout.rollouts.Rollouts` of real nodes. What stands for everything below
is simple and generous: nodes that meet know at once what the other knows of metadata and of what authors signed, and
hold a release that they want as soon as they have met somebody who holds it and gives genuine chunks. Liars lie as in
:mod:`sims.world.releases.rollouts`.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from protocols.base.ids import NodeId, Role
from protocols.base.limits import SECOND
from protocols.machine import HeardEntry
from protocols.releases.catalogue import Listed, Order
from protocols.releases.events import DropRelease, Measures, ServeRelease, ShadowRelease, StageRelease
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState
from protocols.wire.releases import HEALTH_KIND
from sims.world.releases.publisher import sha256
from sims.world.releases.rollouts import MEASURED_EVERY_NS, RUNS_PER_MEASURE, LyingRollouts

_Release = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Signed:
    """Metadata, and everything that it lists."""

    version: int
    releases: tuple[Listed, ...]
    orders: tuple[Order, ...]


@dataclass(slots=True)
class CarriedNode:
    """One node."""

    name: NodeId
    role: Role
    rollouts: Rollouts
    lies: bool
    running: bool = True
    kept: RolloutsState = field(default_factory=RolloutsState)
    """What its rollouts noted when it was parked."""
    signed: Signed = field(default_factory=lambda: Signed(0, (), ()))
    entries: dict[NodeId, HeardEntry] = field(default_factory=dict)
    held: set[_Release] = field(default_factory=set)
    served: dict[str, int] = field(default_factory=dict)
    shadowed: dict[str, int] = field(default_factory=dict)
    began_ns: dict[_Release, int] = field(default_factory=dict)
    runs: dict[_Release, int] = field(default_factory=dict)


class CarriedFleet:
    """All nodes, and one time for all."""

    def __init__(
        self, nodes: Iterable[tuple[NodeId, Role]], liars: Collection[NodeId], faults: Callable[[str, int], float],
        hidden_ns: int = 0,
    ) -> None:  # fmt: skip
        """``faults`` and ``hidden_ns`` are as in :class:`sims.world.releases.rollouts.SimRollouts`."""
        self.now = 0
        self._faults, self._hidden_ns = faults, hidden_ns
        self.nodes = {name: self._node(name, role, name in liars) for name, role in nodes}
        self.served_now: dict[_Release, set[NodeId]] = {}

    def _node(self, name: NodeId, role: Role, lies: bool) -> CarriedNode:
        rollouts = (LyingRollouts if lies else Rollouts)(name, role, (), ("**",), sha256)
        if isinstance(rollouts, LyingRollouts):
            rollouts.faults = self._faults
        return CarriedNode(name, role, rollouts, lies)

    # --- what happens ------------------------------------------------------------------------------------------------
    def learn(self, node: CarriedNode, signed: Signed, *, holds: bool = False) -> None:
        """A node verifies newer metadata. ``holds``: and holds all releases that it lists, as after an import."""
        if signed.version > node.signed.version:
            node.signed = signed
            if holds:
                node.held.update((listed.path, listed.counter) for listed in signed.releases)
            node.rollouts.releases(signed.releases, self.now)
            node.rollouts.orders(signed.orders, self.now)
            self._settle(node)

    def meet(self, names: Iterable[NodeId]) -> None:
        """These nodes tell each other all that they know, and give each other releases."""
        nodes = [self.nodes[name] for name in names]
        newest = max((node.signed for node in nodes), key=lambda signed: signed.version)
        entries: dict[NodeId, HeardEntry] = {}
        for node in nodes:
            for author, entry in node.entries.items():
                if author not in entries or entry.version > entries[author].version:
                    entries[author] = entry
        for node in nodes:
            self.learn(node, newest)
            for author, entry in entries.items():
                if author not in node.entries or entry.version > node.entries[author].version:
                    node.entries[author] = entry
                    node.rollouts.heard(entry, self.now)
            given = set[_Release]().union(*(other.held for other in nodes if not other.lies and other is not node))
            node.held |= given & node.rollouts.wanted()
            self._settle(node)

    def park(self, name: NodeId) -> None:
        """A node is switched off in an orderly way."""
        node = self.nodes[name]
        node.running, node.kept = False, node.rollouts.state(self.now, is_clean=True)

    def wake(self, name: NodeId) -> None:
        """A node that was parked starts with what it had."""
        node = self.nodes[name]
        node.rollouts, node.running = self._node(name, node.role, node.lies).rollouts, True
        node.shadowed.clear()
        node.rollouts.restored(node.kept, self.now)
        for path, counter in node.served.items():
            node.rollouts.serving(path, counter, "", self.now)
        node.rollouts.releases(node.signed.releases, self.now)
        node.rollouts.orders(node.signed.orders, self.now)
        self._settle(node)

    def run_for(self, duration_ns: int) -> None:
        """Time passes, in steps of a second."""
        until = self.now + duration_ns
        while self.now < until:
            self.now += SECOND
            measures = self.now % MEASURED_EVERY_NS == 0
            for node in self.nodes.values():
                if node.running:
                    if measures:
                        self._measure(node)
                    if self.now >= node.rollouts.next_timer_at():
                        node.rollouts.handle_timer(self.now)
                        self._settle(node)

    # --- what stands for a node --------------------------------------------------------------------------------------
    def _settle(self, node: CarriedNode) -> None:
        rollouts = node.rollouts
        while True:
            for path, counter in sorted(rollouts.wanted() & node.held):
                rollouts.complete(path, counter, self.now)
            effects = rollouts.outgoing()
            if not effects:
                break
            for effect in effects:
                self._perform(node, effect)
        rollouts.events()
        body = rollouts.health_body()
        if body is not None:
            before = node.entries.get(node.name)
            version = 1 if before is None else before.version + 1
            node.entries[node.name] = HeardEntry(node.name, HEALTH_KIND, version, 0, body, node.name)

    def _perform(self, node: CarriedNode, effect: StageRelease | ShadowRelease | ServeRelease | DropRelease) -> None:
        path, counter = effect.path, effect.counter
        match effect:
            case StageRelease():
                node.rollouts.staged(path, counter, "", self.now)
            case ShadowRelease():
                node.shadowed[path] = counter
                node.runs[path, counter] = 0
            case ServeRelease():
                self.served_now.get((path, node.served.get(path, 0)), set()).discard(node.name)
                self.served_now.setdefault((path, counter), set()).add(node.name)
                node.shadowed.pop(path, None)
                node.served[path], node.began_ns[path, counter] = counter, self.now
                node.runs[path, counter] = 0
                node.rollouts.serving(path, counter, "", self.now)
            case DropRelease():
                node.held.discard((path, counter))
                if node.shadowed.get(path) == counter:
                    del node.shadowed[path]

    def _measure(self, node: CarriedNode) -> None:
        for path, counter in [*node.served.items(), *node.shadowed.items()]:
            if not node.rollouts.is_judging(path, counter):
                continue
            runs = node.runs[path, counter] = node.runs[path, counter] + RUNS_PER_MEASURE
            shows = not self._hidden_ns or (
                node.served.get(path) == counter and self.now >= node.began_ns[path, counter] + self._hidden_ns
            )
            errors = int(runs * self._faults(path, counter)) if shows else 0
            node.rollouts.measured(path, counter, Measures(runs, errors, 10, 10, runs, runs), self.now)
            self._settle(node)
