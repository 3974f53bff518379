"""What one identity may cost a node, and what it can't do to the others."""

from protocols.base import limits
from protocols.base.ids import Role
from protocols.membership.accounts import MAX_ACCOUNTS, Accounts
from protocols.membership.events import ClosePipe, NeighbourDead, NeighbourLeft, PeerRefused
from protocols.membership.neighbour import State
from protocols.membership.suspicion import Suspicion
from protocols.wire.frame import Frame
from protocols.wire.gossip import GossipDigest
from protocols.wire.membership import Heartbeat, Hello, Refusal
from protocols.wire.readings import Interest, Readings, Want
from tests.tools.lone_node_fixture import MS, SECOND, Alone
from tests.tools.strategies import identity, reading

UNKNOWN = b"\x91\x3f"
"""A frame of two bytes, of a type that no version has yet."""


def _closed(alone: Alone) -> list[int]:
    return [effect.pipe for effect in alone.engine.outgoing() if type(effect) is ClosePipe]


def _drops(alone: Alone) -> dict[tuple[str, str], int]:
    return {(peer, reason): count for (peer, _, reason), count in alone.engine.drops.items()}


def test_unknown_frames_beyond_the_allowance_are_malformed_on_whichever_pipe_they_come() -> None:
    """Frames of two bytes at a megabyte a second took a whole core for ever: unknown frames cost their sender
    nothing."""
    alone = Alone()
    pipes = [alone.hello("insider"), alone.hello("insider")]
    other = alone.hello("newer")
    for number in range(limits.MAX_UNKNOWN_FRAME_BURST):
        alone.receive(pipes[number % 2], UNKNOWN)
    alone.receive(other, UNKNOWN)
    assert _closed(alone) == []
    for pipe in pipes:
        alone.receive(pipe, UNKNOWN)
    assert _closed(alone) == pipes
    refused = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert [(event.who, event.code) for event in refused] == [("insider", "protocol")]
    assert _drops(alone)["insider", "unknown_frame"] == limits.MAX_UNKNOWN_FRAME_BURST + 2
    alone.receive(alone.hello("insider"), UNKNOWN)
    assert len(_closed(alone)) == 1, "a new pipe brings no new allowance"


def test_unknown_frames_of_a_newer_version_at_a_moderate_pace_are_skipped() -> None:
    """A mesh is upgraded node by node."""
    alone = Alone()
    pipe = alone.hello("newer")
    for _ in range(1_000):
        alone.now += SECOND // limits.UNKNOWN_FRAMES_PER_S
        alone.receive(pipe, UNKNOWN)
    assert _closed(alone) == []


def test_unknown_frame_of_a_pipe_that_is_being_closed_costs_nobody_anything() -> None:
    """Frames are still on their way when a pipe is closed, and its number may be unknown already."""
    alone = Alone()
    pipe = alone.hello("newer")
    before = dict(alone.engine.drops.items())
    alone.receive(99, UNKNOWN)
    assert dict(alone.engine.drops.items()) == before
    alone.receive(pipe, b"nothing")
    assert _closed(alone) == [pipe]
    malformed = _drops(alone)
    alone.receive(pipe, UNKNOWN)
    assert _drops(alone) == malformed
    assert alone.engine.statistics()["frames_unknown"] == 2


def test_unknown_frame_before_hello_closes_its_pipe() -> None:
    """Nothing counts before Hello, so nothing may cost before Hello."""
    alone = Alone()
    pipe = alone.pipe("insider")
    alone.receive(pipe, UNKNOWN)
    assert _closed(alone) == [pipe]
    assert alone.engine.statistics()["frames_before_hello"] == 1


def test_control_frames_beyond_the_allowance_are_dropped_and_counted_by_neighbour() -> None:
    """Each machine had to bound what its own frames cost; an Interest or an offer cost its sender nothing."""
    alone = Alone()
    insider, honest = alone.hello("insider"), alone.hello("honest")
    frames: list[Frame] = [Interest(1, ()), GossipDigest(1, 1), Refusal("full"), Interest(2, ())]
    for number in range(limits.MAX_CONTROL_FRAME_BURST + 100):
        alone.receive(insider, frames[number % 4])
    assert _drops(alone)["insider", "control_over_rate"] == 100
    alone.receive(insider, Interest(3, (Want("veh/**"),)))
    alone.receive(honest, Interest(1, (Want("veh/**"),)))
    assert alone.engine.readings.wanted_by("veh/me/x") == ["honest"]
    alone.now += SECOND
    alone.receive(insider, Interest(4, (Want("veh/**"),)))
    assert alone.engine.readings.wanted_by("veh/me/x") == ["insider", "honest"]


def test_hello_of_a_new_life_is_heard_whatever_was_sent_before() -> None:
    """A neighbour that restarts after a burst would otherwise be alive and get nothing."""
    alone = Alone()
    pipe = alone.hello("busy")
    for _ in range(limits.MAX_CONTROL_FRAME_BURST):
        alone.receive(pipe, Interest(1, ()))
    alone.hello("busy", incarnation=6)
    alone.now += SECOND
    alone.receive(alone.pipes, Interest(1, (Want("veh/**"),)))
    assert alone.engine.readings.wanted_by("veh/me/x") == ["busy"]


def test_identity_that_opens_pipes_without_end_is_refused_for_a_while() -> None:
    """Each costs a handshake, and a Hello that may begin a new life."""
    alone = Alone()
    membership = alone.engine.membership
    for incarnation in range(limits.MAX_PIPE_BURST):
        alone.engine.inbound_closed(alone.hello("insider", incarnation), alone.now)
    assert "too many links" in (membership.admit(identity("insider"), alone.now) or "")
    assert membership.admit(identity("honest"), alone.now) is None
    assert membership.admit(identity("insider"), alone.now + SECOND) is None


def test_malformed_frames_cost_their_sender_pipes() -> None:
    """A pipe that is closed at once and opened again must not be free."""
    alone = Alone()
    count = 0
    while alone.engine.membership.admit(identity("insider"), alone.now) is None:
        pipe = alone.hello("insider")
        alone.receive(pipe, b"\xc1")
        alone.engine.inbound_closed(pipe, alone.now)
        count += 1
    assert count == -(-limits.MAX_PIPE_BURST // (1 + limits.MALFORMED_PIPE_COST))


def test_accounts_are_bounded_and_forget_the_oldest() -> None:
    """Identities need certificates, but a road has many."""
    accounts = Accounts()
    for number in range(MAX_ACCOUNTS + 10):
        accounts.of(identity(f"n-{number}").node, 0)
    assert len(accounts) == MAX_ACCOUNTS


def test_neighbour_that_asks_for_answers_all_the_time_gets_few() -> None:
    """Every heartbeat with ``answer`` was answered at once: an insider kept everybody refuting."""
    alone = Alone()
    dial = alone.lane("insider")
    alone.sent(dial)
    answers = 0
    for number in range(1, 1_001):
        alone.now += MS
        alone.receive(1, Heartbeat(number, number, 0, 0, 0, (), True))
        answers += len(alone.sent(dial))
    assert 0 < answers <= 1 + SECOND // limits.HEARTBEAT_ANSWER_PAUSE_NS


def test_single_accuser_never_brings_a_suspect_to_the_shortest_time() -> None:
    """With three nodes, one voice cut the time from suspect to dead from 2.5 s to 0.6 s, so an insider had everybody
    declared dead whom a radio shadow hid."""
    alone = Alone()
    alone.hello("honest")
    alone.hello("insider")
    silent_since_ns = alone.now
    sequence = 0
    while not (dead := [event for event in alone.engine.events() if type(event) is NeighbourDead]):
        alone.timers(50 * MS)
        sequence += 1
        alone.receive(2, Heartbeat(sequence, sequence, 0, 0, 0, ("honest",)))
        assert alone.now < silent_since_ns + 10 * SECOND
    assert [event.node for event in dead] == ["honest"]
    assert alone.now - silent_since_ns >= limits.SUSPECT_AFTER_SILENCE_NS + limits.SUSPICION_MAX_NS // 2


def test_accusations_of_a_living_neighbour_have_no_effect() -> None:
    """Only our own ears begin a suspicion."""
    alone = Alone()
    alone.hello("honest")
    alone.hello("insider")
    for sequence in range(1, 200):
        alone.timers(50 * MS)
        alone.receive(1, Heartbeat(sequence, sequence, 0, 0, 0))
        alone.receive(2, Heartbeat(sequence, sequence, 0, 0, 0, ("honest",)))
    assert alone.engine.statistics()["suspicions"] == 0


def test_suspicion_needs_all_of_the_few_to_reach_its_minimum() -> None:
    """Three voices are the least that count as everybody."""
    suspicion = Suspicion(0, limits.SUSPICION_MIN_NS, limits.SUSPICION_MAX_NS, limits.LEAST_CONFIRMERS)
    for name in ("a", "b"):
        suspicion.confirm(identity(name).node)
        assert suspicion.dead_at > limits.SUSPICION_MIN_NS
    suspicion.confirm(identity("c").node)
    assert suspicion.dead_at == limits.SUSPICION_MIN_NS


def _hello_as(alone: Alone, role: Role, incarnation: int) -> int:
    pipe = alone.pipe("x", role)
    alone.receive(pipe, Hello(1, 1, "x", incarnation, 7000, "realtime"))
    return pipe


def test_node_that_comes_back_with_another_role_loses_the_rights_of_the_old_one() -> None:
    """An RSU that was issued again as a tool went on to publish as an RSU at everybody who had met it."""
    for incarnation in (5, 6):
        alone = Alone()
        first = _hello_as(alone, Role.RSU, 5)
        alone.receive(first, Interest(1, (Want("veh/**"),)))
        _closed(alone)
        second = _hello_as(alone, Role.TOOL, incarnation)
        assert _closed(alone) == [first], "the pipe of the old certificate is closed"
        (view,) = alone.engine.peers(alone.now)
        assert view.role is Role.TOOL
        assert alone.engine.readings.wanted_by("veh/me/x") == [], "its wants belong to the life before"
        alone.receive(second, Interest(1, (Want("veh/**"),)))
        assert alone.engine.readings._peers["x"].role is Role.TOOL  # type: ignore[index]


def test_lane_that_finds_another_role_ends_the_life_with_the_old_one() -> None:
    """Our lane may see the new certificate before its Hello comes. What waits for the old role must not be sent."""
    alone = Alone()
    pipe = _hello_as(alone, Role.RSU, 5)
    (dial,) = alone.dials()
    alone.engine.lane_opened(dial.dial, identity("x", Role.RSU), alone.now)
    alone.engine.lane_closed(dial.dial, "reset", False, alone.now)
    alone.timers(SECOND)
    (again,) = alone.dials()
    alone.engine.lane_opened(again.dial, identity("x", Role.TOOL), alone.now)
    assert NeighbourLeft(identity("x").node, "it has another role now") in alone.engine.events()
    assert _closed(alone) == [pipe]
    (view,) = alone.engine.peers(alone.now)
    assert (view.role, view.state) == (Role.TOOL, State.LEFT)
    second = _hello_as(alone, Role.TOOL, 6)
    alone.receive(second, Heartbeat(1, 1, 0, 0, 0))
    (view,) = alone.engine.peers(alone.now)
    assert (view.role, view.state) == (Role.TOOL, State.ALIVE)


def test_flood_of_heartbeats_ends_its_pipes_and_a_fast_neighbour_keeps_them() -> None:
    """They are the cheapest frame to handle, and still took half a core for ever."""
    alone = Alone()
    insider, fast = alone.hello("insider"), alone.hello("fast")
    for number in range(1, 4_001):
        alone.timers(MS // 2)
        alone.receive(insider, Heartbeat(number, number, 0, 0, 0))
        if number % 100 == 0:
            alone.receive(fast, Heartbeat(number, number, 0, 0, 0))
    assert _closed(alone) == [insider]
    refused = [event for event in alone.engine.events() if type(event) is PeerRefused]
    assert [(event.who, event.detail) for event in refused] == [("insider", "it sends too many heartbeats")]


def test_flood_of_control_frames_ends_its_pipe() -> None:
    """A frame that is dropped was received and decoded, and a million of them a second take a core as well."""
    alone = Alone()
    pipe = alone.hello("insider")
    for _ in range(2 * limits.MAX_CONTROL_FRAME_BURST):
        alone.receive(pipe, Interest(1, ()))
    assert _closed(alone) == []
    alone.receive(pipe, Interest(1, ()))
    alone.receive(pipe, Interest(1, ()))
    assert set(_closed(alone)) == {pipe}
    again = alone.hello("insider")
    alone.receive(again, Interest(1, ()))
    assert _closed(alone) == [again], "a new pipe brings no new allowance"


# --- elements of values ----------------------------------------------------------------------------------------------
def _accepted(alone: Alone, pipe: int, frame: Readings) -> bool:
    """Whether the readings of a frame were looked at."""
    before = alone.engine.statistics()["readings_accepted"]
    alone.receive(pipe, frame)
    return alone.engine.statistics()["readings_accepted"] > before


def _maps(sequence: int, count: int = 15_000) -> Readings:
    return Readings((reading("veh/insider/x", "insider", sequence, [{}] * count),))


def test_readings_of_more_elements_than_the_allowance_are_dropped_before_they_are_decoded() -> None:
    """Empty maps at 10 MB/s took a whole core: readings of honest neighbours came 140 ms late, and for 12 s after."""
    alone = Alone()
    insider, honest = alone.hello("insider"), alone.hello("honest")
    taken = sum(_accepted(alone, insider, _maps(number)) for number in range(1, 20))
    assert taken == -(-limits.MAX_ELEMENTS_BURST // 15_001)
    assert _drops(alone)["insider", "over_rate"] == 19 - taken
    assert _accepted(alone, insider, Readings((reading("veh/insider/y", "insider", 1, {"speed": 3.5}),)))
    assert _accepted(alone, honest, Readings((reading("veh/honest/x", "honest", 1, [{}] * 15_000),)))
    again = alone.hello("insider")
    assert not _accepted(alone, again, _maps(20)), "a new pipe brings no new allowance"
    alone.now += 2 * SECOND
    assert _accepted(alone, again, _maps(21))


def test_readings_of_large_arrays_and_bytes_cost_no_elements() -> None:
    """A camera sends megabytes a second, and its neighbours need each of them."""
    alone = Alone()
    pipe = alone.hello("camera")
    for number in range(1, 300):
        value = {"image": bytes(50_000), "boxes": [[1.5, 2.5, 3.5, 4.5]] * 20}
        assert _accepted(alone, pipe, Readings((reading("veh/camera/front", "camera", number, value),)))
        alone.now += SECOND // 30
    assert ("camera", "over_rate") not in _drops(alone)


def test_neighbour_whose_readings_are_dropped_for_their_elements_is_still_alive() -> None:
    """It is busy, and not dead."""
    alone = Alone()
    pipe = alone.hello("insider")
    for number in range(1, 20):
        alone.receive(pipe, _maps(number))
        alone.timers(500 * MS)
    assert [type(event) for event in alone.engine.events() if type(event) in (NeighbourDead, NeighbourLeft)] == []
