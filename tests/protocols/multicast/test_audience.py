"""Which neighbours get a stream together, and what happens to what waits for them when others can open it."""

from protocols.access import AccessRule, AccessTable
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.datagrams.audience import Audience
from protocols.links.drops import Drops
from protocols.links.pace import EVERYBODY, Pace
from protocols.links.queues import LaneQueue
from protocols.readings.interest import decide_routes
from protocols.readings.matching import KeyPattern
from protocols.readings.streams import Asked, Peer, Stream
from protocols.wire.readings import Want

NODES = [NodeId(f"n{number}") for number in range(6)]


def audience(*rules: AccessRule) -> Audience:
    return Audience(AccessTable(rules) if rules else AccessTable(), Drops(), 100, Pace())


def stream(**wants: Want) -> Stream:
    """A stream of this node, and the routes to neighbours with these wants."""
    peers = []
    for node, want in wants.items():
        queue = LaneQueue(node, Drops())
        peer = Peer(NodeId(node), Role.VEHICLE, queue, queue)
        peer.hold((Asked(KeyPattern(want.expression), want),))
        peers.append(peer)
    made = Stream("me", "veh/me/x", NodeId("me"))
    decide_routes(made, peers, 1, own=True)
    return made


def test_listeners_share_a_route_and_each_other_neighbour_keeps_its_own() -> None:
    """Nobody gets a reading twice, and nobody is left out."""
    heard, want = audience(), Want("veh/*/*")
    heard.changed(frozenset(NODES[:4]), dict.fromkeys(NODES, Role.VEHICLE))
    made = stream(n0=want, n4=want, n1=want, n2=Want("veh/*/*", every=True), n5=want, n3=Want("rsu/*"))
    heard.decide(made)
    assert [(route.peer.node, route.count) for route in made.shared] == [
        (EVERYBODY, 2),
        ("n4", 1),
        ("n2", 1),
        ("n5", 1),
    ]
    assert made.shared[0].wants == [want, want]


def test_only_a_crowd_has_to_spread_what_goes_to_each() -> None:
    """Twelve that tell each other something at once take a tenth of a second of a channel, and forty more than one."""
    heard = audience()
    for others, gap_ms in ((11, 0), (17, 235), (39, 1_200)):
        heard.changed(frozenset(NodeId(f"n{number}") for number in range(others)), {})
        assert heard.gap_ns // 1_000_000 == gap_ms


def test_holder_whose_new_role_may_read_less_gets_nothing_that_waited() -> None:
    """A node that comes back with another certificate holds the key by its new role."""
    tools = AccessRule(Role.TOOL, "subscribe", "tool/**")
    heard = audience(AccessRule(Role.VEHICLE, "subscribe", "**"), tools)
    holders = dict.fromkeys(NODES, Role.VEHICLE)
    assert not heard.changed(frozenset(NODES), holders)
    heard.lane.put_reading("veh/me/x", b"(a reading)", 3, NEVER, conflate=False)
    made = stream(n0=Want("**"), n1=Want("**"))
    heard.decide(made)
    assert made.shared
    holders[NODES[5]] = Role.TOOL
    assert heard.changed(frozenset(NODES), holders)
    assert heard.lane.waiting_readings == 0
    heard.decide(made)
    assert not made.shared
