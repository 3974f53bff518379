"""Who is there: random histories of whole nodes, with faults that a seed names."""

from random import Random

import pytest

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.engine import Engine, PeerView
from protocols.events import DuplicateIdentity
from protocols.membership.events import (
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    NeighbourRefuted,
    NeighbourSuspected,
    PeerRefused,
)
from protocols.membership.neighbour import State
from protocols.membership.settings import MembershipSettings
from sims.virtual.driver import SimDriver

MS, SECOND = limits.MS, limits.SECOND
NAMES = ("n0", "n1", "n2", "n3", "n4", "n5")
SETTINGS = MembershipSettings()
TICK_NS = 100 * MS
# Silence starts to count with the last frame, which may be just before the end; timers may be a heartbeat late.
LONGEST_TO_DEAD_NS = SETTINGS.suspect_after_silence_ns + SETTINGS.suspicion_max_ns + 3 * SETTINGS.heartbeat_interval_ns


# --- random histories ----------------------------------------------------------------------------------------------
class History:
    """A simulation that is looked at every ``TICK_NS``."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.sim = SimDriver(seed)
        self.names = NAMES[: self.random.randint(3, 6)]
        for name in self.names:
            self.sim.add(name)
        self.ended_ns: dict[str, int] = {}
        self.stalled_ns: dict[str, int] = {}

    def running(self) -> list[str]:
        return [name for name in self.names if self.sim.nodes[NodeId(name)].running]

    def go(self, duration_ns: int) -> None:
        end = self.sim.now + duration_ns
        while self.sim.now < end:
            self.sim.run_for(min(TICK_NS, end - self.sim.now))
            self.check_nobody_mourned_late()

    def check_nobody_mourned_late(self) -> None:
        """Safety: no neighbour is alive whose process has been gone for longer than the bound."""
        now = self.sim.now
        for name in self.running():
            node = self.sim.nodes[NodeId(name)]
            watching_ns = now - max(self.stalled_ns.get(name, 0), node.stalled_until_ns)
            views = node.engine.peers(now)
            self.check_short_forms(node.engine, views)
            for view in views:
                ended = self.ended_ns.get(view.node)
                if ended is not None and view.state in (State.ALIVE, State.SUSPECT):
                    assert min(now - ended, watching_ns) <= LONGEST_TO_DEAD_NS, f"{name} believes in {view.node}"

    def check_short_forms(self, engine: Engine, views: list[PeerView]) -> None:
        """Whoever asks only for what it needs gets the same answers."""
        met = {view.node for view in views if view.met and view.state is State.ALIVE}
        assert {name for name in self.names if engine.membership.is_alive(NodeId(name))} == met
        assert sorted((n.node, n.state, n.incarnation, n.met) for n in engine.membership.neighbours.values()) == [
            (view.node, view.state, view.incarnation, view.met) for view in views
        ]

    def act(self) -> None:
        """One fault, or the end of one."""
        sim, random = self.sim, self.random
        name, other = random.sample(self.names, 2)
        match random.choice(("kill", "leave", "restart", "restart", "cut", "cut one way", "stall", "heal", "calm")):
            case "kill" if name in self.running():
                sim.kill(name)
                self.ended_ns[name] = sim.now
            case "leave" if name in self.running():
                sim.leave(name)
                self.ended_ns[name] = sim.now + 2 * MS
                sim.run_for(3 * MS)
            case "restart" if name not in self.running():
                self.restart(name)
            case "cut":
                sim.cut(name, other)
            case "cut one way":
                sim.cut_one_way(name, other)
            case "stall" if name in self.running():
                sim.stall(name, random.randint(50 * MS, 6 * SECOND))
                self.stalled_ns[name] = sim.nodes[NodeId(name)].stalled_until_ns
            case "heal":
                sim.heal()
            case _:
                pass

    def restart(self, name: str) -> None:
        self.sim.restart(name)
        self.ended_ns.pop(name, None)
        self.sim.meet()


def all_met(history: History) -> list[str]:
    """Who of the running does not know whom."""
    lacking = []
    running = history.running()
    for name in running:
        met = {
            view.node
            for view in history.sim.nodes[NodeId(name)].engine.peers(history.sim.now)
            if view.met and view.state is State.ALIVE
        }
        lacking.extend(f"{name} lacks {other}" for other in running if other != name and other not in met)
    return lacking


@pytest.mark.parametrize("seed", range(60))
def test_any_history_of_faults_keeps_the_promises_and_heals(seed: int) -> None:
    """Safety at every instant, liveness after the last fault; the seed in the name replays it."""
    history = History(seed)
    history.sim.meet()
    history.go(1_500 * MS)
    assert all_met(history) == []
    for _ in range(history.random.randint(3, 10)):
        history.act()
        history.go(history.random.randint(10 * MS, 4 * SECOND))
    history.sim.heal()
    for name in history.names:
        if name not in history.running():
            history.restart(name)
    longest_back_off_ns = int(1.25 * limits.REDIAL_MAX_NS)
    history.go(LONGEST_TO_DEAD_NS + SETTINGS.dial_timeout_ns + longest_back_off_ns + 6 * SECOND)
    assert all_met(history) == []
    for node in history.sim.nodes.values():
        counters = node.engine.statistics()
        assert (counters["frames_before_hello"], counters["frames_malformed"], counters["frames_unknown"]) == (0, 0, 0)
        for _, event in node.events:
            assert type(event) is not PeerRefused, "honest nodes were turned away"
            assert type(event) is not DuplicateIdentity


@pytest.mark.parametrize("seed", range(30))
def test_no_neighbour_is_declared_dead_while_its_frames_flow(seed: int) -> None:
    """A false death costs its readings and its runs; only silence, or pipes that are gone, may be the cause."""
    history = History(seed)
    sim = history.sim
    heard: dict[tuple[str, int], int] = {}
    sim.meet()
    for _ in range(40):
        if history.random.random() < 0.5:
            history.act()
        for _ in range(10):
            sim.run_for(50 * MS)
            for node in sim.nodes.values():
                for at, event in node.events:
                    if type(event) is NeighbourDead and (node.name, at) not in heard:
                        silent_ns = at - node.heard_ns(event.node)
                        heard[node.name, at] = silent_ns
                        if silent_ns >= 0:  # else something came in after the death was noted
                            assert silent_ns >= SETTINGS.suspicion_min_ns
                            assert event.silent_ns >= SETTINGS.suspicion_min_ns


@pytest.mark.parametrize(("stall_ns", "dead_within_ns"), [(0, SECOND), (10 * SECOND, 3 * SECOND)])
def test_links_lost_while_nobody_watched_are_no_proof_of_death(stall_ns: int, dead_within_ns: int) -> None:
    """Neighbours hang up on a node that was starved; on a busy computer their return takes longer than a lost link is
    forgiven otherwise."""
    sim = SimDriver(1)
    sim.add("n0")
    sim.add("n1")
    sim.meet()
    sim.run_for(2 * SECOND)
    node = sim.nodes[NodeId("n0")]
    engine, now = node.engine, sim.now + stall_ns
    for pipe in list(node.inbound):
        engine.inbound_closed(pipe, now)
    for dial in list(node.dialled):
        engine.lane_closed(dial, "reset", False, now)
    began = now
    while not any(type(event) is NeighbourDead for event in engine.events()):
        now += 50 * MS
        engine.handle_timer(now)
        assert now - began < 10 * SECOND
    assert dead_within_ns - SECOND < now - began <= dead_within_ns


@pytest.mark.parametrize("stall_ms", [300, 900, 2_000, 8_000, 30_000])
def test_node_that_was_starved_accuses_nobody(stall_ms: int) -> None:
    """It did not watch: the silence was its own. Its neighbours may have mourned it, and take it back."""
    sim = SimDriver(stall_ms)
    for name in NAMES[:4]:
        sim.add(name)
    sim.meet()
    sim.run_for(2 * SECOND)
    sim.stall("n0", stall_ms * MS)
    sim.run_for(stall_ms * MS + 15 * SECOND)
    starved = sim.nodes[NodeId("n0")]
    assert not [event for _, event in starved.events if type(event) is NeighbourDead and event.node == "n0"]
    kinds = {type(event) for at, event in starved.events if at < (2_000 + stall_ms) * MS + SECOND}
    assert NeighbourDead not in kinds
    dead = [event for name in NAMES[1:4] for _, event in sim.nodes[NodeId(name)].events if type(event) is NeighbourDead]
    assert len(dead) == (0 if stall_ms <= 900 else 3 if stall_ms >= 8_000 else len(dead))
    views = {view.node: view for view in starved.engine.peers(sim.now)}
    assert all(view.met and view.state is State.ALIVE for view in views.values())
    if stall_ms > limits.LOCAL_STALL_NS // MS:
        assert starved.engine.statistics()["local_stalls"] >= 1


def test_node_killed_is_dead_everywhere_within_its_bound_and_met_again_after() -> None:
    """Pipes gone in both directions: the kernel said so."""
    sim = SimDriver(1)
    for name in NAMES:
        sim.add(name)
    sim.meet()
    sim.run_for(2 * SECOND)
    sim.kill("n5")
    sim.run_for(SETTINGS.lost_link_suspicion_ns + 10 * MS)
    for name in NAMES[:5]:
        assert [event for _, event in sim.nodes[NodeId(name)].events if type(event) is NeighbourDead]
    sim.restart("n5")
    sim.meet()
    sim.run_for(SECOND)
    for name in NAMES[:5]:
        last = [event for _, event in sim.nodes[NodeId(name)].events if type(event) is NeighbourMet][-1]
        assert (last.node, last.incarnation) == ("n5", 1_002)


def test_node_restarted_at_once_is_met_anew_without_a_death() -> None:
    """A quick restart is back within its suspicion: subscriptions and offers start afresh, nobody is mourned."""
    sim = SimDriver(3)
    for name in ("n0", "n1"):
        sim.add(name)
        sim.subscribe(name, "**")
    sim.meet()
    sim.run_for(SECOND)
    sim.publish("n1", "veh/n1/x", 1)
    sim.run_for(10 * MS)
    sim.kill("n1")
    sim.restart("n1")
    sim.meet()
    sim.run_for(2 * SECOND)
    sim.publish("n1", "veh/n1/x", 2)
    sim.run_for(SECOND)
    node = sim.nodes[NodeId("n0")]
    assert [event.incarnation for _, event in node.events if type(event) is NeighbourMet] == [1_001, 1_002]
    assert not [event for _, event in node.events if type(event) is NeighbourDead]
    assert [one.value for _, one in node.received] == [1, 2]


def test_goodbye_is_a_leave_not_a_death() -> None:
    """Nobody waits for a node that said it goes, and nobody knocks at its door at once."""
    sim = SimDriver(2)
    for name in NAMES[:3]:
        sim.add(name)
    sim.meet()
    sim.run_for(SECOND)
    sim.leave("n2", "maintenance")
    sim.run_for(5 * SECOND)
    for name in NAMES[:2]:
        events = [event for _, event in sim.nodes[NodeId(name)].events]
        assert NeighbourLeft(NodeId("n2"), "maintenance") in events
        assert not {NeighbourSuspected, NeighbourDead} & {type(event) for event in events}
        assert sim.nodes[NodeId(name)].engine.statistics()["dials_failed"] == 0


def test_shadow_shorter_than_patience_is_forgiven() -> None:
    """A lorry in between for two seconds is no death, and what waited arrives."""
    sim = SimDriver(4)
    for name in NAMES[:2]:
        sim.add(name)
    sim.subscribe("n0", "**")
    sim.meet()
    sim.run_for(SECOND)
    sim.cut("n0", "n1")
    sim.publish("n1", "veh/n1/x", "in the shadow")
    sim.run_for(2 * SECOND)
    sim.heal()
    sim.run_for(SECOND)
    node = sim.nodes[NodeId("n0")]
    kinds = [type(event) for _, event in node.events]
    assert NeighbourSuspected in kinds
    assert NeighbourRefuted in kinds
    assert NeighbourDead not in kinds
    assert [one.value for _, one in node.received] == ["in the shadow"]


def test_asymmetric_link_is_seen_as_what_it_is() -> None:
    """One direction is deaf: the other side must not be believed to hear us."""
    sim = SimDriver(5)
    for name in NAMES[:2]:
        sim.add(name)
    sim.meet()
    sim.run_for(SECOND)
    assert sim.nodes[NodeId("n0")].engine.peers(sim.now)[0].hears_us
    sim.cut_one_way("n0", "n1")
    sim.run_for(1_100 * MS)
    view = sim.nodes[NodeId("n0")].engine.peers(sim.now)[0]
    assert view.state is State.ALIVE
    sim.run_for(1_200 * MS)
    assert not sim.nodes[NodeId("n0")].engine.peers(sim.now)[0].hears_us


def test_confirmations_of_others_shorten_the_wait() -> None:
    """Five who agree need not wait as long as one alone."""
    silence_ns = {}
    for count in (2, 6):
        sim = SimDriver(6)
        for name in NAMES[:count]:
            sim.add(name)
        sim.meet()
        sim.run_for(2 * SECOND)
        for name in NAMES[1:count]:
            sim.cut("n0", name)
        sim.run_for(6 * SECOND)
        first = next(event for _, event in sim.nodes[NodeId("n1")].events if type(event) is NeighbourDead)
        silence_ns[count] = first.silent_ns
    assert silence_ns[6] < silence_ns[2] - 500 * MS
    assert silence_ns[6] >= SETTINGS.suspect_after_silence_ns + SETTINGS.suspicion_min_ns
