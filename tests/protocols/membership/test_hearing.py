"""One node, and a neighbour that may not hear it any more: it has moved, or something on the way forgot the link."""

from itertools import pairwise
from random import Random

import pytest

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.membership.events import ClosePipe, Dial, HangUp, NeighbourSuspected
from protocols.membership.neighbour import State
from protocols.membership.pipes import AdmittedPipes
from protocols.membership.settings import MembershipSettings
from protocols.wire.membership import Heartbeat
from sims.virtual.driver import SimDriver
from tests.tools.lone_node_fixture import Alone
from tests.tools.strategies import identity

MS, SECOND = limits.MS, limits.SECOND
SETTINGS = MembershipSettings()
SILENCE_NS = SETTINGS.suspect_after_silence_ns
DEATH_NS = SETTINGS.suspect_after_silence_ns + SETTINGS.suspicion_max_ns


class Heard(Alone):
    """A node with a neighbour at 192.0.2.1 to which both directions of a link are open."""

    def __init__(self) -> None:
        super().__init__()
        self.dial = self.lane("x")
        self.beats = self.heard = 0
        self.here = self.pipes
        self.engine.events()
        self.engine.outgoing()
        self.take()

    def take(self) -> None:
        """The neighbour hears what was sent to it on the lane that was open at first."""
        self.heard = max([self.heard, *(beat.sequence for beat in self.sent(self.dial) if type(beat) is Heartbeat)])

    def go(self, duration_ns: int, pipe: int, hears: bool) -> list[object]:
        """Heartbeats of the neighbour come on ``pipe`` meanwhile. Returns what was done."""
        done: list[object] = []
        end = self.now + duration_ns
        while self.now < end:
            self.timers(SETTINGS.heartbeat_interval_ns)
            if hears:
                self.take()
            self.beats += 1
            self.receive(pipe, Heartbeat(self.beats, self.now, self.heard, 0, 0))
            done.extend(self.engine.outgoing())
        return done


def test_neighbour_that_was_silent_and_says_hello_from_elsewhere_is_dialled_there_at_once() -> None:
    """Its address has changed. Its new pipe keeps it alive, so nothing else would ever end the lane to the old one."""
    alone = Heard()
    alone.timers(SILENCE_NS + SETTINGS.heartbeat_interval_ns)
    assert [type(event) for event in alone.engine.events()] == [NeighbourSuspected]
    alone.hello("x", host="192.0.2.99")
    alone.engine.handle_timer(alone.now)
    effects = alone.engine.outgoing()
    assert HangUp(alone.dial, lost=True) in effects
    assert [(one.host, one.port) for one in effects if type(one) is Dial] == [("192.0.2.99", 7000)]
    assert alone.engine.peers(alone.now)[0].state is State.ALIVE
    assert alone.engine.statistics()["lanes_unheard"] == 1


def test_hello_again_is_asked_about_the_lane_and_an_answer_keeps_it() -> None:
    """A computer with two addresses may dial from either, and a node may dial anew for reasons of its own."""
    alone = Heard()
    pipe = alone.hello("x", host="192.0.2.99")
    assert [beat.answer for beat in alone.sent(alone.dial) if type(beat) is Heartbeat] == [True]
    alone.heard = alone.engine.membership.neighbours[NodeId("x")].heartbeat_sent
    done = alone.go(30 * SECOND, pipe, hears=True)
    assert [one for one in done if type(one) is HangUp] == []


@pytest.mark.parametrize("host", ["192.0.2.99", "192.0.2.1"])
def test_hello_again_without_an_answer_on_the_lane_ends_it(host: str) -> None:
    """The neighbour says that it does not hear us. Where it came from last it can be dialled."""
    alone = Heard()
    pipe = alone.hello("x", host=host)
    done = alone.go(SILENCE_NS - MS, pipe, hears=False)
    done += alone.go(2 * SETTINGS.heartbeat_interval_ns, pipe, hears=False)
    assert [one for one in done if type(one) is HangUp] == [HangUp(alone.dial, lost=True)]
    assert [(one.host, one.port) for one in done if type(one) is Dial] == [(host, 7000)]


def test_neighbour_that_never_heard_us_again_is_dialled_anew() -> None:
    """Its heartbeats go on and nothing of ours arrives: the last resort, after any callback has ended."""
    alone = Heard()
    assert [one for one in alone.go(DEATH_NS, alone.here, hears=False) if type(one) is HangUp] == []
    done = alone.go(4 * DEATH_NS, alone.here, hears=False)
    assert [one for one in done if type(one) is HangUp] == [HangUp(alone.dial, lost=True)]
    assert [(one.host, one.port) for one in done if type(one) is Dial][:1] == [("192.0.2.1", 7000)]


def test_node_that_did_not_run_gives_its_neighbours_time_to_answer() -> None:
    """Answers may wait in its sockets."""
    alone = Heard()
    pipe = alone.hello("x")
    alone.now += 20 * SECOND
    alone.engine.handle_timer(alone.now)
    alone.receive(pipe, Heartbeat(1, alone.now, 0, 0, 0))
    assert [one for one in alone.engine.outgoing() if type(one) is HangUp] == []


def test_silence_after_a_change_of_our_own_network_has_the_neighbour_dialled_at_once() -> None:
    """Asking on a lane from an address that is gone takes until the neighbour is dead."""
    alone = Heard()
    alone.engine.membership.network_changed(alone.now)
    alone.timers(SILENCE_NS + SETTINGS.heartbeat_interval_ns)
    effects = alone.engine.outgoing()
    assert HangUp(alone.dial, lost=True) in effects
    assert [(one.host, one.port) for one in effects if type(one) is Dial] == [("192.0.2.1", 7000)]
    assert [type(event) for event in alone.engine.events()] == [NeighbourSuspected]


def test_silence_after_a_change_is_put_down_to_it_even_if_this_node_did_not_run_meanwhile() -> None:
    """A busy computer forgives silence again and again, and suspects late."""
    alone = Heard()
    alone.now += MS
    alone.engine.membership.network_changed(alone.now)
    for _ in range(8):
        alone.now += SECOND
        alone.engine.handle_timer(alone.now)
    assert [one for one in alone.engine.outgoing() if type(one) is HangUp] == []
    alone.timers(SILENCE_NS + 2 * SETTINGS.heartbeat_interval_ns)
    assert HangUp(alone.dial, lost=True) in alone.engine.outgoing()


def test_change_of_our_own_network_that_a_link_survives_ends_nothing() -> None:
    """Another interface came or went."""
    alone = Heard()
    alone.engine.membership.network_changed(alone.now)
    done = alone.go(10 * SECOND, alone.here, hears=True)
    assert [one for one in done if type(one) is HangUp] == []
    alone.timers(SILENCE_NS + SETTINGS.heartbeat_interval_ns)
    assert [one for one in alone.engine.outgoing() if type(one) is HangUp] == []


def test_what_waits_for_a_lane_that_is_lost_waits_for_the_next_one() -> None:
    """Only what the lane had taken is lost."""
    alone = Heard()
    alone.timers(SILENCE_NS + SETTINGS.heartbeat_interval_ns)
    alone.hello("x", host="192.0.2.99")
    alone.engine.lanes.queues_of(NodeId("x")).realtime.put_control(b"frame")
    (dial,) = alone.dials()
    assert alone.engine.next_frame(alone.dial, alone.now) is None
    alone.engine.lane_opened(dial.dial, identity("x"), alone.now)
    frames = []
    while (frame := alone.engine.next_frame(dial.dial, alone.now)) is not None:
        frames.append(frame)
    assert b"frame" in frames
    assert alone.engine.drops.total == 0


def test_pipe_in_whose_place_another_came_is_closed_after_a_while() -> None:
    """Its end can't arrive from an address that is gone. A dead neighbour with a pipe left takes five times as long to
    notice."""
    alone = Heard()
    old, new = alone.here, alone.hello("x", host="192.0.2.99")
    alone.heard = alone.engine.membership.neighbours[NodeId("x")].heartbeat_sent
    assert ClosePipe(old) not in alone.go(limits.REPLACED_PIPE_NS - SECOND, new, hears=True)
    done = alone.go(2 * SECOND, new, hears=True)
    assert [one for one in done if type(one) is ClosePipe] == [ClosePipe(old)]
    assert alone.engine.peers(alone.now)[0].inbound_pipes == 1


def test_pipes_of_both_lanes_stay() -> None:
    """A bulk pipe does not take the place of a realtime one."""
    neighbour = Heard().engine.membership.neighbours[NodeId("x")]
    pipes = AdmittedPipes()
    for number, lane in enumerate(("realtime", "bulk", "bulk")):
        pipes.opened(number, identity("x"), "192.0.2.1", number)
        pipes.spoke(number, neighbour, lane, number)
    assert pipes.replaced({0, 1, 2}, 3 + limits.REPLACED_PIPE_NS) == [1]


# --- in a simulation -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_link_cut_for_longer_than_a_life_heals_however_timers_fall(seed: int) -> None:
    """Each of two nodes may be the first to give up and come again. What one of them sent is then stuck for good."""
    sim = SimDriver(seed)
    for name in ("n0", "n1"):
        sim.add(name)
    sim.meet()
    random = Random(seed)
    sim.run_for(2 * SECOND + random.randint(0, 500) * MS)
    sim.cut("n0", "n1")
    sim.run_for(DEATH_NS + random.randint(-300, 300) * MS)
    sim.heal()
    sim.run_for(15 * SECOND)
    for name, other in (("n0", "n1"), ("n1", "n0")):
        (view,) = sim.nodes[NodeId(name)].engine.peers(sim.now)
        assert (view.node, view.state, view.met, view.hears_us) == (other, State.ALIVE, True, True)


def test_node_whose_hello_was_lost_on_the_way_is_dialled_all_the_same() -> None:
    """The network broke between its handshake and its Hello. It was not dialled for half a minute, as if it had
    misbehaved, and neither were we."""
    alone = Heard()
    alone.timers(DEATH_NS + SECOND)
    alone.pipe("x")
    for one in alone.engine.outgoing():
        if type(one) is Dial:
            alone.engine.lane_closed(one.dial, "no route to host", False, alone.now)
    alone.timers(limits.HELLO_TIMEOUT_NS + SECOND)
    assert alone.engine.statistics()["pipes_refused"] == 1
    for one in alone.engine.outgoing():
        if type(one) is Dial:
            alone.engine.lane_closed(one.dial, "no route to host", False, alone.now)
    alone.timers(2 * limits.REDIAL_MAX_NS)
    assert [type(one) for one in alone.engine.outgoing()].count(Dial) >= 1


def test_dead_neighbour_that_takes_our_hello_and_says_none_is_dialled_again_and_again() -> None:
    """Both sides gave each other up, and a connection broke without a word. Each waited for the other's Hello on a lane
    that nobody watched, for good."""
    alone = Heard()
    alone.timers(DEATH_NS + SECOND)
    assert alone.engine.peers(alone.now)[0].state is State.DEAD
    dialled = []
    while len(dialled) < 3:
        for one in alone.engine.outgoing():
            if type(one) is Dial:
                dialled.append(alone.now)
                alone.engine.lane_opened(one.dial, identity("x"), alone.now)
        alone.timers(100 * MS)
    gaps = [after - before for before, after in pairwise(dialled)]
    assert all(limits.HELLO_TIMEOUT_NS <= gap <= limits.HELLO_TIMEOUT_NS + SECOND for gap in gaps)
    assert alone.engine.peers(alone.now)[0].state is State.DEAD
