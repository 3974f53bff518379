"""Faults: the tape is drawn from the seed alone, says what happens to whom, and whatever it breaks it mends again."""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import pytest

from protocols.base.ids import MeshName, PeerIdentity
from protocols.base.limits import SECOND
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.membership import Hello
from sims.errors import ScenarioError
from sims.results.recorder import Recording
from sims.runs.run import Run
from sims.scenario.file import FAULT_KINDS, Checks, Fault, Fixed, Group, Inference, RandomFaults, Scenario, check
from sims.world.faults import Controls, Faults, end_ns, plan


def town(faults: tuple[Fault, ...] = (), random_faults: RandomFaults | None = None, nodes: int = 6) -> Scenario:
    """Six vehicles, everything on, so that every kind of fault means something."""
    points = tuple((10.0 * number, 0.0) for number in range(nodes))
    return Scenario(
        "town", "For tests.", 60.0, (Group("car", nodes, Fixed(points), relay=True),), inference=(Inference("car"),),
        faults=faults, random_faults=random_faults,
    )  # fmt: skip


ALL = RandomFaults(FAULT_KINDS, until_s=40.0, most=12)


class World:
    """Implements Controls by taking notes."""

    mesh = MeshName("sim")

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.now = list(names), 0
        self.down: set[str] = set()
        self._number = 0
        self.state: dict[tuple[object, ...], object] = {}
        self.history: list[tuple[int, str, tuple[object, ...]]] = []
        self.knocks: list[tuple[str, PeerIdentity, list[bytes]]] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []

    def running(self, name: str) -> bool:
        return name not in self.down

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._heap, (self.now + delay_ns, self._number, action))

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s * SECOND:
            self.now, _, action = heappop(self._heap)
            action()

    def _note(self, what: str, *place: object, value: object, normal: object) -> None:
        self.history.append((self.now, what, (*place, value)))
        self.state[what, *place] = value
        if value == normal:
            del self.state[what, *place]

    def crash(self, name: str) -> None:
        assert name not in self.down
        self.down.add(name)
        self._note("down", name, value=True, normal=False)

    def restart(self, name: str, keep_disk: bool) -> None:
        self.down.remove(name)
        self.history.append((self.now, "restart", (name, keep_disk)))
        self._note("down", name, value=False, normal=False)

    def cut(self, sender: str, receiver: str) -> None:
        assert ("cut", sender, receiver) not in self.state  # a medium counts its cuts
        self._note("cut", sender, receiver, value=True, normal=False)

    def uncut(self, sender: str, receiver: str) -> None:
        assert ("cut", sender, receiver) in self.state
        self._note("cut", sender, receiver, value=False, normal=False)

    def lose(self, sender: str, receiver: str, share: float) -> None:
        self._note("lose", sender, receiver, value=share, normal=0.0)

    def clog(self, sender: str, receiver: str, delay_ns: int) -> None:
        self._note("clog", sender, receiver, value=delay_ns, normal=0)

    def slow(self, name: str, factor: float) -> None:
        self._note("slow", name, value=factor, normal=1.0)

    def full_disk(self, name: str, full: bool) -> None:
        self._note("disk", name, value=full, normal=False)

    def clock_jump(self, name: str, by_ns: int) -> None:
        self._note("clock", name, value=self.state.get(("clock", name), 0) + by_ns, normal=0)  # type: ignore[operator]

    def relay(self, up: bool) -> None:
        self._note("relay", value=up, normal=True)

    def false_adverts(self, name: str, on: bool) -> None:
        self._note("adverts", name, value=on, normal=False)

    def forge_gossip(self, name: str, on: bool) -> None:
        self._note("forge", name, value=on, normal=False)

    def stale_gossip(self, name: str, on: bool) -> None:
        self._note("stale", name, value=on, normal=False)

    def understate_load(self, name: str, factor: float) -> None:
        self._note("load", name, value=factor, normal=1.0)

    def knock(self, host: str, target: str, identity: PeerIdentity, frames: Sequence[bytes]) -> None:
        assert host != target
        self.knocks.append((target, identity, list(frames)))


def played(scenario: Scenario, seed: int = 1, until_s: float = 60.0) -> tuple[World, Recording]:
    """The whole tape on a world that takes notes."""
    world, recorder = World(scenario.names), Recording(scenario)
    controls: Controls = world
    Faults(plan(scenario, seed), scenario, controls, recorder).arm()
    world.run(until_s)
    return world, recorder


def sometimes(recorder: Recording) -> dict[str, int]:
    return recorder.result("simulator", 1, 1.0, 1.0).sometimes


# --- the tape ------------------------------------------------------------------------------------------------------
def test_plan_of_a_seed_is_always_the_same_and_of_another_seed_another() -> None:
    """A tape that depends on anything else can't be replayed."""
    assert plan(town(random_faults=ALL), 7) == plan(town(random_faults=ALL), 7) != plan(town(random_faults=ALL), 8)


def test_plan_of_a_tape_is_the_tape() -> None:
    """A saved run holds its tape as the faults of its scenario."""
    tape = plan(town(random_faults=ALL), 3)
    assert tape
    assert plan(town(faults=tape), 99) == tape


@pytest.mark.parametrize("seed", range(40))
def test_plan_drawn_is_a_valid_scenario_that_ends_in_time(seed: int) -> None:
    """Liveness is judged after ``until_s``: a fault that lasts longer would make every verdict false."""
    tape = plan(town(random_faults=ALL), seed)
    check(town(faults=tape))
    assert 1 <= len(tape) <= ALL.most
    assert all(ALL.from_s <= fault.at_s and 0 < fault.for_s <= ALL.longest_s for fault in tape)
    assert end_ns(tape) <= ALL.until_s * SECOND
    assert [fault.at_s for fault in tape] == sorted(fault.at_s for fault in tape)


def test_plan_over_many_seeds_draws_every_kind_alone_and_together() -> None:
    """Swarm testing: what is on differs from seed to seed."""
    kinds = [frozenset(fault.kind for fault in plan(town(random_faults=ALL), seed)) for seed in range(300)]
    assert frozenset().union(*kinds) == frozenset(FAULT_KINDS)
    assert min(len(drawn) for drawn in kinds) == 1
    assert max(len(drawn) for drawn in kinds) >= 5


def test_plan_names_every_victim() -> None:
    """Shrinking leaves out victims one by one, so groups and everybody else are spelt out."""
    tape = plan(town(faults=(Fault("partition", 5.0, 2.0, ("car-1", "car-0")),)), 1)
    assert tape[0].nodes == ("car-1", "car-0")
    assert tape[0].others == ("car-2", "car-3", "car-4", "car-5")
    whole = plan(town(faults=(Fault("slow-node", 5.0, 2.0, ("car",)),)), 1)
    assert whole[0].nodes == tuple(f"car-{number}" for number in range(6))


def test_plan_with_a_victim_that_nobody_is_says_so() -> None:
    """A misspelt victim would be a fault that never happens."""
    with pytest.raises(ScenarioError, match="car-7"):
        plan(town(faults=(Fault("crash", 5.0, 2.0, ("car-7",)),)), 1)


# --- playing it ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(60))
def test_faults_of_a_whole_tape_leave_nothing_behind(seed: int) -> None:
    """Overlapping faults must not mend each other early, nor leave a place broken for ever."""
    scenario = town(random_faults=RandomFaults(FAULT_KINDS, until_s=20.0, most=30, longest_s=10.0))
    world, recorder = played(scenario, seed)
    assert world.history
    assert world.state == {}
    assert world.down == set()
    happened = sometimes(recorder)
    assert {fault.kind for fault in plan(scenario, seed)} - {"crash"} <= set(happened)


def test_faults_that_overlap_hold_until_the_last_is_over_and_the_strongest_counts() -> None:
    """Two clogs of one link: the longer delay while both are there."""
    clogs = (
        Fault("clog", 1.0, 4.0, ("car-0",), ("car-1",), delay_ms=100),
        Fault("clog", 2.0, 1.0, ("car-0",), ("car-1",), delay_ms=900),
        Fault("clog", 2.5, 5.0, ("car-0",), ("car-1",), delay_ms=50),
    )
    world, _ = played(town(faults=clogs))
    assert [(at / SECOND, place[-1]) for at, _, place in world.history] == [
        (1.0, 100_000_000), (2.0, 900_000_000), (3.0, 100_000_000), (5.0, 50_000_000), (7.5, 0),
    ]  # fmt: skip


def test_crash_of_a_node_that_is_down_is_none_and_restarts_nobody_early() -> None:
    """The first crash decides when the node is back."""
    crashes = (Fault("crash", 1.0, 5.0, ("car-0",)), Fault("crash", 2.0, 1.0, ("car-0", "car-1"), keep_disk=False))
    world, recorder = played(town(faults=crashes))
    restarts = [(at / SECOND, place) for at, what, place in world.history if what == "restart"]
    assert restarts == [(3.0, ("car-1", False)), (6.0, ("car-0", True))]
    assert sometimes(recorder) == {"crash": 2, "restart": 1, "restart without disk": 1}


def test_fault_without_duration_lasts() -> None:
    """A node that never comes back."""
    world, _ = played(town(faults=(Fault("crash", 1.0, nodes=("car-0",)),)))
    assert world.down == {"car-0"}
    assert end_ns(plan(town(faults=(Fault("crash", 1.0, nodes=("car-0",)),)), 1)) == SECOND


def test_partition_cuts_both_ways_and_one_way_loss_one() -> None:
    """The one is a wall, the other a deaf receiver."""
    faults = (
        Fault("partition", 1.0, nodes=("car-0",), others=("car-1",)),
        Fault("one-way-loss", 1.0, nodes=("car-2",), others=("car-3",), share=0.5),
    )
    world, _ = played(town(faults=faults))
    assert world.state == {
        ("cut", "car-0", "car-1"): True, ("cut", "car-1", "car-0"): True, ("lose", "car-2", "car-3"): 0.5,
    }  # fmt: skip


def test_false_adverts_bring_strangers_with_either_lie() -> None:
    """One has no certificate of ours, the other says no Hello; neither may be listened to."""
    world, _ = played(town(faults=(Fault("false-adverts", 1.0, 10.0, ("car-0",)),)))
    meshes = {identity.mesh for _, identity, _ in world.knocks}
    assert meshes == {"sim", "elsewhere"}
    assert {target for target, _, _ in world.knocks} == {f"car-{number}" for number in range(1, 6)}
    for _, identity, frames in world.knocks:
        first = decode_untrusted_node_frame(frames[0])
        assert isinstance(first, Hello) == (identity.mesh == "elsewhere")
        assert identity.node not in world.names


def test_partitions_that_overlap_are_over_when_the_last_is() -> None:
    """A link that stays cut is out of reach for the checks, so they would pass for want of anything to judge."""
    pair = ("car-0",), ("car-1",)
    faults = (
        Fault("partition", 1.0, 4.0, *pair),
        Fault("partition", 2.0, 1.0, *pair),
        Fault("partition", 3.5, 4.0, *pair),
    )
    mobility = Fixed(((0.0, 0.0), (20.0, 0.0)))
    run = Run(Scenario("pair", "two", 9.0, (Group("car", 2, mobility),), faults=faults, checks=Checks(settle_s=1.0)), 1)
    run.advance(7 * SECOND)
    assert run.world.in_range("car-0") == []
    run.advance(8 * SECOND)
    assert run.world.in_range("car-0") == ["car-1"]
