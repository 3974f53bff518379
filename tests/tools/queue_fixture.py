"""A lane's queue with real readings in it, and what comes out."""

from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.drops import Drops
from protocols.links.queues import BEHIND_NS, LaneQueue
from protocols.wire.codec import decode_untrusted_node_frame
from protocols.wire.parcels import encode_alone
from protocols.wire.readings import Readings
from tests.tools.strategies import reading

PEER = NodeId("peer")


def put(queue: LaneQueue, sequence: int, *, key: str = "k", priority: int = 3, size: int = 1, **more: object) -> bool:
    """Queue one real reading."""
    data = encode_alone(reading(key=key, sequence=sequence, value=bytes(size)))
    expires_ns = int(more.get("expires_ns", NEVER))  # type: ignore[call-overload]
    return queue.put_reading(key, data, priority, expires_ns, bool(more.get("conflate")), bool(more.get("every")))


def taken(queue: LaneQueue, now: int = 0) -> list[int]:
    """The sequences of all readings that come out."""
    sequences: list[int] = []
    while (frame := queue.take(now)) is not None:
        decoded = decode_untrusted_node_frame(frame)
        assert type(decoded) is Readings
        sequences.extend(one.sequence for one in decoded.readings)
    return sequences


def behind() -> tuple[LaneQueue, Drops]:
    """A queue whose lane is behind."""
    drops = Drops()
    queue = LaneQueue(PEER, drops)
    put(queue, 0, key="first")
    for now in (1, 1 + BEHIND_NS):
        assert queue.take(now, full=True) is None
    assert queue.is_behind
    return queue, drops
