"""The faults of a run: what goes wrong, when, and with whom, as the scenario says or as its seed draws it.

The *tape* of a run is all its faults with their times and victims, as :class:`~sims.scenario.file.Fault`. :func:`plan`
makes it, :class:`Faults` plays it on a world, replaying repeats it, and shrinking edits it. Drawing has a ``Random`` of
its own, so that a shorter tape changes nothing but the faults that were left out.

Each seed first draws which kinds of faults are on at all, after Groce, Zhang, Eide, Chen, Regehr: *Swarm Testing*
(ISSTA 2012): runs with half of the features reach states that runs with all of them never reach.

Faults may overlap: the strongest of a kind holds at a place until the last of them is over. A crash of a node that is
down already does not count as a crash. A fault without duration lasts to the end.

Not modelled: faults inside a process that the engine could not survive in reality either (memory errors, a wrong CPU).
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from msgspec.structs import replace

from protocols.base import limits
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.wire.codec import encode_frame
from protocols.wire.frame import Frame
from protocols.wire.membership import MAJOR, MINOR, Hello
from protocols.wire.readings import EventTime, Position, Provenance, Reading, Readings
from sims.results.result import Recorder
from sims.scenario.file import Fault, FaultKind, RandomFaults, Scenario

BETWEEN = frozenset(("partition", "one-way-loss", "clog"))
"""Kinds of faults that happen to links: they have a far side."""
_SHORTEST_S = 0.2
_KNOCK_INTERVAL_NS = limits.SECOND


class Controls(Protocol):
    """What faults can do to a world, by names of nodes. Every setting belongs to the host and outlives a restart of its
    node, except for what only a process can know."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all nodes, in the order of their numbers."""

    @property
    def mesh(self) -> MeshName:
        """The mesh that all nodes belong to."""

    @property
    def now(self) -> int:
        """Virtual nanoseconds since the start of the run."""

    def running(self, name: str) -> bool:
        """Whether the process of a node is there."""

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something later."""

    def crash(self, name: str) -> None:
        """The process ends without a goodbye. Its kernel resets its pipes, as far as its links let that through. The
        ``crashing`` hooks of the checks are called before."""

    def restart(self, name: str, keep_disk: bool) -> None:
        """A crashed node begins its next life. Without its disk it has lost outbox, kept entries and counters of
        starts."""

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing passes from one to the other: datagrams are lost, and streams stall. The other direction is not
        touched. This is not called again before :meth:`uncut`, because overlapping faults are one cut."""

    def uncut(self, sender: str, receiver: str) -> None:
        """Undoes :meth:`cut`; what stalled goes on."""

    def lose(self, sender: str, receiver: str, share: float) -> None:
        """A share of the frames one way is lost, in addition to what the air loses. That makes streams late. 0 ends
        it."""

    def clog(self, sender: str, receiver: str, delay_ns: int) -> None:
        """Everything one way takes ``delay_ns`` longer; 0 ends it."""

    def slow(self, name: str, factor: float) -> None:
        """The node's CPU takes ``factor`` times as long for everything, its timers included; 1 ends it."""

    def full_disk(self, name: str, full: bool) -> None:
        """While its disk is full, the node can't store anything."""

    def clock_jump(self, name: str, by_ns: int) -> None:
        """The node's UTC clock jumps forward by ``by_ns``; its monotonic clock does not."""

    def relay(self, up: bool) -> None:
        """Whether the relay answers."""

    def false_adverts(self, name: str, on: bool) -> None:
        """While this is on, the host advertises other nodes' ids, and ids of nodes that don't exist, at its own
        address, once a second, to whoever hears it."""

    def forge_gossip(self, name: str, on: bool) -> None:
        """While this is on, the node sends its neighbours once a second entries of other authors that it made up. They
        are a version higher than the newest, with a signature that is not the author's."""

    def stale_gossip(self, name: str, on: bool) -> None:
        """While this is on, the node sends its neighbours once a second the oldest genuine entries that it ever saw."""

    def understate_load(self, name: str, factor: float) -> None:
        """The node tells its neighbours that its models take ``1/factor`` of the time and that nothing waits; 1 ends
        it."""

    def knock(self, host: str, target: str, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        """A process on ``host`` opens a pipe into the inbox of ``target`` and sends raw frames, of which the first need
        not be a Hello. TLS proves ``identity`` to the target, whose ``admit`` is asked as for anybody. The hook
        ``frame_accepted`` of the checks gets ``verified=False`` when that mesh is not ours, or when no Hello of that id
        came first."""


# --- the tape ------------------------------------------------------------------------------------------------------
def plan(scenario: Scenario, seed: int) -> tuple[Fault, ...]:
    """The tape of a run: the faults of the scenario and those drawn from its seed, in order of time, with every victim
    by its own name. A scenario without random faults whose faults are a tape has that tape.

    :raises ScenarioError: when a victim is not a node.
    """
    names = scenario.names
    faults = [
        _named(fault, [member for what in fault.nodes for member in scenario.members(what)],
               [member for what in fault.others for member in scenario.members(what)], names)
        for fault in scenario.faults
    ]  # fmt: skip
    if scenario.random_faults is not None:
        faults += _drawn(scenario.random_faults, names, Random(f"{seed}/faults"))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _named(fault: Fault, nodes: list[str], others: list[str], names: list[str]) -> Fault:
    """Name the victims. No near side means every node, and no far side means everybody else."""
    if fault.kind == "relay-outage":
        return replace(fault, nodes=(), others=())
    near = tuple(dict.fromkeys(nodes or names))
    if fault.kind not in BETWEEN:
        return replace(fault, nodes=near, others=())
    inside = frozenset(near)
    return replace(fault, nodes=near, others=tuple(n for n in dict.fromkeys(others or names) if n not in inside))


def _drawn(chances: RandomFaults, names: list[str], random: Random) -> list[Fault]:
    kinds = [kind for kind in chances.kinds if random.random() < 0.5] or [random.choice(chances.kinds)]
    return [_drawn_one(random.choice(kinds), chances, names, random) for _ in range(random.randint(1, chances.most))]


def _drawn_one(kind: FaultKind, chances: RandomFaults, names: list[str], random: Random) -> Fault:
    """Draw one fault that is over by ``until_s``. Durations and delays reach below and above every time-out of
    membership."""
    at_s = round(random.uniform(chances.from_s, max(chances.until_s - _SHORTEST_S, chances.from_s)), 3)
    longest_s = min(chances.longest_s, chances.until_s - at_s)
    for_s = round(random.uniform(min(_SHORTEST_S, longest_s), longest_s), 3)
    most = max(len(names) // (2 if kind in BETWEEN else 3), 1)
    nodes = random.sample(names, random.randint(1, most))
    far = [name for name in names if name not in nodes]
    if kind in BETWEEN and kind != "partition" and far:
        far = random.sample(far, random.randint(1, len(far)))
    fault = Fault(kind, at_s, for_s, () if kind == "relay-outage" else tuple(nodes))
    match kind:
        case "crash":
            return replace(fault, keep_disk=random.random() < 0.5)
        case "partition":
            return replace(fault, others=tuple(far))
        case "one-way-loss":
            return replace(fault, others=tuple(far), share=round(random.uniform(0.3, 1.0), 2))
        case "clog":
            return replace(fault, others=tuple(far), delay_ms=round(random.uniform(50, 3_000)))
        case "slow-node" | "false-load":
            return replace(fault, factor=round(random.uniform(2, 50), 1))
        case "clock-jump":
            return replace(fault, jump_s=round(random.uniform(-3_600, 3_600)))
        case _:
            return fault


def end_ns(tape: Sequence[Fault]) -> int:
    """When the last fault is over, or when it began if it lasts; 0 when there is none."""
    return max((_ns(fault.at_s) + _ns(fault.for_s) for fault in tape), default=0)


def _ns(seconds: float) -> int:
    return round(seconds * limits.SECOND)


# --- playing it ----------------------------------------------------------------------------------------------------
class Faults:
    """Plays the tape of one run on its world."""

    def __init__(self, tape: Sequence[Fault], scenario: Scenario, world: Controls, recorder: Recorder) -> None:
        self.tape = tape
        self._world, self._recorder = world, recorder
        self._held: dict[tuple[str, str, str], list[float]] = {}
        self._down: dict[str, Fault] = {}
        self._knocking: set[str] = set()
        self._topic = scenario.traffic[0].topic if scenario.traffic else "position"

    def arm(self) -> None:
        """Schedule all faults. It is called once, at the start of the run."""
        for fault in self.tape:
            self._world.after(_ns(fault.at_s), lambda fault=fault: self._begin(fault))  # type: ignore[misc]

    def _begin(self, fault: Fault) -> None:
        match fault.kind:
            case "crash":
                happened = self._crash(fault)
            case "clock-jump":
                happened = self._jump(fault, 1)
            case _:
                happened = self._hold(fault)
        if happened:
            self._tell(fault.kind, fault)
        if fault.for_s:
            self._world.after(_ns(fault.for_s), lambda: self._end(fault))

    def _end(self, fault: Fault) -> None:
        match fault.kind:
            case "crash":
                if self._restart(fault):
                    self._tell("restart" if fault.keep_disk else "restart without disk", fault)
                return
            case "clock-jump":
                happened = self._jump(fault, -1)
            case _:
                happened = self._release(fault)
        if happened:
            self._tell(f"{fault.kind} over", fault)

    def _tell(self, what: str, fault: Fault) -> None:
        self._recorder.occurred(what, self._world.now, _listed(fault.nodes), _listed(fault.others))

    # --- processes and clocks --------------------------------------------------------------------------------------
    def _crash(self, fault: Fault) -> bool:
        victims = [name for name in fault.nodes if self._world.running(name)]
        for name in victims:
            self._down[name] = fault
            self._world.crash(name)
        return bool(victims)

    def _restart(self, fault: Fault) -> bool:
        victims = [name for name in fault.nodes if self._down.get(name) is fault]
        for name in victims:
            del self._down[name]
            self._world.restart(name, fault.keep_disk)
        return bool(victims)

    def _jump(self, fault: Fault, sign: int) -> bool:
        for name in fault.nodes:
            self._world.clock_jump(name, sign * _ns(fault.jump_s))
        return bool(fault.nodes)

    # --- what holds for a while ------------------------------------------------------------------------------------
    def _hold(self, fault: Fault) -> bool:
        for place in _places(fault):
            held = self._held.setdefault((fault.kind, *place), [])
            before = max(held, default=None)
            held.append(_strength(fault))
            if fault.kind == "false-adverts" and place[0] not in self._knocking:
                self._knocking.add(place[0])
                self._knock(place[0], 0)
            if max(held) != before:
                self._set(fault.kind, place, max(held))
        return bool(_places(fault))

    def _release(self, fault: Fault) -> bool:
        for place in _places(fault):
            held = self._held[fault.kind, *place]
            before = max(held)
            held.remove(_strength(fault))
            after = max(held, default=None)
            if after != before:
                self._set(fault.kind, place, after)
        return bool(_places(fault))

    def _set(self, kind: str, place: tuple[str, str], strength: float | None) -> None:
        """Set the strength of a kind of fault at a place. None means that no fault of that kind is there any more."""
        world, on, (near, far) = self._world, strength is not None, place
        match kind:
            case "partition":
                (world.cut if on else world.uncut)(near, far)
            case "one-way-loss":
                world.lose(near, far, strength or 0.0)
            case "clog":
                world.clog(near, far, round((strength or 0.0) * limits.MS))
            case "slow-node":
                world.slow(near, strength or 1.0)
            case "full-disk":
                world.full_disk(near, on)
            case "relay-outage":
                world.relay(not on)
            case "false-adverts":
                world.false_adverts(near, on)
            case "forged-gossip":
                world.forge_gossip(near, on)
            case "stale-gossip":
                world.stale_gossip(near, on)
            case _:
                world.understate_load(near, strength or 1.0)

    # --- strangers -------------------------------------------------------------------------------------------------
    def _knock(self, name: str, turn: int) -> None:
        """While ``name`` tells false adverts, a stranger on its host tries one node after another: in turns with a
        certificate of our mesh but without a Hello, and with a Hello but with a certificate of another mesh."""
        world = self._world
        if not self._held["false-adverts", name, ""]:
            self._knocking.discard(name)
            return
        targets = [other for other in world.names if other != name and world.running(other)]
        if targets:
            ghost = NodeId(f"ghost-{name}"[:63])
            reading = Reading(
                f"veh/{ghost}/{self._topic}", ghost, turn, b"", Position(0.0, 0.0, 1.0),
                EventTime(0, 0), Provenance("forged", "1"),
            )  # fmt: skip
            frames: list[Frame] = [Readings((reading,))]
            mesh = world.mesh
            if turn % 2:
                mesh = MeshName("elsewhere")
                frames.insert(0, Hello(MAJOR, MINOR, ghost, 1, 7000, "realtime"))
            identity = PeerIdentity(mesh, Role.VEHICLE, ghost)
            world.knock(name, targets[turn // 2 % len(targets)], identity, [encode_frame(frame) for frame in frames])
        world.after(_KNOCK_INTERVAL_NS, lambda: self._knock(name, turn + 1))


def _places(fault: Fault) -> list[tuple[str, str]]:
    """The places where a fault holds: (sender, receiver), (node, ""), or ("", "") for the relay."""
    if fault.kind == "relay-outage":
        return [("", "")]
    if fault.kind not in BETWEEN:
        return [(name, "") for name in fault.nodes]
    forth = [(near, far) for near in fault.nodes for far in fault.others]
    return [*forth, *((far, near) for near, far in forth)] if fault.kind == "partition" else forth


def _strength(fault: Fault) -> float:
    match fault.kind:
        case "one-way-loss":
            return fault.share
        case "clog":
            return fault.delay_ms
        case "slow-node" | "false-load":
            return fault.factor
        case _:
            return 1.0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])} and {len(names) - 7} more"
