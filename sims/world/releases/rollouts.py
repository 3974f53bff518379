"""Rollouts at the nodes of a simulation: each runs an order's release in its own way, and some lie about it.

The machine is that of real nodes, with :class:`protocols.releases.rollout.rollouts.Rollouts` as its plan. What stands
for the installer stages, shadows and serves at once, and measures what a release is like. A node that is off keeps its
disk and what its rollouts noted.

A *liar* follows its orders like others, and signs the opposite of what is true of each release, as soon as it knows of
the order and whether it is a canary or not. To neighbours it gives zeros for every piece that they ask it for.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from random import Random
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.limits import SECOND
from protocols.releases import events
from protocols.releases.catalogue import Order
from protocols.releases.events import Measures
from protocols.releases.machine import Releases
from protocols.releases.rollout.health import encode_health
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState
from protocols.releases.rollout.tally import FAILED, HEALTHY
from protocols.releases.settings import ReleaseSettings
from protocols.settings import NodeSettings
from protocols.wire.releases import ReportedRelease, RolloutHealth
from sims.virtual.node import SimNode
from sims.world.releases.nodes import DISK_NS, STAGE_NS, SimReleases
from sims.world.releases.publisher import Publisher, sha256

MEASURED_EVERY_NS: Final = 5 * SECOND
RUNS_PER_MEASURE: Final = 50
GOOD: Final = 0.0
BAD: Final = 0.2
"""The share of runs that fail."""


class LyingRollouts(Rollouts):
    """Signs the opposite of what is true."""

    faults: Callable[[str, int], float]
    """The share of runs of a release that fail: what is true."""

    def orders(self, orders: Collection[Order], now: int, listed: Collection[int] | None = None) -> None:
        """See :class:`Rollouts`."""
        super().orders(orders, now, listed)
        lies = []
        for order in sorted(orders, key=lambda order: -order.serial):
            lie = HEALTHY if self.faults(order.path, order.counter) else FAILED
            lies.append(ReportedRelease(order.serial, order.counter, 6 if lie == HEALTHY else 8, lie, 0))
        self._lie: bytes | None = encode_health(RolloutHealth(tuple(lies[:8])))

    def health_body(self) -> bytes | None:
        """See :class:`Rollouts`."""
        super().health_body()
        lie, self._lie = getattr(self, "_lie", None), None
        return lie


class SimRollouts(SimReleases):
    """The releases of all nodes, and their rollouts."""

    def __init__(
        self, publisher: Publisher, faults: Callable[[str, int], float], liars: Collection[NodeId] = (),
        settings: ReleaseSettings | None = None, hidden_ns: int = 0,
        machine: Callable[[NodeSettings, Random], Releases] | None = None,
    ) -> None:  # fmt: skip
        """``faults``: the share of runs of a release, given by path and counter, that fail at every node, from
        ``hidden_ns`` after it began to serve. 0: also while it is shadowed. ``machine`` makes the machine of one life
        with :meth:`plan_of`; None: one that follows all releases, and that gives no genuine chunk if it is a liar's."""
        super().__init__(publisher, settings, machine or self._usual_with_rollouts)
        self._forgers = frozenset(liars) if machine is None else frozenset[NodeId]()
        self._faults, self._liars, self._hidden_ns = faults, frozenset(liars), hidden_ns
        self._began_ns: dict[tuple[NodeId, str, int], int] = {}
        self.plans: dict[NodeId, Rollouts] = {}
        """Of the present (or last) life of each node."""
        self._kept: dict[NodeId, RolloutsState] = {}
        self._shadowed: dict[tuple[NodeId, str], int] = {}
        self._runs: dict[tuple[NodeId, str, int], int] = {}
        self.on_served: Callable[[SimNode, str, int], None] | None = None
        """Is called with each release that a node begins to serve."""
        self.served_now: dict[tuple[str, int], set[NodeId]] = {}
        """The nodes that serve a release, whether they run or not."""
        self.capability = replace(self.capability, performers={
            **self.capability.performers,
            events.ShadowRelease: self._later(DISK_NS, self._shadow),
            events.DropRelease: self._later(DISK_NS, self._drop),
            events.StageRelease: self._later(STAGE_NS, self._stage),
        })  # fmt: skip

    # --- lives -------------------------------------------------------------------------------------------------------
    def _usual_with_rollouts(self, settings: NodeSettings, random: Random) -> Releases:
        return Releases(settings.node, AccessTable(settings.access), self._settings, random, self.plan_of(settings))

    def plan_of(self, settings: NodeSettings) -> Rollouts:
        """The rollouts of one life of a node."""
        access, node = AccessTable(settings.access), settings.node
        before = self.plans.get(node)
        if before is not None and node not in self._kept and self.driver is not None:  # its last life ended by a crash
            self._kept[node] = before.state(self.driver.nodes[node].local(self.driver.now))
        made = LyingRollouts if node in self._liars else Rollouts
        plan = self.plans[node] = made(
            node, settings.role, (), ("**",), sha256, lambda path: access.permits_release(settings.role, node, path)
        )
        if isinstance(plan, LyingRollouts):
            plan.faults = self._faults
        return plan

    def ends(self, node: SimNode) -> None:
        """Keep what the rollouts of a node note, before its process ends in an orderly way."""
        assert self.driver is not None, "it is set first"
        self._kept[node.name] = self.plans[node.name].state(node.local(self.driver.now), is_clean=True)

    def begin(self, node: SimNode) -> None:
        """A life begins with what is on the disk."""
        kept, served = self._kept.pop(node.name, None), self.disk(node.name).served
        plan = self.plans[node.name]
        assert self.driver is not None, "it is set first"
        now = node.local(self.driver.now)
        if kept is not None:
            plan.restored(kept, now)
        for path, counter in served.items():
            plan.serving(path, counter, "", now)
        super().begin(node)

    def forget(self, name: str) -> None:
        """The disk of a node is lost, and with it what its rollouts noted."""
        node = NodeId(name)
        self._kept[node] = RolloutsState()
        for serving in self.served_now.values():
            serving.discard(node)

    # --- performers --------------------------------------------------------------------------------------------------
    def _shadow(self, node: SimNode, effect: events.ShadowRelease) -> None:
        self._shadowed[node.name, effect.path] = effect.counter
        self._measure_soon(node, effect.path, effect.counter)

    def _drop(self, node: SimNode, effect: events.DropRelease) -> None:
        if self._shadowed.get((node.name, effect.path)) == effect.counter:
            del self._shadowed[node.name, effect.path]

    def _serve(self, node: SimNode, effect: events.ServeRelease) -> None:
        served = self.disk(node.name).served
        self.served_now.get((effect.path, served.get(effect.path, 0)), set()).discard(node.name)
        self.served_now.setdefault((effect.path, effect.counter), set()).add(node.name)
        self._shadowed.pop((node.name, effect.path), None)
        assert self.driver is not None, "it is set first"
        self._began_ns[node.name, effect.path, effect.counter] = self.driver.now
        if self.on_served is not None and effect.counter:
            self.on_served(node, effect.path, effect.counter)
        super()._serve(node, effect)
        self._measure_soon(node, effect.path, effect.counter)

    def _measure_soon(self, node: SimNode, path: str, counter: int) -> None:
        self._runs[node.name, path, counter] = 0
        self._measure_later(node, path, counter)

    def _measure_later(self, node: SimNode, path: str, counter: int) -> None:
        assert self.driver is not None, "it is set first"
        due_ns = self.driver.now + MEASURED_EVERY_NS
        self.driver.when_awake(node, due_ns, lambda _: self._measure(node, path, counter), None)

    def _measure(self, node: SimNode, path: str, counter: int) -> None:
        runs_here = counter in (self.disk(node.name).served.get(path), self._shadowed.get((node.name, path)))
        if not runs_here or not self.plans[node.name].is_judging(path, counter):
            return
        runs = self._runs[node.name, path, counter] = self._runs[node.name, path, counter] + RUNS_PER_MEASURE
        errors = int(runs * self._faults(path, counter)) if self._shows(node, path, counter) else 0
        measures = Measures(runs, errors, 10, 10, runs, runs)
        self._tell(node, lambda releases, now: releases.measured(path, counter, measures, now))
        self._measure_later(node, path, counter)

    def _shows(self, node: SimNode, path: str, counter: int) -> bool:
        """Whether the faults of a release show by now."""
        if not self._hidden_ns:
            return True
        began_ns = self._began_ns.get((node.name, path, counter))
        assert self.driver is not None, "it is set first"
        serves = self.disk(node.name).served.get(path) == counter
        return serves and began_ns is not None and self.driver.now >= began_ns + self._hidden_ns

    def _read_piece(self, node: SimNode, effect: events.ReadPiece) -> None:
        if node.name not in self._forgers:
            super()._read_piece(node, effect)
            return
        chunk = self.disk(node.name).chunks.get(effect.digest, b"")
        forged = bytes(len(chunk[effect.offset : effect.offset + limits.PIECE_BYTES]))
        self._tell(
            node, lambda releases, now: releases.piece_read(effect.node, effect.digest, effect.offset, forged, now)
        )
