"""What faults do to the processes of an emulation, in real time: :class:`sims.world.faults.Controls` on real nodes.

:class:`sims.world.faults.Faults` plays the tape, as in the simulator. So overlapping faults, and what counts as having
happened and when, are the same. What faults do to the air is left to the wire, which plays the tape too
(:mod:`sims.emulator.air.disturbances`).

- A crash is SIGKILL. The next life is loaded while the node is down.
- A slow node is stopped for most of each tenth of a second, and its models take longer by the same factor.
- A full disk is a file system of its own that was filled up (:mod:`sims.emulator.disks`). A node does not start on one.
  It is started once there is room, as by a supervisor that tries again and again.
- A clock jump is one of the UTC clock that the node's process asks (``meshnode.trial.clock``).
- Lies are told by the node over its own links, or by a stranger on its host (:mod:`sims.emulator.lies`).
"""

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from protocols.base.ids import MeshName, PeerIdentity
from protocols.base.limits import SECOND
from sims.emulator.lies import Adverts, Gossip
from sims.emulator.nodes import MESH, RealNode
from sims.emulator.relay import RealRelay
from sims.scenario.file import Fault

ON_HOSTS: Final = frozenset({
    "crash", "slow-node", "full-disk", "clock-jump", "false-adverts", "forged-gossip", "stale-gossip", "false-load",
})  # fmt: skip
_PULSE_S: Final = 0.1
"""The period of the stops of a slow node."""


class Hosts:
    """All nodes of one run, and the faults that happen to them. It is single-threaded, except for the pulses of slow
    nodes."""

    def __init__(self, nodes: Sequence[RealNode], relay: RealRelay | None, tape: Sequence[Fault], seed: int) -> None:
        """``tape``: the faults of the run, from which follows which nodes need a liar or another life."""
        self._nodes = {node.name: node for node in nodes}
        self._relay = relay
        self._zero_ns = 0
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._entered = 0
        self._full: dict[str, RealNode] = {}
        self._no_room: dict[str, RealNode] = {}
        """Nodes that should have started since their disks are full."""
        self._pulses: dict[str, _Pulse] = {}
        self._come_back = _victims(tape, "crash", lasting=False)
        names = list(self._nodes)
        self._adverts = {
            name: Adverts(self._nodes[name], names, Random(f"{seed}/{name}/adverts"), self.after)
            for name in _victims(tape, "false-adverts")
        }
        self._gossip = {
            name: Gossip(self._nodes[name], Random(f"{seed}/{name}/gossip"), self.after)
            for name in _victims(tape, "forged-gossip", "stale-gossip")
        }

    # --- time ------------------------------------------------------------------------------------------------------
    def begin(self, zero_ns: int) -> None:
        """Begin the run at that instant of the monotonic clock: nodes start when their groups do."""
        self._zero_ns = zero_ns
        for node in self._nodes.values():
            index = int(node.name.rpartition("-")[2])
            start_s = node.group.start_s + index * node.group.stagger_s
            self.after(round(start_s * SECOND), partial(self._start, node))
        for gossip in self._gossip.values():
            self.after(0, partial(gossip.gather, True))

    def _start(self, node: RealNode) -> None:
        if node.name in self._full:
            self._no_room[node.name] = node
        else:
            node.let_go(self.now / SECOND)

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """See :class:`sims.world.faults.Controls`; before the run, from its start."""
        self._entered += 1
        heapq.heappush(self._agenda, (self.now + delay_ns, self._entered, action))

    def play(self) -> int | None:
        """Do what has come due. Returns when the next thing is due; None when nothing is left."""
        while self._agenda and self._agenda[0][0] <= time.monotonic_ns() - self._zero_ns:
            heapq.heappop(self._agenda)[2]()
        return self._agenda[0][0] if self._agenda else None

    def look_after(self) -> None:
        """Look after hosts now and then: a full disk stays full though something was deleted, and liars must live.

        :raises EmulatorError: when a liar has ended, so that its lies were not told.
        """
        for node in self._full.values():
            assert node.disk is not None, "full_disk() looked"
            node.disk.fill()
        for adverts in self._adverts.values():
            adverts.check()

    def end(self) -> None:
        """Play no more faults, and end the liars."""
        self._agenda.clear()
        for pulse in self._pulses.values():
            pulse.end()
        self._pulses.clear()
        for adverts in self._adverts.values():
            adverts.end()
        self._adverts.clear()

    # --- Controls --------------------------------------------------------------------------------------------------
    @property
    def names(self) -> Sequence[str]:
        """See :class:`sims.world.faults.Controls`."""
        return list(self._nodes)

    @property
    def mesh(self) -> MeshName:
        """See :class:`sims.world.faults.Controls`."""
        return MeshName(MESH)

    @property
    def now(self) -> int:
        """Nanoseconds since the start of the run; 0 before it."""
        return max(time.monotonic_ns() - self._zero_ns, 0) if self._zero_ns else 0

    def running(self, name: str) -> bool:
        """See :class:`sims.world.faults.Controls`."""
        process = self._nodes[name].running
        return process is not None and process.poll() is None

    def crash(self, name: str) -> None:
        """See :class:`sims.world.faults.Controls`."""
        node = self._nodes[name]
        node.kill()
        if name in self._come_back:
            node.hold()

    def restart(self, name: str, keep_disk: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        node = self._nodes[name]
        if not keep_disk:
            node.lose_disk()
        self._start(node)

    def cut(self, sender: str, receiver: str) -> None:
        """The wire does it."""

    def uncut(self, sender: str, receiver: str) -> None:
        """The wire does it."""

    def lose(self, sender: str, receiver: str, share: float) -> None:
        """The wire does it."""

    def clog(self, sender: str, receiver: str, delay_ns: int) -> None:
        """The wire does it."""

    def slow(self, name: str, factor: float) -> None:
        """See :class:`sims.world.faults.Controls`."""
        node = self._nodes[name]
        node.set("slow", factor)
        if name in self._pulses:
            self._pulses.pop(name).end()
        if factor > 1:
            self._pulses[name] = _Pulse(node, factor)

    def full_disk(self, name: str, full: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        node = self._nodes[name]
        assert node.disk is not None, "prepare() made one for each victim"
        if full:
            node.disk.fill()
            self._full[name] = node
        else:
            self._full.pop(name, None)
            node.disk.empty()
            if self._no_room.pop(name, None) is not None:
                self._start(node)

    def clock_jump(self, name: str, by_ns: int) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._nodes[name].clock_jump(by_ns)

    def relay(self, up: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        assert self._relay is not None, "a scenario without a relay has no outage of it"
        if up:
            self._relay.start()
        else:
            self._relay.kill()

    def false_adverts(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._adverts[name].lie(on)

    def forge_gossip(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._gossip[name].forge(on)

    def stale_gossip(self, name: str, on: bool) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._gossip[name].repeat_old(on)

    def understate_load(self, name: str, factor: float) -> None:
        """See :class:`sims.world.faults.Controls`."""
        self._nodes[name].set("understate", factor)

    def knock(self, host: str, target: str, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        """See :class:`sims.world.faults.Controls`. The harness made the certificate beforehand."""
        self._adverts[host].knock(self._nodes[target].number, identity.mesh, frames)


class _Pulse:
    """Stops a process for most of each period, so that it gets its share of the time."""

    def __init__(self, node: RealNode, factor: float) -> None:
        self._node, self._factor = node, factor
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._beating.start()

    def _beat(self) -> None:
        while not self._over.is_set():
            self._node.stop()
            self._over.wait(_PULSE_S * (1 - 1 / self._factor))
            self._node.go_on()
            self._over.wait(_PULSE_S / self._factor)

    def end(self) -> None:
        """Let the process run again from now on."""
        self._over.set()
        self._beating.join()


def _victims(tape: Sequence[Fault], *kinds: str, lasting: bool = True) -> tuple[str, ...]:
    """The names of the nodes that faults of these kinds happen to; without ``lasting`` only of faults that end."""
    names = (name for fault in tape if fault.kind in kinds and (lasting or fault.for_s) for name in fault.nodes)
    return tuple(dict.fromkeys(names))
