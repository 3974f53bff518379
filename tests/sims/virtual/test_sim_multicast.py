"""Casting nodes in virtual time: what is shared, what is not, and that nobody misses anything who can't hear."""

from random import Random

import msgspec

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.codec import encode_frame
from protocols.wire.multicast.frames import Heard
from sims.media.wires import Wires
from sims.runs.run import simulate
from sims.scenario.file import load
from sims.virtual.driver import SimDriver

MS, SECOND = limits.MS, limits.SECOND


class DeafWires(Wires):
    """Wires on which some nodes hear no datagram, and a share of all others is lost."""

    def __init__(self, deaf: set[int], loss: float = 0.0) -> None:
        super().__init__(MS)
        self.deaf, self.loss, self.random, self.sent = deaf, loss, Random(1), 0

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        self.sent += 1
        heard = [
            node
            for node in range(self.nodes)
            if node != sender and node not in self.deaf and self.random.random() >= self.loss
        ]
        return now_ns + MS, heard


def mesh(links: DeafWires, nodes: int = 4, old: int = 0) -> SimDriver:
    """Nodes that cast, and some that do not know how."""
    sim: SimDriver

    def adjust(settings: NodeSettings) -> NodeSettings:
        if settings.node.startswith("old"):
            return settings
        return msgspec.structs.replace(settings, datagram_seal=sim.casts.seal(Random(settings.node)))

    sim = SimDriver(1, links=links, adjust=adjust)
    for number in range(nodes):
        sim.add(f"n{number}")
    for number in range(old):
        sim.add(f"old{number}")
    links.nodes = nodes + old
    sim.meet()
    sim.run_for(3 * SECOND)
    return sim


def values(sim: SimDriver, name: str, key: str) -> list[object]:
    return [reading.value for _, reading in sim.nodes[NodeId(name)].received if reading.key == key]


def counter(sim: SimDriver, name: str, what: str) -> int:
    return sim.nodes[NodeId(name)].engine.statistics()[what]


def test_reading_goes_out_once_for_all_who_listen() -> None:
    """N frames become one, and each subscription gets it once."""
    links = DeafWires(set())
    sim = mesh(links)
    for name in ("n1", "n2", "n3"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    sent, frames = links.sent, sim.pipes.frames
    for value in range(20):
        put = sim.publish("n0", "veh/n0/x", value)
        assert (put.queued, put.dropped) == (3, 0)
        sim.run_for(50 * MS)
    assert 20 <= links.sent - sent < 45  # with the beacons of the three others
    assert sim.pipes.frames - frames < 20
    for name in ("n1", "n2", "n3"):
        assert values(sim, name, "veh/n0/x") == list(range(20))


def test_node_that_hears_no_datagram_or_does_not_know_them_gets_all_on_its_link() -> None:
    """An access point that blocks multicast, another subnet, an older version."""
    sim = mesh(DeafWires({3}), nodes=4, old=1)
    for name in ("n1", "n2", "n3", "old0"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    for value in range(20):
        assert sim.publish("n0", "veh/n0/x", value).queued == 4
        sim.run_for(50 * MS)
    for name in ("n1", "n2", "n3", "old0"):
        assert values(sim, name, "veh/n0/x") == list(range(20))
    assert counter(sim, "n0", "multicast_cast") == 20


def test_reading_in_a_datagram_is_judged_by_what_the_clock_is_worth_now() -> None:
    """A receiver may find out that the clock is wrong by seconds, and a lifespan must not end early then."""
    sim = mesh(DeafWires(set()))
    for name in ("n1", "n2"):
        sim.subscribe(name, "veh/n0/*")
        sim.nodes[NodeId(name)].utc_less_mono_ns += 5 * SECOND
    sim.nodes[NodeId("n1")].engine.clock_uncertainty_ns = 6 * SECOND
    sim.run_for(SECOND)
    sim.publish("n0", "veh/n0/x", 1, lifespan_ms=1_000)
    sim.run_for(SECOND)
    assert counter(sim, "n0", "multicast_cast") == 1
    assert (values(sim, "n1", "veh/n0/x"), values(sim, "n2", "veh/n0/x")) == ([1], [])


def test_hazards_reach_everybody_although_a_third_of_the_datagrams_is_lost() -> None:
    """What was missed is asked for and comes on the link, within the time that a beacon and two frames take."""
    sim = mesh(DeafWires(set(), 0.3), nodes=6)
    for number in range(1, 6):
        sim.subscribe(f"n{number}", "veh/n0/*")
    sim.run_for(SECOND)
    published = {}
    for value in range(60):
        published[value] = sim.now
        sim.publish("n0", f"veh/n0/hazard{value}", value, priority=7)
        sim.run_for(300 * MS)
    sim.run_for(SECOND)
    took_ns = []
    for number in range(1, 6):
        received = sim.nodes[NodeId(f"n{number}")].received
        assert sorted(reading.value for _, reading in received) == list(range(60))
        took_ns.extend(at - published[reading.value] for at, reading in received)
    took_ns.sort()
    assert took_ns[len(took_ns) * 9 // 10] < 100 * MS
    assert took_ns[-1] < SECOND
    assert counter(sim, "n0", "multicast_repaired") > 20


def test_nobody_is_suspected_while_only_beacons_flow() -> None:
    """A datagram proves life, and heartbeats to listeners become rare."""
    sim = mesh(DeafWires(set(), 0.1), nodes=6)
    frames = sim.pipes.frames
    sim.run_for(20 * SECOND)
    assert sim.pipes.frames - frames < 20 * 30 * 2  # without datagrams, 20 s of 30 links at 4 Hz are 2,400
    for node in sim.numbered:
        assert [event for _, event in node.events if type(event).__name__ == "NeighbourSuspected"] == []


def test_crash_of_a_casting_node_is_noticed_as_before() -> None:
    """Its datagrams end with it."""
    sim = mesh(DeafWires(set()))
    sim.kill("n0")
    sim.run_for(6 * SECOND)
    for node in sim.numbered[1:]:
        assert "NeighbourDead" in [type(event).__name__ for _, event in node.events]


def test_restarted_node_is_heard_again() -> None:
    """Its new life has new keys, and counters that begin anew."""
    sim = mesh(DeafWires(set()))
    for name in ("n1", "n2"):
        sim.subscribe(name, "veh/n0/*")
    sim.kill("n0")
    sim.run_for(SECOND)
    sim.restart("n0")
    sim.meet()
    sim.run_for(5 * SECOND)
    sim.publish("n0", "veh/n0/x", 1)
    sim.run_for(50 * MS)
    assert counter(sim, "n0", "multicast_cast") == 1
    assert values(sim, "n1", "veh/n0/x") == [1]


def test_key_that_one_holder_may_not_read_goes_to_each_on_its_link() -> None:
    """Everybody who holds the sender's key could open the datagram."""
    links = DeafWires(set())
    sim = mesh(links)
    node = sim.nodes[NodeId("n0")]
    assert node.engine.datagrams is not None
    node.engine.datagrams.audience.holders[NodeId("stranger")] = Role.RELAY  # which may subscribe to nothing
    for name in ("n1", "n2", "n3"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    sim.publish("n0", "veh/n0/x", 1)
    sim.run_for(50 * MS)
    assert counter(sim, "n0", "multicast_cast") == 0
    assert values(sim, "n1", "veh/n0/x") == [1]


def test_what_waits_is_not_cast_to_a_new_holder_who_may_not_read_all() -> None:
    """It was put into the queue when all who held the key were permitted to read it."""
    sim = mesh(DeafWires(set()))
    datagrams = sim.nodes[NodeId("n0")].engine.datagrams
    assert datagrams is not None
    audience = datagrams.audience
    audience.lane.put_reading("veh/n0/x", b"(a reading)", 3, 1 << 60, conflate=False)
    audience.changed(audience.listeners, {**audience.holders, NodeId("v"): Role.VEHICLE})
    assert audience.lane.waiting_readings == 1
    audience.changed(audience.listeners, {**audience.holders, NodeId("r"): Role.RELAY})
    assert audience.lane.waiting_readings == 0


def test_crowd_that_listens_spreads_its_gossip() -> None:
    """What each of them tells each other one at about the same time fills a channel, and hazards wait behind it."""
    for nodes, is_crowd in ((4, False), (14, True)):
        engine = mesh(DeafWires(set()), nodes).nodes[NodeId("n0")].engine
        assert engine.datagrams is not None
        assert len(engine.datagrams.audience.listeners) == nodes - 1
        assert engine.gossip.crowd_gap_ns == engine.datagrams.audience.gap_ns
        assert bool(engine.gossip.crowd_gap_ns) is is_crowd


def test_listener_that_lies_gets_nothing_again_that_it_did_not_ask_for() -> None:
    """Otherwise a report would be a way around interests and the access table."""
    sim = mesh(DeafWires(set()))
    for name in ("n1", "n2"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    sim.publish("n0", "veh/n0/x", 1, priority=7)
    node = sim.nodes[NodeId("n0")]
    assert node.engine.datagrams is not None
    machine = node.engine.datagrams.machine
    assert machine._sender._key is not None
    key = machine._sender._key.id
    before = sim.pipes.frames
    for name in ("n1", "n3"):
        lie = encode_frame(Heard(key, False, 0))
        (pipe,) = [pipe for pipe in sim.nodes[NodeId(name)].dialled.values() if pipe.receiver is node]
        sim.pipes.send(pipe, lie)
    sim.run_for(100 * MS)
    assert sim.pipes.frames > before
    sent = node.engine.lanes.of_node
    assert sent[NodeId("n1")].realtime.readings_ns > sent[NodeId("n3")].realtime.readings_ns
    assert values(sim, "n3", "veh/n0/x") == []
    assert counter(sim, "n0", "multicast_repaired") == 2


def test_subscription_to_every_reading_is_served_on_the_link() -> None:
    """Ordinary readings in a lost datagram are not sent again."""
    sim = mesh(DeafWires(set(), 0.5))
    sim.subscribe("n1", "veh/n0/*", Quality(every=True))
    for name in ("n2", "n3"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    for value in range(50):
        sim.publish("n0", "veh/n0/x", value)
        sim.run_for(50 * MS)
    assert values(sim, "n1", "veh/n0/x") == list(range(50))
    assert len(values(sim, "n2", "veh/n0/x")) < 50


def test_large_reading_and_rate_limit_hold_as_on_links() -> None:
    """A camera picture does not fit a datagram, and who asked for one a second gets one a second."""
    sim = mesh(DeafWires(set()))
    sim.subscribe("n1", "veh/n0/*", Quality(min_interval_ns=SECOND))
    for name in ("n2", "n3"):
        sim.subscribe(name, "veh/n0/*")
    sim.run_for(SECOND)
    assert sim.publish("n0", "veh/n0/picture", bytes(5_000)).queued == 3
    sim.run_for(50 * MS)
    assert counter(sim, "n0", "multicast_cast") == 0
    for value in range(20):
        sim.publish("n0", "veh/n0/x", value)
        sim.run_for(100 * MS)
    assert len(values(sim, "n2", "veh/n0/x")) == 20
    assert 1 <= len(values(sim, "n1", "veh/n0/x")) <= 3


def test_signed_readings_are_cast_and_passed_on() -> None:
    """A hazard with hops travels on beyond those who hear its author."""
    scenario = load("jam")
    group = msgspec.structs.replace(scenario.groups[0], count=4, multicast=True)
    traffic = tuple(msgspec.structs.replace(each, hops=2) for each in scenario.traffic)
    result = simulate(msgspec.structs.replace(scenario, groups=(group,), traffic=traffic, duration_s=6.0), 1)
    assert result.counters["multicast_cast"] > 50
    assert result.counters["readings_signatures_forged"] == 0
    assert all(not tally.failed for tally in result.checks.values())


def test_jam_with_one_frame_for_all_carries_what_sixteen_want() -> None:
    """Without it, sixteen vehicles get less than half of what they want."""
    scenario = load("jam")
    group = msgspec.structs.replace(scenario.groups[0], count=16, multicast=True)
    result = simulate(msgspec.structs.replace(scenario, groups=(group,), duration_s=12.0), 1)
    assert all(not tally.failed for tally in result.checks.values()), result.checks
    assert result.useful_per_s is not None
    assert result.offered_per_s is not None
    assert result.useful_per_s > 0.8 * result.offered_per_s
    assert "NeighbourDead" not in result.sometimes
