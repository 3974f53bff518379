"""The virtual-time driver: streams, processors and clocks are what they say, and one seed is one history."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.ids import NodeId, PeerIdentity, Role
from protocols.membership.events import NeighbourDead, NeighbourMet
from protocols.readings.quality import Quality
from sims.virtual.driver import SimDriver
from sims.virtual.node import EPOCH_UTC_NS, MESH, SimNode
from sims.virtual.pipes import TICK_NS
from sims.virtual.processors import Processors

MS, SECOND = limits.MS, limits.SECOND


def pair(seed: int = 1) -> SimDriver:
    """Two nodes that have met; n0 listens to n1."""
    sim = SimDriver(seed)
    for name in ("n0", "n1"):
        sim.add(name)
    sim.subscribe("n0", "**", Quality(own=False))
    sim.meet()
    sim.run_for(SECOND)
    return sim


def came(sim: SimDriver) -> list[tuple[int, Any]]:
    """What n0 got, and how long after the start of the second in milliseconds."""
    return [((at - SECOND) // MS, reading.value) for at, reading in sim.nodes[NodeId("n0")].received]


# --- streams ---------------------------------------------------------------------------------------------------------
def test_link_with_a_rate_sends_one_frame_after_the_other() -> None:
    """A radio of 100 kB/s takes 100 ms for 10 kB; the delay comes on top, once."""
    sim = pair()
    sim.shape("n1", "n0", 20 * MS, 100_000)
    for number in range(3):
        sim.publish("n1", f"veh/n1/{number}", bytes(10_000))
        sim.run_for(MS)
    sim.run_for(SECOND)
    arrived_ms = [at for at, _ in came(sim)]
    assert all(abs(at - expected) <= 5 for at, expected in zip(arrived_ms, (121, 222, 323), strict=True))


def test_cut_link_holds_frames_until_it_heals() -> None:
    """TLS streams stall, they never drop."""
    sim = pair()
    sim.cut_one_way("n1", "n0")
    sim.publish("n1", "veh/n1/x", 1)
    sim.run_for(500 * MS)
    assert came(sim) == []
    sim.heal()
    sim.publish("n1", "veh/n1/x", 2)
    sim.run_for(10 * MS)
    assert [value for _, value in came(sim)] == [1, 2]


def test_stalled_node_does_nothing_and_then_everything() -> None:
    """A process without CPU: what was sent to it waits in its kernel."""
    sim = pair()
    sim.stall("n0", 300 * MS)
    sim.publish("n1", "veh/n1/x", 1)
    sent_before = sim.nodes[NodeId("n0")].engine.statistics()["frames_received"]
    sim.run_for(299 * MS)
    assert sim.nodes[NodeId("n0")].engine.statistics()["frames_received"] == sent_before
    sim.run_for(10 * MS)
    assert came(sim) == [(300, 1)]


def test_kill_behind_a_cut_is_learned_by_silence_only() -> None:
    """No reset passes a link that is cut: a crash in a tunnel looks like a tunnel."""
    sim = pair()
    sim.cut("n0", "n1")
    sim.kill("n1")
    sim.run_for(limits.LOST_LINK_SUSPICION_NS + 200 * MS)
    node = sim.nodes[NodeId("n0")]
    assert not [event for _, event in node.events if type(event) is NeighbourDead]
    sim.run_for(5 * SECOND)
    assert [event for _, event in node.events if type(event) is NeighbourDead]


def test_dial_of_a_stalled_node_waits_for_it_or_times_out() -> None:
    """Its kernel accepts the connection, nobody shakes hands."""
    for stall_ns, met in ((2 * SECOND, True), (30 * SECOND, False)):
        sim = SimDriver(1)
        for name in ("n0", "n1"):
            sim.add(name)
        sim.stall("n1", stall_ns)
        sim.nodes[NodeId("n0")].engine.membership.hint("n1", NodeId("n1"), (("n1", 7000),), sim.now)
        sim.act(sim.nodes[NodeId("n0")], lambda engine, now: engine.handle_timer(now))
        sim.run_for(4 * SECOND)
        assert bool([e for _, e in sim.nodes[NodeId("n0")].events if type(e) is NeighbourMet]) is met
        sim.run_for(3 * SECOND)
        assert (sim.nodes[NodeId("n0")].engine.statistics()["dials_failed"] > 0) is not met


def test_dial_of_nobody_and_across_a_cut_times_out() -> None:
    """A hint to an address where nobody lives."""
    sim = SimDriver(1)
    node = sim.add("n0")
    sim.act(node, lambda engine, now: engine.membership.hint("ghost", NodeId("ghost"), (("ghost", 1),), now))
    sim.run_for(limits.DIAL_TIMEOUT_NS + 100 * MS)
    assert node.engine.statistics()["dials_failed"] == 1


def test_frame_overtakes_nothing_when_its_link_gets_faster() -> None:
    """Head-of-line blocking: bytes of a stream come in the order they were written."""
    sim = pair()
    sim.shape("n1", "n0", 100 * MS)
    sim.publish("n1", "veh/n1/slow", 1)
    sim.shape("n1", "n0", MS)
    sim.publish("n1", "veh/n1/fast", 2)
    sim.run_for(SECOND)
    assert came(sim) == [(100, 1), (100, 2)]


def test_stream_out_of_reach_goes_on_when_tcp_tries_again() -> None:
    """The cut ends after 500 ms; retries were due after 200 and 600 ms: the reading comes at the second."""
    sim = pair()
    sim.cut("n0", "n1")
    sim.publish("n1", "veh/n1/x", 1)
    sim.run_for(500 * MS)
    sim.wires.heal()  # as a radio does: nobody tells TCP
    sim.run_for(99 * MS)
    assert came(sim) == []
    sim.run_for(10 * MS)
    assert came(sim) == [(601, 1)]


def test_readings_on_broken_pipes_are_counted() -> None:
    """What a kernel took from a node and nobody received is known to the harness alone."""
    sim = pair()
    sim.shape("n1", "n0", 100 * MS)
    for number in range(3):
        sim.publish("n1", "veh/n1/x", number)
    sim.run_for(10 * MS)
    sim.kill("n0")
    sim.publish("n1", "veh/n1/x", 3)  # it does not know yet
    sim.run_for(SECOND)
    assert sim.pipes.readings_lost == 4


def test_broadcast_is_one_event() -> None:
    """Eight neighbours at the same distance cost one entry of the heap, not eight."""
    sim = SimDriver(1)
    for number in range(9):
        sim.add(f"n{number}")
        sim.subscribe(f"n{number}", "veh/n0/x", Quality(own=False))
    sim.meet()
    sim.run_for(SECOND)
    before = sim.events_run
    sim.publish("n0", "veh/n0/x", 1)
    sim.run_for(MS + TICK_NS)
    assert sum(len(node.received) for node in sim.nodes.values()) == 8
    assert sim.events_run - before <= 2


def test_readings_around_an_event_are_all_told() -> None:
    """What watches a run is told of readings before each event; those behind it in the same tick are not to be lost."""
    sim = SimDriver(1)
    for name in ("n0", "n1", "n2", "n3"):
        sim.add(name)
    sim.meet()
    sim.run_for(3 * SECOND)
    sim.subscribe("n0", "**", Quality(own=False))
    sim.run_for(SECOND)
    for number in range(5):
        sim.publish("n1", "veh/n1/x", number)
        if number == 2:
            sim.leave("n2")
        sim.publish("n3", "veh/n3/x", number)
        sim.run_for(10 * MS)
    node = sim.nodes[NodeId("n0")]
    assert [(reading.key, reading.value) for _, reading in node.received] == [
        (f"veh/{name}/x", number) for number in range(5) for name in ("n1", "n3")
    ]
    assert node.engine.statistics()["readings_delivered"] == 10


def test_readings_behind_a_frame_that_closes_their_pipe_are_counted() -> None:
    """They came in the same tick; nobody takes them any more, and every reading is accounted for."""
    sim = pair()
    sim.connections.slip_in(sim.nodes[NodeId("n1")], b"\x92\x06\xc1")
    for number in range(5):
        assert sim.publish("n1", "veh/n1/x", number).queued == 1
    sim.run_for(100 * MS)
    assert came(sim) == []
    assert sim.pipes.readings_lost == 5


# --- processors ------------------------------------------------------------------------------------------------------
def test_frames_queue_behind_one_another_for_a_slow_processor() -> None:
    """A single server: three frames at 40 ms each that come together are taken at 0, 40 and 80 ms."""
    sim = pair()
    sim.nodes[NodeId("n0")].frame_ns = 40 * MS
    for number in range(3):
        sim.publish("n1", f"veh/n1/{number}", number)
    sim.run_for(SECOND)
    assert [at for at, _ in came(sim)] in ([1, 41, 81], [1, 42, 82])


def test_handshake_waits_for_the_processors_of_both_ends() -> None:
    """A single-board computer signs for longer than the handshake travels."""
    took_ms = {}
    for cost_ms in (0, 50):
        sim = SimDriver(1)
        for name in ("n0", "n1"):
            sim.add(name).handshake_ns = cost_ms * MS
        sim.meet()
        sim.run_for(SECOND)
        (at,) = [at for at, event in sim.nodes[NodeId("n0")].events if type(event) is NeighbourMet]
        took_ms[cost_ms] = at / MS
    assert took_ms[0] < 10
    assert took_ms[50] > 100  # two handshakes, one after the other


def test_handshakes_on_a_shared_processor_take_as_long_as_their_work() -> None:
    """An end that waits for itself waits for the processor at the same time: counted twice, nodes of an emulation would
    find each other sooner than those of the simulation that is held against it."""
    sim = SimDriver(1, processors=Processors(1))
    for name in ("n0", "n1", "n2", "n3"):
        sim.add(name).handshake_ns = 50 * MS
    sim.meet()
    sim.run_for(5 * SECOND)
    met = [at for node in sim.nodes.values() for at, event in node.events if type(event) is NeighbourMet]
    assert len(met) == 12
    work_ns = 12 * 2 * 50 * MS
    assert work_ns <= max(met) < 1.1 * work_ns


# --- clocks ----------------------------------------------------------------------------------------------------------
def test_reading_carries_the_wrong_clock_of_its_publisher() -> None:
    """Skew is what the uncertainty in a reading is there for."""
    sim = SimDriver(1)
    wrong = sim.prepare("n1", Role.VEHICLE)
    wrong.set_clocks(offset_ns=5_000 * SECOND, skew_ns=700 * MS, drift_ppb=50_000)
    sim.start(wrong)
    sim.add("n0")
    sim.subscribe("n0", "**", Quality(own=False))
    sim.meet()
    sim.run_for(100 * SECOND)
    sim.publish("n1", "veh/n1/x", 1)
    sim.run_for(SECOND)
    ((_, reading),) = sim.nodes[NodeId("n0")].received
    error_ns = reading.when.utc_ns - EPOCH_UTC_NS - 100 * SECOND
    assert abs(error_ns - 705 * MS) < MS  # 50 ppm over 100 s are 5 ms


@given(
    st.integers(0, 10**16), st.integers(-500_000, 500_000), st.integers(0, 86_400 * SECOND)
)  # fmt: skip
def test_timer_rings_at_the_first_instant_its_clock_shows_it(offset_ns: int, drift_ppb: int, local: int) -> None:
    """A timer that rings early rings again and again; one that rings late holds everybody up."""
    identity = PeerIdentity(MESH, Role.VEHICLE, NodeId("n0"))
    node = SimNode(0, identity, SimDriver(1).prepare("n0", Role.VEHICLE).engine)
    node.set_clocks(offset_ns, 0, drift_ppb)
    due_ns = node.virtual(offset_ns + local)
    assert node.local(due_ns) >= offset_ns + local > node.local(due_ns - 2)


# --- determinism -----------------------------------------------------------------------------------------------------
def test_seed_names_one_history() -> None:
    """Equal seeds give equal digests, others don't: the digest looks at what happens."""

    def digest(seed: int) -> str:
        sim, random = SimDriver(seed), Random(seed)
        for number in range(5):
            sim.add(f"n{number}")
            sim.subscribe(f"n{number}", "**")
        sim.meet()
        for _ in range(10):
            sim.run_for(random.randrange(SECOND))
            sim.publish("n1", "veh/n1/x", 1)
        return sim.digest()

    assert digest(1) == digest(1) != digest(2)
