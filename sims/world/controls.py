"""What faults do to a simulated world: :class:`sims.world.faults.Controls` on its nodes, links and relay."""

from collections.abc import Callable, Sequence

from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, PeerIdentity
from protocols.gossip.entries import Stored
from sims.world.world import World


class WorldControls:
    """The controls of one world. The methods of ``Controls`` describe what each method does."""

    def __init__(self, world: World) -> None:
        self._world, self._driver = world, world.driver
        self._full: set[int] = set()
        """Numbers of the nodes whose disks are full."""
        self._disks: dict[int, tuple[int, list[Stored]]] = {}
        """By number of a crashed node: when its entries were written, and the entries."""

    @property
    def names(self) -> Sequence[str]:
        """See :class:`sims.world.faults.Controls`."""
        return self._world.names

    @property
    def mesh(self) -> MeshName:
        """See :class:`sims.world.faults.Controls`."""
        return self._world.mesh

    @property
    def now(self) -> int:
        """See :class:`sims.world.faults.Controls`."""
        return self._driver.now

    def running(self, name: str) -> bool:
        """See :class:`sims.world.faults.Controls`."""
        return self._world.running(name)

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._driver.at(delay_ns, action)

    # --- processes -------------------------------------------------------------------------------------------------
    def crash(self, name: str) -> None:
        """See :class:`sims.world.faults.Controls`."""
        world = self._world
        self._driver.settle()
        for hook in world.on_crashing:
            hook(name)
        world.lost_with_nodes += sum(view.waiting_readings for view in world.peers(name))
        node = world.node(name)
        if node.number not in self._full:
            self._disks[node.number] = self.now, node.engine.gossip.stored(node.local(self.now))
        self._driver.kill(name)

    def restart(self, name: str, keep_disk: bool) -> None:
        """See :class:`sims.world.faults.Controls`. The incarnation is the larger of the last one on disk + 1 and the
        clock in seconds, as in a real node."""
        node = self._world.node(name)
        clock_s = (node.local(self.now) + node.utc_less_mono_ns) // limits.SECOND
        last = int(node.engine.settings.incarnation) if keep_disk else 0
        if not keep_disk:
            self._world.records.lose_disk(name)
            if self._world.releases is not None:
                self._world.releases.lose_disk(name)
            if node.number in self._world.stages:
                self._world.stages[node.number].lose_disk()
        self._driver.restart(name, Incarnation(max(last + 1, clock_s)))
        written_ns, stored = self._disks.pop(node.number, (self.now, []))
        if keep_disk and stored:
            older = [entry._replace(age_ns=entry.age_ns + self.now - written_ns) for entry in stored]
            self._driver.act(node, lambda engine, now: engine.gossip.restore(older, now))

    def slow(self, name: str, factor: float) -> None:
        """See :class:`sims.world.faults.Controls`."""
        world = self._world
        node = world.node(name)
        self._driver.look(node)
        node.slow(factor)
        worker = world.workers.get(node.number)
        if worker is not None:
            worker.slowed = factor
        if factor > 1:
            world.slowed_nodes.add(node.number)
        else:
            world.slowed_nodes.discard(node.number)

    def full_disk(self, name: str, full: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        number = self._world.node(name).number
        if full:
            self._full.add(number)
        else:
            self._full.discard(number)
        self._world.records.full_disk(name, full)
        if self._world.releases is not None:
            self._world.releases.disk(name).room_bytes = 0 if full else None
        if number in self._world.stages:
            self._world.stages[number].disk_full = full

    def clock_jump(self, name: str, by_ns: int) -> None:
        """See :class:`sims.world.faults.Controls`."""
        node = self._world.node(name)
        self._driver.look(node)
        node.utc_less_mono_ns += by_ns

    # --- links -----------------------------------------------------------------------------------------------------
    def cut(self, sender: str, receiver: str) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.links.cut(*self._pair(sender, receiver))

    def uncut(self, sender: str, receiver: str) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.links.uncut(*self._pair(sender, receiver))

    def lose(self, sender: str, receiver: str, share: float) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.links.lose(*self._pair(sender, receiver), share)

    def clog(self, sender: str, receiver: str, delay_ns: int) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.links.clog(*self._pair(sender, receiver), delay_ns)

    def _pair(self, sender: str, receiver: str) -> tuple[int, int]:
        return self._world.node(sender).number, self._world.node(receiver).number

    def relay(self, up: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.records.relay(up)
        if self._world.releases is not None and self._world.releases.relay is not None:
            self._world.releases.relay.up = up

    # --- lies ------------------------------------------------------------------------------------------------------
    def false_adverts(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.discovery.lie(self._world.node(name), on)

    def forge_gossip(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.authors.forge(self._world.node(name), on)

    def stale_gossip(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._world.authors.repeat_old(self._world.node(name), on)

    def understate_load(self, name: str, factor: float) -> None:
        """See :class:`sims.world.faults.Controls`."""
        worker = self._world.workers.get(self._world.node(name).number)
        if worker is not None:
            worker.understate(factor)

    def knock(self, host: str, target: str, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._driver.connections.knock(self._world.node(host), self._world.node(target), identity, frames)
