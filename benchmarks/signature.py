"""``python -m benchmarks.signature``: what the signature of a reading beyond one hop costs, in microseconds and bytes.

One process signs and checks with the keys of three real certificates: an author, a forwarder and a receiver. Each
figure is that of the fastest of several short runs, which take turns, so that other programs disturb it least. It
writes ``build/signature.json``.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import command
from benchmarks.command import between, finish, measuring
from meshnode.gossip.notary import Notary
from meshnode.identity import create_mesh, issue
from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.links.drops import Drops
from protocols.links.queues import LaneQueue
from protocols.readings.machine import Router
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.readings.streams import Peer
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.parcels import encode_signed, reading_statement
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Readings, SignedReadings, Want

BYTES_BAR: Final = 90
CORE_BAR_PERCENT: Final = 1.0
"""What a stream of 10 Hz may cost each node that checks it."""
_UTC_NS: Final = 1_700_000_000 * SECOND
_HERE: Final = Position(48.77, 11.42, 2.0)
_HOW: Final = Provenance("camera", "1")
_AUTHOR, _BEFORE, _BEHIND, _FURTHER = NodeId("veh-1"), NodeId("rsu-1"), NodeId("veh-2"), NodeId("rsu-9")


class Node:
    """The machine of readings of one node, with the keys of a real certificate."""

    def __init__(self, node: NodeId, role: Role, notary: Notary, certificate: bytes, *peers: NodeId) -> None:
        """``certificate`` is that of the author, as gossip would have spread it."""
        drops = Drops()
        self.queues = {peer: LaneQueue(peer, drops) for peer in peers}
        self.router = Router(
            node, role, 1, AccessTable(), drops, [], [], notary.reading_seal(), lambda author: (certificate, 0)
        )  # fmt: skip
        for peer, queue in self.queues.items():
            self.router.add_peer(Peer(peer, Role.RSU, queue, LaneQueue(peer, drops)))
        self.now = SECOND

    def wants(self, peer: NodeId) -> None:
        """A neighbour wants everything, for itself and for others."""
        self.router.receive_interest(Interest(1, (Want("**", hops=2),)), peer, self.now, _UTC_NS)

    def publish(self, hops: int) -> bytes:
        """Publish one number. Returns the frame for the neighbour."""
        self.now += MS
        utc_ns = _UTC_NS + self.now
        publication = checked_publication("veh/veh-1/speed", _HOW, _HERE, hops=hops)
        self.router.publish(publication, 13.9, None, EventTime(utc_ns, MS), self.now, utc_ns)
        (queue,) = self.queues.values()
        frame = queue.take(self.now)
        assert frame is not None
        return frame

    def receive(self, data: bytes, source: NodeId) -> int:
        """Receive a frame as the engine does. Returns how many readings were delivered."""
        self.now += 10 * MS  # the allowance is that of a busy link
        frame = decode_untrusted_node_frame(data)
        utc_ns = _UTC_NS + self.now
        if type(frame) is SignedReadings:
            delivered = len(self.router.accept_signed(frame, source, Role.RSU, self.now, utc_ns, MS))
        else:
            assert type(frame) is Readings
            delivered = len(self.router.accept(frame.readings, source, Role.VEHICLE, self.now, utc_ns, MS))
        for queue in self.queues.values():
            queue.take(self.now)
        return delivered


def _notaries(folder: Path) -> dict[NodeId, Notary]:
    create_mesh(folder / "authority", "bench")
    made = {}
    for node, role in ((_AUTHOR, Role.VEHICLE), (_BEFORE, Role.RSU), (_BEHIND, Role.VEHICLE)):
        identity = issue(folder / "authority", role, node, folder / node)
        made[node] = Notary(identity.credentials, identity.peer.mesh)
    return made


def measure(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """All figures, by names that end in their unit."""
    notaries = _notaries(folder)
    certificate = notaries[_AUTHOR].sign(b"")[0]
    author = Node(_AUTHOR, Role.VEHICLE, notaries[_AUTHOR], certificate, _BEFORE)
    author.wants(_BEFORE)
    plain, signed = author.publish(0), decode_untrusted_node_frame(author.publish(2))
    assert type(signed) is SignedReadings
    statement = reading_statement(signed.parcel)
    behind = notaries[_BEHIND]

    def receiving(hops: int, source: NodeId) -> Callable[[], None]:
        frames = [author.publish(hops) for _ in range(rounds * count)]
        node = Node(_BEHIND, Role.VEHICLE, behind, certificate, source, _FURTHER)
        node.wants(_FURTHER)
        node.router.subscribe("**", Quality(hops=2), 0)
        each = iter(frames)

        def receive() -> None:
            assert node.receive(next(each), source) == 1

        return receive

    ways: dict[str, Callable[[], object]] = {
        "sign": lambda: notaries[_AUTHOR].sign_reading(statement),
        "check": lambda: behind.has_signed(certificate, statement, signed.signature),
        "publish_plain": lambda: author.publish(0),
        "publish_signed": lambda: author.publish(2),
        "receive_plain": receiving(0, _AUTHOR),
        "receive_signed": receiving(2, _BEFORE),
    }
    assert behind.role(certificate, _AUTHOR, signed.certificate) is Role.VEHICLE
    took_us: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin_ns = time.perf_counter_ns()
            for _ in range(count):
                way()
            took_us[name].append((time.perf_counter_ns() - begin_ns) / count / 1_000)
    figures = {f"{name}_us": round(min(each), 1) for name, each in took_us.items()}
    longest = encode_signed(2, signed.certificate, bytes(limits.MAX_SIGNATURE_BYTES), signed.parcel)
    figures["plain_frame_bytes"] = len(plain)
    figures["signature_bytes"] = len(longest) - len(signed.parcel)
    figures["core_percent_of_10_hz"] = round((figures["receive_signed_us"] - figures["receive_plain_us"]) / 1_000, 3)
    return figures


def missed_bars(figures: dict[str, float]) -> list[str]:
    """The promises that were not kept, one sentence each."""
    missed = []
    if figures["signature_bytes"] > BYTES_BAR:
        missed.append(f"a signature takes {figures['signature_bytes']} bytes of a frame, more than {BYTES_BAR}")
    if figures["core_percent_of_10_hz"] > CORE_BAR_PERCENT:
        missed.append(
            f"a stream of 10 Hz costs {figures['core_percent_of_10_hz']} % of a core, above {CORE_BAR_PERCENT} %"
        )
    return missed


def table(figures: dict[str, float]) -> str:
    """The figures for people."""
    rows = (
        ("sign", f"{figures['sign_us']:.1f} µs"),
        ("check", f"{figures['check_us']:.1f} µs"),
        ("publish to one neighbour", f"{figures['publish_plain_us']:.1f} µs"),
        ("… with a signature", f"{figures['publish_signed_us']:.1f} µs"),
        ("receive from its author", f"{figures['receive_plain_us']:.1f} µs"),
        ("… from a forwarder: check and pass on", f"{figures['receive_signed_us']:.1f} µs"),
        ("bytes of a frame of one number", f"{figures['plain_frame_bytes']}"),
        ("… and at most, with a signature", f"+ {figures['signature_bytes']}"),
        ("a stream of 10 Hz, where it is checked", f"{figures['core_percent_of_10_hz']:.3f} % of a core"),
    )
    return "\n".join(f"{what:<42}{figure:>18}" for what, figure in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("signature", __doc__, "a promise is missed")
    whole = between(1, 1_000_000)
    parser.add_argument("--count", type=whole, default=200, help="operations in a run (default: %(default)s)")
    parser.add_argument("--rounds", type=whole, default=40, help="runs of each operation (default: %(default)s)")
    options = parser.parse_args(arguments)
    with measuring("signature") as folder:
        figures = measure(folder, options.count, options.rounds)
    print(table(figures))
    return finish(options, figures, missed_bars(figures))


if __name__ == "__main__":
    sys.exit(main())
