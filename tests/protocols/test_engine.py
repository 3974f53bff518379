"""One node as its driver sees it: frames in, effects out, and what must be carried between the machines."""

from random import Random

import pytest

from protocols.base import limits
from protocols.base.ids import Incarnation, Lane, NodeId, Role
from protocols.engine import Engine
from protocols.inference.placement import LocalModel
from protocols.membership.events import ClosePipe, Dial, HangUp, NeighbourDead, NeighbourSuspected, PeerRefused
from protocols.membership.neighbour import State
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.inference import Offers
from protocols.wire.membership import Goodbye, Heartbeat, Hello
from protocols.wire.readings import Interest, Readings, Want
from protocols.wire.tensors import NamedTensor, tensor_of
from sims.virtual.driver import SimDriver
from tests.tools.driven_engine import Driven
from tests.tools.strategies import engine, identity, reading

MS, SECOND = limits.MS, limits.SECOND
DIGEST = "1" * 64
IMAGE = (NamedTensor("image", tensor_of(bytes(100))),)
LARGE = (NamedTensor("image", tensor_of(bytes(100_000))),)
PLATE = LocalModel("plate", DIGEST, 500 * MS, 0, True)


def test_lane_opens_with_hello_interest_and_offers() -> None:
    """A new neighbour learns at once what we want and what we compute."""
    driven = Driven()
    assert driven.hello == Hello(1, 9, "me", 1_000, 7000, "realtime")
    assert {type(frame) for frame in driven.sent()} == {Heartbeat, Interest, Offers}
    assert driven.lanes() == [driven.dial]
    moved = engine("me")
    moved.membership.inbox_port = 4711
    frame = moved.membership.greeting(1)
    assert type(frame) is Hello
    assert frame.inbox_port == 4711


def test_receive_of_readings_before_hello_is_not_used() -> None:
    """The shortcut for readings must not bypass the rule."""
    driven = Driven()
    driven.engine.readings.subscribe("**", Quality(), driven.now)
    driven.engine.carry(driven.now)
    driven.engine.membership.inbound_opened(2, identity("y"), "192.0.2.8", driven.now)
    assert driven.receive(Readings((reading("veh/y/x", "y"),)), 2) == []
    assert driven.receive(Readings((reading("veh/y/x", "y"),)), 77) == []
    assert ClosePipe(2) in driven.engine.outgoing()
    assert driven.engine.statistics()["frames_before_hello"] == 1


def test_receive_of_malformed_frame_closes_the_pipe_and_uses_nothing_after_it() -> None:
    """Whoever broke the protocol once is not listened to in the same breath."""
    driven = Driven()
    driven.engine.readings.subscribe("**", Quality(), driven.now)
    driven.engine.carry(driven.now)
    driven.receive(b"\xc1")
    assert driven.receive(Readings((reading("rsu/x/a", "x"),))) == []
    driven.receive(b"\xc1", 99)
    refused = [event for event in driven.engine.events() if type(event) is PeerRefused]
    assert [event.who for event in refused] == ["x", "pipe 99"]
    assert ClosePipe(1) in driven.engine.outgoing()
    assert driven.engine.statistics()["frames_malformed"] == 2


def test_second_pipe_that_stays_mute_is_closed_and_not_held_against_its_neighbour() -> None:
    """Found by simulation: on a bad radio the Hello of a former dial stands still while a later one gets through. The
    neighbour must be dialled again at once when our lane to it ends, not after the 30 s of a refusal."""
    driven = Driven()
    driven.engine.membership.inbound_opened(2, identity("x", Role.RSU), "192.0.2.7", driven.now)
    for number in range(1, 21):
        driven.now += 200 * MS
        driven.receive(Heartbeat(number, driven.now, 0, 0, 0))
        driven.engine.handle_timer(driven.now)
    assert ClosePipe(2) in driven.engine.outgoing()
    driven.engine.lane_closed(driven.dial, "the peer closed it", False, driven.now)
    driven.now += limits.REDIAL_MAX_NS
    driven.engine.handle_timer(driven.now)
    assert [effect.host for effect in driven.engine.outgoing() if type(effect) is Dial] == ["192.0.2.7"]
    assert not [event for event in driven.engine.events() if type(event) is PeerRefused]


def test_advert_with_the_address_of_another_does_not_hide_where_a_neighbour_proved_to_be() -> None:
    """Found by simulation: one liar with a genuine certificate kept two nodes apart for ever after a partition, by
    advertising each to the other at its own address."""
    driven = Driven()
    driven.engine.lane_closed(driven.dial, "the peer closed it", False, driven.now)
    driven.engine.membership.hint("x", NodeId("x"), (("192.0.2.66", 7000),), driven.now)
    dialled = []
    for _ in range(4):
        driven.now += limits.REDIAL_MIN_NS + limits.REDIAL_MIN_NS // 4
        driven.engine.handle_timer(driven.now)
        for effect in driven.engine.outgoing():
            if type(effect) is Dial:
                dialled.append(effect.host)
                if effect.host == "192.0.2.66":
                    driven.engine.lane_opened(effect.dial, identity("liar"), driven.now)
    assert dialled == ["192.0.2.66", "192.0.2.7"]


def test_lane_to_a_suspect_that_opens_does_not_make_it_alive() -> None:
    """Found by simulation: frames alone are life. A link that carries one way only must not keep a neighbour whose
    voice was lost, each time for as long as suspicion takes."""
    driven = Driven()
    driven.engine.lane_closed(driven.dial, "the peer closed it", False, driven.now)
    silent_since_ns = driven.now
    dials: list[int] = []
    while driven.now < silent_since_ns + limits.SUSPECT_AFTER_SILENCE_NS + limits.SUSPICION_MAX_NS + 300 * MS:
        driven.now += 50 * MS
        driven.engine.handle_timer(driven.now)
        dials += [effect.dial for effect in driven.engine.outgoing() if type(effect) is Dial]
        if dials and driven.now == silent_since_ns + 2 * SECOND:
            driven.engine.lane_opened(dials[0], identity("x", Role.RSU), driven.now)
    (view,) = driven.engine.peers(driven.now)
    assert dials
    assert view.state is State.DEAD


def test_receive_of_unknown_frame_is_counted_and_the_link_lives() -> None:
    """A neighbour of a newer minor version."""
    driven = Driven()
    driven.receive(b"\x92\x3f\x01")
    assert driven.engine.statistics()["frames_unknown"] == 1
    assert driven.engine.outgoing()[-1:] != [ClosePipe(1)]
    driven.engine.readings.subscribe("**", Quality(), driven.now)
    driven.engine.carry(driven.now)
    assert len(driven.receive(Readings((reading("rsu/x/a", "x"),)))) == 1


def test_publish_of_a_large_reading_dials_the_bulk_lane_once() -> None:
    """And what waits goes there when it opens."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.sent()
    driven.engine.outgoing()
    driven.lanes()
    driven.publish(bytes(100_000))
    driven.publish(bytes(100_000))
    (dial,) = [effect for effect in driven.engine.outgoing() if type(effect) is Dial]
    assert driven.engine.membership.greeting(dial.dial).lane == "bulk"
    assert driven.sent() == []
    driven.engine.lane_opened(dial.dial, identity("x", Role.RSU), driven.now)
    assert driven.lanes() == [dial.dial]
    assert len(driven.sent(dial.dial)) == 2
    assert driven.engine.peers(driven.now)[0].lanes == (Lane.REALTIME, Lane.BULK)
    driven.publish(bytes(100_000))
    assert driven.lanes() == [dial.dial]
    assert driven.engine.outgoing() == []
    driven.engine.frame_lost(dial.dial, b"", "lane_closed")
    driven.engine.frame_lost(99, b"", "lane_closed")
    assert driven.engine.statistics()["drops"] == 2
    assert driven.engine.next_frame(99, driven.now) is None


def test_most_waiting_is_that_of_both_lanes_of_the_neighbour_with_most() -> None:
    """A bound that is kept lane by lane may be broken by both."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.sent()
    assert driven.engine.lanes.most_waiting() == (0, 0)
    driven.publish()
    driven.publish(bytes(100_000))
    (view,) = driven.engine.peers(driven.now)
    assert driven.engine.lanes.most_waiting() == (view.waiting_readings, view.waiting_bytes)
    assert view.waiting_readings == 2
    assert view.waiting_bytes > 100_000


def test_bulk_lane_lost_alone_is_dialled_again_when_needed() -> None:
    """The realtime lane still lives; nobody is suspected."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.publish(bytes(100_000))
    (dial,) = [effect for effect in driven.engine.outgoing() if type(effect) is Dial]
    driven.engine.lane_opened(dial.dial, identity("x", Role.RSU), driven.now)
    driven.engine.lane_closed(dial.dial, "reset", False, driven.now)
    assert driven.engine.peers(driven.now)[0].state is State.ALIVE
    driven.publish(bytes(100_000))
    assert [type(effect) for effect in driven.engine.outgoing()] == [Dial]


def test_bulk_lane_is_dialled_for_what_waited_while_both_lanes_were_lost() -> None:
    """A radio shadow took both lanes. A large reading that was published in it must not wait for the next one."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.engine.lane_closed(driven.dial, "reset", False, driven.now)
    driven.publish(bytes(100_000))
    assert [effect for effect in driven.engine.outgoing() if type(effect) is Dial] == []
    driven.now = driven.engine.next_timer_at()
    dials: list[Dial] = []
    for expected in (Lane.REALTIME, Lane.BULK):
        while not dials:
            driven.engine.handle_timer(driven.now)
            dials = [effect for effect in driven.engine.outgoing() if type(effect) is Dial]
            driven.now = max(driven.now + 1, driven.engine.next_timer_at())
        (dial,) = dials
        driven.engine.lane_opened(dial.dial, identity("x", Role.RSU), driven.now)
        assert driven.engine.membership.lane_of(dial.dial) == ("x", expected)
        dials = [effect for effect in driven.engine.outgoing() if type(effect) is Dial]
    assert [type(frame) for frame in driven.sent(dial.dial)] == [Readings]


def test_neighbour_dead_with_readings_waiting_counts_them() -> None:
    """Nothing is lost silently."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.sent()
    for _ in range(7):
        driven.publish()
    driven.engine.lane_closed(driven.dial, "reset", False, driven.now)
    driven.engine.inbound_closed(1, driven.now)
    for _ in range(30):
        driven.now += 50 * MS
        driven.engine.handle_timer(driven.now)
    assert NeighbourDead in {type(event) for event in driven.engine.events()}
    counted = dict(driven.engine.drops.items())
    assert counted["x", "veh/me/x", "neighbour_gone"] == 7
    assert driven.engine.readings.wanted_by("**") == []


def test_neighbour_restarted_starts_clean() -> None:
    """What its former life wanted, offered and had waiting is gone; its new one is asked afresh."""
    driven = Driven()
    driven.receive(Interest(9, (Want("**"),)))
    driven.receive(Offers(9, ()))
    driven.publish()
    driven.engine.membership.inbound_opened(2, identity("x", Role.RSU), "192.0.2.7", driven.now)
    driven.receive(Hello(1, 0, "x", 6, 7000, "realtime"), 2)
    assert driven.engine.readings.wanted_by("**") == []
    assert ("x", "veh/me/x", "restarted") in dict(driven.engine.drops.items())
    driven.receive(Interest(1, (Want("veh/**"),)), 2)
    assert driven.engine.readings.wanted_by("**") == ["x"]
    driven.receive(Interest(2, (Want("rsu/**"),)), 2)
    driven.receive(Hello(1, 0, "x", 6, 7000, "realtime"), 2)
    assert driven.engine.readings.wanted_by("rsu/**") == ["x"], "a second Hello of the same life changes nothing"


def test_neighbour_of_a_smaller_incarnation_is_heard_by_its_smaller_sequences() -> None:
    """Its count was lost with its disk."""
    driven = Driven()
    driven.engine.readings.subscribe("**", Quality(), driven.now)
    driven.engine.carry(driven.now)
    assert driven.receive(Readings((reading("rsu/x/a", "x", 5 << 32),)))
    driven.receive(Goodbye(5))
    driven.engine.membership.inbound_opened(2, identity("x", Role.RSU), "192.0.2.7", driven.now)
    driven.receive(Hello(1, 0, "x", 3, 7000, "realtime"), 2)
    assert driven.receive(Readings((reading("rsu/x/a", "x", 3 << 32),)), 2)


def test_interest_with_hops_is_passed_on_and_withdrawn() -> None:
    """Others are asked on a neighbour's behalf while it is there."""
    sim = SimDriver(1)
    for name in ("n0", "n1", "n2"):
        sim.add(name)
    sim.meet("n0", "n1")
    sim.meet("n1", "n2")
    sim.run_for(SECOND)
    number = sim.subscribe("n0", "veh/n2/**", Quality(hops=1))
    sim.run_for(SECOND)
    assert sim.nodes[NodeId("n2")].engine.readings.wanted_by("veh/n2/x") == ["n1"]
    sim.act(sim.nodes[NodeId("n0")], lambda engine, now: engine.readings.unsubscribe(number))
    sim.run_for(SECOND)
    assert sim.nodes[NodeId("n2")].engine.readings.wanted_by("veh/n2/x") == []
    sim.subscribe("n0", "veh/n2/**", Quality(hops=1))
    sim.run_for(SECOND)
    sim.kill("n0")
    sim.run_for(2 * SECOND)
    assert sim.nodes[NodeId("n2")].engine.readings.wanted_by("veh/n2/x") == []


def test_interest_of_a_stalled_neighbour_is_the_last_one_not_the_first() -> None:
    """A thousand changes while it took nothing: one frame waits."""
    driven = Driven()
    driven.sent()
    for _ in range(limits.MAX_CONTROL_FRAMES * 2):
        number, _ = driven.engine.readings.subscribe("a/**", Quality(), driven.now)
        driven.engine.carry(driven.now)
        driven.engine.readings.unsubscribe(number)
        driven.engine.carry(driven.now)
    driven.engine.readings.subscribe("last/**", Quality(), driven.now)
    driven.engine.carry(driven.now)
    interests = [frame for frame in driven.sent() if type(frame) is Interest]
    assert [frame.wants for frame in interests] == [(Want("last/**"),)]
    assert driven.engine.statistics()["frames_undeliverable"] == 0


def test_deadline_of_a_subscription_is_known_without_asking_everybody() -> None:
    """The receiving thread asks after every frame."""
    driven = Driven()
    driven.engine.readings.subscribe("**", Quality(deadline_ns=SECOND), driven.now)
    driven.engine.carry(driven.now)
    assert driven.engine.readings.next_timer_at() > driven.now + 3_600 * SECOND
    driven.receive(Readings((reading("rsu/x/a", "x"),)))
    assert driven.engine.readings.next_timer_at() == driven.now + SECOND
    driven.engine.handle_timer(driven.now + SECOND)
    assert "DeadlineMissed" in {type(event).__name__ for event in driven.engine.events()}


@pytest.mark.parametrize("count", [1, 200])
def test_statistics_only_grow(count: int) -> None:
    """Prometheus takes a smaller counter for a restart."""
    driven = Driven()
    before = driven.engine.statistics()
    for sequence in range(count):
        driven.receive(Readings((reading("rsu/x/a", "x", sequence % 7),)))
        driven.receive(b"\x92\x3f\x01")
        driven.publish()
        now = driven.engine.statistics()
        assert all(now[name] >= value for name, value in before.items())
        assert now.keys() == before.keys()
        before = now


def test_lives_of_many_nodes_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RSU at a motorway meets a hundred thousand vehicles a week."""
    monkeypatch.setattr(limits, "MAX_CACHED_KEYS", 20)
    driven = Driven()
    for number in range(50):
        pipe = 100 + number
        driven.engine.membership.inbound_opened(pipe, identity(f"veh-{number}"), "192.0.2.9", driven.now)
        driven.receive(Hello(1, 0, f"veh-{number}", 1, 7000, "realtime"), pipe)
        driven.receive(Goodbye(1), pipe)
    assert len(driven.engine._lives) <= 20


def test_hot_path_shortcuts_say_the_same_as_the_whole() -> None:
    """A driver asks for lanes to flush after every reading, and for effects only when there are others."""
    driven = Driven()
    driven.receive(Interest(1, (Want("**"),)))
    driven.sent()
    driven.engine.outgoing()
    driven.engine.events()
    driven.lanes()
    assert driven.engine.flushes() == []
    driven.publish()
    flushes = driven.engine.flushes()
    assert flushes is not None
    assert [lane.dial for lane in flushes] == [driven.dial]
    assert driven.engine.flushes() == []
    frame = driven.engine.next_frame(driven.dial, driven.now)
    assert frame is not None
    assert type(decode_untrusted_node_frame(frame)) is Readings
    assert driven.engine.next_frame(driven.dial, driven.now) is None
    driven.publish()
    driven.publish()
    assert driven.engine.next_frame(driven.dial, driven.now) is not None
    assert driven.engine.next_frame(driven.dial, driven.now) is None, "two go together"
    assert driven.engine.next_frame(99, driven.now) is None
    driven.publish(bytes(100_000))
    assert driven.engine.flushes() is None, "there is a dial to make"
    assert [type(effect) for effect in driven.engine.outgoing()] == [Dial]
    assert driven.lanes() == [driven.dial, 0], "the bulk lane is not open"
    driven.engine.events()
    driven.receive(Heartbeat(1, driven.now, 0, 0, 0))
    assert driven.engine.flushes() == [], "nothing follows from a sign of life"
    driven.receive(Heartbeat(2, driven.now, 0, 0, 0, (), True))
    assert driven.engine.flushes() is None, "it asks for an answer"
    driven.engine.outgoing()
    driven.receive(b"\xc1")
    assert driven.engine.flushes() is None, "somebody has to hear of it"


def test_heartbeats_are_rare_while_readings_flow_and_back_when_they_stop() -> None:
    """Readings are proof enough of life; a third of the frames on a crowded channel would say it again."""
    sim = SimDriver(1)
    for name in ("a", "b"):
        sim.add(name)
    sim.subscribe("b", "veh/**", Quality(own=False))
    sim.meet()
    sim.run_for(2 * SECOND)
    b = sim.nodes[NodeId("b")]

    def frames_in(seconds: int, publishing: bool) -> int:
        before = b.engine.statistics()["frames_received"]
        for _ in range(10 * seconds):
            if publishing:
                sim.publish("a", "veh/a/x", 1)
            sim.run_for(100 * MS)
        return b.engine.statistics()["frames_received"] - before

    assert 36 <= frames_in(10, False) <= 46, "four heartbeats a second"
    assert 108 <= frames_in(10, True) <= 114, "a hundred readings and one heartbeat a second"
    assert 36 <= frames_in(10, False) <= 46
    (view,) = b.engine.peers(sim.now)
    assert view.hears_us
    assert view.round_trip_ns
    assert not [event for node in sim.nodes.values() for _, event in node.events if type(event) is NeighbourSuspected]


def test_neighbour_that_publishes_and_is_killed_is_noticed_as_before() -> None:
    """Heartbeats left out must not make a death later: silence counts from the last reading."""
    sim = SimDriver(2)
    for name in ("a", "b"):
        sim.add(name)
    sim.subscribe("b", "veh/**", Quality(own=False))
    sim.meet()
    sim.run_for(2 * SECOND)
    for _ in range(30):
        sim.publish("a", "veh/a/x", 1)
        sim.run_for(100 * MS)
    sim.cut("a", "b")
    cut_ns = sim.now
    sim.run_for(5 * SECOND)
    b = sim.nodes[NodeId("b")]
    suspected = [at for at, event in b.events if type(event) is NeighbourSuspected]
    assert -200 * MS <= suspected[0] - cut_ns - limits.SUSPECT_AFTER_SILENCE_NS <= 400 * MS


def test_bulk_lane_to_a_dead_neighbour_is_dialled_once_it_says_hello_in_a_new_life() -> None:
    """A dead neighbour starts again; our lane to it is answered before its Hello, which drops it. What waits for its
    bulk lane must neither wait for ever, nor be dialled four times a second until then."""
    other = identity("b")
    machine = Engine(NodeSettings(other.mesh, NodeId("me"), Role.VEHICLE, Incarnation(5), 7000), Random(1))
    for number in range(250):
        machine.readings.subscribe(f"veh/{number:04d}/" + "x" * 160, Quality(), 0)  # an Interest for the bulk lane
    lanes: set[int] = set()
    dials = 0
    now = SECOND

    def settle(answers: bool = True) -> None:
        nonlocal dials
        while effects := machine.outgoing():
            for effect in effects:
                if type(effect) is HangUp:
                    lanes.discard(effect.dial)
                elif type(effect) is Dial and answers:
                    dials += 1
                    lanes.add(effect.dial)
                    machine.lane_opened(effect.dial, other, now)
                elif type(effect) is Dial:
                    machine.lane_closed(effect.dial, "refused", False, now)
        for lane in machine.lanes.taken():
            while lane.dial in lanes and lane.take(now):
                pass

    def run_until(until: int, pipe: int = 0) -> None:
        nonlocal now
        while now < until:
            if pipe:
                machine.receive(encode_frame(Heartbeat(now // 1_000 + 1, now, 0, 0, 0)), pipe, now, now)
            now = min(max(machine.next_timer_at(), now + 1), now + SECOND // 4)
            machine.handle_timer(now)
            settle()

    machine.membership.inbound_opened(1, other, "b", now)
    machine.receive(encode_frame(Hello(1, 1, "b", 1, 7000, "realtime")), 1, now, now)
    run_until(5 * SECOND, 1)
    machine.inbound_closed(1, now)
    for dial in sorted(lanes):
        machine.lane_closed(dial, "reset", False, now)
    lanes.clear()
    while machine.peers(now)[0].state != "dead":
        now += SECOND // 10
        machine.handle_timer(now)
        settle(answers=False)
    dials = 0
    run_until(now + 10 * SECOND)
    assert 1 <= dials <= 4, "its realtime lane, each time that it says no Hello"
    machine.membership.inbound_opened(2, other, "b", now)
    machine.receive(encode_frame(Hello(1, 1, "b", 2, 7000, "realtime")), 2, now, now)
    run_until(now + 30 * SECOND, 2)
    assert machine.peers(now)[0].waiting_bytes == 0
    assert len(lanes) == 2
    assert sorted(machine.lanes.of_dial) == sorted(lanes)
