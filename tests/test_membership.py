"""Who is there: random histories of whole nodes, and what strangers and insiders try on one."""

from random import Random

import pytest

from protocols import limits
from protocols.codec import decode_untrusted_node_frame, encode_frame
from protocols.contacts import MAX_DIALS
from protocols.engine import Engine
from protocols.events import (
    ClosePipe,
    Dial,
    DuplicateIdentity,
    HangUp,
    NeighbourDead,
    NeighbourLeft,
    NeighbourMet,
    NeighbourRefuted,
    NeighbourSuspected,
    PeerRefused,
)
from protocols.ids import Incarnation, Lane, MeshName, NodeId, Role
from protocols.membership import MAX_PIPES_PER_NEIGHBOUR, Settings, State
from protocols.messages import Goodbye, Heartbeat, Hello, Interest, NodeFrame, Refusal, Want
from sims.driver import SimDriver
from tests.strategies import NOW_UTC_NS, engine, identity

MS, SECOND = limits.MS, limits.SECOND
NAMES = ("n0", "n1", "n2", "n3", "n4", "n5")
SETTINGS = Settings()
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
            for view in node.engine.peers(now):
                ended = self.ended_ns.get(view.node)
                if ended is not None and view.state in (State.ALIVE, State.SUSPECT):
                    assert min(now - ended, watching_ns) <= LONGEST_TO_DEAD_NS, f"{name} believes in {view.node}"

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
                        silent_ns = at - node.heard_ns.get(event.node, -SECOND)
                        heard[node.name, at] = silent_ns
                        if silent_ns >= 0:  # else something came in after the death was noted
                            assert silent_ns >= SETTINGS.suspicion_min_ns
                            assert event.silent_ns >= SETTINGS.suspicion_min_ns


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
    sim.run_for(800 * MS)
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


# --- one node, and what others try ---------------------------------------------------------------------------------
class Alone:
    """One engine; the test plays everybody else."""

    def __init__(self, **more: object) -> None:
        self.engine: Engine = engine("me", **more)
        self.now = SECOND
        self.pipes = 0

    def pipe(self, node: str, role: Role = Role.VEHICLE) -> int:
        assert self.engine.admit(identity(node, role), self.now) is None
        self.pipes += 1
        self.engine.inbound_opened(self.pipes, identity(node, role), "192.0.2.1", self.now)
        return self.pipes

    def receive(self, pipe: int, frame: NodeFrame | bytes) -> None:
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        self.engine.receive(data, pipe, self.now, NOW_UTC_NS)

    def hello(self, node: str, incarnation: int = 5, **more: int) -> int:
        pipe = self.pipe(node)
        self.receive(pipe, Hello(more.get("major", 1), 0, node, incarnation, more.get("port", 7000), "realtime"))
        return pipe

    def lane(self, node: str, incarnation: int = 5) -> int:
        """Both directions; returns the dial of our lane."""
        self.hello(node, incarnation)
        dial = self.dials()[-1]
        self.engine.lane_opened(dial.dial, identity(node), self.now)
        return dial.dial

    def timers(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        while (due := self.engine.next_timer_at()) <= end:
            assert due > self.now or self.engine.next_timer_at() <= self.now
            self.now = max(due, self.now)
            self.engine.handle_timer(self.now)
            assert self.engine.next_timer_at() > self.now, "a timer that never rests would burn a core"
        self.now = end

    def dials(self) -> list[Dial]:
        self.engine.handle_timer(self.now)
        return [effect for effect in self.engine.outgoing() if type(effect) is Dial]

    def sent(self, dial: int) -> list[NodeFrame]:
        frames = []
        while (data := self.engine.next_frame(dial, self.now)) is not None:
            frames.append(decode_untrusted_node_frame(data))
        return frames


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (identity("x", mesh=MeshName("other")), "belongs to mesh 'other', not 'sim'"),
        (identity("x", Role.RELAY), "role 'relay' may not be a neighbour"),
    ],
)
def test_admit_of_a_wrong_certificate_is_refused_with_the_reason(who: object, why: str) -> None:
    """And remembered: one event, no dial back."""
    alone = Alone()
    for _ in range(3):
        assert why in str(alone.engine.admit(who, alone.now))  # type: ignore[arg-type]
    refusals = alone.engine.events()
    alone.hello("warm-up")
    assert len(refusals + [e for e in alone.engine.events() if type(e) is PeerRefused]) <= 1
    assert alone.engine.statistics()["pipes_refused"] == 3


def test_frame_before_hello_is_not_used() -> None:
    """Nothing counts before the id was compared with the certificate."""
    alone = Alone()
    pipe = alone.pipe("x")
    alone.receive(pipe, Interest(1, (Want("**"),)))
    alone.receive(pipe, Hello(1, 0, "x", 1, 7000, "realtime"))
    assert alone.engine.outgoing() == [ClosePipe(pipe)]
    assert alone.engine.peers(alone.now) == []
    assert alone.engine.wanted_by("**") == []
    assert alone.engine.statistics()["frames_before_hello"] == 1
    alone.receive(99, Hello(1, 0, "x", 1, 7000, "realtime"))
    assert alone.engine.peers(alone.now) == []


def test_pipe_that_stays_mute_is_closed_even_by_a_lonely_node() -> None:
    """Sockets are not free, and the first neighbour may never come."""
    alone = Alone()
    pipe = alone.pipe("x")
    alone.timers(limits.HELLO_TIMEOUT_NS + SECOND)
    assert ClosePipe(pipe) in alone.engine.outgoing()
    alone.timers(10 * SECOND)
    assert alone.engine.outgoing() == []


def test_pipes_of_one_identity_are_bounded() -> None:
    """An insider that opens one after the other costs so many sockets and no more; the newest is most likely real."""
    alone = Alone()
    for _ in range(MAX_PIPES_PER_NEIGHBOUR + 3):
        alone.hello("x")
    closed = [effect.pipe for effect in alone.engine.outgoing() if type(effect) is ClosePipe]
    assert closed == [1, 2, 3]
    for pipe in closed:
        alone.engine.inbound_closed(pipe, alone.now)
    assert alone.engine.peers(alone.now)[0].inbound_pipes <= MAX_PIPES_PER_NEIGHBOUR


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(2, 0, "x", 5, 7000, "realtime"), "version"),
        (b"\x93\x01\x02\xc1", "version"),
        (Hello(1, 0, "y", 5, 7000, "realtime"), "identity"),
        (b"\x92\x01\x01", "protocol"),
    ],
)
def test_hello_that_contradicts_is_refused_by_name(hello: Hello | bytes, code: str) -> None:
    """Other major, other id, or not a Hello at all: the pipe goes before anything was used."""
    alone = Alone()
    pipe = alone.pipe("x")
    alone.receive(pipe, hello)
    alone.receive(pipe, Hello(1, 0, "x", 5, 7000, "realtime"))
    assert ClosePipe(pipe) in alone.engine.outgoing()
    refused = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert [event.code for event in refused] == [code]
    assert alone.engine.peers(alone.now) == []


def test_hello_of_another_major_on_a_second_pipe_is_answered_by_a_refusal() -> None:
    """Who can be told is told, by code."""
    alone = Alone()
    dial = alone.lane("x")
    alone.sent(dial)
    alone.receive(alone.pipe("x"), Hello(7, 3, "x", 5, 7000, "bulk"))
    alone.receive(alone.pipe("x"), b"\x93\x01\x07\xc1")
    answers = alone.sent(dial)
    assert [answer.code for answer in answers if type(answer) is Refusal] == ["version", "version"]


def test_refusal_from_a_neighbour_is_told_and_remembered() -> None:
    """The operator reads why; the node does not knock again at once."""
    alone = Alone()
    dial = alone.lane("x")
    alone.receive(1, Refusal("full", "this node has 64 neighbours"))
    assert PeerRefused("x", "refused by it (full)", "this node has 64 neighbours") in alone.engine.events()
    alone.engine.lane_closed(dial, "closed", False, alone.now)
    assert alone.dials() == []
    alone.now += limits.REFUSAL_MEMORY_NS + SECOND
    assert len(alone.dials()) == 1


def test_hello_of_an_older_life_is_a_duplicate() -> None:
    """Two nodes with one id: the newer one is right while it lives."""
    alone = Alone()
    alone.lane("x", 9)
    alone.hello("x", 8)
    kinds = [type(event) for event in alone.engine.events()]
    assert DuplicateIdentity in kinds
    assert PeerRefused in kinds
    assert alone.engine.peers(alone.now)[0].incarnation == 9


def test_hello_with_our_own_id_is_told_as_a_duplicate_of_ours() -> None:
    """Ourselves behind a seed is harmless, another with our certificate is not."""
    alone = Alone()
    alone.hello("me", 1_000)
    assert alone.engine.events() == []
    alone.hello("me", 1_001)
    assert alone.engine.events() == [DuplicateIdentity(NodeId("me"), True, "192.0.2.1")]
    alone.engine.duplicate_hint("192.0.2.9")
    alone.engine.handle_timer(alone.now)
    assert alone.engine.events() == [DuplicateIdentity(NodeId("me"), True, "192.0.2.9")]


def test_pipe_of_a_former_life_is_not_heard_any_more() -> None:
    """What still comes out of it was said by a process that is gone."""
    alone = Alone()
    old = alone.hello("x", 5)
    alone.hello("x", 6)
    alone.receive(old, Interest(99, (Want("**"),)))
    assert alone.engine.wanted_by("**") == []
    assert ClosePipe(old) in alone.engine.outgoing()
    assert not [event for event in alone.engine.events() if type(event) is PeerRefused]


def test_goodbye_of_a_former_life_changes_nothing() -> None:
    """It was on its way when its sender was replaced."""
    alone = Alone()
    alone.lane("x", 9)
    alone.receive(1, Goodbye(8))
    assert alone.engine.peers(alone.now)[0].state is State.ALIVE


def test_frames_after_goodbye_are_no_offence() -> None:
    """The bulk lane may still hold some; a node that left politely is not refused when it returns."""
    alone = Alone()
    first, second = alone.hello("x", 5), alone.hello("x", 5)
    alone.receive(first, Goodbye(5))
    alone.receive(second, Heartbeat(1, 1, 0, 0, 0))
    assert [type(event) for event in alone.engine.events()] == [NeighbourLeft]
    assert alone.engine.statistics()["frames_before_hello"] == 0


@pytest.mark.parametrize(
    "beat",
    [
        Heartbeat(2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1, ("me", "x", "nobody", ""[:0] or "y")),
        Heartbeat(0, 0, 0, 0, 0),
        Heartbeat(1, 0, 1, 0, 2**64 - 1),
        Heartbeat(1, 2**64 - 1, 1, 0, 0, (), True),
    ],
)
def test_heartbeat_with_an_absurd_clock_hurts_nobody(beat: Heartbeat) -> None:
    """Numbers of strangers stay numbers: no crash, no negative round trip, and what we send back can be encoded."""
    alone = Alone()
    dial = alone.lane("x")
    for _ in range(3):
        alone.receive(1, beat)
        alone.timers(300 * MS)
    view = alone.engine.peers(alone.now)[0]
    assert 0 <= view.round_trip_ns < 60 * SECOND
    assert [frame for frame in alone.sent(dial) if type(frame) is Heartbeat]


def test_heartbeat_that_accuses_brings_nobody_down_alone() -> None:
    """An insider may accuse whom it likes: without our own suspicion it counts for nothing."""
    alone = Alone()
    alone.lane("liar")
    victim = alone.hello("victim")
    for _ in range(20):
        alone.receive(1, Heartbeat(1, 1, 0, 0, 0, ("victim", "me", "liar")))
        alone.receive(victim, Heartbeat(1, 1, 0, 0, 0))
        alone.timers(250 * MS)
    assert {view.state for view in alone.engine.peers(alone.now)} == {State.ALIVE}


def test_lane_to_a_peer_that_never_comes_back_is_given_up() -> None:
    """Its host lost power after our dial: no Hello, no reset, nobody would ever tell."""
    alone = Alone()
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 7000),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("x"), alone.now)
    assert [view.node for view in alone.engine.peers(alone.now)] == ["x"]
    alone.timers(SETTINGS.dial_timeout_ns + limits.HELLO_TIMEOUT_NS + SECOND)
    assert alone.engine.peers(alone.now) == []
    assert HangUp(dial) in alone.engine.outgoing()
    alone.timers(2 * limits.REDIAL_MAX_NS)
    assert [effect for effect in alone.engine.outgoing() if type(effect) is Dial]
    assert len(alone.engine._queues) == 0


# --- hints ---------------------------------------------------------------------------------------------------------
def test_hints_of_a_flood_are_bounded_in_number_and_in_dials() -> None:
    """Anybody on the radio can send adverts for doors that never answer."""
    alone = Alone()
    for number in range(3 * limits.MAX_ADVERTS):
        alone.engine.hint(f"fake-{number}", NodeId(f"fake-{number}"), (("192.0.2.9", number),) * 50, alone.now)
    first = alone.dials()
    assert len(first) == MAX_DIALS
    assert alone.engine.statistics()["hints_ignored"] == 2 * limits.MAX_ADVERTS
    assert alone.engine.next_timer_at() > alone.now
    for dial in first:
        alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
    assert len(alone.dials()) == MAX_DIALS, "the next ones, before those that failed"


def test_neighbour_that_came_itself_is_dialled_back_despite_a_full_table() -> None:
    """A stranger's flood must not keep authenticated nodes apart."""
    alone = Alone()
    for number in range(limits.MAX_ADVERTS):
        alone.engine.hint(f"fake-{number}", NodeId(f"fake-{number}"), (("192.0.2.9", number),), alone.now)
    for dial in alone.dials():
        alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
    alone.hello("real", port=4242)
    addresses = [(dial.host, dial.port) for dial in alone.dials()]
    assert ("192.0.2.1", 4242) in addresses


def test_hint_that_leads_nowhere_makes_room_for_a_newer_one() -> None:
    """Yesterday's adverts must not keep out today's."""
    alone = Alone()
    for number in range(limits.MAX_ADVERTS):
        alone.engine.hint(f"old-{number}", NodeId(f"old-{number}"), (("192.0.2.9", number),), alone.now)
    for _ in range(60):
        for dial in alone.dials():
            alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
        alone.now += limits.REDIAL_MAX_NS
    alone.dials()
    before = alone.engine.statistics()["hints_ignored"]
    alone.engine.hint("new", NodeId("new"), (("192.0.2.8", 1),), alone.now)
    assert alone.engine.statistics()["hints_ignored"] == before + 1, "one was forgotten for it"


def test_hint_with_anothers_address_does_not_block_the_real_one() -> None:
    """A stranger may advertise rsu-1 at the address of veh-2; rsu-1 must still be dialled where it is."""
    alone = Alone()
    alone.engine.hint("rsu-1", NodeId("rsu-1"), (("192.0.2.2", 7000),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("veh-2"), alone.now)
    assert HangUp(dial) in alone.engine.outgoing()
    alone.engine.handle_timer(alone.now)
    refused = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert refused[0].detail == "its advert says rsu-1, its certificate veh-2"
    alone.engine.hint("rsu-1", NodeId("rsu-1"), (("192.0.2.1", 7000),), alone.now)
    assert [(dial.host, dial.port) for dial in alone.dials()] == [("192.0.2.1", 7000)]


def test_hint_withdrawn_ends_dialling_but_no_link() -> None:
    """MDNS is a hint in both directions."""
    alone = Alone()
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 7000),), alone.now)
    alone.engine.hint("gone", NodeId("gone"), (("192.0.2.8", 7000),), alone.now)
    x, gone = alone.dials()
    alone.engine.lane_opened(x.dial, identity("x"), alone.now)
    alone.engine.withdraw("x")
    alone.engine.withdraw("gone")
    alone.engine.withdraw("never heard of")
    alone.engine.lane_closed(gone.dial, "no answer", False, alone.now)
    alone.engine.outgoing()
    alone.now += 60 * SECOND
    assert alone.dials() == []
    alone.engine.hint("later", NodeId("later"), (("192.0.2.9", 1),), alone.now)
    alone.engine.withdraw("later")
    assert alone.dials() == []


def test_hint_that_moved_gives_up_the_dial_to_the_old_place() -> None:
    """A vehicle got another address while we knocked at the former one."""
    alone = Alone()
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    old = alone.dials()[0]
    alone.engine.hint("x", NodeId("x"), (("192.0.2.8", 2),), alone.now)
    assert alone.engine.outgoing() == [HangUp(old.dial)]
    assert [(dial.host, dial.port) for dial in alone.dials()] == [("192.0.2.8", 2)]
    alone.engine.lane_opened(old.dial, identity("x"), alone.now)
    assert HangUp(old.dial) in alone.engine.outgoing()
    alone.engine.lane_closed(old.dial, "closed", False, alone.now)


def test_hint_about_ourselves_or_without_address_is_no_hint() -> None:
    """Our own advert comes back to us."""
    alone = Alone()
    alone.engine.hint("me", NodeId("me"), (("192.0.2.7", 1),), alone.now)
    alone.engine.hint("x", NodeId("x"), (), alone.now)
    assert alone.dials() == []


def test_hint_with_several_addresses_tries_them_in_turn_and_briefly() -> None:
    """One of them may lead nowhere; IPv6 and IPv4 of one host often do."""
    alone = Alone()
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 1), ("192.0.2.8", 1)), alone.now)
    tried = []
    for _ in range(6):
        dial = alone.dials()[0]
        tried.append((dial.host, dial.timeout_ns // MS))
        alone.engine.lane_closed(dial.dial, "no answer", False, alone.now)
        alone.now += 60 * SECOND
    assert [host[-1] for host, _ in tried] == ["7", "8"] * 3
    assert [timeout_ms for _, timeout_ms in tried] == [1_500, 1_500, 3_000, 3_000, 5_000, 5_000]


def test_seed_welcomes_whoever_answers_but_not_ourselves() -> None:
    """A seed has an address and no name."""
    alone = Alone()
    alone.engine.hint("seed", None, (("192.0.2.7", 1),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("me"), alone.now)
    assert HangUp(dial) in alone.engine.outgoing()
    alone.now += 600 * SECOND
    assert alone.dials() == [], "we know ourselves"
    alone.engine.hint("other", None, (("192.0.2.8", 1),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("x", Role.RSU), alone.now)
    assert alone.engine.peers(alone.now)[0].lanes == (Lane.REALTIME,)
    alone.engine.hint("x", NodeId("x"), (("192.0.2.8", 1),), alone.now)
    assert alone.dials() == [], "it has a lane already"


def test_second_way_to_one_inbox_is_closed() -> None:
    """Two seeds may lead to one node."""
    alone = Alone()
    alone.engine.hint("one", None, (("192.0.2.7", 1),), alone.now)
    alone.engine.hint("two", None, (("192.0.2.8", 1),), alone.now)
    first, second = alone.dials()
    alone.engine.lane_opened(first.dial, identity("x"), alone.now)
    alone.engine.lane_opened(second.dial, identity("x"), alone.now)
    assert HangUp(second.dial) in alone.engine.outgoing()


def test_dial_refused_for_its_identity_is_left_alone_for_a_while() -> None:
    """NNG alone would redial 17 times in half a second."""
    alone = Alone()
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    alone.engine.lane_closed(alone.dials()[0].dial, "certificate of another mesh", True, alone.now)
    assert [type(event) for event in alone.engine.events()] == [PeerRefused]
    alone.now += limits.REFUSAL_MEMORY_NS - SECOND
    assert alone.dials() == []
    alone.now += 2 * SECOND
    assert len(alone.dials()) == 1


def test_refusals_of_many_strangers_fill_neither_memory_nor_log() -> None:
    """An attacker has as many addresses as it likes."""
    alone = Alone()
    for number in range(5 * limits.MAX_ADVERTS):
        alone.engine.refused_before_identity(f"stranger-{number}", "no certificate", alone.now)
    alone.engine.handle_timer(alone.now)
    assert len(alone.engine.events()) <= limits.MAX_ADVERTS
    assert alone.engine.statistics()["pipes_refused"] == 5 * limits.MAX_ADVERTS
    alone.now += limits.REFUSAL_MEMORY_NS + 1
    alone.engine.refused_before_identity("fresh", "no certificate", alone.now)
    alone.engine.handle_timer(alone.now)
    assert len(alone.engine.events()) == 1


# --- bounds --------------------------------------------------------------------------------------------------------
def test_neighbours_beyond_the_bound_are_refused_as_full() -> None:
    """Each costs two TLS sessions each way."""
    alone = Alone(membership=Settings(max_neighbours=3))
    for node in ("a", "b", "c"):
        alone.hello(node)
    assert "full" in str(alone.engine.admit(identity("d"), alone.now))
    assert alone.engine.admit(identity("a"), alone.now) is None, "who is known may have a second lane"
    alone.engine.hint("e", NodeId("e"), (("192.0.2.7", 1),), alone.now)
    assert "e" not in [dial.host for dial in alone.dials()]


def test_neighbours_long_dead_are_forgotten_with_where_they_were() -> None:
    """An RSU meets thousands of vehicles a day."""
    alone = Alone()
    for number in range(40):
        pipe = alone.hello(f"veh-{number}")
        alone.engine.inbound_closed(pipe, alone.now)
        for dial in alone.dials():
            alone.engine.lane_closed(dial.dial, "unreachable", False, alone.now)
        alone.timers(SECOND)
        for effect in alone.engine.outgoing():
            if type(effect) is Dial:
                alone.engine.lane_closed(effect.dial, "unreachable", False, alone.now)
    alone.timers(2 * limits.FORGET_DEAD_NS)
    for effect in alone.engine.outgoing():
        if type(effect) is Dial:
            alone.engine.lane_closed(effect.dial, "unreachable", False, alone.now)
    alone.timers(limits.FORGET_DEAD_NS)
    assert alone.engine.peers(alone.now) == []
    assert alone.engine._queues == {}
    alone.engine.outgoing()
    alone.timers(60 * SECOND)
    assert [effect for effect in alone.engine.outgoing() if type(effect) is Dial] == []


def test_restart_with_a_smaller_incarnation_is_heard_once_dead() -> None:
    """Its state folder was lost; its id must not be lost with it."""
    alone = Alone()
    pipe = alone.hello("x", 9)
    alone.engine.inbound_closed(pipe, alone.now)
    alone.timers(2 * SECOND)
    alone.hello("x", 3)
    view = alone.engine.peers(alone.now)[0]
    assert (view.incarnation, view.state) == (Incarnation(3), State.ALIVE)


def test_timer_that_is_held_up_by_a_callback_forgives_silence() -> None:
    """A user's slow callback blocks receiving: what was not read can't be held against anybody."""
    alone = Alone()
    pipe = alone.hello("x")
    alone.engine.handle_timer(alone.now)
    for _ in range(40):
        alone.now += 250 * MS
        alone.engine.handle_timer(alone.now, alone.now - 500 * MS)
    assert alone.engine.peers(alone.now)[0].state is State.ALIVE
    for _ in range(40):
        alone.now += 250 * MS
        alone.engine.handle_timer(alone.now)
    assert alone.engine.peers(alone.now)[0].state is State.DEAD
    alone.receive(pipe, Heartbeat(1, 1, 0, 0, 0))
    assert alone.engine.peers(alone.now)[0].state is State.DEAD, "a closed pipe proves nothing"


def test_leaving_node_says_goodbye_and_dials_nobody() -> None:
    """And asks for no bulk lane in its last moment."""
    alone = Alone()
    dial = alone.lane("x")
    alone.sent(dial)
    alone.engine.hint("y", NodeId("y"), (("192.0.2.7", 1),), alone.now)
    alone.engine.leave("stopped", alone.now)
    assert [type(frame) for frame in alone.sent(dial)] == [Goodbye]
    assert alone.dials() == []
    alone.timers(SECOND)


def test_hint_of_somebody_refused_lately_waits() -> None:
    """It was let go for its certificate; its advert, heard again, is no reason to knock."""
    alone = Alone()
    assert alone.engine.admit(identity("x", Role.RELAY), alone.now)
    alone.engine.hint("x", NodeId("x"), (("192.0.2.7", 1),), alone.now)
    assert alone.dials() == []
    assert alone.engine.next_timer_at() == alone.now + limits.REFUSAL_MEMORY_NS


def test_neighbour_forgotten_takes_its_dial_under_way_along() -> None:
    """It said Hello once, its inbox was never reached, and it died."""
    alone = Alone()
    pipe = alone.hello("x")
    alone.engine.inbound_closed(pipe, alone.now)
    alone.timers(limits.FORGET_DEAD_NS + 10 * SECOND)
    assert alone.engine.peers(alone.now) == []
    effects = alone.engine.outgoing()
    assert [type(effect) for effect in effects if type(effect) in (Dial, HangUp)] == [Dial, HangUp]


def test_events_about_what_is_not_there_are_ignored() -> None:
    """A driver with threads may report late."""
    alone = Alone()
    alone.engine.inbound_closed(77, alone.now)
    alone.engine.lane_closed(77, "late", False, alone.now)
    alone.engine.receive(b"\x92\x01\x02", 77, alone.now, NOW_UTC_NS)
    assert alone.engine.outgoing() == []
    assert alone.engine.events() == []
