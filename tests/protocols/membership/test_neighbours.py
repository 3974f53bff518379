"""One node, and what strangers and insiders try on it: identities, Hellos, heartbeats, and numbers."""

import pytest

from protocols.base import limits
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.base.sequences import MAX_INCARNATION
from protocols.events import DuplicateIdentity
from protocols.membership.events import (
    ClosePipe,
    Dial,
    HangUp,
    NeighbourLeft,
    NeighbourRefuted,
    NeighbourSuspected,
    PeerRefused,
)
from protocols.membership.neighbour import State
from protocols.membership.pipes import MAX_PIPES_PER_NEIGHBOUR
from protocols.membership.settings import MembershipSettings
from protocols.wire.membership import Goodbye, Heartbeat, Hello, Refusal
from protocols.wire.readings import Interest, Readings, Want
from tests.tools.lone_node_fixture import Alone
from tests.tools.strategies import NOW_UTC_NS, identity, reading

MS, SECOND = limits.MS, limits.SECOND
SETTINGS = MembershipSettings()


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
        assert why in str(alone.engine.membership.admit(who, alone.now))  # type: ignore[arg-type]
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
    assert alone.engine.readings.wanted_by("**") == []
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


def test_hello_whose_incarnation_is_out_of_range_is_refused_by_name_and_disturbs_nobody() -> None:
    """Beyond the bound there are no sequences. Only an insider sends it, and only its own pipe ends."""
    alone = Alone()
    alone.lane("x", 9)
    alone.hello("honest")
    pipe = alone.hello("x", MAX_INCARNATION + 1)
    (refused,) = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert (refused.who, refused.code) == ("x", "incarnation")
    assert refused.detail.startswith("incarnation out of range")
    assert [effect for effect in alone.engine.outgoing() if type(effect) is ClosePipe] == [ClosePipe(pipe)]
    assert [(peer.node, peer.incarnation) for peer in alone.engine.peers(alone.now)] == [("honest", 5), ("x", 9)]
    alone.hello("y", MAX_INCARNATION)
    assert not [event for event in alone.engine.events() if type(event) is PeerRefused]


def test_hello_with_our_own_id_is_told_as_a_duplicate_of_ours() -> None:
    """Ourselves behind a seed is harmless, another with our certificate is not."""
    alone = Alone()
    alone.hello("me", 1_000)
    assert alone.engine.events() == []
    alone.hello("me", 1_001)
    assert alone.engine.events() == [DuplicateIdentity(NodeId("me"), True, "192.0.2.1")]
    alone.engine.membership.duplicate_hint("192.0.2.9")
    alone.engine.handle_timer(alone.now)
    assert alone.engine.events() == [DuplicateIdentity(NodeId("me"), True, "192.0.2.9")]


def test_pipe_of_a_former_life_is_not_heard_any_more() -> None:
    """What still comes out of it was said by a process that is gone."""
    alone = Alone()
    old = alone.hello("x", 5)
    alone.hello("x", 6)
    alone.receive(old, Interest(99, (Want("**"),)))
    assert alone.engine.readings.wanted_by("**") == []
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


def test_neighbour_that_falls_silent_is_asked_for_an_answer() -> None:
    """Silence is found when heartbeats are due: the next of these used to take the place of the question."""
    alone = Alone()
    dial = alone.lane("x")
    for _ in range(20):
        alone.sent(dial)
        alone.timers(max(alone.engine.next_timer_at() - alone.now, 0))
        if NeighbourSuspected in {type(event) for event in alone.engine.events()}:
            break
    (beat,) = [frame for frame in alone.sent(dial) if type(frame) is Heartbeat]
    assert beat.answer
    alone.timers(300 * MS)
    assert not any(frame.answer for frame in alone.sent(dial) if type(frame) is Heartbeat)


@pytest.mark.parametrize(("neighbours", "suspected"), [(3, True), (24, False)])
def test_newcomer_in_a_crowd_waits_until_the_others_had_a_turn(neighbours: int, suspected: bool) -> None:
    """Twenty-four that keep the least pace get to it every two seconds; it took them all for dead after one."""
    alone = Alone()
    for number in range(neighbours):
        alone.hello(f"n{number}", port=7_000 + number)
        (dial,) = alone.dials()
        alone.engine.lane_opened(dial.dial, identity(f"n{number}"), alone.now)
    alone.timers(4 * SECOND)
    events = {type(event) for event in alone.engine.events()}
    assert (NeighbourSuspected in events) == suspected
    alone.timers(12 * SECOND)
    assert NeighbourSuspected in events | {type(event) for event in alone.engine.events()}, "not for ever"


def test_refutation_by_a_reading_is_told_at_once() -> None:
    """Found by simulation: its event waited for the next control frame or timer."""
    alone = Alone()
    pipe = alone.hello("x")
    alone.timers(SETTINGS.suspect_after_silence_ns + 100 * MS)
    assert [type(event) for event in alone.engine.events()] == [NeighbourSuspected]
    alone.receive(pipe, Readings((reading("veh/x/a", "x"),)))
    assert alone.engine.flushes() is None
    assert [type(event) for event in alone.engine.events()] == [NeighbourRefuted]


def test_accusation_of_somebody_not_suspected_here_leaves_nothing_to_do() -> None:
    """On the road somebody always drives out of reach: heartbeats that say so must not cost more than others. One that
    brings an end nearer has to be seen at once, for the timer is due sooner."""
    alone = Alone()
    for node in ("x", "y", "z", "victim"):
        alone.hello(node)
    alone.engine.outgoing()
    alone.receive(1, Heartbeat(1, 1, 0, 0, 0, ("victim", "nobody")))
    assert alone.engine.flushes() == []
    for _ in range(8):
        alone.timers(250 * MS)
        for pipe in (1, 2, 3):
            alone.receive(pipe, Heartbeat(1, 1, 0, 0, 0))
    (suspected,) = alone.engine.events()
    assert type(suspected) is NeighbourSuspected
    alone.engine.outgoing()
    alone.receive(1, Heartbeat(2, 1, 0, 0, 0, ("nobody",)))
    assert alone.engine.flushes() == []
    alone.receive(1, Heartbeat(3, 1, 0, 0, 0, ("victim",)))
    assert alone.engine.flushes() is None
    alone.engine.outgoing()
    alone.receive(1, Heartbeat(4, 1, 0, 0, 0, ("victim",)))
    assert alone.engine.flushes() == []


def test_lane_to_a_peer_that_never_comes_back_is_given_up() -> None:
    """Its host lost power after our dial: no Hello, no reset, nobody would ever tell."""
    alone = Alone()
    alone.engine.membership.hint("x", NodeId("x"), (("192.0.2.7", 7000),), alone.now)
    dial = alone.dials()[0].dial
    alone.engine.lane_opened(dial, identity("x"), alone.now)
    assert [view.node for view in alone.engine.peers(alone.now)] == ["x"]
    alone.timers(SETTINGS.dial_timeout_ns + limits.HELLO_TIMEOUT_NS + SECOND)
    assert alone.engine.peers(alone.now) == []
    assert HangUp(dial) in alone.engine.outgoing()
    alone.timers(2 * limits.REDIAL_MAX_NS)
    assert [effect for effect in alone.engine.outgoing() if type(effect) is Dial]
    assert len(alone.engine.lanes.of_node) == 0


# --- bounds --------------------------------------------------------------------------------------------------------
def test_neighbours_beyond_the_bound_are_refused_as_full() -> None:
    """Each costs two TLS sessions each way."""
    alone = Alone(membership=MembershipSettings(max_neighbours=3))
    for node in ("a", "b", "c"):
        alone.hello(node)
    assert "full" in str(alone.engine.membership.admit(identity("d"), alone.now))
    assert alone.engine.membership.admit(identity("a"), alone.now) is None, "who is known may have a second lane"
    alone.engine.membership.hint("e", NodeId("e"), (("192.0.2.7", 1),), alone.now)
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
    assert alone.engine.lanes.of_node == {}
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
    alone.engine.membership.hint("y", NodeId("y"), (("192.0.2.7", 1),), alone.now)
    alone.engine.membership.leave("stopped")
    alone.engine.carry(alone.now)
    assert [type(frame) for frame in alone.sent(dial)] == [Goodbye]
    assert alone.dials() == []
    alone.timers(SECOND)


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
