"""The machine of readings without a node, with the queues of its neighbours and a clock that the test sets."""

from collections import Counter

from protocols.access import DEFAULT_RULES, AccessRule, AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.readings.events import Delivery, Put
from protocols.readings.machine import Router
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.readings.streams import Peer
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.parcels import decode_untrusted_parcel
from protocols.wire.readings import EventTime, Interest, Reading, Readings, SignedReadings, Want
from tests.tools.signed_fixture import Certificates, reading_seal, signed
from tests.tools.strategies import HERE, HOW, NOW_UTC_NS

ME, A, B = NodeId("me"), NodeId("a"), NodeId("b")
MS, SECOND = limits.MS, limits.SECOND
ALL = Quality()


class Bench:
    """One machine, its neighbours' queues, and a clock."""

    def __init__(self, *peers: NodeId, rules: tuple[AccessRule, ...] = DEFAULT_RULES) -> None:
        self.drops = Drops()
        self.touched: list[LaneQueue] = []
        self.certificates = Certificates()
        self.machine = Router(
            ME, Role.VEHICLE, 1, AccessTable(rules), self.drops, self.touched, [], reading_seal(ME), self.certificates
        )  # fmt: skip
        self.peers: dict[NodeId, Peer] = {}
        self.now = 0
        self.version = 0
        for node in peers:
            self.add(node)

    def add(self, node: NodeId) -> Peer:
        peer = Peer(node, Role.VEHICLE, LaneQueue(node, self.drops), LaneQueue(node, self.drops), self.now)
        self.peers[node] = peer
        self.machine.add_peer(peer)
        return peer

    @property
    def utc(self) -> int:
        return NOW_UTC_NS + self.now

    def wants(self, node: NodeId, *wants: Want) -> bool:
        """Have a neighbour say what it wants. Of a large Interest, time passes until it counts."""
        self.begin_wants(node, *wants)
        while len(self.machine._uptake):
            self.now = max(self.now, self.machine.next_timer_at())
            self.machine.handle_timer(self.now)
        return self.machine.interest_changed

    def begin_wants(self, node: NodeId, *wants: Want) -> None:
        """Have a neighbour say what it wants, without waiting until it counts."""
        self.version += 1
        self.machine.interest_changed = False
        self.machine.receive_interest(Interest(self.version, wants), node, self.now, self.utc)

    def publish(self, key: str = "veh/me/x", value: object = 1, **more: object) -> tuple[Put, Delivery | None]:
        context: dict[str, object] = {"where": HERE, "when": EventTime(self.utc, 0), "how": HOW, **more}
        where, when = context.pop("where"), context.pop("when")
        publication = checked_publication(key, **context)  # type: ignore[arg-type]
        return self.machine.publish(publication, value, where, when, self.now, self.utc)[:2]  # type: ignore[arg-type]

    def accept(self, source: NodeId, *readings: Reading) -> list[Delivery]:
        """Have it receive readings as a real neighbour sends them: signed by their author if they were passed on or may
        be. The role of an author is the one that the first chunk of the key belongs to."""
        deliveries: list[Delivery] = []
        for one in readings:
            if one.origin == source and not one.hops:
                deliveries += self.accept_plain(source, one)
            else:
                roles = self.certificates.roles
                roles.setdefault(one.origin, Role.RSU if one.key.startswith("rsu/") else Role.VEHICLE)
                deliveries += self.accept_signed(source, signed(one, roles=roles))
        return deliveries

    def accept_plain(self, source: NodeId, *readings: Reading) -> list[Delivery]:
        return self.machine.accept(readings, source, Role.VEHICLE, self.now, self.utc, 10 * MS)

    def accept_signed(self, source: NodeId, frame: SignedReadings) -> list[Delivery]:
        return self.machine.accept_signed(frame, source, Role.VEHICLE, self.now, self.utc, 10 * MS)

    def sent(self, node: NodeId, bulk: bool = False) -> list[Reading]:
        queue = self.peers[node].bulk if bulk else self.peers[node].realtime
        readings: list[Reading] = []
        while (frame := queue.take(self.now)) is not None:
            decoded = decode_untrusted_node_frame(frame)
            if type(decoded) is SignedReadings:
                readings.extend(decode_untrusted_parcel(decoded))
                continue
            assert type(decoded) is Readings
            readings.extend(decoded.readings)
        return readings

    def dropped(self) -> dict[tuple[str, str], int]:
        counts: Counter[tuple[str, str]] = Counter()
        for (peer, _, reason), count in self.drops.items():
            counts[peer, reason] += count
        return dict(counts)
